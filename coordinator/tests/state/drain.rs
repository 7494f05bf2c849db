//! When a run that was asked to stop has stopped: nobody works on a lease any more, and what the learner
//! trained is written.

use coordinator::state::{ActorEvent, Event, LearnerEvent, Phase, RunPlan};
use types::link::actor::ActorReport;
use types::link::learner::{LearnerReport, StepMetrics};
use types::{BatchId, RolloutId};

use crate::crowd::Crowd;
use crate::small_run::{manifest, plan};

/// A run of one actor that holds a lease of one group and has room for no more, and batches of one group.
fn leased() -> (Crowd, Vec<RolloutId>) {
    let mut crowd = Crowd::new(RunPlan { batch_prompts: 1, max_staleness: 1, lease_prompts: 1, ..plan() }, 1);
    crowd.join(0);
    crowd.heartbeat(0, 4);
    let held: Vec<RolloutId> = std::mem::take(&mut crowd.leased).into_iter().map(|(_, id)| id).collect();
    assert_eq!(held.len(), 4);
    crowd.heartbeat(0, 0);
    (crowd, held)
}

/// Asks it to stop.
fn drain(crowd: &mut Crowd) {
    crowd.deliver(Event::DrainRequested);
    assert_eq!(crowd.state.phase(), if crowd.finished.is_none() { Phase::Draining } else { Phase::Stopped });
}

fn learner_says(crowd: &mut Crowd, report: LearnerReport) {
    crowd.deliver(Event::Learner(LearnerEvent::Report(report)));
}

fn trained(batch: u64) -> LearnerReport {
    let metrics = Box::new(StepMetrics::default());
    LearnerReport::Trained { batch: BatchId(batch), manifest: manifest(batch, batch), metrics }
}

#[test]
fn what_is_leased_is_finished_first() {
    let (mut crowd, held) = leased();
    drain(&mut crowd);
    for id in held {
        assert_eq!(crowd.finished, None, "{id} is awaited");
        crowd.score(id);
    }
    assert_eq!(crowd.finished, Some(Phase::Stopped));
    assert_eq!(crowd.leased, [], "nothing new is begun");
}

#[test]
fn leases_are_not_waited_for_longer_than_the_drain_may_take() {
    let (mut crowd, _) = leased();
    drain(&mut crowd);
    let end = crowd.now + crowd.state.plan().drain_timeout;
    while crowd.now < end {
        assert_eq!(crowd.finished, None);
        // Nobody is lost meanwhile.
        crowd.now = end.min(crowd.now + crowd.state.plan().heartbeat_timeout / 2);
        crowd.heartbeat(0, 0);
    }
    assert_eq!(crowd.finished, Some(Phase::Stopped));
}

#[test]
fn nobody_is_waited_for_who_is_not_there() {
    let (mut crowd, _) = leased();
    drain(&mut crowd);
    assert_eq!(crowd.finished, None);
    let member = "actor-0".parse().unwrap();
    crowd.deliver(Event::Actor { member, event: ActorEvent::Disconnected });
    assert_eq!(crowd.finished, Some(Phase::Stopped), "the lease is issued anew after the next start");
}

#[test]
fn an_idle_run_stops_at_once() {
    let mut crowd = Crowd::new(plan(), 1);
    crowd.join(0);
    drain(&mut crowd);
    assert_eq!(crowd.finished, Some(Phase::Stopped));
}

#[test]
fn what_the_learner_trained_is_written_first() {
    let (mut crowd, held) = leased();
    held.into_iter().for_each(|id| crowd.score(id));
    assert_eq!(crowd.state.batches().formed(), BatchId(1));
    learner_says(&mut crowd, trained(1));
    let weights = (manifest(1, 1).version(), manifest(1, 1).hash());
    let member: types::MemberId = "actor-0".parse().unwrap();
    let confirmed = ActorReport::WeightsConfirmed { version: weights.0, hash: weights.1 };
    crowd.deliver(Event::Actor { member, event: ActorEvent::Report(confirmed) });
    drain(&mut crowd);
    assert_eq!(crowd.finished, None, "batch 1 is in no checkpoint");
    learner_says(&mut crowd, LearnerReport::Checkpointed(BatchId(0)));
    assert_eq!(crowd.finished, None, "that checkpoint does not hold it");
    learner_says(&mut crowd, LearnerReport::Checkpointed(BatchId(1)));
    assert_eq!(crowd.finished, Some(Phase::Stopped));
}

#[test]
fn a_learner_that_is_gone_is_not_waited_for() {
    let (mut crowd, held) = leased();
    held.into_iter().for_each(|id| crowd.score(id));
    learner_says(&mut crowd, trained(1));
    drain(&mut crowd);
    assert_eq!(crowd.finished, None);
    crowd.deliver(Event::Learner(LearnerEvent::Disconnected));
    assert_eq!(crowd.finished, Some(Phase::Stopped), "the journal has the batch");
}
