"""What fits: GB that a GPU of the learner needs, by the formula, for models up to 70B on 8 to 64 GPUs.

    python3 bench/step/fits.py

bf16 with f32 masters, 8,192 tokens a micro-batch, blocks computed again. A cell is what the lowest ZeRO stage needs that fits
in 90 % of the GPU, with the optimizer's state in the host's memory where nothing else does.
"""

import formula

TOKENS = 8192

# Published shapes: Qwen2.5 of the given sizes, Llama 3.1 70B.
SHAPES = {
    "0.5B": dict(vocab=151936, hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, head_dim=64, tied=True),
    "1.5B": dict(vocab=151936, hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, head_dim=128, tied=True),
    "7B": dict(vocab=152064, hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, head_dim=128, tied=False),
    "14B": dict(vocab=152064, hidden=5120, intermediate=13824, layers=48, heads=40, kv_heads=8, head_dim=128, tied=False),
    "32B": dict(vocab=152064, hidden=5120, intermediate=27648, layers=64, heads=40, kv_heads=8, head_dim=128, tied=False),
    "70B": dict(vocab=128256, hidden=8192, intermediate=28672, layers=80, heads=64, kv_heads=8, head_dim=128, tied=False),
}
RANKS = (8, 16, 32, 64)
GPUS = (80, 141)


def needed(shape, critic, stage, ranks, offload=False):
    """GB of one GPU."""
    policy = sum(formula.groups(shape))
    # A critic is the same trunk with a head of one row.
    own_critic = sum(formula.groups({**shape, "tied": True})) + shape["hidden"] if critic else 0
    held = formula.held(policy + own_critic, stage, ranks, "bf16", offload)
    return (held + formula.passing(shape, stage, ranks, TOKENS, "bf16")) / 1e9


def cell(shape, critic, ranks, gpu):
    """The lowest stage that fits and what it needs, or what it would need at the least."""
    for stage, offload in [(0, False), (1, False), (2, False), (3, False), (3, True)]:
        size = needed(shape, critic, stage, ranks, offload)
        if size <= formula.USABLE * gpu:
            return f"{size:.0f} (z{stage}{', offload' if offload else ''})"
    return f"no: {size:.0f}"


def table():
    lines = []
    for critic in (False, True):
        head = [f"{ranks} x {gpu} GB" for gpu in GPUS for ranks in RANKS]
        title = "policy and critic" if critic else "policy alone"
        lines += ["| " + " | ".join([title, *head]) + " |", "|" + "---|" * (len(head) + 1)]
        for name, shape in SHAPES.items():
            cells = [cell(shape, critic, ranks, gpu) for gpu in GPUS for ranks in RANKS]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    first = [f"{name} {2 * sum(formula.groups(shape)) / 1e9:.0f}" for name, shape in SHAPES.items()]
    lines.append(f"GB of the policy in bf16: {', '.join(first)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
