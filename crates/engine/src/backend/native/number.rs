//! Element types of weights and cache. Sums are f32 always; a half-precision element is widened as it is
//! read, except that two bf16 are multiplied with two others, and added up, by one instruction where the
//! processor has it.

use bytemuck::Pod;
use half::{bf16, f16};
use tch::Kind;

use super::machine::{PairProducts, widen_pairs};
use super::math::add_product;

/// Columns of a panel of weights (see `panels`).
pub(crate) const PANEL: usize = 32;

/// An element type.
pub(crate) trait Number: Pod + Send + Sync + std::fmt::Debug {
    /// Two rows of a panel of weights: elements `2i` and `2i + 1` of each of its columns.
    type Pair: Pod + Send + Sync + std::fmt::Debug;

    /// What the inputs of products with such weights are rounded to.
    type Input: Number;

    /// Torch's name for it.
    const TORCH: Kind;

    /// Packs elements `2i` and `2i + 1` of a panel's columns.
    fn pair(even: &[Self; PANEL], odd: &[Self; PANEL]) -> Self::Pair;

    /// Both rows of columns `first..first + W` of a pair.
    fn unpair<const W: usize>(pair: &Self::Pair, first: usize) -> [[f32; W]; 2];

    /// Adds to `sums[row][column]` the products of both `inputs[row][at]` with those of column `first +
    /// column` of a pair.
    #[inline(always)]
    fn add_products<P: PairProducts, const R: usize, const W: usize, const FUSED: bool>(
        sums: &mut [[f32; W]; R],
        (inputs, at): (&[&[[Self::Input; 2]]; R], usize),
        pair: &Self::Pair,
        first: usize,
    ) {
        let [even, odd] = Self::unpair::<W>(pair, first);
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], inputs[row][at][0].widen(), &even);
        }
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], inputs[row][at][1].widen(), &odd);
        }
    }

    /// The same number as f32.
    fn widen(self) -> f32;

    /// The nearest number of this type.
    fn narrow(value: f32) -> Self;
}

impl Number for f32 {
    type Pair = [[f32; PANEL]; 2];
    type Input = f32;

    const TORCH: Kind = Kind::Float;

    #[inline(always)]
    fn pair(even: &[Self; PANEL], odd: &[Self; PANEL]) -> Self::Pair {
        [*even, *odd]
    }

    #[inline(always)]
    fn unpair<const W: usize>(pair: &Self::Pair, first: usize) -> [[f32; W]; 2] {
        // Loops, here and below: a closure of `array::from_fn` is a function of its own where the compiler so
        // decides, and then without the vector instructions of its caller.
        let mut rows = [[0.0; W]; 2];
        for (row, source) in rows.iter_mut().zip(pair) {
            row.copy_from_slice(&source[first..first + W]);
        }
        rows
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Number for bf16 {
    type Pair = [u32; PANEL];
    /// As in torch.
    type Input = bf16;

    const TORCH: Kind = Kind::BFloat16;

    #[inline(always)]
    fn pair(even: &[Self; PANEL], odd: &[Self; PANEL]) -> Self::Pair {
        std::array::from_fn(|column| join(even[column].to_bits(), odd[column].to_bits()))
    }

    #[inline(always)]
    fn unpair<const W: usize>(pair: &Self::Pair, first: usize) -> [[f32; W]; 2] {
        widen_pairs(pair[first..].first_chunk().expect("a pair has the columns asked for"))
    }

    #[inline(always)]
    fn add_products<P: PairProducts, const R: usize, const W: usize, const FUSED: bool>(
        sums: &mut [[f32; W]; R],
        inputs: (&[&[[Self; 2]]; R], usize),
        pair: &Self::Pair,
        first: usize,
    ) {
        let weights = pair[first..].first_chunk().expect("a pair has the columns asked for");
        P::add(sums, inputs, weights);
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without a branch, so that rows are narrowed by vectors.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        // To even: what is behind the half grows into the last bit kept, the half only if that is odd.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits((if value.is_nan() { quiet } else { rounded }) as u16)
    }
}

impl Number for f16 {
    type Pair = [u32; PANEL];
    type Input = f32;

    const TORCH: Kind = Kind::Half;

    #[inline(always)]
    fn pair(even: &[Self; PANEL], odd: &[Self; PANEL]) -> Self::Pair {
        std::array::from_fn(|column| join(even[column].to_bits(), odd[column].to_bits()))
    }

    #[inline(always)]
    fn unpair<const W: usize>(pair: &Self::Pair, first: usize) -> [[f32; W]; 2] {
        let [mut even, mut odd] = [[0.0; W]; 2];
        for ((even, odd), both) in even.iter_mut().zip(&mut odd).zip(&pair[first..first + W]) {
            *even = widen_half(both & 0xffff);
            *odd = widen_half(both >> 16);
        }
        [even, odd]
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        widen_half(u32::from(self.to_bits()))
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

fn join(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// An IEEE half as f32, exactly, without a branch: its exponent and mantissa are read as those of an f32,
/// which is too small by 2^112. Infinities become 65536 or more; weights and keys have none.
#[inline(always)]
fn widen_half(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<N: Number>(values: [f32; PANEL]) {
        let even = values.map(N::narrow);
        let odd = values.map(|value| N::narrow(-value * 0.5));
        let [first, second] = N::unpair::<16>(&N::pair(&even, &odd), 16);
        assert_eq!(first.to_vec(), even[16..].iter().map(|x| x.widen()).collect::<Vec<_>>());
        assert_eq!(second.to_vec(), odd[16..].iter().map(|x| x.widen()).collect::<Vec<_>>());
    }

    #[test]
    fn pairs_keep_their_columns() {
        let values = std::array::from_fn(|column| column as f32 * 0.37 - 3.0);
        round_trip::<f32>(values);
        round_trip::<bf16>(values);
        round_trip::<f16>(values);
    }

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            if half.is_finite() {
                assert_eq!(Number::widen(half).to_bits(), half.to_f32().to_bits(), "{bits:#06x}");
            }
            if !brain.is_nan() {
                assert_eq!(Number::widen(brain).to_bits(), brain.to_f32().to_bits(), "{bits:#06x}");
            }
        }
    }

    #[test]
    fn bf16_is_the_nearest_of_ties_the_even_one() {
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(high << 16 | low);
                let (found, expected) = (<bf16 as Number>::narrow(value), bf16::from_f32(value));
                assert_eq!(found.to_bits(), expected.to_bits(), "{high:#06x} {low:#06x}");
            }
        }
    }
}
