//! Responses of a model folder to prompts: `sluice generate`, and samples for evaluations.
//!
//! A [`Generator`] is an engine with the tokenizer of its folder. It takes prompts as they come and gives
//! responses in the order of the prompts, so that memory is bounded by `WINDOW` prompts and their
//! responses, however many there are. A response depends on its prompt, its place (number of prompt, number
//! of sibling), the options and the weights, not on the batch: to the bit with the native engine, up to
//! rounding with torch's operators.
//!
//! Where a generator has environments, responses are episodes of several turns (`episodes`).
#![expect(clippy::disallowed_types, reason = "wall time of a command that has no async runtime")]

mod episodes;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Tokenizer;
use types::{FinishReason, Observation, PromptContent, PromptId, RolloutId, Sampling};

use crate::folder::Folder;
use crate::prompts::PromptEncoder;
use crate::{Engine, EngineConfig, Event, Finished, Refusal, Request, SampleRequest};

use episodes::{Ended, Plays, Policy};
pub use episodes::{Environments, Played, Said};

/// Prompts that may be under way: those the engine works on, and those that wait for a slower one in front of
/// them.
pub(crate) const WINDOW: usize = 4096;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How responses are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawOptions {
    /// Responses to each prompt.
    pub n: usize,
    /// From which the seed of each response is made.
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Tokens of a prompt's end whose text comes with a response.
const PROMPT_END_TOKENS: usize = 16;

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The prompt as the model saw it.
    pub prompt_tokens: Arc<[u32]>,
    /// The drawn tokens, the one that ended the response included.
    pub tokens: Vec<u32>,
    /// Their text behind the prompt without special tokens, up to the stop text if one ended it; of an
    /// episode that of its last turn, as scorers read it. Empty when the folder has no tokenizer.
    pub text: String,
    /// The text of the last tokens in front of that, special ones included: what it goes on with.
    pub prompt_end: String,
    /// `[tokens]` log-probabilities of the drawn tokens under the untruncated distribution at the
    /// temperature.
    pub logprobs: Vec<f32>,
    /// Why the response ended.
    pub finish_reason: FinishReason,
    /// Of an episode: what was said between its turns, and how it ended.
    pub played: Option<Box<Played>>,
}

impl Response {
    /// Of an episode: what the policy was given between its turns.
    pub fn observations(&self) -> &[Observation] {
        self.played.as_ref().map_or(&[], |played| &played.observations)
    }
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Prompts whose responses are all there.
    pub requests: u64,
    /// Tokens drawn.
    pub new_tokens: u64,
    /// Since the first prompt was asked for.
    pub elapsed: Duration,
}

