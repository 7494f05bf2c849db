//! The ring as Kubernetes objects, one file a role.
//!
//! | role           | object                          | found under                                            |
//! |----------------|---------------------------------|--------------------------------------------------------|
//! | coordinator    | Job of 1, a volume of its own   | Service `NAME-coordinator`                             |
//! | reward servers | Job, Indexed                    | the pod's address, which each tells the coordinator    |
//! | learner        | Job, Indexed, rank = index      | rank 0: its pod's address; for the other ranks Service `NAME-learner-0` |
//! | actors         | Job, Indexed                    | nobody looks for them                                  |
//!
//! Jobs, because no other workload heeds an exit code: a role that ends with 0 has done its work, one that
//! ends with 2 or 3 would end in the same way again and fails its Job at once, and any other end is followed
//! by a new pod. A pod that is told to leave while the run goes on ends with [`pod::STOPPED_CODE`]: it has
//! not done its work, and is replaced.
//!
//! The Service of rank 0 is called like its pod's host on purpose: the name leads the pod to itself at once
//! (`/etc/hosts`), and everybody else to the pod (DNS), so that rank 0 can listen on the name that the others
//! connect to.
//!
//! Models, data and checkpoints lie on one volume that all roles but the coordinator's journal share; it is
//! the working folder, so that the recipe's relative paths hold. Only the learner may write there.
//!
//! The whole is a base for Kustomize: what a place needs beside it (node selectors, tolerations, secrets,
//! queues) is said by the place, over what was rendered; what many need lies ready as components.

mod components;
mod network;
mod pod;

use anyhow::Context as _;
use serde_json::{Value, json};
use service::{BadInput, SecurityConfig};

use super::options::RingOptions;
use super::ring::Ring;
use super::{RenderedFile, write};
use crate::recipe::Role;

const COORDINATOR_PORT: u16 = 7700;
const REWARD_PORT: u16 = 7710;
const WEIGHTS_PORT: u16 = 7720;
const RENDEZVOUS_PORT: u16 = 7730;
const METRICS_PORT: u16 = 9464;

/// Longest prefix of names: a pod's name is a member's name too, and those have at most 64 characters.
const NAME_BYTES_LIMIT: usize = 30;

const CONFIG_MAP: Kind = Kind { api_version: "v1", kind: "ConfigMap" };
const SERVICE: Kind = Kind { api_version: "v1", kind: "Service" };
const VOLUME_CLAIM: Kind = Kind { api_version: "v1", kind: "PersistentVolumeClaim" };
const JOB: Kind = Kind { api_version: "batch/v1", kind: "Job" };
const DISRUPTION_BUDGET: Kind = Kind { api_version: "policy/v1", kind: "PodDisruptionBudget" };

/// Pods of a role that may die of themselves, all in all, before its Job is given up. Those that Kubernetes
/// itself takes away do not count.
const DEATHS_LIMIT: u32 = 100;

/// A kind of Kubernetes object.
#[derive(Debug, Clone, Copy)]
struct Kind {
    api_version: &'static str,
    kind: &'static str,
}

/// Manifests for Kubernetes (1.28 or newer): `kubectl apply -k DIR`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    ring: RingOptions,
    /// Image that holds the binaries; deploy/docker builds one.
    #[arg(long)]
    image: String,
    /// Image of the coordinator, which needs no libtorch, where it is another one (`--target tools` of
    /// deploy/docker).
    #[arg(long, value_name = "IMAGE")]
    coordinator_image: Option<String>,
    /// PersistentVolumeClaim of the folder that all pods share (ReadWriteMany): models, data and checkpoints.
    #[arg(long, value_name = "NAME")]
    volume_claim: String,
    /// Where pods see that folder. It is their working folder: relative paths of the recipe begin there.
    #[arg(long, value_name = "PATH", default_value = "/data")]
    mount_path: String,
    /// Namespace written into the manifests; none where not given: `kubectl -n` decides.
    #[arg(long)]
    namespace: Option<String>,
    /// Namespace of the reward servers, which run code that nobody has read, where it is another one. It has
    /// a PersistentVolumeClaim and a Secret with the tokens of its own, of the same names.
    #[arg(long, value_name = "NAMESPACE", requires = "namespace")]
    reward_namespace: Option<String>,
    /// Prefix of all names; made from the run's name where not given.
    #[arg(long)]
    name: Option<String>,
    /// Size of the coordinator's volume for its journal.
    #[arg(long, value_name = "SIZE", default_value = "20Gi")]
    journal_size: String,
}

