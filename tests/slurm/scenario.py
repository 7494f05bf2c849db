"""A run through everything that happens to it on a cluster; called by cluster.sh on its login node, as root.

Every wait has a deadline, and every assertion is a line. The policy that comes out has to be, bit for bit, the one of a run that
nobody disturbed.
"""

import json
import os
import pathlib
import pwd
import re
import subprocess
import sys
import time

TESTS = "/opt/sluice/tests/slurm"
PROJECT = pathlib.Path("/share/researcher")
BATCHES = 400
BATCH_RESPONSES = 16
RENDER = ["--resources", "1,1Gi", "--resources", "learner=1,2Gi", "--drain-seconds", "20"]
# Seconds that a response's reward takes: 16 of them on two servers with two workers each make about a step a second.
PACE = "0.2"
# Coordinator, learner and actors on the same machine have seconds to themselves on a quiet one, and minutes on a busy one.
PATIENCE = 120

BEGAN = time.monotonic()


class Failed(Exception):
    """What was not so."""


def say(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def holds(what, truth, detail=""):
    """An assertion."""
    if not truth:
        raise Failed(f"{what}: {detail}" if detail else what)
    say(f"ok  {what}")


def until(what, look, seconds=PATIENCE):
    """Waits until a look finds something true, which it returns, and says how long that took."""
    began = time.monotonic()
    while True:
        found = look()
        if found:
            say(f"ok  {what} ({time.monotonic() - began:.1f} s)")
            return found
        if time.monotonic() - began > seconds:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.2)


def call(*words, user="researcher", check=True, seconds=PATIENCE):
    """What a command prints, called as the user that owns the run."""
    entry = pwd.getpwnam(user)
    home = {"HOME": entry.pw_dir, "USER": user, "PATH": "/opt/sluice/bin:" + os.environ["PATH"]}
    done = subprocess.run(
        words, cwd=PROJECT, env=home, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False,
    )
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout.strip()


def switch(state, node):
    subprocess.run([f"{TESTS}/nodes.sh", state, node.removeprefix("n")], check=True, timeout=60)


def job(number):
    """Slurm's word on a job, as fields."""
    text = call("scontrol", "--oneliner", "show", "job", number, check=False).splitlines()
    words = text[0].split() if text else []
    return dict(word.split("=", 1) for word in words if "=" in word)


def queue(*options):
    """Jobs of the queue, by id, each with its state, node and reason."""
    lines = call("squeue", "--noheader", "--array", "--format=%i %T %N %r", *options, check=False).splitlines()
    rows = (line.split(" ", 3) for line in lines if line.count(" ") >= 3)
    return {row[0]: tuple(row[1:]) for row in rows}


class Run:
    """A run in the project's folder, rendered and submitted."""

    def __init__(self, name, batches, *render, programs="/opt/sluice/bin"):
        self.name, self.batches = name, batches
        self.folder = PROJECT / "runs" / name / "ring"
        self.rendered = f"{name}-slurm"
        settings = ["--set", f"coordinator.batches={batches}", "--set", f"name={name}"]
        call("sluice", "render", "slurm", f"{TESTS}/recipe.toml", "--output", self.rendered, "--binaries", programs, *RENDER, *settings, *render)

    def submit(self, *options):
        said = call("sbatch", "--parsable", *options, f"{self.rendered}/ring.sbatch")
        return said.split(";")[0]

    def trained(self):
        """Batches that are trained; a line for each, of which a later one counts."""
        return max(self.steps(), default=0)

    def steps(self):
        try:
            lines = (self.folder / "steps.jsonl").read_text().splitlines()
        except OSError:
            return {}
        steps = (json.loads(line) for line in lines if line.endswith("}"))
        return {step["batch"]: step for step in steps}

    def status(self):
        """The coordinator's own account, or nothing while it cannot be asked."""
        try:
            address = (self.folder / "coordinator").read_text().strip()
        except OSError:
            return {}
        tokens = str(self.folder / "token")
        said = call("sluice", "top", "--json", "--coordinator", address, "--token-file", tokens, check=False, seconds=20)
        try:
            return json.loads(said)
        except ValueError:
            return {}

    def actors(self):
        """Names of the actors that are connected."""
        return {actor["member"] for actor in self.status().get("actors", []) if actor.get("connected", True)}

    def goes_on(self, why, steps=3):
        before = self.trained()
        until(f"{why}: {steps} more steps", lambda: self.trained() >= before + steps)

    def log(self, number):
        try:
            return (PROJECT / self.rendered / f"ring-{number}.log").read_text()
        except OSError:
            return ""


