//! The pod of a role: one container that runs the role's binary, restricted as far as it goes.

use serde_json::{Value, json};

use super::{COORDINATOR_PORT, METRICS_PORT, Manifests, RENDEZVOUS_PORT, REWARD_PORT, WEIGHTS_PORT};
use crate::recipe::Role;

/// The user that the image runs as; files that pods share are its group's.
const USER_ID: u32 = 10001;
/// Exit codes of a role that would end in the same way again: bad input, and a run that was given up.
pub(super) const FINAL_CODES: [u8; 2] = [2, 3];
/// Exit code of a role that was told to leave: that of a process which SIGTERM ended.
pub(super) const STOPPED_CODE: u8 = 143;
/// What a pod gets beyond the time that its process takes to leave.
const LEAVE_MARGIN_SECONDS: u64 = 15;
/// How long a process may take from its start until it answers: it may read large models over the network.
const START_PROBE_LIMIT: u32 = 360;
/// Probes that may fail before a process is taken for hung, and before it is taken for not ready.
const LIVENESS_PROBE_LIMIT: u32 = 6;
const READINESS_PROBE_LIMIT: u32 = 3;

/// What a pod may write to its node: `/tmp`, and its log.
const EPHEMERAL_STORAGE: &str = "8Gi";

/// Where a pod finds its role's tokens, and the folder of that.
pub(super) const TOKEN_FILE: &str = "/etc/sluice-tokens/token";
const TOKEN_FOLDER: &str = "/etc/sluice-tokens";

/// Where a pod finds its role's certificate and key, and the authority's certificate.
pub(super) const CERTIFICATE_FOLDER: &str = "/etc/sluice-certificates";

/// What only the pod knows of its process's configuration: keys, and values as Kubernetes fills them in.
fn settings_of(role: Role) -> Vec<(&'static str, String)> {
    let name = ("member", "$(POD_NAME)".to_owned());
    match role {
        Role::Coordinator => Vec::new(),
        Role::RewardServer => vec![name, ("advertise", format!("$(POD_IP):{REWARD_PORT}"))],
        Role::Learner => vec![("rank", "$(RANK)".to_owned()), ("advertise", "$(POD_IP)".to_owned())],
        Role::Actor => vec![name, ("advertise", format!("$(POD_IP):{WEIGHTS_PORT}"))],
    }
}

/// The same as some pod could have it, for a check.
pub(super) fn examples_of(role: Role) -> Vec<(&'static str, toml::Value)> {
    settings_of(role).into_iter().map(|(key, value)| (key, example(&value))).collect()
}

fn example(value: &str) -> toml::Value {
    match value {
        "$(RANK)" => toml::Value::Integer(0),
        text => toml::Value::String(text.replace("$(POD_NAME)", "pod-0").replace("$(POD_IP)", "10.0.0.1")),
    }
}

/// The template of a role's pods.
pub(super) fn template(manifests: &Manifests<'_>, role: Role) -> anyhow::Result<Value> {
    let plan = manifests.ring.of(role);
    let config = manifests.ring.config_text(role)?;
    let metadata = json!({
        "labels": manifests.labels(role),
        "annotations": {
            // Another configuration makes other pods.
            "sluice/config": blake3::hash(config.as_bytes()).to_hex()[..16].to_owned(),
            "prometheus.io/scrape": "true",
            "prometheus.io/port": METRICS_PORT.to_string(),
            "prometheus.io/path": "/metrics",
        },
    });
    let mut volumes = json!([
        { "name": "config", "configMap": { "name": manifests.name_of(role) } },
        { "name": "shared", "persistentVolumeClaim": shared_claim(manifests, role) },
        { "name": "tmp", "emptyDir": { "sizeLimit": "4Gi" } },
    ]);
    // NCCL needs more shared memory than a container has.
    let shared_memory = json!({ "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": "4Gi" } });
    let claim = json!({ "claimName": format!("{}-journal", manifests.name) });
    let own = match role {
        Role::Coordinator => Some(json!({ "name": "journal", "persistentVolumeClaim": claim })),
        Role::Learner => Some(shared_memory),
        Role::RewardServer | Role::Actor => None,
    };
    // A pod is given what its role needs and no more: an actor cannot be taken for the learner.
    let tokens = manifests.token_secret().map(|secret| {
        let items = json!([{ "key": role.name(), "path": "token" }]);
        json!({ "name": "tokens", "secret": { "secretName": secret, "defaultMode": 0o440, "items": items } })
    });
    let certificates = manifests.certificate_secret().map(|secret| {
        let files = ["ca.pem".to_owned(), format!("{}.pem", role.name()), format!("{}.key", role.name())];
        let items = files.map(|file| json!({ "key": file, "path": file }));
        json!({ "name": "certificates", "secret": { "secretName": secret, "defaultMode": 0o440, "items": items } })
    });
    if let Value::Array(volumes) = &mut volumes {
        volumes.extend(own);
        volumes.extend(tokens);
        volumes.extend(certificates);
    }
    let mut spec = json!({
        // The Job decides by the exit code whether there is another pod.
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        // Services would put variables into the environment, from which processes are configured.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": plan.grace_period.as_secs() + LEAVE_MARGIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(manifests, role)],
        "volumes": volumes,
    });
    if plan.gpu {
        // Nodes with GPUs are often kept for pods that ask for one.
        spec["tolerations"] =
            json!([{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }]);
    }
    if plan.processes > 1 && role != Role::Learner {
        // A node that is lost should take few of them. The learner's ranks are all lost with one, and talk.
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": manifests.labels(role) },
        }]);
    }
    Ok(json!({ "metadata": metadata, "spec": spec }))
}

