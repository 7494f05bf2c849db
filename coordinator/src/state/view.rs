//! What people are told of the state: how things are, what the run waits for, and what it cannot get.

use types::{MemberId, PolicyVersion, Timestamp};

use super::State;
use super::account::Account;
use super::batches::Batches;
use super::durable::Durable;
use super::evaluations::EvaluationRecord;
use super::failures::FailureView;
use super::history::History;
use super::leases::LeaseView;
use super::members::Members;
use super::phase::Phase;
use super::plan::RunPlan;
use super::progress::{Cause, Hopeless};

impl State {
    /// What of the run survives a restart.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// The plan in force.
    pub fn plan(&self) -> &RunPlan {
        &self.durable.plan
    }

    /// Where the run is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The accounting.
    pub fn account(&self) -> &Account {
        &self.durable.account
    }

    /// What happened, for people.
    pub fn history(&self) -> &History {
        &self.durable.history
    }

    /// Who is there.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// How far the batches are.
    pub fn batches(&self) -> &Batches {
        &self.durable.batches
    }

    /// The newest policy version.
    pub fn version(&self) -> PolicyVersion {
        self.durable.version()
    }

    /// Prompts with a response awaited.
    pub(crate) fn open_prompts(&self) -> u64 {
        self.durable.work.open_prompts()
    }

    /// Attempts issued, minus endings, minus what is counted in flight: 0 unless there is a bug.
    pub fn unaccounted(&self) -> i64 {
        self.durable.unaccounted()
    }

    /// Attempts in flight, counted where they lie: in groups and in batches not yet trained.
    pub fn in_flight(&self) -> u64 {
        self.durable.in_flight()
    }

    /// Evaluations that were over lately, oldest first.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &EvaluationRecord> + Clone {
        self.durable.evaluations()
    }

    /// Held-out prompts with a response awaited, while nothing else goes on.
    fn awaited_held_out(&self) -> Option<u64> {
        let Durable { plan, work, batches, .. } = &self.durable;
        let is_alone = plan.deterministic || batches.trained() >= batches.last(plan);
        (is_alone && work.evaluations.is_under_way()).then(|| work.evaluations.open_prompts())
    }

    /// Why the run cannot go on as it is, if it cannot.
    pub fn hopeless(&self) -> Option<&Hopeless> {
        self.progress.hopeless()
    }

    /// Why nothing new is begun, while the journal's disk is short of room.
    pub(crate) fn short_of_room(&self) -> Option<&str> {
        self.short_of_room.as_deref()
    }

    /// Why the run was given up, if it was.
    pub fn given_up(&self) -> Option<&Cause> {
        self.given_up.as_ref()
    }

    /// Failures since this coordinator started, by role and reason.
    pub fn failures(&self) -> impl Iterator<Item = FailureView<'_>> {
        self.failures.kinds()
    }

    /// When something moved last.
    pub(crate) fn moved_at(&self) -> Timestamp {
        self.progress.moved_at()
    }

    /// The leases that run longest, the oldest first.
    pub(crate) fn oldest_leases(&self, most: usize) -> Vec<LeaseView> {
        self.durable.work.leases.oldest(most)
    }

    /// That no actor can hold one group, where that is so: all of them are idle and say how much room they
    /// have.
    pub(super) fn no_room(&self) -> Option<Cause> {
        let Durable { plan, work, .. } = &self.durable;
        if plan.deterministic || !work.leases.is_empty() {
            return None;
        }
        let mut most: Option<(u32, &MemberId)> = None;
        for (member, actor) in self.members.actors().iter() {
            if actor.usable_version().is_some() {
                let idle = actor.load.running == 0 && actor.load.unacknowledged == 0;
                if !idle || actor.load.free_slots >= u32::from(plan.group_size) {
                    return None;
                }
                most = most.max(Some((actor.load.free_slots, member)));
            }
        }
        let (free_slots, member) = most.filter(|(free_slots, _)| *free_slots > 0)?;
        Some(Cause::NoRoom { member: member.clone(), free_slots, group_size: plan.group_size })
    }

    /// What the run waits for, in one sentence: the answer to "why is nothing happening?".
    pub fn waiting_for(&self) -> String {
        if let Some(Hopeless { cause, .. }) = self.hopeless()
            && !matches!(cause, Cause::Standstill { .. })
        {
            return format!("something that cannot happen: {cause}");
        }
        match self.phase() {
            Phase::Finished => return "nothing: the run is finished".to_owned(),
            Phase::Stopped => return "nothing: the run was stopped and can be resumed".to_owned(),
            Phase::Draining => {
                return "actors to finish their leases and the learner to write a checkpoint".to_owned();
            }
            Phase::Running => {}
        }
        if let Some(room) = self.short_of_room() {
            return room.to_owned();
        }
        let members = &self.members;
        if members.connected_learner().is_none() {
            return "the learner to connect".to_owned();
        }
        let connected_actors = members.connected_actor_count();
        if connected_actors == 0 {
            return "an actor to connect".to_owned();
        }
        if members.connected_reward_server_count() == 0 {
            return "a reward server to connect".to_owned();
        }
        if let Some(prompts) = self.awaited_held_out() {
            return format!("responses to {prompts} held-out prompts");
        }
        let (trained, formed, version) = (self.batches().trained(), self.batches().formed(), self.version());
        if formed > trained {
            return format!("the learner to train batch {}", trained.next());
        }
        let mut versions = members.actors().values().filter_map(|actor| actor.weights);
        let current = versions.any(|(held, _)| held == version);
        if !current {
            return format!("an actor to receive {version} ({connected_actors} connected)");
        }
        let plan = self.plan();
        if self.batches().waits_until(plan).is_some() {
            return format!(
                "the oldest open groups: batch {} has enough others, and these would be too old for the next one",
                formed.next()
            );
        }
        format!(
            "responses to {} prompts: batch {} has {} of its {} groups",
            self.open_prompts(),
            formed.next(),
            self.batches().ready_prompts(),
            plan.batch_prompts
        )
    }
}
