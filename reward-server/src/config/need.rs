//! What a scorer needs of a prompt's line.

use serde_json::{Map, Value};

use super::Config;
use super::scorer::{ScorerConfig, ScorerKind};
use crate::number::of_field;
use crate::problem::problem;

impl ScorerConfig {
    /// The key by which it needs something that a prompt's line does not have, and what that is: `field is
    /// "label": no such field`. Whether what is there can be used, scoring will tell.
    pub fn lacks(&self, line: &Map<String, Value>) -> Option<String> {
        let (key, name) = match &self.kind {
            _ if !self.is_asked() => return None,
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

    /// What a prompt's line has in the place of what the scorer compares with, if that can be compared with
    /// nothing: `field is "label": "x = 3 or x = 7" is not one number`.
    pub fn refuses(&self, line: &Map<String, Value>) -> Option<String> {
        let ScorerKind::NumericMatch(numeric) = &self.kind else { return None };
        let name = &numeric.field;
        let label = line.get(name).filter(|_| self.is_asked())?;
        of_field(label).is_none().then(|| {
            format!(
                "field is {name:?}: {label} is not one number: use kind = \"math\", or leave the line out"
            )
        })
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
    fn a_label_that_is_no_number_is_shown() {
        let numeric = scorer(json!({"kind": "numeric-match", "field": "answer"}));
        let refused = |label: Value| numeric.refuses(json!({ "answer": label }).as_object().unwrap());
        for number in [json!(4), json!("4"), json!("3/4"), json!("so #### 1,234"), json!(-0.5)] {
            assert_eq!(refused(number.clone()), None, "{number}");
        }
        for other in [json!("x = 3 or x = 7"), json!(true), json!([1]), json!("none"), json!(null)] {
            assert!(
                refused(other.clone()).unwrap().contains(&format!("{other} is not one number")),
                "{other}"
            );
        }
        assert_eq!(numeric.refuses(&Map::new()), None, "what is not there is lacking");
        assert_eq!(scorer(json!({"kind": "exact-match", "field": "answer"})).refuses(&line()), None);
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
        unused.share.yardstick = true;
        assert!(unused.lacks(&line()).is_some(), "a yardstick is asked");
    }
}
