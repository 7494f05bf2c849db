//! A real Prometheus beside a real ring: every query of the Grafana dashboard has an answer, and what the
//! roles export is as Prometheus' own checker wants it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{TinyRing, root};

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One of Prometheus' programs; none where they are left out.
fn program(name: &str) -> Option<PathBuf> {
    if std::env::var_os("SLUICE_WITHOUT_PROMTOOL").is_some_and(|value| value == "1") {
        eprintln!("left out: SLUICE_WITHOUT_PROMTOOL is 1");
        return None;
    }
    let program = root().join(".deps/debian/usr/bin").join(name);
    assert!(
        program.exists(),
        "{name} is missing: run setup/install.sh promtool, or set SLUICE_WITHOUT_PROMTOOL=1"
    );
    Some(program)
}

/// Where each role's metrics are.
fn targets(ring: &Path) -> BTreeMap<String, String> {
    let mut targets = BTreeMap::new();
    for entry in fs::read_dir(ring).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(role) = name.strip_suffix(".address.json") {
            let addresses: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            targets.insert(role.to_owned(), addresses["metrics"].as_str().unwrap().to_owned());
        }
    }
    targets
}

/// A Prometheus that asks these targets every second.
struct Prometheus {
    _process: Killed,
    address: String,
}

impl Prometheus {
    fn start(program: &Path, folder: &Path, targets: &BTreeMap<String, String>) -> Self {
        let jobs: Vec<Value> = targets
            .iter()
            .map(|(role, address)| {
                json!({ "targets": [address], "labels": { "run": "tiny-ring", "component": role } })
            })
            .collect();
        let config = json!({
            "global": { "scrape_interval": "1s" },
            "scrape_configs": [{ "job_name": "sluice", "static_configs": jobs }],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("series").display()));
        command.args([&format!("--web.listen-address={address}"), "--log.level=error"]);
        let process = Killed(command.stdin(Stdio::null()).spawn().unwrap());
        Self { _process: process, address }
    }

    /// How many series a query has; none where there is no answer yet.
    fn series(&self, query: &str) -> Option<usize> {
        let request = ureq::get(format!("http://{}/api/v1/query", self.address)).query("query", query);
        let text = request.call().ok()?.body_mut().read_to_string().ok()?;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        Some(answer["data"]["result"].as_array().unwrap().len())
    }
}

/// The dashboard's queries, with its variables as Grafana would fill them in.
fn queries() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("deploy/grafana/sluice.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = BTreeMap::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let filled = query.replace("$__rate_interval", "20s").replace("$run", "tiny-ring");
            assert!(!filled.contains('$'), "{title}: {query} has a variable that this test does not know");
            queries.insert(format!("{title}: {}", target["legendFormat"].as_str().unwrap()), filled);
        }
    }
    queries
}

#[test]
fn every_query_of_the_dashboard_has_an_answer_in_a_live_ring() {
    let (Some(prometheus), Some(promtool)) = (program("prometheus"), program("promtool")) else { return };
    let folder = tempfile::tempdir().unwrap();
    // Episodes with a Python interpreter: a sandbox; and a scorer that says what is right: an outcome.
    let ring = TinyRing::of_episodes(folder.path()).unwrap().with("coordinator.batches=100000");
    let ring = ring.with("reward_server.sandbox.grader.workers=1");
    let recipe = folder.path().join("recipe.toml");
    let text =
        fs::read_to_string(&recipe).unwrap().replace("field = \"sum\"", "field = \"sum\"\nyardstick = true");
    assert!(text.contains("yardstick"));
    fs::write(&recipe, text).unwrap();
    let mut running = ring.start().unwrap();
    running.wait_for_batches(2).unwrap();
    let targets = targets(&ring.output().join("ring"));
    assert_eq!(targets.len(), 4, "{targets:?}");
    let prometheus = Prometheus::start(&prometheus, folder.path(), &targets);

    let mut open = queries();
    assert!(open.len() > 60);
    for _ in 0..60 {
        open.retain(|_, query| prometheus.series(query).is_none_or(|series| series == 0));
        if open.is_empty() {
            break;
        }
        sleep(Duration::from_secs(1));
    }
    assert!(open.is_empty(), "no answer in a minute: {:#?}", open.keys());

    for (role, address) in &targets {
        let page = ureq::get(format!("http://{address}/metrics")).call().unwrap();
        let page = page.into_body().read_to_string().unwrap();
        let mut command = Command::new(&promtool);
        command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut checker = command.spawn().unwrap();
        checker.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = checker.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{role}: {}", String::from_utf8_lossy(&said));
    }
    running.stop().unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
}