def nodes_of(number):
    """The nodes of a job, its parts together."""
    nodes = {row[1] for key, row in queue().items() if key.split("+")[0].split("_")[0] == number}
    return {node for node in nodes if node}


def prepare():
    """Models, and the run that nobody disturbs."""
    (PROJECT / "pace").unlink(missing_ok=True)
    undisturbed = ["--set", f"coordinator.batches={BATCHES}", "--set", "name=undisturbed"]
    call("sluice", "run", f"{TESTS}/recipe.toml", *undisturbed, seconds=400)
    say("ok  `sluice run` on one machine, undisturbed, for comparison")
    (PROJECT / "pace").write_text(PACE)


def disturbed():
    # The node of the coordinator has no actors, and the others have room for three at most.
    run = Run("ring", BATCHES, "--layout", "parts", "--resources", "actor=1,6Gi", "--sbatch=actor=--exclude=n0")
    ring = run.submit()
    until("the first step of a ring on several nodes", run.trained)
    own = (run.folder / "actors-job").read_text().strip()
    until("its three actors are jobs of their own", lambda: len(run.actors()) == 3)
    ring_nodes = nodes_of(ring)
    holds(f"the ring has {len(ring_nodes)} nodes, {' '.join(sorted(ring_nodes))}", len(ring_nodes) == 2)
    goes_beside = nodes_of(own)
    say(f"    the actors are job {own} on {' '.join(sorted(goes_beside))}")

    more = call("sbatch", "--parsable", "--array=1-2", f"{run.rendered}/actors.sbatch").split(";")[0]
    until("two more actors joined while it runs", lambda: len(run.actors()) == 5)

    # --- Slurm tells one actor to leave, as before its time limit. The last task of an array has the array's own number.
    call("scancel", "--signal=TERM", f"{own}_2")
    until("one actor that is told leaves and is queued again", lambda: job(f"{own}_2").get("Restarts") == "1")
    restarts = [job(f"{own}_{task}").get("Restarts") for task in range(2)]
    holds("it alone", restarts == ["0", "0"], str(restarts))
    until("it is back", lambda: len(run.actors()) == 5)

    # --- An actor's node is lost.
    lost = sorted(nodes_of(own) | nodes_of(more))
    lost = next((node for node in reversed(lost) if node not in ring_nodes), None)
    of_lost = [key for key, row in queue().items() if row[1] == lost]
    holds(f"some of the actors run on a node without the ring, {lost}", 0 < len(of_lost) < 5, str(queue()))
    switch("off", lost)
    say(f"    {lost} is switched off, with {len(of_lost)} actors: {' '.join(of_lost)}")
    run.goes_on("the ring trains on, without the lost actors", 5)
    until("Slurm has noticed", lambda: all(queue().get(key, ("",))[0] in ("PENDING", "RUNNING") and
                                           queue().get(key, ("", ""))[1] != lost for key in of_lost))
    holds("the ring's job was not restarted", job(ring).get("Restarts") == "0", str(job(ring)))
    until("the lost actors are back, on other nodes", lambda: len(run.actors()) == 5)
    switch("on", lost)

    # --- Preemption.
    before = run.trained()
    victim = sorted(ring_nodes)[-1]
    urgent = call("sbatch", "--parsable", "--partition=urgent", f"--nodelist={victim}", "--exclusive", "--wrap", "sleep 5").split(";")[0]
    until("an urgent job wants a node of the learner: the ring leaves within its grace", lambda: job(ring).get("Restarts") == "1")
    said = run.log(ring)
    holds("it drained", "drained: queued again" in said, said[-2000:])
    last = (run.folder / "logs" / "coordinator.log").read_text()
    holds("nobody was told twice", "told twice" not in last, last[-2000:])
    until("the urgent job ran", lambda: job(urgent).get("JobState") == "COMPLETED")
    until("the ring is back", lambda: run.trained() > before and job(ring).get("JobState") == "RUNNING")
    until("its actors are back", lambda: len(run.actors()) == 5)
    run.goes_on("after preemption")

    # --- Told to go back into the queue, as before the time limit.
    call("scancel", "--signal=TERM", "--batch", ring)
    until("told as before its time limit, the ring is queued again", lambda: job(ring).get("Restarts") == "2")
    until("and is back", lambda: job(ring).get("JobState") == "RUNNING" and run.status())
    until("with its actors", lambda: len(run.actors()) == 5)
    run.goes_on("after the requeue")

    # --- Nodes of the ring itself are lost: first the coordinator's, then the learner's.
    for whose in ["coordinator", "learner"]:
        host = job(ring)["BatchHost"]
        victim = host if whose == "coordinator" else next(node for node in nodes_of(ring) if node != host)
        before = run.trained()
        switch("off", victim)
        say(f"    {victim} is switched off, with the {whose}")
        until(f"after the loss of the {whose}'s node: Slurm has noticed", lambda: "idle" not in call("sinfo", "--noheader", f"--nodes={victim}", "--format=%T", "--partition=batch") and
              job(ring).get("JobState") in ("PENDING", "RUNNING") and victim not in nodes_of(ring))
        switch("on", victim)
        until("the ring is back, and trains", lambda: run.trained() > before and job(ring).get("JobState") == "RUNNING")
        until("with its actors", lambda: len(run.actors()) == 5)
        run.goes_on(f"after the loss of the {whose}'s node")

    # --- The end.
    holds(f"all of that in {run.trained()} of {BATCHES} batches", run.trained() < BATCHES)
    (PROJECT / "pace").write_text("0")
    until("the ring is done", lambda: job(ring).get("JobState") == "COMPLETED", 300)
    until("and so are its actors: nothing is in the queue", lambda: not queue())
    again = run.submit("--wait")
    holds("submitted again it says that the run is complete", "the run is complete" in run.log(again), run.log(again))
    nothing_is_lost(run)


