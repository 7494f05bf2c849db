//! The one thread that owns torch (design D8), and the way to it.
//!
//! ```text
//! scoring tasks --job--> bounded channel --> torch thread: gather, one packed batch, reply
//! ```
//!
//! While a batch is computed the next one gathers in the channel, whichever actors its rollouts come from. Sequences
//! are packed without padding, so a batch needs no sorting by length: it takes jobs in the order of arrival up to the
//! token budget. In deterministic mode every job is a batch of its own (design D7).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use service::CancellationToken;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::config::ModelsConfig;
use crate::fault::Fault;
use crate::frozen::{Error, Frozen, Numbers, Placement, Sequence};
use crate::metrics;

/// Jobs that may wait in the channel; a caller beyond waits before it.
const CHANNEL_CAPACITY: usize = 1024;
/// Batches that torch refuses in a row before the process gives up: a device in this state does not recover.
const MOST_FAILURES: u32 = 8;

/// A network to load.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    /// The reference policy.
    Reference { model: PathBuf, temperature: f64 },
    /// A reward model.
    RewardModel { model: PathBuf, normalise: bool },
}

/// A loaded network, by its place in the list of plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetworkId(pub(crate) usize);

struct Job {
    network: NetworkId,
    tokens: Arc<[u32]>,
    from: usize,
    reply: oneshot::Sender<Result<Numbers, Fault>>,
}

/// The way to the torch thread.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    jobs: mpsc::Sender<Job>,
}

impl Models {
    /// Log-probs of `tokens[from..]`, `[tokens - from]`, under the network's policy.
    pub(crate) async fn logprobs(
        &self,
        network: NetworkId,
        tokens: &Arc<[u32]>,
        from: usize,
    ) -> Result<Vec<f32>, Fault> {
        match self.ask(network, tokens, from).await? {
            Numbers::Logprobs(logprobs) => Ok(logprobs),
            Numbers::Score(_) => Err(Fault::error("a reward model has no log-probs")),
        }
    }

    /// The network's score of the whole sequence.
    pub(crate) async fn score(&self, network: NetworkId, tokens: &Arc<[u32]>) -> Result<f32, Fault> {
        match self.ask(network, tokens, tokens.len()).await? {
            Numbers::Score(score) => Ok(score),
            Numbers::Logprobs(_) => Err(Fault::error("a policy has no score")),
        }
    }

