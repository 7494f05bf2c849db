//! What a ring needs around it: memory and disk against its models, services against the network.
//!
//! What is refused cannot work: sizes are lower bounds, and a service is asked for no more than to listen.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use model::Device;
use reward_server::config::{EnvironmentKind, ScorerKind};
use serde_json::Value;

use super::Recipe;
use crate::doctor::{size, total_memory};

/// Bytes for each weight that is trained: itself, its gradient, two moments, in the smallest types there are.
const TRAINED_BYTES: u64 = 12;
/// Bytes for each weight that is read.
const READ_BYTES: u64 = 2;
/// Bytes of a checkpoint for each weight that is trained: itself and two moments.
const CHECKPOINT_BYTES: u64 = 10;
/// How long a service may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What is not there.
pub(super) fn problems(recipe: &Recipe) -> Vec<String> {
    let sizes = [too_much_memory(recipe, total_memory()), too_little_disk(recipe)];
    sizes.into_iter().flatten().chain(unreachable(recipe)).collect()
}

/// A ring that is larger than the machine.
fn too_much_memory(recipe: &Recipe, there: Option<u64>) -> Option<String> {
    let Recipe { learner, actor, reward_server, processes, .. } = recipe;
    let policy = weights(&learner.policy)?;
    let is_frozen = learner.ppo.lora.is_some();
    let mut needed = 0;
    if learner.device == Device::Cpu {
        needed += if is_frozen { READ_BYTES * policy } else { TRAINED_BYTES * policy };
        needed += TRAINED_BYTES * critic(recipe, policy);
    }
    if actor.engine.device == Device::Cpu {
        needed += READ_BYTES * policy * processes.actors as u64;
    }
    if reward_server.models.device == Device::Cpu {
        let frozen: u64 = frozen(reward_server).filter_map(weights).sum();
        needed += READ_BYTES * frozen * processes.reward_servers as u64;
    }
    let there = there?;
    (needed > there).then(|| {
        format!(
            "learner.policy: this ring takes at least {}, and the machine has {}: take a smaller model, LoRA \
             (learner.ppo.lora), fewer processes, or devices of their own",
            size(needed),
            size(there)
        )
    })
}

/// The folders of the networks that a reward server holds.
fn frozen(config: &reward_server::Config) -> impl Iterator<Item = &Path> {
    let scorers = config.scorers.iter().filter_map(|scorer| match &scorer.kind {
        ScorerKind::RewardModel(network) => Some(network.model.as_path()),
        _ => None,
    });
    scorers.chain(config.reference.iter().map(|reference| reference.model.as_path()))
}

/// Checkpoints that do not fit.
fn too_little_disk(recipe: &Recipe) -> Option<String> {
    let output = std::path::absolute(&recipe.output).ok()?;
    let there = output.ancestors().find(|folder| folder.is_dir())?;
    no_room(recipe, there, service::free_bytes(there).ok()?)
}

/// The same where so many bytes are free.
fn no_room(recipe: &Recipe, there: &Path, free: u64) -> Option<String> {
    let learner = &recipe.learner;
    let policy = weights(&learner.policy)?;
    let trained = if learner.ppo.lora.is_some() { 0 } else { policy };
    let one = CHECKPOINT_BYTES * (trained + critic(recipe, policy)) + READ_BYTES * (policy - trained);
    let needed = one * learner.keep_checkpoints as u64;
    let reserve = recipe.coordinator.journal_reserve_bytes;
    if free < reserve {
        let (there, free, reserve) = (there.display(), size(free), size(reserve));
        return Some(format!(
            "output: {there} has {free} free, less than coordinator.journal_reserve_bytes = {reserve}: nothing would be \
             begun; make room, or name another disk"
        ));
    }
    (needed > free).then(|| {
        format!(
            "output: {} checkpoints (learner.keep_checkpoints) take at least {}, and {} has {} free",
            learner.keep_checkpoints,
            size(needed),
            there.display(),
            size(free)
        )
    })
}

/// Weights of the critic, where one is trained.
fn critic(recipe: &Recipe, policy: u64) -> u64 {
    if !recipe.learner.ppo.needs_critic() || recipe.learner.ppo.critic_lora.is_some() {
        return 0;
    }
    recipe.learner.critic.as_deref().and_then(weights).unwrap_or(policy)
}

/// Services of scorers and of the environment that nobody answers at.
fn unreachable(recipe: &Recipe) -> Vec<String> {
    let scorers = recipe.reward_server.scorers.iter().enumerate();
    let of_scorers = scorers.filter_map(|(at, scorer)| match &scorer.kind {
        ScorerKind::Http(http) => Some((format!("reward_server.scorers[{at}]"), &http.url)),
        _ => None,
    });
    let environment = recipe.reward_server.environment.iter();
    let of_environment = environment.filter_map(|environment| match &environment.kind {
        EnvironmentKind::Http(http) => Some(("reward_server.environment".to_owned(), &http.url)),
        _ => None,
    });
    let mut problems = Vec::new();
    let engine = recipe.actor.engine.backend.external();
    let engine = engine.map(|_| ("actor.engine".to_owned(), &recipe.actor.engine.url));
    for (section, url) in of_scorers.chain(of_environment).chain(engine) {
        let Some(address) = address_of(url) else { continue };
        if let Some(problem) = refusal(&address) {
            problems.push(format!(
                "{section}.url is {url:?}: nobody answers at {address}: {problem}; start the service first"
            ));
        }
    }
    problems
}

