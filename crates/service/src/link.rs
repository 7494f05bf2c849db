//! A member's stream to the coordinator: opened, watched, and opened again after growing pauses.
//!
//! Every role has one. Reports go up, commands come down; the role translates both. A stream that the other
//! side ends with `FAILED_PRECONDITION` is not opened again: this process cannot take part. When there was no
//! stream for longer than a limit the link gives up, so that no process waits for ever.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::Backoff;
use crate::grpc::connect;

/// Reports that may wait for the stream.
const REPORTS: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The opening of a stream under way.
pub type Opening<C> = Pin<Box<dyn Future<Output = Result<Response<Streaming<C>>, Status>> + Send>>;
/// Opens a stream of reports `R` on a channel.
pub type Open<R, C> = fn(Channel, ReceiverStream<R>) -> Opening<C>;

/// What happened on a link.
#[derive(Debug)]
pub enum LinkEvent<C> {
    /// Time to connect: call [`Link::connect`] with a fresh hello.
    Due,
    /// A command came.
    Command(C),
    /// The stream broke, and why; [`LinkEvent::Due`] follows after a pause.
    Lost(String),
    /// The other side will not have this process, and why.
    Refused(String),
    /// There was no stream for longer than the limit.
    GaveUp(String),
}

impl<C> LinkEvent<C> {
    /// The same event, with a command turned into what `translate` makes of it.
    pub fn and_then<D>(self, translate: impl FnOnce(C) -> LinkEvent<D>) -> LinkEvent<D> {
        match self {
            Self::Command(command) => translate(command),
            Self::Due => LinkEvent::Due,
            Self::Lost(reason) => LinkEvent::Lost(reason),
            Self::Refused(reason) => LinkEvent::Refused(reason),
            Self::GaveUp(reason) => LinkEvent::GaveUp(reason),
        }
    }
}

#[derive(Debug)]
enum State<R, C> {
    Pausing(Instant),
    Connected { reports: mpsc::Sender<R>, commands: Box<Streaming<C>> },
}

/// The stream, or the pause before the next try.
#[derive(Debug)]
pub struct Link<R, C> {
    address: String,
    open: Open<R, C>,
    state: State<R, C>,
    backoff: Backoff,
    /// Since when there has been no stream.
    away_since: Instant,
    time_limit: Duration,
}

impl<R: Send + 'static, C: Send + 'static> Link<R, C> {
    /// A link to `host:port` that connects at once and gives up after `time_limit` without a stream.
    pub fn new(address: String, open: Open<R, C>, time_limit: Duration) -> Self {
        let now = Instant::now();
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { address, open, state: State::Pausing(now), backoff, away_since: now, time_limit }
    }

    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected { .. })
    }

    /// Waits for what happens next. The future may be dropped at any time.
    pub async fn next(&mut self) -> LinkEvent<C> {
        match &mut self.state {
            State::Pausing(until) => {
                tokio::time::sleep_until(*until).await;
                LinkEvent::Due
            }
            State::Connected { commands, .. } => match commands.message().await {
                Ok(Some(command)) => {
                    self.backoff.reset();
                    LinkEvent::Command(command)
                }
                Ok(None) => self.broke("closed by the coordinator".to_owned()),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    LinkEvent::Refused(status.message().to_owned())
                }
                Err(status) => self.broke(status.message().to_owned()),
            },
        }
    }

    /// Drops the stream, for the reason given; the next try follows after a pause.
    pub fn broke<D>(&mut self, reason: String) -> LinkEvent<D> {
        if self.is_connected() {
            self.away_since = Instant::now();
        }
        self.pause(reason)
    }

    fn pause<D>(&mut self, reason: String) -> LinkEvent<D> {
        self.state = State::Pausing(Instant::now() + self.backoff.next_pause());
        if self.away_since.elapsed() > self.time_limit {
            let (address, limit) = (&self.address, self.time_limit);
            return LinkEvent::GaveUp(format!("no coordinator at {address} for {limit:?}: {reason}"));
        }
        LinkEvent::Lost(reason)
    }

    /// Opens a stream with `hello` as its first report. Yields what went wrong, if anything did.
    pub async fn connect<D>(&mut self, hello: R) -> Option<LinkEvent<D>> {
        let channel = match connect(&self.address).await {
            Ok(channel) => channel,
            Err(error) => return Some(self.pause(format!("{error:#}"))),
        };
        let (reports, outgoing) = mpsc::channel(REPORTS);
        // The channel is new and has room.
        let _ = reports.try_send(hello);
        match (self.open)(channel, ReceiverStream::new(outgoing)).await {
            Ok(commands) => {
                self.state = State::Connected { reports, commands: Box::new(commands.into_inner()) };
                None
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                Some(LinkEvent::Refused(status.message().to_owned()))
            }
            Err(status) => Some(self.pause(status.message().to_owned())),
        }
    }

    /// Sends a report, waiting for room. Without a stream it is dropped: the next hello says everything that
    /// matters.
    pub async fn report(&mut self, report: R) {
        if let State::Connected { reports, .. } = &self.state {
            // A closed stream shows itself in `next`.
            let _ = reports.send(report).await;
        }
    }
}
