//! Attention over the cache where FlashAttention does not apply: on the CPU, and in f32 on a GPU.
//!
//! What a layer's rows see is gathered from the pool with one operator. Sequences that decode are attended to
//! together, each padded to the longest of its group; a group holds lengths that differ by a factor of two at
//! most, so that less than half of what is gathered is padding, however ragged the batch. Longer stretches
//! are attended to one by one, without padding. Masks are made once a step.

use tch::{Device, Kind, Tensor};

use super::super::cache::{LayerCache, Shape};
use super::super::rows::{Order, first_visible, length};
use super::super::upload::{Arrived, Part, Upload};
use crate::batch::Segment;

/// Padding of a group that costs less than another group's operators, in tokens of a sequence.
const CHEAP_PADDING: usize = 64;

/// What the rows of a step see, in layers of one window.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Padded {
    /// Where the keys of all groups lie, group by group, sequence by sequence.
    slots: Part,
    groups: Vec<Group>,
}

/// Rows that are attended to together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Group {
    sequences: i64,
    /// Rows of each sequence.
    rows: i64,
    /// Keys of each sequence, padding included.
    keys: i64,
    visible: Visible,
}

/// Which keys of its group a row sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Visible {
    /// All.
    All,
    /// As many of the first as this says, for each sequence.
    First(Part),
    /// Row i sees the keys up to its own, the one at `shift + i`, and of these the last `window`.
    Causal { shift: i64, window: Option<i64> },
}

/// The same on the device.
#[derive(Debug)]
pub(crate) struct PlacedPadded {
    slots: Tensor,
    groups: Vec<PlacedGroup>,
}

#[derive(Debug)]
struct PlacedGroup {
    sequences: i64,
    rows: i64,
    keys: i64,
    /// Added to the scores: 0, or minus infinity where a key is not seen. `[sequences, 1, 1, keys]` or
    /// `[rows, keys]`.
    mask: Option<Tensor>,
    /// Whether row i sees the keys up to the i-th.
    causal: bool,
}

impl Padded {
    pub(crate) fn new(order: &Order, window: Option<i64>, shape: &Shape, upload: &mut Upload) -> Self {
        let mut slots = Vec::new();
        let mut groups = Vec::new();
        let mut rest = order.decoding.as_slice();
        while let Some(longest) = rest.first() {
            let keys = visible_keys(longest, window);
            let fits = |segment: &&&Segment| keys <= 2 * visible_keys(segment, window) + CHEAP_PADDING;
            let (group, others) = rest.split_at(rest.iter().take_while(fits).count());
            for segment in group {
                let (first, end) = (first_visible(segment, window), length(segment));
                slots.extend(shape.slots(order.batch, segment, first..end));
                // Padding is the sequence's own key, which is finite if its others are: it counts with weight
                // 0.
                let padding = shape.slots(order.batch, segment, first..first + 1).cycle();
                slots.extend(padding.take(keys - (end - first)));
            }
            let ragged = group.iter().any(|segment| visible_keys(segment, window) < keys);
            let lengths = group.iter().map(|segment| visible_keys(segment, window) as i64);
            groups.push(Group {
                sequences: group.len() as i64,
                rows: 1,
                keys: keys as i64,
                visible: if ragged { Visible::First(upload.integers(lengths)) } else { Visible::All },
            });
            rest = others;
        }
        for segment in &order.stretches {
            let (first, end) = (first_visible(segment, window), length(segment));
            slots.extend(shape.slots(order.batch, segment, first..end));
            let shift = (segment.start - first) as i64;
            groups.push(Group {
                sequences: 1,
                rows: segment.rows.len() as i64,
                keys: (end - first) as i64,
                visible: Visible::Causal { shift, window: window.filter(|window| *window < end as i64) },
            });
        }
        Self { slots: upload.integers(slots), groups }
    }

