//! The ring of a recipe on its way to a cluster: what each role is told, whatever the scheduler.

use std::time::Duration;

use service::BadInput;
use toml::Value;

use super::options::{Resources, RingOptions};
use crate::recipe::{Environment, Recipe, RecipeFile, RingFolder, Role, RoleConfig, Stage, tokenizers};

/// Longest wait of a learner's rank for the others. On a cluster some may wait for a node, or for the end of
/// a pause between restarts (up to five minutes on Kubernetes), while the others are there.
const JOIN_TIMEOUT: &str = "10m";

/// How long a drain waits for actors at the most, as where nothing is said.
const DRAIN_SECONDS: u32 = 20;

/// A ring to be rendered.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The recipe that it is the ring of.
    pub(crate) recipe: Recipe,
    /// Where the recipe was read from.
    source: String,
    roles: [RenderedRole; 4],
    folder: RingFolder,
    /// What the recipe does beside the ring.
    other_stages: Vec<String>,
}

/// A role of a ring.
#[derive(Debug)]
pub(crate) struct RenderedRole {
    /// How many processes there are.
    pub(crate) processes: usize,
    /// What each is given.
    pub(crate) resources: Resources,
    /// Whether that includes a GPU.
    pub(crate) gpu: bool,
    /// How long a process may take to leave.
    pub(crate) grace_period: Duration,
    /// The configuration that all of them read.
    config: RoleConfig,
}

impl Ring {
    /// Reads a recipe's ring.
    ///
    /// # Errors
    /// Names the place in the recipe, or the option, and what is wrong there.
    pub(crate) fn read(options: &RingOptions) -> anyhow::Result<Self> {
        let file = RecipeFile::read(&options.recipe, Environment::LeftOut, &options.settings)?;
        warn_of_environment(options, &file.recipe);
        let stage = ring_stage(&file, options.ring.as_deref())
            .map_err(|problem| BadInput(format!("{}: {problem}", options.recipe.display())))?;
        let others = file.recipe.stages_or_ring().into_iter().filter(|other| other.name != stage.name);
        let other_stages = others.map(|stage| stage.name).collect();
        let file = file.of_ring(&stage)?;
        let mut problems = device_problems(options, &file.recipe);
        // Where both folders are on this machine too.
        problems.extend(tokenizers::problem(&file.recipe));
        if !problems.is_empty() {
            return Err(service::config::Error::Unusable { problems }.into());
        }
        let roles = file.role_configs().map(|config| RenderedRole::new(config, options, &file.recipe));
        let source = file.path.display().to_string();
        let folder = file.ring_folder().clone();
        Ok(Self { recipe: file.recipe, source, roles, folder, other_stages })
    }

    /// A role of it.
    pub(crate) fn of(&self, role: Role) -> &RenderedRole {
        &self.roles[role as usize]
    }

    /// The folder of what the ring writes.
    pub(crate) fn folder(&self) -> &RingFolder {
        &self.folder
    }

    /// Sets a value of a role's configuration.
    pub(crate) fn set(&mut self, role: Role, key: &str, value: impl Into<Value>) {
        self.roles[role as usize].config.set(key, value);
    }

    /// Sets a value of every role's configuration.
    pub(crate) fn set_all(&mut self, key: &str, value: &str) {
        for role in &mut self.roles {
            role.config.set(key, value);
        }
    }

    /// Checks every role's configuration as one of its processes will see it, with what `told` says over the
    /// file, and notes how long it may take to leave.
    ///
    /// # Errors
    /// Lists everything that is wrong.
    pub(crate) fn check(&mut self, told: impl Fn(Role) -> Vec<(&'static str, Value)>) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        for rendered in &mut self.roles {
            let mut config = rendered.config.clone();
            for (key, value) in told(config.role()) {
                config.set(key, value);
            }
            let checked = config.check()?;
            rendered.grace_period = checked.grace_period;
            let section = config.role().section();
            problems.extend(checked.problems.into_iter().map(|problem| format!("{section}: {problem}")));
        }
        if problems.is_empty() { Ok(()) } else { Err(service::config::Error::Unusable { problems }.into()) }
    }

    /// A role's configuration file.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    pub(crate) fn config_text(&self, role: Role) -> anyhow::Result<String> {
        self.of(role).config.text()
    }

    /// What a rendered file begins with: where it comes from.
    pub(crate) fn origin(&self, target: &str) -> String {
        format!(
            "Written by `sluice render {target}` from {}: change the recipe and render again.",
            self.source
        )
    }

    /// Says which stages are left to do elsewhere.
    pub(crate) fn mention_other_stages(&self) {
        if !self.other_stages.is_empty() {
            eprintln!(
                "only the ring is rendered; the other stages ({}) are done by `sluice run`: what the ring reads of \
                 theirs has to lie in the shared folder before it starts",
                self.other_stages.join(", ")
            );
        }
    }
}

