//! Episodes of several turns in a generation (docs/decisions.md, D24): what the policy draws goes to an
//! environment, and the engine goes on from what that says, as in an actor.
//!
//! ```text
//! waiting --reset--> under way: asked of the environment <--> ready --> drawn by the engine ... --> ended
//! ```
//!
//! | waits for         | unblocked by                          | bound                                  |
//! |-------------------|---------------------------------------|----------------------------------------|
//! | an environment    | its answer, or the timeout            | `places` episodes, a request of each   |
//! | a place           | the end of another episode            | the generation's window of prompts     |
//!
//! An episode that its environment fails is played again from its beginning, with the same seeds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Instant, timeout_at};
use types::link::environment::{EnvironmentMessage, EnvironmentReply, EnvironmentRequest, Speaker};
use types::{EpisodeEnd, Observation, PromptContent, PromptId, Rollout, RolloutId, Sampling};

use super::{DrawOptions, PROMPT_END_TOKENS, Response};
use crate::episode::{Episode, Opening, TurnRequest, TurnText};
use crate::prompts::PromptEncoder;
use crate::{Engine, Finished, Refusal, Request, SampleRequest};

/// How often an episode is played that its environment fails; as often as a run makes attempts.
const MAX_ATTEMPTS: u16 = 3;
/// The pause before it is played again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The way to the environments that episodes act in.
#[derive(Debug)]
pub struct Environments {
    /// What is asked of them; has room for two requests of each place.
    pub requests: mpsc::Sender<EnvironmentRequest>,
    /// What they answer.
    pub replies: mpsc::Receiver<EnvironmentReply>,
    /// Keeps the time while the engine has nothing to do.
    pub runtime: Handle,
    /// Episodes at a time.
    pub places: usize,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Something that was said in an episode behind its prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// `assistant` for a turn of the policy; `tool` or `user` for what the environment said.
    pub role: &'static str,
    /// The words; those of a turn with special tokens, without the one that ended it.
    pub content: String,
}

/// What came of an episode beside its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Played {
    /// What was said, in order.
    pub said: Vec<Said>,
    /// Why there was no further turn.
    pub end: EpisodeEnd,
    /// What the policy was given between its turns.
    pub observations: Vec<Observation>,
    /// What the environment says that it is worth, where it says so.
    pub reward: Option<f32>,
}

impl Played {
    /// Turns of the policy.
    pub fn turns(&self) -> usize {
        self.by("assistant")
    }

    /// Calls of tools that were answered.
    pub fn tool_calls(&self) -> usize {
        self.by(Speaker::Tool.role())
    }

    fn by(&self, role: &str) -> usize {
        self.said.iter().filter(|said| said.role == role).count()
    }
}

/// The place of a response: its prompt's number, and its own among the siblings.
pub(super) type Place = (u64, usize);

/// An episode that has ended: its response, or why there is none.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) place: Place,
    pub(super) response: Result<Response, String>,
}

/// An episode that has not begun.
#[derive(Debug)]
struct Waiting {
    place: Place,
    attempt: u16,
    content: PromptContent,
    not_before: Option<Instant>,
}

impl Waiting {
    fn may_begin(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|moment| moment <= now)
    }
}

/// An episode under way.
#[derive(Debug)]
struct Play {
    place: Place,
    id: RolloutId,
    content: PromptContent,
    episode: Episode,
    said: Vec<Said>,
    /// When the environment's answer is due, where one is.
    due: Option<Instant>,
}

/// The episodes of a generation.
#[derive(Debug)]
pub(super) struct Plays {
    environments: Environments,
    sampling: Arc<Sampling>,
    seed: u64,
    waiting: VecDeque<Waiting>,
    /// By the engine's number.
    under_way: BTreeMap<u64, Play>,
    numbers: BTreeMap<RolloutId, u64>,
    /// Those whose next turn is to be drawn.
    ready: BTreeSet<u64>,
    ended: Vec<Ended>,
}

/// What draws the turns.
pub(super) struct Policy<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) encoder: &'a PromptEncoder,
    pub(super) eos_token_ids: &'a Arc<[u32]>,
    pub(super) next_id: &'a mut u64,
}

