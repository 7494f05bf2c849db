//! `sluice serve`: a model under the OpenAI API.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use openai::{ServeConfig, Served};
use service::security::serve_pages;
use service::{BadInput, CancellationToken, StopSignals};
use tokio::net::TcpListener;

use super::engine_arguments::EngineArguments;
use super::identity::Admission;
use crate::closed_pipe;
use crate::say::say;

/// How long requests that are under way may take to end.
const GRACE_PERIOD: Duration = Duration::from_secs(30);

/// Serves a model: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics. Ctrl-C stops it, the
/// second at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The model's folder.
    #[arg(long)]
    model: PathBuf,
    /// Port; 0 takes any free one, which is printed.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Address to listen on: loopback by default.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    #[command(flatten)]
    admission: Admission,
    #[command(flatten)]
    engine: EngineArguments,
    /// What clients call the model; the name of its folder where this is absent. "policy" is understood, too.
    #[arg(long)]
    served_model_name: Option<String>,
    /// Requests at a time; one more is answered 429.
    #[arg(long, default_value_t = ServeConfig::default().max_concurrent_requests)]
    max_concurrent_requests: usize,
}

/// Runs the command until Ctrl-C or SIGTERM, then until requests that are under way have ended.
///
/// # Errors
/// When the model cannot be used or the port is taken.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { model, port, host, admission, engine, served_model_name, max_concurrent_requests } =
        arguments;
    closed_pipe::init_logging()?;
    let address = SocketAddr::from((host, port));
    let security = admission.security("client", address)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .map_err(|error| BadInput(format!("cannot listen on {address}: {error}; choose another --port")))?;
    let served =
        Served::load(&model, engine.config()).await.map_err(|error| BadInput(format!("{error:#}")))?;
    let config =
        ServeConfig { model_name: served_model_name, max_concurrent_requests, ..ServeConfig::default() };
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(BadInput(problems.join("; ")).into());
    }
    // Before the address is printed: who reads it may stop the server at once.
    let mut stop = StopSignals::listen()?;
    say(&format!("{} is called {:?}", model.display(), served.name(&config)));
    say(&format!("engine: {}", served.summary()));
    println!("http://{}/v1", listener.local_addr()?);
    let token = CancellationToken::new();
    let (router, stopped) = (openai::router(served, config), token.clone().cancelled_owned());
    let serving =
        async { serve_pages(&security, listener, router, &["client"], stopped).await.context("serve HTTP") };
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = stop.next() => token.cancel(),
    }
    // A client that never ends its request must not hold the process.
    let left = tokio::select! {
        ended = serving => return ended,
        () = stop.next() => "told twice to stop".to_owned(),
        () = tokio::time::sleep(GRACE_PERIOD) => format!("requests take longer than {GRACE_PERIOD:?}"),
    };
    eprintln!("{left}: leaving with requests under way");
    Ok(())
}
