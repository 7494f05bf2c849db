//! Responses as traces of OpenTelemetry: an export request of OTLP in its JSON form (opentelemetry-proto
//! 1.3, `docs/specification.md#json-protobuf-encoding`), a line for each ring, as the Collector's
//! `otlpjsonfile` receiver reads files and its HTTP receiver a body.
//!
//! A trace's id follows from the run's name and the response's id, which every message of the ring carries:
//! whoever knows both finds the trace, and an export that is made again writes the same ids.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Ring, Sample, Step};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// The span of a response's whole life.
const ROOT: &str = "rollout";
/// Letters of the ids of a trace and of a span.
const TRACE_LETTERS: usize = 32;
const SPAN_LETTERS: usize = 16;

/// Writes what was found.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(file: &Path, found: &[Ring<'_>]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for ring in found {
        lines.push_str(&format!("{}\n", request(&run_of(ring.folder), ring)));
    }
    if file == Path::new("-") {
        print!("{lines}");
        return Ok(());
    }
    fs::write(file, lines).with_context(|| format!("write {}", file.display()))
}

/// The run's name, as its coordinator was told it; that of the folder where it is not known.
fn run_of(folder: &Path) -> String {
    let config = fs::read_to_string(folder.join("config/coordinator.toml")).unwrap_or_default();
    let named =
        config.parse::<toml::Table>().ok().and_then(|config| Some(config.get("run")?.as_str()?.to_owned()));
    named.unwrap_or_else(|| {
        folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    })
}

