//! One HTTP/1.1 call, on a connection of its own: dropping the future closes the connection, which is how
//! both servers learn that nobody waits for an answer any more.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer: log-probs of a million tokens.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Most characters of an error page that are passed on.
const MAX_SAID_CHARS: usize = 300;

/// Why a call brought no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody accepts the connection, or it broke: the server may have been started again.
    #[error("{path}: {source}")]
    Lost { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The server has the request and does not answer.
    #[error("{path}: no answer within {within:?}")]
    Late { path: String, within: Duration },
    /// The server refuses.
    #[error("{path}: HTTP {code}: {said}")]
    Status { path: String, code: u16, said: String },
    /// The answer is not what the protocol says.
    #[error("{path}: {problem}")]
    Answer { path: String, problem: String },
}

impl CallError {
    /// Whether the same call may be answered later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Status { code, .. } => *code >= 500 || *code == 429,
            Self::Lost { .. } | Self::Late { .. } | Self::Answer { .. } => true,
        }
    }

    /// As a metric counts it.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "lost",
            Self::Late { .. } => "late",
            Self::Status { .. } => "status",
            Self::Answer { .. } => "answer",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// JSON, or nothing.
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// The connection that it was made on is lost.
    fn lost(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        CallError::Lost { path: self.path.clone(), source: source.into() }
    }
}

/// Where a server answers.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// `host:port`.
    authority: String,
    /// What stands in front of each path.
    prefix: String,
}

impl Server {
    /// That of a URL `http://HOST:PORT[/PREFIX]`.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        let wrong = format!("url is {url:?}, must be http://HOST:PORT");
        let rest = url.strip_prefix("http://").ok_or(wrong.clone())?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let authority: http::uri::Authority = authority.parse().map_err(|_| wrong.clone())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong);
        }
        let port = authority.port_u16().unwrap_or(80);
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self { authority: format!("{}:{port}", authority.host()), prefix })
    }

    /// Calls, and waits so long for the whole answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call(&self, call: &Call, timeout: Duration) -> Result<Bytes, CallError> {
        match tokio::time::timeout(timeout, self.exchange(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Late { path: call.path.clone(), within: timeout }),
        }
    }

    async fn exchange(&self, call: &Call) -> Result<Bytes, CallError> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority));
        let stream = connecting.await.map_err(|late| call.lost(late))?.map_err(|error| call.lost(error))?;
        stream.set_nodelay(true).map_err(|error| call.lost(error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| call.lost(error))?;
        let request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.prefix, call.path))
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(call.body.clone())));
        let request = request.map_err(|error| call.lost(error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| call.lost(error))?;
            let code = response.status();
            let body = whole(response.into_body(), call).await?;
            if code.is_success() {
                return Ok(body);
            }
            let said = String::from_utf8_lossy(&body);
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = said.chars().take(MAX_SAID_CHARS).collect();
            Err(CallError::Status { path: call.path.clone(), code: code.as_u16(), said })
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The connection may end before its last bytes are read from it.
            _ = connection => answer.await,
        }
    }
}

/// The whole body, which is JSON of a bounded length.
async fn whole(body: Incoming, call: &Call) -> Result<Bytes, CallError> {
    let path = call.path.clone();
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let problem = format!("the answer has more than {MAX_ANSWER_BYTES} bytes");
            Err(CallError::Answer { path, problem })
        }
        Err(source) => Err(CallError::Lost { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_a_port_and_a_prefix() {
        let server = Server::new("http://engine.example:8000/a/b/").unwrap();
        assert_eq!((server.authority.as_str(), server.prefix.as_str()), ("engine.example:8000", "/a/b"));
        let server = Server::new("http://[::1]").unwrap();
        assert_eq!((server.authority.as_str(), server.prefix.as_str()), ("[::1]:80", ""));
        for wrong in [
            "",
            "engine:8000",
            "https://engine:8000",
            "http://",
            "http://user:pass@engine:8000",
            "http://a b",
        ] {
            assert!(Server::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_the_caller_did_wrong_is_not_tried_again() {
        let status = |code| CallError::Status { path: String::new(), code, said: String::new() };
        assert!(status(500).may_pass() && status(503).may_pass() && status(429).may_pass());
        assert!(!status(400).may_pass() && !status(404).may_pass() && !status(422).may_pass());
    }
}
