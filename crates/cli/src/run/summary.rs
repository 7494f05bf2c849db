//! What a ring has come to: one table at the end of a run.

use std::path::Path;

use comfy_table::Table;
use coordinator::state::StepRecord;

use crate::decimal::{decimal, signed};
use crate::results::{end_count, mean, steps_of};
use crate::table::table_of_figures;

/// A figure of a step.
type Figure = (&'static str, fn(&StepRecord) -> Option<f64>);

/// What is compared between the run's first steps and its last ones.
const FIGURES: [Figure; 7] = [
    ("mean score", |step| Some(step.score_mean)),
    ("outcome (pass@1)", |step| step.outcome_mean),
    ("KL to the reference", |step| step.metrics.kl_to_ref),
    ("entropy, nats", |step| step.metrics.entropy),
    ("response tokens", |step| Some(step.response_tokens_mean)),
    ("R² of outcome on score, as filtered", |step| step.reliability.filtered),
    ("seconds a step", |step| Some(step.metrics.step_seconds)),
];

/// A table in words.
pub(crate) struct Rows {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// The rows over a run's steps file; none when no step was trained.
pub(crate) fn rows_of(steps_file: &Path) -> Option<Rows> {
    let steps = steps_of(steps_file).ok()?;
    let count = end_count(&steps);
    let (first, last) = (steps.get(..count)?, steps.get(steps.len() - count..)?);
    let (from, to) = (first.first()?.batch, last.first()?.batch);
    let columns = [format!("up to {}", first.last()?.batch), format!("from {to} on")];
    let [before, after] = columns;
    let header = vec!["mean of batches".to_owned(), before, after, "change".to_owned()];
    let mut rows = Vec::new();
    for (name, figure) in FIGURES {
        if let (Some(before), Some(after)) = (mean(first, figure), mean(last, figure)) {
            let change = if from == to { "–".to_owned() } else { signed(after - before, 3) };
            rows.push(vec![name.to_owned(), decimal(before, 3), decimal(after, 3), change]);
        }
    }
    Some(Rows { header, rows })
}

/// The same for a terminal.
pub(crate) fn table_of(steps_file: &Path) -> Option<Table> {
    let Rows { header, rows } = rows_of(steps_file)?;
    let mut table = table_of_figures(&header.iter().map(String::as_str).collect::<Vec<_>>());
    table.add_rows(rows);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tenth_is_compared_with_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        assert!(table_of(&path).is_none());
        let mut lines = String::new();
        for batch in 1..=20 {
            lines += &format!(
                "{{\"batch\":{batch},\"time\":0,\"prompts\":1,\"responses\":5,\"score_mean\":{batch},\"outcome_mean\":null,\
                 \"response_tokens_mean\":7,\"truncated\":0,\"reliability\":{{\"unfiltered\":null,\"filtered\":null}},\
                 \"metrics\":{{\"entropy\":0.5}}}}\n"
            );
        }
        std::fs::write(&path, lines).unwrap();
        let text = table_of(&path).unwrap().to_string();
        for part in ["up to b2", "from b19 on", "mean score", "1.500", "19.500", "+18.000"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("outcome ("), "no row without numbers:\n{text}");
    }
}
