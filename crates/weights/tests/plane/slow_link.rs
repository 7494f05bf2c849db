//! A pull over a link that is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Learner, TIMEOUT, order, serve, trained};

/// A link to `target` that carries so many bytes a second towards whoever connects; how often somebody did.
async fn slow_link(links: &mut JoinSet<()>, target: String, rate: usize) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connected) = (listener.local_addr().unwrap().to_string(), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&connected);
    links.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let mut far = TcpStream::connect(&target).await.unwrap();
            open.spawn(async move {
                let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                    (near.split(), far.split());
                let down = async {
                    let mut slice = tokio::time::interval(Duration::from_millis(50));
                    let mut bytes = vec![0; rate / 20];
                    while let Ok(count) = far_read.read(&mut bytes).await
                        && count > 0
                        && near_write.write_all(&bytes[..count]).await.is_ok()
                    {
                        slice.tick().await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
                    () = down => {}
                }
            });
        }
    });
    (address, connected)
}

/// 8.4 MB at 400 kB/s, or at another rate by `SLUICE_LINK_RATE`. Whoever pings meanwhile waits for what lies
/// in the buffers of the connection, and is not to take that for silence.
#[tokio::test]
async fn weights_come_through_a_slow_link_in_one_connection() {
    let rate =
        std::env::var_os("SLUICE_LINK_RATE").map_or(400_000, |text| text.to_str().unwrap().parse().unwrap());
    let mut learner = Learner::start(TIMEOUT);
    let manifest = learner.keep(1).await;
    let (mut serving, mut links) = (JoinSet::new(), JoinSet::new());
    let source = serve(&mut serving, learner.snapshots.clone()).await;
    let (source, connected) = slow_link(&mut links, source, rate).await;
    let (order, _sender, received) = order(manifest.hash(), &source);
    let (begun, mut pulling, mut before) = (Instant::now(), JoinSet::new(), 0);
    pulling.spawn(weights::pull(order));
    let pulled = loop {
        if let Ok(pulled) = tokio::time::timeout(Duration::from_secs(5), pulling.join_next()).await {
            break pulled.unwrap().unwrap().unwrap();
        }
        let now = received.load(Ordering::Relaxed);
        assert!(now > before, "nothing came for 5 s after {now} bytes and {:?}", begun.elapsed());
        before = now;
    };
    assert!(pulled.buffer == trained(1));
    let fastest = Duration::from_secs(manifest.total_bytes() / rate as u64).mul_f64(0.8);
    assert!(begun.elapsed() > fastest, "the link is no slow one: {:?}", begun.elapsed());
    assert_eq!(connected.load(Ordering::Relaxed), 1, "connections");
}