/// Renders a recipe's ring and writes the manifests.
///
/// # Errors
/// Names the place in the recipe, or the option, and what is wrong there.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let manifests = Manifests::new(options)?;
    write(&options.ring.output, &manifests.files()?)?;
    manifests.ring.mention_other_stages();
    Ok(())
}

/// What all manifests of a ring share.
struct Manifests<'a> {
    options: &'a Options,
    ring: Ring,
    /// Prefix of all names.
    name: String,
    secrets: Secrets,
}

/// What pods prove themselves by.
#[derive(Debug, Clone, Copy)]
struct Secrets {
    has_tokens: bool,
    has_certificates: bool,
}

impl Secrets {
    /// What a recipe asks for: where it says nothing, tokens.
    fn of(security: &SecurityConfig) -> Self {
        let has_certificates = security.certificates.is_some();
        let by_default = !security.insecure && !has_certificates;
        Self { has_tokens: security.token_file.is_some() || by_default, has_certificates }
    }
}

impl<'a> Manifests<'a> {
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let mut ring = Ring::read(&options.ring)?;
        let name = options.name.clone().unwrap_or_else(|| plain(&ring.recipe.name));
        check_name(&name)?;
        if !options.mount_path.starts_with('/') {
            let problem = format!("--mount-path is {:?}, must be absolute", options.mount_path);
            return Err(BadInput(problem).into());
        }
        for role in [Role::RewardServer, Role::Learner, Role::Actor] {
            ring.set(role, "coordinator", coordinator_address(options, &name, role));
        }
        ring.set_all("service.listen_metrics", &format!("0.0.0.0:{METRICS_PORT}"));
        for role in Role::ALL {
            ring.set(role, "service.stopped_code", i64::from(pod::STOPPED_CODE));
        }
        ring.set(Role::Coordinator, "listen", format!("0.0.0.0:{COORDINATOR_PORT}"));
        // On the coordinator's own volume, not on the one that all pods share.
        ring.set(Role::Coordinator, "journal", "/journal/events");
        ring.set(Role::Coordinator, "steps_file", "/journal/steps.jsonl");
        ring.set(Role::Coordinator, "samples.file", "/journal/samples.jsonl");
        ring.set(Role::RewardServer, "listen", format!("0.0.0.0:{REWARD_PORT}"));
        ring.set(Role::Learner, "listen", format!("0.0.0.0:{WEIGHTS_PORT}"));
        ring.set(Role::Actor, "listen_weights", format!("0.0.0.0:{WEIGHTS_PORT}"));
        if ring.of(Role::Learner).processes > 1 {
            ring.set(Role::Learner, "rendezvous", format!("{name}-learner-0:{RENDEZVOUS_PORT}"));
        }
        let secrets = Secrets::of(&ring.recipe.security);
        for role in Role::ALL {
            if secrets.has_tokens {
                ring.set(role, "service.security.token_file", pod::TOKEN_FILE);
            }
            if secrets.has_certificates {
                ring.set(role, "service.security.certificates", pod::CERTIFICATE_FOLDER);
            }
        }
        ring.check(pod::examples_of)?;
        Ok(Self { options, ring, name, secrets })
    }

    fn files(&self) -> anyhow::Result<Vec<RenderedFile>> {
        let objects = [
            ("config.yaml", self.config_maps()?),
            (
                "coordinator.yaml",
                vec![self.coordinator_service(), self.journal_claim(), self.job(Role::Coordinator)?],
            ),
            ("reward-servers.yaml", self.with_budget(Role::RewardServer)?),
            ("learner.yaml", [vec![self.learner_service()], self.with_budget(Role::Learner)?].concat()),
            ("actors.yaml", vec![self.job(Role::Actor)?]),
            ("network.yaml", network::policies(self)),
        ];
        let base = components::base(objects.iter().map(|(name, _)| *name));
        let mut files = vec![self.file("kustomization.yaml", &[base])?];
        for (name, objects) in objects {
            files.push(self.file(name, &objects)?);
        }
        files.extend(components::files(self)?);
        Ok(files)
    }

    fn file(&self, name: &str, objects: &[Value]) -> anyhow::Result<RenderedFile> {
        let documents: Result<Vec<String>, _> = objects.iter().map(yaml_serde::to_string).collect();
        let documents = documents.with_context(|| format!("write {name}"))?;
        let text = format!("# {}\n{}", self.ring.origin("k8s"), documents.join("---\n"));
        Ok(RenderedFile::new(name, text))
    }

    /// An object of the ring, in the ring's namespace.
    fn object(&self, kind: Kind, name: &str, rest: Value) -> Value {
        object(kind, name, self.options.namespace.as_deref(), self.ring_labels(), rest)
    }

    /// An object of a role, in the role's namespace.
    fn object_of(&self, role: Role, kind: Kind, name: &str, rest: Value) -> Value {
        object(kind, name, self.namespace_of(role), self.labels(role), rest)
    }

    /// Where a role's objects are.
    fn namespace_of(&self, role: Role) -> Option<&str> {
        namespace_of(self.options, role)
    }

    /// The Secret with a token file for each role, where there is one: `sluice token roles` writes the files.
    fn token_secret(&self) -> Option<String> {
        self.secrets.has_tokens.then(|| format!("{}-tokens", self.name))
    }

    /// The Secret with the certificates of all roles, where there is one: `sluice certs` writes such files.
    fn certificate_secret(&self) -> Option<String> {
        self.secrets.has_certificates.then(|| format!("{}-certificates", self.name))
    }

    fn name_of(&self, role: Role) -> String {
        format!("{}-{}", self.name, role.name())
    }

    /// What all objects of the ring carry.
    fn ring_labels(&self) -> Value {
        json!({ "app.kubernetes.io/name": "sluice", "app.kubernetes.io/instance": self.name })
    }

    /// What all objects of a role carry, and what selects its pods.
    fn labels(&self, role: Role) -> Value {
        let mut labels = self.ring_labels();
        labels["app.kubernetes.io/component"] = json!(role.name());
        labels
    }

    /// A role's configuration, for its own pods.
    fn config_maps(&self) -> anyhow::Result<Vec<Value>> {
        let mut config_maps = Vec::new();
        for role in Role::ALL {
            let mut data = json!({});
            data[format!("{}.toml", role.name())] = json!(self.ring.config_text(role)?);
            config_maps.push(self.object_of(role, CONFIG_MAP, &self.name_of(role), json!({ "data": data })));
        }
        Ok(config_maps)
    }

    fn coordinator_service(&self) -> Value {
        let role = Role::Coordinator;
        let spec = json!({
            "selector": self.labels(role),
            "ports": [port("grpc", COORDINATOR_PORT), port("metrics", METRICS_PORT)],
        });
        self.object_of(role, SERVICE, &self.name_of(role), json!({ "spec": spec }))
    }

    /// Leads to rank 0, ready or not: the ranks meet there before any of them can be ready.
    fn learner_service(&self) -> Value {
        let name = format!("{}-0", self.name_of(Role::Learner));
        let mut selector = self.labels(Role::Learner);
        selector["batch.kubernetes.io/job-completion-index"] = json!("0");
        let spec = json!({
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector,
            "ports": [port("weights", WEIGHTS_PORT), port("rendezvous", RENDEZVOUS_PORT)],
        });
        self.object_of(Role::Learner, SERVICE, &name, json!({ "spec": spec }))
    }

    /// The processes of a role, each an index of the Job.
    fn job(&self, role: Role) -> anyhow::Result<Value> {
        let processes = self.ring.of(role).processes;
        let spec = json!({
            "completionMode": "Indexed",
            // Equal, so that both can be changed together while the ring runs.
            "completions": processes,
            "parallelism": processes,
            "backoffLimit": DEATHS_LIMIT,
            "podFailurePolicy": { "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": role.name(), "operator": "In", "values": pod::FINAL_CODES,
                    },
                    // The schemas of 1.28 ask for it in every rule.
                    "onPodConditions": [],
                },
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            ] },
            "template": pod::template(self, role)?,
        });
        Ok(self.object_of(role, JOB, &self.name_of(role), json!({ "spec": spec })))
    }

    /// The coordinator's volume. It outlives the Job: with it the run goes on.
    fn journal_claim(&self) -> Value {
        let spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": self.options.journal_size } },
        });
        let name = format!("{}-journal", self.name);
        self.object_of(Role::Coordinator, VOLUME_CLAIM, &name, json!({ "spec": spec }))
    }

    /// A Job whose pods a node's drain may take one at a time. What has one pod needs no budget.
    fn with_budget(&self, role: Role) -> anyhow::Result<Vec<Value>> {
        let mut objects = vec![self.job(role)?];
        let others = self.ring.of(role).processes - 1;
        if others > 0 {
            // Of Jobs only this form of a budget is heeded.
            let spec = json!({ "minAvailable": others, "selector": { "matchLabels": self.labels(role) } });
            let budget = json!({ "spec": spec });
            objects.push(self.object_of(role, DISRUPTION_BUDGET, &self.name_of(role), budget));
        }
        Ok(objects)
    }
}

