"""Hands the figures of a run to a tracker through the tracker's own package.

The argument is a folder with packages that the interpreter may lack.

Standard input: a first line that says which tracker, under which project, name and id, and what the run was told; then
one line a step: {"step": 12, "time": milliseconds since 1970, "values": {"score_mean": 0.3}}. Its end is the run's.
"""

import importlib.util
import json
import os
import signal
import sys


class Wandb:
    def __init__(self, told):
        import wandb

        mode = {"mode": "offline"} if told["offline"] else {}
        self.run = wandb.init(
            project=told["project"], name=told["name"], id=told["id"], resume="allow", dir=told["folder"],
            config=told["config"], **mode)
        self.run.define_metric("batch")
        self.run.define_metric("*", step_metric="batch")

    def step(self, step, time, values):
        self.run.log({"batch": step, **values})

    def finish(self):
        self.run.finish()


class Mlflow:
    def __init__(self, told):
        import mlflow

        self.mlflow = mlflow
        if told["offline"]:
            mlflow.set_tracking_uri("sqlite:///" + os.path.join(told["folder"], "mlflow.db"))
        mlflow.set_experiment(told["project"])
        known = mlflow.search_runs(
            experiment_names=[told["project"]], filter_string=f"tags.`sluice.id` = '{told['id']}'", output_format="list")
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=told["name"], tags={"sluice.id": told["id"]})
            params = {key: str(value)[:500] for key, value in told["config"].items()}
            names = sorted(params)
            for at in range(0, len(names), 100):
                mlflow.log_params({name.replace("[", "_").replace("]", "")[:250]: params[name] for name in names[at:at + 100]})

    def step(self, step, time, values):
        self.mlflow.log_metrics(values, step=step)

    def finish(self):
        self.mlflow.end_run()


class Trackio:
    def __init__(self, told):
        if told["offline"]:
            os.environ.setdefault("TRACKIO_DIR", told["folder"])
        import trackio

        self.run = trackio.init(
            project=told["project"], name=f"{told['name']}-{told['id']}", config=told["config"], resume="allow", embed=False)

    def step(self, step, time, values):
        self.run.log(values, step=step)

    def finish(self):
        self.run.finish()


def main():
    # The run says when it is over: by closing this input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told = json.loads(sys.stdin.readline())
    if importlib.util.find_spec(told["tracker"]) is None:
        # In front: what the tracker needs is there too, and the interpreter may have an older one.
        sys.path.insert(0, sys.argv[1])
    os.makedirs(told["folder"], exist_ok=True)
    tracker = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}[told["tracker"]](told)
    for line in sys.stdin:
        tracker.step(**json.loads(line))
    tracker.finish()


main()
