//! What follows from what a recipe says, where it does not say otherwise: one fact is written once
//! (`docs/decisions.md`, D20).

use algo::{Algorithm, Correction};
use service::config::Layers;
use toml::Value;
use types::Sampling;

use super::preset::{self, Surroundings};
use super::role::Role;

/// A key that the recipe's algorithm decides, with the value that it has then.
pub(super) type Decided = (&'static str, Value);

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
    // An actor makes episodes where the reward servers have an environment for them.
    if value(layers, ENVIRONMENT).is_some() {
        layers.derive("coordinator.episodes", Value::from(true), ENVIRONMENT);
    }
    // Agents speak to the actors' port, say what an episode is worth, and take one episode after the other: a
    // lease with many would wait for them.
    if value(layers, AGENTS) == Some(Value::from(true)) {
        layers.derive("actor.serve.enabled", Value::from(true), AGENTS);
        layers.derive("reward_server.agents", Value::from(true), AGENTS);
        layers.derive("coordinator.lease_prompts", Value::from(1), AGENTS);
        if let Some(size) = value(layers, GROUP_SIZE) {
            layers.derive("actor.agents.group_size", size, GROUP_SIZE);
        }
    }
    // Where nothing is written the defaults of the roles are those of the default algorithm.
    if value(layers, ALGORITHM).is_some() {
        for (key, value) in decided(layers) {
            layers.derive(key, value, ALGORITHM);
        }
    }
    correct_stale_samples(layers);
    // Who may speak to one process may speak to all.
    for key in ["token_file", "certificates", "insecure", "connections_per_address", "connection_age"] {
        let from = format!("security.{key}");
        if let Some(value) = value(layers, &from) {
            for role in Role::ALL {
                layers.derive(&format!("{}.service.{from}", role.section()), value.clone(), &from);
            }
        }
    }
}

/// What the recipe's algorithm decides, whether or not the recipe says otherwise.
pub(super) fn decided(layers: &Layers) -> Vec<Decided> {
    let Some(algorithm) = algorithm(layers) else { return Vec::new() };
    let default = i64::from(Sampling::default().max_new_tokens());
    let max_new_tokens = integer(layers, "coordinator.sampling.max_new_tokens").unwrap_or(default);
    let group_size = integer(layers, GROUP_SIZE);
    preset::keys(algorithm, Surroundings { max_new_tokens, group_size })
}

/// The recipe's algorithm; none where it has a name that is none, which the learner's section refuses.
fn algorithm(layers: &Layers) -> Option<Algorithm> {
    match value(layers, ALGORITHM) {
        None => Some(Algorithm::default()),
        Some(name) => name.try_into().ok(),
    }
}

/// Samples that an older policy drew are weighted as decoupled PPO does (Hilton et al., arXiv 2110.00641;
/// AReaL, arXiv 2505.24298, section 5, whose ablation loses half of the score without it), unless the recipe
/// or the algorithm says what is done with them.
fn correct_stale_samples(layers: &mut Layers) {
    let staleness = integer(layers, MAX_STALENESS);
    let corrects =
        algorithm(layers).is_some_and(|algorithm| algorithm.defaults().correction != Correction::None);
    if staleness.is_some_and(|versions| versions > 0)
        && !corrects
        && let Ok(correction) = Value::try_from(Algorithm::DecoupledPpo.defaults().correction)
    {
        layers.derive("learner.ppo.correction", correction, MAX_STALENESS);
    }
}

const AGENTS: &str = "actor.agents.enabled";
const GROUP_SIZE: &str = "coordinator.group_size";
const ENVIRONMENT: &str = "reward_server.environment";
const ALGORITHM: &str = "learner.ppo.algorithm";
const MAX_STALENESS: &str = "coordinator.max_staleness";

fn integer(layers: &Layers, path: &str) -> Option<i64> {
    layers.value(path)?.as_integer()
}

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
    fn whom_one_process_asks_for_a_token_all_do() {
        let layers =
            filled("[security]\ntoken_file = 't'\n[actor.service.security]\ntoken_file = 'of-actors'\n");
        let of = |role: &str| layers.value(&format!("{role}.service.security.token_file")).cloned();
        for role in ["coordinator", "reward_server", "learner"] {
            assert_eq!(of(role), Some(Value::from("t")));
        }
        assert_eq!(of("actor"), Some(Value::from("of-actors")), "it may be given less");
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

    #[test]
    fn an_environment_makes_episodes() {
        let layers = filled("[reward_server.environment]\nkind = 'python'\n");
        assert_eq!(layers.value("coordinator.episodes"), Some(&Value::from(true)));
        assert_eq!(filled("").value("coordinator.episodes"), None);
    }

    #[test]
    fn agents_have_a_port_and_lease_little_at_a_time() {
        let layers = filled("[coordinator]\ngroup_size = 8\n[actor.agents]\nenabled = true\n");
        assert_eq!(layers.value("actor.agents.group_size"), Some(&Value::from(8)));
        assert_eq!(layers.value("actor.serve.enabled"), Some(&Value::from(true)));
        assert_eq!(layers.value("reward_server.agents"), Some(&Value::from(true)));
        assert_eq!(layers.value("coordinator.lease_prompts"), Some(&Value::from(1)));
        assert_eq!(filled("[actor.agents]\nenabled = false\n").value("actor.serve.enabled"), None);
    }

    #[test]
    fn an_algorithm_speaks_for_every_role() {
        let layers =
            filled("[coordinator.sampling]\nmax_new_tokens = 100\n[learner.ppo]\nalgorithm = 'dapo'\n");
        let values = [
            ("coordinator.filtration.strategy", Value::from("none")),
            ("coordinator.filtration.no_signal", Value::from("always")),
            ("learner.ppo.overlong.max_length", Value::from(100)),
            ("learner.ppo.overlong.cache", Value::from(20)),
        ];
        for (key, expected) in values {
            assert_eq!(layers.value(key), Some(&expected), "{key}");
        }
        let layers = filled("[coordinator]\ngroup_size = 8\n[learner.ppo]\nalgorithm = 'pf-ppo-paper'\n");
        assert_eq!(layers.value("coordinator.filtration.mode"), Some(&Value::from("resample-buffer:8")));
        assert_eq!(layers.value("coordinator.sampling.top_p"), Some(&Value::from(0.9)));
        assert_eq!(layers.value("learner.ppo.schedule"), Some(&Value::from("cosine")));
        assert_eq!(layers.value("learner.ppo.warmup_share"), Some(&Value::from(0.03)));
    }

    fn corrected(text: &str) -> Option<Value> {
        filled(text).value("learner.ppo.correction").cloned()
    }

    #[test]
    fn stale_samples_are_corrected_unless_the_recipe_says_how() {
        assert_eq!(corrected(""), None);
        assert_eq!(corrected("[coordinator]\nmax_staleness = 0\n"), None);
        let rejecting = corrected("[coordinator]\nmax_staleness = 2\n").unwrap();
        assert_eq!(rejecting["token-mask"]["max"], Value::from(5.0));
        let none = "[coordinator]\nmax_staleness = 2\n[learner.ppo]\ncorrection = 'none'\n";
        assert_eq!(corrected(none), Some(Value::from("none")));
        let own = "[coordinator]\nmax_staleness = 2\n[learner.ppo]\nalgorithm = 'decoupled-ppo'\n";
        assert_eq!(corrected(own), None, "the algorithm corrects by itself");
    }
}