/// An export request with all spans of a ring.
fn request(run: &str, ring: &Ring<'_>) -> Value {
    let spans: Vec<Value> =
        ring.samples.iter().flat_map(|sample| spans(run, sample, sample.step(&ring.steps))).collect();
    let resource = json!({ "attributes": [text("service.name", "sluice"), text("sluice.run", run)] });
    let scope = json!({ "name": "sluice", "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "scope": scope, "spans": spans }] }] })
}

/// The ids of a response's trace.
struct Trace(String);

impl Trace {
    fn of(run: &str, sample: &Sample) -> Self {
        let hash = blake3::hash(format!("{run}\n{}", sample.id).as_bytes());
        Self(hash.to_hex()[..TRACE_LETTERS].to_owned())
    }

    fn span_id(&self, name: &str) -> String {
        let hash = blake3::hash(format!("{}\n{name}", self.0).as_bytes());
        hash.to_hex()[..SPAN_LETTERS].to_owned()
    }

    /// A span from one moment to another, both in milliseconds since 1970.
    fn span(&self, name: &str, begin: u64, end: u64, attributes: Vec<Value>) -> Value {
        let mut span = json!({
            "traceId": self.0, "spanId": self.span_id(name), "name": name, "kind": INTERNAL,
            // Numbers of 64 bits are text in this form.
            "startTimeUnixNano": nanoseconds(begin), "endTimeUnixNano": nanoseconds(end.max(begin)),
            "attributes": attributes,
        });
        if name != ROOT {
            span["parentSpanId"] = json!(self.span_id(ROOT));
        }
        span
    }
}

/// A response's trace: the whole of its life, and the parts of it whose ends are known.
fn spans(run: &str, sample: &Sample, step: Option<&Step>) -> Vec<Value> {
    let trace = Trace::of(run, sample);
    let Sample { leased_unix_ms: leased, scored_unix_ms: scored, time_unix_ms: complete, .. } = sample;
    let begin = leased.or(*scored).unwrap_or(*complete);
    let end = step.map_or(*complete, |step| step.time);
    let mut whole = vec![
        text("sluice.rollout", &sample.id),
        text("sluice.prompt", &sample.prompt_id),
        text("sluice.fate", &sample.fate),
        number("sluice.score", f64::from(sample.score)),
        number("sluice.weight", f64::from(sample.weight)),
    ];
    whole.extend(sample.outcome.map(|outcome| number("sluice.outcome", f64::from(outcome))));
    let mut spans = vec![trace.span(ROOT, begin, end, whole)];
    if let (Some(leased), Some(scored)) = (leased, scored) {
        let mut drawn = vec![
            integer("sluice.response_tokens", sample.response_tokens.into()),
            integer("sluice.version", sample.version),
            text("sluice.finish_reason", &sample.finish_reason),
        ];
        drawn.extend(sample.actor.iter().map(|actor| text("sluice.actor", actor)));
        drawn.extend(sample.reward_server.iter().map(|server| text("sluice.reward_server", server)));
        spans.push(trace.span("generate and score", *leased, *scored, drawn));
    }
    spans.extend(scored.map(|scored| trace.span("wait for the group", scored, *complete, Vec::new())));
    spans.extend(step.map(|step| {
        trace.span("batch and train", *complete, step.time, vec![integer("sluice.batch", step.batch)])
    }));
    spans
}

fn nanoseconds(milliseconds: u64) -> String {
    (u128::from(milliseconds) * 1_000_000).to_string()
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn integer(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn number(key: &str, value: f64) -> Value {
    json!({ "key": key, "value": { "doubleValue": value } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::trace::tests::SAMPLE;

    fn ring(folder: &Path) -> Ring<'_> {
        let sample: Sample = serde_json::from_str(SAMPLE).unwrap();
        Ring { folder, samples: vec![sample], steps: vec![Step { batch: 4, time: 1_700_000_004_000 }] }
    }

    fn spans_of(line: &Value) -> Vec<Value> {
        line["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    }

    #[test]
    fn a_life_is_a_trace_of_spans_that_follow_each_other() {
        let request = request("tiny", &ring(Path::new("ring")));
        let spans = spans_of(&request);
        let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["rollout", "generate and score", "wait for the group", "batch and train"]);
        let time = |span: &Value, end: &str| span[end].as_str().unwrap().parse::<u64>().unwrap();
        for span in &spans {
            assert_eq!(span["traceId"], spans[0]["traceId"]);
            assert_eq!(span["traceId"].as_str().unwrap().len(), 32);
            assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
        }
        assert_eq!(spans[0]["parentSpanId"], Value::Null);
        for pair in spans[1..].windows(2) {
            assert_eq!(time(&pair[0], "endTimeUnixNano"), time(&pair[1], "startTimeUnixNano"));
            assert_eq!(pair[1]["parentSpanId"], spans[0]["spanId"]);
            assert_ne!(pair[0]["spanId"], pair[1]["spanId"]);
        }
        assert_eq!(time(&spans[0], "startTimeUnixNano"), 1_700_000_000_000_000_000);
        assert_eq!(time(&spans[0], "endTimeUnixNano"), 1_700_000_004_000_000_000);
        let attributes = spans[1]["attributes"].to_string();
        for part in ["actor-1", "rewards", r#""intValue":"12""#] {
            assert!(attributes.contains(part), "{part}: {attributes}");
        }
    }

    #[test]
    fn ids_follow_from_run_and_response() {
        let ring = ring(Path::new("ring"));
        let id = |run: &str| spans_of(&request(run, &ring))[0]["traceId"].clone();
        assert_eq!(id("tiny"), id("tiny"));
        assert_ne!(id("tiny"), id("other"));
    }

    #[test]
    fn a_response_that_was_filtered_has_no_span_of_training() {
        let mut ring = ring(Path::new("ring"));
        ring.samples[0].fate = "filtered{strategy}".to_owned();
        ring.samples[0].leased_unix_ms = None;
        let spans = spans_of(&request("tiny", &ring));
        let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["rollout", "wait for the group"]);
    }

    #[test]
    fn a_file_has_a_line_for_each_ring_and_the_runs_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        fs::write(folder.path().join("config/coordinator.toml"), "run = 'mine'\n").unwrap();
        let file = folder.path().join("traces.json");
        write(&file, &[ring(folder.path()), ring(Path::new("nowhere/ring"))]).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let runs: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| {
                line["resourceSpans"][0]["resource"]["attributes"][1]["value"]["stringValue"].to_string()
            })
            .collect();
        assert_eq!(runs, [r#""mine""#, r#""ring""#]);
        assert!(write(Path::new("/nowhere/x"), &[]).is_err());
    }
}
