//! A stream to another process: opened, watched, and opened again after growing pauses.
//!
//! Every member has one to the coordinator, every actor one to each reward server. Reports go up, commands
//! come down; the role translates both. A stream that the other side ends because this process cannot take
//! part ([`is_final`]) is not worth opening again. When there was no stream for longer than a timeout the
//! link gives up, so that no process waits for ever.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::backoff::Backoff;
use crate::coordinator_term::CoordinatorTerm;
use crate::grpc::{Channel, connect};
use crate::origin::Origin;
use crate::security::Security;

/// Reports that may wait for the stream.
const REPORT_CAPACITY: usize = 1024;
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(50);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// How long the other side may take to answer the opening of a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may refuse what we show of ourselves: while tokens are exchanged it may for a
/// moment.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(30);

/// The opening of a stream under way.
pub type Opening<C> = Pin<Box<dyn Future<Output = Result<Response<Streaming<C>>, Status>> + Send>>;
/// Opens a stream of reports `R` on a channel.
pub type Open<R, C> = fn(Channel, Request<ReceiverStream<R>>) -> Opening<C>;

/// A connection under way.
pub type Connecting = Pin<Box<dyn Future<Output = anyhow::Result<Channel>> + Send>>;
/// Connects to `host:port`, where a service (a role) has to be.
pub type Connect = fn(String, &'static str, Security) -> Connecting;

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
    /// There was no stream for longer than the timeout.
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
    /// What has to be there.
    service: &'static str,
    security: Security,
    open: Open<R, C>,
    connect: Connect,
    state: State<R, C>,
    backoff: Backoff,
    /// Since when there has been no stream.
    away_since: Instant,
    /// Since when the other side has refused what we show of ourselves.
    unknown_since: Option<Instant>,
    /// How long there may be none; for ever where its owner drops the link by itself.
    timeout: Option<Duration>,
    /// The latest coordinator that was at the other end, if one was.
    term: Option<CoordinatorTerm>,
}

