//! A recipe as it is used: every key with its value, where that came from, and what it means.

use service::config::{Key, Schema, Section, Source, find_keys};

use super::{Recipe, RecipeFile};

/// Every key of a recipe, resolved.
#[derive(Debug)]
pub(crate) struct Resolved<'r> {
    file: &'r RecipeFile,
    sections: Vec<Section>,
    /// Full paths of keys that another key decides, and that key.
    derived: Vec<(String, String)>,
}

impl RecipeFile {
    /// Every key of the recipe: what the roles are told, what algorithms decide, defaults.
    ///
    /// # Errors
    /// When a role would not read its section.
    pub(crate) fn resolved(&self) -> anyhow::Result<Resolved<'_>> {
        let mut recipe = self.recipe.clone();
        let decided = recipe.learner.ppo.fill_in_algorithm();
        let mut derived: Vec<(String, String)> = decided
            .into_iter()
            .map(|key| (format!("learner.ppo.{key}"), "learner.ppo.algorithm".to_owned()))
            .collect();
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
        Ok(Resolved { file: self, sections: Schema::of::<Recipe>().sections_of(&values), derived })
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
            format!("{}here: {value} ({})\n", key.description(), self.source(path))
        });
        Ok(described.collect())
    }

    /// Every key.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.sections.iter().flat_map(|section| &section.keys)
    }

    /// Where the value of a key came from.
    pub(super) fn source(&self, path: &str) -> Source {
        match self.derived.iter().find(|(key, _)| key == path) {
            Some((_, from)) => Source::Derived(from.clone()),
            None => self.file.layers.source(path),
        }
    }
}
