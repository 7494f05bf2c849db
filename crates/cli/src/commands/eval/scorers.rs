//! The scorers that `sluice eval` judges by: of the command line, a recipe, or a reward server's
//! configuration.

use std::path::{Path, PathBuf};

use reward_server::Config;
use reward_server::config::ScorerConfig;
use serde_json::{Map, Value};
use service::BadInput;
use service::config::Layers;

use crate::episodes::is_recipe;
use crate::grading::GradingSetup;
use crate::judging::judging_config;
use crate::recipe::{Environment, RecipeFile};

/// Which scorers judge.
#[derive(Debug, clap::Args)]
pub(super) struct ScorerArguments {
    /// Judges by this scorer: its kind (numeric-match, math, exact-match, unit-tests, ...) or its table as in
    /// a recipe, such as '{kind = "regex", pattern = "[0-9]$"}'; may be given several times.
    #[arg(long, value_name = "KIND|TABLE")]
    scorer: Vec<String>,
    /// The field of the prompt's line that holds what is right.
    #[arg(long, requires = "scorer")]
    field: Option<String>,
    /// Judges by the scorers of this recipe, or of this reward server's configuration.
    #[arg(long, value_name = "FILE", conflicts_with = "scorer")]
    scorers: Option<PathBuf>,
}

impl ScorerArguments {
    /// Whether any are named.
    pub(super) fn is_given(&self) -> bool {
        !self.scorer.is_empty() || self.scorers.is_some()
    }

    /// The recipe, or the reward server's configuration, that they stand in.
    pub(super) fn file(&self) -> Option<&Path> {
        self.scorers.as_deref()
    }

    /// The reward server that they are those of, as one that judges.
    ///
    /// # Errors
    /// Names what cannot be used.
    pub(super) fn config(&self, policy: &Path, setup: &GradingSetup) -> anyhow::Result<Config> {
        let mut config = match &self.scorers {
            Some(path) => of_file(path)?,
            None => Config::default(),
        };
        for text in &self.scorer {
            config.scorers.push(scorer(text, self.field.as_deref())?);
        }
        judging_config(config, policy, setup)
    }
}

/// Those of a recipe, or of a reward server's configuration.
fn of_file(path: &Path) -> anyhow::Result<Config> {
    if is_recipe(path)? {
        return Ok(RecipeFile::read(path, Environment::Applied, &[])?.recipe.reward_server);
    }
    Ok(Layers::of_process(Some(path), &[])?.parse()?)
}

fn wrong(place: &str, problem: &dyn std::fmt::Display) -> BadInput {
    BadInput(format!("{place}: {problem}"))
}

/// A scorer as it is named on a command line.
fn scorer(text: &str, field: Option<&str>) -> Result<ScorerConfig, BadInput> {
    let place = format!("--scorer {text}");
    let mut keys = Map::new();
    if text.trim_start().starts_with('{') {
        let table: toml::Table = format!("scorer = {text}").parse().map_err(|error| wrong(&place, &error))?;
        let table = serde_json::to_value(&table["scorer"]).map_err(|error| wrong(&place, &error))?;
        keys.extend(table.as_object().cloned().unwrap_or_default());
    } else {
        keys.insert("kind".to_owned(), text.into());
    }
    if let Some(field) = field {
        let key = if keys.get("kind").and_then(Value::as_str) == Some("http") { "label" } else { "field" };
        keys.insert(key.to_owned(), field.into());
    }
    ScorerConfig::try_from(keys).map_err(|error| wrong(&place, &error))
}

#[cfg(test)]
mod tests {
    use reward_server::config::{Rule, SandboxConfig, ScorerKind};

    use super::*;

    #[test]
    fn a_scorer_is_named_by_its_kind_or_its_table() {
        let numeric = scorer("numeric-match", Some("answer")).unwrap();
        assert!(matches!(&numeric.kind, ScorerKind::NumericMatch(numeric) if numeric.field == "answer"));
        let tests = scorer("{kind = 'unit-tests', rule = 'all', weight = 2}", None).unwrap();
        assert_eq!(tests.weight(), 2.0);
        assert!(matches!(&tests.kind, ScorerKind::UnitTests(tests) if tests.rule == Rule::All));
        let http = scorer("{kind = 'http', url = 'http://x'}", Some("answer")).unwrap();
        assert!(matches!(&http.kind, ScorerKind::Http(http) if http.label.as_deref() == Some("answer")));
        for (text, expected) in
            [("numbers", "numeric-match"), ("{kind =", "--scorer {kind ="), ("regex", "pattern")]
        {
            let error = scorer(text, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
        assert!(
            scorer("{kind = 'regex', pattern = 'x'}", Some("a")).unwrap_err().to_string().contains("field")
        );
    }

    #[test]
    fn a_recipes_scorers_judge_by_its_yardstick() {
        let folder = tempfile::tempdir().unwrap();
        let (recipe, policy) = (folder.path().join("recipe.toml"), folder.path().join("policy"));
        let setup = GradingSetup::of(&SandboxConfig::default());
        let arguments = |scorers: &Path| ScorerArguments {
            scorer: Vec::new(),
            field: None,
            scorers: Some(scorers.to_owned()),
        };
        let text = "output = 'o'\n[[reward_server.scorers]]\nkind = 'length-penalty'\nfree_tokens = 1\nmax_tokens = 9\n\
                    [[reward_server.scorers]]\nkind = 'exact-match'\nweight = 0\nyardstick = true\n\
                    [reward_server.reference]\nmodel = '{output}/sft'\n";
        std::fs::write(&recipe, text).unwrap();
        let config = arguments(&recipe).config(&policy, &setup).unwrap();
        let marked: Vec<bool> = config.scorers.iter().map(|scorer| scorer.share.yardstick).collect();
        assert_eq!((marked, config.reference), (vec![false, true], None));
        std::fs::write(&recipe, "[[scorers]]\nkind = 'exact-match'\n").unwrap();
        let config = arguments(&recipe).config(&policy, &setup).unwrap();
        assert!(config.scorers[0].share.yardstick, "the only one is the yardstick");
        let marked =
            "[[scorers]]\nkind = 'length-penalty'\nfree_tokens = 1\nmax_tokens = 9\nyardstick = true\n";
        std::fs::write(&recipe, marked).unwrap();
        let error = arguments(&recipe).config(&policy, &setup).unwrap_err().to_string();
        assert!(error.contains("scorers[0].yardstick is true, but the numbers of length-penalty"), "{error}");
    }
}
