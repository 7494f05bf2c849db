//! What the host reads of a device, and what it waits for. Each reading waits until the device has done
//! everything that it was given before, so a step makes few of them, and no more for a larger network. Where
//! ranks share a network, the host also waits for their operations: for a few in each of its groups.
//!
//! Nothing else in this crate reads a tensor's numbers (a test of the workspace says so), so that the counts
//! are whole. They count on a CPU, too, where nothing is waited for: the same code runs on both.

use std::cell::Cell;
use std::time::Duration;

use collective::Work;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

thread_local! {
    static READINGS: Cell<u64> = const { Cell::new(0) };
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has read numbers of a device.
pub fn host_readings() -> u64 {
    READINGS.get()
}

/// How often this thread has waited for an operation of all ranks.
pub fn host_waits() -> u64 {
    WAITS.get()
}

fn count_reading() {
    READINGS.set(READINGS.get() + 1);
}

/// A tensor of one number.
pub(crate) fn number(tensor: &Tensor) -> f64 {
    count_reading();
    tensor.double_value(&[])
}

/// The numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    count_reading();
    Ok(Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Float))?)
}

/// Writes the numbers of a tensor of their kind over those that there are.
pub(crate) fn read_into<T: tch::kind::Element>(tensor: &Tensor, numbers: &mut [T]) -> Result<()> {
    count_reading();
    tensor.to_device(Device::Cpu).f_copy_data(numbers, numbers.len())?;
    Ok(())
}

/// A copy of a tensor in the host's memory.
pub(crate) fn copy(tensor: &Tensor) -> Result<Tensor> {
    count_reading();
    Ok(tensor.f_to_device_(Device::Cpu, tensor.kind(), false, true)?)
}

/// The tensor on a device; it is read if that is the host's memory and the tensor is not there.
pub(crate) fn moved(tensor: &Tensor, device: Device) -> Tensor {
    if device == Device::Cpu && tensor.device() != device {
        count_reading();
    }
    tensor.to_device(device)
}

/// Waits until an operation of all ranks is over.
pub(crate) fn wait(work: Work) -> Result<()> {
    WAITS.set(WAITS.get() + 1);
    Ok(work.wait(Duration::MAX)?)
}
