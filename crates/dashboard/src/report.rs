//! A run as one HTML file that needs nothing else: curves, configuration, what happened, samples.
//!
//! Its charts are uPlot's, as the page's are; everything is inside, and what a response says is text there.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::axis::Axis;
use crate::catalog::{Entry, Field, catalog, lines};
use crate::config::told_keys;
use crate::downsample::{Line, Window};
use crate::events::events;
use crate::run::Run;
use crate::samples::Window as SampleWindow;

/// Points of a curve: a file that is sent around stays small.
const POINTS: usize = 500;
/// Newest events that are listed.
const EVENTS_LIMIT: usize = 100;
/// Newest samples that are shown.
const SAMPLES_LIMIT: usize = 12;
/// What is charted first; the rest is below it, closed.
const HEADLINES: [(&str, &[&str]); 8] = [
    ("Mean score, all responses", &["score_mean"]),
    ("Outcome (pass@1)", &["outcome_mean"]),
    ("Held-out prompts", &["eval_score_mean", "eval_outcome_mean"]),
    ("KL to the reference, nats per response", &["metrics.kl_to_ref"]),
    ("R² of outcome on score", &["reliability.unfiltered", "reliability.filtered"]),
    ("Entropy of the policy, nats", &["metrics.entropy"]),
    ("Length of responses, tokens", &["response_tokens_mean"]),
    ("Seconds of a step", &["metrics.step_seconds", "metrics.update_seconds", "metrics.prepare_seconds"]),
];

/// A table of the report.
#[derive(Debug, Clone, Default)]
pub struct ReportTable {
    /// What stands over it.
    pub title: String,
    /// The names of its columns.
    pub header: Vec<String>,
    /// Its cells.
    pub rows: Vec<Vec<String>>,
}

/// A chart: its title, and curves over the batches.
#[derive(Debug, Serialize)]
struct Chart {
    title: String,
    meaning: String,
    lines: Vec<Line>,
}

