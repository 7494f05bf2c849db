//! `sluice top`: a live view of a run in the terminal.

mod keys;

use std::io::Write as _;
use std::time::Duration;

use comfy_table::Table;
use coordinator::Status;
use service::{BadInput, StopSignals};

use self::keys::Keys;
use crate::commands::identity::Identity;
use crate::decimal::decimal;
use crate::observer_client::Observer;
use crate::table::table;

/// A live view of a run in the terminal; q or Ctrl-C leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// host:port of the coordinator.
    #[arg(long)]
    coordinator: String,
    #[command(flatten)]
    identity: Identity,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0)]
    every: f64,
    /// Looks once and prints JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the coordinator does not answer at the first look.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut observer = Observer::new(arguments.coordinator.clone(), arguments.identity.security("observer")?);
    let first = observer.status().await;
    if let Some(refusal) = observer.refusal() {
        return Err(BadInput(format!("the coordinator at {}: {refusal}", arguments.coordinator)).into());
    }
    anyhow::ensure!(first.is_some(), "no coordinator answers at {}", arguments.coordinator);
    if arguments.json {
        println!("{}", serde_json::to_string(&first)?);
        return Ok(());
    }
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(arguments.every.clamp(0.1, 3600.0)));
    let mut shown = first;
    let mut stop = StopSignals::listen()?;
    let mut keys = Keys::listen()?;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = observer.status().await;
                let answers = now.is_some();
                shown = now.or(shown);
                if let Some(status) = &shown {
                    draw(status, answers)?;
                }
            }
            () = stop.next() => return Ok(()),
            () = keys.quit() => return Ok(()),
        }
    }
}

/// Draws the view over the last one.
fn draw(status: &Status, answers: bool) -> anyhow::Result<()> {
    let away = if answers { "" } else { "  (the coordinator does not answer; this is its last word)" };
    // Cursor to the corner, and away with what was there.
    let mut screen = String::from("\u{1b}[H\u{1b}[J");
    screen += &format!("{} · {:?} · waits for {}{away}\n\n", status.run, status.phase, status.waiting_for);
    screen += &format!("{}\n\n{}\n\n{}\n", run_table(status), member_table(status), account_table(status));
    let mut out = std::io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn run_table(status: &Status) -> Table {
    let mut table = table(&[
        "batch",
        "checkpoint",
        "score",
        "pass@1",
        "KL",
        "length",
        "cut off",
        "entropy",
        "clipped",
        "gradient",
        "R²",
        "R² filtered",
        "tokens/s",
        "to go",
    ]);
    let step = status.last_step.as_ref();
    table.add_row([
        format!("{}/{}", status.trained, status.batches),
        status.checkpointed.to_string(),
        number(step.map(|step| step.score_mean)),
        number(step.and_then(|step| step.outcome_mean)),
        number(step.and_then(|step| step.metrics.kl_to_ref)),
        number(step.map(|step| step.response_tokens_mean)),
        number(step.map(|step| step.truncated)),
        number(step.and_then(|step| step.metrics.entropy)),
        number(step.and_then(|step| step.metrics.clip_fraction)),
        number(step.and_then(|step| step.metrics.policy_grad_norm)),
        number(step.and_then(|step| step.reliability.unfiltered)),
        number(step.and_then(|step| step.reliability.filtered)),
        format!("{:.0}", status.tokens_per_second),
        status.eta_seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.0} s")),
    ]);
    table
}

fn member_table(status: &Status) -> Table {
    let mut table = table(&["member", "state", "version", "work"]);
    for actor in &status.actors {
        let version = actor.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        let work = format!(
            "{} running, {} free, {} unacknowledged",
            actor.running, actor.free_slots, actor.unacknowledged
        );
        table.add_row([actor.member.clone(), state(actor.connected), version, work]);
    }
    for server in &status.reward_servers {
        let work = format!("{} queued", server.queued);
        table.add_row([server.member.clone(), state(server.connected), "-".to_owned(), work]);
    }
    if let Some(learner) = &status.learner {
        let work = format!("{:?}, {} rank(s)", learner.phase, learner.world_size);
        table.add_row([learner.member.clone(), state(learner.connected), learner.trained.to_string(), work]);
    }
    table
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| decimal(value, 3))
}

fn state(connected: bool) -> String {
    if connected { "connected".to_owned() } else { "away".to_owned() }
}

fn account_table(status: &Status) -> Table {
    let mut table = table(&["attempts", "number"]);
    table.add_row(["issued".to_owned(), status.account.issued.to_string()]);
    for (ending, count) in &status.account.endings {
        table.add_row([ending.clone(), count.to_string()]);
    }
    table.add_row(["in flight".to_owned(), status.account.in_flight.to_string()]);
    table.add_row(["unaccounted".to_owned(), status.account.unaccounted.to_string()]);
    for failure in &status.failures {
        let kind = format!("{} ({}): {}", failure.reason, failure.role, failure.detail);
        table.add_row([kind, failure.count.to_string()]);
    }
    table
}
