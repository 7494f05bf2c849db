//! What `deploy/` asks of the running roles exists: the metrics that alerts and dashboard name.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words of a text that look like names of our metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("rlhf_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// The metrics that the sources describe, and those of them that are histograms.
struct Described {
    all: BTreeSet<String>,
    histograms: BTreeSet<String>,
}

impl Described {
    fn in_sources() -> Self {
        let (mut all, mut histograms) = (BTreeSet::new(), BTreeSet::new());
        for role in ["crates/service", "coordinator", "reward-server", "actor", "learner"] {
            let source = read(&format!("{role}/src/metrics.rs"));
            // Names are string literals; a description begins with its name.
            all.extend(names(&source));
            for described in source.split("Metric::histogram(").skip(1) {
                histograms.extend(described.split('"').nth(1).map(str::to_owned));
            }
        }
        assert!(all.len() > 60 && histograms.len() > 8, "{all:?} {histograms:?}");
        Self { all, histograms }
    }

    /// Whether Prometheus has a series of this name.
    fn has(&self, name: &str) -> bool {
        let series_of =
            |suffix: &str| name.strip_suffix(suffix).is_some_and(|of| self.histograms.contains(of));
        let plain = self.all.contains(name) && !self.histograms.contains(name);
        plain || ["_bucket", "_sum", "_count"].into_iter().any(series_of)
    }
}

#[test]
fn alerts_name_metrics_that_exist() {
    let described = Described::in_sources();
    let alerts: Value = yaml_serde::from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let mut seen = BTreeSet::new();
    for rule in
        alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        let alert = rule["alert"].as_str().unwrap();
        assert!(seen.insert(alert.to_owned()), "{alert} is there twice");
        for name in names(rule["expr"].as_str().unwrap()) {
            assert!(described.has(&name), "{alert} asks for {name}, which no role has");
        }
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].is_string(), "{alert} has no {text}");
        }
    }
    for text in ["deploy/prometheus/alerts.yml", "deploy/prometheus/alerts.test.yml"] {
        for name in names(&read(text)) {
            assert!(described.has(&name), "{text} mentions {name}, which no role has");
        }
    }
}

#[test]
fn every_alert_fires_where_it_should_and_is_quiet_in_a_sound_run() {
    if std::env::var_os("SLUICE_WITHOUT_PROMTOOL").is_some_and(|value| value == "1") {
        eprintln!("left out: SLUICE_WITHOUT_PROMTOOL is 1");
        return;
    }
    let promtool = root().join(".deps/debian/usr/bin/promtool");
    assert!(
        promtool.exists(),
        "promtool is missing: run setup/install.sh promtool, or set SLUICE_WITHOUT_PROMTOOL=1"
    );
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let mut command = Command::new(&promtool);
        let output = command.args(arguments).current_dir(root().join("deploy/prometheus")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    // The test above holds whatever the last of its cases lists; it has to list all.
    let tests = read("deploy/prometheus/alerts.test.yml");
    let (_, firing) = tests.split_once("every alert fires").unwrap();
    let alerts: Value = yaml_serde::from_str(&read("deploy/prometheus/alerts.yml")).unwrap();
    let groups = alerts["groups"].as_array().unwrap().iter();
    for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
        let alert = rule["alert"].as_str().unwrap();
        assert!(firing.contains(&format!("alertname=\"{alert}\"")), "no test shows that {alert} fires");
    }
}

#[test]
fn the_dashboard_names_metrics_that_exist() {
    let described = Described::in_sources();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/sluice.json")).unwrap();
    let mut queries = 0;
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has another panel's id");
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries += 1;
            let query = target["expr"].as_str().unwrap();
            let named = names(query);
            assert!(!named.is_empty(), "{title}: {query} asks for nothing of ours");
            for name in named {
                assert!(described.has(&name), "{title} asks for {name}, which no role has");
            }
        }
    }
    assert!(queries > 40);
    let variables = dashboard["templating"].to_string();
    names(&variables).iter().for_each(|name| assert!(described.has(name), "{name} is no metric"));
}

#[test]
fn the_scrape_configuration_can_be_read() {
    let config: Value = yaml_serde::from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    for rules in config["rule_files"].as_array().unwrap() {
        read(&format!("deploy/prometheus/{}", rules.as_str().unwrap()));
    }
}

#[test]
fn units_start_nothing_again_that_would_end_in_the_same_way() {
    let units = fs::read_dir(root().join("deploy/systemd")).unwrap().map(|entry| entry.unwrap().path());
    let units: Vec<PathBuf> =
        units.filter(|path| path.extension().is_some_and(|extension| extension == "service")).collect();
    assert_eq!(units.len(), 2);
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{} has no {key}", unit.display()))
        };
        assert_eq!((value("Restart"), value("RestartPreventExitStatus")), ("on-failure", "2 3"));
        let program = value("ExecStart").split(' ').next().unwrap();
        let name = program.rsplit('/').next().unwrap();
        assert!(
            Path::new(env!("CARGO_BIN_EXE_sluice")).with_file_name(name).exists(),
            "{name} is no program"
        );
    }
}