/// The report on a run; tables are the caller's, and stand behind the first lines.
pub fn report(run: &Run, fields: &[Field], tables: &[ReportTable]) -> String {
    let folder = run.folder().map(std::path::Path::to_owned).unwrap_or_default();
    let mut body = String::new();
    let name = escaped(run.name());
    let _ = writeln!(body, "<h1>{name}</h1>\n<p>{}</p>", escaped(&state_of(run)));
    tables.iter().for_each(|written| table(&mut body, written));
    let (first, rest) = charts(run, fields);
    body.push_str("<h2>Curves</h2>\n<p class=\"soft\">over the batches; drag to zoom in, double-click to zoom out</p>\n");
    body.push_str("<div class=\"grid\" data-charts=\"first\"></div>\n");
    let _ = writeln!(
        body,
        "<details><summary>{} more</summary><div class=\"grid\" data-charts=\"rest\"></div></details>",
        rest.len()
    );
    happened(&mut body, run, &folder);
    samples(&mut body, &folder);
    let rows = told_keys(&folder).into_iter().map(|(key, value)| vec![key, value]).collect();
    let header = ["key", "value"].map(str::to_owned).into();
    table(&mut body, &ReportTable { title: "Configuration, without defaults".to_owned(), header, rows });
    let charts = serde_json::json!({"first": first, "rest": rest}).to_string();
    // Inside a script element `</script>` would end it, whatever stands around it.
    let charts = charts.replace('<', "\\u003c");
    let (style, chart_style) =
        (include_str!("report/report.css"), include_str!("../page/vendor/uPlot.min.css"));
    let (script, library) =
        (include_str!("report/report.js"), include_str!("../page/vendor/uPlot.iife.min.js"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; \
         style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{name}</title>\n\
         <style>{chart_style}</style>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <noscript><p>The curves need JavaScript.</p></noscript>\n\
         <script type=\"application/json\" id=\"charts\">{charts}</script>\n\
         <script>{library}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )
}

/// How far it is and what it came to, in one sentence.
fn state_of(run: &Run) -> String {
    let whole = run.status();
    let (status, is_live) = (&whole["status"], whole["live"] == true);
    let trained = run.steps().with(|steps| steps.last_batch()).unwrap_or(0.0);
    let of = status["batches"].as_u64().map(|batches| format!(" of {batches}")).unwrap_or_default();
    let mut text = format!("{trained:.0}{of} batches trained");
    let times = run.steps().with(|steps| {
        let times = steps.times();
        Some((*times.first()?, *times.last()?))
    });
    if let Some((first, last)) = times {
        let _ = write!(text, ", {:.2} h from the first step to the last", (last - first) / 3600.0);
    }
    if is_live {
        text.push_str("; it is under way");
    }
    if let Some(hopeless) = status["hopeless"].as_str() {
        let _ = write!(text, "; it cannot go on: {hopeless}");
    }
    text
}

/// The charts that come first, and all others: one for each field that was measured.
fn charts(run: &Run, fields: &[Field]) -> (Vec<Chart>, Vec<Chart>) {
    let window = Window { from: f64::NEG_INFINITY, to: f64::INFINITY, points: POINTS };
    let curves = |id: &str, label: &str| {
        let lines = lines(run, id, Axis::Batch, window).into_iter();
        lines
            .map(|line| Line { label: label.to_owned(), ..line })
            .filter(|line| !line.x.is_empty())
            .collect::<Vec<_>>()
    };
    let entries = catalog(run, fields);
    let entries: Vec<&Entry> = entries.iter().filter(|entry| entry.is_of_steps()).collect();
    let meaning = |id: &str| {
        entries
            .iter()
            .find(|entry| entry.id() == id)
            .map_or(String::new(), |entry| entry.meaning().to_owned())
    };
    let mut first = Vec::new();
    for (title, ids) in HEADLINES {
        let lines: Vec<Line> = ids.iter().flat_map(|id| curves(id, id)).collect();
        if !lines.is_empty() {
            first.push(Chart { title: title.to_owned(), meaning: meaning(ids[0]), lines });
        }
    }
    let shown: Vec<&str> = HEADLINES.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
    let mut rest = Vec::new();
    for entry in entries.iter().filter(|entry| !shown.contains(&entry.id())) {
        let lines = curves(entry.id(), entry.id());
        if !lines.is_empty() {
            let title = format!("{} {}", entry.id(), entry.unit()).trim().to_owned();
            rest.push(Chart { title, meaning: entry.meaning().to_owned(), lines });
        }
    }
    (first, rest)
}

/// Failures, changes of the plan, detectors, warnings and life events.
fn happened(body: &mut String, run: &Run, folder: &std::path::Path) {
    let whole = run.status();
    let status = &whole["status"];
    let mut rows = Vec::new();
    for failure in status["failures"].as_array().into_iter().flatten() {
        let what = format!(
            "{} failed at the {} ({})",
            failure["count"],
            text_of(&failure["role"]),
            text_of(&failure["reason"])
        );
        rows.push(vec!["failure".to_owned(), what, text_of(&failure["detail"])]);
    }
    for change in status["plan_changes"].as_array().into_iter().flatten() {
        let after = format!("after batch {}", change["after"]);
        rows.push(vec![after, "configuration".to_owned(), text_of(&change["change"])]);
    }
    for event in events(folder).into_iter().take(EVENTS_LIMIT) {
        let when = format!("{} {}", event.line.time, event.line.level).trim().to_owned();
        rows.push(vec![when, event.process, event.line.text]);
    }
    let header = ["when", "who", "what"].map(str::to_owned).into();
    table(body, &ReportTable { title: "What happened, newest first".to_owned(), header, rows });
}

/// A text as it stands, anything else as JSON.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The newest samples, each closed.
fn samples(body: &mut String, folder: &std::path::Path) {
    let Ok(window) = SampleWindow::read(&folder.join("samples.jsonl")) else { return };
    let samples: Vec<Value> = window.samples().take(SAMPLES_LIMIT).collect();
    if samples.is_empty() {
        return;
    }
    body.push_str("<h2>Samples of the last batches</h2>\n");
    for sample in samples {
        let number =
            |key: &str| sample[key].as_f64().map_or_else(|| "–".to_owned(), |number| format!("{number:.3}"));
        let [prompt, response] =
            ["prompt", "response"].map(|key| escaped(sample[key].as_str().unwrap_or_default()));
        let (score, outcome) = (number("score"), number("outcome"));
        let _ = writeln!(
            body,
            "<details><summary>score {score}, outcome {outcome}: {}</summary><pre>{}</pre><pre class=\"response\">{}</pre></details>",
            prompt.lines().next_back().unwrap_or_default(),
            prompt,
            response
        );
    }
}

fn table(body: &mut String, ReportTable { title, header, rows }: &ReportTable) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(body, "<h2>{}</h2>\n<div class=\"wide\"><table><thead><tr>", escaped(title));
    header.iter().for_each(|name| body.push_str(&format!("<th>{}</th>", escaped(name))));
    body.push_str("</tr></thead><tbody>\n");
    for row in rows {
        body.push_str("<tr>");
        row.iter().for_each(|cell| body.push_str(&format!("<td>{}</td>", escaped(cell))));
        body.push_str("</tr>\n");
    }
    body.push_str("</tbody></table></div>\n");
}

/// A text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_inside_and_what_a_response_says_is_text() {
        let folder = tempfile::tempdir().unwrap();
        let ring = folder.path().join("my-run/ring");
        std::fs::create_dir_all(ring.join("config")).unwrap();
        std::fs::create_dir_all(ring.join("logs")).unwrap();
        let steps = "{\"batch\":1,\"time\":0,\"score_mean\":0.25}\n{\"batch\":2,\"time\":3600000,\"score_mean\":0.5,\"more\":1}\n";
        std::fs::write(ring.join("steps.jsonl"), steps).unwrap();
        let evil = "</script><img src=http://evil onerror=alert(1)>";
        let sample = serde_json::json!({"prompt": "2 + 2", "response": evil, "score": 1.0, "outcome": null});
        std::fs::write(ring.join("samples.jsonl"), format!("{sample}\n")).unwrap();
        std::fs::write(ring.join("config/learner.toml"), format!("policy = '{evil}'\n")).unwrap();
        std::fs::write(ring.join("logs/actor-0.log"), "2026-11-29T11:36:01Z  WARN stream broke\n").unwrap();
        let status = "{\"batches\": 8, \"failures\": [{\"role\": \"actor\", \"reason\": \"generation\", \"count\": 3, \"detail\": \"too long\"}]}";
        std::fs::write(ring.join("status.json"), status).unwrap();
        let run = Run::of_folder(&folder.path().join("my-run")).unwrap();
        let written = ReportTable {
            title: "Results".to_owned(),
            header: vec!["figure".to_owned()],
            rows: vec![vec!["<b>".to_owned()]],
        };
        let html = report(&run, &[], &[written]);
        for part in [
            "2 of 8 batches trained, 1.00 h",
            "stream broke",
            "3 failed at the actor",
            "too long",
            "&lt;b&gt;",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("<img"), "escaped everywhere");
        // The scripts are the library's, ours and the data; nobody else's.
        assert_eq!(html.matches("<script").count(), 3);
        assert_eq!(html.matches("</script>").count(), 3);
        let data = html.split("id=\"charts\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["first"][0]["lines"][0]["y"], serde_json::json!([0.25, 0.5]));
        assert_eq!(data["rest"][0]["title"], "more");
        for source in [include_str!("report/report.js"), include_str!("report/report.css")] {
            assert!(!source.contains("http") && !source.contains("innerHTML"), "nothing is loaded");
        }
    }
}
