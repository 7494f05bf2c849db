//! Every address of the page over HTTP, on a run's folder as `sluice run` leaves it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dashboard::{Dashboard, Field, Recorder, Run, Steps};
use serde_json::{Value, json};
use service::{CancellationToken, axum};

/// Longest wait for anything that a server does.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server on a thread of its own; it ends with the test.
struct Server {
    address: String,
    token: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn of(runs: Vec<Run>) -> Self {
        let token = CancellationToken::new();
        let meaning = "What responses are worth.".to_owned();
        let fields = vec![Field { path: "score_mean".to_owned(), kind: "number".to_owned(), meaning }];
        let routes = Dashboard::new(runs, fields, token.clone()).routes();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ended = token.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let served = axum::serve(listener, routes).with_graceful_shutdown(ended.cancelled_owned());
                served.await.unwrap();
            });
        });
        Self { address, token, thread: Some(thread) }
    }

    fn text(&self, path: &str) -> String {
        ureq::get(format!("http://{}/{path}", self.address))
            .call()
            .unwrap()
            .body_mut()
            .read_to_string()
            .unwrap()
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap()
    }

    fn refusal(&self, path: &str) -> u16 {
        match ureq::get(format!("http://{}/{path}", self.address)).call() {
            Err(ureq::Error::StatusCode(code)) => code,
            other => panic!("{path} was not refused: {other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.token.cancel();
        // A page that is open keeps no server: this returns.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn step(batch: u64) -> String {
    let score = batch as f64 / 10.0;
    format!(
        "{{\"batch\":{batch},\"time\":{},\"score_mean\":{score},\"metrics\":{{\"tokens\":100,\"entropy\":0.5}}}}\n",
        batch * 1000
    )
}

/// A run's output folder with everything that a page shows.
fn run_folder(parent: &Path, name: &str, steps: u64) -> PathBuf {
    let output = parent.join(name);
    let ring = output.join("ring");
    fs::create_dir_all(ring.join("logs")).unwrap();
    fs::create_dir_all(ring.join("config")).unwrap();
    let mut lines = String::new();
    (1..=steps).for_each(|batch| lines += &step(batch));
    fs::write(ring.join("steps.jsonl"), lines).unwrap();
    let config = format!("run = \"{name}\"\nbatches = {steps}\n[filtration]\nstrategy = \"best-worst\"\n");
    fs::write(ring.join("config/coordinator.toml"), config).unwrap();
    let log = "2026-11-29T11:35:58Z  INFO joined member=actor-0\n2026-11-29T11:36:00Z  WARN <b>late</b>\n";
    fs::write(ring.join("logs/coordinator.log"), log).unwrap();
    let mut samples = String::new();
    for (score, fate) in [(0.1, "trains"), (0.9, "trains"), (0.5, "filtered{strategy}")] {
        let sample = json!({"prompt_id": "e0-p1", "prompt": "why", "response": format!("<script>{score}</script>"),
            "score": score, "fate": fate});
        writeln!(samples, "{sample}").unwrap();
    }
    fs::write(ring.join("samples.jsonl"), samples).unwrap();
    let worst = json!({"run": name, "examples": [{"id": "e0-p1-s0-a0", "trained": 2, "score": 9.5, "outcome": 0.0,
        "prompt": "why", "text": "<script>paid for nothing</script>"}]});
    fs::write(ring.join("worst.json"), worst.to_string()).unwrap();
    let metrics = json!({"time": 2.0, "process": "actor-0", "values": {"rlhf_actor_responses_running": 7.0},
        "descriptions": {"rlhf_actor_responses_running": ["gauge", "Responses being generated."]}});
    fs::write(ring.join("metrics.jsonl"), format!("{metrics}\n")).unwrap();
    fs::write(ring.join("status.json"), "{\"phase\": \"finished\", \"trained\": 3}").unwrap();
    output
}

fn server_of(steps: u64) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let output = run_folder(folder.path(), "first", steps);
    let server = Server::of(vec![Run::of_folder(&output).unwrap()]);
    (folder, server)
}

#[test]
fn the_page_and_its_files_are_served_and_may_load_nothing_else() {
    let (_folder, server) = server_of(3);
    let response = ureq::get(format!("http://{}/", server.address)).call().unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
    let page = server.text("");
    for part in page.split(['"']).filter(|part| part.starts_with("page/")) {
        assert!(!server.text(part).is_empty(), "{part}");
    }
    assert!(page.contains("page/app.js"));
    assert_eq!(server.refusal("page/no-such-file.js"), 404);
}

#[test]
fn a_run_is_listed_with_how_far_it_is_and_how_it_was() {
    let (_folder, server) = server_of(3);
    let runs = server.json("api/runs");
    assert_eq!(runs[0]["name"], "first");
    assert_eq!(
        (&runs[0]["steps"], &runs[0]["batch"], &runs[0]["live"]),
        (&json!(3), &json!(3.0), &json!(false))
    );
    assert_eq!(server.json("api/runs/0/status")["status"]["phase"], "finished");
    for unknown in [
        "api/runs/1/status",
        "api/runs/0/secrets",
        "api/runs/0/logs/..%2Fconfig%2Fcoordinator",
        "api/runs/0/logs/nobody",
    ] {
        assert_eq!(server.refusal(unknown), 404, "{unknown}");
    }
    assert_eq!(server.refusal("api/runs/x/status"), 400);
}

#[test]
fn every_number_of_steps_and_processes_can_be_drawn() {
    let (_folder, server) = server_of(3);
    let catalog = server.json("api/runs/0/catalog");
    let entries: Vec<(&str, &str, &str)> = catalog
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["id"].as_str().unwrap(),
                entry["unit"].as_str().unwrap(),
                entry["meaning"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        entries,
        [
            ("metrics.entropy", "nats", ""),
            ("metrics.tokens", "tokens", ""),
            ("score_mean", "", "What responses are worth."),
            ("rlhf_actor_responses_running", "", "Responses being generated."),
        ]
    );
    let series = server.json("api/runs/0/series?ids=score_mean,rlhf_actor_responses_running,unknown");
    assert_eq!(series["score_mean"], json!([{"label": "", "x": [1.0, 2.0, 3.0], "y": [0.1, 0.2, 0.3]}]));
    assert_eq!(series["rlhf_actor_responses_running"], json!([{"label": "actor-0", "x": [2.0], "y": [7.0]}]));
    assert_eq!(series["unknown"], json!([]));
    let by_tokens = server.json("api/runs/0/series?ids=score_mean&axis=tokens&from=150&to=250");
    assert_eq!(by_tokens["score_mean"][0]["x"], json!([200.0]));
    assert_eq!(server.refusal("api/runs/0/series?ids=a&axis=miles"), 400);
}

#[test]
fn a_hundred_thousand_steps_are_a_small_answer() {
    let (_folder, server) = server_of(100_000);
    let text = server.text("api/runs/0/series?ids=score_mean,metrics.entropy&points=600");
    assert!(text.len() < 100_000, "{} bytes", text.len());
    let series: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(series["score_mean"][0]["x"].as_array().unwrap().len(), 600);
    assert_eq!(series["score_mean"][0]["y"][599], json!(10_000.0));
    let zoomed = server.json("api/runs/0/series?ids=score_mean&from=50000&to=50010");
    assert_eq!(zoomed["score_mean"][0]["x"].as_array().unwrap().len(), 11);
}

#[test]
fn samples_groups_events_logs_processes_and_keys() {
    let (_folder, server) = server_of(3);
    let samples = server.json("api/runs/0/samples?search=script&sort=score&limit=1");
    assert_eq!(
        (&samples["matching"], &samples["samples"][0]["response"]),
        (&json!(3), &json!("<script>0.9</script>"))
    );
    let worst = server.json("api/runs/0/worst");
    assert_eq!(
        (&worst["exists"], &worst["examples"][0]["text"]),
        (&json!(true), &json!("<script>paid for nothing</script>")),
        "of a run that is over"
    );
    let groups = server.json("api/runs/0/groups");
    assert_eq!(
        groups["ranks"][1],
        json!({"responses": 1, "kept": 0, "score_mean": 0.5, "outcome_mean": null})
    );
    let events = server.json("api/runs/0/events");
    assert_eq!(
        (&events[0]["text"], &events[1]["text"]),
        (&json!("<b>late</b>"), &json!("joined member=actor-0"))
    );
    assert_eq!(server.json("api/runs/0/logs/coordinator?search=JOINED").as_array().unwrap().len(), 1);
    let processes = server.json("api/runs/0/processes");
    assert_eq!(processes[0]["name"], "coordinator");
    let keys = server.json("api/runs/0/config");
    assert_eq!(keys["coordinator.filtration.strategy"], "best-worst");
}

#[test]
fn what_is_not_there_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("steps.jsonl"), "").unwrap();
    let server = Server::of(vec![Run::of_folder(folder.path()).unwrap()]);
    assert_eq!(server.json("api/runs/0/status"), json!({"live": false, "status": null}));
    for empty in ["catalog", "events", "processes"] {
        assert_eq!(server.json(&format!("api/runs/0/{empty}")), json!([]), "{empty}");
    }
    assert_eq!(server.json("api/runs/0/config"), json!({}));
    assert_eq!(server.json("api/runs/0/samples")["exists"], json!(false));
    assert_eq!(server.json("api/runs/0/worst"), json!({"exists": false, "examples": []}));
    fs::write(folder.path().join("worst.json"), "half a li").unwrap();
    assert_eq!(server.refusal("api/runs/0/worst"), 500);
    assert_eq!(server.json("api/runs/0/groups")["groups"], json!(0));
}

