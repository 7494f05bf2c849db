//! The owner of the state and of what lies on the disk: one thread, one inbox.
//!
//! ```text
//!  streams --Input--> inbox (bounded) --> apply --> journal (fsync) --> effects --> outboxes (bounded) --> streams
//!                                                              \--> acknowledgements
//! ```
//!
//! | waits for        | unblocked by                          | bound                                   |
//! |------------------|---------------------------------------|-----------------------------------------|
//! | a stream's input | room in the inbox                     | gRPC flow control reaches the sender    |
//! | this loop        | an input, a deadline, a cancellation  | `STATUS_INTERVAL`                       |
//! | a stream's output| the member reading                    | a full outbox disconnects the member    |
//! | a full disk      | room on it                            | `PARKED_LIMIT` inputs, then the inbox   |
//! | a commit         | the thread that writes snapshots      | only where it is 65,536 facts behind    |
//!
//! Inputs are taken in lots: all that wait are applied, the state settles once, the facts become durable
//! with one fsync, and only then somebody sees what follows. A lot without facts (heartbeats, loads) costs no
//! write.
//!
//! Members are judged by their silence only while this loop was listening: when it did nothing for longer
//! than [`AWAY_LIMIT`], everybody is given the whole time again, and every lease so much more.
//!
//! While the journal's disk has too little room nothing new is begun; while it has none at all the lot that
//! cannot be made durable waits, nobody sees what follows from it, and inputs are put aside. People are
//! answered meanwhile.

mod publishing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use service::{Hopeless, Pulse, sleep_until};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::link::actor::{ActorCommand, Lease, LeasedPrompt};
use types::link::learner::LearnerCommand;
use types::{Batch, GroupScore, Prompt, PromptId, RolloutId, Sample, Timestamp};

use crate::acknowledgements::Acknowledgements;
use crate::data::DataSet;
use crate::disk_room::DiskRoom;
use crate::inbox::{Handle, Input, Report, inbox};
use crate::journal::{self, Entries, Journal};
use crate::samples::Samples;
use crate::sessions::{Closing, Outbox, SessionId, Sessions};
use crate::stall::Stall;
use crate::state::{
    Applied, BatchPlan, Effect, Event, Grant, Phase, Refusal, RewardEvent, RunPlan, ScoreSummary, State,
    StepRecord,
};
use crate::status::Status;
use crate::steps_file::StepsFile;
use crate::worst::{Example, Worst};
use crate::{metrics, notices};

/// Inputs that share one write of the journal.
const INPUTS_LIMIT: usize = 256;
/// Shortest time between two publications of the status.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// A turn of the loop that takes longer means that the process was stopped, or the disk slow.
const AWAY_LIMIT: Duration = Duration::from_secs(1);
/// How long a turn may take before the process counts as stuck (`/health`).
const STUCK_LIMIT: Duration = Duration::from_secs(60);
/// How long the streams get to carry the last commands.
const CLOSE_DELAY: Duration = Duration::from_millis(500);
/// Inputs that may be put aside while the journal's disk is full.
const PARKED_LIMIT: usize = 4096;
/// How often a full disk is tried again.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// Wall time that never goes back, whatever happens to the system's clock.
#[derive(Debug)]
struct Clock {
    began: Timestamp,
    since: Instant,
}

impl Clock {
    fn starting_after(last: Timestamp) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(u64::try_from(unix.as_millis()).unwrap_or(0));
        Self { began: wall.max(last), since: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        self.began + self.since.elapsed()
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.since + at.since(self.began)
    }
}

/// The loop with all that it owns.
pub(crate) struct ServerLoop {
    state: State,
    /// The plan of this start, which may differ from the journal's where that is harmless.
    plan: RunPlan,
    journal: Journal,
    room: DiskRoom,
    /// Inputs that came while the journal's disk was full.
    parked: VecDeque<Input>,
    data: Arc<DataSet>,
    steps_file: Option<StepsFile>,
    evals_file: Option<StepsFile>,
    samples: Option<Samples>,
    worst: Worst,
    published: Published,
    /// Cancelled when this loop has ended and the members were told.
    done: CancellationToken,
    sessions: Sessions,
    clock: Clock,
    inbox: mpsc::Receiver<Input>,
    pulse: Pulse,
    /// What the next write makes durable, and what is done after it.
    entries: Entries,
    effects: Vec<Effect>,
    acknowledgements: Acknowledgements,
    ended: Option<Phase>,
}

