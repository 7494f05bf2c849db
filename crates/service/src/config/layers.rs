//! The layers, merged into one table and parsed with errors that point at their origin.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::DeTable;
use toml::{Table, Value};

use super::Error;
use super::describe::{Elsewhere, describe};
use super::origin::{Origins, Source, join};
use super::place::{below, value_at};
use super::rest::Rest;
use super::schema::Schema;

/// Most values that do not fit and are named at once.
const MAX_PROBLEMS: usize = 20;
/// Start of the environment variables that set values.
const ENV_PREFIX: &str = "SLUICE_";

/// Layers of configuration, later ones over earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    merged: Table,
    origins: Origins,
}

impl Layers {
    /// The layers of a process: the file, its environment, its `--set` flags.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or a setting is not `key=value`.
    pub fn of_process(file: Option<&Path>, settings: &[String]) -> Result<Self, Error> {
        let mut layers = Self::default();
        if let Some(file) = file {
            layers.add_file(file)?;
        }
        layers.add_environment(std::env::vars())?;
        for setting in settings {
            layers.add_setting(setting)?;
        }
        Ok(layers)
    }

    /// The layers of a file that is used elsewhere: the file and `--set` values, without this process's
    /// environment.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or a setting is not `key=value`.
    pub fn of_file(file: &Path, settings: &[String]) -> Result<Self, Error> {
        let mut layers = Self::default();
        layers.add_file(file)?;
        for setting in settings {
            layers.add_setting(setting)?;
        }
        Ok(layers)
    }

