//! Prometheus' text format, as our own processes write it.

use std::collections::BTreeMap;

/// What a metric is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// `counter`, `gauge`, `histogram` or `summary`.
    pub(crate) kind: String,
    pub(crate) meaning: String,
}

/// A page of `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) descriptions: BTreeMap<String, Description>,
    /// Values by name and labels, as they stand there. Of a histogram its sum and count, not its buckets.
    pub(crate) values: BTreeMap<String, f64>,
}

impl Page {
    /// Reads a page. What is not understood is passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (what, name, rest) = (words.next(), words.next(), words.next());
                let (Some(name), Some(rest)) = (name, rest) else { continue };
                let description = page.descriptions.entry(name.to_owned()).or_default();
                match what {
                    Some("TYPE") => rest.clone_into(&mut description.kind),
                    Some("HELP") => rest.clone_into(&mut description.meaning),
                    _ => {}
                }
            } else if let Some((series, value)) = line.rsplit_once(' ') {
                let is_part = series.contains("le=\"") || series.contains("quantile=\"");
                if let (Ok(value), false) = (value.parse::<f64>(), is_part)
                    && value.is_finite()
                {
                    page.values.insert(series.to_owned(), value);
                }
            }
        }
        page
    }
}

/// A series' name and its labels in braces, which may be empty.
pub(crate) fn split(series: &str) -> (&str, &str) {
    series.find('{').map_or((series, ""), |at| series.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_meanings_are_read_and_buckets_left_out() {
        let page = Page::parse(
            "# HELP a_total What it counts.\n# TYPE a_total counter\na_total{way=\"pull\"} 3\n\n\
             # TYPE b_seconds histogram\nb_seconds_bucket{le=\"1\"} 2\nb_seconds_sum 1.5\nb_seconds_count 2\n\
             broken\nc NaN\n",
        );
        let expected = Description { kind: "counter".into(), meaning: "What it counts.".into() };
        assert_eq!(page.descriptions["a_total"], expected);
        assert_eq!(
            page.values.into_iter().collect::<Vec<_>>(),
            [
                ("a_total{way=\"pull\"}".to_owned(), 3.0),
                ("b_seconds_count".to_owned(), 2.0),
                ("b_seconds_sum".to_owned(), 1.5)
            ]
        );
        assert_eq!(split("a{b=\"c\"}"), ("a", "{b=\"c\"}"));
        assert_eq!(split("a"), ("a", ""));
    }
}
