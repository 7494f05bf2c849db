//! Serves a model folder to OpenAI's clients: `serve_folder MODEL_DIR [HOST:PORT]`. Port 0 is any free one;
//! the address is printed.

use std::path::Path;

use anyhow::Context as _;
use engine::EngineConfig;
use openai::{ServeConfig, Served};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: serve_folder MODEL_DIR [HOST:PORT]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let served = Served::load(Path::new(&folder), EngineConfig::default()).await?;
    let listener = TcpListener::bind(&address).await.with_context(|| format!("listen on {address}"))?;
    println!("http://{}/v1", listener.local_addr()?);
    openai::run(listener, openai::router(served, ServeConfig::default()), std::future::pending()).await
}
