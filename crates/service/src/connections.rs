//! How many connections a port holds, in all and from one address, and how long one may be silent at its
//! beginning. Whoever floods a port then keeps out the addresses that it comes from, and no others, and the
//! process keeps descriptors for its files.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// The most connections of a port, where the descriptors suffice.
const MOST_IN_ALL: usize = 16_384;
/// The most from another machine: a whole node of processes, not a cluster.
const MOST_PER_ADDRESS: usize = 1_024;
/// Descriptors that are left for everything but connections: this many, or an eighth.
const SPARED_DESCRIPTORS: usize = 64;
/// What has said nothing by then is no peer of ours.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections a port may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    pub(crate) in_all: usize,
    pub(crate) per_address: usize,
    /// How many from this machine.
    pub(crate) local: usize,
    pub(crate) silence: Duration,
}

impl ConnectionLimits {
    /// As many as the process has descriptors for.
    pub(crate) fn of_process() -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let spared = SPARED_DESCRIPTORS.max(descriptors / 8);
        let in_all = descriptors.saturating_sub(spared).clamp(1, MOST_IN_ALL);
        Self { in_all, per_address: MOST_PER_ADDRESS.min(in_all), local: in_all, silence: SILENCE_TIMEOUT }
    }
}

/// The connections that a port holds.
#[derive(Debug, Clone)]
pub(crate) struct OpenConnections {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    in_all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why a connection is closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooMany {
    #[error(
        "{limit} connections are open, which is all that this process can hold; raise the limit of open files (ulimit -n)"
    )]
    InAll { limit: usize },
    #[error("{limit} connections of {address} are open already")]
    OfAddress { address: IpAddr, limit: usize },
}

/// A connection's place among those that may be open.
#[derive(Debug)]
struct Place {
    address: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.in_all -= 1;
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

impl OpenConnections {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Takes a new connection in.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub(crate) fn admit(&self, stream: TcpStream, address: IpAddr) -> Result<Connection, TooMany> {
        let place = self.place(address)?;
        let silent = Some(Box::pin(sleep(self.limits.silence)));
        Ok(Connection { stream, silent, _place: place })
    }

    fn place(&self, address: IpAddr) -> Result<Place, TooMany> {
        let ConnectionLimits { in_all, per_address, local, .. } = self.limits;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.in_all >= in_all {
            return Err(TooMany::InAll { limit: in_all });
        }
        let limit = if address.is_loopback() { local } else { per_address };
        let of_address = counts.by_address.entry(address).or_default();
        if *of_address >= limit {
            return Err(TooMany::OfAddress { address, limit });
        }
        *of_address += 1;
        counts.in_all += 1;
        Ok(Place { address, counts: Arc::clone(&self.counts) })
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Until the peer has said something.
    silent: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.silent = None;
        } else if let Some(silent) = &mut self.silent
            && silent.as_mut().poll(cx).is_ready()
        {
            let problem = "a connection on which nothing is said";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, problem)));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_keeps_nobody_else_out() {
        let limits = ConnectionLimits { in_all: 5, per_address: 2, local: 3, silence: SILENCE_TIMEOUT };
        let open = OpenConnections::new(limits);
        let [flood, other, local] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"].map(|text| text.parse().unwrap());
        let first = open.place(flood).unwrap();
        let _second = open.place(flood).unwrap();
        assert_eq!(open.place(flood).unwrap_err(), TooMany::OfAddress { address: flood, limit: 2 });
        let _other = open.place(other).unwrap();
        let _local = [open.place(local).unwrap(), open.place(local).unwrap()];
        assert_eq!(open.place(other).unwrap_err(), TooMany::InAll { limit: 5 });
        drop(first);
        let _third = open.place(flood).unwrap();
        assert_eq!(open.counts.lock().unwrap().by_address.len(), 3);
    }

    #[test]
    fn the_process_keeps_descriptors_for_its_files() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let limits = ConnectionLimits::of_process();
        assert!(limits.in_all >= 1 && (limits.in_all as u64) < soft, "{limits:?}");
    }
}
