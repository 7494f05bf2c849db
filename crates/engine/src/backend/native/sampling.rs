//! Drawing tokens from rows of logits.
//!
//! The order of transformers: repetition penalty, temperature, top-k, top-p, min-p. A token is drawn by
//! inverting the distribution function over the tokens in the order of their ids, with the one random number
//! of its position. Log-probabilities are those before truncation.

mod survivors;

use std::cell::RefCell;

use super::machine::{self, DistinctUnits, Kernel, Level, PairProducts, Team};
use super::math::{LANES, add_lanes, exp};
use super::matrix::Matrix;
use crate::batch::{Batch, Draw, DrawRule, Drawn, masked_tokens};
use crate::request::TokenLogprob;

/// Logits whose largest is kept, so that a search can skip those that hold nothing large.
const CHUNK: usize = LANES;

/// Logits whose probabilities are summed up in f32; the sums of these are f64.
const STRETCH: usize = 8 * CHUNK;

/// Draws one token for each of `draws`, from the rows of `logits` in order.
pub(crate) fn draw(
    (team, level): (&mut Team, Level),
    batch: &Batch,
    draws: &[Draw],
    logits: &Matrix,
    (targets, drawn): (&mut DistinctUnits, &mut [Drawn]),
) {
    let count = u32::try_from(draws.len()).expect("a step draws fewer than 2^32 tokens");
    targets.set(0..count, draws.len());
    team.units(drawn, 1, targets, |row, drawn| {
        let draw = &draws[row];
        let seen = &batch.seen[draw.seen.clone()];
        let mask = batch.mask(draw);
        machine::run(level, Task { logits: logits.row(row), draw, seen, mask, drawn: &mut drawn[0] });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Space that a thread draws in.
#[derive(Debug, Default)]
struct Scratch {
    /// The logits after the repetition penalty.
    penalised: Vec<f32>,
    /// The logits of the tokens that may be drawn; those of the others are -inf.
    allowed: Vec<f32>,
    /// The largest logit of each chunk.
    peaks: Vec<f32>,
    /// The same, in the order of a search.
    ordered: Vec<f32>,
    /// Unnormalised mass of each stretch.
    masses: Vec<f32>,
    /// The tokens that may be drawn.
    kept: Vec<Candidate>,
    /// Mass by size of probability.
    histogram: Vec<f64>,
    /// Candidates of one size.
    keys: Vec<u64>,
}

/// A token and its unnormalised probability: 1 for the most probable.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    mass: f32,
}

impl Candidate {
    /// Orders candidates. The pattern of a positive number grows with it; the token is inverted so that of
    /// equals the lower id is larger.
    fn key(&self) -> u64 {
        u64::from(self.mass.to_bits()) << 32 | u64::from(!self.token)
    }
}

struct Task<'a> {
    logits: &'a [f32],
    draw: &'a Draw,
    seen: &'a [u32],
    /// Which tokens may be drawn, if not all.
    mask: Option<&'a [u32]>,
    drawn: &'a mut Drawn,
}

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(self) {
        let mut scratch = SCRATCH.take();
        let rule = self.draw.rule;
        let mut penalised = std::mem::take(&mut scratch.penalised);
        let row = if rule.repetition_penalty == 1.0 {
            self.logits
        } else {
            penalise(self.logits, self.seen, rule.repetition_penalty, &mut penalised);
            &penalised
        };
        let distribution = Distribution::new::<FUSED>(row, &rule, &mut scratch);
        let top = if self.draw.top > 0 { distribution.top(self.draw.top, &mut scratch) } else { Vec::new() };
        *self.drawn = match self.mask {
            None => distribution.draw::<FUSED>(&rule, self.draw.uniform, &mut scratch),
            Some(mask) => distribution.draw_masked::<FUSED>(mask, &rule, self.draw.uniform, &mut scratch),
        };
        self.drawn.top = top;
        scratch.penalised = penalised;
        SCRATCH.set(scratch);
    }
}

/// Logits of seen tokens divided by the penalty if positive, multiplied if not (Keskar et al., CTRL, arXiv
/// 1909.05858, as transformers has it).
fn penalise(logits: &[f32], seen: &[u32], penalty: f32, penalised: &mut Vec<f32>) {
    penalised.clear();
    penalised.extend_from_slice(logits);
    for token in seen {
        let logit = &mut penalised[*token as usize];
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
}

/// The distribution of a row of logits at a temperature.
struct Distribution<'a> {
    logits: &'a [f32],
    /// The largest logit; not finite when the logits are not.
    peak: f32,
    inverse_temperature: f32,
    /// Sum of `e^((logit - peak) / temperature)`.
    total: f64,
}

impl<'a> Distribution<'a> {
    /// Leaves the chunks' peaks and the stretches' masses in `scratch`.
    #[inline(always)]
    fn new<const FUSED: bool>(logits: &'a [f32], rule: &DrawRule, scratch: &mut Scratch) -> Self {
        scratch.peaks.clear();
        let (chunks, rest) = logits.as_chunks::<CHUNK>();
        for chunk in chunks {
            scratch.peaks.push(largest(chunk));
        }
        if !rest.is_empty() {
            scratch.peaks.push(largest(rest));
        }
        let peak = largest(&scratch.peaks);
        // Bounded, so that a temperature of almost 0 takes 0 / 0 to 0.
        let inverse_temperature = if rule.greedy() { 1.0 } else { (1.0 / rule.temperature).min(f32::MAX) };
        scratch.masses.clear();
        for stretch in logits.chunks(STRETCH) {
            scratch.masses.push(mass::<FUSED>(stretch, peak, inverse_temperature));
        }
        let total = scratch.masses.iter().map(|mass| f64::from(*mass)).sum();
        Self { logits, peak, inverse_temperature, total }
    }

