//! The arguments of commands that run a model through the rollout engine.

use std::path::Path;

use engine::generate::Generator;
use engine::{Device, EngineConfig};
use service::BadInput;
use types::DType;

use crate::say::say;

/// Where a model runs and with how much. What is not given follows the device.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct EngineArguments {
    /// Element type of weights and cache: f32, bf16 or f16; f32 on the CPU and bf16 on a GPU where not given.
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads of the network; one for each core where not given.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Most responses at a time; 64 on the CPU and 256 on a GPU where not given.
    #[arg(long)]
    max_sequences: Option<usize>,
    /// Bytes of the cache of keys and values; 1 GiB on the CPU and what is free on a GPU where not given.
    #[arg(long)]
    kv_cache_bytes: Option<u64>,
    /// Most prompt tokens of a step; 512 on the CPU and 8192 on a GPU where not given.
    #[arg(long)]
    prefill_chunk_tokens: Option<usize>,
}

impl EngineArguments {
    /// As the engine takes them.
    pub(crate) fn config(&self) -> EngineConfig {
        let Self { dtype, device, threads, max_sequences, kv_cache_bytes, prefill_chunk_tokens } = *self;
        EngineConfig {
            device,
            dtype,
            threads,
            max_sequences,
            kv_cache_bytes,
            prefill_chunk_tokens,
            weights_are_fixed: true,
            ..EngineConfig::default()
        }
    }

    /// A model that draws responses. Says where it runs and with how much.
    ///
    /// # Errors
    /// Names what of its folder, or of these arguments, cannot be used.
    pub(crate) fn generator(&self, model: &Path) -> Result<Generator, BadInput> {
        let loaded = Generator::load(model, &self.config());
        let generator = loaded.map_err(|error| BadInput(format!("{error:#}")))?;
        say(&format!("engine: {}", generator.summary()));
        Ok(generator)
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        engine: EngineArguments,
    }

    #[test]
    fn what_is_said_reaches_the_engine_and_what_is_not_follows_the_device() {
        let config = |arguments: &[&str]| {
            let words = ["x"].iter().chain(arguments);
            Command::try_parse_from(words).map(|command| command.engine.config())
        };
        let said = config(&[
            "--dtype=f16",
            "--device=cuda:1",
            "--threads=3",
            "--max-sequences=5",
            "--kv-cache-bytes=7000",
            "--prefill-chunk-tokens=9",
        ]);
        let expected = EngineConfig {
            dtype: Some(DType::F16),
            device: Device::Cuda(1),
            threads: 3,
            max_sequences: Some(5),
            kv_cache_bytes: Some(7000),
            prefill_chunk_tokens: Some(9),
            weights_are_fixed: true,
            ..EngineConfig::default()
        };
        assert_eq!(said.unwrap(), expected);
        let on_gpu = config(&["--device=cuda"]).unwrap();
        assert_eq!((on_gpu.dtype(), on_gpu.max_sequences(), on_gpu.cache_bytes()), (DType::Bf16, 256, None));
        let on_cpu = config(&[]).unwrap();
        assert_eq!((on_cpu.dtype(), on_cpu.max_sequences()), (DType::F32, 64));
        assert!(config(&["--dtype=f64"]).is_err());
    }
}
