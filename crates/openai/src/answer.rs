//! A request under way: events of the engine become pieces of text.

use std::sync::Arc;
use std::time::Duration;

use engine::generate::response_seed;
use engine::{EngineClient, Event, Finished, Request, SampleRequest, Token, TokenLogprob};
use model::Tokenizer;
use model::chat::{Parsed, ToolCall};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use types::{FinishReason, Sampling, Span};

use crate::Served;
use crate::agents::recorder::Recorder;
use crate::chat::Reply;
use crate::choice::{Choice, TokenText};
use crate::error::ApiError;
use crate::request::{Asked, Job, ToolUse};
use crate::structured;

/// A part of one response's text.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Which response.
    pub(crate) choice: usize,
    pub(crate) text: String,
    /// The tokens with their log-probs, if those are wanted.
    pub(crate) tokens: Option<Vec<TokenText>>,
    /// Calls of tools, in the last piece of a response.
    pub(crate) calls: Vec<ToolCall>,
    /// Set in the last piece of a response.
    pub(crate) end: Option<Ending>,
}

/// How a response ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) reason: FinishReason,
    /// The versions of the weights that drew it.
    pub(crate) spans: Vec<Span>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) response_tokens: usize,
}

/// A request under way. Dropping it cancels what is not finished.
#[derive(Debug)]
pub(crate) struct Running {
    client: EngineClient,
    tokenizer: Arc<Tokenizer>,
    choices: Vec<Choice>,
    /// Responses that have not ended.
    open: usize,
    logprobs: bool,
    tools: Option<ToolUse>,
    /// With its stop texts, which are never given out.
    sampling: Arc<Sampling>,
    deadline: Instant,
    time_limit: Duration,
    pub(crate) usage: Usage,
    /// Keeps what is drawn, where the request is a call in an agent's episode.
    recorder: Option<Recorder>,
    /// Its place among the requests that are answered at a time.
    _permit: OwnedSemaphorePermit,
}

impl Running {
    /// Submits a job.
    pub(crate) async fn start(
        policy: &Served,
        job: &Job,
        permit: OwnedSemaphorePermit,
        time_limit: Duration,
    ) -> Result<Self, ApiError> {
        let mut requests = Vec::with_capacity(job.prompts.len());
        let sampling = Arc::new(job.sampling.clone());
        let grammar = match &job.grammar {
            Some(source) => Some(structured::compile(&policy.encoder, source).await?),
            None => None,
        };
        let mut usage = Usage::default();
        let tokenizer = Arc::clone(policy.encoder.tokenizer());
        let mut choices = Vec::with_capacity(job.prompts.len() * job.n);
        for (number, asked) in job.prompts.iter().enumerate() {
            let (tokens, field) = match asked {
                Asked::Prompt(content) => (policy.encoder.encode(content), "prompt"),
                Asked::Chat(chat) => (chat.encode(&policy.encoder), "messages"),
                Asked::Joined(tokens) => (Ok(Arc::clone(tokens)), "messages"),
            };
            let prompt_tokens =
                tokens.map_err(|error| ApiError::bad_request(format!("{error:#}"), Some(field)))?;
            usage.prompt_tokens += prompt_tokens.len();
            let mut samples = Vec::with_capacity(job.n);
            for sibling in 0..job.n {
                let seed = response_seed(job.seed, number as u64, sibling as u64);
                samples.push(SampleRequest { id: (number * job.n + sibling) as u64, seed });
                let choice = Choice::new(&tokenizer, Arc::clone(&prompt_tokens), job.top_logprobs.is_some());
                choices.push(choice.map_err(undecodable)?.with_min_tokens(job.min_tokens));
            }
            requests.push(Request {
                prompt_tokens,
                samples,
                sampling: Arc::clone(&sampling),
                eos_token_ids: policy.encoder.eos_ids(),
                top_logprobs: job.top_logprobs.unwrap_or(0),
                min_tokens: job.min_tokens,
                grammar: grammar.clone(),
                // What of a response is a call is known at its end.
                stream: job.stream && job.tools.is_none(),
            });
        }
        let client = policy.engine.client().await?;
        for outcome in client.submit(requests).await? {
            // Those that were taken are cancelled with the client.
            outcome?;
        }
        Ok(Self {
            client,
            tokenizer,
            open: choices.len(),
            choices,
            logprobs: job.top_logprobs.is_some(),
            tools: job.tools,
            sampling,
            deadline: Instant::now() + time_limit,
            time_limit,
            usage,
            recorder: None,
            _permit: permit,
        })
    }

