//! Batch scripts for Slurm. Slurm itself is played by small scripts: an `srun` that starts its tasks here, an
//! `sbatch` that starts each task of an array here, and an `scontrol`, a `scancel` and a `squeue` that note
//! what they are asked; the roles are played by scripts too. `make test-slurm` has a real one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::{Project, RECIPE, load};

const SRUN: &str = r#"#!/bin/bash
tasks=1 output=/dev/null together=''
while [[ $1 == --* ]]; do
    case $1 in
    --ntasks=*) tasks=${1#*=} ;;
    --output=*) output=${1#*=} ;;
    --kill-on-bad-exit=1) together=1 ;;
    esac
    shift
done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task setsid "$@" >>"${output/\%t/$task}" 2>&1 &
    started+=($!)
    echo "$!" >>sessions
done
worst=0
for ((left = tasks; left > 0; left--)); do
    wait -n
    status=$?
    ((status > worst)) && worst=$status
    if [ -n "$together" ] && [ "$status" -ne 0 ]; then
        for task in "${started[@]}"; do kill -KILL -- "-$task" || kill -KILL "$task"; done 2>/dev/null
    fi
done
exit "$worst"
"#;

/// Starts a job for each task of the script's array, as job 88, 89 and so on.
const SBATCH: &str = r#"#!/bin/bash
echo "sbatch $* HET=${SLURM_HET_SIZE:-}" >>record
if [ -e sbatch.fails ]; then exit 1; fi
script=${!#}
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
for ((task = 0; task <= last; task++)); do
    SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=$((88 + task)) SLURM_ARRAY_JOB_ID=88 SLURM_ARRAY_TASK_ID=$task \
        setsid bash "$script" >>actors.log 2>&1 </dev/null &
    echo "$!" >>sessions
done
touch actor-job
echo "88;cluster"
"#;

const SCONTROL: &str = "#!/bin/bash\necho \"scontrol $*\" >>record\n";
const SCANCEL: &str = "#!/bin/bash\necho \"scancel $*\" >>record\n";

/// Says a job's state as the file `state` does, where there is one.
const SQUEUE: &str = r#"#!/bin/bash
case "$*" in
*%T*) cat state 2>/dev/null || echo RUNNING ;;
*--jobs=88*) [ ! -e actor-job ] || echo 88_0 ;;
esac
"#;

