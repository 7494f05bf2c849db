//! The guard in front of gRPC services, and what clients show it.

use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::{Peer, Security};

/// The scheme in front of a token, as RFC 6750 has it.
const SCHEME: &str = "Bearer ";

/// For each method, by its path (`/package.Service/Method`), the roles that may call it. What is not in it
/// nobody may call where anybody is asked.
pub type Callers = &'static [(&'static str, &'static [&'static str])];

/// A layer that lets through what its sender may call.
#[derive(Debug, Clone)]
pub struct Guard {
    security: Security,
    callers: Callers,
}

impl Guard {
    pub(crate) fn new(security: Security, callers: Callers) -> Self {
        Self { security, callers }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        let callers = self.callers.iter().find(|(method, _)| *method == path);
        let callers = callers.map_or(&[][..], |(_, callers)| callers);
        let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::new(None));
        self.security.admit_call(callers, bearer(request.headers()), peer).map_err(|refusal| {
            let code = if refusal.is_of_role() { Code::PermissionDenied } else { Code::Unauthenticated };
            Status::new(code, format!("refused: {refusal}"))
        })
    }
}

/// The token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.strip_prefix(SCHEME)
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a guard.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.guard.check(&request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(ready(Ok(status.into_http()))),
        }
    }
}

/// What a client shows with every call: the token of its role as it is now.
#[derive(Debug, Clone)]
pub struct Credentials(pub(crate) Security);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let value = self.0.own_token().map(|token| MetadataValue::try_from(format!("{SCHEME}{token}")));
        if let Some(Ok(mut value)) = value {
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}
