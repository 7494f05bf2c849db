//! Who waits for whom, and since when: the page `/debug/stall`.

use serde::Serialize;
use types::Timestamp;

use crate::state::State;

/// Leases and members of a kind that are listed.
const LISTED: usize = 20;

/// What stands between the run and its next step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stall {
    /// What the run waits for, in one sentence.
    waiting_for: String,
    /// Since something moved: a score, a batch, a checkpoint, weights.
    still_for_seconds: f64,
    /// Why it cannot go on as it is, in one sentence, if it cannot.
    hopeless: Option<String>,
    /// Who waits for what; the longest first among those of a kind.
    waits: Vec<Wait>,
}

/// One who waits.
#[derive(Debug, Clone, Serialize)]
struct Wait {
    who: String,
    waits_for: String,
    seconds: f64,
}

impl Stall {
    /// How things are.
    pub(crate) fn of(state: &State, now: Timestamp) -> Self {
        let mut waits = Vec::new();
        batch_and_learner(state, now, &mut waits);
        leases(state, now, &mut waits);
        members(state, now, &mut waits);
        Self {
            waiting_for: state.waiting_for(),
            still_for_seconds: now.since(state.moved_at()).as_secs_f64(),
            hopeless: state.hopeless().map(|hopeless| hopeless.cause.to_string()),
            waits,
        }
    }
}

fn batch_and_learner(state: &State, now: Timestamp, waits: &mut Vec<Wait>) {
    let still = now.since(state.moved_at()).as_secs_f64();
    let batches = state.batches();
    let (ready, needed) = (batches.ready_prompts(), state.plan().batch_prompts);
    waits.push(Wait {
        who: format!("batch {}", batches.formed().next()),
        waits_for: format!(
            "{needed} groups to train; it has {ready}, {} prompts are open",
            state.open_prompts()
        ),
        seconds: still,
    });
    let Some(learner) = state.members().learner() else {
        waits.push(Wait { who: "the run".into(), waits_for: "a learner to come".into(), seconds: still });
        return;
    };
    let doing = if learner.connected { format!("{:?}", learner.phase) } else { "away".to_owned() };
    let next = learner.trained.next();
    waits.push(Wait {
        who: format!("learner {} ({doing})", learner.member),
        waits_for: if batches.formed() >= next {
            format!("its own step on batch {next}")
        } else {
            format!("batch {next} to be formed")
        },
        seconds: now.since(learner.last_seen).as_secs_f64(),
    });
}

fn leases(state: &State, now: Timestamp, waits: &mut Vec<Wait>) {
    for lease in state.oldest_leases(LISTED) {
        let left = lease.deadline.since(now);
        let connected = state.members().actors().get(&lease.actor).is_some_and(|actor| actor.connected);
        let where_it_is = if connected { "" } else { ", which is away" };
        waits.push(Wait {
            who: format!("lease {}", lease.id),
            waits_for: format!("{} responses of actor {}{where_it_is}", lease.awaited, lease.actor),
            seconds: state.plan().lease_timeout.saturating_sub(left).as_secs_f64(),
        });
    }
}

fn members(state: &State, now: Timestamp, waits: &mut Vec<Wait>) {
    let version = state.version();
    let actors = state.members().actors().iter();
    let lacking =
        actors.filter(|(_, actor)| actor.connected && actor.weights.map(|held| held.0) != Some(version));
    for (member, actor) in lacking.take(LISTED) {
        let held = actor.weights.map_or_else(|| "no weights".to_owned(), |(version, _)| version.to_string());
        waits.push(Wait {
            who: format!("actor {member}"),
            waits_for: format!("the weights of {version}; it has {held}"),
            seconds: now.since(actor.last_seen).as_secs_f64(),
        });
    }
    for (member, server) in state.members().reward_servers().iter().take(LISTED) {
        let doing = if server.connected { "its scorers" } else { "its way back: it is away" };
        waits.push(Wait {
            who: format!("reward server {member}, with {} rollouts", server.queued),
            waits_for: doing.to_owned(),
            seconds: now.since(server.last_seen).as_secs_f64(),
        });
    }
}
