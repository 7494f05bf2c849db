//! Where each value came from, so that an error can point at it and a reader can be told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Somebody set it: `file:line`, a variable or a flag.
    Set(String),
    /// It follows from something else, which is named.
    Derived(String),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(origin) => f.write_str(origin),
            Self::Derived(from) => write!(f, "from {from}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Origins of values by dotted path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins(BTreeMap<String, Source>);

impl Origins {
    /// Records that `path` and all below it came from `source`.
    pub(crate) fn set(&mut self, path: &str, source: Source) {
        let is_below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0.retain(|known, _| !known.strip_prefix(path).is_some_and(is_below));
        self.0.insert(path.to_owned(), source);
    }

    /// Records the line of each key of a parsed file.
    pub(crate) fn set_from_file(&mut self, file: &Path, text: &str, table: &DeTable<'_>) {
        self.walk(file, text, table, "");
    }

    fn walk(&mut self, file: &Path, text: &str, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            self.0.insert(path.clone(), line_of(file, text, key.span().start));
            self.walk_value(file, text, value.get_ref(), &path);
        }
    }

    fn walk_value(&mut self, file: &Path, text: &str, value: &DeValue<'_>, path: &str) {
        match value {
            DeValue::Table(inner) => self.walk(file, text, inner, path),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.0.insert(path.clone(), line_of(file, text, item.span().start));
                    self.walk_value(file, text, item.get_ref(), &path);
                }
            }
            _ => {}
        }
    }

    /// The origin of the value at `path`, or of the nearest enclosing table that has one.
    pub(crate) fn of(&self, path: &str) -> Option<&Source> {
        let mut path = path;
        loop {
            if let Some(source) = self.0.get(path) {
                return Some(source);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// The line that this byte of a file's text is in.
fn line_of(file: &Path, text: &str, byte: usize) -> Source {
    let line = text[..byte].matches('\n').count() + 1;
    Source::Set(format!("{}:{line}", file.display()))
}

/// `prefix.key`, or `key` at the top.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() || prefix == "." { key.to_owned() } else { format!("{prefix}.{key}") }
}