    async fn ask(&self, network: NetworkId, tokens: &Arc<[u32]>, from: usize) -> Result<Numbers, Fault> {
        let ended = || Fault::error("the torch thread has ended");
        let (reply, answer) = oneshot::channel();
        let job = Job { network, tokens: Arc::clone(tokens), from, reply };
        self.jobs.send(job).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
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

/// Loads the networks on a thread of their own, which then waits for jobs. It ends when every [`Models`] is gone.
pub(crate) async fn start(
    config: &ModelsConfig,
    plans: Vec<Plan>,
    deterministic: bool,
) -> anyhow::Result<(Models, TorchThread)> {
    let (jobs, inbox) = mpsc::channel(CHANNEL_CAPACITY);
    let (loaded, ready) = oneshot::channel();
    let (report, ended) = oneshot::channel();
    let placement = Placement { device: config.device, dtype: config.dtype };
    let threads = config.threads;
    let worker = Worker {
        networks: Vec::new(),
        inbox,
        waiting: VecDeque::new(),
        batch_tokens: if deterministic { 0 } else { config.batch_tokens },
        batch_wait: if deterministic { Duration::ZERO } else { config.batch_wait },
        runtime: Handle::current(),
        failures: 0,
    };
    let body = move || {
        model::keep_freed_memory();
        if let Some(threads) = threads {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let networks: Result<Vec<Frozen>, Error> = plans.iter().map(|plan| load(plan, placement)).collect();
        let worker = match networks {
            Ok(networks) => Worker { networks, ..worker },
            Err(error) => {
                // The one who started the thread waits for this; if it has gone, nobody needs to know.
                let _ = loaded.send(Err(error));
                return;
            }
        };
        if loaded.send(Ok(())).is_ok() {
            // Nobody listens any more once the process stops.
            let _ = report.send(worker.work());
        }
    };
    std::thread::Builder::new().name("torch".to_owned()).spawn(body).context("start the torch thread")?;
    ready.await.context("the torch thread died while it loaded the networks")??;
    Ok((Models { jobs }, TorchThread { ended }))
}

fn load(plan: &Plan, placement: Placement) -> Result<Frozen, Error> {
    match plan {
        Plan::Reference { model, temperature } => Frozen::policy(model, placement, *temperature),
        Plan::RewardModel { model, normalise } => Frozen::reward_model(model, placement, *normalise),
    }
}

struct Worker {
    networks: Vec<Frozen>,
    inbox: mpsc::Receiver<Job>,
    /// Taken out of the channel and not yet computed; no more than there are callers, each of which waits for one.
    waiting: VecDeque<Job>,
    batch_tokens: usize,
    batch_wait: Duration,
    /// For waits with a time limit.
    runtime: Handle,
    failures: u32,
}

impl Worker {
    fn work(mut self) -> anyhow::Result<()> {
        while let Some(batch) = self.next_batch() {
            self.compute(batch);
            anyhow::ensure!(self.failures < MOST_FAILURES, "torch refused {MOST_FAILURES} batches in a row");
        }
        Ok(())
    }

    /// The next batch; none when all callers are gone.
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        if self.waiting.is_empty() {
            let job = self.inbox.blocking_recv()?;
            self.waiting.push_back(job);
        }
        while let Ok(job) = self.inbox.try_recv() {
            self.waiting.push_back(job);
        }
        self.wait_for_more();
        let network = self.waiting.front()?.network;
        let mut batch: Vec<Job> = Vec::new();
        let mut tokens = 0;
        let mut others = VecDeque::new();
        while let Some(job) = self.waiting.pop_front() {
            if job.network != network {
                others.push_back(job);
            } else if batch.is_empty() || tokens + job.tokens.len() <= self.batch_tokens {
                tokens += job.tokens.len();
                batch.push(job);
            } else {
                self.waiting.push_front(job);
                break;
            }
        }
        others.append(&mut self.waiting);
        self.waiting = others;
        Some(batch)
    }

    /// Waits until the first job's network has a full batch, but not long.
    fn wait_for_more(&mut self) {
        let Self { inbox, waiting, batch_tokens, batch_wait, runtime, .. } = self;
        let Some(network) = waiting.front().map(|job| job.network) else { return };
        let own = |job: &Job| if job.network == network { job.tokens.len() } else { 0 };
        let mut tokens: usize = waiting.iter().map(own).sum();
        if tokens >= *batch_tokens || batch_wait.is_zero() {
            return;
        }
        runtime.block_on(async {
            let deadline = Instant::now() + *batch_wait;
            while tokens < *batch_tokens
                && let Ok(Some(job)) = tokio::time::timeout_at(deadline, inbox.recv()).await
            {
                tokens += own(&job);
                waiting.push_back(job);
            }
        });
    }

    fn compute(&mut self, mut batch: Vec<Job>) {
        let Some(network) = batch.first().and_then(|job| self.networks.get(job.network.0)) else { return };
        // Whoever no longer waits has passed its deadline.
        batch.retain(|job| !job.reply.is_closed());
        let (batch, foreign): (Vec<Job>, Vec<Job>) =
            batch.into_iter().partition(|job| network.foreign_token(&job.tokens).is_none());
        for job in foreign {
            let (token, vocabulary) = network.foreign_token(&job.tokens).unwrap_or_default();
            let label = network.label();
            let detail = format!("{label}: token {token} is outside its vocabulary of {vocabulary}");
            reply(job, Err(Fault::error(detail)));
        }
        if batch.is_empty() {
            return;
        }
        let failed = match attempt(network, &batch) {
            Ok(numbers) => {
                batch.into_iter().zip(numbers).for_each(|(job, numbers)| reply(job, Ok(numbers)));
                false
            }
            Err(detail) if batch.len() == 1 => {
                batch.into_iter().for_each(|job| reply(job, Err(Fault::error(detail.clone()))));
                true
            }
            Err(_) => compute_one_by_one(network, batch),
        };
        self.failures = if failed { self.failures + 1 } else { 0 };
    }
}

/// One sequence of a batch may be to blame, a too long one say: the others shall not fail with it. True when all fail.
fn compute_one_by_one(network: &Frozen, batch: Vec<Job>) -> bool {
    let mut all_failed = true;
    for job in batch {
        match attempt(network, std::slice::from_ref(&job)) {
            Ok(mut numbers) => {
                all_failed = false;
                if let Some(numbers) = numbers.pop() {
                    reply(job, Ok(numbers));
                }
            }
            Err(detail) => reply(job, Err(Fault::error(detail))),
        }
    }
    all_failed
}

/// Computes a batch; torch reports some failures, such as a lack of memory, by a panic.
fn attempt(network: &Frozen, batch: &[Job]) -> Result<Vec<Numbers>, String> {
    let sequences: Vec<Sequence> =
        batch.iter().map(|job| Sequence { tokens: &job.tokens, from: job.from }).collect();
    let tokens = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    let started = Instant::now();
    let computed = catch_unwind(AssertUnwindSafe(|| network.numbers(&sequences)));
    let label = network.label();
    metrics::batch(label, sequences.len(), tokens, started.elapsed());
    match computed {
        Ok(Ok(numbers)) => Ok(numbers),
        Ok(Err(error)) => Err(format!("{label}: {error}")),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            let first_line = message.lines().next().unwrap_or_default();
            Err(format!("{label}: torch failed on {tokens} tokens: {first_line}"))
        }
    }
}

fn reply(job: Job, numbers: Result<Numbers, Fault>) {
    // Whoever no longer waits has passed its deadline.
    let _ = job.reply.send(numbers);
}
