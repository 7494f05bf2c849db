//! Manifests for Kubernetes.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize as _;
use serde_json::Value;

use super::{Project, RECIPE, load};

const OPTIONS: &[&str] = &["--image", "sluice:1", "--volume-claim", "shared", "--namespace", "rl"];

/// Everything that was rendered, by kind and name.
struct Objects(BTreeMap<(String, String), Value>);

impl Objects {
    fn render(project: &Project, options: &[&str]) -> Self {
        project.render("k8s", &[OPTIONS, options].concat());
        let mut objects = BTreeMap::new();
        let base = yaml_serde::from_str::<Value>(&project.read("out/kustomization.yaml")).unwrap();
        let files = base["resources"].as_array().unwrap().iter().map(|file| file.as_str().unwrap());
        for path in files.map(|file| project.path("out").join(file)) {
            let text = fs::read_to_string(&path).unwrap();
            for document in yaml_serde::Deserializer::from_str(&text) {
                let object = Value::deserialize(document).unwrap();
                let name = |value: &Value| value.as_str().unwrap().to_owned();
                let key = (name(&object["kind"]), name(&object["metadata"]["name"]));
                assert!(objects.insert(key, object).is_none(), "{} holds it twice", path.display());
            }
        }
        Self(objects)
    }

    fn get(&self, kind: &str, name: &str) -> &Value {
        &self.0[&(kind.to_owned(), name.to_owned())]
    }

    fn workload(&self, role: &str) -> &Value {
        self.get("Job", &format!("ring-1-{role}"))
    }

    fn pod(&self, role: &str) -> &Value {
        &self.workload(role)["spec"]["template"]
    }

    /// A role's configuration as one of its pods reads it.
    fn config<C: service::Config>(&self, role: &str) -> C {
        let container = &self.pod(role)["spec"]["containers"][0];
        let arguments: Vec<&str> =
            container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
        assert_eq!(container["command"][0], format!("sluice-{role}"));
        assert_eq!(arguments[..2], ["--config", &format!("/etc/sluice/{role}.toml")]);
        let settings = arguments[2..].chunks(2).map(|pair| {
            assert_eq!(pair[0], "--set");
            let value = pair[1].replace("$(POD_NAME)", &format!("ring-1-{role}-7f9c6d5b4-x2x4z"));
            let value = value.replace("$(POD_IP)", "10.1.2.3").replace("$(RANK)", "1");
            assert!(!value.contains('$'), "{value} refers to a variable that no pod has");
            value
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("role.toml");
        let data = &self.get("ConfigMap", &format!("ring-1-{role}"))["data"];
        fs::write(&file, data[format!("{role}.toml")].as_str().unwrap()).unwrap();
        load(&file, &settings.collect::<Vec<_>>())
    }
}

const ROLES: [&str; 4] = ["coordinator", "reward-server", "learner", "actor"];

#[test]
fn every_role_accepts_its_configuration() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &["--resources", "learner=6,8Gi"]);

    let coordinator: coordinator::Config = objects.config("coordinator");
    assert_eq!(coordinator.run, "Ring_1");
    assert_eq!((coordinator.seed, coordinator.batches), (3, 5));
    assert!(coordinator.send_filtered, "the critic trains on what the filter leaves out");
    assert_eq!(coordinator.listen.to_string(), "0.0.0.0:7700");
    assert!(coordinator.journal.starts_with("/journal"));

    let reward_server: reward_server::Config = objects.config("reward-server");
    assert_eq!(reward_server.member, "ring-1-reward-server-7f9c6d5b4-x2x4z");
    assert_eq!(reward_server.coordinator.as_deref(), Some("ring-1-coordinator:7700"));
    assert_eq!(reward_server.advertise.as_deref(), Some("10.1.2.3:7710"));
    assert_eq!(reward_server.listen.port(), 7710);
    assert!(reward_server.deterministic, "a deterministic run's rewards are");
    let text =
        objects.get("ConfigMap", "ring-1-reward-server")["data"]["reward-server.toml"].as_str().unwrap();
    assert!(!text.contains("workers"), "the number of workers is for the node to say: {text}");

