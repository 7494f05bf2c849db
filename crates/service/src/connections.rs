//! How many connections a process holds, on all its ports and on one of them from one address, and how long
//! one may take to begin as one of ours does. Whoever floods a port then keeps out the addresses that it
//! comes from, and no others, and the process keeps descriptors for its files.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::metrics::Reason;
use crate::security::{Peer, Security};

/// The most connections of a process, where the descriptors suffice.
const MOST_IN_ALL: usize = 16_384;
/// Descriptors that are left for everything but connections: this many, or an eighth.
const SPARED_DESCRIPTORS: usize = 64;
/// What has not begun by then is no peer of ours.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(4);
/// What a connection of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a request of HTTP/1 has behind its head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// The connections of the process: descriptors are its own, not a port's.
static IN_PROCESS: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    /// On all ports.
    pub(crate) in_all: usize,
    /// On one port from one other machine.
    pub(crate) per_address: usize,
    /// How many from this machine.
    pub(crate) local: usize,
    pub(crate) begin: Duration,
}

/// How a connection has to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// With the preface of HTTP/2.
    Preface,
    /// With the whole head of a request.
    Head,
}

impl ConnectionLimits {
    /// As many as the process has descriptors for, and from one other machine so many at most, but never more
    /// than half: with few descriptors one machine would take all.
    pub(crate) fn of_process(per_address: usize) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let spared = SPARED_DESCRIPTORS.max(descriptors / 8);
        let in_all = descriptors.saturating_sub(spared).clamp(1, MOST_IN_ALL);
        let per_address = per_address.min((in_all / 2).max(1));
        Self { in_all, per_address, local: in_all, begin: BEGIN_TIMEOUT }
    }
}

/// The connections that a port holds.
#[derive(Debug, Clone)]
pub(crate) struct OpenConnections {
    limits: ConnectionLimits,
    security: Security,
    in_all: Arc<AtomicUsize>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
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
pub(crate) struct Place {
    address: IpAddr,
    in_all: Arc<AtomicUsize>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_all.fetch_sub(1, Ordering::Relaxed);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl OpenConnections {
    /// Those of a port, which are among those of the process.
    pub(crate) fn of_process(limits: ConnectionLimits, security: Security) -> Self {
        Self::among(Arc::clone(&IN_PROCESS), limits, security)
    }

    fn among(in_all: Arc<AtomicUsize>, limits: ConnectionLimits, security: Security) -> Self {
        Self { limits, security, in_all, by_address: Arc::default() }
    }

    /// The limits.
    pub(crate) fn limits(&self) -> ConnectionLimits {
        self.limits
    }

    /// A place for a new connection.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub(crate) fn place(&self, address: IpAddr) -> Result<Place, TooMany> {
        let ConnectionLimits { in_all, per_address, local, .. } = self.limits;
        let limit = if address.is_loopback() { local } else { per_address };
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        // Another port may take a place at the same moment: it is taken first and given back.
        if self.in_all.fetch_add(1, Ordering::Relaxed) >= in_all {
            self.in_all.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany::InAll { limit: in_all });
        }
        let of_address = by_address.entry(address).or_default();
        if *of_address >= limit {
            self.in_all.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany::OfAddress { address, limit });
        }
        *of_address += 1;
        let (in_all, by_address) = (Arc::clone(&self.in_all), Arc::clone(&self.by_address));
        Ok(Place { address, in_all, by_address })
    }
}

/// What a connection's bytes go over.
pub(crate) trait Wire: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send> Wire for T {}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: Box<dyn Wire>,
    peer: Peer,
    security: Security,
    /// Until the connection has begun.
    begin: Option<Begin>,
    _place: Place,
}

/// A connection that has not begun yet.
#[derive(Debug)]
struct Begin {
    beginning: Beginning,
    /// Bytes of what has to come that have.
    matched: usize,
    deadline: Pin<Box<Sleep>>,
}

/// What a connection has come to with some bytes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Yes,
    NotYet,
    /// It is no connection of this kind.
    Otherwise,
}

impl Begin {
    fn take(&mut self, bytes: &[u8]) -> Begun {
        for byte in bytes {
            let (wanted, restart) = match self.beginning {
                Beginning::Preface => (PREFACE, false),
                Beginning::Head => (HEAD_END, true),
            };
            if *byte == wanted[self.matched] {
                self.matched += 1;
            } else if restart {
                self.matched = usize::from(*byte == wanted[0]);
            } else {
                return Begun::Otherwise;
            }
            if self.matched == wanted.len() {
                return Begun::Yes;
            }
        }
        Begun::NotYet
    }
}

