//! Vector instructions: code compiled once for each set of them, and run with what the processor has.

use half::bf16;

use super::super::math::add_product;

/// Vector instructions that this processor has: a value of this type is the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    /// Whatever the target promises.
    Portable,
    /// 8 lanes, fused multiply-add.
    Avx2,
    /// 16 lanes.
    Avx512,
    /// As well, the product of pairs of bf16.
    Avx512Bf16,
}

impl Level {
    /// All levels of this processor, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self(Instructions::Portable)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            levels.push(Self(Instructions::Avx2));
            let has_512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if has_512 {
                levels.push(Self(Instructions::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    levels.push(Self(Instructions::Avx512Bf16));
                }
            }
        }
        levels
    }

    /// The best that this processor has.
    pub(crate) fn best() -> Self {
        Self::available().pop().unwrap_or(Self(Instructions::Portable))
    }
}

/// Code that is compiled once for each level. `run` is marked `#[inline(always)]`, and so is what it calls in
/// its inner loops, so that all of it uses the level's instructions.
pub(crate) trait Kernel {
    /// Does the work. `FUSED` says whether a multiplication and an addition are one instruction; `WIDE`
    /// whether there are 32 registers of 16 lanes, or half of each; `P` is how pairs of bf16 are multiplied.
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(self);
}

/// Products of pairs of bf16. A pair is two neighbours along the sum; as a u32 the first is its lower half.
pub(crate) trait PairProducts {
    /// Adds to `sums[row][column]` the products of both elements of `inputs[row][at]` with those of
    /// `weights[column]`. `W` is a multiple of 16.
    fn add<const R: usize, const W: usize>(
        sums: &mut [[f32; W]; R],
        inputs: (&[&[[bf16; 2]]; R], usize),
        weights: &[u32; W],
    );
}

/// Two products of f32, the first element's first.
struct Widened<const FUSED: bool>;

impl<const FUSED: bool> PairProducts for Widened<FUSED> {
    #[inline(always)]
    fn add<const R: usize, const W: usize>(
        sums: &mut [[f32; W]; R],
        (inputs, at): (&[&[[bf16; 2]]; R], usize),
        weights: &[u32; W],
    ) {
        let [first, second] = widen_pairs(weights);
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], widen(inputs[row][at][0]), &first);
        }
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], widen(inputs[row][at][1]), &second);
        }
    }
}

/// One instruction for 16 columns. Only [`run`] can name it, so that it is used only where the processor has
/// it.
#[cfg(target_arch = "x86_64")]
struct DotProduct;

#[cfg(target_arch = "x86_64")]
impl PairProducts for DotProduct {
    #[inline(always)]
    fn add<const R: usize, const W: usize>(
        sums: &mut [[f32; W]; R],
        (inputs, at): (&[&[[bf16; 2]]; R], usize),
        weights: &[u32; W],
    ) {
        use std::arch::x86_64::{__m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_set1_epi32};
        use std::mem::transmute;
        let (weights, rest) = weights.as_chunks::<16>();
        assert!(rest.is_empty(), "{W} columns, a multiple of 16 is wanted");
        for (sums, input) in sums.iter_mut().zip(inputs) {
            for (sums, weights) in sums.as_chunks_mut::<16>().0.iter_mut().zip(weights) {
                // SAFETY: `run` names this type at a level with these instructions only. The types between
                // which is transmuted are 64 bytes of plain numbers each.
                unsafe {
                    let input = _mm512_set1_epi32(bytemuck::cast(input[at]));
                    let input = transmute::<__m512i, __m512bh>(input);
                    let weights = transmute::<[u32; 16], __m512bh>(*weights);
                    let sum = _mm512_dpbf16_ps(transmute::<[f32; 16], __m512>(*sums), input, weights);
                    *sums = transmute::<__m512, [f32; 16]>(sum);
                }
            }
        }
    }
}

/// Asks for a value that is read soon to be brought into the second-level cache.
#[inline(always)]
pub(crate) fn fetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<T>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the hint reads nothing that the program could notice, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// The same number as f32.
#[inline(always)]
pub(crate) fn widen(number: bf16) -> f32 {
    f32::from_bits(u32::from(number.to_bits()) << 16)
}

/// The first elements of pairs, and the second.
#[inline(always)]
pub(crate) fn widen_pairs<const W: usize>(pairs: &[u32; W]) -> [[f32; W]; 2] {
    let [mut first, mut second] = [[0.0; W]; 2];
    for ((first, second), pair) in first.iter_mut().zip(&mut second).zip(pairs) {
        *first = f32::from_bits(pair << 16);
        *second = f32::from_bits(pair & 0xffff_0000);
    }
    [first, second]
}

/// Runs a kernel as compiled for `level`.
#[inline(always)]
pub(crate) fn run<K: Kernel>(level: Level, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512_bf16<K: Kernel>(kernel: K) {
            kernel.run::<true, true, DotProduct>();
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<K: Kernel>(kernel: K) {
            kernel.run::<true, true, Widened<true>>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Kernel>(kernel: K) {
            kernel.run::<true, false, Widened<true>>();
        }
        match level.0 {
            // SAFETY: a level of these instructions comes from `Level::available` only, which found them
            // here.
            Instructions::Avx512Bf16 => return unsafe { avx512_bf16(kernel) },
            // SAFETY: as above.
            Instructions::Avx512 => return unsafe { avx512(kernel) },
            // SAFETY: as above.
            Instructions::Avx2 => return unsafe { avx2(kernel) },
            Instructions::Portable => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let Level(_) = level;
    // Every 64-bit Arm has fused multiply-add; without hardware it would be a call into the C library.
    const FUSED: bool = cfg!(target_arch = "aarch64");
    kernel.run::<FUSED, false, Widened<FUSED>>();
}
