//! All scorers together: one response in, its score out.
//!
//! Whatever one response needs (networks, tests, rules, remote services) runs at the same time; the first
//! error ends the rest. A scorer that decides nothing (weight 0, no gate) is not run, unless it is the
//! yardstick; the tests are, where no scorer is.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, try_join_all};
use model::Tokenizer;
use regex::Regex;
use service::{BadInput, CancellationToken, OnError, TaskSet};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use types::{Remarks, Sampling, Texts, Vocabulary};

use crate::batch_queue::{BatchQueue, batch_queue};
use crate::combine::{Combination, ResponseScore};
use crate::config::{Config, Http, Rule, ScorerKind};
use crate::failures::Failures;
use crate::http::Remote;
use crate::metrics;
use crate::models::{self, Models, NetworkId, NetworkSpec};
use crate::python::{self, Function};
use crate::rules::{Exact, Numeric, TextRule};
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;
use crate::temperature::Temperature;
use crate::unit_tests::{Tally, UnitTestRunner};

/// One scorer, ready to be asked.
#[derive(Debug)]
enum Scorer {
    /// A network on the torch thread.
    RewardModel(NetworkId),
    /// What this rule makes of the hidden tests, which run for the whole set.
    UnitTests(Rule),
    /// What the environment of an episode said.
    Environment,
    /// Computed where it is asked.
    Text(TextRule),
    /// Asked through a queue: a Python function or a remote service.
    Workers(BatchQueue),
}

/// A scorer with its name in metrics.
#[derive(Debug)]
struct NamedScorer {
    name: &'static str,
    scorer: Scorer,
}

/// Where a response's outcome comes from.
#[derive(Debug)]
enum Yardstick {
    /// The hidden tests, where the prompt has any.
    Tests,
    /// The scorer in this place.
    Scorer(usize),
    /// A scorer that is no part of the score: where it has no number there is a score all the same.
    Apart(NamedScorer),
}

/// The scorers.
#[derive(Debug)]
pub(crate) struct ScorerSet {
    tokenizer: Option<Tokenizer>,
    vocabulary: Vocabulary,
    models: Option<Models>,
    reference: Option<NetworkId>,
    /// At which the reference's log-probs are taken.
    temperature: Temperature,
    tests: Option<UnitTestRunner>,
    scorers: Vec<NamedScorer>,
    yardstick: Yardstick,
    /// Why responses have no outcome.
    without_outcome: Failures,
    /// The scorers' names in the order of their numbers; of several of one kind each has a number behind it.
    names: Vec<String>,
    remotes: Vec<Remote>,
    combination: Combination,
    timeout: Duration,
}

/// The tests' results, asked for once and awaited by several.
type Graded<'a> = Shared<BoxFuture<'a, Result<Option<Tally>, ScoreError>>>;

impl ScorerSet {
    /// Loads and starts everything that the scorers need. Workers become tasks that last until `done`.
    ///
    /// # Errors
    /// Where a model, a file, the sandbox or a Python function cannot be used.
    pub(crate) async fn start(
        config: &Config,
        tasks: &mut TaskSet,
        done: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut builder = Builder { networks: Vec::new(), remotes: Vec::new(), tasks, done };
        let temperature =
            Temperature::of(config.reference.as_ref().and_then(|reference| reference.temperature));
        let reference = config.reference.as_ref().map(|reference| {
            let (model, temperature) = (reference.model.clone(), temperature.clone());
            builder.network(NetworkSpec::Reference { model, temperature })
        });
        let (mut deciding, mut scorers, mut yardstick) = (Vec::new(), Vec::new(), Yardstick::Tests);
        for scorer in config.scorers.iter().filter(|scorer| scorer.is_asked()) {
            let named = NamedScorer { name: scorer.kind.name(), scorer: builder.scorer(&scorer.kind).await? };
            if !scorer.share.enters_score() {
                yardstick = Yardstick::Apart(named);
                continue;
            }
            if scorer.share.yardstick {
                yardstick = Yardstick::Scorer(scorers.len());
            }
            scorers.push(named);
            deciding.push(scorer.clone());
        }
        let Builder { networks, remotes, .. } = builder;
        let (tokenizer, vocabulary) = tokenizer(config, &networks).await?.unzip();
        let vocabulary = vocabulary.unwrap_or_else(Vocabulary::none);
        let models = if networks.is_empty() {
            None
        } else {
            let started = models::start(&config.models, networks, config.deterministic).await;
            let (models, thread) = started.map_err(|error| BadInput(format!("{error:#}")))?;
            tasks.add("torch", OnError::Shutdown, thread.watch(done.clone()));
            Some(models)
        };
        let tests = match config.sandbox.clone() {
            None => None,
            Some(sandbox) => {
                let started = spawn_blocking(move || UnitTestRunner::start(&sandbox)).await?;
                Some(started.context("start the sandbox")?)
            }
        };
        let combination = Combination::new(&deciding, config.clip);
        let (names, timeout) = (numbered_names(&scorers), config.scoring_timeout);
        let without_outcome = Failures::default();
        Ok(Self {
            tokenizer,
            vocabulary,
            models,
            reference,
            temperature,
            tests,
            scorers,
            yardstick,
            without_outcome,
            names,
            remotes,
            combination,
            timeout,
        })
    }

