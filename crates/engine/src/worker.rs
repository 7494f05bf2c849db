//! The engine's thread: commands between two steps, events to the clients that they concern.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot, watch};
use types::PolicyVersion;

use super::{
    Engine, EngineParts, Error, Event, Load, PolicyWeights, Refusal, Request, SampleRequest, Totals,
};

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// A new client; its number.
    Open { events: mpsc::Sender<Event>, reply: oneshot::Sender<u64> },
    /// Queue requests.
    Submit { client: u64, requests: Vec<Request>, reply: oneshot::Sender<Vec<Result<(), Refusal>>> },
    /// Give up a response.
    Cancel { client: u64, id: u64, reply: oneshot::Sender<bool> },
    /// Exchange the policy; the old one.
    Swap { weights: Box<PolicyWeights>, reply: oneshot::Sender<Result<PolicyWeights, Error>> },
    /// Give the weights in use another number.
    Renumber { version: PolicyVersion, reply: oneshot::Sender<Result<(), Error>> },
    /// Say how it goes.
    Report(oneshot::Sender<(Load, Totals)>),
}

/// A client as the thread knows it.
#[derive(Debug)]
struct Client {
    events: mpsc::Sender<Event>,
    /// The engine's ids of its responses, by its own.
    ids: HashMap<u64, u64>,
    /// Most events that these will still have.
    promised: usize,
}

/// Whose a response is.
#[derive(Debug)]
struct Route {
    client: u64,
    /// The client's id of it.
    id: u64,
    /// Most events that it will still have.
    promised: usize,
}

/// The thread's state.
#[derive(Debug)]
pub(crate) struct Worker {
    engine: Engine,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// By the engine's ids.
    routes: HashMap<u64, Route>,
    next_id: u64,
    /// What was done by the end of the last step, for those who do not wait.
    totals: watch::Sender<Totals>,
}

/// Runs something of the engine; a panic in it becomes an error.
pub(crate) fn guard<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // What it worked on is not used again after a panic.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(Error::Panicked(message(panic.as_ref()))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl Worker {
    pub(crate) fn new(parts: EngineParts) -> Result<Self, Error> {
        let EngineParts { model, weights, tokenizer, config } = parts;
        let engine = Engine::new(&model, weights, tokenizer, &config)?;
        Ok(Self {
            engine,
            clients: BTreeMap::new(),
            next_client: 0,
            routes: HashMap::new(),
            next_id: 0,
            totals: watch::Sender::default(),
        })
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Totals> {
        self.totals.subscribe()
    }

    pub(crate) fn summary(&self) -> String {
        self.engine.summary()
    }

    pub(crate) fn context_tokens(&self) -> usize {
        self.engine.context_tokens()
    }

    /// Works until nobody can ask for anything any more.
    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Command>) -> Result<(), Error> {
        guard(move || {
            loop {
                if self.engine.is_idle() {
                    match inbox.blocking_recv() {
                        Some(command) => self.carry_out(command),
                        None => return Ok(()),
                    }
                }
                loop {
                    match inbox.try_recv() {
                        Ok(command) => self.carry_out(command),
                        Err(mpsc::error::TryRecvError::Empty) => break,
                        Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                    }
                }
                let events = self.engine.step()?;
                self.totals.send_replace(self.engine.totals());
                for event in events {
                    self.deliver(event);
                }
                self.forget_the_gone();
            }
        })
    }

    fn carry_out(&mut self, command: Command) {
        // Nobody waiting for an answer means that the asking task was dropped.
        match command {
            Command::Open { events, reply } => {
                let client = self.next_client;
                self.next_client += 1;
                self.clients.insert(client, Client { events, ids: HashMap::new(), promised: 0 });
                let _ = reply.send(client);
            }
            Command::Submit { client, requests, reply } => {
                let outcomes = requests.into_iter().map(|request| self.submit(client, request)).collect();
                let _ = reply.send(outcomes);
            }
            Command::Cancel { client, id, reply } => {
                let _ = reply.send(self.cancel(client, id));
            }
            Command::Swap { weights, reply } => {
                let _ = reply.send(self.engine.swap_weights(*weights));
            }
            Command::Renumber { version, reply } => {
                let _ = reply.send(self.engine.renumber(version));
            }
            Command::Report(reply) => {
                let _ = reply.send((self.engine.load(), self.engine.totals()));
            }
        }
    }

    fn submit(&mut self, number: u64, mut request: Request) -> Result<(), Refusal> {
        let context = self.engine.context_tokens();
        let client = self.clients.get_mut(&number).expect("a client lives as long as it submits");
        let tokens = if request.stream { context.min(request.sampling.max_new_tokens() as usize) } else { 0 };
        let (events, room) =
            ((tokens + 1) * request.samples.len(), client.events.capacity() - client.promised);
        if events > room {
            return Err(Refusal::Unread { events, room });
        }
        let asked = std::mem::take(&mut request.samples);
        let mut known = std::collections::HashSet::new();
        for sample in &asked {
            if client.ids.contains_key(&sample.id) || !known.insert(sample.id) {
                return Err(Refusal::DuplicateId(sample.id));
            }
        }
        let named = (self.next_id..).zip(&asked).map(|(id, sample)| SampleRequest { id, seed: sample.seed });
        request.samples = named.collect();
        self.engine.submit(std::slice::from_ref(&request)).pop().unwrap_or(Err(Refusal::NoSample))?;
        for (own, sample) in (self.next_id..).zip(&asked) {
            client.ids.insert(sample.id, own);
            self.routes.insert(own, Route { client: number, id: sample.id, promised: tokens + 1 });
        }
        client.promised += events;
        self.next_id += asked.len() as u64;
        Ok(())
    }

    fn cancel(&mut self, client: u64, id: u64) -> bool {
        let own = self.clients.get(&client).and_then(|client| client.ids.get(&id).copied());
        own.is_some_and(|own| {
            self.settle(own);
            self.engine.cancel(own)
        })
    }

    /// Takes a response that has ended out of the accounts.
    fn settle(&mut self, own: u64) {
        let Some(route) = self.routes.remove(&own) else { return };
        if let Some(client) = self.clients.get_mut(&route.client) {
            client.ids.remove(&route.id);
            client.promised -= route.promised;
        }
    }

    /// Passes an event on under the client's id.
    fn deliver(&mut self, mut event: Event) {
        let own = event.id();
        let Some(route) = self.routes.get_mut(&own) else { return };
        let Some(client) = self.clients.get_mut(&route.client) else { return };
        let last = match &mut event {
            Event::Token(token) => {
                token.id = route.id;
                false
            }
            Event::Finished(finished) => {
                finished.id = route.id;
                true
            }
            Event::Failed { id, .. } => {
                *id = route.id;
                true
            }
        };
        route.promised -= 1;
        client.promised -= 1;
        // There is room, as it was promised; a reader that is gone is noticed after the step.
        let _ = client.events.try_send(event);
        if last {
            self.settle(own);
        }
    }

    /// Gives up what dropped clients had under way.
    fn forget_the_gone(&mut self) {
        let gone: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.events.is_closed()).map(|(id, _)| *id).collect();
        for number in gone {
            let Some(client) = self.clients.remove(&number) else { continue };
            for own in client.ids.into_values() {
                self.routes.remove(&own);
                self.engine.cancel(own);
            }
        }
    }
}
