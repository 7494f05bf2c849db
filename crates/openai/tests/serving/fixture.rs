//! A small model behind a socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::EngineConfig;
use model::tokenizer::train_bpe;
use model::{Architecture, Dimensions, ModelConfig, SaveOptions, SpecialTokens, Weights};
use openai::{ServeConfig, Served};
use serde_json::Value;
use tch::{Device, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A configuration for a small model.
pub(crate) fn small_config() -> EngineConfig {
    EngineConfig { threads: 2, max_sequences: Some(8), kv_cache_blocks: Some(256), ..EngineConfig::default() }
}

/// A folder of a model of a few thousand parameters, with a tokenizer and a chat template.
fn folder(parent: &Path) -> PathBuf {
    let dimensions = Dimensions {
        vocab_size: 300,
        hidden_size: 32,
        intermediate_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_positions: 256,
    };
    let mut model = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    model.initializer_range = 0.3;
    model.eos_token_ids = vec![256];
    let weights = Weights::random(&model, 11, Kind::Float, Device::Cpu);
    let path = parent.join("model");
    model::folder::save(&path, &model, &weights, &SaveOptions::default()).unwrap();
    let texts = ["the quick brown fox jumps over the lazy dog; then the other quick brown fox jumps"; 8];
    let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    train_bpe(texts.iter(), 300, &special).unwrap().save(&path, Some(template)).unwrap();
    path
}

/// A server that lives as long as this.
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    _task: JoinSet<anyhow::Result<()>>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of server-sent events; the last has to be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Server {
    pub(crate) async fn start(config: ServeConfig) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let model = folder(parent.path());
        Self::of(parent, &model, config).await
    }

    /// A server of the model in a folder of `parent`.
    pub(crate) async fn of(parent: tempfile::TempDir, model: &Path, config: ServeConfig) -> Self {
        let engine = EngineConfig { max_waiting: 2000, ..small_config() };
        let served = Served::load(model, engine).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(openai::run(listener, openai::router(served, config), std::future::pending()));
        Self { address, folder: parent, _task: task }
    }

    pub(crate) async fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut text = Vec::new();
        self.open(method, path, body).await.read_to_end(&mut text).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Reply { status, body: if chunked { unchunk(body) } else { body.to_owned() } }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path, &body.to_string()).await
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}
