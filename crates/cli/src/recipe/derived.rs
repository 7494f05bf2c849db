//! What follows from what a recipe says, where it does not say otherwise: one fact is written once
//! (`docs/decisions.md`, D20).

use service::config::Layers;
use toml::Value;

/// Lays everything that follows under what is there.
pub(super) fn fill_in(layers: &mut Layers) {
    let seed = value(layers, "seed").unwrap_or(Value::Integer(0));
    let name = value(layers, "name").unwrap_or_else(|| "run".into());
    layers.derive("coordinator.run", name, "name");
    layers.derive("coordinator.seed", seed.clone(), "seed");
    layers.derive("learner.ppo.seed", seed, "seed");
    // Responses are read with the policy's own tokenizer, and the KL is taken at the temperature of the
    // draws.
    if let Some(policy) = value(layers, "learner.policy") {
        layers.derive("reward_server.tokenizer", policy, "learner.policy");
    }
    if let (Some(_), Some(temperature)) =
        (value(layers, "reward_server.reference"), value(layers, "coordinator.sampling.temperature"))
    {
        layers.derive("reward_server.reference.temperature", temperature, "coordinator.sampling.temperature");
    }
    if let Some(Value::String(algorithm)) = value(layers, "learner.ppo.algorithm") {
        preset(layers, &algorithm);
    }
}

/// What the papers of the algorithms beside PPO do outside the learner: they train on every response, once
/// (GRPO, arXiv 2402.03300, section 4.2; the same in TRL, verl and OpenRLHF), and DAPO asks for groups whose
/// scores differ (arXiv 2503.14476, section 3.2).
fn preset(layers: &mut Layers, algorithm: &str) {
    if algorithm == "ppo" {
        return;
    }
    layers.derive("coordinator.filtration.strategy", "none".into(), ALGORITHM);
    layers.derive("learner.ppo.ppo_epochs", Value::Integer(1), ALGORITHM);
    if algorithm == "dapo" {
        layers.derive("coordinator.filtration.no_signal", "always".into(), ALGORITHM);
    }
}

const ALGORITHM: &str = "learner.ppo.algorithm";

fn value(layers: &Layers, path: &str) -> Option<Value> {
    layers.value(path).cloned()
}

#[cfg(test)]
mod tests {
    use service::config::Source;

    use super::*;

    fn filled(text: &str) -> Layers {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut layers = Layers::of_file(file.path(), &[]).unwrap();
        fill_in(&mut layers);
        layers
    }

    #[test]
    fn one_fact_is_written_once() {
        let layers = filled(
            "seed = 5\n[coordinator.sampling]\ntemperature = 0.7\n[reward_server.reference]\nmodel = 'm'\n\
             [learner]\npolicy = 'p'\n",
        );
        let values = [
            ("coordinator.run", Value::from("run")),
            ("learner.ppo.seed", Value::from(5)),
            ("reward_server.tokenizer", Value::from("p")),
            ("reward_server.reference.temperature", Value::from(0.7)),
        ];
        for (key, expected) in values {
            assert_eq!(layers.value(key), Some(&expected), "{key}");
        }
        assert_eq!(layers.value("coordinator.filtration.strategy"), None, "ppo's are the binary's defaults");
    }

    #[test]
    fn what_is_written_stays() {
        let layers = filled(
            "[coordinator]\nfiltration.strategy = 'best-of-n'\n[learner.ppo]\nalgorithm = 'dapo'\nseed = 9\n",
        );
        assert_eq!(layers.value("learner.ppo.seed"), Some(&Value::from(9)));
        assert_eq!(layers.value("coordinator.filtration.strategy"), Some(&Value::from("best-of-n")));
        assert_eq!(layers.value("coordinator.filtration.no_signal"), Some(&Value::from("always")));
        assert_eq!(layers.value("learner.ppo.ppo_epochs"), Some(&Value::from(1)));
        let from = Source::Derived("learner.ppo.algorithm".to_owned());
        assert_eq!(layers.source("learner.ppo.ppo_epochs"), from);
        assert_eq!(layers.value("reward_server"), None, "without a reference no section appears");
    }
}
