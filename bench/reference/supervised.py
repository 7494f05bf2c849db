"""Supervised objectives in plain PyTorch: SFT, Bradley-Terry, DPO, cDPO, IPO, KTO, each as an update of a few AdamW steps."""

import json
import random

import torch

import cases
import network
import ppo

TRAINING = dict(epochs=2, batch_size=3, shuffle=False)
OPTIMIZER = dict(lr=1e-2, betas=[0.9, 0.95], adam_eps=1e-3, weight_decay=0.05, max_grad_norm=1.0, schedule="linear",
                 warmup_steps=1)

# name: (command, keys of its configuration besides the sections)
CASES = {
    "sft": ("sft", dict(loss_aggregation="token-mean")),
    "sft-sequences": ("sft", dict(loss_aggregation="seq-mean-token-mean")),
    "bradley-terry": ("train-rm", {}),
    "dpo": ("dpo", dict(objective="dpo", beta=0.3)),
    "cdpo": ("dpo", dict(objective="cdpo", beta=0.3, label_smoothing=0.2)),
    "ipo": ("dpo", dict(objective="ipo", tau=0.4)),
    "ipo-averaged": ("dpo", dict(objective="ipo", tau=0.4, length_average=True)),
    "kto": ("dpo", dict(objective="kto", beta=0.5, desirable_weight=1.0, undesirable_weight=1.3)),
}


def rows(seed):
    """Lines with everything that any of the objectives reads."""
    rng = random.Random(seed)
    tokens = lambda most: [rng.randrange(cases.VOCAB) for _ in range(rng.randint(1, most))]  # noqa: E731
    found = []
    for at in range(8):
        found.append({"prompt_tokens": tokens(5), "response_tokens": tokens(9), "chosen_tokens": tokens(9),
                      "rejected_tokens": tokens(9), "margin": [0.0, 0.25][at % 2], "label": at % 3 != 1})
    return found


def summed(model, prompts, responses):
    logprobs, _, mask = network.of_responses(*model, prompts, responses)
    return (logprobs * mask).sum(1)


def mismatched(lines):
    """For KTO's reference point: each prompt with the response to the next other prompt."""
    found = []
    for at, line in enumerate(lines):
        ahead = (lines[(at + n) % len(lines)] for n in range(1, len(lines)))
        found.append(next((o for o in ahead if o["prompt_tokens"] != line["prompt_tokens"]), line)["response_tokens"])
    return found


def loss_of(name, options, model, reference, lines, others):
    """The loss of a minibatch."""
    prompts = [line["prompt_tokens"] for line in lines]
    if name.startswith("sft"):
        logprobs, _, mask = network.of_responses(*model, prompts, [line["response_tokens"] for line in lines])
        if options["loss_aggregation"] == "token-mean":
            return -(logprobs * mask).sum() / mask.sum()
        return -((logprobs * mask).sum(1) / mask.sum(1)).mean()
    if name == "bradley-terry":
        chosen, rejected = (network.score(*model, [p + line[key] for p, line in zip(prompts, lines)])
                            for key in ("chosen_tokens", "rejected_tokens"))
        margins = torch.tensor([line["margin"] for line in lines], dtype=torch.float64)
        return -torch.nn.functional.logsigmoid(chosen - rejected - margins).mean()
    if name == "kto":
        return kto(options, model, reference, lines, others)
    ratios = []
    for key in ("chosen_tokens", "rejected_tokens"):
        responses = [line[key] for line in lines]
        with torch.no_grad():
            of_reference = summed(reference, prompts, responses)
        ratio = summed(model, prompts, responses) - of_reference
        if options.get("length_average"):
            ratio = ratio / torch.tensor([len(r) for r in responses])
        ratios.append(ratio)
    ahead = ratios[0] - ratios[1]
    if name.startswith("ipo"):
        return (ahead - 1 / (2 * options["tau"])).pow(2).mean()
    smoothing = options.get("label_smoothing", 0.0) if name == "cdpo" else 0.0
    logit = options["beta"] * ahead
    log_sigmoid = torch.nn.functional.logsigmoid
    return (-(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)).mean()


def kto(options, model, reference, lines, others):
    prompts = [line["prompt_tokens"] for line in lines]
    responses = [line["response_tokens"] for line in lines]
    with torch.no_grad():
        of_reference = summed(reference, prompts, responses)
        drift = summed(model, prompts, others) - summed(reference, prompts, others)
    z = drift.mean().clamp(min=0)
    h = summed(model, prompts, responses) - of_reference
    wanted = torch.tensor([line["label"] for line in lines])
    good = options["desirable_weight"] * (1 - torch.sigmoid(options["beta"] * (h - z)))
    bad = options["undesirable_weight"] * (1 - torch.sigmoid(options["beta"] * (z - h)))
    return torch.where(wanted, good, bad).mean()


def train(name, options, start, lines):
    """The way the weights go."""
    size, total = TRAINING["batch_size"], TRAINING["epochs"] * -(-len(lines) // TRAINING["batch_size"])
    trained = ppo.Model(start, OPTIMIZER["lr"], {**ppo.DEFAULTS, **OPTIMIZER}, total)
    others, step, losses = mismatched(lines), 0, []
    for _ in range(TRAINING["epochs"]):
        for at in range(0, len(lines), size):
            loss = loss_of(name, options, trained.pair(), start, lines[at:at + size], others[at:at + size])
            losses.append(float(loss.detach()))
            trained.update(loss, step)
            step += 1
    return {key: trained.weights[key].detach() - before for key, before in start[1].items()}, losses


def golden(folder, models, numbers):
    """Adds the updates of every objective to `numbers` and writes data and table."""
    policy, critic = models["tiny"]
    lines = rows(11)
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = []
    for name, (command, options) in CASES.items():
        start = critic if command == "train-rm" else policy
        update, losses = train(name, options, start, lines)
        numbers.update({f"{name}.{key}": value.float().contiguous() for key, value in update.items()})
        config = dict(options, training=TRAINING, optimizer=OPTIMIZER)
        table.append(dict(name=name, command=command, config=config, losses=losses))
    (folder / "supervised.json").write_text(json.dumps(table, indent=1) + "\n")
