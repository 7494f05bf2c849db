//! The groups of a batch with all their responses, also those that are not part of it: what baselines and
//! whitening go by, whatever the filtration kept (`docs/decisions.md`, D19).
//!
//! Of a response that is not part of the batch score, length and ending are known, but not the KL to the
//! reference. Where the KL is in the reward, its part of such a response's return is taken to be the mean of
//! those of its siblings that are there: it then moves no baseline.

use std::collections::{BTreeMap, HashMap};

use algo::{
    GroupBaseline, GroupStatistics, Moments, Turns, broadcast, clip_score, group_advantages, overlong_penalty,
};
use types::{GroupScore, Sample};

use crate::config::{Overlong, PpoConfig};
use crate::error::FormulaResult;

/// All groups of a batch.
#[derive(Debug, Default)]
pub(crate) struct Siblings {
    /// By group, numbered in the order of appearance.
    groups: Vec<Vec<Sibling>>,
    /// By sample: its group.
    group_of: Vec<usize>,
}

/// A response of a group.
#[derive(Debug, Clone, Copy)]
struct Sibling {
    /// Its score as it is rewarded: with penalties, clipped.
    score: f32,
    /// Its response tokens.
    tokens: usize,
    /// Its place among the samples, where it is one.
    sample: Option<usize>,
}

/// Advantages against siblings.
pub(crate) struct SiblingAdvantages {
    /// Of whole responses `[samples]`, of turns `[turns]`.
    pub(crate) advantages: Vec<f32>,
    /// Those of the responses that are no samples, over their tokens.
    pub(crate) absent: Moments,
}

impl Siblings {
    /// The groups of some samples.
    ///
    /// # Errors
    /// Penalties that cannot be.
    pub(crate) fn of(samples: &[&Sample], config: &PpoConfig) -> FormulaResult<Self> {
        let mut siblings = Self::default();
        let mut numbers = HashMap::new();
        for (place, sample) in samples.iter().enumerate() {
            let id = sample.rollout().id();
            let number = *numbers.entry(id.prompt).or_insert(siblings.groups.len());
            if number == siblings.groups.len() {
                siblings.groups.push(group(sample.group(), config)?);
            }
            let own = sample.group().iter().position(|member| member.sibling == id.sibling);
            if let Some(own) = own.and_then(|own| siblings.groups[number].get_mut(own)) {
                own.sample = Some(place);
            }
            siblings.group_of.push(number);
        }
        Ok(siblings)
    }

    /// Advantages of whole responses against all responses of their groups; `returns` are those of the
    /// samples, `[samples]`.
    ///
    /// # Errors
    /// Returns that are no numbers.
    pub(crate) fn advantages(
        &self,
        baseline: GroupBaseline,
        returns: &[f32],
    ) -> FormulaResult<SiblingAdvantages> {
        let mut statistics = Vec::with_capacity(self.groups.len());
        let (mut absent_returns, mut absent_groups, mut absent_tokens) = (Vec::new(), Vec::new(), Vec::new());
        for group in &self.groups {
            let group_returns = returns_of(group, returns);
            let of_group = GroupStatistics::of(&group_returns);
            for (sibling, value) in group.iter().zip(group_returns) {
                if sibling.sample.is_none() {
                    absent_returns.push(value as f32);
                    absent_groups.push(of_group);
                    absent_tokens.push(sibling.tokens);
                }
            }
            statistics.push(of_group);
        }
        let groups: Vec<GroupStatistics> = self.group_of.iter().map(|group| statistics[*group]).collect();
        let advantages = group_advantages(baseline, returns, &groups)?;
        let mut absent = Moments::default();
        let absent_advantages = group_advantages(baseline, &absent_returns, &absent_groups)?;
        for (advantage, tokens) in absent_advantages.into_iter().zip(absent_tokens) {
            absent.push_times(f64::from(advantage), tokens);
        }
        Ok(SiblingAdvantages { advantages, absent })
    }