/// Reads server-sent events until one of a kind holds a text.
fn wait_for_event(stream: &mut BufReader<TcpStream>, kind: &str, text: &str) {
    let mut event = String::new();
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(name) = line.strip_prefix("event: ") {
            name.trim_end().clone_into(&mut event);
        }
        if event == kind && line.starts_with("data: ") && line.contains(text) {
            return;
        }
    }
}

#[test]
fn a_page_that_is_open_hears_of_new_steps_and_keeps_no_server() {
    let (folder, server) = server_of(3);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(stream, "GET /api/live HTTP/1.1\r\nHost: page\r\n\r\n").unwrap();
    let mut stream = BufReader::new(stream);
    wait_for_event(&mut stream, "steps", "\"steps\":3");
    let path = folder.path().join("first/ring/steps.jsonl");
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(step(4).as_bytes()).unwrap();
    wait_for_event(&mut stream, "steps", "\"steps\":4");
    drop(server);
    assert!(stream.read_to_end(&mut Vec::new()).is_ok(), "the server has closed the stream");
}

#[test]
fn more_pages_than_can_be_served_are_refused() {
    let (_folder, server) = server_of(3);
    let open = |_| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET /api/live HTTP/1.1\r\nHost: page\r\n\r\n").unwrap();
        let mut stream = BufReader::new(stream);
        let mut first = String::new();
        stream.read_line(&mut first).unwrap();
        (stream, first)
    };
    let streams: Vec<_> = (0..65).map(open).collect();
    assert!(streams[63].1.contains("200"), "{}", streams[63].1);
    assert!(streams[64].1.contains("503"), "{}", streams[64].1);
}

