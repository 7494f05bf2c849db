//! Disks that fill up under a ring, and have room again: real file systems, small ones, mounted for the test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;

use tests::TinyRing;

const BATCHES: u64 = 60;

/// Mounts need a namespace of one's own.
const IN_NAMESPACE: [&str; 3] = ["--user", "--map-root-user", "--mount"];

/// The same ring twice: one whose disks are large enough has run already.
struct Pair {
    undisturbed: TinyRing,
    disturbed: TinyRing,
    _folders: [tempfile::TempDir; 2],
}

impl Pair {
    /// None where this machine does not let us mount anything.
    fn new(reserve: u64) -> Option<Self> {
        let possible = Command::new("unshare").args(IN_NAMESPACE).arg("true").status();
        if !possible.is_ok_and(|status| status.success()) {
            eprintln!("not tested: a small disk needs user namespaces, which this machine does not give");
            return None;
        }
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let of = |folder: &tempfile::TempDir| {
            TinyRing::new(folder.path()).unwrap().with(&format!("coordinator.batches={BATCHES}"))
        };
        let undisturbed = of(&folders[0]);
        undisturbed.run().unwrap();
        let disturbed = of(&folders[1]).with(&format!("coordinator.journal_reserve_bytes={reserve}"));
        Some(Self { undisturbed, disturbed, _folders: folders })
    }

    /// Runs the other one by a script, which is told the ring's folder and the command. Yields what the
    /// script printed and what the command said.
    fn run(&self, script: &str) -> (String, String) {
        let run = self.disturbed.command().unwrap();
        let mut full = Command::new("unshare");
        full.args(IN_NAMESPACE).args(["sh", "-c", script]).arg(self.disturbed.output().join("ring"));
        full.arg(run.get_program()).args(run.get_args());
        full.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ended = full.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (text(ended.stdout), text(ended.stderr))
    }

    /// Every batch was trained, and the policy is the one that comes out when there is room.
    fn assert_nothing_lost(&self) {
        let steps = self.disturbed.steps().unwrap();
        assert_eq!(steps.keys().copied().collect::<Vec<_>>(), (1..=BATCHES).collect::<Vec<_>>());
        let (one, other) = (self.undisturbed.weights().unwrap(), self.disturbed.weights().unwrap());
        assert!(one == other, "another policy came out");
    }
}

/// Both disks fill up in mid-run, the one of the journal down to its reserve. Prints how many batches were
/// trained while checkpoints had no room, and while nothing new was begun.
const DISKS_FILL_UP: &str = r#"
ring=$0
for disk in journal checkpoints; do
    mkdir -p "$ring/$disk" && mount -t tmpfs -o size=24m $disk "$ring/$disk" || exit 9
done
"$@" & run=$!
steps() { wc -l < "$ring/steps.jsonl" 2>/dev/null || echo 0; }
await() { for try in $(seq 1200); do eval "$1" && return; kill -0 $run 2>/dev/null || return; sleep 0.1; done; }
free() { df --output=avail -B1 "$ring/$1" | tail -1; }
await '[ $(steps) -ge 4 ]'
head -c 100m /dev/zero > "$ring/checkpoints/other" 2>/dev/null
await 'grep -q "no room for a checkpoint: training goes on without" "$ring/logs/learner.log"'
before=$(steps)
await '[ $(steps) -ge $((before + 6)) ]'
echo "without checkpoints: $(( $(steps) - before >= 6 ))"
head -c $(( $(free journal) - 1500000 )) /dev/zero > "$ring/journal/other"
await 'grep -q "nothing new is begun" "$ring/logs/coordinator.log"'
sleep 3
before=$(steps)
sleep 4
echo "without room for the journal: $(( $(steps) - before ))"
rm "$ring/checkpoints/other" "$ring/journal/other"
wait $run
echo "ended with $?"
"#;

#[test]
fn a_run_whose_disks_fill_up_waits_and_goes_on_when_there_is_room() {
    let Some(pair) = Pair::new(2 << 20) else { return };
    let (printed, said) = pair.run(DISKS_FILL_UP);
    let expected = "without checkpoints: 1\nwithout room for the journal: 0\nended with 0\n";
    assert_eq!(printed, expected, "{said}");
    assert!(!said.contains("restart(s)"), "a process ended: {said}");
    pair.assert_nothing_lost();
    let log = pair.disturbed.log("coordinator").unwrap();
    assert!(log.contains("the journal's disk has room: the run goes on"), "{log}");
}

/// A disk under the journal that is too small for the run, and larger once the coordinator has said so. A run
/// that did not wait for that is resumed. The rest of the run lies elsewhere.
const FULL_DISK: &str = r#"
journal=$0/journal
mkdir -p "$journal" && mount -t tmpfs -o size=400k journal "$journal" || exit 9
"$@" & run=$!
for try in $(seq 600); do
    grep -q "disk is full" "$journal/../logs/coordinator.log" 2>/dev/null && break
    kill -0 $run 2>/dev/null || break
    sleep 0.2
done
sleep 2
mount -o remount,size=64m "$journal" || exit 9
wait $run || "$@"
echo "ended with $?"
"#;

#[test]
fn a_journal_without_any_room_loses_nothing() {
    let Some(pair) = Pair::new(0) else { return };
    let (printed, said) = pair.run(FULL_DISK);
    assert_eq!(printed.trim(), "ended with 0", "{said}");
    pair.assert_nothing_lost();
}
