//! Batches: what the learner trains, in which order, and until when its samples are kept.
//!
//! A batch is formed once, trained in order, and kept until a checkpoint holds it. A learner that comes back from an
//! older checkpoint is sent the batches after it again: no sample is lost, and none is counted twice.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use types::link::learner::{MeasuredStep, RecentSteps, StepMetrics};
use types::{BatchId, DropReason, Ending, Manifest, RolloutId, Timestamp};

use super::groups::GroupSums;
use super::{Effect, Phase, State, StepRecord};

/// Batches that the learner may have beyond the last one it trained: one at work, one next.
const SEND_AHEAD: u64 = 2;

/// A response that a batch trains, and with which weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlannedSample {
    /// Which response.
    pub id: RolloutId,
    /// Its weight in the policy loss; 0 for one that only the critic or the whitening sees.
    pub weight: f32,
}

/// A batch without its tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Its number.
    pub id: BatchId,
    /// Its samples.
    pub samples: Vec<PlannedSample>,
    /// Prompts in it.
    pub prompts: u64,
    /// What the unfiltered policy did on its prompts.
    pub sums: GroupSums,
}

/// All batches that are not yet part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Batches {
    kept: VecDeque<BatchPlan>,
    /// The last one formed.
    formed: BatchId,
    /// The last one trained.
    pub(super) trained: BatchId,
    /// The last one that a checkpoint holds.
    pub(super) checkpointed: BatchId,
    /// The last one sent to the learner that is connected now.
    sent: BatchId,
}

impl Batches {
    pub(super) fn untrained(&self) -> impl Iterator<Item = &BatchPlan> {
        self.kept.iter().filter(|plan| plan.id > self.trained)
    }

    pub(super) fn untrained_prompts(&self) -> u64 {
        self.untrained().map(|plan| plan.prompts).sum()
    }

    pub(super) fn in_flight(&self) -> u64 {
        let samples = self.untrained().flat_map(|plan| &plan.samples);
        samples.filter(|sample| sample.weight > 0.0).count() as u64
    }
}

impl State {
    /// Forms every batch that enough groups are ready for.
    pub(super) fn form_batches(&mut self, effects: &mut Vec<Effect>) {
        let size = usize::try_from(self.plan.batch_prompts).unwrap_or(usize::MAX);
        while self.batches.formed < self.last_batch() {
            let id = self.batches.formed.next();
            self.drop_stale(id, effects);
            if self.groups.ready.len() < size {
                return;
            }
            let groups = self.groups.ready.drain(..size).collect::<Vec<_>>();
            let mut plan =
                BatchPlan { id, samples: Vec::new(), prompts: size as u64, sums: GroupSums::default() };
            for group in groups {
                plan.samples.extend(group.samples);
                plan.sums.merge(&group.sums);
            }
            plan.samples.sort_by_key(|sample| sample.id);
            self.batches.formed = id;
            self.batches.kept.push_back(plan);
        }
    }

    /// Drops ready groups that would be older than allowed when batch `id` is trained at version `id - 1`.
    fn drop_stale(&mut self, id: BatchId, effects: &mut Vec<Effect>) {
        let oldest_allowed = (id.0 - 1).saturating_sub(self.plan.max_staleness);
        let ready = std::mem::take(&mut self.groups.ready);
        let (fresh, stale) = ready.into_iter().partition(|group| group.oldest.0 >= oldest_allowed);
        self.groups.ready = fresh;
        let stale: VecDeque<_> = stale;
        for group in stale {
            effects.push(Effect::Explain(format!(
                "prompt {} dropped: drawn at {}, too old for batch {id}",
                group.prompt, group.oldest
            )));
            let forgotten = self.drop_ready(&group, DropReason::Stale);
            effects.push(Effect::Forget(forgotten));
        }
    }

    /// Keeps the learner supplied.
    pub(super) fn send_batches(&mut self, effects: &mut Vec<Effect>) {
        let learner = self.learner.as_ref().filter(|learner| learner.connected);
        let Some(learner) = learner.filter(|_| self.phase == Phase::Running) else {
            return;
        };
        let ahead = BatchId(learner.trained.0 + SEND_AHEAD);
        for plan in &self.batches.kept {
            if plan.id > self.batches.sent && plan.id <= ahead {
                effects.push(Effect::SendBatch(plan.clone()));
                self.batches.sent = plan.id;
            }
        }
    }

    /// A learner has come that trained everything up to `trained`: it is sent what follows.
    pub(super) fn send_after(&mut self, trained: BatchId) {
        self.batches.sent = trained;
    }

    /// The learner has trained `batch`.
    ///
    /// Yields why that cannot be, if it cannot.
    pub(super) fn batch_trained(
        &mut self,
        now: Timestamp,
        (batch, manifest): (BatchId, Manifest),
        metrics: StepMetrics,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        let Some(learner) = &mut self.learner else {
            return Err("no learner has introduced itself".to_owned());
        };
        let expected = learner.trained.next();
        if batch != expected || batch > self.batches.sent {
            return Err(format!("trained batch {batch}, but {expected} is next"));
        }
        learner.trained = batch;
        if batch > self.batches.trained {
            self.count_trained(batch);
            self.record_step(now, batch, metrics, effects);
        }
        self.weights.offer(manifest);
        Ok(())
    }

    /// Moves the books up to `batch`.
    fn count_trained(&mut self, batch: BatchId) {
        let newly = self.batches.untrained().filter(|plan| plan.id <= batch);
        let samples = newly.flat_map(|plan| &plan.samples).filter(|sample| sample.weight > 0.0).count();
        for _ in 0..samples {
            self.account.end(Ending::Trained);
        }
        self.batches.trained = batch;
    }

    fn record_step(
        &mut self,
        now: Timestamp,
        batch: BatchId,
        metrics: StepMetrics,
        effects: &mut Vec<Effect>,
    ) {
        let reliability = self.record.reliability(&self.plan.filtration);
        if let Some(plan) = self.batches.kept.iter().find(|plan| plan.id == batch) {
            let step = StepRecord::new(now, plan, metrics, reliability);
            self.record.push(step.clone());
            effects.push(Effect::Step(Box::new(step)));
        }
    }

    /// A learner's weights hold every batch up to `trained`, whether or not it could say so at the time: that it trained
    /// them, and what it measured, is recorded now.
    pub(super) fn catch_up_trained(
        &mut self,
        now: Timestamp,
        trained: BatchId,
        steps: RecentSteps,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.batches.trained;
        if trained > known {
            self.count_trained(trained);
            for MeasuredStep { batch, metrics } in steps {
                if batch > known && batch <= trained {
                    self.record_step(now, batch, metrics, effects);
                }
            }
        }
    }

    /// A checkpoint holds every batch up to `batch`: their samples are needed no more.
    pub(super) fn batch_checkpointed(&mut self, batch: BatchId, effects: &mut Vec<Effect>) {
        if batch <= self.batches.checkpointed {
            return;
        }
        self.batches.checkpointed = batch;
        while let Some(plan) = self.batches.kept.front()
            && plan.id <= batch
        {
            effects.push(Effect::Forget(plan.samples.iter().map(|sample| sample.id).collect()));
            self.batches.kept.pop_front();
        }
    }

    /// The last batch formed.
    pub fn formed(&self) -> BatchId {
        self.batches.formed
    }
}
