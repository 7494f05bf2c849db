"""A decoder in plain PyTorch, with padding: the Llama, Qwen2 and Qwen3-MoE families and YaRN, written from their papers and
config.json.

Nothing here is shared with Sluice. A network is a dict of parameters under their Hugging Face names; sequences are padded
on the right, so that the causal mask alone keeps real tokens from seeing padding.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file, save_file


def load(folder, dtype=torch.float64):
    """Config and parameters of a Hugging Face folder."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    return config, weights


def save(folder, config, weights):
    """Writes a folder that `load` and Sluice read."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config_of(family, *, vocab, hidden, intermediate, layers, heads, kv_heads, tied, scalar=False, **more):
    """The config.json of a small network; `more` are further fields."""
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3_moe": "Qwen3Moe"}[family]
    head = "ForSequenceClassification" if scalar else "ForCausalLM"
    return {
        "architectures": [name + head], "model_type": family, "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "hidden_act": "silu",
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": tied, "initializer_range": 0.02, "torch_dtype": "float32",
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **({"num_labels": 1} if scalar else {}), **more,
    }


def shapes(config):
    """Every parameter's name and shape."""
    hidden, is_moe = config["hidden_size"], config["model_type"] == "qwen3_moe"
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
            if config["model_type"] == "qwen2":
                found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        found[at + "self_attn.o_proj.weight"] = (hidden, queries)
        if is_moe:
            found[at + "self_attn.q_norm.weight"] = found[at + "self_attn.k_norm.weight"] = (config["head_dim"],)
            found[at + "mlp.gate.weight"] = (config["num_experts"], hidden)
        wide = config["moe_intermediate_size" if is_moe else "intermediate_size"]
        for mlp in feed_forwards(config):
            found[f"{at}{mlp}.gate_proj.weight"] = found[f"{at}{mlp}.up_proj.weight"] = (wide, hidden)
            found[f"{at}{mlp}.down_proj.weight"] = (hidden, wide)
        found[at + "input_layernorm.weight"] = (hidden,)
        found[at + "post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    if "SequenceClassification" in config["architectures"][0]:
        found["score.weight"] = (1, hidden)
    elif not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def feed_forwards(config):
    """What the feed-forward layers of a block are called."""
    return [f"mlp.experts.{expert}" for expert in range(config.get("num_experts", 0))] or ["mlp"]


def random_weights(config, seed, scale):
    """Weights wide enough that every part of the network matters, rounded to f32."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(config).items():
        values = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = (values + 1 if name.endswith("norm.weight") else values).float().double()
    return weights


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def frequencies(config):
    """Of RoPE, `[head_dim / 2]`, and what cosines and sines are multiplied by: with YaRN (arXiv 2309.00071, section 3) a ramp
    over the dimensions between what is kept and what is divided by the factor."""
    width, theta = config["head_dim"], config["rope_theta"]
    kept = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    yarn = config.get("rope_scaling")
    if yarn is None:
        return kept, 1.0

    def dimension(turns):
        """Where a wave turns so often over the context of the pre-training."""
        return width * math.log(yarn["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), width - 1)
    ramp = ((torch.arange(width // 2, dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0, 1)
    return kept / yarn["factor"] * ramp + kept * (1 - ramp), 0.1 * math.log(yarn["factor"]) + 1


def rotate(x, config):
    """RoPE of `[batch, heads, length, head_dim]`, halves rotated against each other as in transformers."""
    waves, factor = frequencies(config)
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * waves
    cos, sin = (factor * f(angles).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def block(config, weights, at, x):
    """One decoder block on `[batch, length, hidden]`."""
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    batch, length, _ = x.shape

    def project(inputs, name):
        return torch.nn.functional.linear(inputs, weights[f"{at}{name}.weight"], weights.get(f"{at}{name}.bias"))

    normed = rms_norm(x, weights[at + "input_layernorm.weight"], config["rms_norm_eps"])
    q = project(normed, "self_attn.q_proj").view(batch, length, heads, width).transpose(1, 2)
    k = project(normed, "self_attn.k_proj").view(batch, length, kv_heads, width).transpose(1, 2)
    v = project(normed, "self_attn.v_proj").view(batch, length, kv_heads, width).transpose(1, 2)
    if at + "self_attn.q_norm.weight" in weights:
        q, k = (rms_norm(t, weights[f"{at}self_attn.{name}_norm.weight"], config["rms_norm_eps"]) for t, name in ((q, "q"), (k, "k")))
    q, k = rotate(q, config), rotate(k, config)
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + project(attended.transpose(1, 2).reshape(batch, length, -1), "self_attn.o_proj")
    normed = rms_norm(x, weights[at + "post_attention_layernorm.weight"], config["rms_norm_eps"])

    def feed_forward(mlp):
        gate, up = project(normed, f"{mlp}.gate_proj"), project(normed, f"{mlp}.up_proj")
        return project(torch.nn.functional.silu(gate) * up, f"{mlp}.down_proj")

    outputs = torch.stack([feed_forward(mlp) for mlp in feed_forwards(config)], -1)
    return x + (outputs * shares(config, weights.get(at + "mlp.gate.weight"), normed)).sum(-1)


def shares(config, router, x):
    """What the outputs of the feed-forward layers are multiplied by, `[batch, length, 1, layers]`: every expert is computed, and
    those that a token does not run through count nothing."""
    if router is None:
        return 1.0
    probabilities = torch.softmax(x @ router.T, -1)
    least = probabilities.topk(config["num_experts_per_tok"], -1).values[..., -1:]
    chosen = torch.where(probabilities >= least, probabilities, torch.zeros_like(probabilities))
    if config["norm_topk_prob"]:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    return chosen[..., None, :]


def trunk(config, weights, tokens):
    """`[batch, length]` token ids to the normed hidden states `[batch, length, hidden]`."""
    x = torch.nn.functional.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(config["num_hidden_layers"]):
        x = block(config, weights, f"model.layers.{layer}.", x)
    return rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])


def pad(sequences):
    """Lists of token ids as `[batch, longest]`, padded on the right with 0."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def of_responses(config, weights, prompts, responses, temperature=1.0):
    """Log-probs and entropies of response tokens, or the scalar head's values where they are predicted: `[batch, T]` with the
    mask of what is real."""
    lengths = [len(response) for response in responses]
    hidden = trunk(config, weights, pad([p + r for p, r in zip(prompts, responses)]))
    mask = pad([[1] * length for length in lengths]).bool()
    # Response token t of sequence i is predicted at position len(prompt_i) - 1 + t.
    places = torch.arange(max(lengths))[None] + torch.tensor([[len(p) - 1] for p in prompts])
    hidden = torch.gather(hidden, 1, places.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2]))
    if "score.weight" in weights:
        return (hidden @ weights["score.weight"].T).squeeze(-1), None, mask
    head = weights["model.embed_tokens.weight"] if config["tie_word_embeddings"] else weights["lm_head.weight"]
    log_softmax = torch.log_softmax(hidden @ head.T / temperature, -1)
    logprobs = torch.gather(log_softmax, 2, pad(responses)[..., None]).squeeze(-1)
    return logprobs, -(log_softmax.exp() * log_softmax).sum(-1), mask


def score(config, weights, sequences):
    """The scalar head at the last token of each sequence, `[batch]`."""
    hidden = trunk(config, weights, pad(sequences))
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return (hidden[torch.arange(len(sequences)), last] @ weights["score.weight"].T).squeeze(-1)
