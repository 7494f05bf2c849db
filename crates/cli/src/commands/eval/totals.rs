//! What scorers say of a model's responses: means over prompts with their 95 % intervals.

use std::collections::BTreeMap;

use algo::Interval;
use sandbox::pass_at_k;
use serde_json::{Map, Value, json};
use types::{FailReason, ScoredRollout};

use crate::table::table_of_figures;

/// What came of the responses to one prompt.
#[derive(Debug, Default)]
struct OfPrompt {
    scores: Vec<f64>,
    outcomes: Vec<f64>,
    /// By scorer.
    numbers: BTreeMap<String, Vec<f64>>,
}

/// What came of all responses, by prompt.
#[derive(Debug, Default)]
pub(super) struct ScoreTotals {
    prompts: Vec<OfPrompt>,
    responses: usize,
    /// Responses without a score, by the reason.
    not_scored: BTreeMap<FailReason, usize>,
    /// What was said of the first of them.
    first_problem: Option<String>,
}

impl ScoreTotals {
    /// Nothing yet, for so many prompts.
    pub(super) fn of(prompts: usize) -> Self {
        Self { prompts: (0..prompts).map(|_| OfPrompt::default()).collect(), ..Self::default() }
    }

    /// A response to this prompt has a score.
    pub(super) fn add(&mut self, prompt: usize, scored: &ScoredRollout) {
        self.responses += 1;
        let Some(of_prompt) = self.prompts.get_mut(prompt) else { return };
        of_prompt.scores.push(f64::from(scored.score()));
        of_prompt.outcomes.extend(scored.outcome().map(f64::from));
        for (scorer, number) in &scored.remarks().numbers {
            of_prompt.numbers.entry(scorer.clone()).or_default().push(*number);
        }
    }

    /// A response has none.
    pub(super) fn add_failed(&mut self, reason: FailReason, detail: &str) {
        self.responses += 1;
        *self.not_scored.entry(reason).or_default() += 1;
        self.first_problem.get_or_insert_with(|| detail.to_owned());
    }

    /// The mean of the prompts' means, of those that have any.
    fn over_prompts<'a>(&'a self, numbers: impl Fn(&'a OfPrompt) -> &'a [f64]) -> Option<Interval> {
        let means: Vec<f64> = self.prompts.iter().filter_map(|prompt| mean(numbers(prompt))).collect();
        Interval::of(&means)
    }

    fn score(&self) -> Option<Interval> {
        self.over_prompts(|prompt| &prompt.scores)
    }

    fn outcome(&self) -> Option<Interval> {
        self.over_prompts(|prompt| &prompt.outcomes)
    }

    /// The chance that one of k responses has the outcome 1; none where a prompt has fewer than k.
    fn pass_at_k(&self, k: u64) -> Option<Interval> {
        let judged = self.prompts.iter().filter(|prompt| !prompt.outcomes.is_empty());
        let rates: Option<Vec<f64>> = judged
            .map(|prompt| {
                let passed = prompt.outcomes.iter().filter(|outcome| **outcome >= 1.0).count();
                pass_at_k(prompt.outcomes.len() as u64, passed as u64, k)
            })
            .collect();
        Interval::of(&rates?)
    }

    /// By scorer, in the order of names.
    fn scorers(&self) -> BTreeMap<&str, Interval> {
        let names = self.prompts.iter().flat_map(|prompt| prompt.numbers.keys());
        let mut scorers = BTreeMap::new();
        for name in names {
            let interval = self.over_prompts(|prompt| prompt.numbers.get(name).map_or(&[], Vec::as_slice));
            scorers.extend(interval.map(|interval| (name.as_str(), interval)));
        }
        scorers
    }

    fn scored_prompts(&self) -> usize {
        self.prompts.iter().filter(|prompt| !prompt.scores.is_empty()).count()
    }

