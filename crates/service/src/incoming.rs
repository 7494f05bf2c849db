//! New connections of a port. When one cannot be accepted (mostly because the process is out of file
//! descriptors) accepting rests for a moment instead of trying again at once for ever, and says so.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

/// Pause after a connection that could not be accepted.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// Between two lines of the log while that lasts.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// The connections of a port.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    resting: Option<Pin<Box<Sleep>>>,
    warned_at: Option<Instant>,
}

impl Incoming {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, resting: None, warned_at: None }
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
    type Item = io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(resting) = &mut self.resting {
                ready!(resting.as_mut().poll(cx));
                self.resting = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    // Messages are small and answered: none waits for the next.
                    let _ = stream.set_nodelay(true);
                    if self.warned_at.take().is_some() {
                        tracing::info!("accepts connections again");
                    }
                    return Poll::Ready(Some(Ok(stream)));
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
    use tokio_stream::StreamExt as _;

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
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    }
}
