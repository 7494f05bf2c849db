//! From the command line to the exit code.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::bad_input::BadInput;
use crate::bind::bind;
use crate::config::{self, Config, ServiceConfig};
use crate::http::{self, Readiness};
use crate::pulse::Pulse;
use crate::security::Security;
use crate::signals::StopSignals;
use crate::tasks::{OnError, TaskSet};
use crate::telemetry::init_logging;

/// Exit code for bad usage and bad input.
const BAD_INPUT: u8 = 2;
/// Exit code of a run that was given up.
const HOPELESS: u8 = 3;
/// Exit code of a process that was told twice to stop.
const STOPPED_TWICE: i32 = 130;

#[derive(Debug, Parser)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
    /// Checks the configuration, prints it as it would be used, and exits.
    #[arg(long)]
    check_config: bool,
}

/// A run that cannot go on, and why: the process exits with 3 instead of 1, and starting it again does not
/// help.
#[derive(Debug, thiserror::Error)]
#[error("the run was given up: {0}")]
pub struct Hopeless(pub String);

/// What `build` is given to wire a role with.
#[derive(Debug)]
pub struct Context {
    /// Cancelled when the process is to stop.
    pub token: CancellationToken,
    /// The tasks to run.
    pub tasks: TaskSet,
    /// Whether the role can do its work.
    pub readiness: Readiness,
    /// Pages to serve beside `/metrics`.
    pub pages: axum::Router,
    /// Whether the work goes round, for `/health`.
    pub pulse: Pulse,
    /// What is asked of those who come, and proved where this process goes.
    pub security: Security,
    /// Addresses bound by `build`, for the log and the address file, as (what, address).
    pub bound: Vec<(&'static str, SocketAddr)>,
}

/// The life of a role's process.
///
/// `build` binds and wires; whatever can fail at the start fails there, before anything runs. It has a thread
/// of its own, so it may read files as long as that takes. It adds the role's tasks to the context; the
/// process ends when all of them have.
pub fn run<C, B, F>(role: &'static str, build: B) -> ExitCode
where
    C: Config + Send + 'static,
    B: FnOnce(C, Context) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<Context>>,
{
    let arguments = Arguments::parse();
    let loaded = match config::load::<C>(arguments.config.as_deref(), &arguments.settings) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("sluice-{role}: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    if arguments.check_config {
        print!("{}", loaded.resolved());
        return ExitCode::SUCCESS;
    }
    let stopped_code = loaded.config.service().stopped_code;
    match start(role, loaded.config, build) {
        Ok(Ended::Stopped) => ExitCode::from(stopped_code),
        ended => exit_code(role, ended.map(|_| ())),
    }
}

/// How a process came to its end without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Its work was done.
    Done,
    /// A signal told it to stop.
    Stopped,
}

/// Prints a failure and turns the result into the exit code.
pub fn exit_code(name: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            let bad_input = error.chain().any(|cause| cause.is::<BadInput>() || cause.is::<config::Error>());
            let hopeless = error.chain().any(|cause| cause.is::<Hopeless>());
            match (bad_input, hopeless) {
                (true, _) => ExitCode::from(BAD_INPUT),
                (false, true) => ExitCode::from(HOPELESS),
                (false, false) => ExitCode::FAILURE,
            }
        }
    }
}

/// Whose a process's lines are: its role, and its run and its name as far as they are configured.
fn identity<C: Config>(role: &str, config: &C) -> Vec<(&'static str, String)> {
    let mut identity = vec![("role", role.to_owned())];
    let fields = serde_json::to_value(config).unwrap_or_default();
    for key in ["run", "member"] {
        let text = fields.get(key).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
        identity.extend(text.map(|text| (key, text.to_owned())));
    }
    identity
}