    let learner: learner::Config = objects.config("learner");
    assert_eq!((learner.rank, learner.world_size, learner.threads), (1, 2, 6));
    assert_eq!(learner.advertise, "10.1.2.3");
    assert_eq!(learner.rendezvous, "ring-1-learner-0:7730");
    assert_eq!(learner.checkpoints.to_str(), Some("runs/Ring_1/ring/checkpoints"));
    assert_eq!(learner.ppo.seed, 3);

    let actor: actor::Config = objects.config("actor");
    assert_eq!(actor.coordinator, "ring-1-coordinator:7700");
    assert_eq!(actor.engine.threads, 4);
    for service in [&coordinator.service, &reward_server.service, &learner.service, &actor.service] {
        assert_eq!(service.listen_metrics.to_string(), "0.0.0.0:9464");
    }
}

#[test]
fn a_pod_is_given_its_own_roles_tokens() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &[]);
    for role in ROLES {
        let spec = &objects.pod(role)["spec"];
        let volumes = spec["volumes"].as_array().unwrap();
        let tokens = volumes.iter().find(|volume| volume["name"] == "tokens").unwrap();
        assert_eq!(tokens["secret"]["secretName"], "ring-1-tokens");
        assert_eq!(tokens["secret"]["items"], serde_json::json!([{ "key": role, "path": "token" }]));
        let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["name"] == "tokens").unwrap();
        assert_eq!(
            (mount["mountPath"].as_str(), mount["readOnly"].as_bool()),
            (Some("/etc/sluice-tokens"), Some(true))
        );
    }
    let actor: actor::Config = objects.config("actor");
    let file = actor.service.security.token_file.unwrap();
    assert_eq!(file.to_str(), Some("/etc/sluice-tokens/token"));

    let open = Project::new(&format!("{RECIPE}\n[security]\ninsecure = true\n"));
    let objects = Objects::render(&open, &[]);
    let actor: actor::Config = objects.config("actor");
    assert!(actor.service.security.insecure && actor.service.security.token_file.is_none());
    let volumes = objects.pod("actor")["spec"]["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["name"] != "tokens"));
}

#[test]
fn a_pod_is_given_its_own_roles_certificate_and_asks_for_no_token_besides() {
    let project = Project::new(&format!("{RECIPE}\n[security]\ncertificates = \"certs\"\n"));
    let objects = Objects::render(&project, &[]);
    for role in ROLES {
        let spec = &objects.pod(role)["spec"];
        let volumes = spec["volumes"].as_array().unwrap();
        let named = |name: &str| volumes.iter().find(|volume| volume["name"] == name);
        assert!(named("tokens").is_none(), "{role}");
        let secret = &named("certificates").unwrap()["secret"];
        assert_eq!(secret["secretName"], "ring-1-certificates");
        assert_eq!(secret["defaultMode"], 0o440);
        let items: Vec<&str> =
            secret["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap()).collect();
        assert_eq!(items, ["ca.pem", &format!("{role}.pem"), &format!("{role}.key")], "no other's key");
        let container = &spec["containers"][0];
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["name"] == "certificates").unwrap();
        assert_eq!(
            (mount["mountPath"].as_str(), mount["readOnly"].as_bool()),
            (Some("/etc/sluice-certificates"), Some(true))
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS", "{role} {probe}");
        }
    }
    let actor: actor::Config = objects.config("actor");
    let security = actor.service.security;
    assert_eq!(security.certificates.unwrap().to_str(), Some("/etc/sluice-certificates"));
    assert_eq!(security.token_file, None);
    // Each role's pages are known by its own name, and Prometheus is an observer.
    let monitors = project.read("out/components/monitoring/objects.yaml");
    for role in ROLES {
        assert!(monitors.contains(&format!("serverName: {role}.sluice.internal")), "{monitors}");
    }
    assert_eq!(monitors.matches("key: observer.key").count(), ROLES.len());
    assert_eq!(monitors.matches("scheme: https").count(), ROLES.len());

    // Where the recipe names both, both are there.
    let security = "[security]\ncertificates = \"certs\"\ntoken_file = \"token\"\n";
    let both = Project::new(&format!("{RECIPE}\n{security}"));
    let objects = Objects::render(&both, &[]);
    let actor: actor::Config = objects.config("actor");
    assert!(actor.service.security.certificates.is_some() && actor.service.security.token_file.is_some());
}

