//! The numbers of a step by name.

use serde_json::Value;

/// What a step is known by, and is no figure of it.
const KNOWN_BY: [&str; 2] = ["batch", "time"];

/// Every number of a step, `metrics/kl_to_ref` and its kind; lists, texts and what was not measured are none.
pub(super) fn numbers_of(step: &Value) -> Vec<(String, f64)> {
    let numbers = dashboard::flatten(step).into_iter();
    let figures = numbers.filter(|(name, _)| !KNOWN_BY.contains(&name.as_str()));
    figures.map(|(name, number)| (name.replace('.', "/"), number)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_have_the_names_of_their_fields() {
        let step = json!({
            "batch": 3, "time": 9, "score_mean": 0.5, "outcome_mean": null, "scorers": {"a": {"mean": 1}},
            "filtration": {"strategy": "none", "calibration": [{"score": 1.0}]}, "flag": true
        });
        let expected = [("flag", 1.0), ("score_mean", 0.5), ("scorers/a/mean", 1.0)];
        let expected: Vec<(String, f64)> = expected.map(|(name, value)| (name.to_owned(), value)).into();
        let mut numbers = numbers_of(&step);
        numbers.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(numbers, expected);
    }
}
