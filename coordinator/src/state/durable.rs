//! What a run is: the part of the state that facts alone change, and that survives a restart.

use std::collections::VecDeque;
use std::time::Duration;

use algo::filtration::Strategy;
use serde::{Deserialize, Serialize};
use types::link::learner::{LearnerCommand, StepMetrics};
use types::{
    BatchId, DropReason, Ending, FilterReason, Incarnation, LearnerTerm, MemberId, PolicyVersion, Timestamp,
    WeightHash,
};

use super::account::Account;
use super::auto_strategy::AutoStrategy;
use super::batches::{Batches, Formed, RefillLimit, StaleGroup};
use super::effect::{Applied, Effect};
use super::evaluations::EvaluationRecord;
use super::fact::{Fact, LearnerFacts, LeaseBounds, ScoreSummary};
use super::filter::{Filtered, ReadyGroup};
use super::group_end::GroupEnd;
use super::groups::CompleteGroup;
use super::history::{History, TrainedBatch};
use super::notice::Notice;
use super::plan::RunPlan;
use super::work::{Progressed, Work};

/// Versions whose hashes are remembered, so that an actor that comes back is recognised.
const KNOWN_VERSIONS_LIMIT: usize = 64;

/// What of a run survives a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    pub(super) plan: RunPlan,
    /// Starts of a coordinator over this journal.
    term: u64,
    /// The learner that was admitted last, and the how manieth it is.
    learner: Option<(MemberId, Incarnation)>,
    pub(super) learner_term: LearnerTerm,
    /// When the first coordinator started; 0 in a journal that was begun before this was known.
    #[serde(default)]
    pub(super) began: Timestamp,
    /// When the newest fact happened.
    #[serde(default)]
    last_fact: Timestamp,
    pub(super) work: Work,
    pub(super) batches: Batches,
    /// Recent versions and their hashes, oldest first.
    versions: VecDeque<(PolicyVersion, WeightHash)>,
    pub(super) account: Account,
    pub(super) history: History,
    /// Where the strategy of the filtration is chosen.
    #[serde(default)]
    pub(super) auto: AutoStrategy,
}

/// What a fact means for the members.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Something was awaited of it.
    pub(super) taken: bool,
    /// Actors whose leases have changed.
    pub(super) touched: Vec<MemberId>,
    /// For each group that is complete, how what does not train of it has ended, and whether anything trains.
    pub(super) groups: Vec<(Ending, bool)>,
}

impl Durable {
    /// A run that has not begun.
    pub fn new(plan: RunPlan) -> Self {
        Self {
            plan,
            term: 0,
            learner: None,
            learner_term: LearnerTerm(0),
            began: Timestamp(0),
            last_fact: Timestamp(0),
            work: Work::default(),
            batches: Batches::default(),
            versions: VecDeque::new(),
            account: Account::default(),
            history: History::default(),
            auto: AutoStrategy::default(),
        }
    }

    /// Takes a fact as a journal holds it, and returns what followed from it at the time.
    pub fn replay(&mut self, at: Timestamp, fact: Fact) -> Applied {
        let mut out = Applied::default();
        self.apply(at, fact, &mut out);
        out
    }

