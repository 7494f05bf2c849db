//! The one thread that owns torch (`docs/decisions.md`, D8), and the way to it.
//!
//! ```text
//! scoring tasks --command--> bounded channel --> torch thread: gather, one packed batch, reply
//! ```
//!
//! While a batch is computed the next one gathers in the channel, whichever actors its rollouts come from.
//! Sequences are packed without padding, so a batch needs no sorting by length: it takes commands in the
//! order of arrival up to the token budget. In deterministic mode every command is a batch of its own
//! (`docs/decisions.md`, D7).

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use service::CancellationToken;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::config::ModelsConfig;
use crate::metrics;
use crate::network::{Error, FrozenNetwork, HeadOutputs, Placement, Sequence};
use crate::score_error::ScoreError;
use crate::temperature::Temperature;

/// Commands that may wait in the channel; a caller beyond waits before it.
const CHANNEL_CAPACITY: usize = 1024;
/// Batches that torch refuses in a row before the process gives up: a device in this state does not recover.
const FAILED_BATCHES_LIMIT: u32 = 8;

/// A network to load.
#[derive(Debug, Clone)]
pub(crate) enum NetworkSpec {
    /// The reference policy.
    Reference { model: PathBuf, temperature: Temperature },
    /// A reward model.
    RewardModel { model: PathBuf, normalise: bool },
}

impl NetworkSpec {
    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Reference { model, .. } | Self::RewardModel { model, .. } => model,
        }
    }
}

/// A loaded network, by its place in the list of specifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetworkId(pub(crate) usize);

/// What the torch thread is asked for: one network's numbers for one sequence.
struct Command {
    network: NetworkId,
    tokens: Arc<[u32]>,
    from: usize,
    reply: oneshot::Sender<Result<HeadOutputs, ScoreError>>,
}

impl Command {
    /// Tokens that it adds to a batch of this network.
    fn tokens_for(&self, network: NetworkId) -> usize {
        if self.network == network { self.tokens.len() } else { 0 }
    }

    fn answer(self, numbers: Result<HeadOutputs, ScoreError>) {
        // A caller that does not wait any more has given up at its deadline.
        let _ = self.reply.send(numbers);
    }
}

/// The way to the torch thread.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    commands: mpsc::Sender<Command>,
}

impl Models {
    /// Log-probs of `tokens[from..]`, `[tokens - from]`, under the network's policy.
    pub(crate) async fn logprobs(
        &self,
        network: NetworkId,
        tokens: &Arc<[u32]>,
        from: usize,
    ) -> Result<Vec<f32>, ScoreError> {
        match self.ask(network, tokens, from).await? {
            HeadOutputs::Logprobs(logprobs) => Ok(logprobs),
            HeadOutputs::Score(_) => Err(ScoreError::error("a reward model has no log-probs")),
        }
    }

    /// The network's score of the whole sequence.
    pub(crate) async fn score(&self, network: NetworkId, tokens: &Arc<[u32]>) -> Result<f32, ScoreError> {
        match self.ask(network, tokens, tokens.len()).await? {
            HeadOutputs::Score(score) => Ok(score),
            HeadOutputs::Logprobs(_) => Err(ScoreError::error("a policy has no score")),
        }
    }

    async fn ask(
        &self,
        network: NetworkId,
        tokens: &Arc<[u32]>,
        from: usize,
    ) -> Result<HeadOutputs, ScoreError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { network, tokens: Arc::clone(tokens), from, reply };
        if self.commands.send(command).await.is_err() {
            return Err(thread_ended());
        }
        answer.await.unwrap_or_else(|_| Err(thread_ended()))
    }
}