#[test]
fn the_coordinator_can_have_a_small_image() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &["--coordinator-image", "sluice:tools"]);
    for role in ROLES {
        let image = objects.pod(role)["spec"]["containers"][0]["image"].as_str();
        assert_eq!(image, Some(if role == "coordinator" { "sluice:tools" } else { "sluice:1" }), "{role}");
    }
}

#[test]
fn the_tiny_coder_example_can_be_rendered() {
    let example = include_str!("../../../../examples/tiny-coder/recipe.toml");
    for ring in ["pf-ppo", "ppo-m"] {
        let project = Project::new(example);
        project.render("k8s", &[OPTIONS, &["--ring", ring]].concat());
        project.render("slurm", &["--ring", ring]);
    }
}

#[test]
fn all_objects_are_there_and_named_for_each_other() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &[]);
    let mut kinds = BTreeMap::new();
    for ((kind, _), object) in &objects.0 {
        *kinds.entry(kind.as_str()).or_insert(0) += 1;
        assert_eq!(object["metadata"]["namespace"], "rl");
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/instance"], "ring-1");
    }
    let expected = [
        ("ConfigMap", 4),
        ("Job", 4),
        ("NetworkPolicy", 8),
        ("PersistentVolumeClaim", 1),
        ("PodDisruptionBudget", 2),
        ("Service", 2),
    ];
    assert_eq!(kinds, expected.into());
    for (role, processes) in ROLES.into_iter().zip([1, 2, 2, 3]) {
        let job = &objects.workload(role)["spec"];
        assert_eq!((&job["completions"], &job["parallelism"]), (&processes.into(), &processes.into()));
        assert_eq!(job["completionMode"], "Indexed");
    }
    // Rank 0's service is called like its pod, and selects it.
    let service = objects.get("Service", "ring-1-learner-0");
    let selector = service["spec"]["selector"].as_object().unwrap();
    assert_eq!(selector["batch.kubernetes.io/job-completion-index"], "0");
    let labels = &objects.pod("learner")["metadata"]["labels"];
    assert!(selector.iter().all(|(key, value)| key.starts_with("batch.") || &labels[key] == value));
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    let volumes = objects.pod("coordinator")["spec"]["volumes"].as_array().unwrap();
    let claimed = |volume: &&Value| volume["persistentVolumeClaim"]["claimName"] == "ring-1-journal";
    assert_eq!(volumes.iter().find(claimed).unwrap()["name"], "journal");
    objects.get("PersistentVolumeClaim", "ring-1-journal");
    // Every port that a service leads to has its name in the container.
    for (service, role) in [("ring-1-learner-0", "learner"), ("ring-1-coordinator", "coordinator")] {
        let ports = objects.pod(role)["spec"]["containers"][0]["ports"].as_array().unwrap();
        for port in objects.get("Service", service)["spec"]["ports"].as_array().unwrap() {
            let named = ports.iter().find(|named| named["name"] == port["targetPort"]);
            assert_eq!(named.unwrap()["containerPort"], port["port"]);
        }
    }
}

/// What a Job does about a container that ended with this code, as Kubernetes goes through the rules.
fn action(job: &Value, code: i64) -> &str {
    let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().unwrap();
    let matches = |rule: &&Value| {
        let on = &rule["onExitCodes"];
        on["operator"] == "In" && on["values"].as_array().is_some_and(|values| values.contains(&code.into()))
    };
    rules.iter().find(matches).map_or("Count", |rule| rule["action"].as_str().unwrap())
}

#[test]
fn no_pod_is_started_again_that_would_end_in_the_same_way() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &[]);
    for role in ROLES {
        let job = objects.workload(role);
        // Only of pods that are never started again by themselves does a Job heed the exit code.
        assert_eq!(objects.pod(role)["spec"]["restartPolicy"], "Never", "{role}");
        assert_eq!(
            [1, 2, 3, 137, 143].map(|code| action(job, code)),
            ["Count", "FailJob", "FailJob", "Count", "Count"]
        );
        let rules = &job["spec"]["podFailurePolicy"]["rules"];
        assert_eq!(
            rules[0]["onExitCodes"]["containerName"],
            objects.pod(role)["spec"]["containers"][0]["name"]
        );
        assert_eq!(rules[1]["action"], "Ignore", "a node that is drained is nobody's fault");
        assert_eq!(rules[1]["onPodConditions"][0]["type"], "DisruptionTarget");
        assert!(job["spec"]["backoffLimit"].as_u64().unwrap() > 6);
        // Told to leave it has not done its work: with 0 the Job would be complete.
        let text = objects.get("ConfigMap", &format!("ring-1-{role}"))["data"][format!("{role}.toml")]
            .as_str()
            .unwrap();
        assert!(text.contains("stopped_code = 143"), "{role}: {text}");
    }
}