/// Notes its process, then its start, writes its address file, and leaves when everybody is told to, or as a
/// file of its name says.
const ROLE: &str = r#"#!/bin/bash
role=${0##*/}
echo $$ >>"$role.ids"
echo "$role $*" >>record
for word; do
    case $word in service.address_file=*) address_file=${word#*=} ;; esac
done
if [ -e "$role.ends" ]; then
    read -r status <"$role.ends"
    rm "$role.ends"
    exit "$status"
fi
trap 'echo "$role told" >>record; if [ "$role" = sluice-coordinator ]; then touch leave; fi; left=1' TERM
echo '{"metrics": "0.0.0.0:9464", "grpc": "0.0.0.0:7700", "rendezvous": "10.0.0.1:7730"}' >"$address_file.new"
mv "$address_file.new" "$address_file"
until [ -e leave ] || [ -n "$left" ] || ! [ -e record ]; do sleep 0.02; done
"#;

/// A ring job that runs here.
struct Job {
    project: Project,
    script: Child,
}

impl Job {
    /// Renders and starts a ring of 2 reward servers, 2 ranks and 3 actors, after `prepare`.
    fn start(prepare: impl Fn(&Project)) -> Self {
        let project = Project::new(RECIPE);
        project.render("slurm", &["--binaries", "bin"]);
        fs::create_dir(project.path("bin")).unwrap();
        let roles = ["coordinator", "reward-server", "learner", "actor"].map(|role| format!("sluice-{role}"));
        let programs = roles.iter().map(|role| (role.as_str(), ROLE));
        let slurm = [("srun", SRUN), ("sbatch", SBATCH), ("scontrol", SCONTROL), ("scancel", SCANCEL)];
        for (name, text) in programs.chain(slurm).chain([("squeue", SQUEUE)]) {
            let path = project.path("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(project.path("record"), "").unwrap();
        fs::write(project.path("sessions"), "").unwrap();
        prepare(&project);
        let script = Command::new("bash")
            .arg("out/ring.sbatch")
            .current_dir(project.0.path())
            .env("SLURM_SUBMIT_DIR", project.0.path())
            .env("SLURM_JOB_ID", "77")
            .env("SLURM_HET_SIZE", "2")
            .env("SLUICE_LEARNER__CHECKPOINT_EVERY", "of the submitting shell")
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { project, script }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.script.id()).unwrap())
    }

    /// What the programs noted, once so many lines of it contain a text.
    fn record_with(&self, count: usize, text: &str) -> Vec<String> {
        for _ in 0..1500 {
            let record: Vec<String> = self.project.read("record").lines().map(str::to_owned).collect();
            let found: Vec<String> = record.into_iter().filter(|line| line.contains(text)).collect();
            if found.len() >= count {
                return found;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("the record never held {count} lines with {text:?}:\n{}", self.project.read("record"));
    }

    /// The processes of a role, as they started. Who is in the record is here.
    fn processes(&self, role: &str) -> Vec<Pid> {
        let ids = self.project.read(&format!("sluice-{role}.ids"));
        ids.lines().map(|id| Pid::from_raw(id.parse().unwrap())).collect()
    }

    /// The session of a process: its task's.
    fn session_of(&self, process: Pid) -> Pid {
        let process = nix::unistd::getsid(Some(process)).unwrap();
        let sessions = self.project.read("sessions");
        assert!(sessions.lines().any(|session| session == process.to_string()), "{process} in {sessions}");
        process
    }

    fn everybody_runs(&self) {
        self.record_with(2, "sluice-reward-server --config");
        self.record_with(2, "sluice-learner --config");
        self.record_with(3, "sluice-actor --config");
    }

    /// The exit code and what the script said and the programs noted.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        std::io::Read::read_to_string(self.script.stdout.as_mut().unwrap(), &mut said).unwrap();
        let code = self.script.wait().unwrap().code();
        (code, said + &self.project.read("record"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = killpg(self.id(), Signal::SIGKILL);
        // Jobs of actors wait for a ring that comes back.
        for session in self.project.read("sessions").lines() {
            let _ = killpg(Pid::from_raw(session.parse().unwrap()), Signal::SIGKILL);
        }
    }
}

#[test]
fn every_role_accepts_its_configuration() {
    let project = Project::new(RECIPE);
    project.render("slurm", &[]);
    let file = |role: &str| project.path(&format!("out/config/{role}.toml"));
    let told = |settings: &[&str]| settings.iter().map(|setting| (*setting).to_owned()).collect::<Vec<_>>();
    let coordinator: coordinator::Config = load(&file("coordinator"), &[]);
    assert_eq!(coordinator.journal.to_str(), Some("runs/Ring_1/ring/journal"));
    assert!(coordinator.send_filtered);
    assert!(coordinator.drain_timeout < coordinator.service.grace_period);
    let address = ["coordinator=node1:7700", "listen=10.0.0.1:0", "member=reward-server-1"];
    let reward_server: reward_server::Config = load(&file("reward-server"), &told(&address));
    assert!(reward_server.deterministic);
    let address = ["coordinator=node1:7700", "listen=10.0.0.1:0", "rank=1", "rendezvous=10.0.0.1:7730"];
    let learner: learner::Config = load(&file("learner"), &told(&address));
    assert_eq!((learner.rank, learner.world_size), (1, 2));
    let _: actor::Config = load(&file("actor"), &told(&["coordinator=node1:7700", "member=actor-77-0"]));
}

#[test]
fn the_scripts_are_sound_and_ask_for_what_was_asked() {
    let project = Project::new(RECIPE);
    let options = [
        &["--partition", "cpu", "--partition", "learner=gpu", "--account", "lab", "--time", "1-00:00:00"][..],
        &["--sbatch", "--qos=high", "--sbatch=learner=--constraint=h100", "--resources", "learner=6,32Gi"],
        &["--set", "learner.device=cuda", "--gpus-per-learner-rank", "1", "--drain-seconds", "90"],
        &["--binaries", "/opt/sluice/bin"],
    ];
    project.render("slurm", &options.concat());
    for name in ["ring.sbatch", "actors.sbatch", "member.sh"] {
        let path = project.path("out").join(name);
        let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        assert_ne!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0, "{name} can be run");
        assert!(project.read(&format!("out/{name}")).starts_with("#!/bin/bash\n"));
    }
    let script = project.read("out/ring.sbatch");
    // What sbatch reads ends at the first line that is no comment.
    let options = script.lines().take_while(|line| line.starts_with('#'));
    let options: Vec<&str> = options.filter_map(|line| line.strip_prefix("#SBATCH ")).collect();
    let parts: Vec<&[&str]> = options.split(|option| *option == "hetjob").collect();
    let [reward_servers, learner] = parts[..] else { panic!("two parts: {options:?}") };
    let actors = project.read("out/actors.sbatch");
    let actors: Vec<&str> = actors.lines().filter_map(|line| line.strip_prefix("#SBATCH ")).collect();
    for (part, wanted) in [
        (reward_servers, &["--partition=cpu", "--ntasks=2", "--signal=B:TERM@120", "--requeue"][..]),
        (learner, &["--partition=gpu", "--ntasks=2", "--cpus-per-task=6", "--mem-per-cpu=5462M"]),
        (learner, &["--gpus-per-task=1", "--constraint=h100", "--qos=high", "--account=lab"]),
        (&actors, &["--partition=cpu", "--array=0-2", "--ntasks=1", "--time=1-00:00:00", "--qos=high"]),
        (&actors, &["--signal=TERM@120", "--requeue"]),
    ] {
        for option in wanted {
            assert!(part.contains(option), "{option} in {part:?}");
        }
    }
    assert!(!actors.contains(&"--constraint=h100"));
    assert!(script.contains("export PATH=/opt/sluice/bin:$PATH"));
}

/// The options of a rendered ring's job.
fn ring_options(options: &[&str]) -> Vec<String> {
    let project = Project::new(RECIPE);
    project.render("slurm", options);
    let script = project.read("out/ring.sbatch");
    script.lines().filter_map(|line| Some(line.strip_prefix("#SBATCH ")?.to_owned())).collect()
}

#[test]
fn a_ring_is_on_one_node_where_nothing_says_otherwise() {
    let gpus = ["--set", "learner.device=cuda", "--gpus-per-learner-rank", "1", "--partition", "gpu"];
    let options = ring_options(&gpus);
    // Two reward servers (4 CPUs, 16 GiB), two ranks (8, 64) and the coordinator (2, 4).
    for wanted in [
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=26",
        "--mem=167936M",
        "--gpus-per-node=2",
        "--partition=gpu",
    ] {
        assert!(options.iter().any(|option| option == wanted), "{wanted} in {options:?}");
    }
    assert!(!options.iter().any(|option| option == "hetjob"), "{options:?}");

    let in_parts = |options: &[&str]| ring_options(options).iter().any(|option| option == "hetjob");
    assert!(!in_parts(&["--set", "processes.learner_ranks=8"]));
    assert!(in_parts(&["--set", "processes.learner_ranks=9"]), "more than a node holds");
    assert!(in_parts(&["--partition", "learner=gpu"]), "of two partitions");
    assert!(in_parts(&["--layout", "parts"]));
    assert!(!in_parts(&["--layout", "one-node", "--set", "processes.learner_ranks=16"]));

    let project = Project::new(RECIPE);
    let arguments = ["render", "slurm", "recipe.toml", "--output", "out", "--layout", "one-node"];
    let refused = project.sluice(&arguments).args(["--sbatch=learner=--qos=high"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("give both the same --partition and --sbatch"), "{said}");
}

#[test]
fn a_ring_runs_to_its_end() {
    let job = Job::start(|_| ());
    job.everybody_runs();
    let coordinator = job.project.read("runs/Ring_1/ring/coordinator");
    assert!(coordinator.trim_end().ends_with(":7700"), "{coordinator}");
    for line in job.record_with(7, &format!("--set coordinator={}", coordinator.trim_end())) {
        let role = line.split(' ').next().unwrap();
        let file = format!("--config out/config/{}.toml", role.trim_start_matches("sluice-"));
        assert!(line.contains(&file), "{line}");
    }
    job.record_with(1, "--set rank=1 ").iter().for_each(|line| {
        assert!(line.ends_with("--set rendezvous=10.0.0.1:7730"), "rank 1 meets rank 0: {line}");
    });
    job.record_with(1, "--set member=reward-server-1 ");
    job.record_with(1, "--set member=actor-88-2 ");
    fs::write(job.project.path("leave"), "").unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("requeue"), "{said}");
}

/// What a ring says that a signal to its script ends.
fn drained_by(signal: Signal) -> String {
    let job = Job::start(|_| ());
    job.everybody_runs();
    kill(job.id(), signal).unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("told").count(), 1, "the coordinator alone is told, and once: {said}");
    assert!(said.contains("sluice-coordinator told"), "{said}");
    said
}

#[test]
fn a_signal_drains_the_ring_and_queues_it_again() {
    let said = drained_by(Signal::SIGTERM);
    assert!(said.contains("scontrol requeue 77"), "{said}");
}

#[test]
fn another_signal_drains_it_for_good() {
    let said = drained_by(Signal::SIGUSR1);
    assert!(!said.contains("scontrol"), "{said}");
}

#[test]
fn a_job_that_slurm_ends_hears_nothing_from_its_script() {
    let job = Job::start(|_| ());
    job.everybody_runs();
    fs::write(job.project.path("state"), "COMPLETING\n").unwrap();
    kill(job.id(), Signal::SIGTERM).unwrap();
    // Slurm tells every process of the job; here, by hand, the coordinator.
    kill(job.processes("coordinator")[0], Signal::SIGTERM).unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("sluice-coordinator told").count(), 1, "{said}");
    assert!(said.contains("ended by Slurm") && !said.contains("requeue"), "{said}");
    assert!(!said.contains("scancel"), "actors wait for the ring: {said}");
}

#[test]
fn a_ring_that_did_not_drain_in_time_is_queued_again_too() {
    let job = Job::start(|project| {
        let role = ROLE.replace("touch leave;", "touch leave; exit 1;");
        fs::write(project.path("bin/sluice-coordinator"), role).unwrap();
    });
    job.everybody_runs();
    kill(job.id(), Signal::SIGTERM).unwrap();
    let (_, said) = job.end();
    assert!(said.contains("the coordinator ended with 1 while it drained"), "{said}");
    assert!(said.contains("scontrol requeue 77") && !said.contains("scancel"), "{said}");
}

#[test]
fn steps_that_are_told_make_the_ring_drain_and_queue_itself_again() {
    let job = Job::start(|_| ());
    job.everybody_runs();
    // Slurm signals every process of a step: for each reward server its member.sh, and its child.
    for process in job.processes("reward-server") {
        killpg(job.session_of(process), Signal::SIGTERM).unwrap();
    }
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("reward-server left, told by Slurm"), "{said}");
    assert_eq!(said.matches("sluice-coordinator told").count(), 1, "{said}");
    assert!(said.contains("scontrol requeue 77"), "{said}");
}

