//! What a metric is, told once: to the recorder at the start of a process and to `docs/metrics.md`.
#![expect(clippy::disallowed_macros, reason = "names come from the crates' metrics.rs")]

/// A metric: its name says the unit (`_seconds`, `_bytes`, `_tokens`, `_total` for counts).
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    name: &'static str,
    kind: Kind,
    meaning: &'static str,
    labels: &'static [Label],
}

/// A label of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it can hold.
    pub values: LabelValues,
}

/// What a label can hold. Either way the number of values is bounded.
#[derive(Debug, Clone, Copy)]
pub enum LabelValues {
    /// One of these.
    OneOf(&'static [&'static str]),
    /// What the sentence says.
    Described(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Metric {
    /// A count that only grows while the process lives.
    pub const fn counter(name: &'static str, meaning: &'static str) -> Self {
        Self { name, kind: Kind::Counter, meaning, labels: &[] }
    }

    /// A number as it is now.
    pub const fn gauge(name: &'static str, meaning: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, meaning, labels: &[] }
    }

    /// A distribution.
    pub const fn histogram(name: &'static str, meaning: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, meaning, labels: &[] }
    }

    /// With these labels.
    #[must_use]
    pub const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its row in a table: name, type, unit, meaning, labels.
    pub fn markdown_row(&self) -> String {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = self.labels.iter().map(Label::markdown).collect();
        format!("| `{}` | {kind} | {} | {} | {} |\n", self.name, self.unit(), self.meaning, labels.join("; "))
    }

    /// The unit, as the name's end tells it.
    fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        let units = [
            ("_timestamp_seconds", "seconds since 1970"),
            ("_seconds", "seconds"),
            ("_bytes", "bytes"),
            ("_tokens", "tokens"),
            ("_versions", "policy versions"),
            ("_entropy", "nats"),
            ("_kl", "nats"),
            ("_kl_to_ref", "nats"),
        ];
        units.iter().find(|(suffix, _)| name.ends_with(suffix)).map_or("1", |(_, unit)| unit)
    }

    /// The labels of each of its series; none where a label can hold other values than those that are listed.
    fn every_series(&self) -> Option<Vec<Vec<metrics::Label>>> {
        let mut every = vec![Vec::new()];
        for Label { name, values } in self.labels {
            let LabelValues::OneOf(values) = values else { return None };
            let mut longer = Vec::with_capacity(every.len() * values.len());
            for (labels, value) in
                every.iter().flat_map(|labels| values.iter().map(move |value| (labels, value)))
            {
                let mut labels: Vec<metrics::Label> = labels.clone();
                labels.push(metrics::Label::from_static_parts(name, value));
                longer.push(labels);
            }
            every = longer;
        }
        Some(every)
    }

    /// Tells the recorder. A count whose labels can hold certain values only stands at 0 for each of them
    /// from the start: a rate over it is known before the first event, and its first event is one.
    fn describe(&self) {
        match self.kind {
            Kind::Counter => {
                metrics::describe_counter!(self.name, self.meaning);
                for labels in self.every_series().into_iter().flatten() {
                    metrics::counter!(self.name, labels).increment(0);
                }
            }
            Kind::Gauge => metrics::describe_gauge!(self.name, self.meaning),
            Kind::Histogram => metrics::describe_histogram!(self.name, self.meaning),
        }
    }
}

impl Label {
    /// A label with a closed set of values.
    pub const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: LabelValues::OneOf(values) }
    }

    /// A label whose values a sentence describes.
    pub const fn described(name: &'static str, values: &'static str) -> Self {
        Self { name, values: LabelValues::Described(values) }
    }

    fn markdown(&self) -> String {
        match self.values {
            LabelValues::OneOf(values) => {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("`{}`: {}", self.name, values.join(", "))
            }
            LabelValues::Described(sentence) => format!("`{}`: {sentence}", self.name),
        }
    }
}

/// Tells the recorder what each metric means, as `/metrics` prints it.
pub fn describe(metrics: &[Metric]) {
    metrics.iter().for_each(Metric::describe);
}
