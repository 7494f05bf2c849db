//! From what the models said before the update to what the losses are computed from: rewards, advantages,
//! returns, whitening and off-policy corrections. One function for each, the formulas of [`algo`] on all
//! samples of the batch.

use algo::{
    AdvantageEstimator, Correction, CovarianceControl, Gae, KlEstimator, KlPlacement, Moments, Responses,
    RewardShaping, ScoredTokens, broadcast, gae, gae_by_turn, response_returns, returns_to_go,
    returns_to_go_by_turn, token_rewards, whiten,
};

use super::experience::{Collected, CriticTargets, Evaluated, Experience};
use super::turns::SampleTurns;
use crate::config::{Credit, PpoConfig, SamplesOn, Settings, Whiten};
use crate::error::FormulaResult;

/// What decides how a batch is estimated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimation<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) settings: &'a Settings,
    /// β now.
    pub(crate) kl_coefficient: f64,
}

/// Advantages, not whitened, and the critic's targets where the estimator has a critic.
struct Estimates {
    /// `[tokens]`.
    advantages: Vec<f32>,
    /// Those of responses that are no samples, over their tokens.
    absent: Moments,
    critic: Option<CriticTargets>,
}

impl Evaluated {
    /// Estimates advantages and what else the losses need.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn estimate(self, by: Estimation<'_>) -> FormulaResult<Experience> {
        let Self { samples, old_logprobs, old_entropies, old_values, pending } = self;
        let rewards = by.rewards(&samples, &old_logprobs)?;
        let Estimates { mut advantages, absent, critic } = by.advantages(&samples, &rewards, old_values)?;
        by.whiten(&samples, absent, &mut advantages);
        let correction = by.settings.correction;
        let weights = correction.weights(samples.responses()?, &old_logprobs, &samples.rollout_logprobs)?;
        let corrections = (correction != Correction::None).then_some(weights.weights);
        let held_back = by.held_back(&samples, &advantages)?;
        Ok(Experience {
            samples,
            old_logprobs,
            old_entropies,
            advantages,
            critic,
            corrections,
            held_back,
            correction_sums: weights.sums,
            pending,
        })
    }
}