def nothing_is_lost(run):
    other = PROJECT / "runs" / "undisturbed" / "ring"
    steps = run.steps()
    holds(f"{run.batches} batches, each with a line", sorted(steps) == list(range(1, run.batches + 1)), str(len(steps)))
    holds("each of 16 responses", {step["responses"] for step in steps.values()} == {BATCH_RESPONSES})
    status = json.loads((run.folder / "status.json").read_text())
    account = status["account"]
    say(f"    {account}")
    consumed = account["endings"]["trained"]
    holds("each response is trained on once", consumed == run.batches * BATCH_RESPONSES, str(consumed))
    holds("no attempt is unaccounted for", account["unaccounted"] == 0 and account["in_flight"] == 0)
    undisturbed = {}
    for line in (other / "steps.jsonl").read_text().splitlines():
        step = json.loads(line)
        undisturbed[step["batch"]] = step
    differs = [batch for batch, step in steps.items() if figures(step) != figures(undisturbed[batch])]
    holds("every step has the figures of the undisturbed run's", not differs, f"batches {differs[:10]}")
    weights = f"checkpoints/step-{run.batches:08}/policy/model.safetensors"
    same = (run.folder / weights).read_bytes() == (other / weights).read_bytes()
    holds("and so are the weights of the policy, bit for bit", same)
    # What was in flight on a node that was switched off is generated again; nothing else fails.
    holds("attempts failed with lost nodes alone", set(account["endings"]) <= {"trained", "failed{actor_lost}"})


def figures(step):
    """What a step computed, without how long it took."""
    return {name: value for name, value in step["metrics"].items() if not name.endswith("_seconds")}


def replace(script, text):
    """A script that shells may be reading."""
    new = script.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o755)
    new.replace(script)