/// The folder that pods share. Checkpoints are the learner's; everybody else reads models and data.
fn shared_claim(manifests: &Manifests<'_>, role: Role) -> Value {
    let mut claim = json!({ "claimName": manifests.options.volume_claim });
    if role != Role::Learner {
        claim["readOnly"] = json!(true);
    }
    claim
}

fn container(manifests: &Manifests<'_>, role: Role) -> Value {
    let plan = manifests.ring.of(role);
    let mut arguments = vec!["--config".to_owned(), format!("/etc/sluice/{}.toml", role.name())];
    for (key, value) in settings_of(role) {
        arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
    }
    let own_image = manifests.options.coordinator_image.as_ref().filter(|_| role == Role::Coordinator);
    let mut container = json!({
        "name": role.name(),
        "image": own_image.unwrap_or(&manifests.options.image),
        "command": [role.binary()],
        "args": arguments,
        "workingDir": manifests.options.mount_path,
    });
    let variables = variables(role);
    if !variables.is_empty() {
        container["env"] = json!(variables);
    }
    container["ports"] = json!(ports(role));
    let mut given = json!({
        "cpu": plan.resources.cpus.to_string(),
        "memory": memory(plan.resources.memory_mib),
        "ephemeral-storage": EPHEMERAL_STORAGE,
    });
    if plan.gpu {
        given["nvidia.com/gpu"] = json!(1);
    }
    container["resources"] = json!({ "requests": given, "limits": given });
    container["startupProbe"] = probe(manifests, "/health", START_PROBE_LIMIT);
    container["livenessProbe"] = probe(manifests, "/health", LIVENESS_PROBE_LIMIT);
    container["readinessProbe"] = probe(manifests, ready_page(role, plan.processes), READINESS_PROBE_LIMIT);
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    });
    container["volumeMounts"] = json!(mounts(manifests, role));
    container
}

/// What `settings_of` refers to.
fn variables(role: Role) -> Vec<Value> {
    let settings = settings_of(role);
    let mut variables = Vec::new();
    for (name, path) in [
        ("POD_NAME", "metadata.name"),
        ("POD_IP", "status.podIP"),
        ("RANK", "metadata.labels['batch.kubernetes.io/job-completion-index']"),
    ] {
        if settings.iter().any(|(_, value)| value.contains(&format!("$({name})"))) {
            variables.push(json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
        }
    }
    variables
}

fn ports(role: Role) -> Vec<Value> {
    let own: &[(&str, u16)] = match role {
        Role::Coordinator => &[("grpc", COORDINATOR_PORT)],
        Role::RewardServer => &[("grpc", REWARD_PORT)],
        Role::Learner => &[("weights", WEIGHTS_PORT), ("rendezvous", RENDEZVOUS_PORT)],
        Role::Actor => &[("weights", WEIGHTS_PORT)],
    };
    let ports = own.iter().chain(&[("metrics", METRICS_PORT)]);
    ports.map(|(name, port)| json!({ "name": name, "containerPort": port })).collect()
}

fn mounts(manifests: &Manifests<'_>, role: Role) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "name": "config", "mountPath": "/etc/sluice", "readOnly": true }),
        json!({
            "name": "shared", "mountPath": manifests.options.mount_path, "readOnly": role != Role::Learner,
        }),
        json!({ "name": "tmp", "mountPath": "/tmp" }),
    ];
    if manifests.token_secret().is_some() {
        mounts.push(json!({ "name": "tokens", "mountPath": TOKEN_FOLDER, "readOnly": true }));
    }
    if manifests.certificate_secret().is_some() {
        mounts.push(json!({ "name": "certificates", "mountPath": CERTIFICATE_FOLDER, "readOnly": true }));
    }
    match role {
        Role::Coordinator => mounts.push(json!({ "name": "journal", "mountPath": "/journal" })),
        Role::Learner => mounts.push(json!({ "name": "shm", "mountPath": "/dev/shm" })),
        Role::RewardServer | Role::Actor => {}
    }
    mounts
}

/// The page that says whether a pod is ready. Of several ranks of the learner only the first ever says so,
/// and all have the same template; that they are alive has to do.
fn ready_page(role: Role, processes: usize) -> &'static str {
    if role == Role::Learner && processes > 1 { "/health" } else { "/ready" }
}

fn probe(manifests: &Manifests<'_>, page: &str, failures: u32) -> Value {
    let mut get = json!({ "path": page, "port": "metrics" });
    if manifests.certificate_secret().is_some() {
        get["scheme"] = json!("HTTPS");
    }
    json!({
        "httpGet": get,
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

/// Memory as Kubernetes writes it.
fn memory(mebibytes: u64) -> String {
    if mebibytes.is_multiple_of(1024) { format!("{}Gi", mebibytes / 1024) } else { format!("{mebibytes}Mi") }
}
