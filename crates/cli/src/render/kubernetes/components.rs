//! What many places need beside the ring, as components of Kustomize: a place's own `kustomization.yaml`
//! names the rendered folder as its resource, the components that it wants, and patches of its own.
//!
//! | component     | what                                                                                    |
//! |---------------|-----------------------------------------------------------------------------------------|
//! | `dev`         | no requests and no limits, and a small claim for the shared folder: for one node        |
//! | `gpu-nodes`   | pods that ask for a GPU go to nodes that are labelled as having one                     |
//! | `gvisor`      | reward servers run under gVisor                                                         |
//! | `kueue`       | all Jobs wait in a queue of Kueue                                                       |
//! | `monitoring`  | a PodMonitor and the alerts for the Prometheus operator, and the dashboard for Grafana  |
//! | `autoscaling` | further actors by KEDA, for as long as the learner waits for them                       |

use anyhow::Context as _;
use serde_json::{Value, json};
use service::security::certificate_names;

use super::{Kind, Manifests, pod};
use crate::recipe::Role;
use crate::render::RenderedFile;

const KUSTOMIZATION: &str = "kustomize.config.k8s.io/v1beta1";
const COMPONENT: &str = "kustomize.config.k8s.io/v1alpha1";
const CONFIG_MAP: Kind = Kind { api_version: "v1", kind: "ConfigMap" };
const VOLUME_CLAIM: Kind = Kind { api_version: "v1", kind: "PersistentVolumeClaim" };
const POD_MONITOR: Kind = Kind { api_version: "monitoring.coreos.com/v1", kind: "PodMonitor" };
const ALERTS: Kind = Kind { api_version: "monitoring.coreos.com/v1", kind: "PrometheusRule" };
const SCALED_JOB: Kind = Kind { api_version: "keda.sh/v1alpha1", kind: "ScaledJob" };

/// The alerts on a run, as Prometheus reads them.
const ALERTS_TEXT: &str = include_str!("../../../../../deploy/prometheus/alerts.yml");
/// The dashboard, as Grafana reads it.
const DASHBOARD_TEXT: &str = include_str!("../../../../../deploy/grafana/sluice.json");

/// Runtime class, queue and Prometheus that components name where the place has given none.
const RUNTIME_CLASS: &str = "gvisor";
const QUEUE: &str = "sluice";
const PROMETHEUS: &str = "http://prometheus-operated.monitoring:9090";
/// What `dev` asks for the shared folder.
const DEV_STORAGE: &str = "10Gi";
/// Actors that KEDA may add to those of the ring.
const ACTORS_ADDED_LIMIT: usize = 16;

/// The base: all files of the ring.
pub(super) fn base<'a>(files: impl Iterator<Item = &'a str>) -> Value {
    let files: Vec<&str> = files.collect();
    json!({ "apiVersion": KUSTOMIZATION, "kind": "Kustomization", "resources": files })
}

/// All components, each in a folder of its own.
pub(super) fn files(manifests: &Manifests<'_>) -> anyhow::Result<Vec<RenderedFile>> {
    let components = [
        ("dev", dev(manifests)),
        ("gpu-nodes", gpu_nodes(manifests)),
        ("gvisor", gvisor()),
        ("kueue", kueue()),
        ("monitoring", monitoring(manifests)?),
        ("autoscaling", autoscaling(manifests)?),
    ];
    let mut files = Vec::new();
    for (name, Component { objects, patches }) in components {
        if objects.is_empty() && patches.is_empty() {
            // Of no use to this ring, and Kustomize refuses it.
            continue;
        }
        let folder = format!("components/{name}");
        let mut component = json!({ "apiVersion": COMPONENT, "kind": "Component" });
        if !objects.is_empty() {
            component["resources"] = json!(["objects.yaml"]);
            files.push(manifests.file(&format!("{folder}/objects.yaml"), &objects)?);
        }
        if !patches.is_empty() {
            component["patches"] = json!(patches);
        }
        files.push(manifests.file(&format!("{folder}/kustomization.yaml"), &[component])?);
    }
    Ok(files)
}

#[derive(Default)]
struct Component {
    /// What it adds.
    objects: Vec<Value>,
    /// What it changes.
    patches: Vec<Value>,
}

/// A patch of the Jobs of a role, or of all.
fn patch_of_jobs(role: Option<Role>, patch: &Value) -> Value {
    let mut selector = "app.kubernetes.io/name=sluice".to_owned();
    if let Some(role) = role {
        selector.push_str(&format!(",app.kubernetes.io/component={}", role.name()));
    }
    json!({ "target": { "kind": "Job", "labelSelector": selector }, "patch": patch.to_string() })
}

/// A patch of the pods of a role.
fn patch_of_pods(role: Role, spec: &Value) -> Value {
    // A strategic merge, which wants a name and looks at the target's labels only.
    let patch = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "any" },
        "spec": { "template": { "spec": spec } },
    });
    patch_of_jobs(Some(role), &patch)
}

fn dev(manifests: &Manifests<'_>) -> Component {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": DEV_STORAGE } },
    });
    let claim = &manifests.options.volume_claim;
    let remove = json!([{ "op": "remove", "path": "/spec/template/spec/containers/0/resources" }]);
    Component {
        objects: vec![manifests.object(VOLUME_CLAIM, claim, json!({ "spec": spec }))],
        patches: vec![patch_of_jobs(None, &remove)],
    }
}