def one_node():
    run = Run("single", 60, "--partition", "single")
    # Actors give their nodes back after two seconds, not after ten minutes.
    member = PROJECT / run.rendered / "member.sh"
    text = member.read_text()
    holds("actors wait for ten minutes", text.count("left=600\n") == 1)
    replace(member, text.replace("left=600\n", "left=2\n"))
    (PROJECT / "pace").write_text(PACE)
    ring = run.submit()
    until("the first step of a ring on one node", run.trained)
    until("with its actors beside it", lambda: len(run.actors()) == 3)
    holds("all of it on n0", {row[1] for row in queue().values()} == {"n0"}, str(queue()))

    call("scancel", "--signal=TERM", "--batch", ring)
    until("the ring is away for longer than its actors wait: they are held, without nodes",
          lambda: sum("Held" in row[2] or "held" in row[2] for row in queue().values()) == 3)
    until("it is back, and has released them", lambda: len(run.actors()) == 3)
    run.goes_on("after that")

    before = run.trained()
    call("scancel", "--signal=USR1", "--batch", ring)
    until("told to end for good, the ring and its actors are gone", lambda: not queue())
    holds("the ring's job is complete", job(ring).get("JobState") == "COMPLETED", str(job(ring)))
    replace(member, text)
    ring = run.submit()
    until("submitted again it goes on, with actors", lambda: run.trained() > before and len(run.actors()) == 3)

    before = run.trained()
    call("scancel", ring)
    until("cancelled, the ring is gone for good, and its actors notice", lambda: not queue())
    holds("nobody has queued it again", job(ring).get("JobState") == "CANCELLED", str(job(ring)))
    ring = run.submit()
    until("submitted again it goes on", lambda: run.trained() > before)
    (PROJECT / "pace").write_text("0")
    until("and ends by itself", lambda: job(ring).get("JobState") == "COMPLETED" and not queue())
    holds("60 batches, each with a line", sorted(run.steps()) == list(range(1, run.batches + 1)))


def gpus():
    """Who is given which GPU of a node that has eight; roles are played by role.sh."""
    programs = PROJECT / "programs"
    call("mkdir", "-p", str(programs))
    for role in ["coordinator", "reward-server", "learner", "actor"]:
        call("ln", "-sf", f"{TESTS}/role.sh", str(programs / f"sluice-{role}"))
    run = Run(
        "gpus", 10, "--partition", "single", "--gpus-per-learner-rank", "1", "--gpus-per-actor", "1",
        "--set", "learner.device=cuda", "--set", "actor.engine.device=cuda", programs=str(programs),
    )
    given = PROJECT / "given"
    ring = run.submit()

    def rows():
        rows = [line.split() for line in given.read_text().splitlines()] if given.exists() else []
        return len(rows) >= 8 and rows

    found = until("coordinator, two reward servers, two ranks and three actors are on a node of eight GPUs", rows)
    holds("all of them on n0", {node for _, node, _ in found} == {"n0"}, str(found))
    by_role = {role: [gpus for name, _, gpus in found if name == role] for role, _, _ in found}
    for role in ["learner", "actor"]:
        holds(f"each {role} sees one GPU", all(gpu.isdigit() for gpu in by_role[role]), str(by_role[role]))
    holds("each rank another one", len(set(by_role["learner"])) == 2, str(by_role["learner"]))
    holds("reward servers see none", not any(gpu.isdigit() for gpu in by_role["reward-server"]), str(by_role))
    used = call("scontrol", "--oneliner", "--details", "show", "node", "n0")
    holds("five GPUs are taken", re.search(r"GresUsed=gpu:(\(null\):)?5\b", used), used)
    call("scancel", "--signal=USR1", "--batch", ring)
    until("the ring and its actors are gone", lambda: not queue())


def main():
    try:
        until("four nodes are up", lambda: "idle 4" in call("sinfo", "--noheader", "--partition=batch", "--format=%T %D"))
        for part in sys.argv[1:] or ["disturbed", "one_node", "gpus"]:
            if part != "gpus" and not (PROJECT / "models").exists():
                prepare()
            {"disturbed": disturbed, "one_node": one_node, "gpus": gpus}[part]()
    except (Failed, subprocess.TimeoutExpired) as failed:
        say(f"FAILED  {failed}")
        print(call("squeue", "--array", check=False), call("sinfo", check=False), sep="\n")
        sys.exit(1)
    say("ok  all of it")


main()
