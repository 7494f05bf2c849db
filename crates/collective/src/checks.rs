//! What c10d presumes of tensors, checked before anything is launched.

use tch::{Device, Kind, Tensor};

/// The kinds both backends carry.
const KINDS: [Kind; 8] =
    [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64, Kind::Int, Kind::Int8, Kind::Uint8];

/// The kinds that have a mean.
const FLOATS: [Kind; 4] = [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double];

/// What is wrong with a tensor for an operation on `device`, if anything: it must be defined, dense, contiguous, there,
/// and of one of [`KINDS`].
pub(crate) fn tensor(name: &str, tensor: &Tensor, device: Device) -> Result<(), String> {
    if !tensor.defined() {
        return Err(format!("{name} is not defined"));
    }
    if tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(format!("{name} is not dense"));
    }
    if tensor.device() != device {
        return Err(format!("{name} is on {:?}, but the group works on {device:?}", tensor.device()));
    }
    let kind = tensor.f_kind().map_err(|error| format!("{name} has an unknown kind: {error}"))?;
    if !KINDS.contains(&kind) {
        return Err(format!("{name} is of kind {kind:?}; supported are {KINDS:?}"));
    }
    if !tensor.is_contiguous() {
        return Err(format!("{name} is not contiguous"));
    }
    Ok(())
}

/// Whether two tensors of one call are of the same kind.
pub(crate) fn same_kind(output: &Tensor, input: &Tensor) -> Result<(), String> {
    match output.kind() == input.kind() {
        true => Ok(()),
        false => Err(format!("output is {:?}, but input is {:?}", output.kind(), input.kind())),
    }
}

/// Whether `whole` has exactly `world_size` times the elements of `part`.
pub(crate) fn parts(whole: &Tensor, part: &Tensor, world_size: usize) -> Result<(), String> {
    match whole.numel().is_multiple_of(world_size) && whole.numel() / world_size == part.numel() {
        true => Ok(()),
        false => Err(format!(
            "{:?} does not hold {world_size} parts of {:?}, one for each rank",
            whole.size(),
            part.size()
        )),
    }
}

/// Whether the tensor's kind has a mean.
pub(crate) fn has_mean(tensor: &Tensor) -> Result<(), String> {
    match FLOATS.contains(&tensor.kind()) {
        true => Ok(()),
        false => Err(format!("{:?} has no mean", tensor.kind())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dense_contiguous_tensors_on_the_device_pass() {
        let good = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(tensor("input", &good, Device::Cpu), Ok(()));
        assert_eq!(tensor("input", &Tensor::new(), Device::Cpu), Err("input is not defined".into()));
        assert_eq!(
            tensor("input", &good.transpose(0, 1), Device::Cpu),
            Err("input is not contiguous".into())
        );
        assert_eq!(
            tensor("input", &good.to_sparse(None, None::<i64>, 0), Device::Cpu),
            Err("input is not dense".into())
        );
        let elsewhere = tensor("input", &good, Device::Cuda(0)).expect_err("wrong device");
        assert_eq!(elsewhere, "input is on Cpu, but the group works on Cuda(0)");
        let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
        assert!(
            tensor("input", &complex, Device::Cpu)
                .expect_err("complex")
                .starts_with("input is of kind ComplexFloat")
        );
    }

    #[test]
    fn parts_and_kinds_must_agree() {
        let whole = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        let part = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        assert_eq!(parts(&whole, &part, 3), Ok(()));
        assert!(parts(&whole, &part, 2).is_err());
        assert!(parts(&Tensor::zeros([7], (Kind::Float, Device::Cpu)), &part, 3).is_err());
        let integers = part.to_kind(Kind::Int64);
        assert_eq!(same_kind(&part, &integers), Err("output is Float, but input is Int64".into()));
        assert_eq!(has_mean(&part), Ok(()));
        assert_eq!(has_mean(&integers), Err("Int64 has no mean".into()));
    }
}
