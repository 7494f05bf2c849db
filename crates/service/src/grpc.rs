//! gRPC servers and channels with bounds on everything: streams, connections, silence and time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use tower_layer::{Identity, Stack};
use tower_service::Service;

use crate::bind::bind;
use crate::connections::Beginning;
use crate::incoming::Incoming;
use crate::metrics::{self, StreamEnd};
use crate::security::{Callers, Credentials, Dialer, Guard, Security};

/// Concurrent streams of one connection.
const MAX_STREAMS: u32 = 256;
/// A peer that does not answer a ping for this long is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What may lie unread on one stream, and on one connection, before its sender has to wait.
///
/// h2 ends a connection on which small DATA frames lie unread whose overhead, 256 bytes less what each
/// carries, exceeds half of the connection's window. The smallest report takes 15 bytes, so a stream's whole
/// window of them has to cost less than that: a peer that is not read for a while then waits, and is not
/// thrown out.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// The same where weights come in, which are few and large frames.
const CLIENT_STREAM_WINDOW: u32 = 8 << 20;
const CLIENT_CONNECTION_WINDOW: u32 = 64 << 20;
/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a new stream may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of a process whose hello is awaited. One takes about 10 KiB; a member that comes when there are
/// more tries again.
const INTRODUCTIONS_LIMIT: usize = 1024;
static INTRODUCTIONS: Semaphore = Semaphore::const_new(INTRODUCTIONS_LIMIT);

/// How long a server that is done waits for its peers to close their streams.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A server with our bounds, and a guard in front of every service.
pub type Server = tonic::transport::Server<Stack<Guard, Identity>>;
/// The services of such a server.
pub type Router = tonic::transport::server::Router<Stack<Guard, Identity>>;
/// A connection on which every call shows who we are.
pub type Channel = InterceptedService<tonic::transport::Channel, Credentials>;

/// A bound gRPC port.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    security: Security,
    /// The address it is bound to.
    pub address: SocketAddr,
}

impl Listener {
    /// Binds `address`, the value of the configuration key `key`.
    ///
    /// # Errors
    /// Names the key and the address and says what to do.
    pub async fn bind(key: &str, address: SocketAddr, security: &Security) -> anyhow::Result<Self> {
        let (listener, address) = bind(key, address).await?;
        Ok(Self { listener, security: security.clone(), address })
    }

    /// The address that others are told: the advertised one, if any.
    pub fn reachable(&self, advertise: Option<&String>) -> String {
        advertise.cloned().unwrap_or_else(|| self.address.to_string())
    }

    /// The connections, for a server that ends with its task.
    pub fn incoming(self) -> Incoming {
        Incoming::new(self.listener, Beginning::Preface, &self.security)
    }

    /// Serves until `done` is cancelled. A role cancels that when its work is over and not when the process
    /// is told to stop: the drain still needs the streams. Peers that are slow to close theirs are waited for
    /// a moment only.
    ///
    /// # Errors
    /// When connections can no longer be accepted.
    pub async fn serve(self, router: Router, done: CancellationToken) -> anyhow::Result<()> {
        let serving = router.serve_with_incoming_shutdown(self.incoming(), done.clone().cancelled_owned());
        tokio::select! {
            served = serving => served.context("serve gRPC"),
            () = async { done.cancelled().await; tokio::time::sleep(CLOSE_TIMEOUT).await } => Ok(()),
        }
    }
}

/// A server with our bounds, whose methods may be called by the roles in `callers`; add services and serve a
/// [`Listener`].
pub fn server(security: &Security, callers: Callers) -> Server {
    tonic::transport::Server::builder()
        .layer(Guard::new(security.clone(), callers))
        .max_concurrent_streams(MAX_STREAMS)
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(security.connection_age())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true)
}