    #[inline(always)]
    fn draw<const FUSED: bool>(&self, rule: &DrawRule, uniform: f64, scratch: &mut Scratch) -> Drawn {
        if !(self.peak.is_finite() && self.total.is_finite()) {
            return Drawn { token: 0, logprob: f32::NAN, surviving_mass: f32::NAN, top: Vec::new() };
        }
        let (token, surviving_mass) = if rule.greedy() {
            let position = self.logits.iter().position(|logit| *logit == self.peak);
            (position.expect("the peak is one of the logits"), 1.0)
        } else if rule.truncates() {
            let kept = survivors::find::<FUSED>(self, rule, scratch);
            (pick(&scratch.kept, uniform * kept), kept / self.total)
        } else {
            (self.invert::<FUSED>(uniform * self.total, &scratch.masses), 1.0)
        };
        let logprob = self.logprob(self.logits[token]);
        Drawn { token: token as u32, logprob, surviving_mass: surviving_mass as f32, top: Vec::new() }
    }

    /// Draws one of the tokens that a mask allows, as if the others' logits were -inf. Its log-probability is
    /// that among all tokens.
    #[inline(always)]
    fn draw_masked<const FUSED: bool>(
        &self,
        mask: &[u32],
        rule: &DrawRule,
        uniform: f64,
        scratch: &mut Scratch,
    ) -> Drawn {
        let mut logits = std::mem::take(&mut scratch.allowed);
        logits.clear();
        logits.extend_from_slice(self.logits);
        for token in masked_tokens(mask, logits.len()) {
            logits[token] = f32::NEG_INFINITY;
        }
        let allowed = Distribution::new::<FUSED>(&logits, rule, scratch);
        let mut drawn = allowed.draw::<FUSED>(rule, uniform, scratch);
        let lower = f64::from((allowed.peak - self.peak) * self.inverse_temperature);
        let share = lower.exp() * allowed.total / self.total;
        // The drawn token is among the tokens of the row; without finite numbers both stay NaN.
        if drawn.logprob.is_finite() {
            drawn.logprob = self.logprob(self.logits[drawn.token as usize]);
            drawn.surviving_mass = (f64::from(drawn.surviving_mass) * share) as f32;
        }
        scratch.allowed = logits;
        drawn
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from((logit - self.peak) * self.inverse_temperature) - self.total.ln()) as f32
    }

    /// The token at which the sum of masses, in the order of ids, exceeds `target`.
    #[inline(always)]
    fn invert<const FUSED: bool>(&self, target: f64, masses: &[f32]) -> usize {
        let mut before = 0.0;
        let mut chosen = 0;
        for (stretch, mass) in masses.iter().enumerate() {
            if *mass > 0.0 {
                chosen = stretch;
                if before + f64::from(*mass) > target {
                    break;
                }
                before += f64::from(*mass);
            }
        }
        let first = chosen * STRETCH;
        let stretch = &self.logits[first..self.logits.len().min(first + STRETCH)];
        let mut exact = [0.0; STRETCH];
        for (mass, logit) in exact.iter_mut().zip(stretch) {
            *mass = exp::<FUSED>((*logit - self.peak) * self.inverse_temperature);
        }
        // Should rounding leave the target behind the end, the last token that has any mass is taken.
        let mut token = 0;
        for (at, mass) in exact.iter().take(stretch.len()).enumerate() {
            if *mass > 0.0 {
                token = at;
                before += f64::from(*mass);
                if before > target {
                    break;
                }
            }
        }
        first + token
    }

    /// The `count` most probable tokens, the most probable first, of equals the one of the lower id.
    fn top(&self, count: usize, scratch: &mut Scratch) -> Vec<TokenLogprob> {
        let floor = survivors::floor_of_top(count, scratch);
        let mut found: Vec<TokenLogprob> = Vec::new();
        for (chunk, peak) in scratch.peaks.iter().enumerate() {
            if *peak < floor {
                continue;
            }
            let first = chunk * CHUNK;
            let logits = &self.logits[first..self.logits.len().min(first + CHUNK)];
            let large = logits.iter().enumerate().filter(|(_, logit)| **logit >= floor);
            found.extend(
                large.map(|(at, logit)| TokenLogprob { token: (first + at) as u32, logprob: *logit }),
            );
        }
        found.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.token.cmp(&b.token)));
        found.truncate(count);
        for entry in &mut found {
            entry.logprob = self.logprob(entry.logprob);
        }
        found
    }
}

/// The candidate at which the sum of masses exceeds `target`.
fn pick(kept: &[Candidate], target: f64) -> usize {
    let mut before = 0.0;
    let mut chosen = 0;
    for candidate in kept {
        if candidate.mass > 0.0 {
            chosen = candidate.token;
            before += f64::from(candidate.mass);
            if before > target {
                break;
            }
        }
    }
    chosen as usize
}

/// The largest of some numbers; NaN is passed over.
#[inline(always)]
fn largest(numbers: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    for chunk in numbers.chunks(LANES) {
        for (best, number) in best.iter_mut().zip(chunk) {
            *best = if *number > *best { *number } else { *best };
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            let other = best[lane + width];
            best[lane] = if other > best[lane] { other } else { best[lane] };
        }
    }
    best[0]
}

/// Sum of `e^((logit - peak) * inverse_temperature)`.
#[inline(always)]
fn mass<const FUSED: bool>(logits: &[f32], peak: f32, inverse_temperature: f32) -> f32 {
    let mut sums = [0.0; LANES];
    for chunk in logits.chunks(LANES) {
        for (sum, logit) in sums.iter_mut().zip(chunk) {
            *sum += exp::<FUSED>((*logit - peak) * inverse_temperature);
        }
    }
    add_lanes(sums)
}
