"""Tokens per second of the actor's engine against llama.cpp, on the same weights, prompts and lengths, both in f32.

    cargo build --release -p engine --example engine_speed
    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch transformers gguf llama-cpp-python
    /tmp/peers/bin/python bench/generate/compare_llama_cpp.py [--repeats 5]

The weights are converted to GGUF, and the log-probs of one prompt compared, so that both run the same network. llama.cpp runs with
and without flash attention, which rounds more (log-probs to 1e-3 instead of 1e-6), and the faster one counts. It decodes
one token of every sequence in a call of `llama_decode`, through its own interface; only the time inside these calls counts,
neither drawing tokens nor Python: more than it could reach. The engine's time counts whole.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy
import torch
import transformers

import compare
from engine import ROOT, run_engine

# llama.cpp would print every tensor.
SILENT = llama_cpp.llama_log_callback(lambda *_: None)

# model, batch
WORKLOADS = [("1M", 64), ("6M", 64), ("90M", 16)]
PROMPT, NEW = 32, 128


def convert(model, file):
    """Writes a Llama as GGUF in f32. Rows of queries and keys go where llama.cpp's rotation of neighbours finds them."""
    config = model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    weights = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}

    def neighbours(weight):
        halves = weight.view(heads, 2, -1, weight.shape[1])
        return halves.transpose(1, 2).reshape(weight.shape)

    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    for layer in range(layers):
        for theirs, name in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            weight = neighbours(weight) if name in ("attn_q", "attn_k") else weight
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight.contiguous().numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A context of llama.cpp for some sequences."""

    def __init__(self, file, sequences, threads, flash_attention):
        self.sequences = sequences
        llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = sequences * (PROMPT + NEW)
        options.n_batch = options.n_ubatch = max(512, sequences)
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = threads
        # GGML_TYPE_F32, as ours.
        options.type_k = options.type_v = 0
        options.flash_attn_type = flash_attention
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)
        self.seconds = 0.0

    def decode(self, entries):
        """Runs (token, position, sequence, wanted) and returns the logits of the wanted ones, `[wanted, vocab]`."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for at, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        started = time.perf_counter()
        failed = llama_cpp.llama_decode(self.context, batch)
        logits = llama_cpp.llama_get_logits(self.context)
        self.seconds += time.perf_counter() - started
        assert failed == 0, failed
        count = sum(entry[3] for entry in entries)
        return numpy.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (count, self.vocab)).copy()

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def generate(self, prompts, generator):
        """Seconds inside of llama.cpp for NEW tokens after each prompt."""
        self.forget()
        self.seconds, entries, logits = 0.0, [], []
        for sequence, prompt in enumerate(prompts):
            entries += [(token, at, sequence, at + 1 == len(prompt)) for at, token in enumerate(prompt)]
            if len(entries) + PROMPT > 512 or sequence + 1 == len(prompts):
                logits.append(self.decode(entries))
                entries = []
        logits = numpy.concatenate(logits)
        for step in range(NEW - 1):
            noise = generator.gumbel(size=logits.shape)
            drawn = (logits + noise).argmax(1).tolist()
            logits = self.decode([(token, PROMPT + step, at, True) for at, token in enumerate(drawn)])
        return self.seconds


def check(peer, model, prompt):
    """Largest difference of the log-probs after a prompt from those of transformers."""
    peer.forget()
    logits = peer.decode([(token, at, 0, at + 1 == len(prompt)) for at, token in enumerate(prompt)])
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return (torch.from_numpy(logits[0]).log_softmax(-1) - expected).abs().max().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=str(ROOT / "target/release/examples/engine_speed"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as top:
        for name, batch in WORKLOADS:
            folder = Path(top) / name
            model = compare.make_model(name, folder)
            convert(model, folder / "model.gguf")
            requests = compare.make_requests("fixed", batch, compare.MODELS[name][4])
            path = folder / "fixed.jsonl"
            path.write_text("".join(f'{{"tokens": {r["tokens"]}, "max_new_tokens": {r["max_new_tokens"]}}}\n' for r in requests))
            exact, flash = (LlamaCpp(folder / "model.gguf", batch, threads, flash) for flash in (False, True))
            prompts = [request["tokens"] for request in requests]
            apart = check(exact, model, prompts[0])
            assert apart < 1e-4, f"{name}: log-probs differ by {apart}"
            generator = numpy.random.default_rng(0)
            for peer in (exact, flash):
                peer.generate(prompts, generator)
            pairs = []
            for _ in range(arguments.repeats):
                theirs = batch * NEW / min(peer.generate(prompts, generator) for peer in (exact, flash))
                ours = run_engine(arguments.engine, folder, path, batch, "f32")
                pairs.append((ours["new_tokens"] / ours["seconds"], theirs))
            ours, theirs = (statistics.median(side) for side in zip(*pairs))
            ratios = sorted(mine / other for mine, other in pairs)
            print(f"| {name}, batch {batch} | {ours:,.0f} | {theirs:,.0f} | **{statistics.median(ratios):.2f}** "
                  f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | log-probs apart {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
