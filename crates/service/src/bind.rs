//! Binding a port, with errors that say what to do.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::bad_input::BadInput;

/// Binds a TCP port.
///
/// # Errors
/// Names the configuration key, the address and, for a port in use, what to do.
pub async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; another process listens there, perhaps another run: stop it, or use port 0 for any free port",
            std::io::ErrorKind::PermissionDenied => "; use a port above 1023",
            _ => "",
        };
        BadInput(format!("cannot listen on {address} ({key}): {error}{advice}"))
    })?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
