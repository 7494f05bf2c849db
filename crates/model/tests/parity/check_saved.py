"""Checks that folders written by Sluice load in transformers (4 or 5) and give the same numbers.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 transformers safetensors
    VENV/bin/python crates/model/tests/parity/check_saved.py       # from the repository's root; builds what it needs
"""

import json
import pathlib
import subprocess
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def check_tokenizer(path):
    expected = json.loads((path / "expected.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(path)
    for case in expected["texts"]:
        tokens = tokenizer(case["text"])["input_ids"]
        assert tokens == case["tokens"], (case, tokens)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == case["decoded"], case
    assert [tokenizer.eos_token_id] == expected["eos"] and tokenizer.pad_token_id == expected["pad"]
    rendered = tokenizer.apply_chat_template([dict(role="user", content="hi")], tokenize=False)
    assert rendered == "<|user|>hi<|end|>", rendered


@torch.no_grad()
def check_model(path):
    expected = json.loads((path / "expected.json").read_text())
    config = json.loads((path / "config.json").read_text())
    scalar = config["architectures"][0].endswith("ForSequenceClassification")
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model, report = auto.from_pretrained(path, output_loading_info=True, dtype="auto")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (path.name, report)
    half = config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert model.dtype == (torch.bfloat16 if half else torch.float32), (path.name, model.dtype)
    found = model(torch.tensor([expected["tokens"]])).logits.float().flatten()
    numbers = torch.tensor(expected["numbers"])
    assert scalar or numbers.std() > 0.01, path.name
    difference = (found - numbers).abs().max().item()
    # Relative to the size of the logits: f32 carries seven digits. In half precision both sides round.
    bound = 0.02 if half else 1e-5 * max(1.0, numbers.abs().max().item())
    assert difference < bound, (path.name, difference, bound)
    return difference, difference / max(1.0, numbers.abs().max().item())


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run(["cargo", "run", "-q", "-p", "model", "--example", "folders", "--", str(folder)], check=True)
        check_tokenizer(folder / "tokenizer")
        models = sorted(path for path in folder.iterdir() if path.name != "tokenizer")
        assert len(models) == 12 + 32 + 1, len(models)
        worst = max((check_model(path), path.name) for path in models if path.name != "bfloat16")
        half = check_model(folder / "bfloat16")
        print(f"transformers {transformers.__version__}: {len(models)} folders and a tokenizer load; "
              f"largest difference in logits {worst[0][0]:.1e} (relative {worst[0][1]:.1e}, {worst[1]}), "
              f"bfloat16 {half[0]:.1e}")


if __name__ == "__main__":
    main()
