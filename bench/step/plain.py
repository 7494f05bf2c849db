"""The PPO step in plain PyTorch, as one would write it: padded to the longest sequence, or free of padding.

    plain.py padded|free FOLDER COUNT       FOLDER as compare.py makes it; prints each step's seconds as a JSON object

Both compute old log-probs and values without gradients, GAE, then one pass: policy and critic forward and backward over the
same micro-batches of at most `microbatch_tokens` tokens (padding included where there is some), clipping, fused AdamW.
"""

import json
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

torch.set_num_threads(torch.get_num_threads())


class Decoder:
    """A Llama with a causal or a scalar head, over the parameters of a folder."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: t.requires_grad_() for name, t in load_file(folder / "model.safetensors").items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        width = self.config["head_dim"]
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(1024)[:, None] * frequencies
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def rotate(self, x, cos, sin):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def hidden(self, tokens, positions, attend):
        """Final hidden states of `[..., hidden]` for token ids of any shape."""
        config, w = self.config, self.weights
        heads, kv, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        cos, sin = self.cos[positions][..., None, :], self.sin[positions][..., None, :]
        x = F.embedding(tokens, w["model.embed_tokens.weight"])
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            y = F.rms_norm(x, (x.shape[-1],), w[at + "input_layernorm.weight"], config["rms_norm_eps"])
            q = F.linear(y, w[at + "self_attn.q_proj.weight"]).unflatten(-1, (heads, width))
            k = F.linear(y, w[at + "self_attn.k_proj.weight"]).unflatten(-1, (kv, width))
            v = F.linear(y, w[at + "self_attn.v_proj.weight"]).unflatten(-1, (kv, width))
            y = attend(self.rotate(q, cos, sin), self.rotate(k, cos, sin), v).flatten(-2)
            x = x + F.linear(y, w[at + "self_attn.o_proj.weight"])
            y = F.rms_norm(x, (x.shape[-1],), w[at + "post_attention_layernorm.weight"], config["rms_norm_eps"])
            gated = F.silu(F.linear(y, w[at + "mlp.gate_proj.weight"])) * F.linear(y, w[at + "mlp.up_proj.weight"])
            x = x + F.linear(gated, w[at + "mlp.down_proj.weight"])
        return F.rms_norm(x, (x.shape[-1],), w["model.norm.weight"], config["rms_norm_eps"])

    def numbers(self, selected, targets):
        """Log-probs of the targets, or the scalar head."""
        if "score.weight" in self.weights:
            return F.linear(selected, self.weights["score.weight"]).squeeze(-1)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return -F.cross_entropy(F.linear(selected, head).flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def attention(q, k, v):
    """Causal attention of `[batch, length, heads, width]`."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def padded(model, rows):
    """Numbers of every response token, one list a row: right padding to the longest, head over response positions only."""
    longest = max(len(r["prompt_tokens"]) + len(r["response_tokens"]) for r in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, r in enumerate(rows):
        sequence = torch.tensor(r["prompt_tokens"] + r["response_tokens"])
        tokens[place, :len(sequence)] = sequence
    width = max(len(r["response_tokens"]) for r in rows)
    hidden = model.hidden(tokens, torch.arange(longest).expand_as(tokens), attention)
    starts = torch.tensor([len(r["prompt_tokens"]) - 1 for r in rows])
    places = (starts[:, None] + torch.arange(width)).clamp(max=longest - 2)
    selected = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    found = model.numbers(selected, tokens.gather(1, places + 1))
    return [found[place, :len(r["response_tokens"])] for place, r in enumerate(rows)]


def free(model, rows):
    """The same without padding: sequences end to end, one attention call a sequence."""
    sequences = [torch.tensor(r["prompt_tokens"] + r["response_tokens"][:-1]) for r in rows]
    lengths = [len(s) for s in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])

    def attend(q, k, v):
        parts = zip(*(t.split(lengths) for t in (q, k, v)))
        return torch.cat([attention(*(t[None] for t in part))[0] for part in parts])

    hidden = model.hidden(torch.cat(sequences), positions, attend)
    starts = [sum(lengths[:place]) + len(r["prompt_tokens"]) - 1 for place, r in enumerate(rows)]
    rows_wanted = torch.cat([torch.arange(s, s + len(r["response_tokens"])) for s, r in zip(starts, rows)])
    targets = torch.cat([torch.tensor(r["response_tokens"]) for r in rows])
    found = model.numbers(hidden[rows_wanted], targets)
    return list(found.split([len(r["response_tokens"]) for r in rows]))


def micro_batches(rows, most, with_padding):
    """Rows in file order, as many as fit."""
    size = lambda r: len(r["prompt_tokens"]) + len(r["response_tokens"])  # noqa: E731
    chunks, current = [], []
    for row in rows:
        grown = current + [row]
        tokens = len(grown) * max(map(size, grown)) if with_padding else sum(map(size, grown))
        if current and tokens > most:
            chunks.append(current)
            grown = [row]
        current = grown
    return chunks + [current]


def advantages(row, values, logprobs):
    rewards = -0.01 * (logprobs - torch.tensor(row["ref_logprobs"]))
    rewards[-1] += row["score"]
    running, found = 0.0, torch.zeros_like(rewards)
    following = torch.cat([values[1:], values.new_zeros(1)])
    deltas = (rewards + following - values).tolist()
    for t in reversed(range(len(deltas))):
        running = deltas[t] + 0.95 * running
        found[t] = running
    return found


def step(policy, critic, rows, chunks, forward):
    with torch.no_grad():
        old = [x for chunk in chunks for x in forward(policy, chunk)]
        values = [x for chunk in chunks for x in forward(critic, chunk)]
        estimated = [advantages(row, v, o) for row, v, o in zip(rows, values, old)]
        returns = torch.cat([a + v for a, v in zip(estimated, values)])
        flat = torch.cat(estimated)
        flat = (flat - flat.mean()) / (flat.var(unbiased=False) + 1e-8).sqrt()
    old, values, total, start = torch.cat(old), torch.cat(values), len(flat), 0
    for chunk in chunks:
        own = slice(start, start + sum(len(r["response_tokens"]) for r in chunk))
        ratio = (torch.cat(forward(policy, chunk)) - old[own]).exp()
        (-torch.minimum(ratio * flat[own], ratio.clamp(0.8, 1.2) * flat[own]).sum() / total).backward()
        new = torch.cat(forward(critic, chunk))
        clipped = values[own] + (new - values[own]).clamp(-0.2, 0.2)
        (0.5 * torch.maximum((new - returns[own]) ** 2, (clipped - returns[own]) ** 2).sum() / total).backward()
        start = own.stop
    policy.update()
    critic.update()


def main():
    kind, folder, count = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    forward = {"padded": padded, "free": free}[kind]
    rows = [json.loads(line) for line in (folder / "batch.jsonl").read_text().splitlines()]
    most = json.loads((folder / "config.json").read_text())["microbatch_tokens"]
    chunks = micro_batches(rows, most, kind == "padded")
    policy, critic = Decoder(folder / "policy"), Decoder(folder / "critic")
    for number in range(1, count + 1):
        started = time.perf_counter()
        step(policy, critic, rows, chunks, forward)
        print(json.dumps({"step": number, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