#[test]
fn actors_wait_for_a_ring_that_comes_back_elsewhere() {
    let job = Job::start(|_| ());
    job.everybody_runs();
    let address = job.project.path("runs/Ring_1/ring/coordinator");
    // Without a word: they leave for the new place.
    fs::write(&address, "node9:7\n").unwrap();
    job.record_with(3, "--set coordinator=node9:7");
    let starts = job.record_with(6, "sluice-actor --config");
    assert!(starts.iter().all(|line| line.contains("--set member=actor-88-")), "{starts:?}");
    // And with an end between.
    fs::remove_file(&address).unwrap();
    job.record_with(6, "sluice-actor told");
    sleep(Duration::from_millis(500));
    let record = job.project.read("record");
    assert_eq!(record.matches("sluice-actor --config").count(), 6, "nobody starts without a ring: {record}");
    fs::write(&address, "node8:8\n").unwrap();
    job.record_with(3, "--set coordinator=node8:8");
}

#[test]
fn an_actor_that_slurm_tells_to_leave_queues_itself_again() {
    let job = Job::start(|_| ());
    job.everybody_runs();
    killpg(job.session_of(job.processes("actor")[0]), Signal::SIGTERM).unwrap();
    let asked = job.record_with(1, "scontrol requeue");
    let alone = ["88_0", "88_1", "88_2"].iter().any(|id| asked == [format!("scontrol requeue {id}")]);
    assert!(alone, "one task of the array, not all of it: {asked:?}");
}

