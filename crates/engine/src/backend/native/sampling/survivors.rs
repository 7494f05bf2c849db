//! Which tokens top-k, top-p and min-p leave, without sorting the vocabulary.
//!
//! Chunks of the logits whose largest is too small are passed over: the k-th largest peak of all chunks is
//! not above the k-th largest logit, and a token below `(1 - p) / vocabulary` cannot be among those that make
//! up mass p. Among the rest, a histogram over the sizes of probabilities finds where the mass p ends, and
//! only the tokens of that one size are sorted.

use super::super::math::exp;
use super::{CHUNK, Candidate, Distribution, Scratch};
use crate::batch::DrawRule;

/// Bits of a probability's pattern that do not count for its size: 8 sizes for each power of two.
const SIZE_SHIFT: u32 = 20;

/// Leaves the surviving tokens in `scratch.kept`, in the order of their ids; the sum of their masses.
///
/// As in transformers: top-k keeps all tokens that are as large as the k-th; top-p keeps a token if those
/// before it, in falling order, sum up to less than p of what top-k left; min-p keeps a token of at least
/// that share of the largest. The most probable token always survives.
#[inline(always)]
pub(super) fn find<const FUSED: bool>(
    distribution: &Distribution,
    rule: &DrawRule,
    scratch: &mut Scratch,
) -> f64 {
    let vocab_size = distribution.logits.len();
    let limited = rule.top_k > 0 && rule.top_k < vocab_size;
    let floor = if limited { floor_of_top(rule.top_k, scratch) } else { f32::NEG_INFINITY };
    let least = if limited || rule.top_p >= 1.0 {
        rule.min_p
    } else {
        // A little lower than exact, for the rounding of the sums.
        let of_top_p = (1.0 - f64::from(rule.top_p)) * distribution.total / vocab_size as f64 * 0.999;
        of_top_p.min(1.0) as f32
    };
    gather::<FUSED>(distribution, floor, least, scratch);
    let mut before = distribution.total;
    if limited {
        keep_largest(distribution, rule.top_k, scratch);
        before = sum(&scratch.kept);
    }
    if rule.top_p < 1.0 {
        keep_mass(f64::from(rule.top_p) * before, scratch);
    }
    if rule.min_p > 0.0 {
        scratch.kept.retain(|candidate| candidate.mass >= rule.min_p);
    }
    sum(&scratch.kept)
}

/// A logit that is not above the `count`-th largest.
pub(super) fn floor_of_top(count: usize, scratch: &mut Scratch) -> f32 {
    let Scratch { peaks, ordered, .. } = scratch;
    if peaks.len() <= count {
        return f32::NEG_INFINITY;
    }
    ordered.clear();
    ordered.extend_from_slice(peaks);
    let (_, floor, _) = ordered.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    *floor
}

/// Collects the tokens whose logit is at least `floor` and whose mass is at least `least`.
#[inline(always)]
fn gather<const FUSED: bool>(distribution: &Distribution, floor: f32, least: f32, scratch: &mut Scratch) {
    let Distribution { logits, peak, inverse_temperature, .. } = *distribution;
    scratch.kept.clear();
    for (number, chunk_peak) in scratch.peaks.iter().enumerate() {
        // One rounding more or less in a mass must not lose a chunk.
        if *chunk_peak < floor || exp::<FUSED>((*chunk_peak - peak) * inverse_temperature) < least * 0.999 {
            continue;
        }
        let first = number * CHUNK;
        let chunk = &logits[first..logits.len().min(first + CHUNK)];
        let mut masses = [0.0; CHUNK];
        for (mass, logit) in masses.iter_mut().zip(chunk) {
            *mass = exp::<FUSED>((*logit - peak) * inverse_temperature);
        }
        for (at, (logit, mass)) in chunk.iter().zip(masses).enumerate() {
            if *logit >= floor && mass >= least {
                scratch.kept.push(Candidate { token: (first + at) as u32, mass });
            }
        }
    }
}

/// Keeps the candidates that are as large as the `count`-th largest logit.
fn keep_largest(distribution: &Distribution, count: usize, scratch: &mut Scratch) {
    let Scratch { kept, ordered, .. } = scratch;
    if kept.len() <= count {
        return;
    }
    let logit = |candidate: &Candidate| distribution.logits[candidate.token as usize];
    ordered.clear();
    ordered.extend(kept.iter().map(logit));
    let (_, least, _) = ordered.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let least = *least;
    kept.retain(|candidate| logit(candidate) >= least);
}

/// Keeps the largest candidates, up to and including the one that reaches `limit`.
fn keep_mass(limit: f64, scratch: &mut Scratch) {
    let Scratch { kept, histogram, keys, .. } = scratch;
    histogram.clear();
    histogram.resize(size(1.0) + 1, 0.0);
    for candidate in &*kept {
        histogram[size(candidate.mass)] += f64::from(candidate.mass);
    }
    // From the largest size down to the one in which the limit lies.
    let mut before = 0.0;
    let Some(cut) = histogram.iter().rposition(|mass| {
        let reached = *mass > 0.0 && before + mass >= limit;
        before += if reached { 0.0 } else { *mass };
        reached
    }) else {
        return;
    };
    keys.clear();
    keys.extend(kept.iter().filter(|candidate| size(candidate.mass) == cut).map(Candidate::key));
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let mut least = 0;
    for key in &*keys {
        if before >= limit {
            break;
        }
        before += f64::from(f32::from_bits((*key >> 32) as u32));
        least = *key;
    }
    kept.retain(|candidate| size(candidate.mass) > cut || least > 0 && candidate.key() >= least);
}

/// The size of a mass between 0 and 1: a number that grows with it.
fn size(mass: f32) -> usize {
    (mass.to_bits() >> SIZE_SHIFT) as usize
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.mass)).sum()
}
