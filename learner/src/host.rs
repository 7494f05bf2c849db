//! What the host reads of a device. Each reading waits until the device has done everything that it was given
//! before, so a step makes few of them, and no more for a larger network.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use crate::error::Result;

thread_local! {
    static READINGS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has waited for a device to read numbers of it. On a CPU, too, where nothing is
/// waited
/// for: the same code runs on both.
pub fn host_readings() -> u64 {
    READINGS.get()
}

/// A tensor of one number.
pub(crate) fn number(tensor: &Tensor) -> f64 {
    READINGS.set(READINGS.get() + 1);
    tensor.double_value(&[])
}

/// The numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    READINGS.set(READINGS.get() + 1);
    Ok(Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Float))?)
}
