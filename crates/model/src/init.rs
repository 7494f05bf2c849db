//! Random initial weights, the same for the same seed on every machine, whatever the number of threads.
//!
//! Element `i` of a parameter is a function of (seed, parameter name, `i`) alone: a counter-based generator
//! (SplitMix64's finalizer over a counter; Steele et al., OOPSLA 2014) and the Box-Muller transform.

use std::f64::consts::TAU;
use std::thread;

use tch::Tensor;

/// Elements generated at a time: bounds the f32 scratch space beside a half-precision model.
const CHUNK: usize = 1 << 20;

/// Fills `parameter`, in place, with normal numbers of mean 0 and this standard deviation.
pub(crate) fn fill_normal(parameter: &Tensor, name: &str, seed: u64, deviation: f64) {
    let _guard = tch::no_grad_guard();
    let flat = parameter.view([-1]);
    let total = flat.numel();
    let stream = stream_of(seed, name);
    let mut scratch = vec![0f32; CHUNK.min(total.next_multiple_of(2))];
    let mut start = 0;
    while start < total {
        let count = CHUNK.min(total - start);
        generate(&mut scratch, stream, start as u64, deviation);
        let values = Tensor::from_slice(&scratch[..count]).to_kind(parameter.kind());
        flat.narrow(0, start as i64, count as i64).copy_(&values.to_device(parameter.device()));
        start += count;
    }
}

/// Sets `parameter`, in place, to one value.
pub(crate) fn fill_constant(parameter: &Tensor, value: f64) {
    let _guard = tch::no_grad_guard();
    let _ = parameter.shallow_clone().fill_(value);
}

/// Writes elements `first..` of a stream; `first` is even.
fn generate(values: &mut [f32], stream: u64, first: u64, deviation: f64) {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(16);
    let share = values.len().div_ceil(threads).next_multiple_of(2);
    thread::scope(|scope| {
        for (part, slice) in values.chunks_mut(share.max(2)).enumerate() {
            let start = first + (part * share) as u64;
            scope.spawn(move || {
                for (pair, out) in slice.chunks_mut(2).enumerate() {
                    let numbers = normal_pair(stream, start + 2 * pair as u64);
                    for (value, number) in out.iter_mut().zip(numbers) {
                        *value = (number * deviation) as f32;
                    }
                }
            });
        }
    });
}

/// The two normal numbers at `index` and `index + 1` of a stream.
fn normal_pair(stream: u64, index: u64) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - uniform(stream, index)).ln()).sqrt();
    let angle = TAU * uniform(stream, index + 1);
    [radius * angle.cos(), radius * angle.sin()]
}

/// The uniform number in `0..1` at `index` of a stream.
fn uniform(stream: u64, index: u64) -> f64 {
    (mix(stream ^ mix(index)) >> 11) as f64 / (1u64 << 53) as f64
}

fn stream_of(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}

/// A bijection of 64 bits without visible structure.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
