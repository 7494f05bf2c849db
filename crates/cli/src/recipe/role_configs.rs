//! What each role of a ring is told: the recipe's section, with what follows for a role from the rest of the
//! recipe.
//!
//! This is the one place where a fact of one section reaches another role. `sluice run` adds the addresses of
//! its processes, `sluice render` what a cluster asks for; every key that nobody set keeps the default of the
//! binary.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use service::BadInput;
use service::config::fields_of;
use toml::{Table, Value};

use super::ring_folder::RingFolder;
use super::role::Role;
use super::{Recipe, RecipeFile};

/// What a process of a role is told.
#[derive(Debug, Clone)]
pub(crate) struct RoleConfig {
    role: Role,
    table: Table,
    /// What it owes to other sections.
    derived: Vec<Derived>,
}

/// A key that follows from another section of the recipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Derived {
    /// The role's key.
    pub(super) key: &'static str,
    /// The recipe's key that decides it.
    pub(super) from: &'static str,
}

/// What a role makes of its configuration.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Why the role would refuse it, a sentence each.
    pub(crate) problems: Vec<String>,
    /// How long a process may take to leave.
    pub(crate) grace_period: Duration,
}

impl RecipeFile {
    /// What every process of each role is told, in the order of [`Role::ALL`].
    pub(crate) fn role_configs(&self) -> [RoleConfig; 4] {
        Role::ALL.map(|role| {
            let mut config = RoleConfig { role, table: self.section(role.section()), derived: Vec::new() };
            config.hand_over(&self.recipe, &self.ring);
            config
        })
    }
}

/// What the other roles are told, but for where they run, how they are reached and what they log. The run's
/// own folder stands as `{output}` in paths: a run may be moved.
fn told(recipe: &Recipe) -> Table {
    /// Keys of each role that say so, and sections of them.
    const SURROUNDINGS: [&str; 10] = [
        "advertise",
        "checkpoints",
        "coordinator",
        "endpoint",
        "listen",
        "member",
        "rank",
        "rendezvous",
        "serve",
        "service",
    ];
    let mut told = fields_of("", &recipe.learner);
    // A role's own table lacks what follows for it; ranks may come and go.
    told.remove("world_size");
    let roles = [
        (Role::Learner, told),
        (Role::RewardServer, fields_of("", &recipe.reward_server)),
        (Role::Actor, fields_of("", &recipe.actor)),
    ];
    let mut all = Table::new();
    for (role, fields) in roles {
        for (key, value) in fields {
            let first = key.split(['.', '[']).next().unwrap_or_default();
            if !SURROUNDINGS.contains(&first) {
                let value = match Path::new(&value).strip_prefix(&recipe.output) {
                    Ok(below) => format!("{{output}}/{}", below.display()),
                    Err(_) => value,
                };
                all.insert(format!("{}.{key}", role.section()), value.into());
            }
        }
    }
    all
}

impl RoleConfig {
    /// What a role owes to the sections of the others.
    fn hand_over(&mut self, recipe: &Recipe, folder: &RingFolder) {
        match self.role {
            Role::Coordinator => {
                self.derive("journal", folder.journal().display().to_string(), "output");
                self.derive("steps_file", folder.steps().display().to_string(), "output");
                self.derive("samples.file", folder.samples().display().to_string(), "output");
                if recipe.learner.ppo.reads_filtered_samples() {
                    self.derive("send_filtered", true, "learner.ppo");
                }
                self.derive("told", told(recipe), "learner, reward_server, actor");
            }
            Role::RewardServer => {
                if recipe.coordinator.deterministic {
                    self.derive("deterministic", true, "coordinator.deterministic");
                }
            }
            Role::Learner => {
                let ranks = i64::try_from(recipe.processes.learner_ranks).unwrap_or(i64::MAX);
                self.derive("world_size", ranks, "processes.learner_ranks");
                self.derive("checkpoints", folder.checkpoints().display().to_string(), "output");
            }
            Role::Actor => {}
        }
    }

    fn derive(&mut self, key: &'static str, value: impl Into<Value>, from: &'static str) {
        self.set(key, value);
        self.derived.push(Derived { key, from });
    }