    /// The run has told how its actors draw.
    ///
    /// # Errors
    /// Where the reference is configured for another temperature.
    pub(crate) fn of_run(&self, sampling: Option<&Sampling>) -> Result<(), String> {
        if self.reference.is_some() { self.temperature.of_run(sampling) } else { Ok(()) }
    }

    /// The policy's tokenizer, if anything reads text.
    pub(crate) fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// That of the tokenizer, by which the coordinator knows whether it is the policy's.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The scorers' names, in the order of their numbers.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// What people are told of a response.
    pub(crate) fn remarks(&self, input: &ScorerInput, judged: &ResponseScore) -> Remarks {
        let numbers = self.names.iter().cloned().zip(judged.numbers.iter().copied()).collect();
        let texts = self.tokenizer.as_ref().map(|_| Texts::new(&input.prompt, input.whole_response()));
        let added = self.names.iter().cloned().zip(judged.contributions.iter().copied());
        // The score is finite, but a part of it may not be: then there is nothing to tell.
        let told = self.names.len() > 1 && judged.contributions.iter().all(|added| added.is_finite());
        let contributions = if told { added.collect() } else { BTreeMap::new() };
        Remarks { numbers, contributions, texts }
    }

    /// The most time that the scoring of one response may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How long no response can be scored because a remote service is down; none while all work.
    pub(crate) fn paused(&self) -> Option<Duration> {
        self.remotes.iter().filter_map(Remote::paused).max()
    }

    /// Updates the metrics that are read and not counted.
    pub(crate) fn observe(&self) {
        self.tests.iter().for_each(UnitTestRunner::observe);
        if !self.remotes.is_empty() {
            metrics::http_breaker(self.paused());
        }
    }

