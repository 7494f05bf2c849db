//! `docs/metrics.md` as a test reads it, and what a process says beyond it.

use std::collections::BTreeMap;

use anyhow::Context as _;

/// The metrics that are documented: by name, their labels; a label's closed set of values where it has one.
#[derive(Debug)]
pub struct DocumentedMetrics(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl DocumentedMetrics {
    /// Those of `docs/metrics.md`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read() -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(crate::root().join("docs/metrics.md")).context("read docs/metrics.md")?;
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        Ok(Self(rows.filter_map(row).collect()))
    }

    /// What a page of `/metrics` says that is not documented: metrics, labels, values of closed sets.
    pub fn undocumented(&self, page: &str) -> Vec<String> {
        page.lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .filter_map(|line| self.problem(line))
            .collect()
    }

    fn problem(&self, line: &str) -> Option<String> {
        let (series, _) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let parts = ["_bucket", "_sum", "_count"];
        let base = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let Some(known) = self.0.get(name).or_else(|| self.0.get(base)) else {
            return Some(format!("{name} is not in docs/metrics.md"));
        };
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"")?;
            let value = value.trim_end_matches('"');
            if label == "le" {
                continue;
            }
            match known.get(label) {
                None => {
                    return Some(format!("{name} has a label {label} that docs/metrics.md does not know"));
                }
                Some(values) if !values.is_empty() && !values.iter().any(|known| known == value) => {
                    return Some(format!("{name} has {label} = {value:?}, documented are {values:?}"));
                }
                Some(_) => {}
            }
        }
        None
    }
}

/// Name and labels of a row.
fn row(line: &str) -> Option<(String, BTreeMap<String, Vec<String>>)> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let (name, labels) = (cells.first()?.trim_matches('`'), cells.last()?);
    let labels = labels.split("; `").filter_map(|label| {
        let (label, values) = label.split_once(':')?;
        let closed = values.trim_start().starts_with('`');
        let values = values.split(',').map(|value| value.trim().trim_matches('`').to_owned());
        Some((label.trim_matches('`').to_owned(), if closed { values.collect() } else { Vec::new() }))
    });
    Some((name.to_owned(), labels.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_closed_sets_are_compared() {
        let metrics = DocumentedMetrics(
            [
                "| `a_total` | counter | 1 | What. | `way`: `pull`, `push`; `who`: a name |",
                "| `b_seconds` | histogram | seconds | What. |  |",
            ]
            .into_iter()
            .filter_map(row)
            .collect(),
        );
        let page = "# HELP a_total x\na_total{way=\"pull\",who=\"me\"} 3\nb_seconds_bucket{le=\"1\"} 2\nb_seconds_sum 2\n";
        assert_eq!(metrics.undocumented(page), Vec::<String>::new());
        for wrong in ["c_total 1", "a_total{way=\"fly\"} 1", "a_total{why=\"x\"} 1"] {
            assert_eq!(metrics.undocumented(wrong).len(), 1, "{wrong}");
        }
    }
}
