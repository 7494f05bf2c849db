//! A remote reward service in the shape that OpenRLHF's users have (`openrlhf/utils/remote_rm_utils.py`,
//! `openrlhf/cli/serve_rm.py` of OpenRLHF/OpenRLHF): `POST {"query": [...], "prompts": [...], "labels":
//! [...]}`, where a query is prompt and response, answered by `{"rewards": [...]}`.
//!
//! What fails on the way is tried again with growing, jittered pauses; what the service answers with an error
//! of the caller is not. After failures in a row nothing is sent for a while; meanwhile samples wait and
//! actors are told to come back later, so that an outage costs time and no samples.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use service::Backoff;
use tokio::time::Instant;

use crate::batch_queue::{BatchReceiver, Call};
use crate::breaker::Breaker;
use crate::config::Http;
use crate::metrics;
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;

/// No answer of a service is longer.
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;

/// A remote service.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    config: Arc<Http>,
    agent: ureq::Agent,
    /// The value of the `authorization` header.
    authorization: Option<Arc<str>>,
    breaker: Arc<Mutex<Breaker>>,
}

/// A failed attempt.
#[derive(Debug)]
enum Failure {
    /// Another attempt may succeed.
    Transient(ScoreError),
    /// It would fail again.
    Permanent(ScoreError),
}

#[derive(Deserialize)]
struct RewardsBody {
    rewards: Vec<Value>,
}

impl Remote {
    /// The way to a service.
    ///
    /// # Errors
    /// Where the token's file cannot be read or holds none.
    pub(crate) fn new(config: Http) -> Result<Self, TokenError> {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .max_idle_connections_per_host(config.concurrency)
            .build();
        let authorization = config.token_file.as_deref().map(read_token).transpose()?;
        let breaker = Breaker::new(config.breaker_failures, config.breaker_delay);
        Ok(Self {
            config: Arc::new(config),
            agent: agent.into(),
            authorization,
            breaker: Arc::new(Mutex::new(breaker)),
        })
    }

    /// How long nothing will be sent; none while the service works.
    pub(crate) fn paused(&self) -> Option<Duration> {
        self.breaker(|breaker| breaker.open_for(Instant::now()))
    }

    /// One of the service's requests at a time. Lasts until all callers are gone.
    pub(crate) async fn work(self, calls: BatchReceiver) {
        loop {
            let taken = calls.take(self.config.batch).await;
            if taken.is_empty() {
                return;
            }
            self.score(taken).await;
        }
    }

