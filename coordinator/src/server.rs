//! Wires the coordinator: data set, journal, loop, gRPC, dashboard.

use std::sync::Arc;
use std::time::Duration;

use service::grpc::Listener;
use service::{BadInput, CancellationToken, Context, CoordinatorTerm, OnError};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::config::{Config, SamplesConfig};
use crate::dashboard::Shown;
use crate::data::DataSet;
use crate::disk_room::DiskRoom;
use crate::grpc::Grpc;
use crate::journal::{self, Journal};
use crate::samples::Samples;
use crate::samples_file::SamplesFile;
use crate::server_loop::{Parts, ServerLoop};
use crate::state::{Durable, RunPlan, State};
use crate::steps_file::StepsFile;
use crate::worst::Worst;
use crate::{dashboard, metrics};

/// How long until a journal is tried again that another coordinator holds.
const LOCKED_DELAY: Duration = Duration::from_millis(500);
/// Beside the steps: a line for each evaluation.
const EVALS_FILE: &str = "evals.jsonl";

/// Builds the coordinator; nothing runs yet.
///
/// # Errors
/// When the data, the journal or a port cannot be used.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    service::describe_metrics(metrics::METRICS);
    let (source, shuffles, seed) = (config.data.clone(), config.shuffles(), config.seed);
    let held_out = config.eval.as_ref().map(|eval| eval.data.clone());
    let data =
        spawn_blocking(move || DataSet::read(&source, shuffles, seed)?.with_held_out(held_out.as_ref()));
    let data = data.await?;
    let data = Arc::new(data.map_err(|error| BadInput(error.to_string()))?);
    let plan = config.plan(&data).map_err(|error| BadInput(error.to_string()))?;
    let listener = Listener::bind("listen", config.listen, &context.security).await?;
    context.bound.push(("grpc", listener.address));
    let (journal, durable) = open_journal(&config, &plan, &context.token).await?;
    let steps_file = config
        .steps_file
        .as_deref()
        .map(|path| StepsFile::open(path, durable.history().steps()))
        .transpose()?;
    let evals_file = config
        .steps_file
        .as_deref()
        .filter(|_| plan.evaluation.is_some())
        .map(|path| StepsFile::open(&path.with_file_name(EVALS_FILE), durable.evaluations()))
        .transpose()?;
    let samples = samples(&config.samples)?;
    let began = durable.batches().trained();
    // The loop's first fact is this start.
    let term = CoordinatorTerm { run: plan.run.to_string(), term: durable.term() + 1 };
    tracing::info!(
        run = %plan.run,
        term = term.term,
        prompts = data.len(),
        batches = plan.batches,
        trained = began.0,
        journal = %config.journal.display(),
        "coordinator ready"
    );
    let done = CancellationToken::new();
    let worst = Worst::of_run(plan.run.clone(), config.steps_file.as_deref(), began);
    let parts = Parts {
        state: State::over(durable),
        plan,
        journal,
        room: DiskRoom::new(config.journal, config.journal_reserve_bytes),
        data: Arc::clone(&data),
        steps_file,
        evals_file,
        samples,
        worst,
        done: done.clone(),
        pulse: context.pulse.clone(),
    };
    let (server_loop, handle, view) = ServerLoop::new(parts);
    let shown = Shown { run: config.run, steps_file: config.steps_file, done: done.clone() };
    context.pages = dashboard::pages(shown, view, handle.clone(), &mut context);
    let grpc = Grpc::new(handle, context.tasks.spawner(), done.clone(), term, data);
    let router = grpc.router(&context.security);
    let token = context.token.clone();
    context.tasks.add("server loop", OnError::Shutdown, async move {
        // The loop reads and writes the disk at every turn, so it has a thread of its own: no stream waits
        // for it.
        let runtime = tokio::runtime::Handle::current();
        spawn_blocking(move || runtime.block_on(server_loop.run(token))).await?
    });
    context.tasks.add("grpc", OnError::Shutdown, async move {
        // The server outlives the request to stop, because the drain needs its streams: it ends with the
        // loop, and does not wait for members that are slow to close.
        listener.serve(router, done).await
    });
    context.readiness.set(true);
    Ok(context)
}

/// What people can read of the responses, where it is to be written.
fn samples(config: &SamplesConfig) -> anyhow::Result<Option<Samples>> {
    let Some(path) = config.file.as_deref().filter(|_| config.per_batch > 0) else { return Ok(None) };
    Ok(Some(Samples::new(SamplesFile::open(path, config.max_bytes)?, config.per_batch)))
}

/// What the user asked for and the journal cannot give is bad input.
/// Opens the journal. One that another coordinator holds is waited for as long as a coordinator may take to
/// leave: that of a run that was killed drains when its supervisor is gone.
async fn open_journal(
    config: &Config,
    plan: &RunPlan,
    token: &CancellationToken,
) -> anyhow::Result<(Journal, Durable)> {
    let deadline = Instant::now() + config.service.grace_period;
    loop {
        match Journal::open(&config.journal, plan) {
            Err(journal::Error::Locked { .. }) if Instant::now() < deadline && !token.is_cancelled() => {
                tracing::info!(journal = %config.journal.display(), "another coordinator is about to leave it");
                tokio::time::sleep(LOCKED_DELAY).await;
            }
            opened => return opened.map_err(not_opened),
        }
    }
}

fn not_opened(error: journal::Error) -> anyhow::Error {
    match error {
        journal::Error::OtherPlan { .. } | journal::Error::OtherFormat { .. } => {
            BadInput(error.to_string()).into()
        }
        other => other.into(),
    }
}
