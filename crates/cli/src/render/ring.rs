//! The ring of a recipe on its way to a cluster: what each role is told, whatever the scheduler.

use std::time::Duration;

use anyhow::Context as _;
use service::BadInput;
use toml::{Table, Value};

use super::options::{Resources, RingOptions, Role};
use crate::run::recipe::Recipe;
use crate::run::ring::RingFolder;

/// Longest wait of a learner's rank for the others. On a cluster some may wait for a node, or for the end of a pause
/// between restarts (up to five minutes on Kubernetes), while the others are there.
const JOIN_TIMEOUT: &str = "10m";

/// A ring to be rendered.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The recipe that it is the ring of.
    pub(crate) recipe: Recipe,
    /// Where the recipe was read from.
    source: String,
    roles: [RolePlan; 4],
    /// What the recipe does beside the ring.
    other_stages: Vec<String>,
}

/// A role of a ring.
#[derive(Debug)]
pub(crate) struct RolePlan {
    pub(crate) role: Role,
    /// How many processes there are.
    pub(crate) processes: usize,
    /// What each is given.
    pub(crate) resources: Resources,
    /// Whether that includes a GPU.
    pub(crate) gpu: bool,
    /// How long a process may take to leave.
    pub(crate) grace_period: Duration,
    /// The configuration that all of them read.
    config: Table,
}

impl Ring {
    /// Reads a recipe's ring.
    ///
    /// # Errors
    /// Names the place in the recipe, or the option, and what is wrong there.
    pub(crate) fn read(options: &RingOptions) -> anyhow::Result<Self> {
        let (recipe, written) = Recipe::read_for_elsewhere(&options.recipe, &options.settings)?;
        warn_of_environment(options, &recipe);
        let (ring_stages, others): (Vec<_>, Vec<_>) =
            recipe.stages_or_ring().into_iter().partition(|stage| stage.ring.is_some());
        if ring_stages.len() != 1 {
            let problem = format!("has {} ring stages; what is rendered is exactly one", ring_stages.len());
            return Err(BadInput(format!("{}: {problem}", options.recipe.display())).into());
        }
        let problems = device_problems(options, &recipe);
        if !problems.is_empty() {
            return Err(service::config::Error::Unusable { problems }.into());
        }
        let roles = Role::ALL.map(|role| RolePlan::new(role, options, &recipe, &written));
        let source = options.recipe.display().to_string();
        let other_stages = others.into_iter().map(|stage| stage.name).collect();
        Ok(Self { recipe, source, roles, other_stages })
    }

    /// A role of it.
    pub(crate) fn of(&self, role: Role) -> &RolePlan {
        &self.roles[role as usize]
    }

    /// The folder of what the ring writes.
    pub(crate) fn folder(&self) -> RingFolder {
        RingFolder::of(&self.recipe.output)
    }

    /// Sets a value of a role's configuration.
    pub(crate) fn set(&mut self, role: Role, key: &str, value: impl Into<Value>) {
        let (section, key) = place(&mut self.roles[role as usize].config, key);
        section.insert(key.to_owned(), value.into());
    }

    /// Sets a value of every role's configuration.
    pub(crate) fn set_all(&mut self, key: &str, value: &str) {
        Role::ALL.into_iter().for_each(|role| self.set(role, key, value));
    }

    /// Checks every role's configuration as one of its processes will see it, with what `told` says over the file, and
    /// notes how long it may take to leave.
    ///
    /// # Errors
    /// Lists everything that is wrong.
    pub(crate) fn check(&mut self, told: impl Fn(Role) -> Vec<(&'static str, Value)>) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        for plan in &mut self.roles {
            let mut config = plan.config.clone();
            for (key, value) in told(plan.role) {
                config.insert(key.to_owned(), value);
            }
            let checked = match plan.role {
                Role::Coordinator => check::<coordinator::Config>(config),
                Role::RewardServer => {
                    // Whether the device is there is for the node to say that the server will run on.
                    let (models, key) = place(&mut config, "models.device");
                    models.insert(key.to_owned(), Value::String("cpu".to_owned()));
                    check::<reward_server::Config>(config)
                }
                Role::Learner => check::<learner::Config>(config),
                Role::Actor => check::<actor::Config>(config),
            };
            let (found, grace_period) = checked.with_context(|| format!("read [{}]", plan.role.section()))?;
            plan.grace_period = grace_period;
            problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", plan.role.section())));
        }
        if problems.is_empty() { Ok(()) } else { Err(service::config::Error::Unusable { problems }.into()) }
    }

