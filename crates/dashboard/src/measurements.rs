//! What every process measured over time: `metrics.jsonl`, one line each time that a process was asked.
//!
//! A line says what has changed since the process' line before. A process' first line, and one that describes
//! new metrics, also says what they mean: `{"time": 1.5, "process": "actor-0", "values": {..},
//! "descriptions": {"name": ["gauge", "meaning"]}}`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::columns::{Absent, Columns};
use crate::exposition::{Description, split};
use crate::follower::{Continuity, Follower};

/// Most curves of one metric: of more actors nobody can tell apart whose is which.
const CURVES_LIMIT: usize = 24;
/// The column of a row's time.
const TIME: &str = "time";

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Seconds since 1970.
    pub(crate) time: f64,
    pub(crate) process: String,
    pub(crate) values: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) descriptions: BTreeMap<String, (String, String)>,
}

/// The file as read so far.
#[derive(Debug)]
pub(crate) struct Measurements {
    file: Follower,
    table: MeasurementTable,
}

/// A metric of one process over time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve {
    /// The process, and what labels tell it from its siblings.
    pub(crate) label: String,
    pub(crate) times: Vec<f64>,
    pub(crate) values: Vec<f64>,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct MeasurementTable {
    processes: BTreeMap<String, Columns>,
    descriptions: BTreeMap<String, Description>,
}

impl Measurements {
    /// Of a file that need not exist yet.
    pub(crate) fn of_file(path: PathBuf) -> Self {
        Self { file: Follower::new(path), table: MeasurementTable::default() }
    }

    /// What there is now.
    pub(crate) fn table(&mut self) -> &MeasurementTable {
        let table = &mut self.table;
        let read = self.file.read(|continuity, line| {
            if continuity == Continuity::BeganAnew {
                *table = MeasurementTable::default();
            }
            if let Ok(measurement) = serde_json::from_slice(line) {
                table.push(measurement);
            }
        });
        if let Err(error) = read {
            tracing::warn!(file = %self.file.path().display(), %error, "the metrics cannot be read");
        }
        &self.table
    }
}

impl MeasurementTable {
    fn push(&mut self, measurement: Measurement) {
        let Measurement { time, process, values, descriptions } = measurement;
        for (name, (kind, meaning)) in descriptions {
            self.descriptions.insert(name, Description { kind, meaning });
        }
        let row = values.into_iter().chain([(TIME.to_owned(), time)]);
        self.processes.entry(process).or_default().push(row, Absent::AsBefore);
    }

    /// Every metric with a value, and what it is.
    pub(crate) fn metrics(&self) -> BTreeMap<&str, &Description> {
        let mut metrics = BTreeMap::new();
        for series in self.processes.values().flat_map(Columns::names) {
            let name = split(series).0;
            let described = [Some(name), name.strip_suffix("_sum"), name.strip_suffix("_count")];
            for name in described.into_iter().flatten() {
                metrics
                    .extend(self.descriptions.get_key_value(name).map(|(name, what)| (name.as_str(), what)));
            }
        }
        metrics
    }

    /// When the first measurement was made.
    pub(crate) fn began(&self) -> Option<f64> {
        let firsts = self.processes.values().filter_map(|table| table.get(TIME)?.first().copied());
        firsts.reduce(f64::min)
    }

    /// The last value of every series of a process.
    pub(crate) fn last_values(&self, process: &str) -> BTreeMap<&str, f64> {
        let Some(table) = self.processes.get(process) else {
            return BTreeMap::new();
        };
        table.names().filter_map(|name| Some((name, table.get(name)?.last().copied()?))).collect()
    }

    /// A metric of all processes over time: a gauge as it is, a counter by its rate per second, a histogram
    /// by the mean of what was observed between two rows.
    pub(crate) fn curves(&self, metric: &str) -> Vec<Curve> {
        let kind = self.descriptions.get(metric).map_or("gauge", |what| what.kind.as_str());
        let is_mean = matches!(kind, "histogram" | "summary");
        let wanted = if is_mean { format!("{metric}_sum") } else { metric.to_owned() };
        let mut curves = Vec::new();
        for (process, table) in &self.processes {
            let Some(times) = table.get(TIME) else { continue };
            for series in table.names().filter(|series| split(series).0 == wanted) {
                let labels = split(series).1;
                let values = table.get(series).unwrap_or_default();
                let values = match kind {
                    "counter" => rates(times, values),
                    _ if is_mean => {
                        let counts = table.get(&format!("{metric}_count{labels}")).unwrap_or_default();
                        rates(counts, values)
                    }
                    _ => values.to_vec(),
                };
                curves.push(Curve { label: format!("{process}{labels}"), times: times.to_vec(), values });
            }
        }
        curves.truncate(CURVES_LIMIT);
        curves
    }
}

/// The growth of `ys` for each unit of `xs` since the row before; not a number where `xs` stood still or
/// either began anew.
fn rates(xs: &[f64], ys: &[f64]) -> Vec<f64> {
    let mut rates = vec![f64::NAN; ys.len()];
    for row in 1..ys.len().min(xs.len()) {
        let (dx, dy) = (xs[row] - xs[row - 1], ys[row] - ys[row - 1]);
        if dx > 0.0 && dy >= 0.0 {
            rates[row] = dy / dx;
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(time: f64, process: &str, values: &[(&str, f64)]) -> Measurement {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let descriptions = [
            ("a_total".to_owned(), ("counter".to_owned(), "Counts.".to_owned())),
            ("b_seconds".to_owned(), ("histogram".to_owned(), "Times.".to_owned())),
            ("c".to_owned(), ("gauge".to_owned(), "Is.".to_owned())),
        ];
        Measurement { time, process: process.to_owned(), values, descriptions: descriptions.into() }
    }

    #[test]
    fn each_kind_of_metric_is_a_curve() {
        let mut table = MeasurementTable::default();
        let rows: [&[(&str, f64)]; 4] = [
            &[("a_total{way=\"x\"}", 4.0), ("b_seconds_sum", 1.0), ("b_seconds_count", 2.0), ("c", 7.0)],
            &[("a_total{way=\"x\"}", 10.0), ("b_seconds_sum", 4.0), ("b_seconds_count", 3.0)],
            &[("c", 8.0)],
            // The process began anew.
            &[("a_total{way=\"x\"}", 1.0), ("b_seconds_sum", 0.0), ("b_seconds_count", 0.0)],
        ];
        for (number, row) in rows.into_iter().enumerate() {
            table.push(measurement(2.0 * number as f64, "actor-0", row));
        }
        table.push(measurement(0.0, "actor-1", &[("c", 1.0)]));
        assert_eq!(table.metrics().keys().copied().collect::<Vec<_>>(), ["a_total", "b_seconds", "c"]);
        let [count] = &table.curves("a_total")[..] else { panic!("one curve") };
        assert_eq!(count.label, "actor-0{way=\"x\"}");
        assert!(count.values[0].is_nan() && count.values[3].is_nan());
        assert_eq!(count.values[1..3], [3.0, 0.0]);
        let [mean] = &table.curves("b_seconds")[..] else { panic!("one curve") };
        assert_eq!(mean.values[1], 3.0);
        assert!(mean.values[2].is_nan() && mean.values[3].is_nan());
        let gauges = table.curves("c");
        assert_eq!(gauges[0].values, [7.0, 7.0, 8.0, 8.0]);
        assert_eq!(gauges[1].label, "actor-1");
        assert_eq!(table.last_values("actor-0")["c"], 8.0);
    }
}