fn thread_ended() -> ScoreError {
    ScoreError::error("the torch thread has ended")
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct TorchThread {
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl TorchThread {
    /// Lasts as long as the thread, or until `done`.
    pub(crate) async fn watch(self, done: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            ended = self.ended => ended.context("the torch thread has died")?,
            () = done.cancelled() => Ok(()),
        }
    }
}

/// Loads the networks on a thread of their own, which then waits for commands. It ends when every [`Models`]
/// is gone.
///
/// # Errors
/// Where a network cannot be loaded, or the thread cannot be started or panics while it loads.
pub(crate) async fn start(
    config: &ModelsConfig,
    specs: Vec<NetworkSpec>,
    deterministic: bool,
) -> anyhow::Result<(Models, TorchThread)> {
    let (commands, inbox) = mpsc::channel(CHANNEL_CAPACITY);
    let (loaded, ready) = oneshot::channel();
    let (report, ended) = oneshot::channel();
    let worker = Worker {
        networks: Vec::new(),
        inbox,
        waiting: VecDeque::new(),
        batch_tokens: if deterministic { 0 } else { config.batch_tokens },
        batch_delay: if deterministic { Duration::ZERO } else { config.batch_delay },
        runtime: Handle::current(),
        failed_batches: 0,
    };
    let placement = Placement { device: config.device, dtype: config.dtype };
    let startup = Startup { specs, placement, threads: config.threads, loaded, report };
    std::thread::Builder::new()
        .name("torch".to_owned())
        .spawn(move || startup.run(worker))
        .context("start the torch thread")?;
    ready.await.context("the torch thread died while it loaded the networks")??;
    Ok((Models { commands }, TorchThread { ended }))
}

/// What the thread needs before it takes its first command.
struct Startup {
    specs: Vec<NetworkSpec>,
    placement: Placement,
    threads: Option<usize>,
    /// Told once the networks are loaded, or cannot be.
    loaded: oneshot::Sender<Result<(), Error>>,
    /// Told why the thread has ended.
    report: oneshot::Sender<anyhow::Result<()>>,
}

impl Startup {
    fn run(self, worker: Worker) {
        let Self { specs, placement, threads, loaded, report } = self;
        model::keep_freed_memory();
        if let Some(threads) = threads {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let networks: Result<Vec<FrozenNetwork>, Error> =
            specs.iter().map(|spec| load(spec, placement)).collect();
        match networks {
            Ok(networks) => {
                if loaded.send(Ok(())).is_ok() {
                    // Nobody listens any more once the process stops.
                    let _ = report.send(Worker { networks, ..worker }.work());
                }
            }
            // The one who started the thread waits for this; if it has gone, nobody needs to know.
            Err(error) => drop(loaded.send(Err(error))),
        }
    }
}

fn load(spec: &NetworkSpec, placement: Placement) -> Result<FrozenNetwork, Error> {
    match spec {
        NetworkSpec::Reference { model, temperature } => {
            FrozenNetwork::policy(model, placement, temperature.clone())
        }
        NetworkSpec::RewardModel { model, normalise } => {
            FrozenNetwork::reward_model(model, placement, *normalise)
        }
    }
}

struct Worker {
    networks: Vec<FrozenNetwork>,
    inbox: mpsc::Receiver<Command>,
    /// Taken out of the channel and not yet computed; no more than there are callers, each of which waits for
    /// one.
    waiting: VecDeque<Command>,
    batch_tokens: usize,
    batch_delay: Duration,
    /// For waits with a timeout.
    runtime: Handle,
    /// Batches in a row of which torch computed nothing.
    failed_batches: u32,
}

impl Worker {
    fn work(mut self) -> anyhow::Result<()> {
        while let Some(batch) = self.next_batch() {
            self.compute(batch);
            anyhow::ensure!(
                self.failed_batches < FAILED_BATCHES_LIMIT,
                "torch refused {FAILED_BATCHES_LIMIT} batches in a row"
            );
        }
        Ok(())
    }

    /// The next batch; none when all callers are gone.
    fn next_batch(&mut self) -> Option<Vec<Command>> {
        if self.waiting.is_empty() {
            let command = self.inbox.blocking_recv()?;
            self.waiting.push_back(command);
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.waiting.push_back(command);
        }
        self.wait_for_more();
        let network = self.waiting.front()?.network;
        let mut batch: Vec<Command> = Vec::new();
        let mut tokens = 0;
        let mut others = VecDeque::new();
        while let Some(command) = self.waiting.pop_front() {
            if command.network != network {
                others.push_back(command);
            } else if batch.is_empty() || tokens + command.tokens.len() <= self.batch_tokens {
                tokens += command.tokens.len();
                batch.push(command);
            } else {
                self.waiting.push_front(command);
                break;
            }
        }
        others.append(&mut self.waiting);
        self.waiting = others;
        Some(batch)
    }

    /// Waits until the first command's network has a full batch, but not long.
    fn wait_for_more(&mut self) {
        let Self { inbox, waiting, batch_tokens, batch_delay, runtime, .. } = self;
        let Some(network) = waiting.front().map(|command| command.network) else { return };
        let mut tokens: usize = waiting.iter().map(|command| command.tokens_for(network)).sum();
        if tokens >= *batch_tokens || batch_delay.is_zero() {
            return;
        }
        runtime.block_on(async {
            let deadline = Instant::now() + *batch_delay;
            while tokens < *batch_tokens
                && let Ok(Some(command)) = tokio::time::timeout_at(deadline, inbox.recv()).await
            {
                tokens += command.tokens_for(network);
                waiting.push_back(command);
            }
        });
    }

    fn compute(&mut self, mut batch: Vec<Command>) {
        let Some(network) = batch.first().and_then(|command| self.networks.get(command.network.0)) else {
            return;
        };
        batch.retain(|command| !command.reply.is_closed());
        let (batch, foreign): (Vec<Command>, Vec<Command>) =
            batch.into_iter().partition(|command| network.foreign_token(&command.tokens).is_none());
        for command in foreign {
            let (token, vocabulary) = network.foreign_token(&command.tokens).unwrap_or_default();
            let label = network.label();
            let detail = format!("{label}: token {token} is outside its vocabulary of {vocabulary}");
            command.answer(Err(ScoreError::error(detail)));
        }
        if batch.is_empty() {
            return;
        }
        let computed = match attempt(network, &batch) {
            Ok(numbers) => {
                let computed = batch.len();
                batch.into_iter().zip(numbers).for_each(|(command, numbers)| command.answer(Ok(numbers)));
                computed
            }
            Err(error) if batch.len() == 1 => {
                batch.into_iter().for_each(|command| command.answer(Err(error.clone())));
                0
            }
            Err(_) => compute_one_by_one(network, batch),
        };
        self.failed_batches = if computed == 0 { self.failed_batches + 1 } else { 0 };
    }
}

/// One sequence of a batch may be to blame, a too long one say: the others shall not fail with it. Returns
/// how many were computed.
fn compute_one_by_one(network: &FrozenNetwork, batch: Vec<Command>) -> usize {
    let mut computed = 0;
    for command in batch {
        match attempt(network, std::slice::from_ref(&command)) {
            Ok(mut numbers) => {
                computed += 1;
                if let Some(numbers) = numbers.pop() {
                    command.answer(Ok(numbers));
                }
            }
            Err(error) => command.answer(Err(error)),
        }
    }
    computed
}

/// Computes a batch; torch reports some failures, such as a lack of memory, by a panic.
fn attempt(network: &FrozenNetwork, batch: &[Command]) -> Result<Vec<HeadOutputs>, ScoreError> {
    let sequences: Vec<Sequence> =
        batch.iter().map(|command| Sequence { tokens: &command.tokens, from: command.from }).collect();
    let tokens = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    let started = Instant::now();
    let computed = catch_unwind(AssertUnwindSafe(|| network.outputs(&sequences)));
    let label = network.label();
    metrics::batch(label, sequences.len(), tokens, started.elapsed());
    match computed {
        Ok(Ok(outputs)) => Ok(outputs),
        Ok(Err(error)) => Err(ScoreError::error(format!("{label}: {error}"))),
        Err(panic) => {
            let message = panic_message(panic.as_ref());
            Err(ScoreError::error(format!("{label}: torch failed on {tokens} tokens: {message}")))
        }
    }
}

/// The first line of what a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    text.lines().next().unwrap_or_default()
}
