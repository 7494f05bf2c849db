//! What came of the samples of each problem, for people and for programs.

use std::collections::BTreeMap;

use sandbox::{Verdict, pass_at_k};
use serde_json::{Map, Value, json};

use crate::rate::Rate;
use crate::table::table;

/// How many problems a line names.
const NAMES_SHOWN: usize = 10;

/// Samples of one problem.
#[derive(Debug, Clone, Copy, Default)]
struct SampleCounts {
    /// Those that could be judged.
    judged: u64,
    /// Those of them that passed all tests.
    passed: u64,
    /// Those that the machine had no time for.
    overloaded: u64,
    /// All others.
    not_served: u64,
}

/// Samples of every problem, by the problem's name.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    problems: BTreeMap<String, SampleCounts>,
    verdicts: BTreeMap<Verdict, u64>,
    /// How often the machine was overloaded and a program tried again.
    pub(crate) overload_retries: u64,
}

impl Totals {
    /// Nothing yet, for these problems.
    pub(crate) fn of<'a>(task_ids: impl Iterator<Item = &'a str>) -> Self {
        let problems = task_ids.map(|task_id| (task_id.to_owned(), SampleCounts::default())).collect();
        Self { problems, ..Self::default() }
    }

    /// Counts one more sample.
    pub(crate) fn add(&mut self, task_id: &str, verdict: Verdict) {
        *self.verdicts.entry(verdict).or_default() += 1;
        let counts = self.problems.entry(task_id.to_owned()).or_default();
        match verdict {
            Verdict::Overloaded => counts.overloaded += 1,
            verdict if verdict.judges_response() => {
                counts.judged += 1;
                counts.passed += u64::from(verdict == Verdict::Accepted);
            }
            _ => counts.not_served += 1,
        }
    }

    /// Problems that count in no rate, by the reason.
    fn left_out(&self) -> [(&'static str, Vec<&str>); 3] {
        let named = |why: fn(&SampleCounts) -> bool| {
            let problems = self.problems.iter().filter(|(_, counts)| counts.judged == 0 && why(counts));
            problems.map(|(task_id, _)| task_id.as_str()).collect()
        };
        [
            ("without_samples", named(|counts| counts.overloaded + counts.not_served == 0)),
            ("overloaded", named(|counts| counts.overloaded > 0)),
            ("not_served", named(|counts| counts.overloaded == 0 && counts.not_served > 0)),
        ]
    }

    fn judged(&self) -> impl Iterator<Item = &SampleCounts> {
        self.problems.values().filter(|counts| counts.judged > 0)
    }

    /// The mean over problems with its interval; none where one of them has too few samples, or there is no
    /// problem.
    fn mean_pass_at_k(&self, k: u64) -> Option<Rate> {
        let rates: Option<Vec<f64>> =
            self.judged().map(|counts| pass_at_k(counts.judged, counts.passed, k)).collect();
        Rate::of(&rates?)
    }

    /// For programs.
    pub(crate) fn json(&self, k: &[u64]) -> String {
        let rates: Map<String, Value> = k
            .iter()
            .map(|k| (format!("pass@{k}"), self.mean_pass_at_k(*k).map(|rate| rate.mean).into()))
            .collect();
        let intervals: Map<String, Value> = k
            .iter()
            .map(|k| (format!("pass@{k}"), self.mean_pass_at_k(*k).map(|rate| json!(rate.interval())).into()))
            .collect();
        let verdicts: Map<String, Value> = self
            .verdicts
            .iter()
            .map(|(verdict, count)| (verdict.name().to_owned(), (*count).into()))
            .collect();
        let left_out: Map<String, Value> =
            self.left_out().into_iter().map(|(why, names)| (why.to_owned(), names.into())).collect();
        let said = json!({
            "problems": self.judged().count(), "left_out": left_out, "pass": rates, "interval_95": intervals,
            "verdicts": verdicts,
            "overload_retries": self.overload_retries,
        });
        said.to_string()
    }

    /// For people.
    pub(crate) fn table(&self, k: &[u64]) -> String {
        let mut table = table(&["", "value"]);
        table.add_row(["problems".to_owned(), self.judged().count().to_string()]);
        for k in k {
            let rate = match self.mean_pass_at_k(*k) {
                Some(rate) => {
                    let [low, high] = rate.interval().map(|bound| 100.0 * bound);
                    format!("{:.2} % ({low:.1} to {high:.1})", 100.0 * rate.mean)
                }
                None => format!("fewer than {k} samples"),
            };
            table.add_row([format!("pass@{k}"), rate]);
        }
        for (verdict, count) in &self.verdicts {
            table.add_row([verdict.name().to_owned(), count.to_string()]);
        }
        if self.overload_retries > 0 {
            table.add_row(["tried again after an overload".to_owned(), self.overload_retries.to_string()]);
        }
        let mut text = table.to_string();
        for (why, names) in self.left_out() {
            if !names.is_empty() {
                let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
                let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
                let why = why.replace('_', " ");
                text += &format!("\n{} problems count in no rate ({why}): {shown}{more}", names.len());
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_in_no_rate_is_named() {
        let mut totals = Totals::of(["a", "b", "c", "d"].into_iter());
        totals.overload_retries = 2;
        for (task_id, verdict) in [
            ("a", Verdict::Accepted),
            ("a", Verdict::Unsupported),
            ("b", Verdict::Overloaded),
            ("c", Verdict::Unsupported),
        ] {
            totals.add(task_id, verdict);
        }
        let said: Value = serde_json::from_str(&totals.json(&[1])).unwrap();
        assert_eq!(said["pass"]["pass@1"], 1.0);
        assert_eq!((&said["problems"], &said["overload_retries"]), (&json!(1), &json!(2)));
        assert_eq!(said["interval_95"], json!({"pass@1": said["interval_95"]["pass@1"]}));
        let bounds: [f64; 2] = serde_json::from_value(said["interval_95"]["pass@1"].clone()).unwrap();
        assert!(bounds[0] < 1.0 && bounds[1] == 1.0, "one problem says little: {said}");
        let left_out = json!({"without_samples": ["d"], "overloaded": ["b"], "not_served": ["c"]});
        assert_eq!(said["left_out"], left_out);
        let table = totals.table(&[1, 2]);
        assert!(table.contains("fewer than 2 samples") && table.contains("(not served): c"), "{table}");
        assert!(table.contains("tried again after an overload"), "{table}");
    }
}
