//! All scorers together: one response in, its score out.
//!
//! Whatever one response needs (networks, tests, rules, remote services) runs at the same time; the first fault ends the
//! rest. A scorer that decides nothing (weight 0, no gate) is not run; the tests are, because they are the yardstick.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, try_join_all};
use model::Tokenizer;
use regex::Regex;
use service::{BadInput, CancellationToken, OnError, TaskSet};
use tokio::time::Instant;

use crate::combine::Combination;
use crate::config::{Config, Kind, LengthPenalty, RepetitionPenalty, Rule, ScorerConfig};
use crate::fault::Fault;
use crate::http::Remote;
use crate::item::Item;
use crate::lane::{Lane, lane};
use crate::models::{self, Models, NetworkId, Plan};
use crate::unit_tests::{Tally, Tests};
use crate::{metrics, python, rules};

/// One scorer, ready to be asked.
#[derive(Debug)]
enum Scorer {
    RewardModel(NetworkId),
    UnitTests(Rule),
    Regex(Regex),
    Exact(rules::Exact),
    Numeric(rules::Numeric),
    Length(LengthPenalty),
    Repetition(RepetitionPenalty),
    Format(crate::config::Format),
    Python(Lane),
    Http(Lane),
}

/// What is known of a response beside its reference log-probs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Judgement {
    /// The score, finite.
    pub(crate) score: f32,
    /// Share of hidden tests passed, where the prompt has any and the sandbox could judge.
    pub(crate) outcome: Option<f32>,
}

/// The scorers.
#[derive(Debug)]
pub(crate) struct Panel {
    tokenizer: Option<Tokenizer>,
    models: Option<Models>,
    reference: Option<NetworkId>,
    tests: Option<Tests>,
    scorers: Vec<(&'static str, Scorer)>,
    remotes: Vec<Remote>,
    combination: Combination,
    deadline: Duration,
}

type Graded<'a> = Shared<BoxFuture<'a, Result<Option<Tally>, Fault>>>;

impl Panel {
    /// Loads and starts everything that the scorers need. Workers become tasks that last until `done`.
    pub(crate) async fn start(
        config: &Config,
        tasks: &mut TaskSet,
        done: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let deciding: Vec<ScorerConfig> =
            config.scorers.iter().filter(|s| s.weight() != 0.0 || s.share.gate.is_some()).cloned().collect();
        let (plans, reference) = plans(config, &deciding);
        let tokenizer = tokenizer(config, &plans)?;
        let models = match plans.is_empty() {
            true => None,
            false => {
                let started = models::start(&config.models, plans, config.deterministic).await;
                let (models, thread) = started.map_err(bad_input)?;
                tasks.add("torch", OnError::Shutdown, thread.watch(done.clone()));
                Some(models)
            }
        };
        let tests = match config.sandbox.clone() {
            None => None,
            Some(sandbox) => {
                let started = tokio::task::spawn_blocking(move || Tests::start(&sandbox)).await?;
                Some(started.context("start the sandbox")?)
            }
        };
        let mut network = usize::from(reference.is_some());
        let mut remotes = Vec::new();
        let mut scorers = Vec::with_capacity(deciding.len());
        for scorer in &deciding {
            let name = scorer.kind.name();
            let scorer = match &scorer.kind {
                Kind::RewardModel(_) => {
                    network += 1;
                    Scorer::RewardModel(NetworkId(network - 1))
                }
                Kind::Python(python) => start_python(python, tasks, done).await?,
                Kind::Http(http) => {
                    let remote = Remote::new(http.clone()).map_err(BadInput)?;
                    remotes.push(remote.clone());
                    start_remote(&remote, http.concurrency, tasks, done)
                }
                kind => rule(kind)?,
            };
            scorers.push((name, scorer));
        }
        let combination = Combination::new(&deciding, config.clip);
        Ok(Self {
            tokenizer,
            models,
            reference,
            tests,
            scorers,
            remotes,
            combination,
            deadline: config.deadline,
        })
    }

    /// The policy's tokenizer, if anything reads text.
    pub(crate) fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The most time that the scoring of one response may take.
    pub(crate) fn time_limit(&self) -> Duration {
        self.deadline
    }

