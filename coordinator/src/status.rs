//! The run at a glance, as JSON for the dashboard, `sluice top` and the progress of `sluice run`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::link::learner::LearnerPhase;
use types::{PolicyVersion, Timestamp};

use crate::state::{Detector, EvaluationRecord, FailureView, Finding, Phase, PlanChange, State, StepRecord};

/// Steps from which the time to go is estimated.
const ETA_STEPS: usize = 10;

/// How a run is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub run: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// What it waits for, in one sentence.
    pub waiting_for: String,
    /// Why it cannot go on as it is, in one sentence, if it cannot.
    #[serde(default)]
    pub hopeless: Option<String>,
    /// Failures since the coordinator started, by role and reason.
    #[serde(default)]
    pub failures: Vec<FailureStatus>,
    /// The newest policy version.
    pub version: PolicyVersion,
    /// Batches of the whole run.
    pub batches: u64,
    /// Batches trained.
    pub trained: u64,
    /// Batches that a checkpoint holds.
    pub checkpointed: u64,
    /// Groups that the next batch has, of `batch_prompts`.
    pub ready_prompts: u64,
    /// Groups per batch.
    pub batch_prompts: u64,
    /// Prompts with a response awaited.
    pub open_prompts: u64,
    /// Response tokens scored per second, lately.
    pub tokens_per_second: f64,
    /// Seconds until the last batch, at the pace of the last steps.
    pub eta_seconds: Option<f64>,
    /// The accounting.
    pub account: AccountStatus,
    /// The actors.
    pub actors: Vec<ActorStatus>,
    /// The reward servers.
    pub reward_servers: Vec<RewardServerStatus>,
    /// The learner.
    pub learner: Option<LearnerStatus>,
    /// Members that have left and are forgotten.
    #[serde(default)]
    pub members_gone: u64,
    /// What has changed in the plan since the run began.
    #[serde(default)]
    pub plan_changes: Vec<PlanChange>,
    /// What the detectors of a gamed reward have found; without those that had too little to look at.
    #[serde(default)]
    pub detectors: BTreeMap<Detector, Finding>,
    /// The last step.
    pub last_step: Option<StepRecord>,
    /// The last evaluation on held-out prompts that was over.
    #[serde(default)]
    pub last_evaluation: Option<EvaluationRecord>,
}

/// The accounting: `issued` is the sum of the others, or there is a bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatus {
    /// Attempts issued.
    pub issued: u64,
    /// Attempts in flight.
    pub in_flight: u64,
    /// Attempts by ending, as `outcome` or `outcome{reason}`.
    pub endings: BTreeMap<String, u64>,
    /// Always 0.
    pub unaccounted: i64,
    /// Results of attempts that had ended before.
    pub late_results: u64,
}

/// Failures of one role for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStatus {
    /// What reports them: `actor` or `reward-server`.
    pub role: String,
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// What was said about the first one.
    pub detail: String,
}

/// One actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorStatus {
    /// Its name.
    pub member: String,
    /// Its stream is open.
    pub connected: bool,
    /// It takes no more leases.
    pub draining: bool,
    /// The version it confirmed.
    pub version: Option<PolicyVersion>,
    /// Responses being generated.
    pub running: u32,
    /// Responses it could start.
    pub free_slots: u32,
    /// Rollouts not yet acknowledged.
    pub unacknowledged: u32,
    /// Tokens since its process started.
    pub generated_tokens: u64,
}

/// One reward server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardServerStatus {
    /// Its name.
    pub member: String,
    /// Its stream is open.
    pub connected: bool,
    /// Where actors reach it.
    pub address: String,
    /// Rollouts accepted and not yet reported.
    pub queued: u32,
}

/// The learner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnerStatus {
    /// Its name.
    pub member: String,
    /// Its stream is open.
    pub connected: bool,
    /// Number of ranks.
    pub world_size: u32,
    /// The last batch in its weights.
    pub trained: u64,
    /// What it is doing.
    pub phase: LearnerPhase,
}

impl Status {
    /// The status of a state.
    pub(crate) fn of(state: &State, now: Timestamp) -> Self {
        let account = state.account();
        Self {
            run: state.plan().run.to_string(),
            phase: state.phase(),
            waiting_for: state.waiting_for(),
            hopeless: state.hopeless().map(|hopeless| hopeless.cause.to_string()),
            failures: failures(state),
            version: state.version(),
            batches: state.plan().batches,
            trained: state.batches().trained().0,
            checkpointed: state.batches().checkpointed().0,
            ready_prompts: state.batches().ready_prompts(),
            batch_prompts: state.plan().batch_prompts,
            open_prompts: state.open_prompts(),
            tokens_per_second: state.history().tokens_per_second(now),
            eta_seconds: eta_seconds(state),
            account: AccountStatus {
                issued: account.issued(),
                in_flight: state.in_flight(),
                endings: account.endings().map(|(ending, count)| (ending.to_string(), count)).collect(),
                unaccounted: state.unaccounted(),
                late_results: account.late_results(),
            },
            actors: actors(state),
            reward_servers: reward_servers(state),
            learner: state.members().learner().map(|learner| LearnerStatus {
                member: learner.member.to_string(),
                connected: learner.connected,
                world_size: learner.world_size,
                trained: learner.trained.0,
                phase: learner.phase,
            }),
            members_gone: state.members().gone(),
            plan_changes: state.history().changes().cloned().collect(),
            detectors: state.history().detectors().findings().clone(),
            last_step: state.history().steps().next_back().cloned(),
            last_evaluation: state.evaluations().next_back().cloned(),
        }
    }
}

fn failures(state: &State) -> Vec<FailureStatus> {
    let mut statuses = Vec::new();
    for FailureView { role, reason, count, detail } in state.failures() {
        let (role, reason) = (role.name().to_owned(), reason.to_string());
        statuses.push(FailureStatus { role, reason, count, detail: detail.to_owned() });
    }
    statuses
}

fn actors(state: &State) -> Vec<ActorStatus> {
    let mut actors = Vec::new();
    for (member, actor) in state.members().actors().iter() {
        actors.push(ActorStatus {
            member: member.to_string(),
            connected: actor.connected,
            draining: actor.draining,
            version: actor.weights.map(|(version, _)| version),
            running: actor.load.running,
            free_slots: actor.load.free_slots,
            unacknowledged: actor.load.unacknowledged,
            generated_tokens: actor.load.generated_tokens,
        });
    }
    actors
}

fn reward_servers(state: &State) -> Vec<RewardServerStatus> {
    let mut servers = Vec::new();
    for (member, server) in state.members().reward_servers().iter() {
        servers.push(RewardServerStatus {
            member: member.to_string(),
            connected: server.connected,
            address: server.address.clone(),
            queued: server.queued,
        });
    }
    servers
}

fn eta_seconds(state: &State) -> Option<f64> {
    let pace = state.history().seconds_per_step(ETA_STEPS)?;
    let left = state.plan().batches.saturating_sub(state.batches().trained().0);
    Some(pace * left as f64)
}