    /// Takes a fact.
    pub(super) fn apply(&mut self, now: Timestamp, fact: Fact, out: &mut Applied) -> Outcome {
        let before = std::mem::replace(&mut self.last_fact, now);
        match fact {
            Fact::Started(plan) => {
                // When the process before has ended is not known, but that it was there until its last fact.
                let away = if before > Timestamp(0) { now.since(before) } else { Duration::ZERO };
                self.work.leases.prolong(away);
                self.started(now, *plan, out);
            }
            Fact::WasAway(away) => {
                self.work.leases.prolong(away);
                self.batches.prolong(away);
            }
            Fact::LearnerJoined(learner) => self.learner_joined(now, *learner, out),
            Fact::Leased { member, bounds } => return self.leased(now, member, bounds, out),
            Fact::Scored(summary) => return self.scored(now, summary, out),
            Fact::Failed { id, reason } => {
                let progressed = self.work.fail(&self.plan, id, reason);
                return self.progressed(now, progressed, out);
            }
            Fact::Lapsed { ids, reason } => {
                let progressed = self.work.lapse(&self.plan, &ids, reason);
                return self.progressed(now, progressed, out);
            }
            Fact::Trained { batch, weights, metrics } => {
                self.remember(weights);
                if batch > self.batches.trained() {
                    self.count_trained(batch);
                    self.add_step(now, batch, *metrics, out);
                    self.begin_evaluation(now);
                }
            }
            Fact::Checkpointed(batch) => self.checkpointed(batch, out),
            Fact::WaitEnded(batch) => {
                let formed = self.batches.wait_ended(&self.plan, self.work.awaited(now), batch);
                self.formed(formed, out);
            }
            Fact::StrategyChosen { strategy, reason } => self.strategy_chosen(now, strategy, reason, out),
        }
        Outcome::default()
    }

    fn strategy_chosen(&mut self, now: Timestamp, strategy: Strategy, reason: String, out: &mut Applied) {
        let before = self.auto.chosen(&self.plan.filtration, strategy);
        let change = format!("the filtration strategy was {before} and is {strategy} now: {reason}");
        self.history.plan_changed(now, self.batches.trained(), &[change]);
        out.notice(Notice::StrategyChosen { before, strategy, reason });
    }

    fn started(&mut self, now: Timestamp, plan: RunPlan, out: &mut Applied) {
        self.history.started(now);
        let changes = plan.changes_since(&self.plan).allowed;
        if !changes.is_empty() {
            self.history.plan_changed(now, self.batches.trained(), &changes);
            out.notice(Notice::PlanChanged { changes });
        }
        self.plan = plan;
        if self.term == 0 {
            self.began = now;
        }
        self.term += 1;
        self.batches.wait_anew();
        let formed = self.batches.form(&self.plan, self.work.awaited(now));
        self.formed(formed, out);
        self.stop_if_complete(out);
    }

    fn learner_joined(&mut self, now: Timestamp, learner: LearnerFacts, out: &mut Applied) {
        let process = (learner.member, learner.incarnation);
        if self.learner.as_ref() != Some(&process) {
            self.learner = Some(process);
            self.learner_term = self.learner_term.next();
        }
        // What it trained and could not say at the time is recorded now.
        let known = self.batches.trained();
        self.count_trained(learner.trained);
        for step in learner.steps.iter().filter(|step| step.batch > known && step.batch <= learner.trained) {
            self.add_step(now, step.batch, step.metrics.clone(), out);
        }
        self.remember(learner.weights);
        self.begin_evaluation(now);
        self.checkpointed(learner.checkpointed, out);
    }

    fn checkpointed(&mut self, batch: BatchId, out: &mut Applied) {
        out.forget(self.batches.checkpoint(batch));
        self.stop_if_complete(out);
    }

    fn leased(
        &mut self,
        now: Timestamp,
        member: MemberId,
        bounds: LeaseBounds,
        out: &mut Applied,
    ) -> Outcome {
        let Some(grant) = self.work.lease(now, &self.plan, &member, bounds) else {
            return Outcome::default();
        };
        self.account.issue(grant.attempts());
        out.effects.push(Effect::Lease { member: member.clone(), grant });
        Outcome { taken: true, touched: vec![member], groups: Vec::new() }
    }

    fn scored(&mut self, now: Timestamp, summary: ScoreSummary, out: &mut Applied) -> Outcome {
        let id = summary.id;
        self.history.scored_tokens(now, u64::from(summary.tokens));
        let progressed = self.work.score(&self.plan, summary);
        if progressed.taken > 0 && id.prompt.held_out_place().is_none() {
            out.keep(id);
        }
        self.progressed(now, progressed, out)
    }

