"""The PPO step of TRL's experimental PPOTrainer, on the folder that compare.py makes.

    trl_step.py FOLDER COUNT                prints each step's seconds as a JSON object

The trainer runs as it is, but generation gives the recorded responses with their logits, which are computed beforehand. Counted is
from there to the end of the step, without the reference and the reward model, which Sluice's learner does not run: values,
advantages, one pass of policy and critic, AdamW. TRL takes the old log-probs from generation; Sluice computes them in its step.
"""

import json
import pathlib
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback)
from trl.experimental.ppo import PPOConfig, PPOTrainer

ppo_trainer = sys.modules[PPOTrainer.__module__]


class Stopwatch(TrainerCallback):
    """Seconds from the end of generation to the end of the step, less what is not the learner's."""

    def __init__(self):
        self.since, self.others, self.number = 0.0, 0.0, 0

    def start(self):
        self.since, self.others = time.perf_counter(), 0.0

    def without(self, function, of):
        """`function` with the time that it takes for one of the models `of` not counted."""
        def timed(model, *arguments, **named):
            started = time.perf_counter()
            found = function(model, *arguments, **named)
            self.others += (time.perf_counter() - started) * any(model is other for other in of)
            return found
        return timed

    def on_step_end(self, *_, **__):
        self.number += 1
        seconds = time.perf_counter() - self.since - self.others
        print(json.dumps({"step": self.number, "seconds": seconds}), flush=True)


def tokenizer_of(vocab):
    """Only its padding token is used, number 0."""
    words = {f"t{token}": token for token in range(vocab)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "t1")), pad_token="t0", eos_token="t1")


def padded(rows, pad):
    """Prompts padded on the left, responses on the right. The padding's token is another one where a row has it."""
    rows = [{key: [token or 1 for token in row[key]] for key in ("prompt_tokens", "response_tokens")} for row in rows]
    width = max(len(row["prompt_tokens"]) for row in rows)
    longest = max(len(row["response_tokens"]) for row in rows)
    prompts = [[pad] * (width - len(row["prompt_tokens"])) + row["prompt_tokens"] for row in rows]
    responses = [row["response_tokens"] + [pad] * (longest - len(row["response_tokens"])) for row in rows]
    return prompts, torch.tensor([a + b for a, b in zip(prompts, responses)])


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    rows = [json.loads(line) for line in (folder / "batch.jsonl").read_text().splitlines()]
    most = json.loads((folder / "config.json").read_text())["microbatch_tokens"]
    tokenizer = tokenizer_of(json.loads((folder / "policy/config.json").read_text())["vocab_size"])
    prompts, query_responses = padded(rows, tokenizer.pad_token_id)
    width = query_responses.shape[1]
    at_once = max(size for size in range(1, len(rows) + 1) if len(rows) % size == 0 and size * width <= max(most, width))
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    critic, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder / "critic", dtype=torch.float32) for _ in range(2))
    stopwatch = Stopwatch()

    def recorded(model, queries, *_):
        context = queries.shape[1]
        with torch.no_grad():
            parts = query_responses.split(at_once)
            logits = [ppo_trainer.forward(model, part, tokenizer.pad_token_id).logits[:, context - 1:-1] for part in parts]
        found = query_responses.clone(), torch.cat(logits)
        stopwatch.start()
        return found

    ppo_trainer.forward = stopwatch.without(ppo_trainer.forward, [reference])
    ppo_trainer.get_reward = stopwatch.without(ppo_trainer.get_reward, [reward])
    ppo_trainer.batch_generation = recorded
    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=output, use_cpu=True, bf16=False, learning_rate=1e-5, num_ppo_epochs=1, num_mini_batches=1,
                per_device_train_batch_size=at_once, gradient_accumulation_steps=len(rows) // at_once,
                local_rollout_forward_batch_size=at_once, response_length=width - len(prompts[0]),
                total_episodes=count * len(rows), num_sample_generations=0, save_strategy="no", report_to=[],
                gradient_checkpointing=False, logging_steps=10**9, disable_tqdm=True),
            processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": prompts}), callbacks=[stopwatch])
        trainer.log = lambda *_: None
        trainer.train()


if __name__ == "__main__":
    main()