/// The first message of a member's new stream, which has to come within ten seconds and is awaited of so many
/// streams at most. What comes instead is counted (`rlhf_streams_ended_total`).
///
/// # Errors
/// What the member is told.
pub async fn first_message<M>(messages: &mut Streaming<M>) -> Result<M, Status> {
    // Of a stream that its member gives up nothing is heard here: what waits for it is dropped.
    let mut introduction = Introduction { ended: Some(StreamEnd::NoHello) };
    let Ok(_awaited) = INTRODUCTIONS.try_acquire() else {
        let why = format!("{INTRODUCTIONS_LIMIT} streams have yet to say hello; try again");
        return Err(Status::resource_exhausted(why));
    };
    let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded(format!("no hello within {HELLO_TIMEOUT:?}")))?;
    match first {
        Ok(Some(message)) => {
            introduction.ended = None;
            Ok(message)
        }
        Ok(None) => Err(Status::invalid_argument("the stream ended before a hello")),
        Err(status) => {
            introduction.ended = introduction.ended.map(|silent| match StreamEnd::of(&status) {
                said @ (StreamEnd::TooLarge | StreamEnd::Unreadable) => said,
                _ => silent,
            });
            Err(status)
        }
    }
}

/// Counts a stream that ends before its hello, however it does.
struct Introduction {
    ended: Option<StreamEnd>,
}

impl Drop for Introduction {
    fn drop(&mut self) {
        self.ended.into_iter().for_each(metrics::stream_ended);
    }
}

/// The next message of a member's stream; none when it has closed it. How the stream ends is counted
/// (`rlhf_streams_ended_total`).
///
/// # Errors
/// Why the stream has ended otherwise.
pub async fn next_message<M>(messages: &mut Streaming<M>) -> Result<Option<M>, Status> {
    let next = messages.message().await;
    match &next {
        Ok(Some(_)) => {}
        Ok(None) => metrics::stream_ended(StreamEnd::Closed),
        Err(status) => metrics::stream_ended(StreamEnd::of(status)),
    }
    next
}

impl StreamEnd {
    /// How a stream ended whose next message is this error: tonic's own for messages, h2's reasons for the
    /// rest.
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::OutOfRange => Self::TooLarge,
            Code::Cancelled => Self::Closed,
            Code::Unknown | Code::Unavailable => Self::Lost,
            _ => Self::Unreadable,
        }
    }
}

/// Connects to `host:port`, where this service has to be (a role, or [`crate::security::WEIGHTS`]), and shows
/// on every call who we are.
///
/// # Errors
/// When the address is none, or nobody answers in time.
pub async fn connect(address: &str, service: &'static str, security: &Security) -> anyhow::Result<Channel> {
    let endpoint = endpoint(address)?;
    let connected = if security.tls().is_some() {
        endpoint.connect_with_connector(Dialer { security: security.clone(), service }).await
    } else {
        endpoint.connect().await
    };
    shown(address, connected, security)
}

/// The same over another network than the machine's, in which `dial` reaches a `host:port`: simulations have
/// one.
///
/// # Errors
/// When the address is none, or nobody answers in time.
pub async fn connect_over<F, T>(
    address: &str,
    security: &Security,
    dial: fn(String) -> F,
) -> anyhow::Result<Channel>
where
    F: Future<Output = io::Result<T>> + Send + 'static,
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    shown(address, endpoint(address)?.connect_with_connector(Network(dial)).await, security)
}

/// What reaches addresses.
struct Network<F>(fn(String) -> F);

impl<F, T> Service<Uri> for Network<F>
where
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    type Response = TokioIo<T>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<T>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialling = uri.authority().map(|address| (self.0)(address.to_string()));
        Box::pin(async move {
            let dialling = dialling.ok_or_else(|| io::Error::other("no address"))?;
            Ok(TokioIo::new(dialling.await?))
        })
    }
}

/// An address with our bounds.
fn endpoint(address: &str) -> anyhow::Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .tcp_nodelay(true);
    Ok(endpoint)
}

/// A connection that shows who we are, or why there is none.
fn shown(
    address: &str,
    connected: Result<tonic::transport::Channel, tonic::transport::Error>,
    security: &Security,
) -> anyhow::Result<Channel> {
    let channel =
        connected.map_err(|error| anyhow::anyhow!("cannot reach {address}: {}", root_cause(&error)))?;
    Ok(InterceptedService::new(channel, Credentials(security.clone())))
}

fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}