    /// A role's configuration file.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    pub(crate) fn config_text(&self, role: Role) -> anyhow::Result<String> {
        let text = toml::to_string(&self.of(role).config);
        text.with_context(|| format!("write the configuration of the {}", role.name()))
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

impl RolePlan {
    fn new(role: Role, options: &RingOptions, recipe: &Recipe, written: &Table) -> Self {
        let config = written.get(role.section()).and_then(Value::as_table).cloned().unwrap_or_default();
        let (processes, gpus) = match role {
            Role::Coordinator => (1, 0),
            Role::RewardServer => (recipe.processes.reward_servers, options.gpus_per_reward_server),
            Role::Learner => (recipe.processes.learner_ranks, options.gpus_per_learner_rank),
            Role::Actor => (recipe.processes.actors, options.gpus_per_actor),
        };
        let resources = options.resources_of(role);
        let mut plan =
            Self { role, processes, resources, gpu: gpus > 0, grace_period: Duration::ZERO, config };
        plan.fill_in(options, recipe);
        plan
    }

    /// What the roles owe each other, and what every cluster asks for.
    fn fill_in(&mut self, options: &RingOptions, recipe: &Recipe) {
        let grace_period = format!("{}s", options.drain_seconds);
        self.set_if_absent("service.grace_period", Value::String(grace_period));
        // Torch would start a thread for every core of the node, not for those that the process is given.
        let threads = Value::Integer(self.resources.cpus.into());
        match self.role {
            Role::Coordinator => {
                if recipe.sends_filtered() {
                    self.config.insert("send_filtered".to_owned(), Value::Boolean(true));
                }
            }
            Role::RewardServer => {
                if recipe.scores_deterministically() {
                    self.config.insert("deterministic".to_owned(), Value::Boolean(true));
                }
                self.set_if_absent("models.threads", threads);
            }
            Role::Learner => {
                self.set_if_absent("threads", threads);
                self.set_if_absent("join_timeout", Value::String(JOIN_TIMEOUT.to_owned()));
                let ranks = i64::try_from(self.processes).unwrap_or(i64::MAX);
                self.config.insert("world_size".to_owned(), Value::Integer(ranks));
                let checkpoints = RingFolder::of(&recipe.output).checkpoints();
                self.config
                    .insert("checkpoints".to_owned(), Value::String(checkpoints.display().to_string()));
            }
            Role::Actor => self.set_if_absent("engine.threads", threads),
        }
    }

    fn set_if_absent(&mut self, key: &str, value: Value) {
        let (section, key) = place(&mut self.config, key);
        section.entry(key).or_insert(value);
    }
}

/// The section of a dotted key, made where it is missing, and the key's last part.
fn place<'t, 'k>(table: &'t mut Table, key: &'k str) -> (&'t mut Table, &'k str) {
    let (sections, key) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table = table;
    for section in sections.split('.').filter(|section| !section.is_empty()) {
        let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        table = inner.as_table_mut().expect("a section: the recipe was parsed");
    }
    (table, key)
}

/// The problems of a configuration, and its grace period.
fn check<C: service::Config>(config: Table) -> anyhow::Result<(Vec<String>, Duration)> {
    let config: C = Value::Table(config).try_into().map_err(|error| BadInput(format!("{error}")))?;
    Ok((config.problems(), config.service().grace_period))
}

/// Where devices in the recipe and GPUs in the options do not fit together.
fn device_problems(options: &RingOptions, recipe: &Recipe) -> Vec<String> {
    let devices = [
        (
            "actor.engine.device",
            String::from(recipe.actor.engine.device),
            "--gpus-per-actor",
            options.gpus_per_actor,
            "processes.actors",
        ),
        (
            "reward_server.models.device",
            String::from(recipe.reward_server.models.device),
            "--gpus-per-reward-server",
            options.gpus_per_reward_server,
            "processes.reward_servers",
        ),
        (
            "learner.device",
            String::from(recipe.learner.device),
            "--gpus-per-learner-rank",
            options.gpus_per_learner_rank,
            "processes.learner_ranks",
        ),
    ];
    let problem = |(key, device, option, gpus, count): (&str, String, &str, u32, &str)| {
        Some(match (gpus, device.as_str()) {
            (0, "cpu") | (1, "cuda:0") => return None,
            (0, _) => format!("{key} is {device}: give each process a GPU with {option} 1"),
            (1, "cpu") => format!("{option} is 1, but {key} is cpu: add --set {key}=cuda"),
            (1, _) => format!("{key} is {device}, but a process sees one GPU, its own: set it to cuda"),
            _ => format!("{option} is {gpus}, but a process computes on one GPU: raise {count} instead"),
        })
    };
    devices.into_iter().filter_map(problem).collect()
}

/// Variables count for `sluice run` here; elsewhere there are others, so what they set is not rendered.
fn warn_of_environment(options: &RingOptions, rendered: &Recipe) {
    let with_environment = Recipe::read(&options.recipe, &options.settings).ok();
    let text = |recipe: &Recipe| service::config::render(recipe);
    if with_environment.is_none_or(|recipe| text(&recipe) != text(rendered)) {
        eprintln!(
            "variables of the environment (SLUICE_<SECTION>__<KEY>) change this recipe here; they are not rendered: \
             give them as --set instead"
        );
    }
}
