//! Connections of the simulated network, as server and client want them.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, stream};
use service::{Connecting, Link, Open, Security};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 7700;

/// An accepted connection.
pub(super) struct Wire(TcpStream);

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What comes to the coordinator's port.
pub(super) async fn incoming() -> io::Result<impl Stream<Item = io::Result<Wire>> + Send> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    Ok(stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Wire(stream));
        Some((accepted, listener))
    }))
}

/// A member's link to the coordinator, which is not given up.
pub(super) fn link<R: Send + 'static, C: Send + 'static>(open: Open<R, C>) -> Link<R, C> {
    let address = format!("coordinator:{PORT}");
    Link::new(address, "coordinator", Security::open(), open, None).over(connect)
}

fn connect(address: String, _: &'static str, security: Security) -> Connecting {
    Box::pin(
        async move { service::grpc::connect_over(&address, &security, TcpStream::connect::<String>).await },
    )
}
