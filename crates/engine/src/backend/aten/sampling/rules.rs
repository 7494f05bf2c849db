//! How the draws of a step are to be drawn: chunks of draws, and their rules as columns.

use tch::{Kind, Tensor};

use super::super::upload::{Arrived, Part, Upload};
use crate::batch::{Batch, Draw, masked_tokens};

/// Draws whose logits are one matrix. Those that truncate come first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub(super) vocab_size: i64,
    /// Indices in the batch's draws.
    pub(super) draws: Vec<usize>,
    /// The draws of the chunk that want the most probable tokens.
    pub(super) tops: Vec<usize>,
    /// How many the most demanding of them wants.
    pub(super) most_top: usize,
    rows: Part,
    greedy: Part,
    inverse_temperature: Part,
    uniform: Part,
    top_rows: Part,
    truncation: Option<[Part; 3]>,
    penalty: Option<[Part; 2]>,
    masked: Option<Part>,
}

/// The draws of a step in chunks of at most `most`.
pub(super) fn chunks(
    batch: &Batch,
    places: &[i64],
    (vocab_size, most): (i64, usize),
    upload: &mut Upload,
) -> Vec<Chunk> {
    let (truncating, whole): (Vec<usize>, Vec<usize>) =
        (0..batch.draws.len()).partition(|draw| batch.draws[*draw].rule.truncates());
    let order = [truncating, whole].concat();
    order.chunks(most).map(|draws| Chunk::new(batch, draws, (places, vocab_size), upload)).collect()
}

impl Chunk {
    fn new(batch: &Batch, draws: &[usize], (places, vocab_size): (&[i64], i64), upload: &mut Upload) -> Self {
        let of = |draw: &usize| &batch.draws[*draw];
        let rules = || draws.iter().map(|draw| of(draw).rule);
        let inverse = |draw: &Draw| match draw.rule.greedy() {
            true => 1.0,
            // Bounded, so that a temperature of almost 0 takes 0 / 0 to 0.
            false => (1.0 / draw.rule.temperature).min(f32::MAX),
        };
        let truncating = rules().filter(|rule| rule.truncates());
        let truncation = truncating.clone().next().map(|_| {
            let top_k = truncating.clone().map(|rule| rule.top_k as i64);
            let top_k = top_k.map(|count| if count == 0 { vocab_size } else { count.min(vocab_size) });
            let top_p = truncating.clone().map(|rule| f64::from(rule.top_p));
            let min_p = truncating.clone().map(|rule| f64::from(rule.min_p));
            [upload.integers(top_k), upload.floats(top_p), upload.floats(min_p)]
        });
        let seen = (0..).zip(draws).flat_map(|(row, draw)| {
            let seen = &batch.seen[of(draw).seen.clone()];
            seen.iter().map(move |token| row * vocab_size + i64::from(*token))
        });
        let penalty = draws.iter().any(|draw| !of(draw).seen.is_empty()).then(|| {
            let penalties = rules().map(|rule| f64::from(rule.repetition_penalty));
            [upload.integers(seen), upload.floats(penalties)]
        });
        let is_masked = draws.iter().any(|draw| of(draw).mask.is_some());
        let size = usize::try_from(vocab_size).unwrap_or(usize::MAX);
        let masked = (0..).zip(draws).flat_map(|(row, draw)| {
            let mask = batch.mask(of(draw)).unwrap_or_default();
            masked_tokens(mask, size).map(move |token| row * vocab_size + token as i64)
        });
        let masked = is_masked.then(|| upload.integers(masked));
        let tops: Vec<usize> = (0..draws.len()).filter(|at| of(&draws[*at]).top > 0).collect();
        let most_top = draws.iter().map(|draw| of(draw).top).max().unwrap_or(0);
        Self {
            vocab_size,
            draws: draws.to_vec(),
            most_top: most_top.min(usize::try_from(vocab_size).unwrap_or(usize::MAX)),
            rows: upload.integers(draws.iter().map(|draw| places[of(draw).row])),
            greedy: upload.integers(rules().map(|rule| i64::from(rule.greedy()))),
            inverse_temperature: upload.floats(draws.iter().map(|draw| f64::from(inverse(of(draw))))),
            uniform: upload.floats(draws.iter().map(|draw| of(draw).uniform)),
            top_rows: upload.integers(tops.iter().map(|at| *at as i64)),
            tops,
            truncation,
            penalty,
            masked,
        }
    }

