"""A decoder in plain PyTorch, with padding: the Llama and Qwen2 families, written from their papers and config.json.

Nothing here is shared with Sluice. A network is a dict of parameters under their Hugging Face names; sequences are padded
on the right, so that the causal mask alone keeps real tokens from seeing padding.
"""

import json
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


def config_of(family, *, vocab, hidden, intermediate, layers, heads, kv_heads, tied, scalar=False):
    """The config.json of a small network."""
    name = {"llama": "Llama", "qwen2": "Qwen2"}[family]
    head = "ForSequenceClassification" if scalar else "ForCausalLM"
    return {
        "architectures": [name + head], "model_type": family, "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "hidden_act": "silu",
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": tied, "initializer_range": 0.02, "torch_dtype": "float32",
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **({"num_labels": 1} if scalar else {}),
    }


def shapes(config):
    """Every parameter's name and shape."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
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
        found[at + "mlp.gate_proj.weight"] = (wide, hidden)
        found[at + "mlp.up_proj.weight"] = (wide, hidden)
        found[at + "mlp.down_proj.weight"] = (hidden, wide)
        found[at + "input_layernorm.weight"] = (hidden,)
        found[at + "post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    if "SequenceClassification" in config["architectures"][0]:
        found["score.weight"] = (1, hidden)
    elif not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


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


def rotate(x, theta):
    """RoPE of `[batch, heads, length, head_dim]`, halves rotated against each other as in transformers."""
    length, width = x.shape[-2:]
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cos, sin = (f(angles).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
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
    q, k = rotate(q, config["rope_theta"]), rotate(k, config["rope_theta"])
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + project(attended.transpose(1, 2).reshape(batch, length, -1), "self_attn.o_proj")
    normed = rms_norm(x, weights[at + "post_attention_layernorm.weight"], config["rms_norm_eps"])
    gate, up = project(normed, "mlp.gate_proj"), project(normed, "mlp.up_proj")
    return x + project(torch.nn.functional.silu(gate) * up, "mlp.down_proj")


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