#[test]
fn the_ring_submits_its_actors_once_and_ends_what_waits_for_it() {
    let job = Job::start(|project| {
        // Those of the job's last start wait in the queue, and so do some that somebody added.
        fs::create_dir_all(project.path("runs/Ring_1/ring/actor-jobs")).unwrap();
        for (file, text) in [("actors-job", "88\n"), ("actor-jobs/88", ""), ("actor-jobs/70", "")] {
            fs::write(project.path(&format!("runs/Ring_1/ring/{file}")), text).unwrap();
        }
        fs::write(project.path("actor-job"), "").unwrap();
    });
    job.record_with(1, "scontrol release 88");
    assert!(!job.project.path("runs/Ring_1/ring/actor-jobs/70").exists(), "it is in no queue any more");
    kill(job.id(), Signal::SIGUSR1).unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("scancel --quiet 88") && !said.contains("sbatch"), "{said}");

    let job = Job::start(|project| fs::write(project.path("sbatch.fails"), "").unwrap());
    let asked = job.record_with(1, "sbatch --parsable out/actors.sbatch");
    assert!(asked[0].ends_with("HET="), "nothing of the ring's job is handed on: {asked:?}");
    fs::write(job.project.path("leave"), "").unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no actors could be submitted from here: sbatch out/actors.sbatch"), "{said}");
}

