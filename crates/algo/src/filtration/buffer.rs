//! Filtrations that look at the whole buffer: all groups of a batch.
//!
//! The paper's PPO-pow-k (PF-PPO, arXiv 2409.06957, section 5.6) collects samples from the buffer B with
//! weights in proportion to `|R|^k`, whatever prompt they answer. The authors' code draws every strategy so
//! (`NaiveReplayBuffer.sample` of swtheing/PF-PPO-RLHF).

use super::random::GroupRandom;
use super::{Choice, Error, Filtration, Group, GroupDecision, Mode, Strategy, filter_group, rank};

/// A rollout that can be drawn.
struct Drawable<'a> {
    /// The ids of prompt and rollout, by which they are in order.
    ids: (&'a str, &'a str),
    /// Where it stands: its group, and its place there.
    place: (usize, usize),
    /// In proportion to the probability with which one draw hits it.
    mass: f64,
}

/// Filters all groups of a buffer; one decision for each, in their order. A filtration that is not
/// [buffer-wide](Filtration::is_buffer_wide) decides on each group as [`filter_group`] does.
///
/// # Errors
/// As [`filter_group`].
pub fn filter_buffer(
    filtration: &Filtration,
    seed: u64,
    buffer_id: &str,
    groups: &[Group<'_>],
) -> Result<Vec<GroupDecision>, Error> {
    filtration.validate()?;
    if !filtration.is_buffer_wide() {
        return groups.iter().map(|group| filter_group(filtration, seed, group)).collect();
    }
    let largest = largest(groups.iter().flat_map(|group| group.rollouts.iter().map(|rollout| rollout.score)));
    let mut decisions = Vec::with_capacity(groups.len());
    let mut drawables = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        let masses = masses(filtration, seed, group, largest)?;
        decisions.push(match &masses {
            Some(masses) => GroupDecision::Choices(vec![Choice::default(); masses.len()]),
            None => GroupDecision::NoSignal,
        });
        for (place, (rollout, mass)) in group.rollouts.iter().zip(masses.into_iter().flatten()).enumerate() {
            let ids = (group.prompt_id, rollout.rollout_id);
            drawables.push(Drawable { ids, place: (at, place), mass });
        }
    }
    drawables.sort_by_key(|drawable| drawable.ids);
    let with_signal = decisions.iter().filter(|decision| **decision != GroupDecision::NoSignal).count();
    let weights = weights(filtration.mode, seed, buffer_id, with_signal, &drawables);
    for (Drawable { place: (group, place), .. }, weight) in drawables.iter().zip(weights) {
        if let GroupDecision::Choices(choices) = &mut decisions[*group] {
            choices[*place] = Choice { weight, kept: weight > 0.0 };
        }
    }
    Ok(decisions)
}

/// What a draw from the buffer may hit of a group, in the order of its rollouts; nothing without signal.
fn masses(
    filtration: &Filtration,
    seed: u64,
    group: &Group<'_>,
    largest: f64,
) -> Result<Option<Vec<f64>>, Error> {
    let (ranking, _) = rank(seed, group)?;
    let ranked: Vec<f64> = ranking.iter().map(|&place| group.rollouts[place].score).collect();
    if filtration.lacks_signal(&ranked) {
        return Ok(None);
    }
    let by_rank = match filtration.strategy {
        Strategy::Power { k } => ranked.iter().map(|score| (score.abs() / largest).powf(k)).collect(),
        strategy => strategy.distribution(&ranked).unwrap_or_else(|| vec![0.0; ranked.len()]),
    };
    let mut masses = vec![0.0; ranked.len()];
    for (place, mass) in ranking.into_iter().zip(by_rank) {
        masses[place] = mass;
    }
    Ok(Some(masses))
}

