"""Networks of random weights in the shapes of Qwen2.5, in bf16, for benchmarks of GPUs. Needs nothing but Python."""

import json
import math

# hidden, layers, heads, key heads, intermediate, vocabulary, tied: the shapes of Qwen2.5.
MODELS = {
    "tiny": (64, 2, 4, 2, 128, 1000, True),
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}


def shapes(name, scalar=False):
    """The network's tensors and their shapes, by their names in a model folder."""
    hidden, layers, heads, kv_heads, intermediate, vocab, tied = MODELS[name]
    kv = hidden // heads * kv_heads
    tensors = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if scalar:
        tensors["score.weight"] = (1, hidden)
    elif not tied:
        tensors["lm_head.weight"] = (vocab, hidden)
    for layer in range(layers):
        block = {"self_attn.q_proj.weight": (hidden, hidden), "self_attn.q_proj.bias": (hidden,),
                 "self_attn.k_proj.weight": (kv, hidden), "self_attn.k_proj.bias": (kv,),
                 "self_attn.v_proj.weight": (kv, hidden), "self_attn.v_proj.bias": (kv,),
                 "self_attn.o_proj.weight": (hidden, hidden), "mlp.gate_proj.weight": (intermediate, hidden),
                 "mlp.up_proj.weight": (intermediate, hidden), "mlp.down_proj.weight": (hidden, intermediate),
                 "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        tensors |= {f"model.layers.{layer}.{part}": shape for part, shape in block.items()}
    return tensors


def elements(shape):
    return math.prod(shape)


def begun_folder(name, folder, scalar=False):
    """A model folder of which the weights are to be written into the file that this returns, in the order of `shapes`."""
    hidden, layers, heads, kv_heads, intermediate, vocab, tied = MODELS[name]
    kind = "Qwen2ForSequenceClassification" if scalar else "Qwen2ForCausalLM"
    config = {"architectures": [kind], "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": intermediate,
              "vocab_size": vocab, "tie_word_embeddings": tied, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
              "rope_theta": 1e6, "hidden_act": "silu", "torch_dtype": "bfloat16", "use_sliding_window": False}
    if scalar:
        config |= {"num_labels": 1, "pad_token_id": 0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor, shape in shapes(name, scalar).items():
        start, end = end, end + 2 * elements(shape)
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = (folder / "model.safetensors").open("wb")
    file.write(len(text).to_bytes(8, "little") + text)
    return file