    /// For programs.
    pub(super) fn json(&self, k: &[u64]) -> String {
        let (mut pass, mut intervals) = (Map::new(), Map::new());
        for k in k {
            let rate = self.pass_at_k(*k);
            pass.insert(format!("pass@{k}"), rate.map(|rate| rate.mean).into());
            intervals.insert(format!("pass@{k}"), rate.and_then(bounds).map_or(Value::Null, |b| json!(b)));
        }
        let not_scored: BTreeMap<&str, usize> =
            self.not_scored.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        let said = json!({
            "prompts": self.scored_prompts(), "responses": self.responses, "score": self.score(),
            "outcome": self.outcome(), "pass": pass, "interval_95": intervals, "scorers": self.scorers(),
            "not_scored": not_scored, "first_problem": self.first_problem,
        });
        said.to_string()
    }

    /// For people.
    pub(super) fn table(&self, k: &[u64]) -> String {
        let mut table = table_of_figures(&["mean over prompts", "± half of its 95 % interval"]);
        table.add_row(["score".to_owned(), shown(self.score())]);
        if let Some(outcome) = self.outcome() {
            table.add_row(["outcome".to_owned(), outcome.to_string()]);
            for k in k {
                let rate = self.pass_at_k(*k).map_or_else(|| format!("fewer than {k} responses"), percent);
                table.add_row([format!("pass@{k}"), rate]);
            }
        }
        let scorers = self.scorers();
        if scorers.len() > 1 {
            scorers.into_iter().for_each(|(name, number)| {
                table.add_row([name.to_owned(), number.to_string()]);
            });
        }
        let mut text = format!("{table}\n{} responses to {} prompts", self.responses, self.scored_prompts());
        for (reason, count) in &self.not_scored {
            text += &format!("\n{count} responses have no score ({reason}) and count in no figure");
        }
        if let Some(problem) = &self.first_problem {
            text += &format!("; the first: {problem}");
        }
        text
    }
}

fn shown(figure: Option<Interval>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// Where a share lies, with 95 % confidence.
fn bounds(rate: Interval) -> Option<[f64; 2]> {
    let half = rate.half_width?;
    Some([(rate.mean - half).max(0.0), (rate.mean + half).min(1.0)])
}

fn percent(rate: Interval) -> String {
    format!("{:.1} %", rate.times(100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts by the outcomes of their responses; the score is twice the outcome.
    fn totals(prompts: &[&[f64]]) -> ScoreTotals {
        let of_prompt = |outcomes: &&[f64]| OfPrompt {
            scores: outcomes.iter().map(|outcome| 2.0 * outcome).collect(),
            outcomes: outcomes.to_vec(),
            numbers: BTreeMap::new(),
        };
        ScoreTotals {
            prompts: prompts.iter().map(of_prompt).collect(),
            responses: prompts.iter().map(|outcomes| outcomes.len()).sum(),
            ..ScoreTotals::default()
        }
    }

    #[test]
    fn means_and_intervals_are_over_prompts() {
        let mut totals = totals(&[&[1.0, 0.0], &[0.0, 0.0], &[1.0, 1.0], &[]]);
        totals.add_failed(FailReason::Unsupported, "no such field");
        let said: Value = serde_json::from_str(&totals.json(&[1, 2, 3])).unwrap();
        assert_eq!((&said["score"]["mean"], &said["pass"]["pass@1"]), (&json!(1.0), &json!(0.5)));
        // 1, 0, 2: deviation 1 over the root of 3, times 4.303.
        let half = said["score"]["half_width"].as_f64().unwrap();
        assert!((half - 4.303 / 3f64.sqrt()).abs() < 1e-9, "{said}");
        assert!((said["pass"]["pass@2"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9, "{said}");
        assert_eq!(said["pass"]["pass@3"], Value::Null);
        assert_eq!((&said["prompts"], &said["responses"]), (&json!(3), &json!(7)));
        assert_eq!(said["not_scored"], json!({"unsupported": 1}));
        let table = totals.table(&[1]);
        assert!(table.contains("50.0 ±") && table.contains("no score (unsupported)"), "{table}");
        assert!(table.ends_with("the first: no such field"), "{table}");
    }

    #[test]
    fn without_a_yardstick_there_is_no_pass_rate() {
        let mut totals = totals(&[]);
        totals.prompts.push(OfPrompt { scores: vec![0.5], ..OfPrompt::default() });
        let table = totals.table(&[1]);
        assert!(table.contains("0.500") && !table.contains("pass@1"), "{table}");
    }
}
