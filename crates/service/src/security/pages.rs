//! The guard in front of pages, and their server.
//!
//! Programs show a token as `Authorization: Bearer TOKEN`. A browser is given a page's address with
//! `?token=TOKEN` once and shows a cookie from then on, so that neither the address bar nor a log of
//! addresses keeps the token.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower_service::Service as _;

use super::guard::bearer;
use super::{Peer, Refusal, Security};
use crate::connections::Connection;
use crate::incoming::PageListener;

/// Beginning of the cookie's name; the rest tells runs on one host apart.
const COOKIE_PREFIX: &str = "sluice-";
/// Letters of the token's hash that do.
const COOKIE_LETTERS: usize = 8;
const QUERY_KEY: &str = "token=";
/// How long a connection may wait between an answer and the whole head of its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pages that say no more than that a process lives, and can work.
pub(crate) const PROBES: &[&str] = &["/health", "/ready"];

/// Whom the pages of a port are for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageDoor {
    /// Roles that may see them.
    pub(crate) callers: &'static [&'static str],
    /// Pages for everybody: those that say no more than that the process lives.
    pub(crate) open: &'static [&'static str],
}

#[derive(Debug, Clone)]
struct Guard {
    security: Security,
    door: PageDoor,
    /// Whether the pages are served over TLS.
    is_tls: bool,
}

/// Serves pages to the roles in `callers` until `stop`, and `/health` and `/ready` to everybody.
///
/// # Errors
/// When connections can no longer be accepted.
pub async fn serve_pages(
    security: &Security,
    listener: TcpListener,
    pages: Router,
    callers: &'static [&'static str],
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve(security, listener, pages, PageDoor { callers, open: PROBES }, stop).await
}

pub(crate) async fn serve(
    security: &Security,
    listener: TcpListener,
    pages: Router,
    door: PageDoor,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut listener = PageListener::new(listener, security);
    let guard = Guard { security: security.clone(), door, is_tls: listener.is_tls() };
    // On every route, and on what is none: nobody learns which pages there are.
    let pages = pages.layer(from_fn_with_state(guard, ask));
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    tokio::pin!(stop);
    loop {
        tokio::select! {
            (connection, peer) = listener.accept() => {
                connections.spawn(answer(connection, peer, pages.clone(), &graceful));
            }
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
        }
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// Answers the requests of a connection until its peer closes it, says nothing for too long, or the server is
/// done and the answer under way has been given.
fn answer(
    connection: Connection,
    peer: Peer,
    pages: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    let asked = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let mut pages = pages.clone();
        async move { pages.call(request.map(Body::new)).await }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let served = graceful.watch(server.serve_connection(TokioIo::new(connection), asked));
    async move {
        // A peer that breaks off is nobody's fault here.
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection to the pages ended");
        }
    }
}

async fn ask(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let Guard { security, door, is_tls } = guard;
    if !security.asks() || door.open.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map_or(Peer::new(None), |info| info.0);
    let in_query = in_query(request.uri()).filter(|_| request.method() == Method::GET);
    let shown = bearer(request.headers()).or(in_query).or_else(|| in_cookies(request.headers()));
    match security.admit_page(door.callers, shown, peer, is_tls) {
        Ok(()) => match in_query {
            Some(token) => remember(token, request.uri(), is_tls),
            None => next.run(request).await,
        },
        Err(refusal) => refused(refusal),
    }
}

/// The token in an address. Tokens are letters that need no escapes.
fn in_query(uri: &Uri) -> Option<&str> {
    uri.query()?.split('&').find_map(|part| part.strip_prefix(QUERY_KEY))
}

/// The token in a cookie of ours. The last one counts: of two runs on one host each has its own name.
fn in_cookies(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, token)| *name == cookie_name(token)).map(|(_, token)| token)
}

fn cookie_name(token: &str) -> String {
    let hash = blake3::hash(token.as_bytes()).to_hex();
    format!("{COOKIE_PREFIX}{}", &hash[..COOKIE_LETTERS])
}

/// Gives a browser the cookie and sends it to the same page without the token.
fn remember(token: &str, uri: &Uri, is_tls: bool) -> Response {
    let rest: Vec<&str> =
        uri.query().unwrap_or_default().split('&').filter(|part| !part.starts_with(QUERY_KEY)).collect();
    let rest = rest.join("&");
    // Two slashes at the beginning would name another host.
    let path = format!("/{}", uri.path().trim_start_matches(['/', '\\']));
    let location = if rest.is_empty() { path } else { format!("{path}?{rest}") };
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Strict{secure}", cookie_name(token));
    (StatusCode::SEE_OTHER, [(LOCATION, location), (SET_COOKIE, cookie)]).into_response()
}

/// In the form that clients of the OpenAI API read.
fn refused(refusal: Refusal) -> Response {
    let status = if refusal.is_of_role() { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
    let body =
        serde_json::json!({ "error": { "message": refusal.to_string(), "type": "authentication_error" } });
    let headers = [(CONTENT_TYPE, "application/json"), (WWW_AUTHENTICATE, "Bearer")];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::{Instant, sleep};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_nothing_more_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Router::new().route("/health", get(|| async { "alive" }));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let mut served = JoinSet::new();
        served.spawn(
            async move { serve_pages(&Security::open(), listener, pages, &["observer"], stopped).await },
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = [0; 1024];
        for _ in 0..3 {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let bytes = stream.read(&mut answer).await.unwrap();
            assert!(answer[..bytes].ends_with(b"alive"), "{:?}", String::from_utf8_lossy(&answer[..bytes]));
            // Asked again within the time it stays.
            sleep(HEAD_TIMEOUT / 2).await;
        }
        let asked = Instant::now();
        // The time runs from the last answer on, half of which is over.
        stream.write_all(b"GET /hea").await.unwrap();
        while stream.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {}
        let stayed = asked.elapsed();
        assert!(stayed >= HEAD_TIMEOUT / 2 && stayed < HEAD_TIMEOUT, "{stayed:?}");
        stop.cancel();
        served.join_next().await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn a_token_is_found_where_it_is_shown() {
        let uri: Uri = "/samples?from=3&token=abc&to=4".parse().unwrap();
        assert_eq!(in_query(&uri), Some("abc"));
        let response = remember("abc", &uri, false);
        assert_eq!(response.headers()[LOCATION], "/samples?from=3&to=4");
        let cookie = response.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        let mut headers = HeaderMap::new();
        let pair = cookie.split(';').next().unwrap();
        headers.insert(COOKIE, format!("other=1; sluice-00000000=abc; {pair}").parse().unwrap());
        assert_eq!(in_cookies(&headers), Some("abc"));
        headers.insert(COOKIE, "sluice-00000000=abc".parse().unwrap());
        assert_eq!(in_cookies(&headers), None);
        assert_eq!(remember("abc", &"/?token=abc".parse().unwrap(), false).headers()[LOCATION], "/");
        let evil: Uri = "//evil.example/?token=abc".parse().unwrap();
        assert!(!remember("abc", &evil, true).headers()[LOCATION].to_str().unwrap().starts_with("//"));
    }
}