    /// Lays a TOML file over what is there.
    ///
    /// # Errors
    /// When it cannot be read or is not TOML; the message names the line.
    pub fn add_file(&mut self, file: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Error::Read { path: file.to_owned(), problem: error.to_string() })?;
        let spanned = DeTable::parse(&text).map_err(|error| not_toml(file, &text, &error))?;
        self.origins.set_from_file(file, &text, spanned.get_ref());
        merge(&mut self.merged, text.parse().map_err(|error| not_toml(file, &text, &error))?);
        Ok(())
    }

    /// Lays the variables that start with `SLUICE_` and hold a `__` over what is there.
    ///
    /// # Errors
    /// When a variable names a key below a value that is no table.
    pub(crate) fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), Error> {
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(ENV_PREFIX)
                && key.contains("__")
            {
                let path = key.to_ascii_lowercase().replace("__", ".");
                self.set(&path, &value, format!("environment variable {name}"))?;
            }
        }
        Ok(())
    }

    /// Lays one `a.b=value` over what is there.
    ///
    /// # Errors
    /// When it has no `=`, or names a key below a value that is no table.
    pub fn add_setting(&mut self, setting: &str) -> Result<(), Error> {
        let origin = format!("--set {setting}");
        match setting.split_once('=') {
            Some((path, value)) if !path.is_empty() => self.set(path, value, origin),
            _ => Err(Error::Value { origin, problem: "must look like section.key=value".into() }),
        }
    }

    /// What the layers say, without defaults.
    pub fn table(&self) -> &Table {
        &self.merged
    }

    /// The value at `path`, such as `stages[0].sft.epochs`, where a layer has it.
    pub fn value(&self, path: &str) -> Option<&Value> {
        value_at(&self.merged, path)
    }

    /// Where the value at `path`, such as `stages[0].sft.epochs`, came from.
    pub fn source(&self, path: &str) -> Source {
        let set = value_at(&self.merged, path).and_then(|_| self.origins.of(path));
        set.cloned().unwrap_or(Source::Default)
    }

    /// A problem behind the place of the key that it begins with.
    pub fn placed(&self, problem: String) -> String {
        let key = problem.split([' ', ':', ',']).next().unwrap_or_default();
        match self.source(key) {
            Source::Set(origin) => format!("{origin}: {problem}"),
            Source::Derived(_) | Source::Default => problem,
        }
    }

    /// Sets a value that follows from `from` where no layer has it. The sections on the way are made.
    pub fn derive(&mut self, path: &str, value: Value, from: &str) {
        let mut table = &mut self.merged;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            if keys.peek().is_none() {
                if !table.contains_key(key) {
                    table.insert(key.to_owned(), value);
                    self.origins.set(path, Source::Derived(from.to_owned()));
                }
                return;
            }
            let inner = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { return };
            table = inner;
        }
    }

    /// Sets a value that follows from `from`, whatever a layer says. The sections on the way are made.
    pub fn replace(&mut self, path: &str, value: Value, from: &str) {
        let mut table = &mut self.merged;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            if keys.peek().is_none() {
                table.insert(key.to_owned(), value);
                self.origins.set(path, Source::Derived(from.to_owned()));
                return;
            }
            let inner = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { return };
            table = inner;
        }
    }

    /// Lays the table at `path` over the whole; its values keep their origins.
    pub fn lay_over(&mut self, path: &str) {
        let Some(Value::Table(over)) = value_at(&self.merged, path).cloned() else { return };
        for leaf in leaves(&over, "") {
            if let Some(source) = self.origins.of(&join(path, &leaf)).cloned() {
                self.origins.set(&leaf, source);
            }
        }
        merge(&mut self.merged, over);
    }

    /// Changes the merged values; errors about changed ones still point at where the old ones came from.
    pub fn edit(&mut self, change: impl FnOnce(&mut Table)) {
        change(&mut self.merged);
    }

    fn set(&mut self, path: &str, text: &str, origin: String) -> Result<(), Error> {
        let (section, key) =
            path.rsplit_once('.').map_or((None, path), |(section, key)| (Some(section), key));
        let mut table = &mut self.merged;
        for part in section.iter().flat_map(|section| section.split('.')) {
            table = below(table, part).map_err(|problem| Error::Value { origin: origin.clone(), problem })?;
        }
        table.insert(key.to_owned(), parse_value(text));
        self.origins.set(path, Source::Set(origin));
        Ok(())
    }

    /// Parses the merged layers; what no layer names has the type's default.
    ///
    /// # Errors
    /// Every value that does not fit, with its origin.
    pub fn parse<C: DeserializeOwned>(&self) -> Result<C, Error> {
        self.parse_with(&|_| Vec::new())
    }

    /// The same for a type whose keys are known: a key that nobody knows where it stands may belong
    /// elsewhere.
    ///
    /// # Errors
    /// Every value that does not fit, with its origin.
    pub fn parse_known<C: DeserializeOwned + JsonSchema>(&self) -> Result<C, Error> {
        self.parse_with(&|key| Schema::of::<C>().elsewhere(key))
    }

    fn parse_with<C: DeserializeOwned>(&self, elsewhere: Elsewhere<'_>) -> Result<C, Error> {
        let (mut rest, mut problems) = (Rest::of(&self.merged), Vec::new());
        loop {
            let parsed = serde_path_to_error::deserialize(Value::Table(rest.table.clone()));
            let error: serde_path_to_error::Error<toml::de::Error> = match parsed {
                Ok(config) if problems.is_empty() => return Ok(config),
                Ok(_) => break,
                Err(error) => error,
            };
            let (path, message) = (error.path().to_string(), error.inner().message());
            problems.push(describe(&self.origins, &rest.written(&path), message, elsewhere));
            // What does not fit is left out, and the others are looked at.
            if problems.len() == MAX_PROBLEMS || !rest.leave_out(&path, message) {
                break;
            }
        }
        Err(match <[Error; 1]>::try_from(problems) {
            Ok([only]) => only,
            Err(several) => Error::Unusable { problems: several.iter().map(ToString::to_string).collect() },
        })
    }
}

fn not_toml(file: &Path, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text[..at].matches('\n').count() + 1;
    Error::Value { origin: format!("{}:{line}", file.display()), problem: error.message().to_owned() }
}

/// A value given as text: TOML if it parses as such, otherwise a plain string.
fn parse_value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let value = parsed.and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// The dotted paths of a table's values.
fn leaves(table: &Table, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(inner) if !inner.is_empty() => paths.extend(leaves(inner, &path)),
            _ => paths.push(path),
        }
    }
    paths
}