    /// Advantages of turns; `returns` are the samples' returns-to-go, `[turns]`. That of a first turn is the
    /// whole response's against all responses of its group; that of a later turn is against those samples of
    /// the group that have this turn, or where it is alone the whole response's.
    ///
    /// # Errors
    /// Returns that are no numbers.
    pub(crate) fn advantages_by_turn(
        &self,
        baseline: GroupBaseline,
        turns: Turns<'_>,
        returns: &[f32],
    ) -> FormulaResult<SiblingAdvantages> {
        let of_responses = turns.of_responses();
        let whole: Vec<f32> = of_responses.spans().map(|turns| returns[turns.start]).collect();
        let SiblingAdvantages { advantages: of_whole, absent } = self.advantages(baseline, &whole)?;
        let mut advantages = broadcast(of_responses, &of_whole)?;
        // By group and number of the turn: its places.
        let mut later: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (group, turns) in self.group_of.iter().zip(of_responses.spans()) {
            for (number, place) in turns.enumerate().skip(1) {
                later.entry((*group, number)).or_default().push(place);
            }
        }
        for places in later.into_values().filter(|places| places.len() > 1) {
            let values: Vec<f32> = places.iter().map(|place| returns[*place]).collect();
            let statistics = GroupStatistics::of(&values.iter().copied().map(f64::from).collect::<Vec<_>>());
            let found = group_advantages(baseline, &values, &vec![statistics; values.len()])?;
            for (place, advantage) in places.into_iter().zip(found) {
                advantages[place] = advantage;
            }
        }
        Ok(SiblingAdvantages { advantages, absent })
    }

    /// The returns-to-go of the responses that are no samples, over their tokens, without a KL.
    pub(crate) fn absent_returns_to_go(&self, gamma: f64) -> Moments {
        let mut moments = Moments::default();
        for sibling in self.groups.iter().flatten().filter(|sibling| sibling.sample.is_none()) {
            let mut value = f64::from(sibling.score);
            if gamma == 1.0 {
                moments.push_times(value, sibling.tokens);
                continue;
            }
            for _ in 0..sibling.tokens {
                moments.push(value);
                value *= gamma;
            }
        }
        moments
    }
}

fn group(scores: &[GroupScore], config: &PpoConfig) -> FormulaResult<Vec<Sibling>> {
    let mut siblings = Vec::with_capacity(scores.len());
    for score in scores {
        let rewarded = clip_score(shaped(score, config)?, config.score_clip.number())?;
        let tokens = usize::try_from(score.tokens).unwrap_or(usize::MAX);
        siblings.push(Sibling { score: rewarded as f32, tokens, sample: None });
    }
    Ok(siblings)
}

/// A response's score with the penalties that the configuration adds.
///
/// # Errors
/// Penalties that cannot be.
pub(crate) fn shaped(score: &GroupScore, config: &PpoConfig) -> FormulaResult<f64> {
    let tokens = usize::try_from(score.tokens).unwrap_or(usize::MAX);
    let mut shaped = f64::from(score.score);
    if let Some(Overlong { max_length, cache: cache @ 1.. }) = config.overlong {
        shaped += overlong_penalty(tokens, max_length, cache)?;
    }
    if score.truncated {
        shaped -= config.missing_eos_penalty;
    }
    Ok(shaped)
}

/// The returns of all responses of a group.
fn returns_of(group: &[Sibling], returns: &[f32]) -> Vec<f64> {
    let apart = |sibling: &Sibling| Some(f64::from(returns[sibling.sample?]) - f64::from(sibling.score));
    let kl_parts: Moments = group.iter().filter_map(apart).collect();
    let known = |sibling: &Sibling| sibling.sample.map(|sample| f64::from(returns[sample]));
    group.iter().map(|sibling| known(sibling).unwrap_or(f64::from(sibling.score) + kl_parts.mean())).collect()
}