/// `host:port` of a URL.
fn address_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if matches!(scheme, "https" | "wss") { 443 } else { 80 };
    Some(if has_port { host.to_owned() } else { format!("{host}:{port}") })
}

fn refusal(address: &str) -> Option<String> {
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return Some(error.to_string()),
    };
    let mut problem = Some("it has no address".to_owned());
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return None,
            Err(error) => problem = Some(error.to_string()),
        }
    }
    problem
}

/// How many weights a model folder holds; none where it is not there yet.
fn weights(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let files =
        entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"));
    let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let config = std::fs::read(folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&config).ok()?;
    let dtype = config["torch_dtype"].as_str().or(config["dtype"].as_str()).unwrap_or("float32");
    let each = if dtype.ends_with("16") { 2 } else { 4 };
    (bytes > 0).then_some(bytes / each)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy of a million weights in f32, of which nothing is written.
    fn recipe(folder: &Path) -> Recipe {
        let policy = folder.join("policy");
        std::fs::create_dir_all(&policy).unwrap();
        std::fs::write(policy.join("config.json"), "{\"torch_dtype\": \"float32\"}").unwrap();
        let file = std::fs::File::create(policy.join("model.safetensors")).unwrap();
        file.set_len(4_000_000).unwrap();
        let text = format!("output = {:?}\n[learner]\npolicy = {policy:?}\n", folder.join("runs/x"));
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn a_ring_that_is_larger_than_the_machine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe(folder.path());
        assert_eq!(weights(&recipe.learner.policy), Some(1_000_000));
        // Policy and critic are trained, one actor reads.
        let least = 2 * 12_000_000 + 2_000_000;
        assert_eq!(too_much_memory(&recipe, Some(least)), None);
        let said = too_much_memory(&recipe, Some(least - 1)).unwrap();
        assert!(said.starts_with("learner.policy: this ring takes at least 24.8 MiB"), "{said}");
        assert_eq!(problems(&recipe), Vec::<String>::new(), "it fits here");
        // Each reward server holds what its scorers and the reference ask for.
        let mut scored = recipe;
        let policy = scored.learner.policy.clone();
        let model = format!("kind = 'reward-model'\nmodel = {policy:?}\n");
        scored.reward_server.scorers.push(toml::from_str(&model).unwrap());
        scored.reward_server.reference = toml::from_str(&format!("model = {policy:?}\n")).ok();
        scored.processes.reward_servers = 2;
        let least = least + 2 * 2 * 2_000_000;
        assert_eq!(too_much_memory(&scored, Some(least)), None);
        assert!(too_much_memory(&scored, Some(least - 1)).is_some());
    }

    #[test]
    fn a_disk_without_room_is_named_with_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = recipe(folder.path());
        // Two checkpoints of policy and critic.
        let needed = 2 * 2 * 10_000_000;
        let reserve = recipe.coordinator.journal_reserve_bytes;
        assert!(needed < reserve);
        let said = no_room(&recipe, folder.path(), reserve - 1).unwrap();
        assert!(said.contains("less than coordinator.journal_reserve_bytes = 64.0 MiB"), "{said}");
        assert_eq!(no_room(&recipe, folder.path(), reserve), None);
        let mut many = recipe;
        many.learner.keep_checkpoints = 4;
        let said = no_room(&many, folder.path(), 2 * needed - 1).unwrap();
        assert!(said.contains("4 checkpoints (learner.keep_checkpoints) take at least 76.3 MiB"), "{said}");
        assert_eq!(no_room(&many, folder.path(), 2 * needed), None);
    }

    #[test]
    fn a_service_that_nobody_answers_at_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut recipe = recipe(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scorer = format!("kind = 'http'\nurl = 'http://{address}/get_reward'\n");
        recipe.reward_server.scorers.push(toml::from_str(&scorer).unwrap());
        assert_eq!(problems(&recipe), Vec::<String>::new());
        drop(listener);
        let said = problems(&recipe);
        assert!(said[0].starts_with("reward_server.scorers[0].url is"), "{said:?}");
        assert!(said[0].contains(&format!("nobody answers at {address}")), "{said:?}");
        recipe.reward_server.scorers.clear();
        let environment = format!("kind = 'http'\nurl = 'http://{address}'\n");
        recipe.reward_server.environment = Some(toml::from_str(&environment).unwrap());
        let said = problems(&recipe);
        assert!(said[0].starts_with("reward_server.environment.url is"), "{said:?}");
        assert_eq!(address_of("https://rm.example/x?y").as_deref(), Some("rm.example:443"));
        assert_eq!(address_of("http://user@h:81").as_deref(), Some("h:81"));
    }
}
