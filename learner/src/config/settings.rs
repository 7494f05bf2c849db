//! A step's settings: the algorithm's defaults with what the configuration overrides, free of contradictions.

use algo::{
    AdvantageEstimator, Aggregation, ClipRange, Correction, Discount, KlController, KlEstimator, KlPlacement,
    PolicyObjective, PositiveWeight, Whiten,
};

use super::bound::Bound;
use super::ppo::{Credit, KlIn, PpoConfig, SamplesOn};

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Where advantages come from.
    pub(crate) advantage: AdvantageEstimator,
    /// What they are of.
    pub(crate) credit: Credit,
    /// What rewards are worth before.
    pub(crate) discount: Discount,
    /// Over which samples they are whitened.
    pub(crate) whiten: Whiten,
    /// Where the KL enters; β is that of the start, [`controller`](Self::controller) moves it.
    pub(crate) kl: KlPlacement,
    /// The policy loss.
    pub(crate) objective: PolicyObjective,
    /// How token losses are aggregated.
    pub(crate) aggregation: Aggregation,
    /// The weight of tokens that another distribution drew.
    pub(crate) correction: Correction,
    kl_target: Option<f64>,
    kl_horizon: f64,
    /// The weight of tokens with a positive advantage, at the start.
    pub(crate) positive_weight: PositiveWeight,
}

impl Settings {
    /// The settings of a configuration, or the keys that contradict each other.
    pub(crate) fn of(config: &PpoConfig) -> Result<Self, Vec<String>> {
        let defaults = config.algorithm.defaults();
        let mut conflicts = Vec::new();
        let kl = kl_placement(config, defaults.kl, &mut conflicts);
        let objective = objective(config, defaults.objective, &mut conflicts);
        let settings = Self {
            advantage: defaults.advantage,
            credit: config.credit,
            discount: discount(config),
            whiten: config.whiten.unwrap_or(defaults.whiten),
            kl,
            objective,
            aggregation: config.loss_aggregation.unwrap_or(defaults.aggregation),
            correction: config.correction.unwrap_or(defaults.correction),
            kl_target: config.kl_target,
            kl_horizon: config.kl_horizon,
            positive_weight: match (config.positive_weight, config.entropy_target) {
                (weight, None) => PositiveWeight::Fixed { weight },
                (largest, Some(target)) => PositiveWeight::Adaptive { weight: largest, largest, target },
            },
        };
        conflicts.extend(credit_conflict(config, defaults.advantage));
        if settings.kl_target.is_some() && settings.kl_coefficient() == 0.0 {
            conflicts.push("kl_target is set, but the KL coefficient is 0 and can never change".to_owned());
        }
        if conflicts.is_empty() { Ok(settings) } else { Err(conflicts) }
    }

    /// β at the start.
    pub(crate) fn kl_coefficient(&self) -> f64 {
        match self.kl {
            KlPlacement::None => 0.0,
            KlPlacement::Reward { coefficient, .. } | KlPlacement::Loss { coefficient, .. } => coefficient,
        }
    }

    /// Who moves β.
    pub(crate) fn controller(&self) -> KlController {
        let coefficient = self.kl_coefficient();
        match self.kl_target {
            None => KlController::Fixed { coefficient },
            Some(target) => KlController::Adaptive { coefficient, target, horizon: self.kl_horizon },
        }
    }
}

impl PpoConfig {
    /// Whether a KL to the reference enters rewards or loss.
    pub fn needs_reference(&self) -> bool {
        Settings::of(self).is_ok_and(|settings| settings.kl_coefficient() != 0.0)
    }

    /// Fills in what other keys decide where the configuration does not; returns the keys, each with the one
    /// that decides it.
    pub fn fill_in_decided(&mut self) -> Vec<(&'static str, &'static str)> {
        let Ok(settings) = Settings::of(self) else { return Vec::new() };
        let (range, dual_clip) = match settings.objective {
            PolicyObjective::Clip { range, dual_clip, .. } => (range, dual_clip),
            PolicyObjective::Cispo { range } => (range, None),
        };
        let (kl_in, estimator) = match settings.kl {
            KlPlacement::None => (KlIn::Off, None),
            KlPlacement::Reward { estimator, .. } => (KlIn::Reward, Some(estimator)),
            KlPlacement::Loss { estimator, .. } => (KlIn::Loss, Some(estimator)),
        };
        let mut keys = KeysFilledIn::default();
        keys.fill_in("kl_coefficient", &mut self.kl_coefficient, Some(settings.kl_coefficient()));
        keys.fill_in("kl_estimator", &mut self.kl_estimator, estimator);
        keys.fill_in("kl_in", &mut self.kl_in, Some(kl_in));
        keys.fill_in("whiten", &mut self.whiten, Some(settings.whiten));
        keys.fill_in("clip_ratio_low", &mut self.clip_ratio_low, Some(range.low));
        keys.fill_in("clip_ratio_high", &mut self.clip_ratio_high, Some(range.high));
        keys.fill_in("dual_clip", &mut self.dual_clip, Some(dual_clip.map_or(Bound::Off, Bound::At)));
        keys.fill_in("loss_aggregation", &mut self.loss_aggregation, Some(settings.aggregation));
        keys.fill_in("correction", &mut self.correction, Some(settings.correction));
        let mut decided: Vec<_> = keys.0.into_iter().map(|key| (key, "algorithm")).collect();
        if self.logprob_alarm.is_none() {
            self.logprob_alarm = Some(self.logprob_alarm());
            decided.push(("logprob_alarm", "dtype"));
        }
        decided
    }

