//! What can be drawn: the fields of the steps, and every metric of every process.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::axis::Axis;
use crate::downsample::{Line, Window, downsample};
use crate::run::Run;

/// The ends of names that say a unit.
const UNITS: [(&str, &str); 10] = [
    ("_timestamp_seconds", "s since 1970"),
    ("_seconds", "s"),
    ("_bytes", "bytes"),
    ("_tokens", "tokens"),
    ("tokens", "tokens"),
    ("_versions", "versions"),
    ("staleness", "versions"),
    ("entropy", "nats"),
    ("kl", "nats"),
    ("kl_to_ref", "nats"),
];

/// What a field of a step means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its dotted path in a line of `steps.jsonl`.
    pub path: String,
    /// Its type, in words.
    pub kind: String,
    /// One sentence or more.
    pub meaning: String,
}

/// One thing that can be drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    /// A path of the steps, or the name of a metric.
    id: String,
    /// Whose it is: `steps` or `processes`.
    source: &'static str,
    unit: String,
    meaning: String,
}

impl Entry {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn unit(&self) -> &str {
        &self.unit
    }

    pub(crate) fn meaning(&self) -> &str {
        &self.meaning
    }

    /// Whether it is a field of the steps.
    pub(crate) fn is_of_steps(&self) -> bool {
        self.source == "steps"
    }
}

/// Everything of a run that can be drawn.
pub(crate) fn catalog(run: &Run, fields: &[Field]) -> Vec<Entry> {
    let known: BTreeMap<&str, &Field> = fields.iter().map(|field| (field.path.as_str(), field)).collect();
    let mut entries = run.steps().with(|steps| {
        let paths = steps.paths();
        paths.map(|path| step_entry(path, known.get(path).copied())).collect::<Vec<_>>()
    });
    run.with_measurements(|table| {
        for (name, what) in table.metrics() {
            let base = name.strip_suffix("_total").unwrap_or(name);
            let (unit, how) = match what.kind.as_str() {
                "counter" => (format!("{} per second", unit_of(base)), " Per second."),
                "histogram" | "summary" => (unit_of(base).to_owned(), " The mean."),
                _ => (unit_of(base).to_owned(), ""),
            };
            let unit = unit.trim().to_owned();
            entries.push(Entry {
                id: name.to_owned(),
                source: "processes",
                unit,
                meaning: format!("{}{how}", what.meaning),
            });
        }
    });
    entries
}

fn step_entry(path: &str, field: Option<&Field>) -> Entry {
    let meaning = field.map_or_else(String::new, |field| field.meaning.clone());
    Entry { id: path.to_owned(), source: "steps", unit: unit_of(path).to_owned(), meaning }
}

fn unit_of(name: &str) -> &'static str {
    UNITS.iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, unit)| unit)
}

/// The curves of one thing within a window of the axis.
pub(crate) fn lines(run: &Run, id: &str, axis: Axis, window: Window) -> Vec<Line> {
    let began = run.began();
    let of_steps = run.steps().with(|steps| {
        let column = steps.get(id)?;
        Some(downsample(String::new(), &steps.axis(axis, began), column, window))
    });
    if let Some(line) = of_steps {
        return vec![line];
    }
    let curves = run.with_measurements(|table| table.curves(id));
    run.steps().with(|steps| {
        let mut lines = Vec::new();
        for curve in curves {
            let x = steps.axis_at(axis, began, &curve.times);
            lines.push(downsample(curve.label, &x, &curve.values, window));
        }
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_units() {
        for (name, unit) in [
            ("metrics.step_seconds", "s"),
            ("metrics.publish_seconds", "s"),
            ("metrics.approx_kl", "nats"),
            ("metrics.response_tokens", "tokens"),
            ("score_mean", ""),
            ("rlhf_coordinator_last_step_timestamp_seconds", "s since 1970"),
        ] {
            assert_eq!(unit_of(name), unit, "{name}");
        }
    }
}