/// An object with its name, its labels, and the version that it was rendered by.
fn object(kind: Kind, name: &str, namespace: Option<&str>, mut labels: Value, rest: Value) -> Value {
    labels["app.kubernetes.io/version"] = json!(env!("CARGO_PKG_VERSION"));
    let mut metadata = json!({ "name": name, "labels": labels });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    let Kind { api_version, kind } = kind;
    let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    object
}

fn namespace_of(options: &Options, role: Role) -> Option<&str> {
    let own = options.reward_namespace.as_ref().filter(|_| role == Role::RewardServer);
    own.or(options.namespace.as_ref()).map(String::as_str)
}

/// Where a role finds the coordinator: from another namespace by its full name.
fn coordinator_address(options: &Options, name: &str, role: Role) -> String {
    let home = namespace_of(options, Role::Coordinator);
    match home {
        Some(home) if namespace_of(options, role) != Some(home) => {
            format!("{name}-coordinator.{home}:{COORDINATOR_PORT}")
        }
        _ => format!("{name}-coordinator:{COORDINATOR_PORT}"),
    }
}

fn port(name: &str, port: u16) -> Value {
    json!({ "name": name, "port": port, "targetPort": name })
}

/// A run's name as Kubernetes takes names.
fn plain(run: &str) -> String {
    let letters = run.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let name: String = letters.collect();
    let name = name.trim_matches('-');
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { name.to_owned() } else { format!("run-{name}") }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let sound = name.len() <= NAME_BYTES_LIMIT
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if sound {
        return Ok(());
    }
    let problem = format!(
        "{name:?} cannot begin the names of Kubernetes objects: give --name with at most {NAME_BYTES_LIMIT} lower-case \
         letters, digits and hyphens, a letter first"
    );
    Err(BadInput(problem).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_name_becomes_a_name_of_kubernetes() {
        for (run, expected) in
            [("tiny-coder", "tiny-coder"), ("Llama_3.1", "llama-3-1"), ("7b", "run-7b"), ("-x.", "x")]
        {
            assert_eq!(plain(run), expected);
            check_name(expected).unwrap();
        }
        for bad in ["", "7b", "a_b", "x-", "a-name-that-leaves-no-room-for-the-rest"] {
            assert!(check_name(bad).unwrap_err().to_string().contains("--name"), "{bad}");
        }
    }
}