#[test]
fn what_dies_is_started_again_and_found_where_it_was() {
    let job = Job::start(|project| {
        fs::write(project.path("sluice-actor.ends"), "1").unwrap();
        fs::write(project.path("sluice-learner.ends"), "1").unwrap();
    });
    job.record_with(4, "sluice-actor --config");
    job.record_with(3, "sluice-learner --config");
    fs::write(job.project.path("leave"), "").unwrap();
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");

    let job = Job::start(|_| ());
    job.everybody_runs();
    kill(job.processes("coordinator")[0], Signal::SIGKILL).unwrap();
    let starts = job.record_with(2, "sluice-coordinator --config");
    assert!(starts[0].contains("--set listen=0.0.0.0:0 "), "{starts:?}");
    assert!(starts[1].contains("--set listen=0.0.0.0:7700 "), "{starts:?}");
    fs::write(job.project.path("leave"), "").unwrap();
    assert_eq!(job.end().0, Some(0));
}

#[test]
fn bad_input_ends_the_ring() {
    let job = Job::start(|project| fs::write(project.path("sluice-coordinator.ends"), "2").unwrap());
    let (code, said) = job.end();
    assert_eq!(code, Some(2), "{said}");
    assert!(!said.contains("sluice-actor"), "{said}");

    for code in ["2", "3"] {
        let job = Job::start(|project| fs::write(project.path("sluice-learner.ends"), code).unwrap());
        let (ended, said) = job.end();
        assert_eq!(ended.map(|ended| ended.to_string()).as_deref(), Some(code), "{said}");
        assert!(said.contains("ranks gave up") && !said.contains("scontrol"), "{said}");
    }
}

#[test]
fn a_complete_run_is_not_started_again() {
    let checkpoint = "runs/Ring_1/ring/checkpoints/step-00000005";
    let job = Job::start(|project| fs::create_dir_all(project.path(checkpoint)).unwrap());
    let (code, said) = job.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the run is complete") && !said.contains("sluice-coordinator"), "{said}");
}
