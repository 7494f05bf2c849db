//! What an engine uses where its configuration does not say: by its device (docs/decisions.md, D23).

use model::Device;
use types::DType;

use crate::config::EngineConfig;

/// Bytes of the cache on the CPU: enough for 64 sequences of a small model.
const CPU_CACHE_BYTES: u64 = 1 << 30;
/// What is left of a GPU's memory for others and for fragments: one part in so many.
const RESERVE: u64 = 20;

/// What depends on the device alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeviceDefaults {
    dtype: DType,
    max_sequences: usize,
    prefill_chunk_tokens: usize,
}

impl DeviceDefaults {
    fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Self { dtype: DType::F32, max_sequences: 64, prefill_chunk_tokens: 512 },
            // Half precision is what FlashAttention and CUDA graphs take; the widths are those of servers.
            Device::Cuda(_) => Self { dtype: DType::Bf16, max_sequences: 256, prefill_chunk_tokens: 8192 },
        }
    }
}

impl EngineConfig {
    /// Element type of weights and cache.
    pub fn dtype(&self) -> DType {
        self.dtype.unwrap_or(DeviceDefaults::of(self.device).dtype)
    }

    /// Most responses that are generated at a time.
    pub fn max_sequences(&self) -> usize {
        self.max_sequences.unwrap_or(DeviceDefaults::of(self.device).max_sequences)
    }

    /// Most prompt tokens that one step works on.
    pub fn prefill_chunk_tokens(&self) -> usize {
        self.prefill_chunk_tokens.unwrap_or(DeviceDefaults::of(self.device).prefill_chunk_tokens)
    }

    /// Bytes of the cache, where they are known before its memory is measured.
    pub fn cache_bytes(&self) -> Option<u64> {
        let default = (self.device == Device::Cpu).then_some(CPU_CACHE_BYTES);
        self.kv_cache_bytes.or(default)
    }

    /// Fills in what the device decides where the configuration does not; the keys.
    pub fn fill_in_decided(&mut self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        let Self { dtype, max_sequences, prefill_chunk_tokens, kv_cache_bytes, .. } = self.clone();
        if dtype.is_none() {
            self.dtype = Some(self.dtype());
            keys.push("dtype");
        }
        if max_sequences.is_none() {
            self.max_sequences = Some(self.max_sequences());
            keys.push("max_sequences");
        }
        if prefill_chunk_tokens.is_none() {
            self.prefill_chunk_tokens = Some(self.prefill_chunk_tokens());
            keys.push("prefill_chunk_tokens");
        }
        if kv_cache_bytes.is_none() && self.kv_cache_blocks.is_none() && self.cache_bytes().is_some() {
            self.kv_cache_bytes = self.cache_bytes();
            keys.push("kv_cache_bytes");
        }
        keys
    }
}

/// The memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceMemory {
    /// What nobody has, once the weights are there and the largest step was computed.
    pub(crate) free: u64,
    pub(crate) total: u64,
}

impl DeviceMemory {
    /// What the cache may take: all that is free but a reserve, and but the room in which the next weights
    /// arrive beside those in use, if any will.
    pub(crate) fn cache_bytes(self, next_weights: u64) -> u64 {
        self.free.saturating_sub(self.total / RESERVE).saturating_sub(next_weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_device_decides_what_is_not_given() {
        let on = |device| EngineConfig { device, ..EngineConfig::default() };
        let resolved = |config: &EngineConfig| {
            (config.dtype(), config.max_sequences(), config.prefill_chunk_tokens(), config.cache_bytes())
        };
        assert_eq!(resolved(&on(Device::Cpu)), (DType::F32, 64, 512, Some(GIB)));
        assert_eq!(resolved(&on(Device::Cuda(3))), (DType::Bf16, 256, 8192, None), "memory is measured");
        let given = EngineConfig {
            dtype: Some(DType::F16),
            max_sequences: Some(7),
            prefill_chunk_tokens: Some(9),
            kv_cache_bytes: Some(11),
            ..on(Device::Cuda(0))
        };
        assert_eq!(resolved(&given), (DType::F16, 7, 9, Some(11)));
        assert_eq!(given.clone().fill_in_decided(), Vec::<&str>::new());
        let mut filled = on(Device::Cpu);
        assert_eq!(
            filled.fill_in_decided(),
            ["dtype", "max_sequences", "prefill_chunk_tokens", "kv_cache_bytes"]
        );
        assert_eq!(resolved(&filled), resolved(&on(Device::Cpu)));
        assert_eq!(filled.kv_cache_bytes, Some(GIB));
        let mut filled = on(Device::Cuda(0));
        assert_eq!(filled.fill_in_decided().len(), 3);
        assert_eq!(filled.kv_cache_bytes, None);
    }

    #[test]
    fn the_cache_takes_what_is_free_but_a_reserve_and_the_next_weights() {
        // An H200 with 7B in bf16: what is free once 15 GB of weights are there, and 3 GB of a step.
        let (total, weights) = (140 * GIB, 15 * GIB);
        let memory = DeviceMemory { free: total - weights - 3 * GIB, total };
        assert_eq!(memory.cache_bytes(0), (140 - 15 - 3 - 7) * GIB);
        assert_eq!(memory.cache_bytes(weights), (140 - 15 - 3 - 7 - 15) * GIB);
        assert_eq!(DeviceMemory { free: 6 * GIB, total }.cache_bytes(0), 0);
        assert_eq!(DeviceMemory { free: 8 * GIB, total }.cache_bytes(weights), 0);
    }
}
