//! Batches: what the learner trains, in which order, and until when its samples are kept.
//!
//! A group that was filtered waits until enough others are ready. A batch is formed once, trained in order,
//! and kept until a checkpoint holds it. A learner that comes back from an older checkpoint is sent the
//! batches after it again: no sample is lost, and none is counted twice.
//!
//! A batch waits for open groups that would find no place in a later one before they are too old: they are
//! the long responses, and without them the policy would learn from short ones (`straggler_timeout`).
//! Admission has made the places.
//!
//! Groups of which nothing trains are made up for by others, as many as `max_refill_batches` allows. Then the
//! batch is formed of the groups that it has.

use std::collections::VecDeque;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{BatchId, PolicyVersion, RolloutId, Timestamp};

use super::filter::{Decided, PlannedGroup, PlannedSample, ReadyGroup, decide_together};
use super::groups::Groups;
use super::plan::RunPlan;
use super::sums::GroupSums;

/// Batches that the learner may have beyond the last one it trained: one at work, one next.
const SEND_AHEAD_COUNT: u64 = 2;

/// A batch without its tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Its number.
    pub id: BatchId,
    /// Its samples, in the order of their ids.
    pub samples: Vec<PlannedSample>,
    /// The groups that they are of, in the order of their prompts.
    pub groups: Vec<PlannedGroup>,
    /// Prompts in it.
    pub prompts: u64,
    /// What the unfiltered policy did since the batch before: on its prompts, and on those that brought it
    /// nothing.
    pub sums: GroupSums,
    /// What was generated in vain for it.
    #[serde(default)]
    pub refill: Refill,
}

/// What was generated in vain for a batch: groups of which nothing trains, because their scores carried no
/// signal or too few responses were scored. Others were generated in their place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refill {
    /// Groups.
    pub groups: u64,
    /// Response tokens of their scored responses.
    pub tokens: u64,
}

/// Groups that wait for their batch, and all batches that are not yet part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Batches {
    /// Groups, the oldest first, and of one version in the order of completion.
    ready: VecDeque<ReadyGroup>,
    /// Batches in order, without gaps.
    kept: VecDeque<BatchPlan>,
    /// What groups that wait for no batch did, since a batch was formed.
    unselected: GroupSums,
    /// What was generated in vain since a batch was formed.
    #[serde(default)]
    refill: Refill,
    /// Groups of it that count towards the limit of refills.
    #[serde(default)]
    refilled: u64,
    /// Since when the next batch waits for older groups.
    #[serde(default)]
    waits_since: Option<Timestamp>,
    /// The batch that has waited for long enough.
    #[serde(default)]
    waits_no_more: BatchId,
    /// The last one formed.
    formed: BatchId,
    /// The last one trained.
    trained: BatchId,
    /// The last one that a checkpoint holds.
    checkpointed: BatchId,
    /// Responses that are kept to train, and have not.
    in_flight: u64,
    /// None is formed any more.
    #[serde(default)]
    closed: bool,
}

/// A ready group that would be older than allowed when its batch trains.
pub(super) struct StaleGroup {
    pub(super) group: ReadyGroup,
    /// The batch.
    pub(super) batch: BatchId,
}

/// When batches are formed, and what is still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaited<'a> {
    pub(super) now: Timestamp,
    /// The groups that are open.
    pub(super) groups: &'a Groups,
}

/// What has followed from a group that is complete.
#[derive(Default)]
pub(super) struct Formed {
    /// Groups that are too old.
    pub(super) stale: Vec<StaleGroup>,
    /// What batches have decided on their groups.
    pub(super) decided: Vec<(BatchId, Decided)>,
    /// The limit of refills was reached.
    pub(super) limits: Vec<RefillLimit>,
}

/// As many groups were generated in vain for a batch as are allowed.
pub(super) struct RefillLimit {
    pub(super) batch: BatchId,
    /// Groups that it has all the same; with none it waits for others.
    pub(super) groups: u64,
    pub(super) in_vain: u64,
}