    /// Whether samples of weight 0 change anything; otherwise they need not be sent. What only needs their
    /// scores (baselines, whitening without a critic) has those in every sample.
    pub fn reads_filtered_samples(&self) -> bool {
        if !self.needs_critic() {
            // What a score says nothing of: which turns brought it.
            return self.credit != Credit::Response;
        }
        let settings = Settings::of(self);
        let whitens = settings.is_ok_and(|settings| settings.whiten == Whiten::BeforeFilter);
        whitens || self.critic_on == SamplesOn::All
    }
}

/// Keys that had no value and have one now.
#[derive(Default)]
struct KeysFilledIn(Vec<&'static str>);

impl KeysFilledIn {
    fn fill_in<T>(&mut self, key: &'static str, slot: &mut Option<T>, value: Option<T>) {
        if slot.is_none() && value.is_some() {
            *slot = value;
            self.0.push(key);
        }
    }
}

fn discount(config: &PpoConfig) -> Discount {
    let turn_gamma = match config.credit {
        Credit::Response | Credit::Token => config.gamma,
        Credit::Turn => 1.0,
    };
    Discount { gamma: config.gamma, turn_gamma: config.turn_gamma.unwrap_or(turn_gamma) }
}

/// What keeps an advantage from being what `credit` says.
fn credit_conflict(config: &PpoConfig, advantage: AdvantageEstimator) -> Option<String> {
    match (config.credit, advantage) {
        (Credit::Response, _) => config.turn_gamma.map(|gamma| {
            format!(
                "turn_gamma is {gamma}, but the score stands behind the last token: set credit to token or turn"
            )
        }),
        (Credit::Token, AdvantageEstimator::Group(_)) => Some(
            "credit is token, but this algorithm has no critic and compares responses: set credit to turn or response"
                .to_owned(),
        ),
        (Credit::Token | Credit::Turn, AdvantageEstimator::OwnKl) => {
            Some("credit is set, but nothing that this algorithm trains on is a score".to_owned())
        }
        _ => None,
    }
}

fn kl_placement(config: &PpoConfig, default: KlPlacement, conflicts: &mut Vec<String>) -> KlPlacement {
    let (place, estimator, coefficient) = match default {
        KlPlacement::None => (KlIn::Off, KlEstimator::K3, 0.0),
        KlPlacement::Reward { estimator, coefficient } => (KlIn::Reward, estimator, coefficient),
        KlPlacement::Loss { estimator, coefficient } => (KlIn::Loss, estimator, coefficient),
    };
    let estimator = config.kl_estimator.unwrap_or(estimator);
    let coefficient = config.kl_coefficient.unwrap_or(coefficient);
    match config.kl_in.unwrap_or(place) {
        KlIn::Reward => KlPlacement::Reward { estimator, coefficient },
        KlIn::Loss => KlPlacement::Loss { estimator, coefficient },
        KlIn::Off => {
            if config.kl_coefficient.is_some_and(|coefficient| coefficient > 0.0) {
                conflicts.push(format!(
                    "kl_coefficient is {coefficient}, but kl_in is off (the default of this algorithm): \
                     set kl_in to reward or loss"
                ));
            }
            KlPlacement::None
        }
    }
}

fn objective(config: &PpoConfig, default: PolicyObjective, conflicts: &mut Vec<String>) -> PolicyObjective {
    match default {
        PolicyObjective::Clip { level, range, dual_clip } => PolicyObjective::Clip {
            level,
            range: clip_range(config, range),
            dual_clip: config.dual_clip.map_or(dual_clip, Bound::number),
        },
        PolicyObjective::Cispo { range } => {
            if let Some(bound) = config.dual_clip.and_then(Bound::number) {
                conflicts.push(format!("dual_clip is {bound}, but cispo has no clip that it could bound"));
            }
            PolicyObjective::Cispo { range: clip_range(config, range) }
        }
    }
}

fn clip_range(config: &PpoConfig, default: ClipRange) -> ClipRange {
    ClipRange {
        low: config.clip_ratio_low.unwrap_or(default.low),
        high: config.clip_ratio_high.unwrap_or(default.high),
    }
}

#[cfg(test)]
mod tests {
    use algo::{Algorithm, RatioLevel};

    use super::*;

    fn settings(config: PpoConfig) -> Settings {
        Settings::of(&config).unwrap()
    }

    #[test]
    fn absent_keys_are_the_algorithms() {
        for algorithm in Algorithm::ALL {
            let defaults = algorithm.defaults();
            let found = settings(PpoConfig { algorithm, ..PpoConfig::default() });
            assert_eq!(found.objective, defaults.objective, "{algorithm:?}");
            assert_eq!(found.kl, defaults.kl, "{algorithm:?}");
            assert_eq!((found.aggregation, found.correction), (defaults.aggregation, defaults.correction));
            assert_eq!(found.whiten, defaults.whiten, "{algorithm:?}");
        }
    }

    #[test]
    fn credit_by_turn_needs_what_turns_brought() {
        let of = |algorithm, credit| PpoConfig { algorithm, credit, ..PpoConfig::default() };
        assert!(!of(Algorithm::Grpo, Credit::Response).reads_filtered_samples());
        assert!(of(Algorithm::Grpo, Credit::Turn).reads_filtered_samples());
        assert!(!of(Algorithm::Ppo, Credit::Turn).reads_filtered_samples());
        for (config, key) in [
            (of(Algorithm::Grpo, Credit::Token), "credit is token"),
            (of(Algorithm::OnPolicyDistillation, Credit::Turn), "credit is set"),
            (PpoConfig { turn_gamma: Some(0.9), ..PpoConfig::default() }, "turn_gamma is 0.9"),
        ] {
            let conflicts = Settings::of(&config).unwrap_err();
            assert!(conflicts[0].starts_with(key), "{conflicts:?}");
        }
        let by_turn = PpoConfig { gamma: 0.5, ..of(Algorithm::Ppo, Credit::Turn) };
        assert_eq!(settings(by_turn).discount, Discount { gamma: 0.5, turn_gamma: 1.0 });
    }

    #[test]
    fn what_is_decided_can_be_written_out() {
        for algorithm in Algorithm::ALL {
            let config = PpoConfig { algorithm, clip_ratio_low: Some(0.3), ..PpoConfig::default() };
            let mut filled = config.clone();
            let keys: Vec<_> = filled.fill_in_decided().into_iter().map(|(key, _)| key).collect();
            assert!(keys.contains(&"clip_ratio_high") && !keys.contains(&"clip_ratio_low"), "{keys:?}");
            assert_eq!(settings(filled), settings(config), "{algorithm:?}");
        }
    }

    #[test]
    fn present_keys_win() {
        let found = settings(PpoConfig {
            algorithm: Algorithm::Dapo,
            clip_ratio_high: Some(0.5),
            dual_clip: Some(Bound::Off),
            kl_in: Some(KlIn::Loss),
            kl_coefficient: Some(0.1),
            kl_estimator: Some(KlEstimator::K2),
            whiten: Some(Whiten::BeforeFilter),
            loss_aggregation: Some(Aggregation::TokenSum),
            ..PpoConfig::default()
        });
        let range = ClipRange { low: 0.2, high: 0.5 };
        assert_eq!(
            found.objective,
            PolicyObjective::Clip { level: RatioLevel::Token, range, dual_clip: None }
        );
        assert_eq!(found.kl, KlPlacement::Loss { estimator: KlEstimator::K2, coefficient: 0.1 });
        assert_eq!((found.whiten, found.aggregation), (Whiten::BeforeFilter, Aggregation::TokenSum));
    }

    #[test]
    fn keys_without_effect_are_conflicts() {
        let conflicts = |config: PpoConfig| Settings::of(&config).unwrap_err().join("; ");
        let dapo = PpoConfig { algorithm: Algorithm::Dapo, ..PpoConfig::default() };
        assert!(conflicts(PpoConfig { kl_coefficient: Some(0.1), ..dapo.clone() }).contains("kl_in"));
        assert!(conflicts(PpoConfig { kl_target: Some(6.0), ..dapo }).contains("kl_target"));
        let cispo = PpoConfig { algorithm: Algorithm::Cispo, ..PpoConfig::default() };
        assert!(conflicts(PpoConfig { dual_clip: Some(Bound::At(3.0)), ..cispo }).contains("dual_clip"));
    }
}