/// What a loop is made of.
pub(crate) struct Parts {
    pub(crate) state: State,
    pub(crate) plan: RunPlan,
    pub(crate) journal: Journal,
    pub(crate) room: DiskRoom,
    pub(crate) data: Arc<DataSet>,
    pub(crate) steps_file: Option<StepsFile>,
    pub(crate) evals_file: Option<StepsFile>,
    pub(crate) samples: Option<Samples>,
    pub(crate) worst: Worst,
    pub(crate) done: CancellationToken,
    pub(crate) pulse: Pulse,
}

/// Where the loop publishes what people see.
#[derive(Debug)]
struct Published {
    status: watch::Sender<Arc<Status>>,
    steps: watch::Sender<Arc<Vec<Arc<StepRecord>>>>,
    worst: watch::Sender<Arc<Vec<Example>>>,
}

/// Where people see it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) status: watch::Receiver<Arc<Status>>,
    pub(crate) steps: watch::Receiver<Arc<Vec<Arc<StepRecord>>>>,
    pub(crate) worst: watch::Receiver<Arc<Vec<Example>>>,
}

impl ServerLoop {
    /// A loop over a recovered state, the way to it, and what it publishes.
    pub(crate) fn new(parts: Parts) -> (Self, Handle, View) {
        let Parts { state, plan, journal, room, data, steps_file, evals_file, samples, worst, done, pulse } =
            parts;
        metrics::begin(&state);
        let clock = Clock::starting_after(journal.last_fact());
        let (status, status_view) = watch::channel(Arc::new(Status::of(&state, clock.now())));
        let (steps, steps_view) = watch::channel(Arc::new(state.history().shared_steps()));
        let (handle, inbox) = inbox(steps_view.clone());
        let (worst_sender, worst_view) = watch::channel(Arc::new(worst.examples().to_vec()));
        let this = Self {
            state,
            plan,
            journal,
            room,
            parked: VecDeque::new(),
            data,
            steps_file,
            evals_file,
            samples,
            worst,
            published: Published { status, steps, worst: worst_sender },
            done,
            sessions: Sessions::default(),
            clock,
            inbox,
            pulse,
            entries: Entries::default(),
            effects: Vec::new(),
            acknowledgements: Acknowledgements::default(),
            ended: None,
        };
        (this, handle, View { status: status_view, steps: steps_view, worst: worst_view })
    }

