//! OpenEnv's WebSocket, `URL/ws` (<https://github.com/meta-pytorch/OpenEnv>, `env_client.py` and
//! `env_server/http_server.py` in `src/openenv/core`): a connection for each episode, as its server keeps an
//! environment with each.
//!
//! ```text
//! {"type": "reset", "data": {..}}, {"type": "step", "data": ACTION}, {"type": "close"}  -->
//! <--  {"type": "observation", "data": {"observation", "reward", "done"}}
//! <--  {"type": "error", "data": {"message", "code"}}
//! ```
//!
//! A task holds the connection. Between two turns it reads on, so that the server's pings are answered while
//! the policy draws. It ends with the episode, and closes the connection then.
//!
//! Bounds: the time of connecting and of each answer, and the size of an answer.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::{ANSWER_LIMIT_BYTES, Failure, shown};

/// How long the server may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// What OpenEnv's server says that has no environment left.
const CAPACITY_REACHED: &str = "CAPACITY_REACHED";

/// The bytes of a connection, encrypted or not.
trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

type Socket = WebSocketStream<Box<dyn Bytes>>;

/// The connection of an episode.
#[derive(Debug)]
pub(super) struct Connection {
    asks: mpsc::Sender<Ask>,
    url: Arc<str>,
    /// Why the connection is of no use any more, once it is not.
    ended: Arc<OnceLock<String>>,
}

/// A message, and who waits for the answer.
struct Ask {
    message: Value,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Where nobody answers in time, or not as a WebSocket.
    pub(super) async fn open(
        base: &str,
        authorization: Option<&str>,
        most: Duration,
    ) -> Result<Self, Failure> {
        let url: Arc<str> = format!("{}/ws", base.trim_end_matches('/')).into();
        let opened = timeout(most, connect(&url, authorization)).await;
        let socket = match opened {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(failed(&url, &error)),
            Err(_) => return Err(transient(format!("{url}: not connected within {most:?}"))),
        };
        let (asks, inbox) = mpsc::channel(1);
        let ended = Arc::new(OnceLock::new());
        let held = Held { socket, url: Arc::clone(&url), ended: Arc::clone(&ended), timeout: most };
        // It ends with this value, within the timeouts.
        Handle::current().spawn(held.answer(inbox));
        Ok(Self { asks, url, ended })
    }

    /// Sends a message and waits for its answer.
    ///
    /// # Errors
    /// Where the server does not answer in time, says that it cannot, or has closed the connection.
    pub(super) async fn ask(&self, message: Value) -> Result<Value, Failure> {
        let (answer, answered) = oneshot::channel();
        if self.asks.send(Ask { message, answer }).await.is_ok()
            && let Ok(answered) = answered.await
        {
            return answered;
        }
        let why = self.ended.get().map_or("the connection has ended", String::as_str);
        Err(transient(format!("{}: {why}", self.url)))
    }
}

/// The other end of a [`Connection`].
struct Held {
    socket: Socket,
    url: Arc<str>,
    ended: Arc<OnceLock<String>>,
    timeout: Duration,
}

impl Held {
    /// Answers until nobody asks, or the connection breaks.
    async fn answer(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            tokio::select! {
                ask = asks.recv() => {
                    let Some(Ask { message, answer }) = ask else { break };
                    let answered = match timeout(self.timeout, self.exchange(&message)).await {
                        Ok(answered) => answered,
                        Err(_) => {
                            let problem = format!("no answer within {:?}", self.timeout);
                            self.end(&problem);
                            Err(transient(format!("{}: {problem}", self.url)))
                        }
                    };
                    // Who does not wait any more has given up the episode.
                    let _ = answer.send(answered);
                    if self.ended.get().is_some() {
                        return;
                    }
                }
                message = self.socket.next() => match message {
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    // That it has no room for another episode it says without being asked.
                    Some(Ok(Message::Text(text))) => {
                        let said = read(text.as_str()).map(|_| "an observation that nobody asked for".to_owned());
                        return self.end(&said.unwrap_or_else(|failure| failure.detail));
                    }
                    Some(Ok(Message::Binary(_))) => return self.end("bytes that nobody asked for"),
                    Some(Ok(Message::Close(_))) | None => return self.end(CLOSED),
                    Some(Err(error)) => return self.end(&error.to_string()),
                },
            }
        }
        let goodbye = async {
            self.socket.send(Message::text(json!({"type": "close"}).to_string())).await?;
            self.socket.close(None).await?;
            while let Some(Ok(_)) = self.socket.next().await {}
            Ok::<(), Error>(())
        };
        // A server that has gone needs none.
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    fn end(&self, why: &str) {
        let _ = self.ended.set(why.to_owned());
    }