/// The effective configuration as TOML, as it is logged at the start and printed by `--check-config`.
pub fn render<C: Serialize>(config: &C) -> String {
    toml::to_string(config).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        name: String,
        ppo: Ppo,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Ppo {
        clip_ratio: f64,
        epochs: u32,
        #[serde(with = "humantime_serde")]
        timeout: Duration,
    }

    fn layers(text: &str) -> Result<Layers, Error> {
        let mut file = tempfile::Builder::new().prefix("recipe").suffix(".toml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut layers = Layers::default();
        layers.add_file(file.path()).map(|()| layers)
    }

    fn error(text: &str) -> String {
        match layers(text) {
            Ok(layers) => layers.parse::<Example>().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn later_layers_win() {
        let mut layers =
            layers("name = 'file'\n[ppo]\nclip_ratio = 0.1\nepochs = 1\ntimeout = '3s'\n").unwrap();
        let variables = [
            ("SLUICE_PPO__EPOCHS", "2"),
            ("SLUICE_PPO__CLIP_RATIO", "0.2"),
            ("SLUICE_OTHER", "is not a setting"),
            ("HOME", "/"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        layers.add_environment(variables.into_iter()).unwrap();
        layers.add_setting("ppo.epochs=3").unwrap();
        let expected = Ppo { clip_ratio: 0.2, epochs: 3, timeout: Duration::from_secs(3) };
        assert_eq!(layers.parse::<Example>().unwrap(), Example { name: "file".into(), ppo: expected });
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_key() {
        let message = error("name = 'x'\n\n[ppo]\nepochs = 1\nclip_ration = 0.2\n");
        assert!(
            message.contains(".toml:5: unknown key ppo.clip_ration; did you mean ppo.clip_ratio?"),
            "{message}"
        );
        let message = error("[pppo]\nepochs = 1\n");
        assert!(message.contains(".toml:1: unknown key pppo; did you mean ppo?"), "{message}");
        let message = error("[ppo]\nqwertyuiop = 1\n");
        assert!(message.contains("known here: clip_ratio, epochs, timeout"), "{message}");
    }

    #[test]
    fn a_key_in_a_list_of_tables_is_named_with_its_line() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Listed {
            #[expect(dead_code, reason = "only its errors matter")]
            stages: Vec<Ppo>,
        }
        let text = "[[stages]]\nepochs = 1\n\n[[stages]]\nepoch = 2\n";
        let message = layers(text).unwrap().parse::<Listed>().unwrap_err().to_string();
        assert!(
            message.contains(".toml:5: unknown key stages[1].epoch; did you mean stages[1].epochs?"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line() {
        let message = error("[ppo]\nepochs = 'three'\n");
        assert!(message.contains(".toml:2: ppo.epochs: invalid type: string"), "{message}");
        let message = error("[ppo]\nepochs = -1\n");
        assert!(message.contains(".toml:2: ppo.epochs: invalid value"), "{message}");
        let message = error("[ppo]\ntimeout = '5 parsecs'\n");
        assert!(message.contains(".toml:2: ppo.timeout:"), "{message}");
    }

    #[test]
    fn everything_that_does_not_fit_is_named_at_once() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Listed {
            #[expect(dead_code, reason = "only its errors matter")]
            stages: Vec<Ppo>,
            #[expect(dead_code, reason = "only its errors matter")]
            ppo: Ppo,
        }
        let text = "[ppo]\nepochs = 'three'\nclip_ration = 1\ntimeout = 's'\n[[stages]]\nepoch = 1\n\
                    [[stages]]\nepochs = 1\n[[stages]]\nepochs = 'x'\n[extra]\nkey = 1\n";
        let message = layers(text).unwrap().parse::<Listed>().unwrap_err().to_string();
        let places = [
            ":2: ppo.epochs",
            ":3: unknown key ppo.clip_ration",
            ":4: ppo.timeout",
            ":6: unknown key stages[0].epoch;",
            ":10: stages[2].epochs",
            ":11: unknown key extra",
        ];
        for place in places {
            assert!(message.contains(place), "{place} in {message}");
        }
        assert_eq!(message.matches(".toml:").count(), places.len(), "{message}");
    }

    #[test]
    fn each_table_of_a_list_has_its_own_place() {
        let layers = layers("[[stages]]\nepochs = 1\n\n[[stages]]\nepochs = 2\n").unwrap();
        for (path, line) in [("stages", 1), ("stages[0]", 1), ("stages[1]", 4), ("stages[1].epochs", 5)] {
            let source = layers.source(path).to_string();
            assert!(source.ends_with(&format!(".toml:{line}")), "{path}: {source}");
        }
        let placed = layers.placed("stages[1] lacks a name".to_owned());
        assert!(placed.ends_with(".toml:4: stages[1] lacks a name"), "{placed}");
    }

    #[test]
    fn a_list_that_is_set_anew_keeps_no_place_of_the_old_one() {
        let mut layers = layers("[[stages]]\nepochs = 1\n").unwrap();
        layers.add_setting("stages=[{epochs = 2}]").unwrap();
        assert_eq!(layers.source("stages[0].epochs").to_string(), "--set stages=[{epochs = 2}]");
    }

    #[test]
    fn broken_toml_is_named_with_its_line() {
        let message = error("name = 'x'\n[ppo\nepochs = 1\n");
        assert!(message.contains(".toml:2: "), "{message}");
    }

    #[test]
    fn settings_and_variables_are_named_as_origins() {
        let mut by_flag = Layers::default();
        by_flag.add_setting("ppo.epoch=3").unwrap();
        let message = by_flag.parse::<Example>().unwrap_err().to_string();
        assert!(message.starts_with("--set ppo.epoch=3: unknown key ppo.epoch; did you mean"), "{message}");
        let mut by_variable = Layers::default();
        let variable = ("SLUICE_PPO__EPOCHS".to_owned(), "many".to_owned());
        by_variable.add_environment([variable].into_iter()).unwrap();
        let message = by_variable.parse::<Example>().unwrap_err().to_string();
        assert!(message.starts_with("environment variable SLUICE_PPO__EPOCHS: ppo.epochs"), "{message}");
        assert!(Layers::default().add_setting("nonsense").is_err());
        let mut below = layers("name = 'x'\n").unwrap();
        assert!(below.add_setting("name.inner=1").is_err());
    }

    #[test]
    fn one_table_of_a_list_is_set_by_its_place() {
        let mut layers = layers("[[stages]]\nname = 'a'\n[[stages]]\nname = 'b'\n").unwrap();
        layers.add_setting("stages[1].sft.epochs=3").unwrap();
        assert_eq!(layers.value("stages[1].sft.epochs"), Some(&Value::Integer(3)));
        assert_eq!(layers.value("stages[0].sft"), None);
        let Source::Set(origin) = layers.source("stages[1].sft.epochs") else { panic!("it was set") };
        assert_eq!(origin, "--set stages[1].sft.epochs=3");
        for wrong in ["stages[2].name=x", "stages[x].name=y", "stages[-1].name=z", "other[0].name=x"] {
            let error = layers.add_setting(wrong).unwrap_err().to_string();
            assert!(error.contains("counted from 0"), "{error}");
        }
    }

    #[test]
    fn a_table_of_it_lies_over_the_whole_with_its_own_origins() {
        let text =
            "name = 'x'\n[ppo]\nepochs = 1\nclip_ratio = 0.1\n[[stages]]\n[stages.set]\nppo.epochs = 4\n";
        let mut layers = layers(text).unwrap();
        layers.lay_over("stages[0].set");
        layers.lay_over("stages[7].set");
        layers.edit(|table| drop(table.remove("stages")));
        let example = layers.parse::<Example>().unwrap();
        assert_eq!((example.ppo.epochs, example.ppo.clip_ratio), (4, 0.1));
        assert!(
            layers.source("ppo.epochs").to_string().ends_with(".toml:7"),
            "{}",
            layers.source("ppo.epochs")
        );
        assert!(layers.source("ppo.clip_ratio").to_string().ends_with(".toml:4"));
    }

    #[test]
    fn text_needs_no_quotes_in_a_setting() {
        for (text, expected) in [
            ("3", Value::Integer(3)),
            ("true", Value::Boolean(true)),
            ("plain/path", Value::String("plain/path".into())),
            ("'3'", Value::String("3".into())),
            ("[1, 2]", Value::Array(vec![Value::Integer(1), Value::Integer(2)])),
        ] {
            assert_eq!(parse_value(text), expected);
        }
    }
}