    async fn score(&self, mut calls: Vec<Call>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut attempts_left = self.config.retries;
        loop {
            calls.retain(|call| !call.is_abandoned());
            if calls.is_empty() {
                return;
            }
            if let Err(until) = self.breaker(|breaker| breaker.admit(Instant::now())) {
                tokio::time::sleep_until(until).await;
                continue;
            }
            let result = self.attempt(&calls).await;
            metrics::http_attempt(&result);
            self.breaker(|breaker| match &result {
                Ok(_) | Err(Failure::Permanent(_)) => breaker.succeeded(),
                Err(Failure::Transient(_)) => breaker.failed(Instant::now()),
            });
            match result {
                Ok(numbers) => {
                    calls.into_iter().zip(numbers).for_each(|(call, number)| call.answer(number));
                    return;
                }
                Err(Failure::Transient(_)) if attempts_left > 0 => {
                    attempts_left -= 1;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                Err(Failure::Transient(error) | Failure::Permanent(error)) => {
                    calls.into_iter().for_each(|call| call.answer(Err(error.clone())));
                    return;
                }
            }
        }
    }

    async fn attempt(&self, calls: &[Call]) -> Result<Vec<Result<f64, ScoreError>>, Failure> {
        let (mut queries, mut prompts, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for call in calls {
            let input = call.input.as_ref();
            queries.push(format!("{}{}", input.prompt, input.response));
            prompts.push(input.prompt.as_str());
            labels.push(self.label(input));
        }
        let body = json!({ "query": queries, "prompts": prompts, "labels": labels });
        let this = self.clone();
        let posted = tokio::task::spawn_blocking(move || this.post(&body)).await;
        let posted = posted.map_err(|error| {
            Failure::Transient(ScoreError::error(format!("http: the request ended early: {error}")))
        })?;
        let rewards = posted?.rewards;
        if rewards.len() != calls.len() {
            let detail =
                format!("http: {} answered {} rewards for {}", self.config.url, rewards.len(), calls.len());
            return Err(Failure::Permanent(ScoreError::error(detail)));
        }
        let count = rewards.len();
        Ok(rewards.iter().enumerate().map(|(at, reward)| number(reward, at, count)).collect())
    }

    fn label(&self, input: &ScorerInput) -> Value {
        match &self.config.label {
            Some(field) => input.fields.get(field).cloned().unwrap_or(Value::Null),
            None => Value::String(Value::Object(input.fields.clone()).to_string()),
        }
    }

    fn post(&self, body: &Value) -> Result<RewardsBody, Failure> {
        let mut request = self.agent.post(&self.config.url);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.as_ref());
        }
        let mut response = request.send_json(body).map_err(|error| self.failure(&error))?;
        let answer = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES).read_to_string();
        let answer = answer.map_err(|error| self.failure(&error))?;
        serde_json::from_str(&with_quoted_numbers(&answer)).map_err(|error| {
            let detail = format!("http: {}: the answer is not understood: {error}", self.config.url);
            Failure::Permanent(ScoreError::error(detail))
        })
    }

    fn failure(&self, error: &ureq::Error) -> Failure {
        let detail = format!("http: {}: {error}", self.config.url);
        match error {
            ureq::Error::Timeout(_) => Failure::Transient(ScoreError::timeout(detail)),
            ureq::Error::StatusCode(status) if *status != 429 && *status < 500 => {
                Failure::Permanent(ScoreError::error(detail))
            }
            ureq::Error::BadUri(_) => Failure::Permanent(ScoreError::error(detail)),
            _ => Failure::Transient(ScoreError::error(detail)),
        }
    }

    fn breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        act(&mut self.breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One response's reward. What is no finite number is nobody else's failure.
fn number(reward: &Value, at: usize, count: usize) -> Result<f64, ScoreError> {
    reward.as_f64().filter(|number| number.is_finite()).ok_or_else(|| {
        let (place, shown) = (at + 1, reward.to_string());
        let shown: String = shown.chars().take(100).collect();
        ScoreError::error(format!("http: reward {place} of {count} is {shown}, must be a finite number"))
    })
}

/// JSON as Python writes it, its numbers that are none as texts: JSON has no such numbers.
fn with_quoted_numbers(json: &str) -> String {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut quoted = String::with_capacity(json.len());
    let (mut inside_text, mut rest) = (false, json);
    while let Some(first) = rest.chars().next() {
        let number = NUMBERS.iter().find(|number| !inside_text && rest.starts_with(**number));
        let length = match number {
            Some(number) => {
                quoted.extend(["\"", number, "\""]);
                number.len()
            }
            // What is escaped ends no text.
            None if inside_text && first == '\\' => {
                let length = rest.chars().take(2).map(char::len_utf8).sum();
                quoted.push_str(&rest[..length]);
                length
            }
            None => {
                inside_text ^= first == '"';
                quoted.push(first);
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    quoted
}

/// Why there is no token to send.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no token in its first line")]
    Empty { path: PathBuf },
}

/// The value of the `authorization` header that a token file asks for.
pub(crate) fn read_token(file: &Path) -> Result<Arc<str>, TokenError> {
    let text =
        std::fs::read_to_string(file).map_err(|source| TokenError::Read { path: file.to_owned(), source })?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() {
        return Err(TokenError::Empty { path: file.to_owned() });
    }
    Ok(format!("Bearer {token}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_become_texts_outside_of_texts() {
        let json = r#"{"rewards": [NaN, 0.5, -Infinity,Infinity], "x\\": "NaN \" NaN"}"#;
        let read: Value = serde_json::from_str(&with_quoted_numbers(json)).unwrap();
        assert_eq!(read, json!({"rewards": ["NaN", 0.5, "-Infinity", "Infinity"], "x\\": "NaN \" NaN"}));
        assert_eq!(with_quoted_numbers("\"\\"), "\"\\");
    }

    #[test]
    fn a_reward_that_is_no_number_says_so() {
        assert_eq!(number(&json!(1), 0, 2), Ok(1.0));
        for reward in [json!("NaN"), json!(null), json!(true), json!([0.5]), json!("0.5")] {
            let detail = number(&reward, 1, 4).unwrap_err().detail;
            assert!(detail.contains("reward 2 of 4") && detail.contains(&reward.to_string()), "{detail}");
        }
    }
}