    fn progressed(&mut self, now: Timestamp, progressed: Progressed, out: &mut Applied) -> Outcome {
        let taken = progressed.taken > 0;
        if !taken {
            self.account.late();
        }
        for ending in progressed.endings {
            self.account.end(ending, 1);
        }
        let groups = progressed.complete.iter().map(|group| self.filter(now, group, out)).collect();
        for group in &progressed.evaluated {
            self.evaluated(now, group, out);
        }
        Outcome { taken, touched: progressed.freed, groups }
    }

    fn begin_evaluation(&mut self, now: Timestamp) {
        self.work.evaluations.begin_if_due(now, &self.plan, self.batches.trained());
    }

    /// Nothing is awaited of a held-out prompt any more.
    fn evaluated(&mut self, now: Timestamp, group: &CompleteGroup, out: &mut Applied) {
        self.account.end(Ending::Evaluated, group.scored.len() as u64);
        let Some(record) = self.work.evaluations.complete(now, &self.plan, group) else { return };
        if record.is_best && record.version.0 > 0 {
            out.tell_learner(LearnerCommand::KeepBest(BatchId(record.version.0)));
        }
        self.history.evaluated(record.clone());
        out.effects.push(Effect::Evaluated(Box::new(record)));
        if self.work.evaluations.is_over() {
            self.batches.close();
        }
        self.begin_evaluation(now);
        self.stop_if_complete(out);
    }

    fn filter(&mut self, now: Timestamp, group: &CompleteGroup, out: &mut Applied) -> (Ending, bool) {
        self.work.observe(&self.plan, group);
        if group.has_enough(self.plan.min_group) {
            self.history.observe_group(&group.scored);
        }
        let filtration = self.auto.filtration(&self.plan.filtration);
        let mut filtered = Filtered::of(&self.plan, &filtration, group);
        if let Some(set) = self.plan.set_of(group.prompt.ordinal) {
            filtered.is_of(&set.name);
        }
        if !filtered.ready.as_ref().is_some_and(ReadyGroup::is_undecided) {
            let end = GroupEnd::of(group, self.batches.formed().next(), &filtered);
            out.effects.push(Effect::GroupEnded(Box::new(end)));
        }
        let Filtered { ready, unselected, ending, ended, forgotten } = filtered;
        self.account.end(ending, ended);
        out.forget(forgotten);
        let (trains, awaited) = (ready.is_some(), self.work.awaited(now));
        let formed = match ready {
            Some(ready) => self.batches.add(&self.plan, awaited, ready),
            None => self.batches.add_unselected(&self.plan, awaited, &unselected),
        };
        self.formed(formed, out);
        (ending, trains)
    }

    /// What is to be told of batches that were formed.
    fn formed(&mut self, formed: Formed, out: &mut Applied) {
        for (batch, decided) in formed.decided {
            let ending = Ending::Filtered(FilterReason::Strategy);
            self.account.end(ending, decided.ended);
            out.effects.push(Effect::GroupEnded(Box::new(GroupEnd::decided(batch, &decided, ending))));
            out.forget(decided.forgotten);
        }
        for RefillLimit { batch, groups, in_vain } in formed.limits {
            out.notice(Notice::RefillLimit { batch, groups, of: self.plan.batch_prompts, in_vain });
        }
        self.drop_stale(formed.stale, out);
    }

    fn drop_stale(&mut self, stale: Vec<StaleGroup>, out: &mut Applied) {
        for mut stale in stale {
            let ending = Ending::Dropped(DropReason::Stale);
            if let Some(undecided) = stale.group.give_up() {
                let end = GroupEnd::decided(stale.batch, &undecided, ending);
                out.effects.push(Effect::GroupEnded(Box::new(end)));
            }
            let (prompt, oldest) = (stale.group.group.prompt, stale.group.oldest);
            out.notice(Notice::GroupStale { prompt, oldest, batch: stale.batch });
            self.account.end(ending, stale.group.in_flight());
            self.batches.observe(&stale.group.sums);
            out.forget(stale.group.responses());
        }
    }