fn start<C, B, F>(role: &'static str, config: C, build: B) -> anyhow::Result<Ended>
where
    C: Config + Send + 'static,
    B: FnOnce(C, Context) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<Context>>,
{
    let service = config.service().clone();
    init_logging(&service.log, service.log_format, &identity(role, &config)).context("read service.log")?;
    tracing::debug!(config = config::render(&config), "effective configuration");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(service.io_threads.max(1))
        .enable_all()
        .build()
        .context("start the I/O runtime")?;
    let result = runtime.block_on(live(role, &service, config, build));
    // Blocking calls that outlived their task must not keep the process.
    runtime.shutdown_background();
    result
}

async fn live<C, B, F>(
    role: &'static str,
    service: &ServiceConfig,
    config: C,
    build: B,
) -> anyhow::Result<Ended>
where
    C: Send + 'static,
    B: FnOnce(C, Context) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<Context>>,
{
    let prometheus = crate::metrics::install(role)?;
    let security = Security::load(role, &service.security)
        .map_err(|problem| BadInput(format!("service.security: {problem}")))?;
    let (listener, metrics_address) = bind("service.listen_metrics", service.listen_metrics).await?;
    let token = CancellationToken::new();
    let told = Arc::new(AtomicBool::new(false));
    stop_on_signals(token.clone(), Arc::clone(&told))?;
    if service.follow_stdin {
        stop_with_stdin(token.clone())?;
    }
    let context = Context {
        token: token.clone(),
        tasks: TaskSet::default(),
        readiness: Readiness::default(),
        pulse: Pulse::default(),
        pages: axum::Router::new(),
        security: security.clone(),
        bound: vec![("metrics", metrics_address)],
    };
    let runtime = tokio::runtime::Handle::current();
    let built = tokio::task::spawn_blocking(move || runtime.block_on(build(config, context)));
    let Context { tasks, readiness, pulse, pages, bound, .. } = built.await??;
    for (what, address) in &bound {
        tracing::info!(what, %address, "listening");
    }
    if let Some(file) = &service.address_file {
        write_addresses(file, &bound).with_context(|| format!("write {}", file.display()))?;
    }
    // The metrics stay up until the work is done, so that the last scrape sees the drain.
    let work_done = CancellationToken::new();
    let mut chassis = TaskSet::default();
    let pages = http::pages(prometheus, readiness, pulse, pages);
    let served = http::serve(listener, pages, work_done.clone(), security.clone());
    chassis.add("metrics", OnError::Log, served);
    chassis.add("security files", OnError::Log, security.keep_fresh(work_done.clone()));
    let grace_period = service.grace_period;
    let work = async {
        let result = tasks.run(token, grace_period).await;
        work_done.cancel();
        result
    };
    let (result, _) = tokio::join!(work, chassis.run(work_done.clone(), std::time::Duration::from_secs(1)));
    match &result {
        Ok(()) => tracing::info!("finished"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "failed"),
    }
    result.map(|()| if told.load(Ordering::Relaxed) { Ended::Stopped } else { Ended::Done })
}

/// The first SIGINT or SIGTERM asks the process to drain, the second ends it at once.
fn stop_on_signals(token: CancellationToken, told: Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let watch = async move {
        loop {
            stop.next().await;
            if told.swap(true, Ordering::Relaxed) {
                tracing::warn!("told twice to stop: leaving without draining");
                std::process::exit(STOPPED_TWICE);
            }
            tracing::info!("told to stop: draining");
            token.cancel();
        }
    };
    #[expect(clippy::disallowed_methods, reason = "must outlive the task set, which it ends")]
    tokio::spawn(watch);
    Ok(())
}

/// Standard input that closes asks the process to drain. It is read on a thread of its own, which a blocked
/// read may keep until the process ends.
fn stop_with_stdin(token: CancellationToken) -> anyhow::Result<()> {
    let wait = move || {
        let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!(?ended, "standard input closed: draining");
        token.cancel();
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(wait).context("start the stdin thread")?;
    Ok(())
}

/// Writes `{"what": "address"}` in one step, so that a reader never sees half a file.
fn write_addresses(file: &Path, bound: &[(&'static str, SocketAddr)]) -> anyhow::Result<()> {
    let entries: Vec<String> =
        bound.iter().map(|(what, address)| format!("\"{what}\": \"{address}\"")).collect();
    let partial = file.with_extension("partial");
    std::fs::write(&partial, format!("{{{}}}\n", entries.join(", ")))?;
    std::fs::rename(&partial, file)?;
    Ok(())
}
