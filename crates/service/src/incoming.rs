//! New connections of a port, as many as it may hold (`connections`). When one cannot be accepted (mostly
//! because the process is out of file descriptors) accepting rests for a moment instead of trying again at
//! once for ever, and says so.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::{Stream, StreamExt as _};

use crate::connections::{Beginning, Connection, ConnectionLimits, OpenConnections, Place};
use crate::metrics::Reason;
use crate::security::{Peer, Roles, Security};

/// Pause after a connection that could not be accepted.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// Between two lines of the log while that lasts.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The connections of a port.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    beginning: Beginning,
    security: Security,
    /// Whether connections are TLS: calls wherever there are certificates, pages where other machines reach
    /// them.
    is_tls: bool,
    /// Connections whose two sides are about to show their certificates.
    handshakes: JoinSet<Option<Connection>>,
    open: OpenConnections,
    resting: Option<Pin<Box<Sleep>>>,
    warned_at: Option<Instant>,
    /// Connections closed at once since that was said last, and when it was.
    turned_away: u64,
    told_at: Option<Instant>,
}

impl Incoming {
    pub(crate) fn new(listener: TcpListener, beginning: Beginning, security: &Security) -> Self {
        let limits = ConnectionLimits::of_process(security.connections_per_address());
        Self::limited(listener, beginning, security, limits)
    }

    pub(crate) fn limited(
        listener: TcpListener,
        beginning: Beginning,
        security: &Security,
        limits: ConnectionLimits,
    ) -> Self {
        let open = OpenConnections::of_process(limits, security.clone());
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        let is_tls = security.tls().is_some() && !(is_local && beginning == Beginning::Head);
        Self {
            listener,
            beginning,
            security: security.clone(),
            is_tls,
            handshakes: JoinSet::new(),
            open,
            resting: None,
            warned_at: None,
            turned_away: 0,
            told_at: None,
        }
    }

    /// A connection that was accepted, unless there are too many: then it is closed, and its peer tries again
    /// later.
    fn admit(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        // Messages are small and answered: none waits for the next.
        let _ = stream.set_nodelay(true);
        if self.warned_at.take().is_some() {
            tracing::info!("accepts connections again");
        }
        match self.open.place(address.ip()) {
            Ok(place) => {
                let peer = Peer::new(Some(address));
                if !self.is_tls {
                    let (open, stream) = (&self.open, Box::new(stream));
                    return Some(Connection::new(stream, peer, self.beginning, place, open));
                }
                let handshake = Handshake {
                    peer,
                    place,
                    beginning: self.beginning,
                    security: self.security.clone(),
                    open: self.open.clone(),
                };
                self.handshakes.spawn(handshake.with(stream));
                None
            }
            Err(reason) => {
                self.security.turned_away(Reason::TooMany);
                self.turned_away += 1;
                if self.told_at.is_none_or(|moment| moment.elapsed() >= WARN_INTERVAL) {
                    self.told_at = Some(Instant::now());
                    tracing::warn!(%address, %reason, turned_away = self.turned_away, "connections turned away");
                    self.turned_away = 0;
                }
                None
            }
        }
    }

    fn rest(&mut self, error: &io::Error) {
        self.resting = Some(Box::pin(sleep(ACCEPT_DELAY)));
        if self.warned_at.is_none_or(|moment| moment.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(%error, "cannot accept connections; raise the limit of open files (ulimit -n)");
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Pending, or none: then there is nothing to wait for.
            while let Poll::Ready(Some(shaken)) = self.handshakes.poll_join_next(cx) {
                if let Ok(Some(connection)) = shaken {
                    return Poll::Ready(Some(Ok(connection)));
                }
            }
            if let Some(resting) = &mut self.resting {
                ready!(resting.as_mut().poll(cx));
                self.resting = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, peer)) => {
                    if let Some(connection) = self.admit(stream, peer) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => self.rest(&error),
            }
        }
    }
}

/// A connection whose two sides are about to show their certificates.
struct Handshake {
    peer: Peer,
    place: Place,
    beginning: Beginning,
    security: Security,
    open: OpenConnections,
}

impl Handshake {
    /// The connection; none when it did not come to one, which is counted and said.
    async fn with(self, stream: TcpStream) -> Option<Connection> {
        let Self { peer, place, beginning, security, open } = self;
        let tls = security.tls()?;
        let acceptor = if beginning == Beginning::Preface { tls.calls } else { tls.pages };
        let shaken = tokio::time::timeout(open.limits().begin, acceptor.accept(stream)).await;
        match shaken {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = peer.with_roles(shown.map(Roles::of));
                Some(Connection::new(Box::new(stream), peer, beginning, place, &open))
            }
            Ok(Err(error)) => {
                security.refused(Reason::Handshake, &error, peer);
                None
            }
            Err(_) => {
                security.refused(Reason::Silent, &"a connection that did not begin in time", peer);
                None
            }
        }
    }
}

/// The connections of a port of pages.
#[derive(Debug)]
pub(crate) struct PageListener(Incoming);

impl PageListener {
    pub(crate) fn new(listener: TcpListener, security: &Security) -> Self {
        Self(Incoming::new(listener, Beginning::Head, security))
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.0.is_tls
    }

    /// The next connection, and where it comes from.
    pub(crate) async fn accept(&mut self) -> (Connection, Peer) {
        loop {
            if let Some(Ok(connection)) = self.0.next().await {
                let peer = connection.peer();
                return (connection, peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;
    use tonic::transport::server::Connected as _;

    use super::*;

    #[tokio::test]
    async fn out_of_descriptors_it_rests_and_goes_on_when_there_are_some() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = Incoming::new(listener, Beginning::Preface, &Security::open());
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // The next descriptor would have this number.
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(next).unwrap(), hard).unwrap();
        let waited = tokio::time::timeout(3 * ACCEPT_DELAY, incoming.next()).await;
        assert!(waited.is_err() && incoming.resting.is_some(), "it rests");
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let accepted = incoming.next().await.unwrap().unwrap();
        assert_eq!(accepted.connect_info(), Peer::new(Some(client.local_addr().unwrap())));
    }

    fn limited(listener: TcpListener, in_all: usize, begin: Duration) -> Incoming {
        let limits = ConnectionLimits { in_all, per_address: in_all, local: in_all, begin };
        Incoming::limited(listener, Beginning::Preface, &Security::open(), limits)
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_turned_away_until_one_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = limited(listener, 2, Duration::from_secs(60));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = incoming.next().await.unwrap().unwrap();
        let _second = incoming.next().await.unwrap().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(200), incoming.next()).await;
        assert!(waited.is_err(), "two places");
        assert_eq!(clients[2].read(&mut [0; 8]).await.unwrap_or(0), 0, "the third is closed");
        drop(first);
        let again = TcpStream::connect(address).await.unwrap();
        let accepted = incoming.next().await.unwrap().unwrap();
        assert_eq!(accepted.connect_info(), Peer::new(Some(again.local_addr().unwrap())));
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_said_does_not_keep_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = limited(listener, 9, Duration::from_millis(100));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let error = accepted.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut talker = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        talker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        assert_eq!(accepted.read(&mut [0; 64]).await.unwrap(), 24);
        let read = tokio::time::timeout(Duration::from_millis(300), accepted.read_u8()).await;
        assert!(read.is_err(), "who has begun may be silent: {read:?}");
        let mut slow = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        slow.write_all(b"PRI * HTTP/2").await.unwrap();
        assert_eq!(accepted.read(&mut [0; 64]).await.unwrap(), 12);
        let error = accepted.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "half a beginning is none");
        let mut other = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(accepted.read(&mut [0; 64]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