/// A learner's checkpoint does not fit this run's journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnfitCheckpoint {
    #[error(
        "its newest checkpoint holds batches up to {theirs}, but the samples up to {needed} are forgotten because a \
         checkpoint held them: restore that checkpoint, or start a new run"
    )]
    TooOld { theirs: BatchId, needed: BatchId },
    #[error(
        "its checkpoint holds batches up to {theirs}, but this journal only knows batches up to {formed}: it belongs to \
         another journal"
    )]
    TooNew { theirs: BatchId, formed: BatchId },
}

impl Batches {
    /// The last batch formed.
    pub fn formed(&self) -> BatchId {
        self.formed
    }

    /// The last batch trained.
    pub fn trained(&self) -> BatchId {
        self.trained
    }

    /// The last batch that a checkpoint holds.
    pub fn checkpointed(&self) -> BatchId {
        self.checkpointed
    }

    /// The run's last batch: the one that is planned or, where none is formed any more, the last one formed.
    pub(super) fn last(&self, plan: &RunPlan) -> BatchId {
        if self.closed { self.formed } else { plan.last_batch() }
    }

    /// No batch is formed any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// The last one formed is trained, though others were planned, and no checkpoint holds it.
    pub(super) fn lacks_last_checkpoint(&self) -> bool {
        self.closed && self.trained >= self.formed && self.checkpointed < self.trained
    }

    /// Groups that wait for their batch.
    pub(crate) fn ready_prompts(&self) -> u64 {
        self.ready.len() as u64
    }

    /// Batches formed and not yet trained.
    pub fn untrained(&self) -> impl Iterator<Item = &BatchPlan> {
        self.kept.range(self.place_after(self.trained)..)
    }

    /// Where the batches after `batch` begin among those that are kept.
    fn place_after(&self, batch: BatchId) -> usize {
        let before =
            self.kept.front().map_or(0, |first| batch.0.saturating_add(1).saturating_sub(first.id.0));
        usize::try_from(before).unwrap_or(usize::MAX).min(self.kept.len())
    }

    /// Prompts that wait for a batch or for its training. A batch that was formed of fewer counts as a whole
    /// one, and groups beyond the limit of refills count as if they waited: nothing is begun in their place.
    pub(super) fn untrained_prompts(&self, plan: &RunPlan) -> u64 {
        let beyond = plan.refill_limit().map_or(0, |limit| self.refilled.saturating_sub(limit));
        self.ready_prompts() + beyond + (self.formed.0 - self.trained.0) * plan.batch_prompts
    }

    /// Responses that are kept to train, and have not.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// A group is complete of which nothing trains.
    pub(super) fn add_unselected(
        &mut self,
        plan: &RunPlan,
        awaited: Awaited<'_>,
        sums: &GroupSums,
    ) -> Formed {
        self.unselected.merge(sums);
        self.refill.groups += sums.groups;
        self.refill.tokens += sums.tokens;
        self.refilled += sums.groups;
        self.form(plan, awaited)
    }

    /// A group that was ready is given up.
    pub(super) fn observe(&mut self, sums: &GroupSums) {
        self.unselected.merge(sums);
    }

    /// A group waits for its batch from now on.
    pub(super) fn add(&mut self, plan: &RunPlan, awaited: Awaited<'_>, group: ReadyGroup) -> Formed {
        let id = self.formed.next();
        if group.oldest < oldest_allowed(id, plan.max_staleness) {
            return Formed { stale: vec![StaleGroup { group, batch: id }], ..Formed::default() };
        }
        self.in_flight += group.in_flight();
        let place = self.ready.partition_point(|other| other.oldest <= group.oldest);
        self.ready.insert(place, group);
        self.form(plan, awaited)
    }

    /// Until when the next batch waits for older groups.
    pub(super) fn waits_until(&self, plan: &RunPlan) -> Option<Timestamp> {
        self.waits_since.map(|since| since + plan.straggler_timeout)
    }