impl<R: Send + 'static, C: Send + 'static> Link<R, C> {
    /// A link to a service (a role) at `host:port` that connects at once and gives up after `timeout` without
    /// a stream.
    pub fn new(
        address: String,
        service: &'static str,
        security: Security,
        open: Open<R, C>,
        timeout: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        let backoff = Backoff::new(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        Self {
            address,
            service,
            security,
            open,
            connect: |address, service, security| {
                Box::pin(async move { connect(&address, service, &security).await })
            },
            state: State::Pausing(now),
            backoff,
            away_since: now,
            unknown_since: None,
            timeout,
            term: None,
        }
    }

    /// The same link over another network than the machine's: simulations have one.
    #[must_use]
    pub fn over(self, connect: Connect) -> Self {
        Self { connect, ..self }
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
                Ok(None) => self.broke("closed by the other side".to_owned()),
                Err(status) if is_final(&status) => self.refused(&status),
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

    /// Who comes back all the same comes after a pause.
    fn refused<D>(&mut self, status: &Status) -> LinkEvent<D> {
        let reason = status.message().to_owned();
        match self.broke::<D>(reason.clone()) {
            LinkEvent::GaveUp(reason) => LinkEvent::GaveUp(reason),
            _ => LinkEvent::Refused(reason),
        }
    }

    fn pause<D>(&mut self, reason: String) -> LinkEvent<D> {
        self.state = State::Pausing(Instant::now() + self.backoff.next_pause());
        match self.timeout {
            Some(timeout) if self.away_since.elapsed() > timeout => {
                LinkEvent::GaveUp(format!("nobody at {} for {timeout:?}: {reason}", self.address))
            }
            _ => LinkEvent::Lost(reason),
        }
    }

    /// Opens a stream with `hello` as its first report. Yields what went wrong, if anything did.
    pub async fn connect<D>(&mut self, hello: R) -> Option<LinkEvent<D>> {
        let connecting = (self.connect)(self.address.clone(), self.service, self.security.clone());
        let channel = match connecting.await {
            Ok(channel) => channel,
            Err(error) => return Some(self.pause(format!("{error:#}"))),
        };
        let (reports, outgoing) = mpsc::channel(REPORT_CAPACITY);
        // The channel is new and has room.
        let _ = reports.try_send(hello);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        Origin::write(request.metadata_mut());
        if let Some(term) = &self.term {
            term.write(request.metadata_mut());
        }
        let opening = (self.open)(channel, request);
        let Ok(opened) = tokio::time::timeout(OPEN_TIMEOUT, opening).await else {
            return Some(self.pause(format!("no answer within {OPEN_TIMEOUT:?}")));
        };
        match opened {
            Ok(commands) => {
                if let Some(reason) = self.learn_term(CoordinatorTerm::read(commands.metadata())) {
                    return Some(self.pause(reason));
                }
                self.state = State::Connected { reports, commands: Box::new(commands.into_inner()) };
                self.unknown_since = None;
                None
            }
            Err(status) if is_final(&status) || self.stays_unknown(&status) => Some(self.refused(&status)),
            Err(status) => Some(self.pause(status.message().to_owned())),
        }
    }

    /// Whether the other side has refused what we show of ourselves for so long that it is no exchange of
    /// tokens.
    fn stays_unknown(&mut self, status: &Status) -> bool {
        if !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            return false;
        }
        self.unknown_since.get_or_insert_with(Instant::now).elapsed() > IDENTITY_TIMEOUT
    }

    /// Remembers which coordinator is at the other end; yields why it is not to be believed, if it is not.
    fn learn_term(&mut self, found: Option<CoordinatorTerm>) -> Option<String> {
        match (&self.term, found) {
            (Some(known), Some(found)) if found.is_before(known) => {
                let Self { address, .. } = self;
                return Some(format!(
                    "{found} is at {address}, but {known} has taken its place: stop the old one"
                ));
            }
            (_, found @ Some(_)) => self.term = found,
            (_, None) => {}
        }
        None
    }

    /// Where reports go while a stream is open, for a role that waits for room without keeping the link from
    /// reading.
    pub fn reports(&self) -> Option<mpsc::Sender<R>> {
        match &self.state {
            State::Connected { reports, .. } => Some(reports.clone()),
            State::Pausing(_) => None,
        }
    }

    /// Closes the stream and gives the other side this long to close its half.
    pub async fn close(self, timeout: Duration) {
        if let State::Connected { reports, mut commands } = self.state {
            drop(reports);
            let _ = tokio::time::timeout(timeout, commands.message()).await;
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

/// Whether coming back is of no use: this process cannot take part, or speaks another protocol.
fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(term: u64) -> Option<CoordinatorTerm> {
        Some(CoordinatorTerm { run: "a".to_owned(), term })
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_unknown_gives_up_and_who_is_known_again_does_not() {
        let open: Open<(), ()> = |_, _| Box::pin(async { Err(Status::unavailable("nobody")) });
        let mut link = Link::new("host:1".to_owned(), "coordinator", Security::open(), open, None);
        assert!(!link.stays_unknown(&Status::unauthenticated("no token")));
        tokio::time::advance(IDENTITY_TIMEOUT / 2).await;
        assert!(!link.stays_unknown(&Status::permission_denied("another role")));
        tokio::time::advance(IDENTITY_TIMEOUT).await;
        assert!(!link.stays_unknown(&Status::unavailable("away")));
        assert!(link.stays_unknown(&Status::unauthenticated("no token")));
    }

    #[test]
    fn a_coordinator_of_the_past_is_not_believed() {
        let open: Open<(), ()> = |_, _| Box::pin(async { Err(Status::unavailable("nobody")) });
        let mut link = Link::new("host:1".to_owned(), "coordinator", Security::open(), open, None);
        assert_eq!(link.learn_term(None), None, "who has no terms is no coordinator");
        assert_eq!(link.learn_term(of(2)), None);
        assert_eq!(link.learn_term(of(2)), None);
        assert_eq!(link.learn_term(of(3)), None);
        let said = link.learn_term(of(2)).unwrap();
        assert_eq!(
            said,
            "coordinator 2 of run a is at host:1, but coordinator 3 of run a has taken its place: stop the old one"
        );
        assert_eq!(link.term, of(3));
    }
}
