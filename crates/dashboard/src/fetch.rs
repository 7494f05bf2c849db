//! Asking other processes over HTTP, never for long.

use std::time::Duration;

/// Most bytes of an answer.
const PAGE_LIMIT_BYTES: u64 = 4 << 20;

/// An HTTP client with a deadline.
pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(timeout)).build().into()
}

/// The answer to a request, made with a token where the other side asks for one; none when there is none in
/// time.
pub(crate) fn get(agent: &ureq::Agent, url: &str, token: Option<&str>) -> Option<String> {
    let mut request = agent.get(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().ok()?;
    response.body_mut().with_config().limit(PAGE_LIMIT_BYTES).read_to_string().ok()
}
