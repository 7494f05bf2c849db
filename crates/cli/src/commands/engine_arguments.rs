//! The arguments of commands that run a model through the rollout engine.

use std::path::Path;

use engine::generate::Generator;
use engine::{Device, EngineConfig};
use service::BadInput;
use types::DType;

/// Where a model runs and with how much.
#[derive(Debug, clap::Args)]
pub(crate) struct EngineArguments {
    /// Element type of weights and cache: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    dtype: DType,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of the network; one for each core where not given.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Most responses at a time.
    #[arg(long, default_value_t = EngineConfig::default().max_sequences)]
    max_sequences: usize,
}

impl EngineArguments {
    /// As the engine takes them.
    pub(crate) fn config(&self) -> EngineConfig {
        let Self { dtype, device, threads, max_sequences } = *self;
        EngineConfig { device, dtype, threads, max_sequences, ..EngineConfig::default() }
    }

    /// A model that draws responses.
    ///
    /// # Errors
    /// Names what of its folder, or of these arguments, cannot be used.
    pub(crate) fn generator(&self, model: &Path) -> Result<Generator, BadInput> {
        Generator::load(model, &self.config()).map_err(|error| BadInput(format!("{error:#}")))
    }
}

/// An element type by its usual name.
pub(super) fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        "f16" => Ok(DType::F16),
        _ => Err(format!("{text:?} must be f32, bf16 or f16")),
    }
}
