//! Rows of named numbers, kept by column.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most rows. Beyond, every second row of the older half goes: a curve of a quarter of a million points looks
/// the same, and a run without end needs no memory without end.
const ROWS_LIMIT: usize = 1 << 18;

/// What a row has in a column of which it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// No number.
    Unknown,
    /// That of the row before: rows say what has changed.
    AsBefore,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    columns: BTreeMap<String, Vec<f64>>,
    rows: usize,
}

impl Columns {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = (String, f64)>, absent: Absent) {
        for (name, value) in row {
            let column = self.columns.entry(name).or_default();
            column.resize(self.rows, f64::NAN);
            column.push(value);
        }
        self.rows += 1;
        for column in self.columns.values_mut() {
            if column.len() < self.rows {
                let before = column.last().copied().unwrap_or(f64::NAN);
                column.push(if absent == Absent::AsBefore { before } else { f64::NAN });
            }
        }
        if self.rows > ROWS_LIMIT {
            self.thin_out();
        }
    }

    /// Forgets every second row of the older half.
    fn thin_out(&mut self) {
        let older = self.rows / 2;
        for column in self.columns.values_mut() {
            let mut row = 0;
            column.retain(|_| {
                row += 1;
                row > older || row % 2 == 0
            });
        }
        self.rows = self.columns.values().next().map_or(0, Vec::len);
    }

    /// Forgets the rows from this one on.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        self.columns.values_mut().for_each(|column| column.truncate(rows));
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// A column, a number for each row; not a number where a row has none.
    pub(crate) fn get(&self, name: &str) -> Option<&[f64]> {
        self.columns.get(name).map(Vec::as_slice)
    }

    /// The names of the columns, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.keys().map(String::as_str)
    }
}

/// The numbers of an object by their dotted paths: `metrics.entropy`. Texts and lists are left out.
pub fn flatten(value: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    flatten_below(value, "", &mut found);
    found
}

fn flatten_below(value: &Value, path: &str, found: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten_below(value, &path, found);
            }
        }
        Value::Number(number) => found.extend(number.as_f64().map(|number| (path.to_owned(), number))),
        Value::Bool(value) => found.push((path.to_owned(), f64::from(u8::from(*value)))),
        Value::Null | Value::String(_) | Value::Array(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_column_that_comes_late_has_no_numbers_before() {
        let mut table = Columns::default();
        table.push(flatten(&json!({"batch": 1, "text": "no number"})), Absent::Unknown);
        table.push(flatten(&json!({"batch": 2, "inner": {"kl": 0.5}})), Absent::Unknown);
        table.push(flatten(&json!({"batch": 3})), Absent::Unknown);
        assert_eq!(table.names().collect::<Vec<_>>(), ["batch", "inner.kl"]);
        assert_eq!(table.get("batch"), Some([1.0, 2.0, 3.0].as_slice()));
        let late = table.get("inner.kl").unwrap();
        assert!(late[0].is_nan() && late[2].is_nan());
        assert_eq!(late[1], 0.5);
    }

    #[test]
    fn what_did_not_change_is_as_before() {
        let mut table = Columns::default();
        table.push([("a".to_owned(), 1.0)], Absent::AsBefore);
        table.push([("b".to_owned(), 5.0)], Absent::AsBefore);
        assert_eq!(table.get("a"), Some([1.0, 1.0].as_slice()));
    }

    #[test]
    fn a_run_without_end_needs_no_memory_without_end() {
        let mut table = Columns::default();
        for row in 0..3 * ROWS_LIMIT {
            table.push([("x".to_owned(), row as f64)], Absent::Unknown);
        }
        assert!(table.rows() <= ROWS_LIMIT);
        let x = table.get("x").unwrap();
        assert_eq!(x.last().copied(), Some((3 * ROWS_LIMIT - 1) as f64));
        assert!(x.windows(2).all(|pair| pair[0] < pair[1]), "in order");
        assert!(x[0] < ROWS_LIMIT as f64, "the beginning is still there");
    }
}
