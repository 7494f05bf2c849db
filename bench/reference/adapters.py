"""Adapters as the PEFT library has them: what Sluice writes PEFT reads, what PEFT writes Sluice goes on from.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 transformers==5.24.0 peft==0.21.2
    cargo build --locked --workspace --bin sluice --bin sluice-compute
    VENV/bin/python bench/reference/adapters.py [--sluice PATH]

For a policy and a reward model: the base with the adapter in PEFT has the logits of the merged folder that Sluice writes beside
it; an adapter of random numbers that PEFT writes, gone on with at a learning rate of 0, comes out merged as PEFT merges it.
"""

import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(1, 40).unsqueeze(0)


def base(folder):
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=None,
                         eos_token_id=None, pad_token_id=0)
    LlamaForCausalLM(config).float().save_pretrained(folder)


def rows(path):
    rng = random.Random(2)
    tokens = lambda: [rng.randrange(1, 64) for _ in range(6)]  # noqa: E731
    lines = [{"prompt_tokens": tokens(), "response_tokens": tokens(), "chosen_tokens": tokens(), "rejected_tokens": tokens()}
             for _ in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def train(sluice, command, work, name, lr, start=None):
    """Runs Sluice with adapters of rank 4 and scale 2; returns the folder it wrote."""
    lora = ["[execution.lora]", "rank = 4", "alpha = 8.0"] + ([f"start = {json.dumps(str(start))}"] if start else [])
    keys = [f"{key} = {json.dumps(str(work / value))}" for key, value in
            (("model", "base"), ("data", "rows.jsonl"), ("output", name))]
    sections = ["[training]", "epochs = 2", "batch_size = 4", "[optimizer]", f"lr = {lr}"]
    (work / "config.toml").write_text("\n".join(keys + sections + lora) + "\n")
    subprocess.run([sluice, command, "--config", work / "config.toml"], check=True, capture_output=True)
    return work / name


def output(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sluice", default=CHECKOUT / "target/debug/sluice")
    sluice = parser.parse_args().sluice
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        base(work / "base")
        rows(work / "rows.jsonl")
        for command, task, load in (
                ("sft", "CAUSAL_LM", lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)),
                ("train-rm", "SEQ_CLS", lambda path: AutoModelForSequenceClassification.from_pretrained(
                    path, num_labels=1, dtype=torch.float32))):
            merged = train(sluice, command, work, f"{command}-out", 1e-2)
            adapted = PeftModel.from_pretrained(load(work / "base"), merged / "adapter")
            read = apart(output(adapted), output(load(merged)))
            # The other way round. What PEFT draws for B is zero.
            config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type=task)
            own = get_peft_model(load(work / "base"), config)
            torch.manual_seed(5)
            for name, parameter in own.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.1)
            own.save_pretrained(work / f"{command}-peft")
            went_on = train(sluice, command, work, f"{command}-again", 0.0, start=work / f"{command}-peft")
            written = apart(output(load(went_on)), output(own))
            print(f"{command}: read by PEFT {read:.1e}, gone on with from PEFT {written:.1e}")
            assert read < 1e-5 and written < 1e-5


if __name__ == "__main__":
    main()