impl Plays {
    /// None yet.
    ///
    /// # Errors
    /// When a generation before this one has failed in the middle of its episodes.
    pub(super) fn new(environments: Environments, options: &DrawOptions) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !environments.replies.is_closed(),
            "the environments are gone: what was generated with them before has failed"
        );
        Ok(Self {
            environments,
            sampling: Arc::new(options.sampling.clone()),
            seed: options.seed,
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            numbers: BTreeMap::new(),
            ready: BTreeSet::new(),
            ended: Vec::new(),
        })
    }

    /// The responses to a prompt are to be played.
    pub(super) fn add(&mut self, prompt: u64, n: usize, content: &PromptContent) {
        self.waiting.extend((0..n).map(|sibling| Waiting {
            place: (prompt, sibling),
            attempt: 0,
            content: content.clone(),
            not_before: None,
        }));
    }

    /// Whether another prompt may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < self.environments.places
    }

    /// What has ended since it was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// The way to the environments, once nothing is under way; what is left is given up, and then nothing can
    /// be played there any more.
    pub(super) fn finish(mut self, engine: &mut Engine) -> Environments {
        if !self.under_way.is_empty() {
            self.environments.replies.close();
        }
        for (number, play) in self.under_way {
            engine.cancel(number);
            // Who has left knows it already.
            let _ = self.environments.requests.try_send(EnvironmentRequest::Close(play.id));
        }
        self.environments
    }

    /// Begins what has a place, takes what the environments have answered, and gives the engine what is to be
    /// drawn. Waits for an answer where the engine has nothing else to do.
    ///
    /// # Errors
    /// When the environments are gone, or tokens have no text.
    pub(super) fn advance(&mut self, mut policy: Policy<'_>) -> anyhow::Result<()> {
        self.begin(policy.next_id)?;
        loop {
            match self.environments.replies.try_recv() {
                Ok(reply) => self.answered(policy.encoder, policy.engine.context_tokens(), reply)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => anyhow::bail!("the environments have ended"),
            }
        }
        self.expire()?;
        self.draw(&mut policy)?;
        if policy.engine.is_idle() && self.ended.is_empty() {
            self.wait(&mut policy)?;
        }
        Ok(())
    }

    /// Begins episodes as long as there are places.
    fn begin(&mut self, next_id: &mut u64) -> anyhow::Result<()> {
        let now = Instant::now();
        while self.under_way.len() < self.environments.places {
            let next = self.waiting.iter().position(|waiting| waiting.may_begin(now));
            let Some(waiting) = next.and_then(|at| self.waiting.remove(at)) else { return Ok(()) };
            let Waiting { place, attempt, content, .. } = waiting;
            let (ordinal, sibling) = place;
            // Beyond the numbers of siblings seeds repeat, as those of one-turn responses do.
            let sibling = u16::try_from(sibling).unwrap_or(u16::MAX);
            let id = RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling, attempt };
            let number = *next_id;
            *next_id += 1;
            // The environment bounds the time of an episode itself.
            let time_left = self.environments.timeout;
            self.ask(EnvironmentRequest::Reset { id, time_left })?;
            let episode = Episode::new(content.clone(), Arc::clone(&self.sampling), self.seed);
            let due = Some(now + self.environments.timeout);
            self.numbers.insert(id, number);
            self.under_way.insert(number, Play { place, id, content, episode, said: Vec::new(), due });
        }
        Ok(())
    }

    fn ask(&self, request: EnvironmentRequest) -> anyhow::Result<()> {
        // Each place has a request under way, and its end at most: there is room.
        self.environments.requests.try_send(request).ok().context("the environments take no more requests")
    }

    /// An environment has answered.
    fn answered(
        &mut self,
        encoder: &PromptEncoder,
        context: usize,
        reply: EnvironmentReply,
    ) -> anyhow::Result<()> {
        // Of one that was given up.
        let Some(number) = self.numbers.get(&reply.id()).copied() else { return Ok(()) };
        let Some(play) = self.under_way.get_mut(&number) else { return Ok(()) };
        play.due = None;
        match reply {
            EnvironmentReply::Ready { messages, tools, max_tokens, on_rewrite, .. } => {
                play.hear(&messages);
                match play.episode.begin(encoder, &Opening { messages, tools, max_tokens, on_rewrite }) {
                    Ok(()) => {
                        self.ready.insert(number);
                    }
                    Err(error) => self.refuse(number, format!("{error:#}"))?,
                }
            }
            EnvironmentReply::Observed { messages, reward, .. } => {
                play.episode.is_worth(reward);
                match play.episode.observe(encoder, context, &messages)? {
                    None => {
                        play.hear(&messages);
                        self.ready.insert(number);
                    }
                    Some(end) => {
                        // The environment waits for a turn that does not come.
                        let id = play.id;
                        self.ask(EnvironmentRequest::Close(id))?;
                        self.end(number, end, encoder)?;
                    }
                }
            }
            EnvironmentReply::Done { end, reward, .. } => {
                play.episode.is_worth(reward);
                self.end(number, end, encoder)?;
            }
            EnvironmentReply::Failed { reason, detail, .. } => {
                self.fail(number, &format!("{reason}: {detail}"))
            }
            EnvironmentReply::Overloaded { retry_after, .. } => {
                if let Some(Play { place, id, content, .. }) = self.remove(number) {
                    let not_before = Some(Instant::now() + retry_after);
                    self.waiting.push_front(Waiting { place, attempt: id.attempt, content, not_before });
                }
            }
        }
        Ok(())
    }

    /// Gives up what was not answered in time.
    fn expire(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let late = self.under_way.iter().filter(|(_, play)| play.due.is_some_and(|due| due <= now));
        for (number, id) in late.map(|(number, play)| (*number, play.id)).collect::<Vec<_>>() {
            self.ask(EnvironmentRequest::Close(id))?;
            self.fail(number, &format!("no answer within {:?}", self.environments.timeout));
        }
        Ok(())
    }

    /// Gives the engine the turns that are to be drawn; first turns of siblings that begin alike together.
    fn draw(&mut self, policy: &mut Policy<'_>) -> anyhow::Result<()> {
        let mut requests: Vec<Request> = Vec::new();
        for number in &self.ready {
            let Some(play) = self.under_way.get(number) else { continue };
            let TurnRequest { prompt_tokens, sampling, seed } = play.episode.request(play.id)?;
            let sample = SampleRequest { id: *number, seed };
            match requests.last_mut() {
                Some(last) if last.prompt_tokens == prompt_tokens && last.sampling == sampling => {
                    last.samples.push(sample);
                }
                _ => requests.push(Request {
                    prompt_tokens,
                    samples: vec![sample],
                    sampling,
                    eos_token_ids: Arc::clone(policy.eos_token_ids),
                    min_tokens: 0,
                    grammar: None,
                    top_logprobs: 0,
                    stream: false,
                }),
            }
        }
        let taken = policy.engine.submit(&requests);
        for (request, taken) in requests.into_iter().zip(taken) {
            // The engine has room again once something of it has ended.
            if matches!(taken, Err(Refusal::Busy { .. } | Refusal::Unread { .. })) {
                continue;
            }
            for SampleRequest { id: number, .. } in request.samples {
                self.ready.remove(&number);
                let Err(refusal) = &taken else { continue };
                self.refused(number, refusal, policy.encoder)?;
            }
        }
        Ok(())
    }

    /// The engine does not take a turn.
    fn refused(&mut self, number: u64, refusal: &Refusal, encoder: &PromptEncoder) -> anyhow::Result<()> {
        let Some(play) = self.under_way.get(&number) else { return Ok(()) };
        if play.episode.turns() == 0 || !matches!(refusal, Refusal::Context { .. } | Refusal::Pool { .. }) {
            return self.refuse(number, refusal.to_string());
        }
        self.ask(EnvironmentRequest::Close(play.id))?;
        self.end(number, EpisodeEnd::Context, encoder)
    }

    /// Waits until an environment answers, or something else is due.
    fn wait(&mut self, policy: &mut Policy<'_>) -> anyhow::Result<()> {
        let answers = self.under_way.values().filter_map(|play| play.due);
        let pauses = self.waiting.iter().filter_map(|waiting| waiting.not_before);
        let Some(until) = answers.chain(pauses).min() else { return Ok(()) };
        let Environments { replies, runtime, .. } = &mut self.environments;
        // Within the runtime, whose time it is.
        let reply = runtime.block_on(async { timeout_at(until, replies.recv()).await });
        match reply {
            Ok(Some(reply)) => {
                self.answered(policy.encoder, policy.engine.context_tokens(), reply)?;
                self.draw(policy)
            }
            Ok(None) => anyhow::bail!("the environments have ended"),
            // What is due is looked at next.
            Err(_) => Ok(()),
        }
    }

    /// Whether the engine's number is that of an episode's turn.
    pub(super) fn has(&self, number: u64) -> bool {
        self.under_way.contains_key(&number)
    }

    /// The engine has drawn a turn: the environment is told.
    ///
    /// # Errors
    /// When its tokens have no text, or the environments are gone.
    pub(super) fn drawn(&mut self, encoder: &PromptEncoder, turn: Finished) -> anyhow::Result<()> {
        let due = Instant::now() + self.environments.timeout;
        let Some(play) = self.under_way.get_mut(&turn.id) else { return Ok(()) };
        let TurnText { text, tokens, truncated } = play.episode.drawn(encoder, turn)?;
        play.said.push(Said { role: "assistant", content: text.clone() });
        play.due = Some(due);
        let id = play.id;
        self.ask(EnvironmentRequest::Step { id, text, tokens, truncated })
    }

    /// The engine, or the prompt, allows no episode: there is no response.
    pub(super) fn refuse(&mut self, number: u64, problem: String) -> anyhow::Result<()> {
        let Some(play) = self.remove(number) else { return Ok(()) };
        self.ended.push(Ended { place: play.place, response: Err(problem) });
        self.ask(EnvironmentRequest::Close(play.id))
    }

    /// The environment has failed an episode: it is played again, or was played too often.
    fn fail(&mut self, number: u64, detail: &str) {
        let Some(Play { place, id, content, .. }) = self.remove(number) else { return };
        let attempt = id.attempt + 1;
        if attempt < MAX_ATTEMPTS {
            let not_before = Some(Instant::now() + RETRY_DELAY);
            self.waiting.push_front(Waiting { place, attempt, content, not_before });
        } else {
            let problem = format!("the episode has failed {MAX_ATTEMPTS} times, the last time by {detail}");
            self.ended.push(Ended { place, response: Err(problem) });
        }
    }

    /// An episode has no further turn: it is a response.
    fn end(&mut self, number: u64, end: EpisodeEnd, encoder: &PromptEncoder) -> anyhow::Result<()> {
        let Some(Play { place, id, episode, said, .. }) = self.remove(number) else { return Ok(()) };
        let rollout = Rollout::new(episode.finish(id, end))?;
        let tokens = rollout.sequence();
        let last = rollout.turns().last().map_or(0, |turn| turn.start);
        let (before, answer) = tokens.split_at(last);
        let tokenizer = encoder.tokenizer();
        let text = tokenizer.response_text(before, answer, true)?;
        let prompt_end =
            tokenizer.decode(&before[before.len().saturating_sub(PROMPT_END_TOKENS)..], false)?;
        let parts = rollout.into_parts();
        let played = Played { said, end, observations: parts.observations, reward: parts.reward };
        let response = Response {
            prompt_tokens: parts.prompt_tokens,
            tokens: parts.response_tokens,
            text,
            prompt_end,
            logprobs: parts.rollout_logprobs,
            finish_reason: parts.finish_reason,
            played: Some(Box::new(played)),
        };
        self.ended.push(Ended { place, response: Ok(response) });
        Ok(())
    }

    fn remove(&mut self, number: u64) -> Option<Play> {
        self.ready.remove(&number);
        let play = self.under_way.remove(&number)?;
        self.numbers.remove(&play.id);
        Some(play)
    }
}

impl Play {
    /// The environment says something.
    fn hear(&mut self, messages: &[EnvironmentMessage]) {
        let messages = messages.iter();
        self.said.extend(
            messages.map(|message| Said { role: message.speaker.role(), content: message.text.clone() }),
        );
    }
}
