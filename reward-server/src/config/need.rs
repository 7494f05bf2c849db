//! What a scorer needs of a prompt's line.

use serde_json::{Map, Value};

use super::Config;
use super::scorer::{ScorerConfig, ScorerKind};
use crate::problem::problem;

impl ScorerConfig {
    /// The key by which it needs something that a prompt's line does not have, and what that is: `field is
    /// "label": no such field`. Whether what is there can be used, scoring will tell.
    pub fn lacks(&self, line: &Map<String, Value>) -> Option<String> {
        let (key, name) = match &self.kind {
            _ if self.weight() == 0.0 && self.share.gate.is_none() => return None,
            ScorerKind::ExactMatch(exact) => ("field", &exact.field),
            ScorerKind::NumericMatch(numeric) => ("field", &numeric.field),
            ScorerKind::Math(math) => ("field", &math.field),
            ScorerKind::Http(http) => ("label", http.label.as_ref()?),
            ScorerKind::UnitTests(_) => {
                let has_none = problem(line).is_ok_and(|found| found.is_none());
                return has_none.then(|| "kind is \"unit-tests\": no tests".to_owned());
            }
            _ => return None,
        };
        (!line.contains_key(name)).then(|| format!("{key} is {name:?}: no such field"))
    }
}

impl Config {
    /// Whether responses to a prompt's line can have no outcome: nothing runs tests, or it has none.
    pub fn lacks_outcome(&self, line: &Map<String, Value>) -> bool {
        self.sandbox.is_none() || problem(line).is_ok_and(|found| found.is_none())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Share;

    fn scorer(table: Value) -> ScorerConfig {
        serde_json::from_value(table).unwrap()
    }

    fn line() -> Map<String, Value> {
        json!({"prompt": "2 + 2 =", "answer": "4"}).as_object().unwrap().clone()
    }

    #[test]
    fn a_field_that_a_line_does_not_have_is_named() {
        let label = scorer(json!({"kind": "numeric-match"})).lacks(&line());
        assert_eq!(label.unwrap(), "field is \"label\": no such field");
        assert_eq!(scorer(json!({"kind": "numeric-match", "field": "answer"})).lacks(&line()), None);
        assert_eq!(
            scorer(json!({"kind": "unit-tests"})).lacks(&line()),
            Some("kind is \"unit-tests\": no tests".to_owned())
        );
        assert_eq!(scorer(json!({"kind": "regex", "pattern": "x"})).lacks(&line()), None);
        let mut unused = scorer(json!({"kind": "exact-match"}));
        unused.share = Share { weight: Some(0.0), ..Share::default() };
        assert_eq!(unused.lacks(&line()), None, "it decides nothing and is not asked");
    }
}
