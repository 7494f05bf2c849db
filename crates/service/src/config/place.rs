//! Places in a table, such as `stages[0].sft.epochs`.

use toml::{Table, Value};

/// The value at a dotted path with indices in brackets.
pub(super) fn value_at<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    let mut keys = path.split('.');
    let mut value = member(table.get(name(keys.next()?))?, path.split('.').next()?)?;
    for key in keys {
        value = member(value.as_table()?.get(name(key))?, key)?;
    }
    Some(value)
}

/// The section of this name, which is made where there is none; `stages[0]` is one of a list that is there.
pub(super) fn below<'t>(table: &'t mut Table, part: &str) -> Result<&'t mut Table, String> {
    let name = name(part);
    if name == part {
        let inner = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        return inner.as_table_mut().ok_or_else(|| format!("{name} is a value, not a section"));
    }
    let there = table.get_mut(name).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    let count = there.len();
    let at = part.split_once('[').and_then(|(_, index)| index.strip_suffix(']')?.parse::<usize>().ok());
    let element = at.and_then(|at| there.get_mut(at)).and_then(Value::as_table_mut);
    element.ok_or_else(|| format!("there is no {part}: {name} has {count}, counted from 0"))
}

/// A key without its index.
fn name(key: &str) -> &str {
    key.split('[').next().unwrap_or(key)
}

/// What a key with an index, such as `stages[0]`, means of the value behind its name.
fn member<'t>(value: &'t Value, key: &str) -> Option<&'t Value> {
    match key.split_once('[') {
        None => Some(value),
        Some((_, index)) => value.as_array()?.get(index.strip_suffix(']')?.parse::<usize>().ok()?),
    }
}