    /// The coordinator has started again: what waits is given the whole time anew.
    pub(super) fn wait_anew(&mut self) {
        self.waits_since = None;
        // A journal of before has them in the order of completion.
        self.ready.make_contiguous().sort_by_key(|group| group.oldest);
    }

    /// Time in which nobody could be heard: a batch that waits does so much longer.
    pub(super) fn prolong(&mut self, by: Duration) {
        self.waits_since = self.waits_since.map(|since| since + by);
    }

    /// Whether a batch waits for groups that are open still.
    pub(super) fn is_waiting(&self) -> bool {
        self.waits_since.is_some()
    }

    /// A batch does not wait any longer.
    pub(super) fn wait_ended(&mut self, plan: &RunPlan, awaited: Awaited<'_>, batch: BatchId) -> Formed {
        (self.waits_since, self.waits_no_more) = (None, batch);
        self.form(plan, awaited)
    }

    /// Whether a batch waits, so that groups that are open still train in time: those begun with version `u`
    /// or before need places in the batches up to `u + max_staleness + 1`. It does when there are fewer
    /// places after it, and it would take a newer group instead.
    fn waits(&mut self, plan: &RunPlan, awaited: Awaited<'_>, id: BatchId) -> bool {
        let size = usize::try_from(plan.batch_prompts).unwrap_or(usize::MAX);
        let newest = self.ready.get(size.saturating_sub(1)).map(|group| group.oldest);
        let allowed = oldest_allowed(id, plan.max_staleness);
        let mut open = 0;
        let is_last_chance = awaited.groups.begun_from(allowed).any(|(version, groups)| {
            open += groups;
            let last = version.0.saturating_add(plan.max_staleness).saturating_add(1);
            let places = last.saturating_sub(id.0).saturating_mul(plan.batch_prompts);
            open > places && newest.is_none_or(|newest| version < newest)
        });
        let waits = is_last_chance && self.waits_no_more != id && !plan.straggler_timeout.is_zero();
        self.waits_since = waits.then(|| self.waits_since.unwrap_or(awaited.now));
        waits
    }

    /// Forms every batch that enough groups are ready for, or that has used up its refills.
    pub(super) fn form(&mut self, plan: &RunPlan, awaited: Awaited<'_>) -> Formed {
        let size = usize::try_from(plan.batch_prompts).unwrap_or(usize::MAX);
        let mut formed = Formed::default();
        while self.formed < self.last(plan) {
            let id = self.formed.next();
            let groups = self.ready_prompts();
            let used_up = groups < plan.batch_prompts
                && plan.refill_limit().is_some_and(|limit| {
                    groups.saturating_add(self.refilled) >= limit.saturating_add(plan.batch_prompts)
                });
            if used_up && (self.ready.is_empty() || !self.waits(plan, awaited, id)) {
                formed.limits.push(RefillLimit { batch: id, groups, in_vain: self.refilled });
                self.refilled = 0;
            }
            let has_enough = self.ready.len() >= size || (used_up && !self.ready.is_empty());
            if !has_enough || self.waits(plan, awaited, id) {
                break;
            }
            formed.decided.extend(self.form_one(plan, id).into_iter().map(|decided| (id, decided)));
            formed.stale.extend(self.take_stale(id.next(), plan.max_staleness));
        }
        formed
    }

    /// Forms a batch of the groups that wait, as many as it holds.
    fn form_one(&mut self, plan: &RunPlan, id: BatchId) -> Vec<Decided> {
        let size = usize::try_from(plan.batch_prompts).unwrap_or(usize::MAX).min(self.ready.len());
        let mut groups: Vec<ReadyGroup> = self.ready.drain(..size).collect();
        let decided = decide_together(plan, id, &mut groups);
        self.in_flight -= decided.iter().map(|decided| decided.ended).sum::<u64>();
        let sums = std::mem::take(&mut self.unselected);
        let refill = std::mem::take(&mut self.refill);
        let (samples, planned) = (Vec::new(), Vec::with_capacity(size));
        let mut batch = BatchPlan { id, samples, groups: planned, prompts: size as u64, sums, refill };
        for group in groups {
            batch.sums.merge(&group.sums);
            batch.samples.extend(group.samples);
            batch.groups.push(group.group);
        }
        batch.samples.sort_by_key(|sample| sample.id);
        batch.groups.sort_by_key(|group| group.prompt);
        (self.formed, self.refilled) = (id, 0);
        self.kept.push_back(batch);
        decided
    }

