//! Who may reach whom: network policies of a ring.
//!
//! | port                         | who reaches it                                                       |
//! |------------------------------|----------------------------------------------------------------------|
//! | metrics of every pod         | everybody; the page asks for a token                                 |
//! | gRPC of the coordinator      | the ring                                                             |
//! | gRPC of a reward server      | actors                                                               |
//! | all ports of learner, actors | learner and actors: c10d opens ports of its own, and knows no tokens |
//!
//! A reward server, which runs code that nobody has read, reaches the coordinator and the cluster's names,
//! and nobody else, unless a scorer asks others.

use serde_json::{Value, json};

use super::{COORDINATOR_PORT, Kind, METRICS_PORT, Manifests, REWARD_PORT};
use crate::recipe::Role;

const NETWORK_POLICY: Kind = Kind { api_version: "networking.k8s.io/v1", kind: "NetworkPolicy" };
const NAMES_PORT: u16 = 53;
/// Where the names of a cluster are kept, and where a node's cache of them listens by convention.
const NAMES_NAMESPACE: &str = "kube-system";
const NAMES_CACHE: &str = "169.254.20.10/32";

/// The policies of a ring.
pub(super) fn policies(manifests: &Manifests<'_>) -> Vec<Value> {
    let everywhere = json!([{ "namespaceSelector": {} }]);
    let mut policies = Vec::new();
    for role in Role::ALL {
        let (labels, name) = (manifests.labels(role), format!("{}-metrics", manifests.name_of(role)));
        let rule = json!({ "from": everywhere, "ports": ports(METRICS_PORT) });
        policies.push(manifests.object_of(role, NETWORK_POLICY, &name, ingress(&labels, &rule)));
        let spec = match role {
            Role::Coordinator => {
                let ring: Vec<Value> =
                    Role::ALL.into_iter().map(|member| peer(manifests, role, member)).collect();
                ingress(&labels, &json!({ "from": ring, "ports": ports(COORDINATOR_PORT) }))
            }
            Role::RewardServer => graded(manifests, &labels),
            Role::Learner | Role::Actor => ingress(&labels, &json!({ "from": computing(manifests) })),
        };
        policies.push(manifests.object_of(role, NETWORK_POLICY, &manifests.name_of(role), spec));
    }
    policies
}

/// A reward server's policy, in both directions.
fn graded(manifests: &Manifests<'_>, labels: &Value) -> Value {
    let role = Role::RewardServer;
    let rule = json!({ "from": [peer(manifests, role, Role::Actor)], "ports": ports(REWARD_PORT) });
    let mut policy = ingress(labels, &rule);
    if !manifests.ring.recipe.reward_server.may_ask_others() {
        let names = json!([
            { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": NAMES_NAMESPACE } } },
            { "ipBlock": { "cidr": NAMES_CACHE } },
        ]);
        policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
        policy["spec"]["egress"] = json!([
            { "to": [peer(manifests, role, Role::Coordinator)], "ports": ports(COORDINATOR_PORT) },
            {
                "to": names,
                "ports": [
                    { "protocol": "UDP", "port": NAMES_PORT },
                    { "protocol": "TCP", "port": NAMES_PORT },
                ],
            },
        ]);
    }
    policy
}

/// Learner and actors, which are in one namespace.
fn computing(manifests: &Manifests<'_>) -> Vec<Value> {
    [Role::Learner, Role::Actor].map(|role| peer(manifests, Role::Learner, role)).into()
}

/// A role's pods, as a policy in the namespace of another role names them.
fn peer(manifests: &Manifests<'_>, seen_from: Role, role: Role) -> Value {
    let mut peer = json!({ "podSelector": { "matchLabels": manifests.labels(role) } });
    let namespace = manifests.namespace_of(role);
    if namespace != manifests.namespace_of(seen_from) {
        peer["namespaceSelector"] = json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace } });
    }
    peer
}

fn ingress(labels: &Value, rule: &Value) -> Value {
    let selector = json!({ "matchLabels": labels });
    json!({ "spec": { "podSelector": selector, "policyTypes": ["Ingress"], "ingress": [rule] } })
}

fn ports(port: u16) -> Value {
    json!([{ "protocol": "TCP", "port": port }])
}
