//! What c10d presumes of tensors, checked before anything is launched.

use tch::{Device, Kind, TchError, Tensor};

/// The kinds both backends carry.
const KINDS: [Kind; 8] =
    [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64, Kind::Int, Kind::Int8, Kind::Uint8];

/// The kinds that have a mean.
const FLOATS: [Kind; 4] = [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double];

/// Why the arguments of an operation make no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0} is not defined")]
    Undefined(&'static str),
    #[error("{0} is not dense")]
    NotDense(&'static str),
    #[error("{name} is on {found:?}, but the group works on {expected:?}")]
    Device { name: &'static str, found: Device, expected: Device },
    #[error("{name} has an unknown kind: {error}")]
    UnknownKind { name: &'static str, error: TchError },
    #[error("{name} is of kind {kind:?}; supported are {KINDS:?}")]
    Kind { name: &'static str, kind: Kind },
    #[error("{0} is not contiguous")]
    NotContiguous(&'static str),
    #[error("output is {output:?}, but input is {input:?}")]
    OtherKinds { output: Kind, input: Kind },
    #[error("{whole:?} does not hold {world_size} parts of {part:?}, one for each rank")]
    Parts { whole: Vec<i64>, part: Vec<i64>, world_size: usize },
    #[error("{0:?} has no mean")]
    NoMean(Kind),
    #[error("the root is rank {rank} in a world of {world_size}")]
    Root { rank: usize, world_size: usize },
}

/// Checks a tensor for an operation on `device`.
///
/// # Errors
/// When it is not defined, dense, contiguous, there, and of one of [`KINDS`].
pub(crate) fn tensor(name: &'static str, tensor: &Tensor, device: Device) -> Result<(), Unfit> {
    if !tensor.defined() {
        return Err(Unfit::Undefined(name));
    }
    if tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(Unfit::NotDense(name));
    }
    if tensor.device() != device {
        return Err(Unfit::Device { name, found: tensor.device(), expected: device });
    }
    let kind = tensor.f_kind().map_err(|error| Unfit::UnknownKind { name, error })?;
    if !KINDS.contains(&kind) {
        return Err(Unfit::Kind { name, kind });
    }
    if tensor.is_contiguous() { Ok(()) } else { Err(Unfit::NotContiguous(name)) }
}

/// Checks two tensors of one call.
///
/// # Errors
/// When they are of different kinds.
pub(crate) fn same_kind(output: &Tensor, input: &Tensor) -> Result<(), Unfit> {
    let (output, input) = (output.kind(), input.kind());
    if output == input { Ok(()) } else { Err(Unfit::OtherKinds { output, input }) }
}

/// Checks a tensor that holds a part for each rank.
///
/// # Errors
/// When `whole` does not have exactly `world_size` times the elements of `part`.
pub(crate) fn parts(whole: &Tensor, part: &Tensor, world_size: usize) -> Result<(), Unfit> {
    if whole.numel().is_multiple_of(world_size) && whole.numel() / world_size == part.numel() {
        Ok(())
    } else {
        Err(Unfit::Parts { whole: whole.size(), part: part.size(), world_size })
    }
}

/// Checks a tensor that is to be averaged.
///
/// # Errors
/// When its kind has no mean.
pub(crate) fn has_mean(tensor: &Tensor) -> Result<(), Unfit> {
    let kind = tensor.kind();
    if FLOATS.contains(&kind) { Ok(()) } else { Err(Unfit::NoMean(kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dense_contiguous_tensors_on_the_device_pass() {
        let good = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        tensor("input", &good, Device::Cpu).expect("a good tensor");
        let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
        let bad = [
            (Tensor::new(), Device::Cpu, "input is not defined"),
            (good.transpose(0, 1), Device::Cpu, "input is not contiguous"),
            (good.to_sparse(None, None::<i64>, 0), Device::Cpu, "input is not dense"),
            (good, Device::Cuda(0), "input is on Cpu, but the group works on Cuda(0)"),
            (complex, Device::Cpu, "input is of kind ComplexFloat"),
        ];
        for (unfit, device, problem) in bad {
            let error = tensor("input", &unfit, device).expect_err(problem);
            assert!(error.to_string().starts_with(problem), "{error}");
        }
    }

    #[test]
    fn parts_and_kinds_must_agree() {
        let whole = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        let part = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let integers = part.to_kind(Kind::Int64);
        parts(&whole, &part, 3).expect("three parts");
        assert!(parts(&whole, &part, 2).is_err());
        assert!(parts(&Tensor::zeros([7], (Kind::Float, Device::Cpu)), &part, 3).is_err());
        has_mean(&part).expect("floats have a mean");
        let refused = [
            (same_kind(&part, &integers), "output is Float, but input is Int64"),
            (has_mean(&integers), "Int64 has no mean"),
        ];
        for (result, problem) in refused {
            assert_eq!(result.expect_err(problem).to_string(), problem);
        }
    }
}
