//! Weights in the order in which a matrix product reads them.
//!
//! A weight matrix `[outputs, inputs]` is cut into panels of 32 outputs. A panel holds, for each pair of
//! inputs, the weights of its outputs side by side, so that a product streams through memory from beginning
//! to end and a vector register holds weights of 16 outputs for one input (Goto and van de Geijn, ACM TOMS
//! 34, 2008).

use super::memory::Buffer;
use super::number::{Number, PANEL};

/// A packed weight matrix. Outputs beyond the last are zero up to the end of the panel, and so is a last odd
/// input.
#[derive(Debug)]
pub(crate) struct Panels<N: Number> {
    pairs: Buffer<N::Pair>,
    /// Pairs of a panel.
    depth: usize,
}

impl<N: Number> Panels<N> {
    /// Packs a matrix whose output `i` is `row(i)`, of `inputs` elements, or zero where that is `None`.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn pack<'a>(
        outputs: usize,
        inputs: usize,
        row: impl Fn(usize) -> Option<&'a [N]>,
    ) -> std::io::Result<Self> {
        let depth = inputs.div_ceil(2);
        let panels = outputs.div_ceil(PANEL);
        let mut pairs = Buffer::zeros(panels * depth)?;
        let zero = [N::narrow(0.0); PANEL];
        for (number, panel) in pairs.chunks_exact_mut(depth.max(1)).enumerate() {
            let first = number * PANEL;
            let rows: [Option<&[N]>; PANEL] =
                std::array::from_fn(
                    |column| if first + column < outputs { row(first + column) } else { None },
                );
            for (at, pair) in panel.iter_mut().enumerate() {
                let (mut even, mut odd) = (zero, zero);
                for (column, row) in rows.iter().enumerate() {
                    let Some(row) = row else { continue };
                    even[column] = row[2 * at];
                    odd[column] = row.get(2 * at + 1).copied().unwrap_or(zero[0]);
                }
                *pair = N::pair(&even, &odd);
            }
        }
        Ok(Self { pairs, depth })
    }

    /// The panel of outputs `32 * number` and following.
    #[inline(always)]
    pub(crate) fn panel(&self, number: usize) -> &[N::Pair] {
        &self.pairs[number * self.depth..][..self.depth]
    }

    /// The weights of one output, as many as `row` holds.
    #[inline(always)]
    pub(crate) fn copy_output(&self, output: usize, row: &mut [f32]) {
        let panel = self.panel(output / PANEL);
        for (inputs, pair) in row.chunks_mut(2).zip(panel) {
            let [[even], [odd]] = N::unpair::<1>(pair, output % PANEL);
            inputs[0] = even;
            if let Some(input) = inputs.get_mut(1) {
                *input = odd;
            }
        }
    }

    /// Share `part` of `parts` of a panel; nothing of one behind the last.
    #[inline(always)]
    pub(crate) fn share(&self, number: usize, (part, parts): (usize, usize)) -> &[N::Pair] {
        let panel = self.pairs.get(number * self.depth..).unwrap_or_default();
        let panel = &panel[..self.depth.min(panel.len())];
        &panel[part * panel.len() / parts..(part + 1) * panel.len() / parts]
    }
}