#[test]
fn pods_are_restricted_and_have_time_to_drain() {
    let project = Project::new(&format!("{RECIPE}\n[learner.service]\ngrace_period = '5m'\n"));
    let objects = Objects::render(&project, &["--drain-seconds", "60"]);
    for role in ROLES {
        let spec = &objects.pod(role)["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(
            spec["enableServiceLinks"], false,
            "services would set variables that configure processes"
        );
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let seconds = if role == "learner" { 315 } else { 75 };
        assert_eq!(spec["terminationGracePeriodSeconds"], seconds);
        let container = &spec["containers"][0];
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert_eq!(container["resources"]["requests"], container["resources"]["limits"]);
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health");
        assert_eq!(container["workingDir"], "/data");
        let names = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        let (mut volumes, mut mounts) = (names(&spec["volumes"]), names(&container["volumeMounts"]));
        volumes.sort();
        mounts.sort();
        assert_eq!(volumes, mounts, "{role}");
    }
}

#[test]
fn gpus_and_memory_are_asked_for() {
    let project = Project::new(RECIPE);
    let options = [
        &["--set", "learner.device=cuda", "--gpus-per-learner-rank", "1"][..],
        &["--set", "reward_server.models.device=cuda", "--gpus-per-reward-server", "1"],
        &["--resources", "3,1500Mi", "--resources", "learner=12,96Gi"],
    ];
    let objects = Objects::render(&project, &options.concat());
    let limits = |role: &str| objects.pod(role)["spec"]["containers"][0]["resources"]["limits"].clone();
    assert_eq!(
        limits("learner"),
        serde_json::json!({ "cpu": "12", "memory": "96Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": 1 })
    );
    assert_eq!(limits("reward-server")["nvidia.com/gpu"], 1);
    let expected = serde_json::json!({ "cpu": "3", "memory": "1500Mi", "ephemeral-storage": "8Gi" });
    assert_eq!(limits("actor"), expected);
    let tolerated = |role: &str| objects.pod(role)["spec"]["tolerations"][0]["key"].clone();
    assert_eq!(tolerated("learner"), "nvidia.com/gpu");
    assert_eq!(tolerated("actor"), Value::Null);
}

#[test]
fn pods_change_with_their_own_configuration_only() {
    let project = Project::new(RECIPE);
    let hash = |options: &[&str], role: &str| {
        let objects = Objects::render(&project, options);
        objects.pod(role)["metadata"]["annotations"]["sluice/config"].clone()
    };
    let change = ["--set", "learner.checkpoint_every=3"];
    assert_ne!(hash(&[], "learner"), hash(&change, "learner"));
    assert_eq!(hash(&[], "actor"), hash(&change, "actor"));
}

/// The peers and ports of a policy's rules, in short.
fn rules(objects: &Objects, name: &str, direction: &str) -> Vec<(Vec<String>, Vec<u64>)> {
    let spec = &objects.get("NetworkPolicy", name)["spec"];
    let side = if direction == "ingress" { "from" } else { "to" };
    let rules = spec[direction].as_array().map_or(&[][..], Vec::as_slice);
    let described = rules.iter().map(|rule| {
        let peers = rule[side].as_array().unwrap().iter().map(|peer| {
            let pods = &peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"];
            let names = &peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
            [pods, names, &peer["ipBlock"]["cidr"]].map(|part| part.as_str().unwrap_or_default()).join("|")
        });
        let ports = rule["ports"].as_array().map_or(&[][..], Vec::as_slice);
        (peers.collect(), ports.iter().map(|port| port["port"].as_u64().unwrap()).collect())
    });
    described.collect()
}

