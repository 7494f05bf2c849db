//! What `load_client` and its yardstick `bare_stream` share: the rollout, and what a process has cost.

use proto::pb;

/// Each is three bytes of id and four of log-prob.
const RESPONSE_TOKENS: usize = 580;
/// Clock ticks of `/proc/PID/stat` in a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A scored rollout of about 4.2 kB, drawn by this version.
pub(crate) fn scored(id: pb::RolloutId, number: u64, version: u64) -> pb::RewardReport {
    let rollout = pb::Rollout {
        id: Some(id),
        prompt_tokens: vec![50_000; 32],
        response_tokens: vec![50_000; RESPONSE_TOKENS],
        rollout_logprobs: vec![-0.5; RESPONSE_TOKENS],
        spans: vec![pb::Span { version, tokens: RESPONSE_TOKENS as u32 }],
        finish_reason: pb::FinishReason::Stop.into(),
        ..pb::Rollout::default()
    };
    let score = (number % 997) as f32;
    let scored = pb::ScoredRollout { rollout: Some(rollout), score, ..pb::ScoredRollout::default() };
    pb::RewardReport { report: Some(pb::reward_report::Report::Scored(scored)) }
}

/// Processor time of a process, of user and system.
pub(crate) fn cpu_seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / TICKS_PER_SECOND
}

/// Memory of a process in MiB.
#[allow(dead_code, reason = "one of the two programs asks")]
pub(crate) fn resident_mb(pid: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