#[test]
fn the_recorder_writes_what_a_run_that_is_over_shows() {
    let folder = tempfile::tempdir().unwrap();
    let ring = folder.path().to_owned();
    // A process that answers for its metrics.
    let metrics = axum::Router::new()
        .route("/metrics", axum::routing::get(|| async { "# TYPE a gauge\n# HELP a Is.\na 5\n" }));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let token = CancellationToken::new();
    let ended = token.clone();
    let recorded = ring.clone();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        fs::write(recorded.join("actor-0.address.json"), format!("{{\"metrics\": \"{address}\"}}")).unwrap();
        fs::write(recorded.join("gone.address.json"), "{\"metrics\": \"127.0.0.1:1\"}").unwrap();
        let recorder = Recorder::new(recorded.clone(), service::Security::open(), || json!({"trained": 1}));
        let stop = async {
            while fs::read_to_string(recorded.join("metrics.jsonl")).unwrap_or_default().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            ended.cancel();
        };
        let serve = axum::serve(listener, metrics).with_graceful_shutdown(ended.clone().cancelled_owned());
        let (recorded, served, ()) = tokio::join!(recorder.run(ended.clone()), async { serve.await }, stop);
        recorded.unwrap();
        served.unwrap();
    });
    let run = Run::here("r".to_owned(), Some(ring.clone()), Steps::of_source(|| json!([])), || json!({}));
    let server = Server::of(vec![run]);
    assert_eq!(server.json("api/runs/0/series?ids=a&axis=hours")["a"][0]["y"], json!([5.0]));
    assert_eq!(fs::read_to_string(ring.join("status.json")).unwrap(), "{\"trained\":1}");
}