    /// The same as a call in an agent's episode.
    pub(crate) fn recorded_by(self, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// How many responses there will be.
    pub(crate) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next piece; `None` when all responses have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        while self.open > 0 {
            let event = tokio::time::timeout_at(self.deadline, self.client.next_event()).await;
            let Ok(event) = event else {
                return Err(ApiError::unavailable(format!("not answered within {:?}", self.time_limit)));
            };
            let piece = match event? {
                Event::Token(token) => self.token(token)?,
                Event::Finished(finished) => {
                    self.open -= 1;
                    Some(self.finished(*finished)?)
                }
                Event::Failed { problem, .. } => return Err(ApiError::internal(problem)),
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    fn token(&mut self, token: Token) -> Result<Option<Piece>, ApiError> {
        let number = token.id as usize;
        let choice = &mut self.choices[number];
        let drawn = TokenLogprob { token: token.token, logprob: token.logprob };
        let told = choice.push(&self.tokenizer, drawn, &token.top).map_err(undecodable)?;
        let text = choice.take(self.sampling.stop()).to_owned();
        let tokens = told.map(|token| vec![token]);
        let piece = Piece { choice: number, text, tokens, calls: Vec::new(), end: None };
        Ok((piece.tokens.is_some() || !piece.text.is_empty()).then_some(piece))
    }

    /// The rest of a response: what of its text and tokens was not given out as they came.
    fn finished(&mut self, finished: Finished) -> Result<Piece, ApiError> {
        let Finished { id, response_tokens, rollout_logprobs, top_logprobs, stop_text, .. } = &finished;
        let number = *id as usize;
        self.usage.response_tokens += response_tokens.len();
        let choice = &mut self.choices[number];
        let whole = choice.whole(&self.tokenizer, response_tokens, stop_text.as_ref());
        let whole = whole.map_err(undecodable)?;
        let mut text = choice.unsent(&whole).to_owned();
        let mut calls = Vec::new();
        if let Some(ToolUse { format, is_single }) = self.tools {
            // Some formats mark calls with special tokens, which the text leaves out.
            let marked = choice.marked(&self.tokenizer, response_tokens, stop_text.as_ref());
            let marked = marked.map_err(undecodable)?.unwrap_or_else(|| text.clone());
            let Parsed { content, calls: found, .. } = format.parse(&marked);
            if !found.is_empty() {
                text = without_special(&self.tokenizer, content);
                calls = found;
                calls.truncate(if is_single { 1 } else { usize::MAX });
            }
        }
        if let Some(recorder) = self.recorder.take() {
            let text = if calls.is_empty() { whole } else { text.clone() };
            let reply = Reply { text, calls: calls.clone() };
            recorder.record(&self.tokenizer, &finished, reply).map_err(undecodable)?;
        }
        let mut tokens = Vec::new();
        if self.logprobs {
            let drawn = response_tokens.iter().zip(rollout_logprobs).enumerate().skip(choice.pushed());
            for (at, (token, logprob)) in drawn {
                let top = top_logprobs.get(at).map_or(&[][..], Vec::as_slice);
                let drawn = TokenLogprob { token: *token, logprob: *logprob };
                tokens.extend(choice.push(&self.tokenizer, drawn, top).map_err(undecodable)?);
            }
        }
        let tokens = self.logprobs.then_some(tokens);
        let end = Some(Ending { reason: finished.finish_reason, spans: finished.spans });
        Ok(Piece { choice: number, text, tokens, calls, end })
    }
}

/// A text without the special tokens that are written out in it.
fn without_special(tokenizer: &Tokenizer, text: String) -> String {
    tokenizer.special_texts().fold(text, |text, special| text.replace(special, ""))
}

fn undecodable(error: model::tokenizer::Error) -> ApiError {
    ApiError::internal(error.to_string())
}