    /// How long no response can be scored because a remote service is down; none while all work.
    pub(crate) fn paused(&self) -> Option<Duration> {
        self.remotes.iter().filter_map(Remote::paused).max()
    }

    /// Updates the metrics that are read and not counted.
    pub(crate) fn observe(&self) {
        self.tests.iter().for_each(Tests::observe);
        if !self.remotes.is_empty() {
            metrics::http_breaker(self.paused().is_some());
        }
    }

    /// `[response]` log-probs under the reference; empty without one.
    pub(crate) async fn ref_logprobs(&self, item: &Item, until: Instant) -> Result<Vec<f32>, Fault> {
        match (&self.models, self.reference) {
            (Some(models), Some(network)) => {
                let work = models.logprobs(network, &item.tokens, item.response_start);
                timed("reference", until, work).await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The score and the outcome.
    pub(crate) async fn judge(&self, item: &Arc<Item>, until: Instant) -> Result<Judgement, Fault> {
        let graded = self.graded(item, until).boxed().shared();
        let numbers = self.scorers.iter().map(|(name, scorer)| {
            let number = self.number(scorer, item, graded.clone());
            timed(name, until, number)
        });
        let outcome = async {
            match graded.clone().await {
                // Correct or not, as the paper's actual score is: what a scorer makes of partial success is its own affair.
                Ok(tally) => Ok(tally.map(|tally| tally.number(Rule::All) as f32)),
                Err(fault) => {
                    metrics::outcome_missing(fault.reason);
                    Ok(None)
                }
            }
        };
        let (numbers, outcome) = futures::try_join!(try_join_all(numbers), outcome)?;
        Ok(Judgement { score: self.combination.score(&numbers)?, outcome })
    }

    /// The tests' results, asked for once and shared by the scorers and the outcome.
    async fn graded(&self, item: &Item, until: Instant) -> Result<Option<Tally>, Fault> {
        match &self.tests {
            Some(tests) => timed("sandbox", until, tests.grade(item)).await,
            None => Ok(None),
        }
    }

    async fn number(&self, scorer: &Scorer, item: &Arc<Item>, graded: Graded<'_>) -> Result<f64, Fault> {
        match scorer {
            Scorer::RewardModel(network) => {
                let models = self.models.as_ref().ok_or_else(|| Fault::error("no network is loaded"))?;
                let score = models.score(*network, &item.tokens).await?;
                match score.is_finite() {
                    true => Ok(f64::from(score)),
                    false => Err(Fault::error(format!("reward-model: the score is {score}"))),
                }
            }
            Scorer::UnitTests(rule) => {
                let tally = graded.await?;
                let tally = tally.ok_or_else(|| Fault::unsupported("unit tests: the prompt has no tests"))?;
                Ok(tally.number(*rule))
            }
            Scorer::Regex(pattern) => Ok(rules::regex(pattern, item)),
            Scorer::Exact(exact) => exact.score(item),
            Scorer::Numeric(numeric) => numeric.score(item),
            Scorer::Length(penalty) => Ok(rules::length_penalty(penalty, item)),
            Scorer::Repetition(penalty) => Ok(rules::repetition_penalty(penalty, item)),
            Scorer::Format(format) => Ok(rules::format(format, item)),
            Scorer::Python(lane) | Scorer::Http(lane) => lane.ask(item).await,
        }
    }
}

/// Bounds `work` by the deadline and measures it.
async fn timed<T>(
    scorer: &'static str,
    until: Instant,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let started = Instant::now();
    let late = |_| Err(Fault::timeout(format!("{scorer}: not done before the deadline")));
    let result = tokio::time::timeout_at(until, work).await.unwrap_or_else(late);
    metrics::scorer(scorer, started.elapsed(), result.as_ref().err().map(|fault| fault.reason));
    result
}

fn bad_input(error: anyhow::Error) -> anyhow::Error {
    BadInput(format!("{error:#}")).into()
}

/// The networks to load: the reference first, then the reward models in the scorers' order.
fn plans(config: &Config, deciding: &[ScorerConfig]) -> (Vec<Plan>, Option<NetworkId>) {
    let reference = config.reference.as_ref();
    let reference = reference.map(|r| Plan::Reference { model: r.model.clone(), temperature: r.temperature });
    let reward_models = deciding.iter().filter_map(|scorer| match &scorer.kind {
        Kind::RewardModel(config) => {
            Some(Plan::RewardModel { model: config.model.clone(), normalise: config.normalise })
        }
        _ => None,
    });
    let has_reference = reference.is_some().then_some(NetworkId(0));
    (reference.into_iter().chain(reward_models).collect(), has_reference)
}

/// The policy's tokenizer. A network that brings a tokenizer of its own must give every token the same meaning.
fn tokenizer(config: &Config, plans: &[Plan]) -> anyhow::Result<Option<Tokenizer>> {
    let Some(dir) = config.tokenizer_dir() else { return Ok(None) };
    if !dir.join("tokenizer.json").is_file() && !config.needs_text() {
        return Ok(None);
    }
    let tokenizer = Tokenizer::load(dir).map_err(|error| BadInput(error.to_string()))?;
    for plan in plans {
        let (Plan::Reference { model, .. } | Plan::RewardModel { model, .. }) = plan;
        if model == dir || !model.join("tokenizer.json").is_file() {
            continue;
        }
        let other = Tokenizer::load(model).map_err(|error| BadInput(error.to_string()))?;
        let shared = u32::try_from(tokenizer.vocab_size().min(other.vocab_size())).unwrap_or(u32::MAX);
        if let Some(id) = (0..shared).find(|id| tokenizer.token(*id) != other.token(*id)) {
            return Err(BadInput(format!(
                "{} has another vocabulary than {}: token {id} is {:?} there and {:?} here; its numbers would be \
                 meaningless, use a model trained with the policy's tokenizer",
                model.display(),
                dir.display(),
                other.token(id),
                tokenizer.token(id)
            ))
            .into());
        }
    }
    Ok(Some(tokenizer))
}

/// A scorer that is nothing but a rule.
fn rule(kind: &Kind) -> anyhow::Result<Scorer> {
    Ok(match kind {
        Kind::UnitTests(tests) => Scorer::UnitTests(tests.rule),
        Kind::Regex(regex) => Scorer::Regex(Regex::new(&regex.pattern)?),
        Kind::ExactMatch(exact) => Scorer::Exact(rules::Exact::new(exact.clone())?),
        Kind::NumericMatch(numeric) => Scorer::Numeric(rules::Numeric::new(numeric.clone())?),
        Kind::LengthPenalty(penalty) => Scorer::Length(penalty.clone()),
        Kind::RepetitionPenalty(penalty) => Scorer::Repetition(penalty.clone()),
        Kind::Format(format) => Scorer::Format(format.clone()),
        Kind::RewardModel(_) | Kind::Python(_) | Kind::Http(_) => {
            anyhow::bail!("{} is no rule", kind.name())
        }
    })
}

async fn start_python(
    config: &crate::config::Python,
    tasks: &mut TaskSet,
    done: &CancellationToken,
) -> anyhow::Result<Scorer> {
    // A file that cannot be loaded is found now and not with the first response.
    let mut first = Some(python::Process::start(config).await.map_err(BadInput)?);
    let (lane, calls) = lane();
    for number in 0..config.workers {
        let work = until(done.clone(), python::work(config.clone(), calls.clone(), first.take()));
        tasks.add(format!("python worker {number}"), OnError::Shutdown, work);
    }
    Ok(Scorer::Python(lane))
}

fn start_remote(
    remote: &Remote,
    concurrency: usize,
    tasks: &mut TaskSet,
    done: &CancellationToken,
) -> Scorer {
    let (lane, calls) = lane();
    for number in 0..concurrency {
        let work = until(done.clone(), remote.clone().work(calls.clone()));
        tasks.add(format!("http worker {number}"), OnError::Shutdown, work);
    }
    Scorer::Http(lane)
}

async fn until(done: CancellationToken, work: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = work => {}
        () = done.cancelled() => {}
    }
    Ok(())
}
