//! What a step needs from the host, in one transfer.

use tch::{Device, Kind, Tensor};

/// Numbers for the device, one after the other: integers, and the bits of floats.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    numbers: Vec<i64>,
}

/// Where some of the numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Part {
    start: i64,
    count: i64,
}

impl Upload {
    pub(crate) fn clear(&mut self) {
        self.numbers.clear();
    }

    pub(crate) fn integers(&mut self, numbers: impl IntoIterator<Item = i64>) -> Part {
        let start = self.numbers.len();
        self.numbers.extend(numbers);
        Part { start: start as i64, count: (self.numbers.len() - start) as i64 }
    }

    pub(crate) fn floats(&mut self, numbers: impl IntoIterator<Item = f64>) -> Part {
        self.integers(numbers.into_iter().map(|number| number.to_bits().cast_signed()))
    }

    /// Copies all numbers to the device. The device has nothing else to do at the beginning of a step, so
    /// that waiting for the copy costs its own time only.
    pub(crate) fn send(&self, device: Device) -> Arrived {
        Arrived(Tensor::from_slice(&self.numbers).to_device(device))
    }
}

/// The numbers of an upload on the device.
#[derive(Debug)]
pub(crate) struct Arrived(Tensor);

impl Arrived {
    /// Replaces the numbers by those of another upload of the same length, at the same address.
    pub(crate) fn refill(&mut self, upload: &Upload) {
        self.0.copy_(&Tensor::from_slice(&upload.numbers));
    }

    /// A view of integers, `[count]` i64.
    pub(crate) fn integers(&self, part: Part) -> Tensor {
        self.0.narrow(0, part.start, part.count)
    }

    /// A view of floats, `[count]` f64.
    pub(crate) fn floats(&self, part: Part) -> Tensor {
        self.integers(part).view_dtype(Kind::Double)
    }
}
