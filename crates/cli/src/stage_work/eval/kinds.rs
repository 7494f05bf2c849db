//! The kinds that problems are of, as a field of theirs says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl;

/// By kind, the problems of it: their places in the file.
#[derive(Debug, Default)]
pub(super) struct Kinds(BTreeMap<String, Vec<usize>>);

impl Kinds {
    /// Of the first `most` problems of a file.
    ///
    /// # Errors
    /// Names the line whose field is missing, or neither a text nor a list of texts.
    pub(super) fn read(path: &Path, field: &str, most: usize) -> Result<Self, BadInput> {
        let mut kinds = Self::default();
        for (problem, line) in jsonl::read(path)?.take(most).enumerate() {
            let line = line?;
            kinds.add(problem, field, &line.parse()?).map_err(|missing| line.wrong(&missing))?;
        }
        Ok(kinds)
    }

    /// Of the rows of a file.
    ///
    /// # Errors
    /// Names the row whose field is missing, or neither a text nor a list of texts.
    pub(super) fn of<'a>(
        path: &Path,
        field: &str,
        rows: impl Iterator<Item = &'a Map<String, Value>>,
    ) -> Result<Self, BadInput> {
        let mut kinds = Self::default();
        for (problem, row) in rows.enumerate() {
            if let Err(missing) = kinds.add(problem, field, row) {
                return Err(BadInput(format!("{}: problem {}: {missing}", path.display(), problem + 1)));
            }
        }
        Ok(kinds)
    }

    fn add(&mut self, problem: usize, field: &str, fields: &Map<String, Value>) -> Result<(), String> {
        let named = fields.get(field).and_then(names);
        let missing =
            || format!("its field {field:?} is neither a text nor a list of texts (kinds of the stage)");
        for kind in named.ok_or_else(missing)? {
            self.0.entry(kind).or_default().push(problem);
        }
        Ok(())
    }

    /// Each kind with the places of its problems, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.iter().map(|(kind, problems)| (kind.as_str(), problems.as_slice()))
    }
}

fn names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(names) => names.iter().map(|name| Some(name.as_str()?.to_owned())).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_may_be_of_several_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("problems.jsonl");
        std::fs::write(&path, "{\"k\": [\"a\", \"b\"]}\n{\"k\": \"b\"}\n{\"k\": \"c\"}\n").unwrap();
        let kinds = Kinds::read(&path, "k", 2).unwrap();
        let found: Vec<(&str, &[usize])> = kinds.iter().collect();
        assert_eq!(found, [("a", [0].as_slice()), ("b", [0, 1].as_slice())]);
        let error = Kinds::read(&path, "kind", 9).unwrap_err().to_string();
        assert!(error.contains("problems.jsonl:1") && error.contains("\"kind\""), "{error}");
        let rows: [Map<String, Value>; 2] = [json!({"k": "a"}), json!({"k": 1})].map(|row| match row {
            Value::Object(fields) => fields,
            _ => unreachable!("both are objects"),
        });
        let error = Kinds::of(&path, "k", rows.iter()).unwrap_err().to_string();
        assert!(error.contains("problem 2: its field \"k\""), "{error}");
    }
}