    pub(super) fn place(&self, arrived: &Arrived) -> PlacedRules {
        let floats = |part: Part| arrived.floats(part).unsqueeze(-1);
        PlacedRules {
            rows: arrived.integers(self.rows),
            greedy: arrived.integers(self.greedy).unsqueeze(-1).to_kind(Kind::Bool),
            inverse_temperature: floats(self.inverse_temperature).to_kind(Kind::Float),
            uniform: floats(self.uniform),
            truncation: self.truncation.map(|[top_k, top_p, min_p]| Truncation {
                top_k: arrived.integers(top_k).unsqueeze(-1),
                top_p: floats(top_p),
                min_p: floats(min_p).to_kind(Kind::Float),
            }),
            penalty: self.penalty.map(|[seen, penalties]| Penalty {
                seen: arrived.integers(seen),
                penalties: arrived.floats(penalties).to_kind(Kind::Float),
            }),
            masked: self.masked.map(|masked| arrived.integers(masked)),
            tops: (!self.tops.is_empty()).then(|| arrived.integers(self.top_rows)),
        }
    }
}

/// A chunk's rules on the device. Columns are `[draws, 1]`.
#[derive(Debug)]
pub(super) struct PlacedRules {
    /// Rows of the step, `[draws]` i64.
    pub(super) rows: Tensor,
    pub(super) greedy: Tensor,
    /// f32; 1 for greedy rows.
    pub(super) inverse_temperature: Tensor,
    /// f64.
    pub(super) uniform: Tensor,
    /// Of the first rows, if any truncates.
    pub(super) truncation: Option<Truncation>,
    penalty: Option<Penalty>,
    /// Places in the flat logits of tokens that cannot be drawn, each once.
    masked: Option<Tensor>,
    /// The draws that want the most probable tokens, `[tops]` i64.
    pub(super) tops: Option<Tensor>,
}

/// Which tokens may be drawn.
#[derive(Debug)]
pub(super) struct Truncation {
    /// `[rows, 1]` i64; the vocabulary's size where there is none.
    pub(super) top_k: Tensor,
    /// `[rows, 1]` f64.
    top_p: Tensor,
    /// `[rows, 1]` f32.
    min_p: Tensor,
}

#[derive(Debug)]
struct Penalty {
    /// Places in the flat logits of tokens that were seen, each once.
    seen: Tensor,
    /// `[draws]` f32.
    penalties: Tensor,
}

impl PlacedRules {
    /// Divides logits of seen tokens, `[draws, vocab]`, by the penalty if positive, multiplies them if not
    /// (Keskar et al., CTRL, arXiv 1909.05858, as transformers has it).
    pub(super) fn penalise(&self, logits: &mut Tensor, vocab_size: i64) {
        let Some(Penalty { seen, penalties }) = &self.penalty else { return };
        let mut flat = logits.view(-1);
        let found = flat.index_select(0, seen);
        let penalties = penalties.index_select(0, &seen.floor_divide_scalar(vocab_size));
        let penalised = (&found / &penalties).where_self(&found.gt(0.0), &(&found * &penalties));
        let _ = flat.index_copy_(0, seen, &penalised);
    }
}

impl PlacedRules {
    /// The logits over the temperature, `[draws, vocab]`, of the tokens that can be drawn, those of the
    /// others -inf and the largest of each row 0; and by how much each row was raised for that, `[draws, 1]`.
    /// Nothing where every token can be drawn.
    pub(super) fn allowed(&self, scaled: &Tensor) -> Option<(Tensor, Tensor)> {
        let masked = self.masked.as_ref()?;
        let allowed = scaled.copy();
        let _ = allowed.view(-1).index_fill_(0, masked, f64::NEG_INFINITY);
        let peak = allowed.amax([-1], true);
        Some((allowed - &peak, -peak))
    }
}

impl Truncation {
    /// 1 for the tokens that may be drawn, 0 for all others, `[rows, vocab]` f32. `scaled` are the logits
    /// over the temperature, the largest of them 0.
    ///
    /// As in transformers: top-k keeps all tokens that are as large as the k-th; top-p keeps a token if those
    /// before it, in falling order, of equals the one of the lower id first, sum up to less than p of what
    /// top-k left; min-p keeps a token of at least that share of the largest. The most probable token always
    /// survives.
    pub(super) fn survivors(&self, scaled: &Tensor) -> Tensor {
        let (sorted, order) = scaled.sort_stable(true, -1, true);
        let of_top_k = sorted.ge_tensor(&sorted.gather(-1, &(&self.top_k - 1), false));
        let masses = sorted.exp() * &of_top_k;
        let sums = masses.cumsum(-1, Kind::Double);
        let limit = sums.narrow(1, scaled.size()[1] - 1, 1) * &self.top_p;
        let of_top_p = (sums - &masses).lt_tensor(&limit);
        let of_min_p = masses.ge_tensor(&self.min_p);
        let kept = of_top_k.logical_and(&of_top_p).logical_and(&of_min_p);
        scaled.zeros_like().scatter(-1, &order, &kept.to_kind(Kind::Float))
    }
}