impl Progress {
    /// New tokens each second.
    pub fn tokens_per_second(&self) -> f64 {
        self.new_tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A model folder, ready to generate.
pub struct Generator {
    engine: Engine,
    encoder: Option<PromptEncoder>,
    tokenizer: Option<Arc<Tokenizer>>,
    eos_token_ids: Arc<[u32]>,
    next_id: u64,
    environments: Option<Environments>,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// What is given the responses to each prompt, or why there are none, in the order of the prompts.
pub type Sink<'a, T> = &'a mut dyn FnMut(T, Result<Vec<Response>, String>) -> anyhow::Result<()>;

impl Generator {
    /// Loads a model folder. It may lack a tokenizer; then prompts have to be tokens.
    ///
    /// # Errors
    /// When the folder cannot be read, or the engine cannot run its network.
    pub fn load(folder: &Path, config: &EngineConfig) -> anyhow::Result<Self> {
        let Folder { model, weights, text } = Folder::load(folder, config)?;
        let (tokenizer, encoder) = text.unzip();
        let eos_token_ids = match &encoder {
            Some(encoder) => encoder.eos_ids(),
            None => model.eos_token_ids.clone().into(),
        };
        let engine = Engine::new(&model, weights, tokenizer.clone(), config)?;
        Ok(Self { engine, encoder, tokenizer, eos_token_ids, next_id: 0, environments: None })
    }

    /// The same, whose responses are episodes in these environments.
    ///
    /// # Errors
    /// When the folder has no tokenizer: an environment is told texts.
    pub fn with_environments(self, environments: Environments) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.encoder.is_some(),
            "the model folder has no tokenizer.json, which episodes need"
        );
        Ok(Self { environments: Some(environments), ..self })
    }

    /// Where it runs and with how much, for a person.
    pub fn summary(&self) -> String {
        self.engine.summary()
    }

    /// `options.n` responses to each prompt, all in memory.
    ///
    /// # Errors
    /// Names the prompt, counted from 0, that cannot be answered.
    pub fn responses(
        &mut self,
        prompts: &[PromptContent],
        options: &DrawOptions,
        progress: &mut dyn FnMut(&Progress),
    ) -> anyhow::Result<Vec<Vec<Response>>> {
        let mut all = Vec::with_capacity(prompts.len());
        let items = prompts.iter().enumerate().map(|(number, prompt)| Ok((number, prompt.clone())));
        let mut sink = |number: usize, responses: Result<Vec<Response>, String>| {
            all.push(responses.map_err(|problem| anyhow::anyhow!("prompt {number}: {problem}"))?);
            Ok(())
        };
        self.run(items, options, &mut sink, progress)?;
        Ok(all)
    }

    /// Answers tagged prompts as they come. Ends with the first error of the prompts or the sink.
    ///
    /// # Errors
    /// Those of the prompts, of the sink, and of the engine.
    pub fn run<T>(
        &mut self,
        prompts: impl Iterator<Item = anyhow::Result<(T, PromptContent)>>,
        options: &DrawOptions,
        sink: Sink<'_, T>,
        progress: &mut dyn FnMut(&Progress),
    ) -> anyhow::Result<Progress> {
        let mut run = Run::new(self, options)?;
        let result = run.all(prompts, sink, progress);
        let Run { places, plays, .. } = run;
        // What an error left behind must not come up in the next run.
        for id in places.into_keys() {
            self.engine.cancel(id);
        }
        self.environments = plays.map(|plays| plays.finish(&mut self.engine));
        result
    }

    fn encode(&self, content: &PromptContent) -> anyhow::Result<Arc<[u32]>> {
        match (&self.encoder, content) {
            (Some(encoder), content) => encoder.encode(content),
            (None, PromptContent::Tokens(tokens)) => Ok(tokens.as_slice().into()),
            (None, _) => anyhow::bail!("the model folder has no tokenizer.json; give the prompt as tokens"),
        }
    }

    fn response(&self, prompt_tokens: Arc<[u32]>, finished: Finished) -> anyhow::Result<Response> {
        let end = &prompt_tokens[prompt_tokens.len().saturating_sub(PROMPT_END_TOKENS)..];
        let (mut text, prompt_end) = match &self.tokenizer {
            Some(tokenizer) => (
                tokenizer.response_text(&prompt_tokens, &finished.response_tokens, true)?,
                tokenizer.decode(end, false)?,
            ),
            None => (String::new(), String::new()),
        };
        if let Some(stop) = &finished.stop_text {
            text.truncate(stop.shown(&text).len());
        }
        Ok(Response {
            prompt_tokens,
            text,
            prompt_end,
            tokens: finished.response_tokens,
            logprobs: finished.rollout_logprobs,
            finish_reason: finished.finish_reason,
            played: None,
        })
    }
}

/// A prompt with its responses so far.
#[derive(Debug)]
struct Slot<T> {
    tag: T,
    prompt_tokens: Arc<[u32]>,
    responses: Vec<Option<Response>>,
    missing: usize,
    problem: Option<String>,
}

impl<T> Slot<T> {
    /// So many responses are missing.
    fn empty(tag: T, n: usize) -> Self {
        Self { tag, prompt_tokens: Arc::from([]), responses: vec![None; n], missing: n, problem: None }
    }
}

/// One run of a generator.
struct Run<'a, T> {
    generator: &'a mut Generator,
    sampling: Arc<Sampling>,
    n: usize,
    seed: u64,
    /// The prompts under way, in order; what is complete at the front is given out.
    slots: VecDeque<Slot<T>>,
    /// Number of the first of them.
    first: u64,
    /// Prompt and sibling of each response that the engine works on.
    places: BTreeMap<u64, (u64, usize)>,
    /// The responses, where they are episodes.
    plays: Option<Plays>,
    started: Instant,
    /// Tokens the engine had drawn before.
    tokens_before: u64,
}

impl<'a, T> Run<'a, T> {
    fn new(generator: &'a mut Generator, options: &DrawOptions) -> anyhow::Result<Self> {
        let tokens_before = generator.engine.totals().response_tokens;
        let environments = generator.environments.take();
        let plays = environments.map(|environments| Plays::new(environments, options)).transpose()?;
        Ok(Self {
            generator,
            plays,
            sampling: Arc::new(options.sampling.clone()),
            n: options.n,
            seed: options.seed,
            slots: VecDeque::new(),
            first: 0,
            places: BTreeMap::new(),
            started: Instant::now(),
            tokens_before,
        })
    }

    fn all(
        &mut self,
        mut prompts: impl Iterator<Item = anyhow::Result<(T, PromptContent)>>,
        sink: Sink<'_, T>,
        progress: &mut dyn FnMut(&Progress),
    ) -> anyhow::Result<Progress> {
        let mut told = self.started;
        let mut more = true;
        while more || !self.slots.is_empty() {
            while more && self.has_room() {
                match prompts.next() {
                    Some(item) => self.submit(item?),
                    None => more = false,
                }
            }
            self.play()?;
            for event in self.generator.engine.step()? {
                self.take(event)?;
            }
            while let Some(slot) = self.slots.pop_front_if(|slot| slot.missing == 0) {
                self.first += 1;
                let responses = slot.responses.into_iter().flatten().collect();
                sink(slot.tag, slot.problem.map_or(Ok(responses), Err))?;
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                progress(&self.progress());
            }
        }
        let reached = self.progress();
        progress(&reached);
        Ok(reached)
    }

