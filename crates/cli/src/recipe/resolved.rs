//! A recipe as it is used: every key with its value, where that came from, and what it means.

use service::config::{Key, Schema, Section, Source, find_keys};

use super::{Recipe, RecipeFile, derived, preset};

/// Every key of a recipe, resolved.
#[derive(Debug)]
pub(crate) struct Resolved<'r> {
    file: &'r RecipeFile,
    sections: Vec<Section>,
    /// Full paths of keys that another key decides, and that key.
    derived: Vec<(String, String)>,
    /// Full paths of keys that somebody set, and what the algorithm would have them be.
    overridden: Vec<(String, String)>,
}

impl RecipeFile {
    /// Every key of the recipe: what the roles are told, what algorithms decide, defaults.
    ///
    /// # Errors
    /// When a role would not read its section.
    pub(crate) fn resolved(&self) -> anyhow::Result<Resolved<'_>> {
        let mut recipe = self.recipe.clone();
        let (device, ppo) = (recipe.learner.device, &mut recipe.learner.ppo);
        let by_device = ppo.dtype.is_none();
        ppo.dtype = Some(ppo.dtype_on(device));
        let decided = ppo.fill_in_decided();
        let mut derived: Vec<(String, String)> = decided
            .into_iter()
            .map(|(key, from)| (format!("learner.ppo.{key}"), format!("learner.ppo.{from}")))
            .collect();
        if by_device {
            derived.push(("learner.ppo.dtype".to_owned(), "learner.device".to_owned()));
        }
        let decided = recipe.actor.engine.fill_in_decided().into_iter();
        derived.extend(decided.map(|key| (format!("actor.engine.{key}"), "actor.engine.device".to_owned())));
        let mut values = serde_json::to_value(&recipe)?;
        for config in self.role_configs() {
            let section = config.role().section();
            let told = config.values()?;
            for owed in config.derived() {
                let at = format!("/{}", owed.key.replace('.', "/"));
                if let (Some(shown), Some(value)) = (values[section].pointer_mut(&at), told.pointer(&at)) {
                    *shown = value.clone();
                }
                derived.push((format!("{section}.{}", owed.key), owed.from.to_owned()));
            }
        }
        let sections = Schema::of::<Recipe>().sections_of(&values);
        let overridden = self.overridden(&values)?;
        Ok(Resolved { file: self, sections, derived, overridden })
    }

    /// Keys that somebody set to something else than the recipe's algorithm would, and what that is.
    fn overridden(&self, values: &serde_json::Value) -> anyhow::Result<Vec<(String, String)>> {
        let algorithm = self.recipe.learner.ppo.algorithm;
        let mut alone = learner::PpoConfig { algorithm, ..learner::PpoConfig::default() };
        let keys = alone.fill_in_decided().into_iter().filter(|(_, from)| *from == "algorithm");
        let alone = serde_json::to_value(&alone)?;
        let mut decided: Vec<(String, serde_json::Value)> =
            keys.map(|(key, _)| (format!("learner.ppo.{key}"), alone[key].clone())).collect();
        for (key, value) in derived::decided(&self.layers) {
            decided.push((key.to_owned(), serde_json::to_value(value)?));
        }
        let name = serde_json::to_value(algorithm)?;
        let name = name.as_str().unwrap_or_default();
        let mut overridden = Vec::new();
        for (path, would_be) in decided {
            let pointer = format!("/{}", path.replace('.', "/"));
            let is_other = values.pointer(&pointer) != Some(&would_be);
            if is_other && matches!(self.layers.source(&path), Source::Set(_)) {
                overridden.push((path, format!("{name}: {would_be}")));
            }
        }
        Ok(overridden)
    }
}

impl Resolved<'_> {
    /// As TOML with comments.
    pub(crate) fn text(&self) -> String {
        service::config::resolved(&self.sections, |path| self.source(path))
    }

    /// What there is to say about one key.
    ///
    /// # Errors
    /// When the recipe has no such key, with those that are like it.
    pub(crate) fn explain(&self, path: &str) -> anyhow::Result<String> {
        let keys = find_keys(&self.sections, path)?;
        let described = keys.into_iter().map(|key| {
            let value = key.value.as_ref().map_or_else(|| "not set".to_owned(), ToString::to_string);
            let sources = if path == "learner.ppo.algorithm" { self.sources() } else { String::new() };
            format!("{}here: {value} ({})\n{sources}", key.description(), self.source(path))
        });
        Ok(described.collect())
    }

    /// Where that comes from which the algorithm decides.
    fn sources(&self) -> String {
        let algorithm = self.file.recipe.learner.ppo.algorithm;
        format!(
            "loss, advantages and KL: {}\nfiltration, passes and rates: {}\n",
            algorithm.defaults().source,
            preset::source(algorithm)
        )
    }

    /// Every key.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.sections.iter().flat_map(|section| &section.keys)
    }

    /// Where the value of a key came from.
    pub(super) fn source(&self, path: &str) -> Source {
        if let Some((_, from)) = self.derived.iter().find(|(key, _)| key == path) {
            return Source::Derived(from.clone());
        }
        match (self.file.layers.source(path), self.overridden.iter().find(|(key, _)| key == path)) {
            (Source::Set(origin), Some((_, would_be))) => Source::Set(format!("{origin} ({would_be})")),
            (source, _) => source,
        }
    }
}
