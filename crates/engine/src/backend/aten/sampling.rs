//! Drawing tokens on the device, for all rows of a chunk at once.
//!
//! The rules are those of the native backend: repetition penalty, temperature, top-k, top-p, min-p, then the
//! inverse of the distribution function over the tokens in the order of their ids, at the one random number
//! of the draw. Log-probabilities are those before truncation. Rows that follow different rules are drawn
//! together; only those that truncate are sorted.
//!
//! Sums over the vocabulary are f64, everything else is f32.

mod rules;

use model::{ModelConfig, Network};
use tch::{Kind, Tensor};

use super::upload::{Arrived, Upload};
use crate::batch::{Batch, Drawn};
use crate::request::TokenLogprob;
use rules::{Chunk, PlacedRules};

/// Elements of the largest matrix of logits: 64 MiB in f32. About ten such matrices live at a time where rows
/// are sorted.
const LOGIT_ELEMENTS: i64 = 1 << 24;

/// Numbers that come back for each draw: token, log-probability, surviving mass.
const NUMBERS: usize = 3;

/// The draws of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Draws {
    chunks: Vec<Chunk>,
}

impl Draws {
    /// `places` are the rows on the device of the batch's rows.
    pub(crate) fn new(batch: &Batch, places: &[i64], vocab_size: i64, upload: &mut Upload) -> Self {
        let most = usize::try_from(LOGIT_ELEMENTS / vocab_size).unwrap_or(0).max(1);
        Self { chunks: rules::chunks(batch, places, (vocab_size, most), upload) }
    }

    /// Draws all tokens from `hidden`, `[rows, hidden]`, the output of the last block. What comes back, f64
    /// in one dimension, is for [`Self::read`]; it is empty when nothing draws.
    pub(crate) fn draw(
        &self,
        model: &ModelConfig,
        network: &Network,
        hidden: &Tensor,
        arrived: &Arrived,
    ) -> Tensor {
        let drawn = self.chunks.iter().flat_map(|chunk| {
            let rules = chunk.place(arrived);
            let hidden = hidden.index_select(0, &rules.rows);
            let hidden = model::final_norm(model, &network.output, &hidden);
            let logits = model::logits(&network.output, &hidden).to_kind(Kind::Float);
            draw(chunk, &rules, logits)
        });
        let drawn: Vec<Tensor> = drawn.collect();
        if drawn.is_empty() {
            return Tensor::empty([0], (Kind::Double, hidden.device()));
        }
        Tensor::cat(&drawn, 0)
    }

    /// The tokens, in the order of the batch's draws, from the numbers that [`Self::draw`] gave.
    pub(crate) fn read(&self, batch: &Batch, numbers: &[f64]) -> Vec<Drawn> {
        let mut drawn = vec![Drawn::default(); batch.draws.len()];
        let mut rest = numbers;
        for chunk in &self.chunks {
            let (of_draws, others) = rest.split_at(NUMBERS * chunk.draws.len());
            for (draw, numbers) in chunk.draws.iter().zip(of_draws.chunks_exact(NUMBERS)) {
                let [token, logprob, surviving_mass] = [numbers[0], numbers[1], numbers[2]];
                drawn[*draw] = Drawn {
                    token: token as u32,
                    logprob: logprob as f32,
                    surviving_mass: surviving_mass as f32,
                    top: Vec::new(),
                };
            }
            let width = 2 * chunk.most_top;
            let (of_tops, others) = others.split_at(width * chunk.tops.len());
            for (at, numbers) in chunk.tops.iter().zip(of_tops.chunks_exact(width.max(1))) {
                let draw = chunk.draws[*at];
                let (tokens, logprobs) = numbers.split_at(chunk.most_top);
                let top = tokens.iter().zip(logprobs).take(batch.draws[draw].top);
                drawn[draw].top = top
                    .map(|(token, logprob)| TokenLogprob { token: *token as u32, logprob: *logprob as f32 })
                    .collect();
            }
            rest = others;
        }
        drawn
    }
}

