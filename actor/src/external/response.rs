//! One response: drawn in one call, or in several where weights were exchanged meanwhile.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use engine::{Event, Finished, Request, SampleRequest};
use service::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{FinishReason, PolicyVersion, Span};

use super::http::CallError;
use super::protocol::{Answer, Draw, Ending, Pause};
use super::remote::{ABORT_GRACE, Ready, Remote, State};
use crate::metrics;

/// Calls for one response that may fail.
const TRIES: u32 = 3;
/// How long a response waits for a server that was lost.
const OUTAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// A response so far.
#[derive(Debug)]
pub(super) struct Response {
    remote: Arc<Remote>,
    request: Request,
    sample: SampleRequest,
    endings: Arc<[u32]>,
    /// Most tokens of it.
    max_tokens: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    spans: Vec<Span>,
}

/// What came of one call.
enum Part {
    /// It is over.
    Over(FinishReason),
    /// It goes on: with others weights, or because the server broke it off.
    On,
    /// The server gave the call up for an exchange of weights; nothing came of it.
    Interrupted,
}

/// Counts a call for tokens.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Response {
    /// A response of a request, of at most so many tokens.
    pub(super) fn new(
        remote: Arc<Remote>,
        request: Request,
        sample: SampleRequest,
        max_tokens: usize,
    ) -> Self {
        let own = request.eos_token_ids.iter().filter(|_| !request.sampling.ignores_eos());
        let endings = own.chain(request.sampling.stop_token_ids()).copied().collect();
        let (tokens, logprobs, spans) = (Vec::new(), Vec::new(), Vec::new());
        Self { remote, request, sample, endings, max_tokens, tokens, logprobs, spans }
    }

    /// Draws it to its end, and says what came of it.
    pub(super) async fn draw(mut self) -> Event {
        match self.parts().await {
            Ok(finish_reason) => Event::Finished(Box::new(Finished {
                id: self.sample.id,
                response_tokens: self.tokens,
                rollout_logprobs: self.logprobs,
                surviving_mass: None,
                top_logprobs: Vec::new(),
                spans: self.spans,
                // What the server keeps of its cache is its own.
                cache_spans: Vec::new(),
                finish_reason,
                stop_text: None,
            })),
            Err(problem) => Event::Failed { id: self.sample.id, response_tokens: self.tokens.len(), problem },
        }
    }

    async fn parts(&mut self) -> Result<FinishReason, String> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        let mut failures = 0;
        loop {
            let ready = self.ready().await?;
            let (before, epoch) = (self.tokens.len(), ready.epoch);
            let part = self.part(&ready).await;
            let problem = match part {
                Ok(Part::Over(reason)) => return Ok(reason),
                Ok(Part::Interrupted) => continue,
                Ok(Part::On) if self.tokens.len() > before || !self.remote.has(epoch) => continue,
                Ok(Part::On) => "the server broke the response off".to_owned(),
                Err(error) => {
                    metrics::engine_call_failed(error.label());
                    if let CallError::Lost { .. } = &error {
                        self.remote.lost(epoch, &error.to_string());
                    }
                    if !error.may_pass() {
                        return Err(error.to_string());
                    }
                    error.to_string()
                }
            };
            failures += 1;
            if failures == TRIES {
                return Err(format!("{problem} (tried {TRIES} times)"));
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Waits until the server has weights, and log-probs that are those of the temperature.
    async fn ready(&self) -> Result<Ready, String> {
        let mut state = self.remote.state.subscribe();
        let mut deadline = None;
        let mut lost = String::new();
        let ready = loop {
            match state.borrow_and_update().clone() {
                State::Ready(ready) => break ready,
                State::Empty | State::Exchanging => {}
                State::Down(reason) => {
                    deadline.get_or_insert_with(|| Instant::now() + OUTAGE_TIMEOUT);
                    lost = reason;
                }
            }
            tokio::select! {
                // The sender lives as long as this response.
                _ = state.changed() => {}
                () = service::sleep_until(deadline) => {
                    return Err(format!("the external engine is lost: {lost}"));
                }
            }
        };
        let temperature = self.request.sampling.temperature();
        if !self.remote.is_measured(temperature) {
            self.remote.measure(temperature).await.map_err(|error| error.to_string())?;
        }
        Ok(ready)
    }

    /// One call.
    async fn part(&mut self, ready: &Ready) -> Result<Part, CallError> {
        let remote = Arc::clone(&self.remote);
        // Counted first: an exchange that begins now waits for this call.
        let _in_flight = InFlight::begin(&remote.in_flight);
        if !remote.has(ready.epoch) {
            return Ok(Part::Interrupted);
        }
        let name = format!("{}-{}-{}", remote.member, self.sample.id, self.tokens.len());
        let sequence = [&*self.request.prompt_tokens, &self.tokens].concat();
        let left = self.max_tokens - self.tokens.len();
        let draw = Draw {
            name: &name,
            tokens: &sequence,
            sampling: &self.request.sampling,
            max_tokens: u32::try_from(left).unwrap_or(u32::MAX),
            seed: part_seed(self.sample.seed, self.tokens.len()),
            endings: &self.endings,
            alternatives: 0,
        };
        let answer = tokio::select! {
            answer = remote.draw(&draw, remote.request_timeout) => answer?,
            () = remote.gives_up(ready.epoch) => return Ok(Part::Interrupted),
        };
        self.take(ready, answer, left)
    }

    /// Adds what the server drew.
    fn take(&mut self, ready: &Ready, answer: Answer, left: usize) -> Result<Part, CallError> {
        let path = "a response".to_owned();
        let drawn = answer.tokens.len();
        if drawn > left {
            let problem = format!("the answer has {drawn} tokens, at most {left} were asked for");
            return Err(CallError::Answer { path, problem });
        }
        let spans =
            spans(&self.remote, ready, &answer).map_err(|problem| CallError::Answer { path, problem })?;
        for span in spans {
            append(&mut self.spans, span);
        }
        self.tokens.extend(answer.tokens);
        self.logprobs.extend(answer.logprobs);
        let ended = self.tokens.last().is_some_and(|last| self.endings.contains(last));
        Ok(match answer.ending {
            Ending::Stop => Part::Over(FinishReason::Stop),
            Ending::Length => Part::Over(FinishReason::Length),
            Ending::Aborted if ended => Part::Over(FinishReason::Stop),
            Ending::Aborted if self.tokens.len() == self.max_tokens => Part::Over(FinishReason::Length),
            Ending::Aborted => Part::On,
        })
    }
}

impl Remote {
    /// Whether these weights are in use.
    pub(super) fn has(&self, epoch: u64) -> bool {
        matches!(&*self.state.borrow(), State::Ready(ready) if ready.epoch == epoch)
    }

    /// The version of a name that an answer has for its weights.
    fn drawn_by(&self, ready: &Ready, name: &str) -> Result<PolicyVersion, String> {
        self.version_of(name).ok_or_else(|| {
            let problem = format!("the tokens were drawn by weights {name:?}, which are not this run's");
            // It was started again.
            self.lost(ready.epoch, &problem);
            problem
        })
    }

    /// Waits until a call that was made with these weights is to be given up.
    async fn gives_up(&self, epoch: u64) {
        let mut state = self.state.subscribe();
        let over = state.wait_for(|state| match state {
            State::Ready(ready) => ready.epoch != epoch && self.pause == Pause::Abort,
            State::Exchanging => self.pause == Pause::Abort,
            State::Empty | State::Down(_) => true,
        });
        drop(over.await);
        tokio::time::sleep(ABORT_GRACE).await;
    }
}

/// The versions that drew an answer. The server's word counts where it gives one; where it does not, the
/// weights were those that it had when it was asked, as an exchange waits for the answer.
fn spans(remote: &Remote, ready: &Ready, answer: &Answer) -> Result<Vec<Span>, String> {
    let mut spans = Vec::new();
    if let Some(named) = &answer.weights {
        for span in named {
            spans.extend(span_of(remote.drawn_by(ready, &span.version)?, span.end - span.start));
        }
        return Ok(spans);
    }
    let last = answer.last_weights.as_deref().map(|name| remote.drawn_by(ready, name)).transpose()?;
    let is_sure = match (remote.pause, last) {
        (Pause::Abort, _) => last.is_none_or(|last| last == ready.version || !remote.has(ready.epoch)),
        (Pause::Keep, Some(last)) => last == ready.version,
        (Pause::Keep, None) => false,
    };
    if !is_sure {
        return Err(
            "the server does not say which weights drew the tokens: set on_swap = \"recompute\"".to_owned()
        );
    }
    spans.extend(span_of(ready.version, answer.tokens.len()));
    Ok(spans)
}

fn span_of(version: PolicyVersion, tokens: usize) -> Option<Span> {
    let tokens = NonZeroU32::new(u32::try_from(tokens).unwrap_or(u32::MAX))?;
    Some(Span { version, tokens })
}

/// Adds a span behind others: a version that goes on drawing has one.
fn append(spans: &mut Vec<Span>, next: Span) {
    match spans.last_mut() {
        Some(last) if last.version == next.version => {
            last.tokens = last.tokens.saturating_add(next.tokens.get());
        }
        _ => spans.push(next),
    }
}

/// The seed of a call: one for each place where it begins, or a response that goes on would meet the random
/// numbers of its beginning again.
fn part_seed(seed: u64, at: usize) -> u64 {
    seed ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