    /// `[response]` log-probs under the reference; empty without one.
    ///
    /// # Errors
    /// Where a token is outside the reference's vocabulary, torch fails, or the deadline passes.
    pub(crate) async fn ref_logprobs(
        &self,
        input: &ScorerInput,
        deadline: Instant,
    ) -> Result<Vec<f32>, ScoreError> {
        match (&self.models, self.reference) {
            (Some(models), Some(network)) => {
                let sequences = input.sequences();
                let each = sequences.iter().map(|(tokens, from)| models.logprobs(network, tokens, *from));
                let mut of_sequences = timed("reference", deadline, try_join_all(each)).await?;
                // What was given in front of a further sequence has none; `drawn` leaves it out.
                for ((_, from), logprobs) in sequences.iter().zip(&mut of_sequences).skip(1) {
                    logprobs.splice(..0, vec![0.0; *from]);
                }
                Ok(input.drawn(of_sequences.concat()))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The score and the outcome.
    ///
    /// # Errors
    /// That of the first scorer that has no number.
    pub(crate) async fn score(
        &self,
        input: &Arc<ScorerInput>,
        deadline: Instant,
    ) -> Result<ResponseScore, ScoreError> {
        let graded = self.graded(input, deadline).boxed().shared();
        let numbers = self.scorers.iter().map(|NamedScorer { name, scorer }| {
            let number = self.number(scorer, input, graded.clone());
            timed(name, deadline, number)
        });
        let outcome = self.outcome_apart(input, graded.clone(), deadline).map(Ok);
        let (numbers, outcome) = futures::try_join!(try_join_all(numbers), outcome)?;
        let outcome = match self.yardstick {
            Yardstick::Scorer(place) => self.known(as_outcome(self.scorers[place].name, numbers[place])),
            Yardstick::Tests | Yardstick::Apart(_) => outcome,
        };
        self.combination.judge(numbers, outcome)
    }

    /// The outcome where no scorer of the score says it.
    async fn outcome_apart(
        &self,
        input: &Arc<ScorerInput>,
        graded: Graded<'_>,
        deadline: Instant,
    ) -> Option<f32> {
        match &self.yardstick {
            // Correct or not, as the paper's actual score is: what a scorer makes of partial success is its
            // own affair. Tests that decide nothing fail nothing.
            Yardstick::Tests => {
                let tally = self.known(graded.await.map_err(|error| error.of("unit-tests")))?;
                tally.map(|tally| tally.number(Rule::All) as f32)
            }
            Yardstick::Scorer(_) => None,
            Yardstick::Apart(NamedScorer { name, scorer }) => {
                let number = timed(name, deadline, self.number(scorer, input, graded)).await;
                self.known(number.and_then(|number| as_outcome(name, number)))
            }
        }
    }

    /// What is known of an outcome. That there is none is counted, and said now and then.
    fn known<T>(&self, outcome: Result<T, ScoreError>) -> Option<T> {
        outcome
            .inspect_err(|error| {
                metrics::outcome_missing(error.reason);
                self.without_outcome.warn("outcome", error);
            })
            .ok()
    }

    /// The tests' results, asked for once and shared by the scorers and the outcome.
    async fn graded(&self, input: &ScorerInput, deadline: Instant) -> Result<Option<Tally>, ScoreError> {
        match &self.tests {
            Some(tests) => timed("sandbox", deadline, tests.grade(input)).await,
            None => Ok(None),
        }
    }

    async fn number(
        &self,
        scorer: &Scorer,
        input: &Arc<ScorerInput>,
        graded: Graded<'_>,
    ) -> Result<f64, ScoreError> {
        match scorer {
            Scorer::RewardModel(network) => {
                let models = self.models.as_ref().ok_or_else(|| ScoreError::error("no network is loaded"))?;
                // Of several sequences the last: what the policy said in the end, with all that led to it.
                let last =
                    input.sequences().pop().map_or_else(|| Arc::clone(&input.tokens), |(last, _)| last);
                let score = models.score(*network, &last).await?;
                if !score.is_finite() {
                    return Err(ScoreError::error(format!("reward-model: the score is {score}")));
                }
                Ok(f64::from(score))
            }
            Scorer::UnitTests(rule) => match graded.await? {
                Some(tally) => Ok(tally.number(*rule)),
                None => Err(ScoreError::unsupported("unit tests: the prompt has no tests")),
            },
            Scorer::Environment => input.reward.map(f64::from).ok_or_else(|| {
                ScoreError::unsupported("environment: the response has no reward of an environment")
            }),
            Scorer::Text(rule) => rule.score(input),
            Scorer::Workers(queue) => queue.score(input).await,
        }
    }
}

fn numbered_names(scorers: &[NamedScorer]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(scorers.len());
    for (at, NamedScorer { name, .. }) in scorers.iter().enumerate() {
        let before = scorers[..at].iter().filter(|earlier| earlier.name == *name).count();
        names.push(if before == 0 { (*name).to_owned() } else { format!("{name}-{}", before + 1) });
    }
    names
}

/// A yardstick's number as an outcome.
fn as_outcome(scorer: &'static str, number: f64) -> Result<f32, ScoreError> {
    if (0.0..=1.0).contains(&number) {
        return Ok(number as f32);
    }
    let problem = format!("{scorer}: the yardstick's number is {number}, must be in 0..=1");
    Err(ScoreError::error(problem).of(scorer))
}

/// Bounds `work` by the deadline and measures it.
async fn timed<T>(
    scorer: &'static str,
    deadline: Instant,
    work: impl Future<Output = Result<T, ScoreError>>,
) -> Result<T, ScoreError> {
    let started = Instant::now();
    let result = tokio::time::timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(ScoreError::timeout(format!("{scorer}: not done before the deadline"))));
    metrics::scorer(scorer, started.elapsed(), result.as_ref().err().map(|error| error.reason));
    result.map_err(|error| error.of(scorer))
}

/// Collects what the scorers need while they are made.
struct Builder<'a> {
    /// The networks to load; a [`NetworkId`] is a place in this list.
    networks: Vec<NetworkSpec>,
    remotes: Vec<Remote>,
    tasks: &'a mut TaskSet,
    done: &'a CancellationToken,
}

impl Builder<'_> {
    /// Another network to load.
    fn network(&mut self, spec: NetworkSpec) -> NetworkId {
        self.networks.push(spec);
        NetworkId(self.networks.len() - 1)
    }