impl Connection {
    /// A connection that has yet to begin.
    pub(crate) fn new(
        stream: Box<dyn Wire>,
        peer: Peer,
        beginning: Beginning,
        place: Place,
        open: &OpenConnections,
    ) -> Self {
        let begin = Begin { beginning, matched: 0, deadline: Box::pin(sleep(open.limits.begin)) };
        Self { stream, peer, security: open.security.clone(), begin: Some(begin), _place: place }
    }

    /// Where it comes from.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    fn refuse(&self, reason: Reason, why: &'static str, kind: io::ErrorKind) -> io::Error {
        self.security.refused(reason, &why, self.peer);
        io::Error::new(kind, why)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some(begin) = &mut self.begin else { return read };
        let begun = match &read {
            Poll::Ready(Ok(())) => begin.take(&buffer.filled()[before..]),
            Poll::Ready(Err(_)) | Poll::Pending => Begun::NotYet,
        };
        match begun {
            Begun::Yes => self.begin = None,
            Begun::NotYet if begin.deadline.as_mut().poll(cx).is_ready() => {
                let why = "a connection that did not begin in time";
                return Poll::Ready(Err(self.refuse(Reason::Silent, why, io::ErrorKind::TimedOut)));
            }
            Begun::NotYet => {}
            Begun::Otherwise => {
                let why = "a connection that does not begin as HTTP/2 does";
                return Poll::Ready(Err(self.refuse(Reason::OtherProtocol, why, io::ErrorKind::InvalidData)));
            }
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
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_keeps_nobody_else_out() {
        let limits = ConnectionLimits { in_all: 5, per_address: 2, local: 3, begin: BEGIN_TIMEOUT };
        let in_all = Arc::default();
        let open = OpenConnections::among(Arc::clone(&in_all), limits, Security::open());
        let [flood, other, local] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"].map(|text| text.parse().unwrap());
        let first = open.place(flood).unwrap();
        let _second = open.place(flood).unwrap();
        assert_eq!(open.place(flood).unwrap_err(), TooMany::OfAddress { address: flood, limit: 2 });
        let _other = open.place(other).unwrap();
        // On another port of the process.
        let pages = OpenConnections::among(in_all, limits, Security::open());
        let _local = [pages.place(local).unwrap(), open.place(local).unwrap()];
        assert_eq!(open.place(other).unwrap_err(), TooMany::InAll { limit: 5 });
        drop(first);
        let _third = open.place(flood).unwrap();
        assert_eq!(pages.place(flood).unwrap_err(), TooMany::InAll { limit: 5 });
        assert_eq!(open.by_address.lock().unwrap().len(), 3);
        assert_eq!(pages.by_address.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_connection_begins_in_any_pieces_and_in_no_other_way() {
        let begin = |beginning| Begin { beginning, matched: 0, deadline: Box::pin(sleep(BEGIN_TIMEOUT)) };
        let taken = |beginning, pieces: &[&[u8]]| {
            let mut begin = begin(beginning);
            pieces.iter().map(|piece| begin.take(piece)).collect::<Vec<_>>()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _guard = runtime.enter();
        let (yes, not_yet, otherwise) = (Begun::Yes, Begun::NotYet, Begun::Otherwise);
        assert_eq!(taken(Beginning::Preface, &[&PREFACE[..7], &PREFACE[7..]]), [not_yet, yes]);
        let with_more = [PREFACE, b"more"].concat();
        assert_eq!(taken(Beginning::Preface, &[&with_more]), [yes]);
        for other in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"PRI * HTTP/3"] {
            assert_eq!(taken(Beginning::Preface, &[other]), [otherwise]);
        }
        assert_eq!(taken(Beginning::Head, &[b"GET / HTTP/1.1\r\nHost: x\r", b"\n\r\n"]), [not_yet, yes]);
        assert_eq!(taken(Beginning::Head, &[b"GET / HTTP/1.1\r\nHost: x\r\n"]), [not_yet]);
        assert_eq!(taken(Beginning::Head, &[b"\r\r\n\r\n"]), [yes], "a mark that begins anew");
    }

    #[test]
    fn the_process_keeps_descriptors_for_its_files() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let limits = ConnectionLimits::of_process(7);
        assert_eq!((limits.per_address, limits.local), (7, limits.in_all));
        assert!(limits.in_all >= 1 && (limits.in_all as u64) < soft, "{limits:?}");
    }
}