    /// Makes the masks, for queries of `kind`.
    pub(crate) fn place(&self, arrived: &Arrived, (kind, device): (Kind, Device)) -> PlacedPadded {
        let groups = self.groups.iter().map(|group| {
            let mask = group.hidden(arrived, device).map(|hidden| {
                let scores = Tensor::zeros(hidden.size(), (kind, device));
                scores.masked_fill(&hidden, f64::NEG_INFINITY)
            });
            let Group { sequences, rows, keys, .. } = *group;
            let causal = mask.is_none() && matches!(group.visible, Visible::Causal { .. });
            PlacedGroup { sequences, rows, keys, mask, causal }
        });
        PlacedPadded { slots: arrived.integers(self.slots), groups: groups.collect() }
    }
}

impl Group {
    /// Which keys are not seen, where that needs a mask.
    fn hidden(&self, arrived: &Arrived, device: Device) -> Option<Tensor> {
        match self.visible {
            Visible::All | Visible::Causal { shift: 0, window: None } => None,
            Visible::First(lengths) => {
                let lengths = arrived.integers(lengths).view([-1, 1, 1, 1]);
                Some(Tensor::arange(self.keys, (Kind::Int64, device)).ge_tensor(&lengths))
            }
            Visible::Causal { shift, window } => {
                let all = Tensor::ones([self.rows, self.keys], (Kind::Bool, device));
                let seen = all.tril(shift);
                let seen = window.map_or(seen.shallow_clone(), |window| seen.triu(shift - window + 1));
                Some(seen.logical_not())
            }
        }
    }
}

/// Keys that the rows of a segment see, all together; they end with the last row's own.
fn visible_keys(segment: &Segment, window: Option<i64>) -> usize {
    length(segment) - first_visible(segment, window)
}

impl PlacedPadded {
    /// Attention of `queries`, `[rows, heads, head_dim]`, over a layer's cache; the same shape.
    pub(crate) fn attend(&self, cache: &LayerCache, queries: &Tensor) -> Tensor {
        let gathered = cache.tokens.index_select(0, &self.slots);
        let (mut row, mut key) = (0, 0);
        let attended = self.groups.iter().map(|group| {
            let (rows, keys) = (group.sequences * group.rows, group.sequences * group.keys);
            let (queries, gathered) = (queries.narrow(0, row, rows), gathered.narrow(0, key, keys));
            (row, key) = (row + rows, key + keys);
            if group.rows == 1 {
                group.decode(&queries, &gathered)
            } else {
                group.stretch(&queries, &gathered)
            }
        });
        let attended: Vec<Tensor> = attended.collect();
        match attended.as_slice() {
            [only] => only.shallow_clone(),
            several => Tensor::cat(several, 0),
        }
    }
}

impl PlacedGroup {
    /// One row of each sequence. The query heads that share a key head are rows of one product.
    fn decode(&self, queries: &Tensor, gathered: &Tensor) -> Tensor {
        let (_, heads, head_dim) = queries.size3().expect("queries are [rows, heads, head_dim]");
        let (keys, values) = self.keys_values(gathered);
        let queries = queries.reshape([self.sequences, keys.size()[1], -1, head_dim]);
        self.product(&queries, &keys, &values, false).reshape([-1, heads, head_dim])
    }

    /// Several rows of one sequence.
    fn stretch(&self, queries: &Tensor, gathered: &Tensor) -> Tensor {
        let (keys, values) = self.keys_values(gathered);
        let queries = queries.transpose(0, 1).unsqueeze(0);
        let shared_keys = queries.size()[1] != keys.size()[1];
        self.product(&queries, &keys, &values, shared_keys).squeeze_dim(0).transpose(0, 1)
    }

    /// Keys and values, `[sequences, kv_heads, keys, head_dim]`.
    fn keys_values(&self, gathered: &Tensor) -> (Tensor, Tensor) {
        let (_, kv_heads_twice, head_dim) = gathered.size3().expect("[keys, 2 kv_heads, head_dim]");
        let by_head = gathered.view([self.sequences, self.keys, kv_heads_twice, head_dim]).transpose(1, 2);
        let kv_heads = kv_heads_twice / 2;
        (by_head.narrow(1, 0, kv_heads), by_head.narrow(1, kv_heads, kv_heads))
    }

    fn product(&self, queries: &Tensor, keys: &Tensor, values: &Tensor, shared_keys: bool) -> Tensor {
        let mask = self.mask.as_ref();
        Tensor::scaled_dot_product_attention(queries, keys, values, mask, 0.0, self.causal, None, shared_keys)
    }
}
