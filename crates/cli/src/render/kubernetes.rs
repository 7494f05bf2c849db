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
//! the working folder, so that the recipe's relative paths hold.

mod pod;

use anyhow::Context as _;
use serde_json::{Value, json};
use service::BadInput;

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
const NETWORK_POLICY: Kind = Kind { api_version: "networking.k8s.io/v1", kind: "NetworkPolicy" };

/// Pods of a role that may die of themselves, all in all, before its Job is given up. Those that Kubernetes
/// itself takes away do not count.
const DEATHS_LIMIT: u32 = 100;

/// A kind of Kubernetes object.
#[derive(Debug, Clone, Copy)]
struct Kind {
    api_version: &'static str,
    kind: &'static str,
}

/// Manifests for Kubernetes (1.28 or newer): `kubectl apply -f DIR`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    ring: RingOptions,
    /// Image that holds the binaries; deploy/docker builds one.
    #[arg(long)]
    image: String,
    /// PersistentVolumeClaim of the folder that all pods share (ReadWriteMany): models, data and checkpoints.
    #[arg(long, value_name = "NAME")]
    volume_claim: String,
    /// Where pods see that folder. It is their working folder: relative paths of the recipe begin there.
    #[arg(long, value_name = "PATH", default_value = "/data")]
    mount_path: String,
    /// Namespace written into the manifests; none where not given: `kubectl -n` decides.
    #[arg(long)]
    namespace: Option<String>,
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
        let coordinator = format!("{name}-coordinator:{COORDINATOR_PORT}");
        for role in [Role::RewardServer, Role::Learner, Role::Actor] {
            ring.set(role, "coordinator", coordinator.clone());
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
        if !ring.recipe.security.insecure {
            for role in Role::ALL {
                ring.set(role, "service.security.token_file", pod::TOKEN_FILE);
            }
        }
        ring.check(pod::examples_of)?;
        Ok(Self { options, ring, name })
    }

    fn files(&self) -> anyhow::Result<Vec<RenderedFile>> {
        let files = [
            ("config.yaml", vec![self.config_map()?]),
            (
                "coordinator.yaml",
                vec![self.coordinator_service(), self.journal_claim(), self.job(Role::Coordinator)?],
            ),
            ("reward-servers.yaml", self.with_budget(Role::RewardServer)?),
            ("learner.yaml", [vec![self.learner_service()], self.with_budget(Role::Learner)?].concat()),
            ("actors.yaml", vec![self.job(Role::Actor)?]),
            ("network.yaml", self.network_policies()),
        ];
        files.into_iter().map(|(name, objects)| self.file(name, &objects)).collect()
    }

    fn file(&self, name: &str, objects: &[Value]) -> anyhow::Result<RenderedFile> {
        let documents: Result<Vec<String>, _> = objects.iter().map(yaml_serde::to_string).collect();
        let documents = documents.with_context(|| format!("write {name}"))?;
        let text = format!("# {}\n{}", self.ring.origin("k8s"), documents.join("---\n"));
        Ok(RenderedFile::new(name, text))
    }

    /// An object with its name and labels.
    fn object(&self, kind: Kind, name: &str, labels: &Value, rest: Value) -> Value {
        let mut metadata = json!({ "name": name, "labels": labels });
        if let Some(namespace) = &self.options.namespace {
            metadata["namespace"] = json!(namespace);
        }
        let Kind { api_version, kind } = kind;
        let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata });
        if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
            object.extend(rest);
        }
        object
    }

    /// The Secret with a token file for each role, where there is one: `sluice token roles` writes the files.
    fn token_secret(&self) -> Option<String> {
        (!self.ring.recipe.security.insecure).then(|| format!("{}-tokens", self.name))
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

    fn config_map(&self) -> anyhow::Result<Value> {
        let mut data = json!({});
        for role in Role::ALL {
            data[format!("{}.toml", role.name())] = json!(self.ring.config_text(role)?);
        }
        let name = format!("{}-config", self.name);
        Ok(self.object(CONFIG_MAP, &name, &self.ring_labels(), json!({ "data": data })))
    }

    fn coordinator_service(&self) -> Value {
        let labels = self.labels(Role::Coordinator);
        let spec = json!({
            "selector": labels,
            "ports": [port("grpc", COORDINATOR_PORT), port("metrics", METRICS_PORT)],
        });
        self.object(SERVICE, &self.name_of(Role::Coordinator), &labels, json!({ "spec": spec }))
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
        self.object(SERVICE, &name, &self.labels(Role::Learner), json!({ "spec": spec }))
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
                },
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            ] },
            "template": pod::template(self, role)?,
        });
        Ok(self.object(JOB, &self.name_of(role), &self.labels(role), json!({ "spec": spec })))
    }

    /// The coordinator's volume. It outlives the Job: with it the run goes on.
    fn journal_claim(&self) -> Value {
        let spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": self.options.journal_size } },
        });
        let labels = self.labels(Role::Coordinator);
        self.object(VOLUME_CLAIM, &format!("{}-journal", self.name), &labels, json!({ "spec": spec }))
    }

    /// A Job whose pods a node's drain may take one at a time. What has one pod needs no budget.
    fn with_budget(&self, role: Role) -> anyhow::Result<Vec<Value>> {
        let (mut objects, labels) = (vec![self.job(role)?], self.labels(role));
        let others = self.ring.of(role).processes - 1;
        if others > 0 {
            // Of Jobs only this form of a budget is heeded.
            let spec = json!({ "minAvailable": others, "selector": { "matchLabels": labels } });
            let budget =
                self.object(DISRUPTION_BUDGET, &self.name_of(role), &labels, json!({ "spec": spec }));
            objects.push(budget);
        }
        Ok(objects)
    }

    /// Only the ring's own pods reach its ports, and everybody the metrics, which ask for a token. What c10d
    /// opens between learner and actors knows no tokens: this is all that guards it. What
    /// grades code reaches nobody but the ring, unless a scorer asks somebody else.
    fn network_policies(&self) -> Vec<Value> {
        let ring = json!({ "podSelector": { "matchLabels": self.ring_labels() } });
        let ingress = json!({
            "podSelector": { "matchLabels": self.ring_labels() },
            "policyTypes": ["Ingress"],
            "ingress": [
                { "from": [ring] },
                { "from": [{ "namespaceSelector": {} }], "ports": [{ "protocol": "TCP", "port": METRICS_PORT }] },
            ],
        });
        let mut policies = vec![self.object(
            NETWORK_POLICY,
            &format!("{}-ring", self.name),
            &self.ring_labels(),
            json!({ "spec": ingress }),
        )];
        if !self.ring.recipe.reward_server.may_ask_others() {
            let labels = self.labels(Role::RewardServer);
            let names = json!([{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }]);
            let egress = json!({
                "podSelector": { "matchLabels": labels },
                "policyTypes": ["Egress"],
                "egress": [{ "to": [ring] }, { "ports": names }],
            });
            let name = self.name_of(Role::RewardServer);
            policies.push(self.object(NETWORK_POLICY, &name, &labels, json!({ "spec": egress })));
        }
        policies
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