    async fn exchange(&mut self, message: &Value) -> Result<Value, Failure> {
        let answer = match self.exchange_texts(message.to_string()).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.end(CLOSED);
                return Err(transient(format!("{}: {CLOSED}", self.url)));
            }
            Err(error) => {
                self.end(&error.to_string());
                return Err(failed(&self.url, &error));
            }
        };
        read(&answer)
            .map_err(|failure| Failure { detail: format!("{}: {}", self.url, failure.detail), ..failure })
    }

    /// The next message of the server; none where it closes the connection instead.
    async fn exchange_texts(&mut self, message: String) -> Result<Option<String>, Error> {
        self.socket.send(Message::text(message)).await?;
        loop {
            match self.socket.next().await.transpose()? {
                Some(Message::Text(text)) => return Ok(Some(text.as_str().to_owned())),
                Some(Message::Binary(bytes)) => {
                    return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
                }
                Some(Message::Close(_)) | None => return Ok(None),
                Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            }
        }
    }
}

const CLOSED: &str = "the server has closed the connection";

/// What an answer says: the data of an observation.
fn read(answer: &str) -> Result<Value, Failure> {
    let mut message: Value = serde_json::from_str(answer)
        .map_err(|error| lasting(format!("the answer is no JSON: {error}: {}", shown(answer))))?;
    match message["type"].as_str() {
        Some("observation") => Ok(message["data"].take()),
        Some("error") => {
            let code = message["data"]["code"].as_str().unwrap_or("error");
            let said = message["data"]["message"].as_str().unwrap_or_default();
            let detail = format!("{code}: {}", shown(said));
            Err(Failure { detail, transient: code == CAPACITY_REACHED })
        }
        _ => Err(lasting(format!("the answer is no observation: {}", shown(answer)))),
    }
}

fn transient(detail: String) -> Failure {
    Failure { detail, transient: true }
}

fn lasting(detail: String) -> Failure {
    Failure { detail, transient: false }
}

fn failed(url: &str, error: &Error) -> Failure {
    let transient = match error {
        Error::Http(response) => response.status() == 429 || response.status().is_server_error(),
        Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_) => true,
        _ => false,
    };
    Failure { detail: format!("{url}: {error}"), transient }
}

async fn connect(url: &str, authorization: Option<&str>) -> Result<Socket, Error> {
    let mut request = url.into_client_request()?;
    if let Some(authorization) = authorization {
        let value = HeaderValue::from_str(authorization).map_err(io::Error::other)?;
        request.headers_mut().insert("authorization", value);
    }
    let uri = request.uri();
    let is_encrypted = uri.scheme_str() == Some("wss");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let bytes: Box<dyn Bytes> =
        if is_encrypted { Box::new(encrypted(stream, host).await?) } else { Box::new(stream) };
    let most = usize::try_from(ANSWER_LIMIT_BYTES).unwrap_or(usize::MAX);
    let config = WebSocketConfig::default().max_message_size(Some(most)).max_frame_size(Some(most));
    let (socket, _) = client_async_with_config(request, bytes, Some(config)).await?;
    Ok(socket)
}

/// TLS with the certificate authorities that browsers trust.
async fn encrypted(stream: TcpStream, host: String) -> io::Result<impl Bytes> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
