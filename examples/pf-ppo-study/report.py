"""The figures of the study: what one run says, and all of them as tables and plots."""

import json
import math
import pathlib
import statistics
import subprocess
import tomllib

import plots

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
BEGIN, END = "<!-- written by examples/pf-ppo-study -->", "<!-- end of what is written -->"
BINS = 10
# Strategies whose R² is asked for, in the paper's words.
STRATEGIES = ["none", "best-of-n", "best-random", "best-worst", "power:1", "power:2", "power:3"]
# What makes the policy of a method without a ring.
STAGES = {"SFT": [], "RAFT": ["best-of-n", "raft"], "DPO": ["dpo"]}
NAMES = {"none": "PPO-M", "power:1": "power 1", "power:2": "power 2", "power:3": "power 3"}


def read(path):
    """The lines of results by method and seed."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["method"], line["seed"]): line for line in lines}


def figures(folder, policy, stages, sluice):
    """What one run found of a policy, which these stages have made."""
    rows = json.loads((folder / "eval/report.json").read_text(encoding="utf-8"))["rows"]
    row = next(row for row in rows if row["name"] == policy)
    best = row["best_temperature"]
    samples = folder / f"eval/{policy}-samples.jsonl"
    seconds = sum(tomllib.loads((folder / f"stages/{stage}.toml").read_text(encoding="utf-8"))["seconds"] for stage in stages)
    steps_file = folder / "ring/steps.jsonl"
    steps = {}
    if steps_file.exists():
        steps = {step["batch"]: step for step in map(json.loads, steps_file.read_text(encoding="utf-8").splitlines())}
    curve, trained, tokens = [], 0, 0
    for batch in sorted(steps):
        metrics = steps[batch]["metrics"]
        if "eval_outcome_mean" in steps[batch]:
            curve.append([steps[batch]["eval_version"], steps[batch]["eval_outcome_mean"]])
        trained, tokens = trained + metrics["samples"], tokens + metrics["tokens"]
    return {
        "greedy": row["pass_at_1_greedy"]["mean"],
        "sampled": row["pass_at_1_sampled"]["mean"],
        "best": best["of_problems"]["mean"],
        "temperature": best["temperature"],
        "pass_at": {k: rate["mean"] for k, rate in row["pass_at_k"].items()},
        "reward": row["reward_mean"],
        "kl": row["kl_to_reference"],
        "trained": trained,
        "trained_tokens": tokens,
        "trained_by_batch": [steps[batch]["metrics"]["samples"] for batch in sorted(steps)],
        "curve": curve,
        "bins": bins(samples),
        "r_squared": r_squared(samples, sluice),
        "seconds": round(seconds),
    }


def bins(samples):
    """Mean reward and mean outcome of bins of equal count (the paper's figure 1)."""
    pairs = [(line["score"], line["outcome"]) for line in map(json.loads, samples.read_text().splitlines())]
    pairs = sorted(pair for pair in pairs if pair[1] is not None)
    edges = [len(pairs) * place // BINS for place in range(BINS + 1)]
    return [[statistics.fmean(column) for column in zip(*pairs[a:b])] for a, b in zip(edges, edges[1:]) if a < b]


def r_squared(samples, sluice):
    """By strategy: R² with equal draws, its interval and its ceiling."""
    strategies = [argument for name in STRATEGIES for argument in ("--strategy", name)]
    command = [sluice, "r2", "--json", "--replicates", "300", *strategies, "--input", samples]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {line["strategy"]: line["equal_draws"] for line in found}


def interval(numbers):
    """Mean and half of the 95 % interval over seeds; no interval of one."""
    mean = statistics.fmean(numbers)
    if len(numbers) < 2:
        return mean, None
    return mean, T[min(len(numbers), len(T)) - 1] * statistics.stdev(numbers) / math.sqrt(len(numbers))


def percent(numbers, signed=False):
    mean, half = interval([100 * number for number in numbers])
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if half is None else f"{text} ± {half:.1f}"


def at_compute(line, budget):
    """Greedy pass@1 once so many responses have been learned from, between two evaluations by a line."""
    learned = [0]
    for count in line["trained_by_batch"]:
        learned.append(learned[-1] + count)
    points = [(learned[int(version)], rate) for version, rate in line["curve"] if version < len(learned)]
    for (before, low), (after, high) in zip(points, points[1:]):
        if before <= budget <= after and after > before:
            return low + (high - low) * (budget - before) / (after - before)
    return None


def ranks(numbers):
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    return [order.index(place) for place in range(len(numbers))]


def write(results, methods, folder):
    """Tables into pf-ppo-study.md between its marks, and plots beside it."""
    by_method = {}
    for method in methods:
        lines = {seed: line for (name, seed), line in results.items() if name == method}
        if lines:
            by_method[method] = lines
    if not by_method:
        return
    text = "\n\n".join([table(by_method), *reliability(by_method)])
    path = folder / "pf-ppo-study.md"
    page = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    head, _, rest = page.partition(BEGIN)
    _, _, foot = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{foot}", encoding="utf-8")
    for theme in plots.THEMES:
        drawn = [
            ("methods", plots.methods(points(by_method), theme)),
            ("reward", plots.reward(reward_lines(by_method), theme)),
        ]
        for name, picture in drawn:
            (folder / f"pf-ppo-study-{name}-{theme}.svg").write_text(picture, encoding="utf-8")
    print(text)


def table(by_method):
    budget = 2 * min((line["trained"] for lines in by_method.values() for line in lines.values() if line["trained"]), default=0)
    base = by_method.get("PPO-M", {})
    rows = [
        "| method | seeds | greedy | against PPO-M | at its best temperature | sampled | pass@5 | reward | KL | "
        f"responses learned from | greedy after {budget} learned | minutes of training |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, lines in by_method.items():
        of = lambda key: [line[key] for line in lines.values()]  # noqa: E731
        paired = [line["greedy"] - base[seed]["greedy"] for seed, line in lines.items() if seed in base]
        at = [rate for line in lines.values() if (rate := at_compute(line, budget)) is not None]
        cells = [
            method,
            str(len(lines)),
            percent(of("greedy")),
            "" if method == "PPO-M" or not paired else percent(paired, signed=True),
            percent(of("best")),
            percent(of("sampled")),
            percent([next(iter(line["pass_at"].values())) for line in lines.values()]),
            f"{statistics.fmean(of('reward')):.2f}",
            f"{statistics.fmean(of('kl')):.2f}",
            f"{statistics.fmean(of('trained')):.0f}" if any(of("trained")) else "",
            percent(at) if at else "",
            f"{statistics.fmean(of('seconds')) / 60:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def reliability(by_method):
    """R² of each strategy on the first policy's responses and on those of PPO-M's, and whether its order is that of pass@1."""
    rows = ["| strategy | R², first policy | 95 % | ceiling | R², after PPO-M | greedy |", "|---|---|---|---|---|---|"]
    first, last = (next(iter(by_method.get(name, {}).values()), None) for name in ("SFT", "PPO-M"))
    if first is None or last is None:
        return []
    pairs = []
    for strategy in STRATEGIES:
        method = NAMES.get(strategy, strategy)
        before, after = first["r_squared"].get(strategy), last["r_squared"].get(strategy)
        if before is None or after is None:
            continue
        greedy = [line["greedy"] for line in by_method.get(method, {}).values()]
        if greedy:
            pairs.append((before["r_squared"], statistics.fmean(greedy)))
        rows.append(
            f"| {strategy} | {before['r_squared']:.3f} | {before['low']:.3f} to {before['high']:.3f} | "
            f"{before['ceiling']:.3f} | {after['r_squared']:.3f} | {percent(greedy) if greedy else ''} |"
        )
    parts = ["\n".join(rows)]
    if len(pairs) > 2:
        spearman = statistics.correlation(*(ranks(column) for column in zip(*pairs)))
        parts.append(f"Spearman's correlation of R² on the first policy and greedy pass@1: {spearman:.2f} over {len(pairs)} strategies.")
    return parts


def points(by_method):
    """Method, mean and half interval, greedy and at the best temperature."""
    return [
        (method, interval([line["greedy"] for line in lines.values()]), interval([line["best"] for line in lines.values()]))
        for method, lines in by_method.items()
    ]


def reward_lines(by_method):
    """The paper's figure 1: mean outcome by reward."""
    wanted = [name for name in ("SFT", "PPO-M", "best-worst") if name in by_method]
    return [(name, next(iter(by_method[name].values()))["bins"]) for name in wanted]
