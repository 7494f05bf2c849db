//! What is left of a configuration when the values that do not fit are left out, so that all of them can be
//! named at once.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::origin::join;

/// A table without what was left out of it.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) table: Table,
    /// By the path of a list, where those of its elements stood that are left.
    places: BTreeMap<String, Vec<usize>>,
}

impl Rest {
    /// All of it.
    pub(super) fn of(table: &Table) -> Self {
        Self { table: table.clone(), places: BTreeMap::new() }
    }

    /// A path of what is left as it is written in the whole.
    pub(super) fn written(&self, path: &str) -> String {
        let (mut left, mut written) = (String::new(), String::new());
        for part in path.split('.') {
            let Some((name, index)) = element(part) else {
                (left, written) = (join(&left, part), join(&written, part));
                continue;
            };
            let list = join(&left, name);
            let place = self.places.get(&list).and_then(|places| places.get(index)).copied().unwrap_or(index);
            (left, written) = (format!("{list}[{index}]"), format!("{}[{place}]", join(&written, name)));
        }
        written
    }

    /// Leaves out what a message about a path is about: a key that nobody knows, a value, or the element of a
    /// list that lacks something. False where that is all.
    pub(super) fn leave_out(&mut self, path: &str, message: &str) -> bool {
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let path = match unknown {
            Some(key) if path != key && !path.ends_with(&format!(".{key}")) => join(path, key),
            _ => path.to_owned(),
        };
        let (above, last) = path.rsplit_once('.').unwrap_or(("", &path));
        let Some(table) = table_at(&mut self.table, above) else { return false };
        let Some((name, index)) = element(last) else { return table.remove(last).is_some() };
        let Some(Value::Array(list)) = table.get_mut(name) else { return false };
        if index >= list.len() {
            return false;
        }
        let count = list.len();
        list.remove(index);
        let places = self.places.entry(join(above, name)).or_insert_with(|| (0..count).collect());
        places.remove(index);
        true
    }
}

/// The name and index of `stages[0]`.
fn element(part: &str) -> Option<(&str, usize)> {
    let (name, index) = part.strip_suffix(']')?.split_once('[')?;
    Some((name, index.parse().ok()?))
}

/// The table at a dotted path with indices in brackets.
fn table_at<'t>(table: &'t mut Table, path: &str) -> Option<&'t mut Table> {
    let mut table = table;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let value = match element(part) {
            Some((name, index)) => table.get_mut(name)?.as_array_mut()?.get_mut(index)?,
            None => table.get_mut(part)?,
        };
        table = value.as_table_mut()?;
    }
    Some(table)
}
