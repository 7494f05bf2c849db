//! Where each value came from, so that an error can point at it.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

/// Origins of values by dotted path.
#[derive(Debug, Default)]
pub(crate) struct Origins(BTreeMap<String, String>);

impl Origins {
    /// Records that `path` and all below it were set by `origin`.
    pub(crate) fn set(&mut self, path: &str, origin: String) {
        let below = format!("{path}.");
        self.0.retain(|known, _| known != path && !known.starts_with(&below));
        self.0.insert(path.to_owned(), origin);
    }

    /// Records the line of each key of a parsed file.
    pub(crate) fn set_from_file(&mut self, file: &Path, text: &str, table: &DeTable<'_>) {
        self.walk(file, text, table, "");
    }

    fn walk(&mut self, file: &Path, text: &str, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            let line = text[..key.span().start].matches('\n').count() + 1;
            self.0.insert(path.clone(), format!("{}:{line}", file.display()));
            self.walk_value(file, text, value.get_ref(), &path);
        }
    }

    fn walk_value(&mut self, file: &Path, text: &str, value: &DeValue<'_>, path: &str) {
        match value {
            DeValue::Table(inner) => self.walk(file, text, inner, path),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.walk_value(file, text, item.get_ref(), &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }

    /// The origin of the value at `path`, or of the nearest enclosing table that has one.
    pub(crate) fn of(&self, path: &str) -> Option<&str> {
        let mut path = path;
        loop {
            if let Some(origin) = self.0.get(path) {
                return Some(origin);
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

/// `prefix.key`, or `key` at the top.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() || prefix == "." { key.to_owned() } else { format!("{prefix}.{key}") }
}
