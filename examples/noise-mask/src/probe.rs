//! Does a loss teach the policy what it is told? A cost that is known: the light that a mask lets through the
//! upper half of its grid. A policy that follows it darkens the upper half and leaves the lower one alone.

use serde::Serialize;
use tch::{Kind, Tensor};

use crate::images::DataSet;
use crate::losses::{paper_loss, reinforce_loss};
use crate::mask_policy::{Grid, MaskPolicy};
use crate::training::{batches, sgd, stream};

/// The stream of a seed's random numbers.
const STREAM: u64 = 3;
/// The policy's learning rate of the paper, and the images of a step.
const LEARNING_RATE: f64 = 0.01;
const BATCH: usize = 32;

/// A loss and the cost that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Probe {
    /// REINFORCE with the light of the upper half.
    Reinforce,
    /// The paper's loss with the same.
    Paper,
    /// The paper's loss with a cost of ½ whatever the mask: what it does of itself.
    PaperConstantCost,
}

impl Probe {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Reinforce, Self::Paper, Self::PaperConstantCost];
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Reinforce => "REINFORCE",
            Self::Paper => "the paper's loss",
            Self::PaperConstantCost => "the paper's loss, constant cost",
        })
    }
}

/// What a policy has become.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Probed {
    /// The mean mask of the upper half.
    pub(crate) upper: f64,
    /// And of the lower half.
    pub(crate) lower: f64,
    /// The mean entropy of a cell.
    pub(crate) entropy: f64,
}

/// Trains a policy for so many steps, and says what it has become over the images to judge by.
///
/// # Errors
/// When the optimizer cannot be made.
pub(crate) fn probe(
    data: &DataSet,
    grid: &Grid,
    probe: Probe,
    steps: usize,
    seed: u64,
) -> anyhow::Result<Probed> {
    let mut policy = MaskPolicy::new(grid.cells(), i64::try_from(seed)?);
    let mut optimizer = sgd(policy.variables(), LEARNING_RATE)?;
    let mut rng = stream(seed, STREAM);
    let mut done = 0;
    while done < steps {
        for numbers in
            batches(&data.train, BATCH.min(data.train.len()), &mut rng).into_iter().take(steps - done)
        {
            let (pixels, _) = data.train.shifted(&numbers, &mut rng);
            let distributions = policy.distributions(&pixels);
            let cells = distributions.sample();
            let log_densities = distributions.log_density(&cells);
            let costs = upper_half(&cells).mean_dim([1i64].as_slice(), false, Kind::Double);
            let loss = match probe {
                Probe::Reinforce => reinforce_loss(&log_densities, &costs),
                Probe::Paper => paper_loss(&log_densities, &costs),
                Probe::PaperConstantCost => paper_loss(&log_densities, &(costs.zeros_like() + 0.5)),
            };
            optimizer.backward_step(&loss);
            done += 1;
        }
    }
    let distributions = policy.distributions_now(data.test.pixels());
    let means = distributions.mean();
    let upper = upper_half(&means).mean(Kind::Double).double_value(&[]);
    let all = means.mean(Kind::Double).double_value(&[]);
    let cells = grid.cells() as f64;
    let share = (grid.cells() / 2) as f64 / cells;
    Ok(Probed {
        upper,
        lower: (all - upper * share) / (1.0 - share),
        entropy: distributions.entropy().mean(Kind::Double).double_value(&[]),
    })
}

/// The first half of the cells, [images, cells / 2].
fn upper_half(cells: &Tensor) -> Tensor {
    cells.narrow(1, 0, cells.size()[1] / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::digits;

    #[test]
    fn reinforce_learns_a_known_cost_and_the_papers_loss_does_not() {
        let data = digits(30, &mut stream(1, 0)).unwrap();
        let grid = Grid::new(8, data.side).unwrap();
        let [taught, papers, constant] = Probe::ALL.map(|loss| probe(&data, &grid, loss, 400, 1).unwrap());
        assert!(taught.upper < taught.lower - 0.1, "{taught:?}");
        assert!((papers.upper - papers.lower).abs() < 0.03, "{papers:?}");
        assert!((papers.upper - constant.upper).abs() < 0.01, "{papers:?} {constant:?}");
        assert!(papers.entropy > taught.entropy, "{papers:?} {taught:?}");
    }
}
