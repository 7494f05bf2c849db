//! Weights as one flat buffer of bytes: how they travel and how they are named on the way.
//!
//! The buffer holds the parameters in manifest order ([`Layout::parameters`]), little-endian, without gaps;
//! it is the groups' buffers one after the other. So sender and receiver need to agree on nothing but the
//! configuration and the element type.

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::groups::Groups;
use crate::layout::Layout;
use crate::raw::{self, bytes_of, copy_bytes};

/// A buffer of another size than the network's weights have.
#[derive(Debug, thiserror::Error)]
#[error("a buffer of {found} bytes, the network's weights have {expected}")]
pub struct WrongLength {
    /// How many bytes were given.
    pub found: usize,
    /// How many the network needs.
    pub expected: usize,
}

/// Name, shape and place of every parameter in the buffer.
pub fn parameters(config: &ModelConfig) -> Vec<(String, Vec<u64>)> {
    let mut parameters = Vec::new();
    for spec in Layout::new(config).parameters() {
        let shape = spec.shape.iter().map(|dim| dim.unsigned_abs()).collect();
        parameters.push((spec.name.clone(), shape));
    }
    parameters
}

/// Bytes of the buffer with elements of `kind`.
pub fn bytes(config: &ModelConfig, kind: Kind) -> usize {
    let numel = usize::try_from(Layout::new(config).numel()).unwrap_or(0);
    numel * kind.elt_size_in_bytes()
}

/// The weights as a buffer of bytes with elements of `kind`.
pub fn pack(flats: &[Tensor], kind: Kind) -> Vec<u8> {
    let _guard = tch::no_grad_guard();
    let width = kind.elt_size_in_bytes();
    let mut buffer = Vec::with_capacity(flats.iter().map(|flat| flat.numel() * width).sum());
    for flat in flats {
        pack_group(&mut buffer, flat, kind);
    }
    buffer
}

/// Adds the next group's weights to a buffer of elements of `kind`.
pub fn pack_group(buffer: &mut Vec<u8>, flat: &Tensor, kind: Kind) {
    let _guard = tch::no_grad_guard();
    buffer.extend_from_slice(&bytes_of(&flat.to_kind(kind)));
}

/// Weights in a buffer of bytes, unpacked group by group.
#[derive(Debug)]
pub struct PackedWeights<'a> {
    /// The bytes of each group.
    groups: Vec<&'a [u8]>,
    kind: Kind,
    device: Device,
}

impl<'a> PackedWeights<'a> {
    /// Weights of elements of `kind`, which are unpacked to `device`.
    ///
    /// # Errors
    /// When the buffer is not of the network's size.
    pub fn new(
        config: &ModelConfig,
        buffer: &'a [u8],
        kind: Kind,
        device: Device,
    ) -> Result<Self, WrongLength> {
        let expected = bytes(config, kind);
        if buffer.len() != expected {
            return Err(WrongLength { found: buffer.len(), expected });
        }
        let mut rest = buffer;
        let mut groups = Vec::new();
        for group in &Layout::new(config).groups {
            let numel = usize::try_from(group.numel).unwrap_or(0);
            let (own, others) = rest.split_at(numel * kind.elt_size_in_bytes());
            groups.push(own);
            rest = others;
        }
        Ok(Self { groups, kind, device })
    }
}

impl Groups for PackedWeights<'_> {
    type Error = raw::Error;

    fn group(&self, index: usize) -> Result<Tensor, raw::Error> {
        let own = self.groups[index];
        let numel = (own.len() / self.kind.elt_size_in_bytes()) as i64;
        let mut flat = Tensor::f_empty([numel], (self.kind, self.device))
            .map_err(|error| raw::Error::Torch(error.to_string()))?;
        copy_bytes(&mut flat, own, self.kind)?;
        Ok(flat)
    }
}

/// Calls `read` with the bytes of a tensor, copied to host memory if it lies elsewhere.
pub fn with_bytes<T>(tensor: &Tensor, read: impl FnOnce(&[u8]) -> T) -> T {
    read(&bytes_of(tensor))
}

#[cfg(test)]
mod tests {
    use crate::config::{Architecture, Dimensions};
    use crate::weights::Weights;

    use super::*;

    fn config() -> ModelConfig {
        let dimensions = Dimensions {
            vocab_size: 11,
            hidden_size: 8,
            intermediate_size: 12,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            max_positions: 16,
        };
        ModelConfig::new(Architecture::Qwen2, dimensions).unwrap()
    }

    #[test]
    fn weights_survive_the_buffer() {
        let config = config();
        let weights = Weights::random(&config, 3, Kind::Float, Device::Cpu);
        for kind in [Kind::Float, Kind::BFloat16] {
            let buffer = pack(weights.flats(), kind);
            assert_eq!(buffer.len(), bytes(&config, kind));
            let packed = PackedWeights::new(&config, &buffer, kind, Device::Cpu).unwrap();
            let groups = 0..weights.flats().len();
            let flats = groups.map(|index| packed.group(index).unwrap()).collect();
            let back = Weights::from_flats(&config, flats).unwrap();
            for (a, b) in weights.parameters().zip(back.parameters()) {
                assert_eq!(a.tensor.to_kind(kind), b.tensor, "{}", a.name);
            }
        }
    }

    #[test]
    fn the_buffer_is_the_parameters_in_order() {
        let config = config();
        let weights = Weights::random(&config, 3, Kind::Float, Device::Cpu);
        let buffer = pack(weights.flats(), Kind::Float);
        let mut expected = Vec::new();
        for ((name, shape), parameter) in parameters(&config).iter().zip(weights.parameters()) {
            assert_eq!(name, parameter.name);
            assert_eq!(shape.iter().product::<u64>(), parameter.tensor.numel() as u64);
            expected.extend(raw::tensor_bytes(&parameter.tensor));
        }
        assert!(buffer == expected);
    }

    #[test]
    fn a_buffer_of_another_size_is_refused() {
        let config = config();
        let short = vec![0; bytes(&config, Kind::Float) - 1];
        let error = PackedWeights::new(&config, &short, Kind::Float, Device::Cpu).unwrap_err();
        assert_eq!(error.found + 1, error.expected);
    }
}
