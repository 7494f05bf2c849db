//! An engine that is a server of its own, vLLM or SGLang (docs/external-engines.md): the actor keeps leases,
//! ids, delivery and drains, and asks the server for tokens.
//!
//! | waits for            | unblocked by                        | bound                                         |
//! |----------------------|-------------------------------------|-----------------------------------------------|
//! | a place              | a response that ends                | `max_sequences` calls, `max_waiting` behind   |
//! | tokens               | the server's answer, a cancellation | `request_timeout`, three tries                |
//! | a server that is lost| its health page, and its weights    | 15 s for a response; then the attempt fails   |
//! | an exchange          | the server's answer                 | `request_timeout`; then the server is lost    |

mod folder;
mod http;
mod protocol;
mod refusal;
mod remote;
mod response;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::{EngineConfig, Event, Refusal, Request};
use model::ModelConfig;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

pub(crate) use folder::WeightsFolder;
pub use refusal::external_problems;
use remote::State;
pub(crate) use remote::{Error, Remote};
use response::Response;

/// The actor's end of an external engine. Dropping it gives up what is under way.
#[derive(Debug)]
pub(crate) struct ExternalEngine {
    remote: Arc<Remote>,
    config: EngineConfig,
    context: usize,
    vocab_size: usize,
    /// Places at the server.
    places: Arc<Semaphore>,
    running: BTreeMap<u64, AbortHandle>,
    responses: JoinSet<Event>,
    /// Whose a task is.
    ids: HashMap<tokio::task::Id, u64>,
    /// Ends with this.
    _watch: JoinSet<()>,
}

impl ExternalEngine {
    /// An engine for a model whose first weights the server has.
    pub(crate) fn start(remote: Arc<Remote>, config: EngineConfig, model: &ModelConfig) -> Self {
        let mut watch = JoinSet::new();
        watch.spawn(Arc::clone(&remote).watch());
        Self {
            context: engine::context_tokens(model, &config),
            vocab_size: usize::try_from(model.vocab_size).unwrap_or(usize::MAX),
            places: Arc::new(Semaphore::new(config.max_sequences())),
            running: BTreeMap::new(),
            responses: JoinSet::new(),
            ids: HashMap::new(),
            _watch: watch,
            remote,
            config,
        }
    }

    /// Longest prompt and response together, in tokens.
    pub(crate) fn context_tokens(&self) -> usize {
        self.context
    }

    /// Whether the server is lost, or reads weights.
    pub(crate) fn is_lost(&self) -> bool {
        !matches!(*self.remote.state.borrow(), State::Ready(_))
    }

    /// The server that it asks.
    pub(crate) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Begins responses; for each request whether it was taken.
    pub(crate) fn submit(&mut self, requests: Vec<Request>) -> Vec<Result<(), Refusal>> {
        requests.into_iter().map(|request| self.begin(&request)).collect()
    }

    fn begin(&mut self, request: &Request) -> Result<(), Refusal> {
        self.check(request)?;
        let room = self.context - request.prompt_tokens.len();
        let max_tokens = room.min(request.sampling.max_new_tokens() as usize);
        for sample in &request.samples {
            let response = Response::new(Arc::clone(&self.remote), request.clone(), *sample, max_tokens);
            let places = Arc::clone(&self.places);
            let task = self.responses.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire_owned().await;
                response.draw().await
            });
            self.ids.insert(task.id(), sample.id);
            self.running.insert(sample.id, task);
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let tokens = &request.prompt_tokens;
        if tokens.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if request.samples.is_empty() {
            return Err(Refusal::NoSample);
        }
        if let Some(position) = tokens.iter().position(|token| *token as usize >= self.vocab_size) {
            return Err(Refusal::Token { position, token: tokens[position], vocab_size: self.vocab_size });
        }
        if tokens.len() >= self.context {
            return Err(Refusal::Context { tokens: tokens.len(), context: self.context });
        }
        if let Some(problem) = refusal::of_sampling(self.config.backend, &request.sampling).into_iter().next()
        {
            return Err(Refusal::Sampling(problem));
        }
        if let Some(sample) = request.samples.iter().find(|sample| self.running.contains_key(&sample.id)) {
            return Err(Refusal::DuplicateId(sample.id));
        }
        let waiting = self.running.len().saturating_sub(self.config.max_sequences());
        if waiting + request.samples.len() > self.config.max_waiting {
            return Err(Refusal::Busy { waiting, most: self.config.max_waiting });
        }
        Ok(())
    }

    /// Gives up a response; no event will name it. False when none of this id is under way.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        let Some(task) = self.running.remove(&id) else { return false };
        // This closes the connection, and a server that sees that goes on for nobody.
        task.abort();
        self.ids.remove(&task.id());
        true
    }

    /// The next event; it never comes while nothing is under way. The future may be dropped at any time.
    pub(crate) async fn next_event(&mut self) -> Event {
        loop {
            let ended = match self.responses.join_next_with_id().await {
                Some(ended) => ended,
                None => std::future::pending().await,
            };
            let (task, event) = match ended {
                Ok((task, event)) => (task, Ok(event)),
                Err(error) => (error.id(), Err(error)),
            };
            // Of one that was cancelled.
            let Some(id) = self.ids.remove(&task) else { continue };
            self.running.remove(&id);
            return event.unwrap_or_else(|error| {
                let problem = format!("the response's task ended: {error}");
                Event::Failed { id, response_tokens: 0, problem }
            });
        }
    }
}