    async fn scorer(&mut self, kind: &ScorerKind) -> anyhow::Result<Scorer> {
        let rule = match kind {
            ScorerKind::RewardModel(config) => {
                let (model, normalise) = (config.model.clone(), config.normalise);
                let network = self.network(NetworkSpec::RewardModel { model, normalise });
                return Ok(Scorer::RewardModel(network));
            }
            ScorerKind::UnitTests(tests) => return Ok(Scorer::UnitTests(tests.rule)),
            ScorerKind::Environment(_) => return Ok(Scorer::Environment),
            ScorerKind::Python(config) => {
                return self.python(Function::of_user(config), config.workers).await;
            }
            ScorerKind::Math(config) => return self.python(Function::of_math(config), config.workers).await,
            ScorerKind::Http(config) => return self.remote(config).await,
            ScorerKind::Regex(regex) => TextRule::Regex(Regex::new(&regex.pattern)?),
            ScorerKind::ExactMatch(exact) => TextRule::Exact(Exact::new(exact.clone())?),
            ScorerKind::NumericMatch(numeric) => TextRule::Numeric(Numeric::new(numeric.clone())?),
            ScorerKind::LengthPenalty(penalty) => TextRule::Length(penalty.clone()),
            ScorerKind::RepetitionPenalty(penalty) => TextRule::Repetition(penalty.clone()),
            ScorerKind::Format(format) => TextRule::Format(format.clone()),
        };
        Ok(Scorer::Text(rule))
    }

    async fn python(&mut self, function: Function, workers: usize) -> anyhow::Result<Scorer> {
        // A file that cannot be loaded is found now and not with the first response.
        let first = python::Process::start(&function).await.map_err(|error| BadInput(error.to_string()))?;
        let mut first = Some(first);
        let (queue, receiver) = batch_queue();
        for number in 0..workers {
            let work = python::work(function.clone(), receiver.clone(), first.take());
            self.tasks.add(
                format!("python worker {number}"),
                OnError::Shutdown,
                until_done(self.done.clone(), work),
            );
        }
        Ok(Scorer::Workers(queue))
    }

    async fn remote(&mut self, config: &Http) -> anyhow::Result<Scorer> {
        let (given, concurrency) = (config.clone(), config.concurrency);
        let remote = spawn_blocking(move || Remote::new(given)).await?;
        let remote = remote.map_err(|error| BadInput(error.to_string()))?;
        let (queue, receiver) = batch_queue();
        for number in 0..concurrency {
            let work = remote.clone().work(receiver.clone());
            self.tasks.add(
                format!("http worker {number}"),
                OnError::Shutdown,
                until_done(self.done.clone(), work),
            );
        }
        self.remotes.push(remote);
        Ok(Scorer::Workers(queue))
    }
}

async fn until_done(done: CancellationToken, work: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = work => {}
        () = done.cancelled() => {}
    }
    Ok(())
}

/// The policy's tokenizer with its vocabulary, where anything needs one.
async fn tokenizer(
    config: &Config,
    networks: &[NetworkSpec],
) -> anyhow::Result<Option<(Tokenizer, Vocabulary)>> {
    let Some(dir) = config.tokenizer_dir().map(Path::to_owned) else { return Ok(None) };
    let (needs_text, networks) = (config.needs_text(), networks.to_vec());
    spawn_blocking(move || {
        if !dir.join("tokenizer.json").is_file() && !needs_text {
            return Ok(None);
        }
        let tokenizer = Tokenizer::load(&dir).map_err(|error| BadInput(error.to_string()))?;
        for spec in &networks {
            check_vocabulary(&dir, &tokenizer, spec.folder())?;
        }
        let vocabulary = Vocabulary::of(tokenizer.tokens());
        Ok(Some((tokenizer, vocabulary)))
    })
    .await?
}

/// A network that brings a tokenizer of its own must give every token the same meaning.
fn check_vocabulary(dir: &Path, tokenizer: &Tokenizer, model: &Path) -> Result<(), BadInput> {
    if model == dir || !model.join("tokenizer.json").is_file() {
        return Ok(());
    }
    let other = Tokenizer::load(model).map_err(|error| BadInput(error.to_string()))?;
    let shared = u32::try_from(tokenizer.vocab_size().min(other.vocab_size())).unwrap_or(u32::MAX);
    match (0..shared).find(|id| tokenizer.token(*id) != other.token(*id)) {
        None => Ok(()),
        Some(id) => Err(BadInput(format!(
            "{} has another vocabulary than {}: token {id} is {:?} there and {:?} here; its numbers would be \
             meaningless, use a model trained with the policy's tokenizer",
            model.display(),
            dir.display(),
            other.token(id),
            tokenizer.token(id)
        ))),
    }
}