    /// Takes out the groups that would be too old when `batch` is trained.
    fn take_stale(&mut self, batch: BatchId, max_staleness: u64) -> Vec<StaleGroup> {
        let oldest_allowed = oldest_allowed(batch, max_staleness);
        let ready = std::mem::take(&mut self.ready);
        let (fresh, stale): (VecDeque<_>, VecDeque<_>) =
            ready.into_iter().partition(|group| group.oldest >= oldest_allowed);
        self.ready = fresh;
        self.in_flight -= stale.iter().map(ReadyGroup::in_flight).sum::<u64>();
        stale.into_iter().map(|group| StaleGroup { group, batch }).collect()
    }

    /// Takes out every group that waits, because no batch will be formed any more.
    pub(super) fn take_ready(&mut self) -> VecDeque<ReadyGroup> {
        let ready = std::mem::take(&mut self.ready);
        self.waits_since = None;
        self.in_flight -= ready.iter().map(ReadyGroup::in_flight).sum::<u64>();
        ready
    }

    /// What to send to a learner whose weights hold every batch up to `trained` and that was sent every batch
    /// up to `sent`, so that it has enough to do.
    pub(super) fn unsent(&self, trained: BatchId, sent: BatchId) -> impl Iterator<Item = &BatchPlan> {
        let ahead = BatchId(trained.0.saturating_add(SEND_AHEAD_COUNT));
        self.kept.range(self.place_after(sent)..).take_while(move |plan| plan.id <= ahead)
    }

    /// Checks that a learner whose weights hold every batch up to `trained` can go on with this journal.
    pub(super) fn check_learner(&self, trained: BatchId) -> Result<(), UnfitCheckpoint> {
        if trained < self.checkpointed {
            Err(UnfitCheckpoint::TooOld { theirs: trained, needed: self.checkpointed })
        } else if trained > self.formed {
            Err(UnfitCheckpoint::TooNew { theirs: trained, formed: self.formed })
        } else {
            Ok(())
        }
    }

    /// Every batch up to `batch` is trained; yields the number of responses for which that is new.
    pub(super) fn train(&mut self, batch: BatchId) -> u64 {
        let newly = self.untrained().filter(|plan| plan.id <= batch);
        let samples = newly.flat_map(|plan| &plan.samples).filter(|sample| sample.trains()).count() as u64;
        self.trained = self.trained.max(batch);
        self.in_flight -= samples;
        samples
    }

    /// A batch that is not yet part of a checkpoint.
    pub(super) fn find(&self, batch: BatchId) -> Option<&BatchPlan> {
        self.kept.get(self.place_after(batch).checked_sub(1)?).filter(|plan| plan.id == batch)
    }

    /// A checkpoint holds every batch up to `batch`; yields the responses that are needed no more.
    pub(super) fn checkpoint(&mut self, batch: BatchId) -> Vec<RolloutId> {
        let mut forgotten = Vec::new();
        if batch > self.checkpointed {
            self.checkpointed = batch;
            while let Some(plan) = self.kept.pop_front_if(|plan| plan.id <= batch) {
                forgotten.extend(plan.samples.iter().map(|sample| sample.id));
            }
        }
        forgotten
    }
}

/// The oldest version that may have drawn a token of `batch`, which is trained at version `batch - 1`.
fn oldest_allowed(batch: BatchId, max_staleness: u64) -> PolicyVersion {
    PolicyVersion((batch.0 - 1).saturating_sub(max_staleness))
}
