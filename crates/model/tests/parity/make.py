"""Makes the expected numbers of the parity tests with transformers.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 transformers safetensors numpy
    VENV/bin/python make.py                     # writes cases/*.json and sharded/; with names, those cases alone
    VENV4/bin/python make.py --version-4        # the same with transformers 4 (>= 4.57): checks the numbers, adds config_v4

Weights are not stored: both sides fill each parameter from a hash of its name and the element's index (fill below;
fill in ../parity.rs). A salt is tried until every greedy step has a clear winner, so that a continuation does not
hang on the last bit of a float.
"""

import copy
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).parent
CASES = HERE / "cases"
NEW_TOKENS = 200
MARGIN = 2e-3

SMALL = dict(
    vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=None, pad_token_id=None,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
EXPERTS = dict(head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)

# name: (model_type, head, options on top of SMALL)
TABLE = {
    "llama_gqa": ("llama", "causal", {}),
    "llama_tied_mha": ("llama", "causal", dict(num_key_value_heads=6, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama_biases": ("llama", "causal", dict(attention_bias=True, mlp_bias=True)),
    "llama_linear": ("llama", "causal", dict(rope_theta=1e5, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "llama_dynamic": ("llama", "causal", dict(max_position_embeddings=240,
                                              rope_scaling=dict(rope_type="dynamic", factor=2.0))),
    "llama_llama3": ("llama", "causal", dict(rope_theta=5e5, rope_scaling=LLAMA3, head_dim=16)),
    "llama_yarn": ("llama", "causal", dict(head_dim=16, rope_scaling=dict(
        YARN, factor=8.0, beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5, truncate=False))),
    "mistral_window": ("mistral", "causal", dict(sliding_window=12)),
    "mistral_full": ("mistral", "causal", dict(sliding_window=None, head_dim=12, rope_theta=1e6)),
    "qwen2_tied": ("qwen2", "causal", dict(tie_word_embeddings=True, rope_theta=1e6)),
    "qwen2_window": ("qwen2", "causal", dict(use_sliding_window=True, sliding_window=9, max_window_layers=1)),
    "qwen3": ("qwen3", "causal", dict(head_dim=16, rope_theta=1e6)),
    "qwen3_window_bias": ("qwen3", "causal", dict(head_dim=12, attention_bias=True, use_sliding_window=True,
                                                  sliding_window=20, max_window_layers=2, tie_word_embeddings=True)),
    "qwen3_yarn": ("qwen3", "causal", dict(head_dim=16, rope_theta=1e6, rope_scaling=YARN)),
    "qwen3_moe": ("qwen3_moe", "causal", dict(EXPERTS, norm_topk_prob=True, rope_theta=1e6)),
    "qwen3_moe_sums": ("qwen3_moe", "causal", dict(EXPERTS, num_experts=9, num_experts_per_tok=4, attention_bias=True,
                                                   tie_word_embeddings=True)),
    "llama_score": ("llama", "scalar", dict(rope_scaling=LLAMA3)),
    "mistral_score": ("mistral", "scalar", dict(sliding_window=16)),
    "qwen2_score": ("qwen2", "scalar", {}),
    "qwen3_score": ("qwen3", "scalar", dict(head_dim=16)),
    "qwen3_moe_score": ("qwen3_moe", "scalar", dict(EXPERTS, norm_topk_prob=True)),
}


def mix(value):
    """SplitMix64's finalizer on an array of uint64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def fill(name, shape, salt):
    """Uniform numbers of 24 bits: matrices around 0, norms around 1, biases around 0."""
    with np.errstate(over="ignore"):
        state = np.array([salt], dtype=np.uint64)
        for byte in name.encode():
            state = mix(state ^ np.uint64(byte))
        hashed = mix(state ^ mix(np.arange(int(np.prod(shape)), dtype=np.uint64)))
    uniform = (hashed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    if len(shape) == 1 and name.endswith("norm.weight"):
        values = uniform * np.float32(0.25) + np.float32(1)
    elif len(shape) == 1:
        values = uniform * np.float32(0.25)
    else:
        values = uniform * np.float32(0.5)
    return torch.from_numpy(values.reshape(shape))


def configure(model_type, head, options):
    fields = copy.deepcopy(dict(SMALL, **options))  # transformers writes into nested options
    if head == "scalar":
        fields["num_labels"] = 1
    config = AutoConfig.for_model(model_type, **fields)
    if head == "scalar":
        config.architectures = [type(config).__name__.replace("Config", "ForSequenceClassification")]
    else:
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    return config


def build(config, head, salt, dtype=torch.float32):
    auto = AutoModelForCausalLM if head == "causal" else AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filled(name, tuple(parameter.shape), salt))
    return model


def filled(name, shape, salt):
    """As fill, under the names of the file: transformers 5 keeps all experts in one parameter."""
    stem, _, part = name.rpartition(".experts.")
    if part not in ("gate_up_proj", "down_proj"):
        return fill(name, shape, salt)
    halves = ["gate_proj", "up_proj"] if part == "gate_up_proj" else ["down_proj"]
    rows = (shape[1] // len(halves), shape[2])
    of_expert = lambda expert: torch.cat(  # noqa: E731
        [fill(f"{stem}.experts.{expert}.{half}.weight", rows, salt) for half in halves]
    )
    return torch.stack([of_expert(expert) for expert in range(shape[0])])


def tokens(count, stream, vocab):
    with np.errstate(over="ignore"):
        hashed = mix(np.arange(count, dtype=np.uint64) ^ mix(np.array([stream], dtype=np.uint64)))
    return [int(token) for token in (hashed >> np.uint64(33)) % np.uint64(vocab)]


@torch.no_grad()
def logprobs(model, sequence):
    logits = model(torch.tensor([sequence])).logits[0].float()
    targets = torch.tensor(sequence[1:])
    return logits[:-1].log_softmax(-1).gather(-1, targets[:, None])[:, 0].tolist()


@torch.no_grad()
def greedy(model, prompt):
    """Greedy continuation, and the smallest distance between the best and the second logit on its way."""
    settings = dict(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True,
                         return_dict_in_generate=True, **settings)
    best = torch.stack(out.logits)[:, 0].float().topk(2).values
    return out.sequences[0, len(prompt):].tolist(), (best[:, 0] - best[:, 1]).min().item()


@torch.no_grad()
def greedy_batch(model, prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
                         eos_token_id=None)
    return out[:, longest:].tolist()


def rounded(values):
    return [float(f"{value:.8g}") for value in values]


def make(name, model_type, head, options):
    config = configure(model_type, head, options)
    vocab = SMALL["vocab_size"]
    sequences = [tokens(count, 7 + count, vocab) for count in (2, 5, 300, 33, 16, 64)]
    case = dict(name=name, head=head, config_v5=json.loads(config.to_json_string()), sequences=sequences)
    for salt in range(1, 200):
        model = build(config, head, salt)
        if head == "scalar":
            with torch.no_grad():
                case["scores"] = rounded(model(torch.tensor([row])).logits.item() for row in sequences)
            break
        prompts = [tokens(count, 1000 + count, vocab) for count in (1, 4, 13, 30)]
        runs = [greedy(model, prompt) for prompt in prompts]
        if min(margin for _, margin in runs) > MARGIN:
            continuations = [continuation for continuation, _ in runs]
            assert greedy_batch(model, prompts) == continuations, name
            case.update(prompts=prompts, greedy=continuations)
            case["logprobs"] = [rounded(logprobs(model, row)) for row in sequences]
            break
    else:
        raise SystemExit(f"{name}: no salt gives clear greedy steps")
    case["salt"] = salt
    if name == "qwen3":
        for dtype in ("bfloat16", "float16"):
            half = build(config, head, salt, getattr(torch, dtype))
            case[dtype] = [rounded(logprobs(half, row)) for row in sequences]
    (CASES / f"{name}.json").write_text(json.dumps(case) + "\n")
    print(name, "salt", salt, flush=True)


def make_sharded():
    """A folder as transformers writes it: half precision, two shards, several end-of-sequence tokens."""
    config = configure("llama", "causal", dict(vocab_size=61, hidden_size=32, intermediate_size=48,
                                                num_hidden_layers=2, num_attention_heads=4, dtype="bfloat16"))
    model = build(config, "causal", 3, torch.bfloat16)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(HERE / "sharded", max_shard_size="20KB")
    sequence = tokens(40, 5, 61)
    loaded = AutoModelForCausalLM.from_pretrained(HERE / "sharded", dtype=torch.float32)
    expected = dict(tokens=sequence, logprobs=rounded(logprobs(loaded, sequence)))
    (HERE / "sharded" / "expected.json").write_text(json.dumps(expected) + "\n")


def check_version_4(name, model_type, head, options):
    path = CASES / f"{name}.json"
    case = json.loads(path.read_text())
    config = configure(model_type, head, options)
    model = build(config, head, case["salt"])
    if head == "scalar":
        with torch.no_grad():
            found = [[model(torch.tensor([row])).logits.item()] for row in case["sequences"]]
        expected = [[score] for score in case["scores"]]
    else:
        found = [logprobs(model, row) for row in case["sequences"]]
        expected = case["logprobs"]
    worst = max(abs(a - b) for x, y in zip(found, expected) for a, b in zip(x, y))
    assert worst < 2e-5, (name, worst)
    case["config_v4"] = json.loads(config.to_json_string())
    path.write_text(json.dumps(case) + "\n")
    print(name, f"differs from version 5 by at most {worst:.1e}", flush=True)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    version_4 = "--version-4" in sys.argv
    asked = [argument for argument in sys.argv[1:] if argument in TABLE]
    assert transformers.__version__.startswith("4." if version_4 else "5."), transformers.__version__
    for name, (model_type, head, options) in TABLE.items():
        if name in asked or not asked:
            (check_version_4 if version_4 else make)(name, model_type, head, options)
    if not version_4 and not asked:
        make_sharded()


if __name__ == "__main__":
    main()
