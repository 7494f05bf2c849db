//! New connections of a port, as many as it may hold (`connections`). When one cannot be accepted (mostly
//! because the process is out of file descriptors) accepting rests for a moment instead of trying again at
//! once for ever, and says so.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

use crate::connections::{Connection, ConnectionLimits, OpenConnections};

/// Pause after a connection that could not be accepted.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// Between two lines of the log while that lasts.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The connections of a port.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    open: OpenConnections,
    resting: Option<Pin<Box<Sleep>>>,
    warned_at: Option<Instant>,
    /// Connections closed at once since that was said last, and when it was.
    turned_away: u64,
    told_at: Option<Instant>,
}

impl Incoming {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self::limited(listener, ConnectionLimits::of_process())
    }

    pub(crate) fn limited(listener: TcpListener, limits: ConnectionLimits) -> Self {
        let open = OpenConnections::new(limits);
        Self { listener, open, resting: None, warned_at: None, turned_away: 0, told_at: None }
    }

    /// A connection that was accepted, unless there are too many: then it is closed, and its peer tries again
    /// later.
    fn admit(&mut self, stream: TcpStream, address: IpAddr) -> Option<Connection> {
        // Messages are small and answered: none waits for the next.
        let _ = stream.set_nodelay(true);
        if self.warned_at.take().is_some() {
            tracing::info!("accepts connections again");
        }
        match self.open.admit(stream, address) {
            Ok(connection) => Some(connection),
            Err(reason) => {
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
            if let Some(resting) = &mut self.resting {
                ready!(resting.as_mut().poll(cx));
                self.resting = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, peer)) => {
                    if let Some(connection) = self.admit(stream, peer.ip()) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => self.rest(&error),
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
        let mut incoming = Incoming::new(listener);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // The next descriptor would have this number.
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(next).unwrap(), hard).unwrap();
        let waited = tokio::time::timeout(3 * ACCEPT_DELAY, incoming.next()).await;
        assert!(waited.is_err() && incoming.resting.is_some(), "it rests");
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let accepted = incoming.next().await.unwrap().unwrap();
        assert_eq!(accepted.connect_info().remote_addr(), Some(client.local_addr().unwrap()));
    }

    fn limits(in_all: usize, silence: Duration) -> ConnectionLimits {
        ConnectionLimits { in_all, per_address: in_all, local: in_all, silence }
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_turned_away_until_one_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Incoming::limited(listener, limits(2, Duration::from_secs(60)));
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
        assert_eq!(accepted.connect_info().remote_addr(), Some(again.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_said_does_not_keep_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Incoming::limited(listener, limits(9, Duration::from_millis(50)));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let error = accepted.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut talker = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        talker.write_all(b"hello").await.unwrap();
        assert_eq!(accepted.read(&mut [0; 8]).await.unwrap(), 5);
        let read = tokio::time::timeout(Duration::from_millis(200), accepted.read_u8()).await;
        assert!(read.is_err(), "who has said something may be silent: {read:?}");
    }
}