    /// Why a key of it is what it is, where another section decides it.
    pub(super) fn derived(&self) -> &[Derived] {
        &self.derived
    }

    /// Puts addresses in where they are known only when the processes are.
    pub(super) fn address_for_checks(&mut self) {
        if self.role != Role::Coordinator {
            self.set_if_absent("coordinator", "127.0.0.1:0");
        }
    }

    /// Whose it is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Sets a key, such as `service.grace_period`.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        let (section, key) = self.place(key);
        section.insert(key.to_owned(), value.into());
    }

    /// Whether there is a section of that name.
    pub(crate) fn has_section(&self, section: &str) -> bool {
        self.table.get(section).is_some_and(Value::is_table)
    }

    /// Sets a key where the recipe does not.
    pub(crate) fn set_if_absent(&mut self, key: &str, value: impl Into<Value>) {
        let (section, key) = self.place(key);
        section.entry(key).or_insert(value.into());
    }

    /// The section of a dotted key, made where it is missing, and the key's last part.
    fn place<'k>(&mut self, key: &'k str) -> (&mut Table, &'k str) {
        let (sections, key) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.table;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().expect("a section: the recipe was parsed");
        }
        (table, key)
    }

    /// The configuration file.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        let text = toml::to_string(&self.table);
        text.with_context(|| format!("write the configuration of the {}", self.role.name()))
    }

    /// Reads it as its role does.
    ///
    /// # Errors
    /// When a value does not fit the role's schema.
    pub(crate) fn check(&self) -> anyhow::Result<Checked> {
        let checked = match self.role {
            Role::Coordinator => self.parsed::<coordinator::Config>(),
            Role::RewardServer => self.parsed::<reward_server::Config>(),
            Role::Learner => self.parsed::<learner::Config>(),
            Role::Actor => self.parsed::<actor::Config>(),
        };
        checked.with_context(|| format!("read [{}]", self.role.section()))
    }

    /// Every key of it, defaults filled in; what is not set is null.
    ///
    /// # Errors
    /// When a value does not fit the role's schema.
    pub(super) fn values(&self) -> anyhow::Result<serde_json::Value> {
        let values = match self.role {
            Role::Coordinator => self.values_as::<coordinator::Config>(),
            Role::RewardServer => self.values_as::<reward_server::Config>(),
            Role::Learner => self.values_as::<learner::Config>(),
            Role::Actor => self.values_as::<actor::Config>(),
        };
        values.with_context(|| format!("read [{}]", self.role.section()))
    }

    fn values_as<C: service::Config>(&self) -> anyhow::Result<serde_json::Value> {
        let config: C =
            Value::Table(self.table.clone()).try_into().map_err(|error| BadInput(format!("{error}")))?;
        Ok(serde_json::to_value(config)?)
    }

    fn parsed<C: service::Config>(&self) -> anyhow::Result<Checked> {
        let config: C =
            Value::Table(self.table.clone()).try_into().map_err(|error| BadInput(format!("{error}")))?;
        Ok(Checked { problems: config.every_problem(), grace_period: config.service().grace_period })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_at(output: &str) -> Table {
        let text = format!(
            "output = {output:?}\n[actor]\nserve.listen = '127.0.0.1:9'\n[learner]\npolicy = '{output}/sft'\n\
             checkpoints = '{output}/c'\nppo.policy_lr = 0.5\n[[reward_server.scorers]]\nkind = 'regex'\npattern = 'x'\n"
        );
        told(&toml::from_str(&text).unwrap())
    }

    #[test]
    fn what_is_told_is_the_same_wherever_the_run_lies_and_listens() {
        let told = told_at("runs/x");
        for (key, value) in [
            ("learner.policy", "{output}/sft"),
            ("learner.ppo.policy_lr", "0.5"),
            // What is not given may be given later.
            ("learner.ppo.lora", "null"),
            ("reward_server.scorers[0].pattern", "x"),
        ] {
            assert_eq!(told.get(key).and_then(Value::as_str), Some(value), "{key}");
        }
        for absent in
            ["learner.checkpoints", "learner.service.log", "actor.serve.listen", "learner.world_size"]
        {
            assert!(!told.contains_key(absent), "{absent}");
        }
        assert_eq!(told, told_at("/elsewhere/run"));
    }
}