    /// Runs until the run is over, or the token is cancelled and the drain done.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let done = self.done.clone().drop_guard();
        self.apply(Event::Started(Box::new(self.plan.clone())));
        self.look_for_room();
        self.settle(&token).await?;
        let mut inputs = Vec::with_capacity(INPUTS_LIMIT);
        let (mut published, mut turned) = (Instant::now(), Instant::now());
        let mut draining = false;
        while self.ended.is_none() {
            self.pulse.beat(STUCK_LIMIT);
            let deadline = self.state.next_deadline().map(|deadline| self.clock.instant(deadline));
            let status_due = published + STATUS_INTERVAL;
            inputs.extend(self.parked.drain(..INPUTS_LIMIT.min(self.parked.len())));
            tokio::select! {
                () = std::future::ready(()), if !inputs.is_empty() => {}
                count = self.inbox.recv_many(&mut inputs, INPUTS_LIMIT) => anyhow::ensure!(count > 0, "every handle is gone"),
                () = sleep_until(deadline) => {}
                () = tokio::time::sleep_until(status_due) => {}
                () = token.cancelled(), if !draining => {
                    draining = true;
                    self.apply(Event::DrainRequested);
                }
            }
            let away = turned.elapsed();
            if away > AWAY_LIMIT {
                tracing::warn!(seconds = away.as_secs_f64(), "was away: nobody is charged for it");
                self.apply(Event::WasAway(away));
            }
            turned = Instant::now();
            for input in inputs.drain(..) {
                self.take(input);
            }
            self.settle(&token).await?;
            if Instant::now() >= status_due {
                self.look_for_room();
                self.publish_status();
                published = Instant::now();
                self.worst.write_now_and_then(published);
            }
        }
        self.pulse.rest();
        self.publish_status();
        self.worst.write(Instant::now());
        self.sessions.finish();
        self.answer_until(Instant::now() + CLOSE_DELAY).await;
        drop(done);
        match self.state.given_up() {
            Some(cause) => Err(Hopeless(cause.to_string()).into()),
            None => Ok(()),
        }
    }

    /// Says how the run has ended, as long as the last commands need on the wire before the sockets close.
    async fn answer_until(&mut self, deadline: Instant) {
        while let Ok(Some(input)) = tokio::time::timeout_at(deadline, self.inbox.recv()).await {
            if let Input::Status(_) | Input::Stall(_) = input {
                self.take(input);
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Joined { session, outbox, event } => self.join(session, outbox, event),
            Input::Report(report) => self.take_report(*report),
            Input::Closed { session, event, refused } => {
                if self.sessions.is_current(&session) {
                    match refused {
                        Some(reason) => {
                            self.sessions.close(session.role, &session.member, Closing::Refuse(reason));
                        }
                        None => self.sessions.ended(session.role, &session.member),
                    }
                    self.apply(event);
                }
            }
            Input::Drain => drop(self.apply(Event::DrainRequested)),
            Input::Status(reply) => {
                let _ = reply.send(Arc::new(Status::of(&self.state, self.clock.now())));
            }
            Input::Stall(reply) => drop(reply.send(Stall::of(&self.state, self.clock.now()))),
        }
    }

    /// Lets a member in, unless it may not be: then whoever has its name or its role keeps it.
    fn join(&mut self, session: SessionId, outbox: Outbox, event: Event) {
        if let Err(Refusal { cause, reason }) = self.state.check_joining(self.clock.now(), &event) {
            let reason = format!("{reason}; {}", self.sessions.both(&session));
            let SessionId { role, member, .. } = session;
            metrics::member_refused(role, cause);
            tracing::error!(?role, %member, reason, "refused");
            outbox.close(Closing::Refuse(reason));
            return;
        }
        self.sessions.open(session, outbox);
        self.apply(event);
    }

    fn take_report(&mut self, Report { session, event, scored, rejected }: Report) {
        if !self.sessions.is_current(&session) {
            return;
        }
        let result = event.reward_result();
        let failed = match &event {
            Event::Reward { event: RewardEvent::Scored(summary), .. } if summary.fails_tests() => {
                Some(summary.clone())
            }
            _ => None,
        };
        let keep = self.apply(event);
        if let Some(scored) = scored
            && keep.contains(&scored.rollout().id())
        {
            if let Some(samples) = &mut self.samples {
                samples.scored(self.clock.now(), &session.member, &scored);
            }
            if let Some(summary) = failed {
                let text = scored.remarks().texts.as_ref().map(|texts| texts.response().to_owned());
                self.offer_example(&summary, text);
            }
            self.entries.keep.push(scored.for_training());
        }
        if let Some(id) = result {
            self.acknowledgements.add(session.member, id, rejected);
        }
    }

    /// A response of which tests failed may be one of the worst.
    fn offer_example(&mut self, summary: &ScoreSummary, text: Option<String>) {
        let (trained, data) = (self.state.batches().trained(), &self.data);
        let prompt = || data.prompt(summary.id.prompt).map(Prompt::into_content);
        if self.worst.offer(trained, summary, text, prompt) {
            self.published.worst.send_replace(Arc::new(self.worst.examples().to_vec()));
        }
    }

    /// Applies an event. Yields the responses whose tokens have to become durable with it.
    fn apply(&mut self, event: Event) -> Vec<RolloutId> {
        let now = self.clock.now();
        metrics::event(&event);
        let applied = self.state.apply(now, event);
        self.add(now, applied)
    }

    fn add(&mut self, now: Timestamp, applied: Applied) -> Vec<RolloutId> {
        let Applied { facts, store, effects } = applied;
        self.entries.facts.extend(facts.into_iter().map(|fact| (now, fact)));
        self.entries.forget.extend(store.forget);
        self.effects.extend(effects);
        store.keep
    }

    /// Decides what the lot has made possible, makes it durable, then acts on it.
    async fn settle(&mut self, token: &CancellationToken) -> anyhow::Result<()> {
        let now = self.clock.now();
        let settled = self.state.settle(now);
        self.add(now, settled);
        let mut entries = std::mem::take(&mut self.entries);
        if !entries.facts.is_empty() {
            // A response can come and be filtered in one lot; then nothing is to be stored.
            let forgotten: BTreeSet<RolloutId> = entries.forget.iter().copied().collect();
            entries.keep.retain(|scored| !forgotten.contains(&scored.rollout().id()));
            self.make_durable(&entries, token).await?;
            metrics::state(&self.state);
        }
        for effect in std::mem::take(&mut self.effects) {
            self.perform(effect)?;
        }
        for (member, command) in self.acknowledgements.take() {
            self.sessions.send_to_reward_server(&member, command);
        }
        Ok(())
    }

    /// Writes a lot to the journal, when there is room for it.
    async fn make_durable(&mut self, entries: &Entries, token: &CancellationToken) -> anyhow::Result<()> {
        loop {
            let started = Instant::now();
            match self.journal.commit(entries) {
                Ok(()) => {
                    metrics::journal_commit(started.elapsed());
                    self.room.has_written();
                    return Ok(());
                }
                Err(error @ journal::Error::NoRoom { .. }) if !token.is_cancelled() => {
                    self.pulse.beat(STUCK_LIMIT);
                    let waiting_for = self.room.is_full(&error);
                    self.wait_for_room(&waiting_for, token).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits a moment. People are answered meanwhile; what members say is put aside.
    async fn wait_for_room(&mut self, waiting_for: &str, token: &CancellationToken) {
        let status =
            Status { waiting_for: waiting_for.to_owned(), ..Status::of(&self.state, self.clock.now()) };
        let status = Arc::new(status);
        self.published.status.send_replace(Arc::clone(&status));
        let again = Instant::now() + ROOM_INTERVAL;
        loop {
            let input = tokio::select! {
                () = tokio::time::sleep_until(again) => return,
                () = token.cancelled() => return,
                input = self.inbox.recv(), if self.parked.len() < PARKED_LIMIT => input,
            };
            match input {
                Some(Input::Status(reply)) => drop(reply.send(Arc::clone(&status))),
                Some(Input::Stall(reply)) => drop(reply.send(Stall::of(&self.state, self.clock.now()))),
                // A member says again how loaded it is.
                Some(Input::Report(report)) if report.event.is_sign_of_life() => {}
                Some(input) => self.parked.push_back(input),
                None => return,
            }
        }
    }

    fn look_for_room(&mut self) {
        if let Some(short_of) = self.room.look() {
            self.apply(Event::Room { short_of });
        }
    }

    fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Actor { member, command } => self.sessions.send_to_actor(&member, *command),
            Effect::Lease { member, grant } => {
                if let Some(samples) = &mut self.samples {
                    samples.leased(self.clock.now(), &member, &grant);
                }
                let lease = self.lease(grant)?;
                self.sessions.send_to_actor(&member, ActorCommand::Lease(lease));
            }
            Effect::Reward { member, command } => self.sessions.send_to_reward_server(&member, command),
            Effect::Learner(command) => self.sessions.send_to_learner(command),
            Effect::SendBatch(plan) => {
                let batch = self.batch(&plan)?;
                tracing::info!(batch = plan.id.0, samples = plan.samples.len(), "batch sent");
                self.sessions.send_to_learner(LearnerCommand::Batch(batch));
            }
            Effect::Disconnect { role, member, reason } => {
                tracing::warn!(?role, %member, reason, "disconnected");
                self.sessions.close(role, &member, Closing::Disconnect(reason));
            }
            Effect::Refuse { role, member, refusal: Refusal { cause, reason } } => {
                metrics::member_refused(role, cause);
                tracing::error!(?role, %member, reason, "refused");
                self.sessions.close(role, &member, Closing::Refuse(reason));
            }
            Effect::GroupEnded(group) => self.show_samples(&group),
            Effect::Step(step) => self.step(&step)?,
            Effect::Evaluated(record) => self.evaluated(&record)?,
            Effect::Notice(notice) => notices::log(&notice),
            Effect::Finish(phase) => {
                tracing::info!(?phase, trained = self.state.batches().trained().0, "the run has ended");
                self.ended = Some(phase);
            }
        }
        Ok(())
    }

    /// A lease with the prompts' texts.
    fn lease(&self, grant: Grant) -> anyhow::Result<Lease> {
        let Grant { id, groups, timeout } = grant;
        let held_out = groups.first().and_then(|group| group.prompt.held_out_place());
        let evaluation = self.state.plan().evaluation.as_ref().filter(|_| held_out.is_some());
        let group_size = evaluation.map_or(self.state.plan().group_size, |evaluation| evaluation.samples);
        let sampling = evaluation.map(|evaluation| evaluation.sampling.clone());
        let mut prompts = Vec::with_capacity(groups.len());
        for group in groups {
            let prompt = self.data.prompt(group.prompt);
            let prompt = prompt.with_context(|| format!("prompt {} is not in the data set", group.prompt))?;
            prompts.push(LeasedPrompt { prompt, group_size, wanted: group.wanted });
        }
        Ok(Lease { id, prompts, timeout, sampling })
    }

    /// A batch with its tokens.
    fn batch(&self, plan: &BatchPlan) -> anyhow::Result<Batch> {
        let groups = plan.groups.iter().map(|group| (group.prompt, Arc::from(group.scores.as_slice())));
        let groups: BTreeMap<PromptId, Arc<[GroupScore]>> = groups.collect();
        let mut samples = Vec::with_capacity(plan.samples.len());
        for sample in &plan.samples {
            let scored = self.journal.scored(sample.id)?;
            let group = groups.get(&sample.id.prompt).cloned().unwrap_or_default();
            samples.push(Sample::new(scored, sample.weight, group)?);
        }
        Ok(Batch::new(plan.id, samples)?)
    }

    fn publish_status(&self) {
        metrics::state(&self.state);
        self.published.status.send_replace(Arc::new(Status::of(&self.state, self.clock.now())));
    }
}
