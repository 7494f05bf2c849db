//! What both ends know of a buffer: the parameters of the network in order, all of one element type.

use model::{ModelConfig, buffer};
use tch::{Device, Kind};
use types::{DType, Invalid, Manifest, PolicyVersion, TensorEntry, TensorLayout};

use crate::error::{Error, Result};

/// Describes a version's buffer for those who will receive it. This hashes all of it.
pub(crate) fn describe(
    model: &ModelConfig,
    kind: Kind,
    version: PolicyVersion,
    bytes: &[u8],
) -> Result<Manifest> {
    let dtype = dtype_of(kind)?;
    let parameters = buffer::parameters(model).into_iter();
    let layouts = parameters.map(|(name, shape)| TensorLayout { name, shape, dtype }).collect();
    Ok(Manifest::of_buffer(version, layouts, bytes)?)
}

/// The weights in a buffer that holds exactly what the manifest says, and these are the network's. This
/// hashes all of it.
pub(crate) fn open<'a>(
    model: &ModelConfig,
    manifest: &Manifest,
    bytes: &'a [u8],
) -> Result<buffer::PackedWeights<'a>> {
    manifest.verify(bytes)?;
    let expected = buffer::parameters(model);
    let sent = manifest.tensors().iter().map(|entry| (entry.name(), entry.shape()));
    if !sent.eq(expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))) {
        return Err(Error::OtherModel);
    }
    Ok(buffer::PackedWeights::new(model, bytes, kind_of(manifest)?, Device::Cpu)?)
}

/// The one element type of a manifest.
fn kind_of(manifest: &Manifest) -> Result<Kind> {
    let mut dtypes = manifest.tensors().iter().map(TensorEntry::dtype);
    let subject = format!("manifest of {}", manifest.version());
    let Some(first) = dtypes.next() else {
        return Err(Invalid::new(subject, "names no tensor").into());
    };
    if dtypes.any(|dtype| dtype != first) {
        return Err(Invalid::new(subject, "mixes element types").into());
    }
    Ok(match first {
        DType::F32 => Kind::Float,
        DType::Bf16 => Kind::BFloat16,
        DType::F16 => Kind::Half,
    })
}

fn dtype_of(kind: Kind) -> Result<DType> {
    match kind {
        Kind::Float => Ok(DType::F32),
        Kind::BFloat16 => Ok(DType::Bf16),
        Kind::Half => Ok(DType::F16),
        other => Err(Error::ElementType(other)),
    }
}

#[cfg(test)]
mod tests {
    use model::{Architecture, Dimensions};

    use super::*;

    fn model(hidden_size: i64) -> ModelConfig {
        let dimensions = Dimensions {
            vocab_size: 11,
            hidden_size,
            intermediate_size: 12,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            max_positions: 16,
        };
        ModelConfig::new(Architecture::Llama, dimensions).unwrap()
    }

    #[test]
    fn what_is_described_can_be_opened_and_nothing_else() {
        let (own, other) = (model(8), model(16));
        let version = PolicyVersion(3);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let mut bytes = vec![1; buffer::bytes(&own, kind)];
            let manifest = describe(&own, kind, version, &bytes).unwrap();
            open(&own, &manifest, &bytes).unwrap();
            assert!(matches!(open(&other, &manifest, &bytes), Err(Error::OtherModel)));
            bytes[5] ^= 1;
            let error = open(&own, &manifest, &bytes).unwrap_err().to_string();
            assert!(error.contains("has hash"), "{error}");
        }
        assert!(matches!(describe(&own, Kind::Double, version, &[]), Err(Error::ElementType(Kind::Double))));
    }

    #[test]
    fn a_manifest_has_one_element_type() {
        let layout = |dtype| TensorLayout { name: format!("{dtype:?}"), shape: vec![2], dtype };
        let mixed = vec![layout(DType::Bf16), layout(DType::F16)];
        let mixed = Manifest::of_buffer(PolicyVersion(1), mixed, &[0; 8]).unwrap();
        assert!(kind_of(&mixed).unwrap_err().to_string().contains("mixes element types"));
        let empty = Manifest::new(PolicyVersion(1), Vec::new()).unwrap();
        assert!(kind_of(&empty).unwrap_err().to_string().contains("names no tensor"));
    }
}
