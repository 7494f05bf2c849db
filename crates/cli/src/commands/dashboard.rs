//! `sluice dashboard`: the page of runs that are over, interrupted or alive, side by side.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use dashboard::{Dashboard, Run, ring_folders};
use service::security::serve_pages;
use service::{BadInput, CancellationToken, StopSignals};
use tokio::net::TcpListener;

use super::identity::Admission;
use crate::closed_pipe;

/// Shows runs in a browser: one, or several laid over each other with the keys in which they differ. Ctrl-C
/// leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Output folders of `sluice run`, or folders of single rings in them.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Port; 0 takes any free one, which is printed.
    #[arg(long, default_value_t = 7780)]
    port: u16,
    /// Address to listen on. The page shows logs and samples: loopback by default.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    #[command(flatten)]
    admission: Admission,
}

/// Serves the page until Ctrl-C or SIGTERM.
///
/// # Errors
/// When a folder is no run or the port is taken.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { runs, port, host, admission } = arguments;
    closed_pipe::init_logging()?;
    let mut shown = Vec::new();
    for output in &runs {
        // A recipe with several rings shows all of them; without any the folder itself may be one.
        let rings: Vec<Run> =
            ring_folders(output).iter().filter_map(|ring| Run::of_folder(ring).ok()).collect();
        if rings.is_empty() {
            shown.push(Run::of_folder(output).map_err(|error| BadInput(error.to_string()))?);
        }
        shown.extend(rings);
    }
    let count = shown.len();
    let address = SocketAddr::from((host, port));
    let security = admission.security("observer", address)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .map_err(|error| BadInput(format!("cannot listen on {address}: {error}; choose another --port")))?;
    let token = CancellationToken::new();
    let page = Dashboard::new(shown, coordinator::step_fields(), token.clone()).routes();
    let mut stop = StopSignals::listen()?;
    eprintln!("http://{} shows {} run(s); Ctrl-C leaves", listener.local_addr()?, count);
    let stopped = async move {
        stop.next().await;
        token.cancel();
    };
    let served = serve_pages(&security, listener, page, &["observer", "operator"], stopped);
    served.await.context("serve the page")
}
