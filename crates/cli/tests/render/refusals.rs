//! Input that cannot be rendered: exit code 2, the place, and what to do.

use super::{Project, RECIPE};

const KUBERNETES: &[&str] = &["--image", "sluice:1", "--volume-claim", "shared"];

/// Renders for both targets, which both have to refuse with all of these words.
fn refused(recipe: &str, options: &[&str], words: &[&str]) {
    let project = Project::new(recipe);
    for (target, needed) in [("k8s", KUBERNETES), ("slurm", &[])] {
        let arguments = [&["render", target, "recipe.toml", "--output", "out"][..], needed, options].concat();
        let output = project.sluice(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{target}: {said}");
        for word in words {
            assert!(said.contains(word), "{target}: {said:?} should say {word:?}");
        }
        assert!(!project.path("out").exists(), "{target} wrote something");
    }
}

#[test]
fn a_bad_recipe_is_refused_with_its_line() {
    let misspelt = RECIPE.replace("batches = 5", "batchs = 5");
    refused(&misspelt, &[], &["recipe.toml:12: unknown key coordinator.batchs; did you mean"]);
    refused("name = 'x'\n[coordinator\n", &[], &["recipe.toml:2"]);
    refused(RECIPE, &["--set", "processes.actors=0"], &["processes.actors is 0"]);
}

#[test]
fn what_a_role_would_refuse_is_refused_here_and_all_of_it() {
    let words = [
        "coordinator: data.path is missing",
        "learner: policy is missing",
        "reward_server: scorers is empty",
    ];
    refused("name = 'x'\n", &[], &words);
    refused(RECIPE, &["--set", "coordinator.min_group=9"], &["coordinator: min_group is 9"]);
}

#[test]
fn a_recipe_without_a_ring_is_refused() {
    let stages = "[[stages]]\nname = 's'\n[stages.tokenizer]\ndata = []\noutput = 'x'\nvocab_size = 300\n";
    refused(&format!("{RECIPE}\n{stages}"), &[], &["recipe.toml: has 0 ring stages"]);
}

#[test]
fn devices_and_gpus_have_to_fit() {
    refused(
        RECIPE,
        &["--gpus-per-learner-rank", "1"],
        &["learner.device is cpu: add --set learner.device=cuda"],
    );
    refused(
        RECIPE,
        &["--set", "learner.device=cuda"],
        &["learner.device is cuda:0: give each process a GPU with --gpus-per-learner-rank 1"],
    );
    refused(
        RECIPE,
        &["--set", "actor.engine.device=cuda:1", "--gpus-per-actor", "1"],
        &["actor.engine.device is cuda:1"],
    );
    refused(
        RECIPE,
        &["--set", "learner.device=cuda", "--gpus-per-learner-rank", "4"],
        &["raise processes.learner_ranks instead"],
    );
}

#[test]
fn options_are_checked() {
    refused(RECIPE, &["--resources", "learner=lots"], &["8,32Gi"]);
    let project = Project::new(RECIPE);
    let refused = |arguments: &[&str], word: &str| {
        let arguments = [&["render"][..], arguments, &["recipe.toml", "--output", "out"]].concat();
        let output = project.sluice(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(word), "{said:?} should say {word:?}");
    };
    let kubernetes = |options: &[&'static str]| [&["k8s"][..], KUBERNETES, options].concat();
    refused(&kubernetes(&["--mount-path", "data"]), "--mount-path");
    refused(&kubernetes(&["--name", "Ring"]), "--name");
    refused(&["slurm", "--partition", "lerner=gpu"], "--partition");
    refused(&["slurm", "--time", "1:00:00\nrm -rf /"], "--time");
    refused(&["slurm", "--sbatch", "qos"], "--qos=high");
    refused(&["slurm", "--set", "output=my runs"], "output of the recipe");
}

#[test]
fn the_environment_is_not_rendered() {
    let project = Project::new(RECIPE);
    let arguments =
        ["render", "slurm", "recipe.toml", "--output", "out", "--set", "coordinator.group_size=7"];
    let output = project.sluice(&arguments).env("SLUICE_COORDINATOR__BATCHES", "99").output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("variables of the environment"), "{said}");
    let config = project.read("out/config/coordinator.toml");
    assert!(config.contains("batches = 5\n") && config.contains("group_size = 7\n"), "{config}");

    let quiet = String::from_utf8(project.render("slurm", &[]).stderr).unwrap();
    assert_eq!(quiet, "");
}

#[test]
fn other_stages_are_mentioned() {
    let stages = "
[[stages]]
name = 'vocabulary'
[stages.tokenizer]
data = []
output = 'x'
vocab_size = 300
[[stages]]
name = 'ring'
[stages.ring]
output = '{output}/policy'
";
    let project = Project::new(&format!("{RECIPE}\n{stages}"));
    let said = String::from_utf8(project.render("slurm", &[]).stderr).unwrap();
    assert!(said.contains("only the ring is rendered; the other stages (vocabulary)"), "{said}");
}