    fn count_trained(&mut self, batch: BatchId) {
        let responses = self.batches.train(batch);
        self.account.end(Ending::Trained, responses);
    }

    fn add_step(&mut self, now: Timestamp, batch: BatchId, metrics: StepMetrics, out: &mut Applied) {
        if let Some(batch) = self.batches.find(batch) {
            let RunPlan { seed, filtration, .. } = &self.plan;
            let trained = TrainedBatch { now, seed: *seed, filtration, batch, metrics };
            let (step, alarms) = self.history.add_step(trained, &mut self.auto);
            out.effects.push(Effect::Step(Box::new(step)));
            for alarm in alarms {
                out.notice(Notice::Alarm(alarm));
            }
        }
    }

    fn remember(&mut self, weights: (PolicyVersion, WeightHash)) {
        self.versions.retain(|known| *known != weights);
        self.versions.push_back(weights);
        if self.versions.len() > KNOWN_VERSIONS_LIMIT {
            self.versions.pop_front();
        }
    }

    /// Ends all work once the last batch is part of a checkpoint.
    fn stop_if_complete(&mut self, out: &mut Applied) {
        if !self.is_complete() {
            return;
        }
        let stopped = self.work.stop();
        self.account.end(Ending::Dropped(DropReason::RunFinished), stopped.len() as u64);
        out.forget(stopped);
        for group in self.batches.take_ready() {
            self.account.end(Ending::Dropped(DropReason::RunFinished), group.in_flight());
            out.forget(group.responses());
        }
    }

    /// The last batch is part of a checkpoint, and evaluated where that is asked for.
    pub(super) fn is_complete(&self) -> bool {
        let Self { plan, work, batches, .. } = self;
        batches.checkpointed() >= batches.last(plan) && !work.evaluations.is_awaited(plan, batches.trained())
    }

    /// Starts of a coordinator over this journal.
    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// The newest policy version.
    pub(super) fn version(&self) -> PolicyVersion {
        self.versions.back().map_or(PolicyVersion(0), |(version, _)| *version)
    }

    /// The learner that was admitted last.
    pub(super) fn learner(&self) -> Option<&(MemberId, Incarnation)> {
        self.learner.as_ref()
    }

    /// Whether these weights are or were this run's.
    pub(super) fn knows(&self, version: PolicyVersion, hash: WeightHash) -> bool {
        self.versions.contains(&(version, hash))
    }

    /// The plan in force.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// How far the batches are.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// Evaluations that were over lately, oldest first.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &EvaluationRecord> + Clone {
        self.work.evaluations.records()
    }

    /// What happened, for people.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether somebody works on a lease, or a batch waits for groups that are open.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.work.leases.is_empty() || self.batches.is_waiting()
    }

    /// Attempts in flight: in groups and in batches not yet trained.
    pub(super) fn in_flight(&self) -> u64 {
        self.work.in_flight() + self.batches.in_flight()
    }

    /// Attempts issued, minus endings, minus those in flight: 0 unless there is a bug.
    pub(super) fn unaccounted(&self) -> i64 {
        self.account.unaccounted(self.in_flight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_versions_are_known_and_one_that_comes_again_is_new() {
        let mut run = Durable::new(RunPlan::recorded());
        assert_eq!(run.version(), PolicyVersion(0));
        let weights = |version: u8| (PolicyVersion(u64::from(version)), WeightHash([version; 32]));
        let knows = |run: &Durable, version| run.knows(weights(version).0, weights(version).1);
        (0..100).for_each(|version| run.remember(weights(version)));
        assert_eq!((run.version(), run.versions.len()), (PolicyVersion(99), KNOWN_VERSIONS_LIMIT));
        assert!((36..100).all(|version| knows(&run, version)) && !knows(&run, 35));
        assert!(!run.knows(PolicyVersion(99), WeightHash([98; 32])), "other weights of that number");
        run.remember(weights(36));
        run.remember(weights(100));
        assert!(knows(&run, 36) && !knows(&run, 37) && knows(&run, 38));
    }
}
