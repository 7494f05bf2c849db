"""Bytes that a rank of the learner holds, from the shape of its networks. Needs nothing but Python."""

WIDTH = {"f32": 4, "bf16": 2}

# Of a CUDA device what the driver, the libraries and the allocator's gaps leave to tensors.
USABLE = 0.9

# Elements of a GPU's chunk of logits, crates/model/src/logprobs.rs; forward and backward hold three in f32.
LOGITS = 3 * 4 * (1 << 28)


def groups(shape):
    """Elements of the embedding, of each block and of the output, as crates/model/src/layout.rs has them."""
    hidden, heads, kv = shape["hidden"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    embedding = shape["vocab"] * hidden
    block = hidden * (2 * heads + 2 * kv) + 3 * hidden * shape["intermediate"] + 2 * hidden
    output = hidden + (0 if shape["tied"] else embedding)
    return [embedding, *[block] * shape["layers"], output]


def held(parameters, stage, ranks, dtype="f32", offload=False):
    """Weights, gradients and optimizer state of so many parameters; the state is the host's where it is offloaded."""
    weights, gradients, state = WIDTH[dtype], 4, 0 if offload else 8 + (4 if dtype != "f32" else 0)
    divided = {0: (0, 0, 1), 1: (0, 0, ranks), 2: (0, ranks, ranks), 3: (ranks, ranks, ranks)}[stage]
    return parameters * sum(size / (parts or 1) for size, parts in zip((weights, gradients, state), divided))


def passing(shape, stage, ranks, tokens, dtype="f32", recompute=True):
    """What a micro-batch and the steps around it hold for a while: activations, logits, and the groups under way.

    One model at a time passes, so that this counts once however many are trained.
    """
    sizes, width = groups(shape), WIDTH[dtype]
    hidden, kv = shape["hidden"], 2 * shape["kv_heads"] * shape["head_dim"]
    inputs = tokens * hidden * width
    # Norms, queries, keys and values, attention, residuals, gate, up and their product, each with its gradient.
    graph = 2 * tokens * (6 * hidden + 2 * shape["heads"] * shape["head_dim"] + kv + 4 * shape["intermediate"]) * width
    activations = shape["layers"] * (inputs if recompute else graph / 2 + inputs) + graph
    windows = [sum(sizes[at : at + 3]) for at in range(len(sizes) - 2)]
    reducing = 4 * max(windows) if stage >= 2 else 4 * sum(sizes) / ranks if stage == 1 else 0
    gathered = width * max(a + b for a, b in zip(sizes, sizes[1:])) if stage == 3 else 0
    # AdamW's temporaries, three of a group's shard, while nothing else of this is there.
    stepping = 3 * 4 * max(sizes) / (ranks if stage else 1)
    return max(activations + LOGITS + reducing + gathered, stepping)