fn gpu_nodes(manifests: &Manifests<'_>) -> Component {
    let with_gpus = Role::ALL.into_iter().filter(|role| manifests.ring.of(*role).gpu);
    let selector = json!({ "nodeSelector": { "nvidia.com/gpu.present": "true" } });
    Component {
        patches: with_gpus.map(|role| patch_of_pods(role, &selector)).collect(),
        ..Component::default()
    }
}

fn gvisor() -> Component {
    let class = json!({ "runtimeClassName": RUNTIME_CLASS });
    Component { patches: vec![patch_of_pods(Role::RewardServer, &class)], ..Component::default() }
}

fn kueue() -> Component {
    let queued = json!([
        { "op": "add", "path": "/metadata/labels/kueue.x-k8s.io~1queue-name", "value": QUEUE },
        { "op": "add", "path": "/spec/suspend", "value": true },
    ]);
    Component { patches: vec![patch_of_jobs(None, &queued)], ..Component::default() }
}

fn monitoring(manifests: &Manifests<'_>) -> anyhow::Result<Component> {
    let mut endpoint = json!({
        "port": "metrics",
        "path": "/metrics",
        "relabelings": [
            relabeling("app_kubernetes_io_instance", "run"),
            relabeling("app_kubernetes_io_component", "component"),
        ],
    });
    if let Some(secret) = manifests.token_secret() {
        endpoint["authorization"] = json!({ "credentials": { "name": secret, "key": "observer" } });
    }
    let mut objects = Vec::new();
    match manifests.certificate_secret() {
        // Each role has a certificate of its own name.
        Some(secret) => objects.extend(Role::ALL.into_iter().map(|role| {
            let mut endpoint = endpoint.clone();
            endpoint["scheme"] = json!("https");
            endpoint["tlsConfig"] = tls_of(role, &secret);
            pod_monitor(manifests, &manifests.name_of(role), &manifests.labels(role), &endpoint)
        })),
        None => objects.push(pod_monitor(manifests, &manifests.name, &manifests.ring_labels(), &endpoint)),
    }
    let rules: Value = yaml_serde::from_str(ALERTS_TEXT).context("read the alerts of this build")?;
    let mut dashboard = json!({ "data": { "sluice.json": DASHBOARD_TEXT } });
    dashboard = manifests.object(CONFIG_MAP, &format!("{}-dashboard", manifests.name), dashboard);
    dashboard["metadata"]["labels"]["grafana_dashboard"] = json!("1");
    objects.push(manifests.object(ALERTS, &manifests.name, json!({ "spec": rules })));
    objects.push(dashboard);
    Ok(Component { objects, ..Component::default() })
}

/// Has Prometheus ask the pods with these labels, in all namespaces of the ring.
fn pod_monitor(manifests: &Manifests<'_>, name: &str, labels: &Value, endpoint: &Value) -> Value {
    let namespaces = manifests.options.reward_namespace.iter().chain(&manifests.options.namespace);
    let namespaces: Vec<&String> = namespaces.collect();
    let mut spec = json!({ "selector": { "matchLabels": labels }, "podMetricsEndpoints": [endpoint] });
    if !namespaces.is_empty() {
        spec["namespaceSelector"] = json!({ "matchNames": namespaces });
    }
    manifests.object(POD_MONITOR, name, json!({ "spec": spec }))
}

/// What Prometheus shows to the pages of a role, and whom it takes for it.
fn tls_of(role: Role, secret: &str) -> Value {
    let file = |key: &str| json!({ "name": secret, "key": key });
    json!({
        "ca": { "secret": file("ca.pem") },
        "cert": { "secret": file("observer.pem") },
        "keySecret": file("observer.key"),
        "serverName": certificate_names(role.name()).swap_remove(0),
    })
}

/// A label of the pod as a label of its metrics, as the alerts and the dashboard name it.
fn relabeling(label: &str, name: &str) -> Value {
    json!({ "sourceLabels": [format!("__meta_kubernetes_pod_label_{label}")], "targetLabel": name })
}

/// Actors are Jobs, and a Job cannot be scaled by an autoscaler; KEDA starts Jobs by a number of Prometheus.
/// Here that is the number of actors that would keep the learner busy, by the share of the time that it
/// computes.
fn autoscaling(manifests: &Manifests<'_>) -> anyhow::Result<Component> {
    let actors = manifests.ring.of(Role::Actor).processes;
    let run = &manifests.name;
    let query = format!(
        "sum(rlhf_coordinator_members_connected{{role=\"actor\",run=\"{run}\"}}) \
         / clamp(max(rate(rlhf_learner_step_seconds_sum{{phase=\"all\",run=\"{run}\"}}[10m])), 0.1, 1) - {actors}"
    );
    let trigger = json!({
        "type": "prometheus",
        "metadata": { "serverAddress": PROMETHEUS, "query": query, "threshold": "1" },
    });
    let mut template = pod::template(manifests, Role::Actor)?;
    // No index leads to such a pod's name, and no Job of the ring counts it.
    template["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("autoscaling");
    let spec = json!({
        "jobTargetRef": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 600,
            "template": template,
        },
        "minReplicaCount": 0,
        "maxReplicaCount": ACTORS_ADDED_LIMIT,
        "pollingInterval": 60,
        "successfulJobsHistoryLimit": 2,
        "failedJobsHistoryLimit": 10,
        "triggers": [trigger],
    });
    let name = format!("{}-further", manifests.name_of(Role::Actor));
    let scaled = manifests.object_of(Role::Actor, SCALED_JOB, &name, json!({ "spec": spec }));
    Ok(Component { objects: vec![scaled], ..Component::default() })
}
