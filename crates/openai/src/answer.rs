//! A request under way: events of the engine become pieces of text.

use std::sync::Arc;
use std::time::Duration;

use engine::generate::response_seed;
use engine::{EngineClient, Event, Finished, Request, SampleRequest, Token, TokenLogprob};
use model::{IncrementalDecoder, Tokenizer};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use types::{FinishReason, Sampling};

use crate::Served;
use crate::error::ApiError;
use crate::request::Job;

/// A part of one response's text.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Which response.
    pub(crate) choice: usize,
    pub(crate) text: String,
    /// The tokens with their log-probs, if those are wanted.
    pub(crate) tokens: Option<Vec<TokenText>>,
    /// Set in the last piece of a response.
    pub(crate) finish: Option<FinishReason>,
}

/// A token as clients see it.
#[derive(Debug)]
pub(crate) struct TokenText {
    pub(crate) text: String,
    pub(crate) logprob: f32,
    /// The most probable tokens at its place.
    pub(crate) top: Vec<(String, f32)>,
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
    /// With its stop texts, which are never given out.
    sampling: Arc<Sampling>,
    deadline: Instant,
    time_limit: Duration,
    pub(crate) usage: Usage,
    /// Its place among the requests that are answered at a time.
    _permit: OwnedSemaphorePermit,
}

/// A response whose tokens come one by one.
#[derive(Debug)]
struct Choice {
    decoder: IncrementalDecoder,
    text: String,
    /// Bytes of the text that were given out.
    sent: usize,
}

impl Choice {
    /// The text that no stop text can begin in any more, nor has begun in, and that was not given out yet.
    fn take(&mut self, stop: &[String]) -> &str {
        let from = self.sent;
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        let uncertain = self.text.len().saturating_sub(longest.saturating_sub(1)).max(from);
        let found = stop.iter().filter_map(|stop| self.text[from..].find(stop.as_str())).min();
        let mut end = found.map_or(uncertain, |at| uncertain.min(from + at));
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.sent = end;
        &self.text[from..end]
    }
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
        let mut usage = Usage::default();
        for (number, content) in job.prompts.iter().enumerate() {
            let tokens = policy.encoder.encode(content);
            let prompt_tokens = tokens.map_err(|error| ApiError::bad_request(format!("{error:#}"), None))?;
            usage.prompt_tokens += prompt_tokens.len();
            let mut samples = Vec::with_capacity(job.n);
            for sibling in 0..job.n {
                let seed = response_seed(job.seed, number as u64, sibling as u64);
                samples.push(SampleRequest { id: (number * job.n + sibling) as u64, seed });
            }
            requests.push(Request {
                prompt_tokens,
                samples,
                sampling: Arc::clone(&sampling),
                eos_token_ids: policy.encoder.eos_ids(),
                top_logprobs: job.top_logprobs.unwrap_or(0),
                stream: job.stream,
            });
        }
        let client = policy.engine.client().await?;
        for outcome in client.submit(requests).await? {
            // Those that were taken are cancelled with the client.
            outcome?;
        }
        let choice = || Choice { decoder: IncrementalDecoder::new(true), text: String::new(), sent: 0 };
        let open = job.prompts.len() * job.n;
        Ok(Self {
            client,
            tokenizer: Arc::clone(policy.encoder.tokenizer()),
            choices: (0..open).map(|_| choice()).collect(),
            open,
            logprobs: job.top_logprobs.is_some(),
            sampling,
            deadline: Instant::now() + time_limit,
            time_limit,
            usage,
            _permit: permit,
        })
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
        let tokens =
            self.logprobs.then(|| self.token_text(token.token, token.logprob, &token.top)).transpose()?;
        let choice = &mut self.choices[number];
        let text = choice.decoder.push(&self.tokenizer, token.token).map_err(undecodable)?;
        choice.text.push_str(&text);
        let text = choice.take(self.sampling.stop()).to_owned();
        let tokens = tokens.map(|token| vec![token]);
        let piece = Piece { choice: number, text, tokens, finish: None };
        Ok((piece.tokens.is_some() || !piece.text.is_empty()).then_some(piece))
    }

    fn finished(&mut self, finished: Finished) -> Result<Piece, ApiError> {
        let number = finished.id as usize;
        let mut text = self.tokenizer.decode(&finished.response_tokens, true).map_err(undecodable)?;
        if let Some(stop) = &finished.stop_text {
            text.truncate(stop.at);
        }
        self.usage.response_tokens += finished.response_tokens.len();
        let sent = self.choices[number].sent;
        let tokens = match (self.logprobs, self.choices[number].text.is_empty()) {
            (false, _) => None,
            // They were given out as they came.
            (true, false) => Some(Vec::new()),
            (true, true) => {
                let mut texts = Vec::with_capacity(finished.response_tokens.len());
                let rows = finished.response_tokens.iter().zip(&finished.rollout_logprobs).enumerate();
                for (at, (token, logprob)) in rows {
                    let top = finished.top_logprobs.get(at).map_or(&[][..], Vec::as_slice);
                    texts.push(self.token_text(*token, *logprob, top)?);
                }
                Some(texts)
            }
        };
        let text = text.get(sent..).unwrap_or_default().to_owned();
        Ok(Piece { choice: number, text, tokens, finish: Some(finished.finish_reason) })
    }

    fn token_text(&self, token: u32, logprob: f32, top: &[TokenLogprob]) -> Result<TokenText, ApiError> {
        let mut top_texts = Vec::with_capacity(top.len());
        for entry in top {
            top_texts.push((self.text(entry.token)?, entry.logprob));
        }
        Ok(TokenText { text: self.text(token)?, logprob, top: top_texts })
    }

    /// The text of a token by itself.
    fn text(&self, token: u32) -> Result<String, ApiError> {
        self.tokenizer.decode(&[token], false).map_err(undecodable)
    }
}

fn undecodable(error: model::tokenizer::Error) -> ApiError {
    ApiError::internal(error.to_string())
}