fn rule(peers: &[&str], ports: &[u64]) -> (Vec<String>, Vec<u64>) {
    (peers.iter().map(|peer| (*peer).to_owned()).collect(), ports.to_vec())
}

#[test]
fn every_port_is_reached_by_those_who_need_it() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &[]);
    for role in ROLES {
        let (own, metrics) = (format!("ring-1-{role}"), format!("ring-1-{role}-metrics"));
        for name in [&own, &metrics] {
            let spec = &objects.get("NetworkPolicy", name)["spec"];
            assert_eq!(spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"], role);
            assert_eq!(spec["policyTypes"][0], "Ingress");
        }
        assert_eq!(rules(&objects, &metrics, "ingress"), [rule(&["||"], &[9464])]);
        let expected = match role {
            "coordinator" => rule(&["coordinator||", "reward-server||", "learner||", "actor||"], &[7700]),
            "reward-server" => rule(&["actor||"], &[7710]),
            // What c10d opens has ports of its own.
            _ => rule(&["learner||", "actor||"], &[]),
        };
        assert_eq!(rules(&objects, &own, "ingress"), [expected], "{role}");
    }
}

#[test]
fn who_grades_code_reaches_nobody_else() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &[]);
    let policy = objects.get("NetworkPolicy", "ring-1-reward-server");
    assert_eq!(policy["spec"]["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
    let expected =
        [rule(&["coordinator||"], &[7700]), rule(&["|kube-system|", "||169.254.20.10/32"], &[53, 53])];
    assert_eq!(rules(&objects, "ring-1-reward-server", "egress"), expected);
    // It reads what is shared, and writes nothing there.
    for role in ROLES {
        let spec = &objects.pod(role)["spec"];
        let named =
            |list: &Value| list.as_array().unwrap().iter().find(|item| item["name"] == "shared").cloned();
        let mount = named(&spec["containers"][0]["volumeMounts"]).unwrap();
        let volume = named(&spec["volumes"]).unwrap();
        assert_eq!(mount["readOnly"], role != "learner", "{role}");
        assert_eq!(volume["persistentVolumeClaim"]["readOnly"] == true, role != "learner", "{role}");
    }
    let remote = "[[reward_server.scorers]]\nkind = 'http'\nurl = 'http://scores.example/get_reward'\n";
    let recipe = RECIPE.replace("[reward_server.sandbox]", &format!("{remote}[reward_server.sandbox]"));
    let project = Project::new(&recipe);
    let objects = Objects::render(&project, &[]);
    let policy = objects.get("NetworkPolicy", "ring-1-reward-server");
    assert_eq!(policy["spec"]["policyTypes"], serde_json::json!(["Ingress"]), "a scorer asks others");
}

#[test]
fn reward_servers_can_have_a_namespace_of_their_own() {
    let project = Project::new(RECIPE);
    let objects = Objects::render(&project, &["--reward-namespace", "graded"]);
    for ((kind, name), object) in &objects.0 {
        let own = name.starts_with("ring-1-reward-server");
        let namespace = object["metadata"]["namespace"].as_str();
        assert_eq!(namespace, Some(if own { "graded" } else { "rl" }), "{kind} {name}");
    }
    let config: reward_server::Config = objects.config("reward-server");
    assert_eq!(config.coordinator.as_deref(), Some("ring-1-coordinator.rl:7700"));
    let config: actor::Config = objects.config("actor");
    assert_eq!(config.coordinator, "ring-1-coordinator:7700");
    let egress = rules(&objects, "ring-1-reward-server", "egress");
    assert_eq!(egress[0], rule(&["coordinator|rl|"], &[7700]));
    assert_eq!(rules(&objects, "ring-1-reward-server", "ingress"), [rule(&["actor|rl|"], &[7710])]);
    let from_graded = rule(&["coordinator||", "reward-server|graded|", "learner||", "actor||"], &[7700]);
    assert_eq!(rules(&objects, "ring-1-coordinator", "ingress"), [from_graded]);
    let output = project
        .sluice(&["render", "k8s", "recipe.toml", "--output", "out", "--reward-namespace", "graded"])
        .args(["--image", "x", "--volume-claim", "y"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "without a namespace nobody can say where the others are");
}