    fn progress(&self) -> Progress {
        Progress {
            requests: self.first,
            new_tokens: self.generator.engine.totals().response_tokens - self.tokens_before,
            elapsed: self.started.elapsed(),
        }
    }

    /// Whether another prompt may be taken: enough wait to follow what ends, no more.
    fn has_room(&self) -> bool {
        let waiting = self.generator.engine.load().waiting;
        self.slots.len() < WINDOW
            && waiting < self.generator.engine.config().max_sequences()
            && self.plays.as_ref().is_none_or(Plays::has_room)
    }

    /// Plays episodes as far as they go before the engine's next step.
    fn play(&mut self) -> anyhow::Result<()> {
        let Generator { engine, encoder, eos_token_ids, next_id, .. } = &mut *self.generator;
        let (Some(plays), Some(encoder)) = (&mut self.plays, encoder.as_ref()) else { return Ok(()) };
        plays.advance(Policy { engine, encoder, eos_token_ids, next_id })?;
        for Ended { place: (number, sibling), response } in plays.take_ended() {
            let slot = &mut self.slots[(number - self.first) as usize];
            slot.missing -= 1;
            match response {
                Ok(response) => slot.responses[sibling] = Some(response),
                Err(problem) => slot.problem = Some(problem),
            }
        }
        Ok(())
    }

    fn submit(&mut self, (tag, content): (T, PromptContent)) {
        let number = self.first + self.slots.len() as u64;
        if let Some(plays) = &mut self.plays {
            plays.add(number, self.n, &content);
            self.slots.push_back(Slot::empty(tag, self.n));
            return;
        }
        let submitted = match self.generator.encode(&content) {
            Ok(prompt_tokens) => match self.submit_tokens(number, Arc::clone(&prompt_tokens)) {
                Ok(()) => Ok(prompt_tokens),
                Err(refusal) => Err(refusal.to_string()),
            },
            Err(error) => Err(format!("{error:#}")),
        };
        self.slots.push_back(match submitted {
            Ok(prompt_tokens) => Slot { prompt_tokens, ..Slot::empty(tag, self.n) },
            Err(problem) => Slot { problem: Some(problem), ..Slot::empty(tag, 0) },
        });
    }

    fn submit_tokens(&mut self, number: u64, prompt_tokens: Arc<[u32]>) -> Result<(), Refusal> {
        let generator = &mut *self.generator;
        let ids = generator.next_id..;
        generator.next_id += self.n as u64;
        let samples = ids.zip(0..self.n as u64).map(|(id, sibling)| {
            let seed = response_seed(self.seed, number, sibling);
            SampleRequest { id, seed }
        });
        let request = Request {
            prompt_tokens,
            samples: samples.collect(),
            sampling: Arc::clone(&self.sampling),
            eos_token_ids: Arc::clone(&generator.eos_token_ids),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        };
        for outcome in generator.engine.submit(std::slice::from_ref(&request)) {
            outcome?;
        }
        let siblings = request.samples.iter().enumerate();
        self.places.extend(siblings.map(|(sibling, sample)| (sample.id, (number, sibling))));
        Ok(())
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let id = event.id();
        if let Some(plays) = self.plays.as_mut().filter(|plays| plays.has(id)) {
            return match (event, &self.generator.encoder) {
                (Event::Finished(finished), Some(encoder)) => plays.drawn(encoder, *finished),
                (Event::Failed { problem, .. }, _) => plays.refuse(id, problem),
                _ => Ok(()),
            };
        }
        let ended = !matches!(event, Event::Token(_));
        let Some((number, sibling)) = self.places.get(&id).copied().filter(|_| ended) else { return Ok(()) };
        self.places.remove(&id);
        let slot = &mut self.slots[(number - self.first) as usize];
        slot.missing -= 1;
        match event {
            Event::Finished(finished) => {
                let prompt_tokens = Arc::clone(&slot.prompt_tokens);
                slot.responses[sibling] = Some(self.generator.response(prompt_tokens, *finished)?);
            }
            Event::Failed { problem, .. } => slot.problem = Some(problem),
            Event::Token(_) => {}
        }
        Ok(())
    }
}

/// The seed of a response: a function of its place alone, so that it does not depend on what else is in the
/// input.
pub fn response_seed(seed: u64, prompt: u64, sibling: u64) -> u64 {
    let place = PromptId { epoch: 0, ordinal: prompt };
    let sibling = u16::try_from(sibling).unwrap_or(u16::MAX);
    RolloutId { prompt: place, sibling, attempt: 0 }.seed(seed)
}