/// The stage to render, and why there is none.
fn ring_stage(file: &RecipeFile, named: Option<&str>) -> Result<Stage, NoRing> {
    let mut rings = file.recipe.stages_or_ring();
    rings.retain(|stage| stage.ring.is_some());
    let names = rings.iter().map(|ring| ring.name.as_str()).collect::<Vec<_>>().join(", ");
    match named {
        Some(named) => match rings.into_iter().find(|ring| ring.name == named) {
            Some(ring) => Ok(ring),
            None => Err(NoRing::Unknown { named: named.to_owned(), names }),
        },
        None if rings.len() > 1 => Err(NoRing::Several { names }),
        None => rings.pop().ok_or(NoRing::None),
    }
}

/// Why no ring can be rendered.
#[derive(Debug, thiserror::Error)]
enum NoRing {
    #[error("has 0 ring stages; what is rendered is exactly one")]
    None,
    #[error("has several ring stages: name one of {names} with --ring")]
    Several { names: String },
    #[error("has no ring stage {named:?}; it has {names}")]
    Unknown { named: String, names: String },
}

impl RenderedRole {
    fn new(config: RoleConfig, options: &RingOptions, recipe: &Recipe) -> Self {
        let role = config.role();
        let (processes, gpus) = match role {
            Role::Coordinator => (1, 0),
            Role::RewardServer => (recipe.processes.reward_servers, options.gpus_per_reward_server),
            Role::Learner => (recipe.processes.learner_ranks, options.gpus_per_learner_rank),
            Role::Actor => (recipe.processes.actors, options.gpus_per_actor),
        };
        let resources = options.resources_of(role);
        let mut rendered = Self { processes, resources, gpu: gpus > 0, grace_period: Duration::ZERO, config };
        rendered.fit_to_cluster(options);
        rendered
    }

    /// What every cluster asks for, where the recipe says nothing else.
    fn fit_to_cluster(&mut self, options: &RingOptions) {
        let config = &mut self.config;
        config.set_if_absent("service.grace_period", format!("{}s", options.drain_seconds));
        // Torch would start a thread for every core of the node, not for those that the process is given.
        let threads = Value::Integer(self.resources.cpus.into());
        match config.role() {
            // What actors have begun may not take all of the time that there is to leave.
            Role::Coordinator => {
                let seconds = (options.drain_seconds / 2).clamp(1, DRAIN_SECONDS);
                config.set_if_absent("drain_timeout", format!("{seconds}s"));
            }
            Role::RewardServer => config.set_if_absent("models.threads", threads),
            Role::Learner => {
                config.set_if_absent("threads", threads);
                config.set_if_absent("join_timeout", JOIN_TIMEOUT);
            }
            Role::Actor => config.set_if_absent("engine.threads", threads),
        }
    }
}

/// A device that the recipe names, and the GPUs that the options give to the process.
struct DeviceChoice {
    /// Key of the device in the recipe.
    key: &'static str,
    device: String,
    option: &'static str,
    gpus: u32,
    /// Key of the number of processes.
    count: &'static str,
}

impl DeviceChoice {
    /// Why they do not fit together.
    fn problem(&self) -> Option<String> {
        let Self { key, device, option, gpus, count } = self;
        Some(match (gpus, device.as_str()) {
            (0, "cpu") | (1, "cuda:0") => return None,
            (0, _) => format!("{key} is {device}: give each process a GPU with {option} 1"),
            (1, "cpu") => format!("{option} is 1, but {key} is cpu: add --set {key}=cuda"),
            (1, _) => format!("{key} is {device}, but a process sees one GPU, its own: set it to cuda"),
            _ => format!("{option} is {gpus}, but a process computes on one GPU: raise {count} instead"),
        })
    }
}

/// Where devices in the recipe and GPUs in the options do not fit together.
fn device_problems(options: &RingOptions, recipe: &Recipe) -> Vec<String> {
    let devices = [
        DeviceChoice {
            key: "actor.engine.device",
            device: recipe.actor.engine.device.into(),
            option: "--gpus-per-actor",
            gpus: options.gpus_per_actor,
            count: "processes.actors",
        },
        DeviceChoice {
            key: "reward_server.models.device",
            device: recipe.reward_server.models.device.into(),
            option: "--gpus-per-reward-server",
            gpus: options.gpus_per_reward_server,
            count: "processes.reward_servers",
        },
        DeviceChoice {
            key: "learner.device",
            device: recipe.learner.device.into(),
            option: "--gpus-per-learner-rank",
            gpus: options.gpus_per_learner_rank,
            count: "processes.learner_ranks",
        },
    ];
    devices.iter().filter_map(DeviceChoice::problem).collect()
}

/// Variables count for `sluice run` here; elsewhere there are others, so what they set is not rendered.
fn warn_of_environment(options: &RingOptions, rendered: &Recipe) {
    let here = RecipeFile::read(&options.recipe, Environment::Applied, &options.settings).ok();
    let rendered = service::config::render(rendered);
    if here.is_none_or(|here| service::config::render(&here.recipe) != rendered) {
        eprintln!(
            "variables of the environment (SLUICE_<SECTION>__<KEY>) change this recipe here; they are not rendered: \
             give them as --set instead"
        );
    }
}
