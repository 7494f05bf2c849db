//! Elementary functions on f32 that the compiler can turn into vector instructions, and the sums of a row.

/// Lanes of the sums below: two registers of the widest kind.
pub(crate) const LANES: usize = 32;

/// `a * b + c`, rounded once or twice.
#[inline(always)]
pub(crate) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `sums += factor * values`.
#[inline(always)]
pub(crate) fn add_product<const W: usize, const FUSED: bool>(
    sums: &mut [f32; W],
    factor: f32,
    values: &[f32; W],
) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = fma::<FUSED>(factor, *value, *sum);
    }
}

/// `e^x` within 2 units in the last place; 0 below -87.3, infinity above 88.7.
///
/// `e^x = 2^n e^r` with `r` in `[-ln(2)/2, ln(2)/2]` (Cody and Waite 1980; coefficients of the polynomial
/// from Cephes, `expf.c`).
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.72;
    // ln(2) in two parts: the first has so few bits that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting it rounds to an integer.
    const ROUNDER: f32 = 12_582_912.0;
    // A NaN stays: neither comparison holds.
    let bounded = if x > HIGHEST { HIGHEST } else { x };
    let bounded = if bounded < LOWEST { LOWEST } else { bounded };
    let shifted = fma::<FUSED>(bounded, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = fma::<FUSED>(n, -LN2_LOW, fma::<FUSED>(n, -LN2_HIGH, bounded));
    let p = fma::<FUSED>(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = fma::<FUSED>(p, r, 8.333_452e-3);
    let p = fma::<FUSED>(p, r, 4.166_579_6e-2);
    let p = fma::<FUSED>(p, r, 0.166_666_66);
    let p = fma::<FUSED>(p, r, 0.5);
    let y = fma::<FUSED>(p, r * r, r) + 1.0;
    // 2^n in two factors, as 2^128 is no f32.
    let half = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let first = half >> 1;
    let scale = |exponent: i32| f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    let y = y * scale(first) * scale(half.wrapping_sub(first));
    let y = if x > HIGHEST { f32::INFINITY } else { y };
    if x < LOWEST { 0.0 } else { y }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<const FUSED: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FUSED>(-x))
}

/// The sum of `term(x)` over a row, in an order that depends on the row's length only.
#[inline(always)]
pub(crate) fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += term(*x);
    }
    add_lanes(sums)
}

/// The sum of some lanes, by halves.
#[inline(always)]
pub(crate) fn add_lanes<const W: usize>(mut lanes: [f32; W]) -> f32 {
    let mut width = W;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp_is_exact_to_the_last_bits<const FUSED: bool>() {
        let mut worst: f64 = 0.0;
        for step in -875_000..887_000 {
            let x = step as f32 * 1e-4;
            let (found, exact) = (f64::from(exp::<FUSED>(x)), f64::from(x).exp());
            if x > -87.3 && x < 88.7 {
                worst = worst.max((found - exact).abs() / exact);
            }
        }
        assert!(worst < 1.5e-7, "{worst}");
        assert_eq!(exp::<FUSED>(0.0), 1.0);
        assert_eq!(exp::<FUSED>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<FUSED>(-200.0), 0.0);
        assert_eq!(exp::<FUSED>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<FUSED>(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_exact() {
        exp_is_exact_to_the_last_bits::<true>();
        exp_is_exact_to_the_last_bits::<false>();
    }

    #[test]
    fn silu_has_its_limits() {
        assert_eq!(silu::<true>(0.0), 0.0);
        assert!((silu::<true>(1.0) - 0.731_058_6).abs() < 1e-7);
        assert_eq!(silu::<true>(-1000.0), 0.0);
        assert_eq!(silu::<true>(1000.0), 1000.0);
    }

    #[test]
    fn sums_take_every_element() {
        for length in [0_usize, 1, 31, 32, 33, 100] {
            let row: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(sum(&row, |x| 2.0 * x), (length * length.saturating_sub(1)) as f32);
        }
    }
}