/// The weights of all that can be drawn.
fn weights(mode: Mode, seed: u64, buffer_id: &str, groups: usize, drawables: &[Drawable<'_>]) -> Vec<f64> {
    let mut ends = Vec::with_capacity(drawables.len());
    let mut total = 0.0;
    for drawable in drawables {
        total += drawable.mass;
        ends.push(total);
    }
    let mut weights = vec![0.0; drawables.len()];
    // Nothing can be drawn where nothing has mass.
    let Some(last) = drawables.iter().rposition(|drawable| drawable.mass > 0.0) else { return weights };
    let draws = match mode {
        Mode::Select => {
            let scale = drawables.len() as f64 / total;
            weights.iter_mut().zip(drawables).for_each(|(weight, drawable)| *weight = drawable.mass * scale);
            return weights;
        }
        Mode::Resample { draws } | Mode::ResampleBuffer { draws } => u64::from(draws) * groups as u64,
    };
    let ids = drawables.iter().flat_map(|drawable| [drawable.ids.0, drawable.ids.1]);
    let mut random = GroupRandom::new(seed, buffer_id, ids);
    for _ in 0..draws {
        let at = random.uniform() * total;
        weights[ends.partition_point(|end| *end <= at).min(last)] += 1.0;
    }
    weights
}

/// The largest distance from 0; 1 where all are 0, so that it can be divided by.
fn largest(scores: impl Iterator<Item = f64>) -> f64 {
    let largest = scores.fold(0.0, |largest: f64, score| largest.max(score.abs()));
    if largest > 0.0 { largest } else { 1.0 }
}

impl Filtration {
    /// Whether what becomes of a rollout depends on other groups of its buffer: under `power`, and where
    /// draws are from the whole buffer.
    pub fn is_buffer_wide(&self) -> bool {
        matches!(self.strategy, Strategy::Power { .. }) || matches!(self.mode, Mode::ResampleBuffer { .. })
    }

    /// The weight each rollout of a buffer gets on average over seeds, group by group; see
    /// [`Filtration::expected_weights`].
    ///
    /// # Errors
    /// An invalid strategy or mode.
    pub(crate) fn expected_pool(&self, groups: &[Vec<f64>]) -> Result<Vec<Option<Vec<f64>>>, Error> {
        let Strategy::Power { k } = self.strategy else {
            return groups.iter().map(|scores| self.expected_weights(scores)).collect();
        };
        self.validate()?;
        let largest = largest(groups.iter().flatten().copied());
        let mut pool = Vec::with_capacity(groups.len());
        let (mut total, mut responses, mut with_signal) = (0.0, 0, 0);
        for scores in groups {
            let masses = (!scores.is_empty() && !self.lacks_signal(scores)).then(|| {
                let masses: Vec<f64> = scores.iter().map(|score| (score.abs() / largest).powf(k)).collect();
                masses
            });
            if let Some(masses) = &masses {
                total += masses.iter().sum::<f64>();
                responses += masses.len();
                with_signal += 1;
            }
            pool.push(masses);
        }
        let sum = match self.mode {
            Mode::Select => responses as f64,
            Mode::Resample { draws } | Mode::ResampleBuffer { draws } => {
                f64::from(draws) * f64::from(with_signal)
            }
        };
        let scale = if total > 0.0 { sum / total } else { 0.0 };
        pool.iter_mut().flatten().flatten().for_each(|weight| *weight *= scale);
        Ok(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filtration::{Candidate, NoSignal};

    const POWER: Filtration = Filtration {
        strategy: Strategy::Power { k: 3.0 },
        mode: Mode::Resample { draws: 4 },
        no_signal: NoSignal::Always,
    };

    fn weights_of(filtration: &Filtration, scores: &[f64]) -> Vec<f64> {
        let ids = ["a", "b", "c", "d"];
        let rollouts: Vec<Candidate<'_>> =
            ids.into_iter().zip(scores).map(|(rollout_id, &score)| Candidate { rollout_id, score }).collect();
        let group = Group { prompt_id: "p", rollouts: &rollouts };
        match filter_buffer(filtration, 1, "b", &[group]).unwrap().remove(0) {
            GroupDecision::Choices(choices) => choices.into_iter().map(|choice| choice.weight).collect(),
            GroupDecision::NoSignal => panic!("every group has signal"),
        }
    }

    #[test]
    fn nothing_is_drawn_where_nothing_passes() {
        let mode = Mode::ResampleBuffer { draws: 2 };
        let filtration = Filtration { strategy: Strategy::Top { threshold: 2.0 }, mode, ..POWER };
        assert_eq!(weights_of(&filtration, &[0.5, 1.0, -3.0]), [0.0; 3]);
        assert_eq!(weights_of(&filtration, &[0.5, 2.5, -3.0]), [0.0, 2.0, 0.0]);
    }

    #[test]
    fn magnitudes_whose_power_is_no_finite_number_are_weighed_all_the_same() {
        let weights = weights_of(&Filtration { mode: Mode::Select, ..POWER }, &[1e200, -1e200, 0.0, 0.5e200]);
        let sum = 2.0 + 0.125;
        for (weight, mass) in weights.into_iter().zip([1.0, 1.0, 0.0, 0.125]) {
            assert!((weight - 4.0 * mass / sum).abs() < 1e-12, "{weight}");
        }
    }

    #[test]
    fn what_is_expected_of_a_pool_sums_up_to_its_draws() {
        let groups = [vec![1.0, 2.0], vec![], vec![-3.0, 0.5, 0.0]];
        let sum_of_cubes: f64 = 1.0 + 8.0 + 27.0 + 0.125;
        // Four draws for each of the two groups that have responses.
        let drawn = POWER.expected_pool(&groups).unwrap();
        assert!((drawn[0].as_ref().unwrap()[1] - 8.0 * 8.0 / sum_of_cubes).abs() < 1e-12);
        assert_eq!(drawn[1], None);
        let all = Filtration { mode: Mode::Select, ..POWER }.expected_pool(&groups).unwrap();
        assert!((all[2].as_ref().unwrap()[0] - 5.0 * 27.0 / sum_of_cubes).abs() < 1e-12);
    }
}