impl Estimation<'_> {
    /// Token rewards, `[tokens]`: `r_t = −β k̂l_t + 1[t = T] · clip(score)` (PF-PPO, arXiv 2409.06957, Eq.
    /// 4), and what turns brought behind these, where credit goes by turns. The KL is left out where it is a
    /// term of the loss, the score where it trains nothing.
    fn rewards(&self, samples: &Collected, old_logprobs: &[f32]) -> FormulaResult<Vec<f32>> {
        let (kl_estimator, kl_coefficient) = match self.settings.kl {
            KlPlacement::Reward { estimator, .. } => (estimator, self.kl_coefficient),
            KlPlacement::None | KlPlacement::Loss { .. } => (KlEstimator::K1, 0.0),
        };
        let score_clip = self.config.score_clip.number();
        let unscored =
            (self.settings.advantage == AdvantageEstimator::OwnKl).then(|| vec![0.0; samples.len()]);
        let tokens = ScoredTokens {
            responses: samples.responses()?,
            old_logprobs,
            ref_logprobs: samples.ref_logprobs.as_deref().unwrap_or(old_logprobs),
            scores: unscored.as_deref().unwrap_or(&samples.scores),
        };
        let shaping = RewardShaping { kl_estimator, kl_coefficient, score_clip };
        let mut rewards = token_rewards(&shaping, &tokens)?.rewards;
        if let Some(turns) = &samples.turns {
            turns.turns()?.move_scores(&mut rewards, turns.scores())?;
        }
        Ok(rewards)
    }

    /// Advantages of every token: GAE with a critic (arXiv 1506.02438, Eq. 16), the return-to-go, the
    /// response's return against that of its siblings, or the token's own reward.
    fn advantages(
        &self,
        samples: &Collected,
        rewards: &[f32],
        old_values: Option<Vec<f32>>,
    ) -> FormulaResult<Estimates> {
        let (responses, discount) = (samples.responses()?, self.settings.discount);
        let turns = samples.turns.as_ref().map(SampleTurns::turns).transpose()?;
        let ends = turns.map_or_else(|| vec![false; responses.tokens()], |turns| turns.ends());
        let by_token = responses.with_turn_ends(&ends)?;
        let by_turn = turns.filter(|_| self.settings.credit == Credit::Turn);
        let (advantages, absent) = match self.settings.advantage {
            AdvantageEstimator::Gae => {
                let old_values = old_values.expect("an algorithm with GAE has a critic");
                let estimated = match by_turn {
                    Some(turns) => gae_by_turn(self.gae(), turns, rewards, &old_values)?,
                    None => gae(self.gae(), by_token, rewards, &old_values)?,
                };
                let critic = Some(CriticTargets { old_values, returns: estimated.returns });
                let absent = Moments::default();
                return Ok(Estimates { advantages: estimated.advantages, absent, critic });
            }
            AdvantageEstimator::ReturnToGo => {
                let returns = match by_turn {
                    Some(turns) => {
                        broadcast(turns.of_tokens(), &returns_to_go_by_turn(discount, turns, rewards)?)?
                    }
                    None => returns_to_go(discount, by_token, rewards)?,
                };
                (returns, samples.siblings.absent_returns_to_go(discount.gamma))
            }
            AdvantageEstimator::OwnKl => (rewards.to_vec(), Moments::default()),
            AdvantageEstimator::Group(baseline) => match by_turn {
                Some(turns) => {
                    let returns = returns_to_go_by_turn(discount, turns, rewards)?;
                    let found = samples.siblings.advantages_by_turn(baseline, turns, &returns)?;
                    (broadcast(turns.of_tokens(), &found.advantages)?, found.absent)
                }
                None => {
                    let returns = response_returns(responses, rewards)?;
                    let found = samples.siblings.advantages(baseline, &returns)?;
                    (broadcast(responses, &found.advantages)?, found.absent)
                }
            },
        };
        Ok(Estimates { advantages, absent, critic: None })
    }

    /// Tokens that are held back for the sake of the entropy, of those that train.
    fn held_back(&self, samples: &Collected, advantages: &[f32]) -> FormulaResult<Option<Vec<f32>>> {
        let control = self.config.covariance;
        let trained = samples.trained();
        let Some(first) = trained.first().filter(|_| control != CovarianceControl::Off) else {
            return Ok(None);
        };
        let lengths = samples.lengths_of(&trained);
        let logprobs = samples.gather(&samples.rollout_logprobs, &trained);
        let advantages = samples.gather(advantages, &trained);
        // Another stream for each batch: no prompt begins two of an epoch.
        let prompt = samples.ids[*first].prompt;
        let seed = self.config.seed ^ prompt.ordinal ^ (u64::from(prompt.epoch) << 40);
        let found = control.held_back(Responses::new(&lengths)?, &logprobs, &advantages, seed)?;
        let mut held_back = vec![0.0; samples.tokens()];
        samples.scatter(&mut held_back, &trained, &found);
        Ok(Some(held_back))
    }

    fn gae(&self) -> Gae {
        Gae { discount: self.settings.discount, gae_lambda: self.config.gae_lambda }
    }

    /// `A ← (A − mean) / sqrt(var + 1e-8)` for every token, with the moments of those responses that the
    /// configuration names.
    fn whiten(&self, samples: &Collected, absent: Moments, advantages: &mut [f32]) {
        let (measured, mut moments) = match self.settings.whiten {
            Whiten::Off => return,
            Whiten::AfterFilter => (samples.named(SamplesOn::Filtered), Moments::default()),
            Whiten::BeforeFilter => (samples.named(SamplesOn::All), absent),
        };
        for place in measured.iter().flat_map(|sample| samples.places(*sample)) {
            moments.push(f64::from(advantages[place]));
        }
        whiten(advantages, moments.mean(), moments.variance());
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use algo::Algorithm;
    use algo::filtration::{
        Candidate, Filtration, Group, GroupDecision, Mode, NoSignal, Strategy, filter_buffer,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::strategy::Strategy as _;
    use types::{
        Batch, BatchId, FinishReason, GroupScore, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts,
        Sample, ScoredRollout, Scores, Span,
    };

    use super::*;
    use crate::config::Overlong;

    /// A response: its score, and how many tokens it has.
    type Response = (f32, usize);

    fn scored(prompt: usize, sibling: usize, (score, tokens): Response) -> ScoredRollout {
        let prompt = PromptId { epoch: 0, ordinal: prompt as u64 };
        let tokens_u32 = NonZeroU32::new(u32::try_from(tokens).unwrap()).unwrap();
        let rollout = Rollout::new(RolloutParts {
            id: RolloutId { prompt, sibling: u16::try_from(sibling).unwrap(), attempt: 0 },
            prompt_tokens: vec![1].into(),
            response_tokens: vec![2; tokens],
            observations: Vec::new(),
            reward: None,
            rollout_logprobs: vec![-1.0; tokens],
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(0), tokens: tokens_u32 }],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        });
        let scores = Scores { score, ref_logprobs: vec![-1.0; tokens], outcome: None, turn_weight: 0.0 };
        ScoredRollout::new(rollout.unwrap(), scores).unwrap()
    }

    /// The advantages of a response's tokens, by prompt and sibling.
    type OfResponse = ((usize, usize), Vec<f32>);

    /// What a critic might say of a response's tokens: some number of its own.
    fn values(id: &RolloutId, tokens: usize) -> impl Iterator<Item = f32> {
        let first = id.prompt.ordinal * 7 + u64::from(id.sibling) * 3;
        (first..first + tokens as u64).map(|place| 0.25 * (place % 5) as f32)
    }

    /// The advantages of the samples that train; `weights` by group and response.
    fn advantages(config: &PpoConfig, groups: &[Vec<Response>], weights: &[Vec<f32>]) -> Vec<OfResponse> {
        let settings = Settings::of(config).unwrap();
        let mut samples = Vec::new();
        for (prompt, (group, weights)) in groups.iter().zip(weights).enumerate() {
            let all: Vec<_> = group
                .iter()
                .enumerate()
                .map(|(sibling, response)| scored(prompt, sibling, *response))
                .collect();
            let scores: Arc<[GroupScore]> = all.iter().map(GroupScore::of).collect();
            for (scored, weight) in all.into_iter().zip(weights) {
                if *weight > 0.0 || config.reads_filtered_samples() {
                    samples.push(Sample::new(scored, *weight, scores.clone()).unwrap());
                }
            }
        }
        let batch = Batch::new(BatchId(1), samples).unwrap();
        let samples = Collected::new(&batch, config, &settings).unwrap();
        let (old_logprobs, tokens) = (samples.rollout_logprobs.clone(), samples.tokens());
        let all_values = || {
            let places = (0..samples.len()).map(|sample| samples.places(sample).len());
            samples.ids.iter().zip(places).flat_map(|(id, tokens)| values(id, tokens)).collect()
        };
        let old_values = config.needs_critic().then(all_values);
        let old_entropies = vec![0.0; tokens];
        let evaluated = Evaluated { samples, old_logprobs, old_entropies, old_values, pending: None };
        let kl_coefficient = settings.kl_coefficient();
        let experience =
            evaluated.estimate(Estimation { config, settings: &settings, kl_coefficient }).unwrap();
        let mut found = Vec::new();
        for sample in experience.samples.trained() {
            let id = experience.samples.ids[sample];
            let at = (usize::try_from(id.prompt.ordinal).unwrap(), usize::from(id.sibling));
            found.push((at, experience.advantages[experience.samples.places(sample)].to_vec()));
        }
        found
    }

    /// The weights that a filtration gives, by group; none to one that carries no signal.
    fn filtered(filtration: &Filtration, seed: u64, groups: &[Vec<Response>]) -> Vec<Option<Vec<f32>>> {
        let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        let candidates: Vec<Vec<Candidate<'_>>> = groups
            .iter()
            .map(|group| {
                let named = group.iter().zip(&names);
                named
                    .map(|((score, _), name)| Candidate { rollout_id: name, score: f64::from(*score) })
                    .collect()
            })
            .collect();
        let groups: Vec<Group<'_>> = candidates
            .iter()
            .zip(&names)
            .map(|(rollouts, prompt_id)| Group { prompt_id, rollouts })
            .collect();
        let decisions = filter_buffer(filtration, seed, "buffer", &groups).unwrap();
        let weights = decisions.into_iter().map(|decision| match decision {
            GroupDecision::NoSignal => None,
            GroupDecision::Choices(choices) => {
                let weights: Vec<f32> = choices.iter().map(|choice| choice.weight as f32).collect();
                weights.iter().any(|weight| *weight > 0.0).then_some(weights)
            }
        });
        weights.collect()
    }

    fn every_filtration() -> Vec<Filtration> {
        let strategies = [
            Strategy::None,
            Strategy::BestOfN,
            Strategy::BestRandom,
            Strategy::BestWorst,
            Strategy::Power { k: 2.0 },
            Strategy::PowerPerPrompt { k: 2.0 },
            Strategy::Top { threshold: 0.0 },
            Strategy::TopRandom { threshold: 0.0 },
            Strategy::TopBottom { low: -1.0, high: 1.0 },
        ];
        let modes = [
            Mode::Select,
            Mode::Resample { draws: 2 },
            Mode::Resample { draws: 1 },
            Mode::ResampleBuffer { draws: 2 },
        ];
        let no_signal = NoSignal::Never;
        let each = strategies.into_iter().flat_map(|strategy| modes.map(|mode| (strategy, mode)));
        each.map(|(strategy, mode)| Filtration { strategy, mode, no_signal }).collect()
    }

    /// Algorithms as they are by default, and those with a critic also whitened over what was drawn.
    fn every_algorithm(overlong: Option<Overlong>) -> Vec<PpoConfig> {
        let mut configs = Vec::new();
        for algorithm in Algorithm::ALL {
            let own = PpoConfig { algorithm, overlong, ..PpoConfig::default() };
            if algorithm.defaults().whiten == Whiten::AfterFilter {
                configs.push(PpoConfig { whiten: Some(Whiten::BeforeFilter), ..own.clone() });
            }
            configs.push(own);
        }
        configs
    }

    /// What whitening over the samples that train makes of what it is given: one increasing line for all.
    fn whitened(mut raw: Vec<OfResponse>) -> Vec<OfResponse> {
        let moments: Moments = raw.iter().flat_map(|(_, tokens)| tokens).copied().map(f64::from).collect();
        for (_, tokens) in &mut raw {
            whiten(tokens, moments.mean(), moments.variance());
        }
        raw
    }

    fn groups() -> impl proptest::strategy::Strategy<Value = Vec<Vec<Response>>> {
        // Few different scores, so that there are ties.
        vec(vec(((-6i16..=6).prop_map(|halves| f32::from(halves) / 2.0), 1usize..6), 1..6), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever is selected, and however: an advantage is what it is without selection. Where whitening
        /// is over what trains (with a critic), that is so before it, and it is one increasing line: it
        /// keeps the order of any two tokens of the batch, and what lies below their mean is bad news.
        #[test]
        fn no_selection_changes_an_advantage(drawn in groups(), seed: u64, is_shaped: bool) {
            let overlong = is_shaped.then_some(Overlong { max_length: 5, cache: 3 });
            for filtration in every_filtration() {
                let weights = filtered(&filtration, seed, &drawn);
                let kept = weights.iter().zip(&drawn).filter(|(weights, _)| weights.is_some());
                let groups: Vec<_> = kept.map(|(_, group)| group.clone()).collect();
                let weights: Vec<Vec<f32>> = weights.into_iter().flatten().collect();
                if weights.is_empty() {
                    continue;
                }
                let ones: Vec<_> = groups.iter().map(|group| vec![1.0; group.len()]).collect();
                for config in every_algorithm(overlong) {
                    let is_after = Settings::of(&config).unwrap().whiten == Whiten::AfterFilter;
                    let whiten = if is_after { Some(Whiten::Off) } else { config.whiten };
                    let before = PpoConfig { whiten, ..config.clone() };
                    let mut expected = advantages(&before, &groups, &ones);
                    let found = advantages(&config, &groups, &weights);
                    expected.retain(|(known, _)| found.iter().any(|(at, _)| at == known));
                    if is_after {
                        expected = whitened(expected);
                    }
                    prop_assert_eq!(found.len(), expected.len());
                    for ((at, found), (_, expected)) in found.iter().zip(&expected) {
                        for (advantage, expected) in found.iter().zip(expected) {
                            let what = (config.algorithm, filtration, at);
                            // Whitening divides by a deviation that can be as small as 1e-4.
                            let allowed = 1e-4 * expected.abs().max(1.0);
                            prop_assert!((advantage - expected).abs() <= allowed, "{what:?}: {advantage} {expected}");
                            prop_assert!(*expected >= -allowed || *advantage < 0.0, "{what:?}: {advantage} {expected}");
                        }
                    }
                }
            }
        }
    }

    /// What whitening over the samples that train cannot keep: with one end of the scores alone, the less
    /// good of the best are bad news. Over all that was drawn they are not.
    #[test]
    fn of_the_best_alone_some_are_bad_news_after_whitening_over_them() {
        let groups = [vec![(5.0, 1), (0.0, 1)], vec![(4.0, 1), (0.0, 1)]];
        let best = [vec![1.0, 0.0], vec![1.0, 0.0]];
        let signs = |whiten: Option<Whiten>| -> Vec<bool> {
            let config = PpoConfig { algorithm: Algorithm::PfPpo, whiten, ..PpoConfig::default() };
            advantages(&config, &groups, &best).iter().map(|(_, tokens)| tokens[0] > 0.0).collect()
        };
        assert_eq!(signs(None), [true, false]);
        assert_eq!(signs(Some(Whiten::BeforeFilter)), [true, true]);
    }

    /// Five responses of which the draws hit the worst alone: it used to train with its raw score, +3.
    #[test]
    fn the_worst_response_is_bad_news_even_alone() {
        let group = [(5.0, 2), (4.0, 2), (3.5, 2), (3.2, 2), (3.0, 2)];
        for algorithm in Algorithm::ALL {
            if !matches!(algorithm.defaults().advantage, AdvantageEstimator::Group(_)) {
                continue;
            }
            let config = PpoConfig { algorithm, ..PpoConfig::default() };
            let found = advantages(&config, &[group.to_vec()], &[vec![0.0, 0.0, 0.0, 0.0, 2.0]]);
            assert!(found[0].1[0] < -0.5, "{algorithm:?}: {found:?}");
        }
    }

    /// Whatever is selected: credit by turn sees all turns of the group.
    #[test]
    fn credit_by_turn_of_one_turn_is_that_of_responses() {
        let group = [(5.0, 2), (4.0, 3), (3.5, 1), (3.0, 2)];
        let groups = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| matches!(algorithm.defaults().advantage, AdvantageEstimator::Group(_)));
        for algorithm in groups {
            let of = |credit| PpoConfig { algorithm, credit, ..PpoConfig::default() };
            for weights in [vec![1.0; 4], vec![0.0, 0.0, 0.0, 2.0]] {
                let found = advantages(&of(Credit::Turn), &[group.to_vec()], std::slice::from_ref(&weights));
                let expected = advantages(&of(Credit::Response), &[group.to_vec()], &[weights]);
                assert_eq!(found, expected, "{algorithm:?}");
            }
        }
    }

    #[test]
    fn a_part_of_the_kl_that_is_not_known_moves_no_baseline() {
        let config = PpoConfig { algorithm: Algorithm::Rloo, ..PpoConfig::default() };
        let alone = advantages(&config, &[vec![(1.0, 2), (0.0, 3)]], &[vec![1.0, 0.0]]);
        assert_eq!(alone, [((0, 0), vec![1.0, 1.0])]);
    }
}
