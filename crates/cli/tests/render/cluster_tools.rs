//! What was rendered, as the tools of Kubernetes read it: the schemas of every release from 1.28 on, and
//! Kustomize.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize as _;
use serde_json::Value;

use super::{Project, RECIPE};

/// The releases whose schemas are asked.
const RELEASES: std::ops::RangeInclusive<u32> = 28..=37;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every form of the manifests: reward servers in a namespace of their own or not, guarded by tokens, by
/// certificates or not at all, with GPUs or not.
fn rendered() -> Vec<Project> {
    let guarded = Project::new(RECIPE);
    guarded.render("k8s", &["--image", "sluice:1", "--volume-claim", "shared"]);
    let own = Project::new(RECIPE);
    let gpus = [
        &["--image", "sluice:1", "--volume-claim", "shared", "--namespace", "rl"][..],
        &["--reward-namespace", "graded", "--set", "learner.device=cuda", "--gpus-per-learner-rank", "1"],
    ];
    own.render("k8s", &gpus.concat());
    let open = Project::new(&format!("{RECIPE}\n[security]\ninsecure = true\n"));
    open.render("k8s", &["--image", "sluice:1", "--volume-claim", "shared"]);
    let certified = Project::new(&format!("{RECIPE}\n[security]\ncertificates = \"certs\"\n"));
    certified.render("k8s", &gpus.concat());
    vec![guarded, own, open, certified]
}

#[test]
fn every_release_takes_the_manifests_strictly() {
    if std::env::var_os("SLUICE_WITHOUT_SCHEMAS").is_some_and(|value| value == "1") {
        eprintln!("left out: SLUICE_WITHOUT_SCHEMAS is 1");
        return;
    }
    let schemas = root().join(".deps/kubernetes");
    assert!(
        schemas.exists(),
        "the schemas are missing: run setup/install.sh schemas, or set SLUICE_WITHOUT_SCHEMAS=1"
    );
    let files = ["config", "coordinator", "reward-servers", "learner", "actors", "network"];
    let validate = |project: &Project, release: u32, files: &[&str]| {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &schemas).args(["-m", "kubernetes_validate", "--strict"]);
        command.args(["--kubernetes-version", &format!("1.{release}")]);
        command.args(files.iter().map(|file| project.path(&format!("out/{file}.yaml"))));
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    for project in rendered() {
        for release in RELEASES {
            let (sound, said) = validate(&project, release, &files);
            assert!(sound && !said.contains("ERROR") && !said.contains("WARN"), "1.{release}: {said}");
        }
        // What no schema knows is noticed.
        let path = project.path("out/actors.yaml");
        let spoilt = fs::read_to_string(&path).unwrap().replace("completionMode", "completionMood");
        fs::write(&path, spoilt).unwrap();
        let (sound, said) = validate(&project, 34, &["actors"]);
        assert!(!sound && said.contains("completionMood"), "{said}");
    }
}

/// A place that takes every component, and says what only it knows.
const PLACE: &str = r#"
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../out]
images: [{ name: sluice, newName: registry.example/sluice, newTag: "2" }]
patches:
  - target: { kind: Job, labelSelector: app.kubernetes.io/component=actor }
    patch: |
      apiVersion: batch/v1
      kind: Job
      metadata: { name: any }
      spec:
        template:
          spec:
            priorityClassName: low
            imagePullSecrets: [{ name: pull }]
            nodeSelector: { zone: a }
            tolerations: [{ key: spot, operator: Exists }]
            containers:
              - name: actor
                env: [{ name: HTTPS_PROXY, value: "http://proxy:3128" }]
                envFrom: [{ secretRef: { name: hub } }]
"#;

#[test]
fn kustomize_takes_the_base_the_components_and_a_places_own_patches() {
    let there = Command::new("kubectl").args(["kustomize", "--help"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: kubectl is not here, and no package that `make test` installs has it");
        return;
    }
    for project in rendered() {
        let mut place = format!("{PLACE}components:\n");
        let mut components = Vec::new();
        for entry in fs::read_dir(project.path("out/components")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            place.push_str(&format!("  - ../out/components/{name}\n"));
            components.push(name);
        }
        fs::create_dir(project.path("place")).unwrap();
        fs::write(project.path("place/kustomization.yaml"), place).unwrap();
        let output = Command::new("kubectl").arg("kustomize").arg(project.path("place")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let objects: Vec<Value> = yaml_serde::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).unwrap())
            .collect();
        let jobs: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "Job").collect();
        assert_eq!(jobs.len(), 4);
        for job in jobs {
            let role = job["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap();
            assert_eq!(job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "sluice");
            assert_eq!(job["spec"]["suspend"], true);
            let pod = &job["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            assert_eq!(container["image"], "registry.example/sluice:2");
            assert_eq!(container["resources"], Value::Null, "dev asks for nothing");
            assert_eq!(pod["runtimeClassName"] == "gvisor", role == "reward-server");
            let gpu = components.iter().any(|name| name == "gpu-nodes");
            let wants_gpu = gpu && role == "learner";
            assert_eq!(pod["nodeSelector"]["nvidia.com/gpu.present"] == "true", wants_gpu, "{role}");
            if role == "actor" {
                assert_eq!(
                    (&pod["priorityClassName"], &pod["nodeSelector"]["zone"]),
                    (&"low".into(), &"a".into())
                );
                assert_eq!(pod["imagePullSecrets"][0]["name"], "pull");
                assert_eq!(pod["tolerations"][0]["key"], "spot");
                let variables = container["env"].as_array().unwrap();
                let named = |name: &str| variables.iter().any(|variable| variable["name"] == name);
                assert!(named("HTTPS_PROXY") && named("POD_NAME"), "a place's variables come beside ours");
            }
        }
        let mut kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        kinds.retain(|kind| ["PodMonitor", "PrometheusRule", "ScaledJob"].contains(kind));
        kinds.sort_unstable();
        // With certificates there is a PodMonitor for each role.
        kinds.dedup();
        assert_eq!(kinds, ["PodMonitor", "PrometheusRule", "ScaledJob"]);
        let rules = objects.iter().find(|object| object["kind"] == "PrometheusRule").unwrap();
        let ours = fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
        assert_eq!(rules["spec"], yaml_serde::from_str::<Value>(&ours).unwrap());
    }
}