/// Draws the tokens of a chunk from `logits`, `[draws, vocab]` f32: the three numbers of each draw, then, for
/// the draws that want them, the most probable tokens and their log-probabilities. All f64, flat.
fn draw(chunk: &Chunk, rules: &PlacedRules, mut logits: Tensor) -> Vec<Tensor> {
    let vocab_size = chunk.vocab_size;
    rules.penalise(&mut logits, vocab_size);
    let (peak, mut most_probable) = logits.max_dim(-1, true);
    let scaled = (logits - peak) * &rules.inverse_temperature;
    let mut masses = scaled.exp();
    let last = |sums: &Tensor| sums.narrow(1, vocab_size - 1, 1);
    let mut distribution = masses.cumsum(-1, Kind::Double);
    let mut total = last(&distribution).copy();
    let normalizer = total.log();
    let mut allowed = scaled.shallow_clone();
    if let Some((logits, raised)) = rules.allowed(&scaled) {
        allowed = logits;
        most_probable = allowed.argmax(-1, true);
        masses = allowed.exp();
        distribution = masses.cumsum(-1, Kind::Double);
        total *= raised.to_kind(Kind::Double).exp();
    }
    if let Some(truncation) = &rules.truncation {
        let rows = truncation.top_k.size()[0];
        let mut masses = masses.narrow(0, 0, rows);
        let _ = masses.g_mul_(&truncation.survivors(&allowed.narrow(0, 0, rows)));
        distribution.narrow(0, 0, rows).copy_(&masses.cumsum(-1, Kind::Double));
    }
    let kept = last(&distribution);
    let drawn = invert(&distribution, &(&rules.uniform * &kept), &kept);
    let token = most_probable.where_self(&rules.greedy, &drawn).clamp(0, vocab_size - 1);
    let logprob = scaled.gather(-1, &token, false) - &normalizer;
    let mut numbers = vec![Tensor::cat(&[token.to_kind(Kind::Double), logprob, kept / total], 1).view(-1)];
    if let Some(tops) = &rules.tops {
        let select = |rows: &Tensor| rows.index_select(0, tops);
        // A sort, because of equals the lower id comes first.
        let (sorted, order) = select(&scaled).sort_stable(true, -1, true);
        let count = chunk.most_top as i64;
        let logprobs = sorted.narrow(1, 0, count) - select(&normalizer);
        let tokens = order.narrow(1, 0, count).to_kind(Kind::Double);
        numbers.push(Tensor::cat(&[tokens, logprobs], 1).view(-1));
    }
    numbers
}

/// The token, `[draws, 1]`, at which each row of `distribution` exceeds `target`, or the last that has any
/// mass of `all`, should rounding leave the target behind the end.
fn invert(distribution: &Tensor, target: &Tensor, all: &Tensor) -> Tensor {
    let search = |value: &Tensor, right: bool| {
        let side = if right { "right" } else { "left" };
        value.contiguous().searchsorted(distribution, false, right, side, None::<&Tensor>)
    };
    search(target, true).minimum(&search(all, false))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::small_model;
    use super::*;
    use crate::batch::{Draw, DrawRule};

    /// Draws of all kinds, with rows in falling order.
    fn batch(count: usize) -> Batch {
        let mut batch = Batch::default();
        for at in 0..count {
            let first_seen = batch.seen.len();
            batch.seen.extend((0..at as u32 % 4).map(|token| 3 * token));
            let rule = DrawRule {
                temperature: [0.0, 1.0, 0.5][at % 3],
                top_p: [1.0, 0.8][at % 2],
                top_k: [0, 0, 0, 0, 7][at % 5],
                min_p: 0.0,
                repetition_penalty: if at % 4 == 0 { 1.0 } else { 1.5 },
            };
            batch.draws.push(Draw {
                row: count - 1 - at,
                rule,
                uniform: (at as f64 * 0.377).fract(),
                seen: first_seen..batch.seen.len(),
                mask: None,
                top: at % 3,
            });
        }
        batch
    }

    #[test]
    fn a_token_without_mass_is_never_drawn() {
        let row = |numbers: &[f64]| Tensor::from_slice(numbers).unsqueeze(0);
        // Tokens 0 and 2 have no mass, nor has the last.
        let distribution = row(&[0.0, 0.25, 0.25, 1.0, 1.0]);
        for (target, token) in [(0.0, 1), (0.2, 1), (0.25, 3), (0.9, 3), (1.0, 3), (1.1, 3)] {
            let drawn = invert(&distribution, &row(&[target]), &row(&[1.0]));
            assert_eq!(drawn.int64_value(&[0, 0]), token, "{target}");
        }
    }

    #[test]
    fn draws_do_not_depend_on_the_chunks() {
        let (model, weights) = small_model();
        let (batch, places) = (batch(23), Vec::from_iter(0..23));
        let hidden = Tensor::arange(23 * 16, (Kind::Float, Device::Cpu)).view([23, 16]).sin();
        let draw = |most: usize| {
            let mut upload = Upload::default();
            let draws = Draws { chunks: rules::chunks(&batch, &places, (50, most), &mut upload) };
            let arrived = upload.send(Device::Cpu);
            let numbers = draws.draw(&model, &weights.network(&model), &hidden, &arrived);
            draws.read(&batch, &Vec::try_from(numbers).unwrap())
        };
        let together = draw(23);
        for most in [1, 2, 5] {
            for (found, expected) in draw(most).iter().zip(&together) {
                assert_eq!(found.token, expected.token);
                assert!((found.logprob - expected.logprob).abs() < 1e-5);
                assert!((found.surviving_mass - expected.surviving_mass).abs() < 1e-5);
                let tokens = |drawn: &Drawn| drawn.top.iter().map(|top| top.token).collect::<Vec<_>>();
                assert_eq!(tokens(found), tokens(expected));
            }
        }
        let tops: Vec<usize> = together.iter().map(|drawn| drawn.top.len()).collect();
        assert_eq!(tops, (0..23).map(|at| at % 3).collect::<Vec<_>>());
        let tokens: std::collections::BTreeSet<u32> = together.iter().map(|drawn| drawn.token).collect();
        assert!(tokens.len() > 10, "the rows hardly differ, so that this shows little: {tokens:?}");
    }
}
