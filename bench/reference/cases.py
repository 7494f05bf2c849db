"""Networks, random batches and the table of configurations that both sides are compared on."""

import random

import torch

import network
import ppo

VOCAB = 29

EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True, decoder_sparse_step=1,
               mlp_only_layers=[])
YARN = dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16))

# name: (family, tied, hidden, intermediate, layers, heads, key heads, further fields of config.json)
NETWORKS = {
    "llama": ("llama", False, 16, 24, 2, 4, 2, {}),
    "qwen2": ("qwen2", True, 16, 24, 2, 4, 2, {}),
    "tiny": ("llama", False, 8, 12, 1, 2, 1, {}),
    "experts": ("qwen3_moe", False, 16, 24, 2, 4, 2, EXPERTS),
    "yarn": ("llama", True, 16, 24, 2, 2, 1, YARN),
}

# name: most turns of a sample
BATCHES = {"batch": 1, "episodes": 5, "sequences": 4}

# A step of one minibatch from which the gradient can be read: AdamW with an epsilon that outweighs everything moves
# weights by lr / eps times the gradient.
GRADIENT_SCALE = 1e3
GRADIENT = dict(ppo_epochs=1, minibatch_size=1000, policy_lr=1e8 * GRADIENT_SCALE, critic_lr=1e8 * GRADIENT_SCALE,
                adam_eps=1e8, max_grad_norm="off", shuffle=False)

# Several optimizer steps that move far enough for every clip to act.
UPDATE = dict(ppo_epochs=3, minibatch_size=5, policy_lr=2e-2, critic_lr=2e-2, adam_eps=1e-3, shuffle=False)


def gradient(name, net="tiny", batch="batch", **options):
    return dict(name=name, net=net, batch=batch, kind="gradient", config={**GRADIENT, **options})


def update(name, net="tiny", batch="batch", **options):
    return dict(name=name, net=net, batch=batch, kind="update", config={**UPDATE, **options})


CASES = [
    gradient("gradient-llama", "llama"),
    gradient("gradient-qwen2-tied", "qwen2"),
    gradient("gradient-experts", "experts", entropy_coefficient=0.02),
    gradient("gradient-yarn", "yarn"),
    gradient("gradient-discounts", gamma=0.97, gae_lambda=0.9, kl_coefficient=0.1, kl_estimator="k3"),
    gradient("gradient-k2", kl_coefficient=0.2, kl_estimator="k2", score_clip=0.4),
    gradient("gradient-whiten-before", whiten="before-filter"),
    gradient("gradient-whiten-off", whiten="off", critic_on="all"),
    gradient("gradient-entropy", entropy_coefficient=0.05),
    gradient("gradient-seq-mean-token-mean", loss_aggregation="seq-mean-token-mean"),
    gradient("gradient-seq-mean-token-sum", loss_aggregation="seq-mean-token-sum"),
    gradient("gradient-seq-mean-token-sum-norm", loss_aggregation="seq-mean-token-sum-norm", norm_tokens=40),
    gradient("gradient-token-sum", loss_aggregation="token-sum"),
    gradient("gradient-kl-in-loss", kl_in="loss", kl_coefficient=0.3, kl_estimator="k3"),
    gradient("gradient-k3-plus-in-loss", kl_in="loss", kl_coefficient=0.3, kl_estimator="k3+"),
    dict(gradient("gradient-temperature", entropy_coefficient=0.02), temperature=0.7),
    gradient("gradient-positive-weight", positive_weight=0.3),
    gradient("gradient-overlong", overlong=dict(max_length=16, cache=8)),
    update("update-llama", "llama"),
    update("update-experts", "experts"),
    update("update-qwen2-tied", "qwen2", betas=[0.9, 0.999], weight_decay=0.1, schedule="linear", warmup_steps=2),
    update("update-clips", clip_ratio_low=0.1, clip_ratio_high=0.05, dual_clip=1.05, value_clip=0.05),
    update("update-no-value-clip", value_clip="off", max_grad_norm=0.05, schedule="cosine"),
    update("update-decay-on-matrices", weight_decay=0.5, weight_decay_on="matrices", max_grad_norm="off"),
    update("update-critic-on-all", critic_on="all", whiten="before-filter", minibatch_size=4),
    update("update-off-policy-mask", off_policy_delta=0.02),
    *[update(f"update-{algorithm}", algorithm=algorithm) for algorithm in ppo.ALGORITHMS if algorithm not in ("pf-ppo", "ppo")],
    update("update-token", correction="token"),
    update("update-tis", correction={"token-truncate": {"max": 1.1}}),
    update("update-icepop", correction={"token-mask": {"min": 0.9, "max": 1.1}}),
    update("update-sequence-tis", correction={"sequence-truncate": {"max": 1.05}}),
    update("update-sequence-mask", correction={"sequence-mask": {"min": 0.98, "max": 1.02}}),
    update("update-sequence-product-mask", correction={"sequence-product-mask": {"max": 1.1}}),
    update("update-clip-cov", covariance={"clip-cov": {"share": 1.0, "low": 0.1, "high": 2.0}}),
    # A share at which no token stands at the kink of the distance: with 0.2 the reference itself moves by 0.2 for a noise of 1e-7.
    update("update-kl-cov", covariance={"kl-cov": {"share": 0.1, "coefficient": 1.0}}, clip_ratio_low=1.0, clip_ratio_high=99.0),
    gradient("gradient-clip-cov", covariance={"clip-cov": {"share": 1.0, "low": 0.1, "high": 2.0}}),
    # Episodes: what was given between turns is context, and counts nowhere.
    gradient("gradient-episodes", "llama", batch="episodes", gamma=0.97, gae_lambda=0.9, kl_coefficient=0.1),
    gradient("gradient-episodes-qwen2-tied", "qwen2", batch="episodes", entropy_coefficient=0.05, whiten="before-filter"),
    gradient("gradient-episodes-kl-in-loss", batch="episodes", kl_in="loss", kl_coefficient=0.3, kl_estimator="k3"),
    gradient("gradient-episodes-seq-mean-token-mean", batch="episodes", loss_aggregation="seq-mean-token-mean"),
    gradient("gradient-episodes-seq-mean-token-sum-norm", batch="episodes", loss_aggregation="seq-mean-token-sum-norm"),
    gradient("gradient-episodes-overlong", batch="episodes", overlong=dict(max_length=9, cache=6)),
    *[update(f"update-episodes-{algorithm}", batch="episodes", algorithm=algorithm) for algorithm in
      ("pf-ppo", "pf-ppo-paper", "grpo", "dr-grpo", "rloo", "reinforce-plus-plus", "dapo", "gspo", "cispo", "decoupled-ppo",
       "on-policy-distillation")],
    # Several sequences that share a reward, and rewards of turns.
    gradient("gradient-sequences", "llama", batch="sequences", entropy_coefficient=0.05, kl_coefficient=0.1),
    gradient("gradient-sequences-yarn", "yarn", batch="sequences", gamma=0.97),
    *[gradient(f"gradient-credit-{credit}-{algorithm}", batch="sequences", algorithm=algorithm, credit=credit, turn_gamma=0.7)
      for credit, algorithm in (("token", "ppo"), ("turn", "ppo"), ("token", "reinforce-plus-plus"), ("turn", "reinforce-plus-plus"),
                                ("turn", "grpo"), ("turn", "dr-grpo"), ("turn", "rloo"))],
    gradient("gradient-credit-token-gamma", "llama", batch="sequences", gamma=0.9, credit="token", score_clip=0.5),
    gradient("gradient-credit-turn-all", "qwen2", batch="episodes", credit="turn", whiten="before-filter", critic_on="all"),
    update("update-credit-turn", "llama", batch="sequences", credit="turn"),
    update("update-credit-turn-grpo", "llama", batch="sequences", algorithm="grpo", credit="turn"),
    update("update-episodes-off-policy-mask", batch="episodes", off_policy_delta=0.02),
    update("update-episodes-sequence-mask", batch="episodes", correction={"sequence-mask": {"min": 0.98, "max": 1.02}}),
]


def models(net, seed):
    """A random policy and critic."""
    family, tied, hidden, intermediate, layers, heads, kv_heads, more = NETWORKS[net]
    found = []
    for scalar in (False, True):
        config = network.config_of(family, vocab=VOCAB, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads,
                                   kv_heads=kv_heads, tied=tied, scalar=scalar, **more)
        found.append((config, network.random_weights(config, 2 * seed + scalar, 0.25)))
    return found


def batch(policy, seed, samples=14, turns=1):
    """A ragged batch: groups of four, weights of every kind, responses of one token, truncated ones, rollout log-probs that
    are the policy's up to noise. With several turns most samples have tokens between those that the policy drew, and with
    fewer than five some of these begin further sequences, and turns have scores."""
    rng = random.Random(seed)
    rows = []
    for at in range(samples):
        length = [1, 3, 9, 15][at % 4] + rng.randrange(3) * (at % 4 > 0)
        prompt = [rng.randrange(VOCAB) for _ in range(1 + at % 5)]
        mask = [1] * length
        for _ in range(min(rng.randrange(turns), length - 1) if turns > 1 else 0):
            place = rng.randrange(1, len(mask))
            mask[place:place] = [0] * rng.randrange(1, 5)
        response = [rng.randrange(VOCAB) for _ in mask]
        with torch.no_grad():
            logprobs = network.of_responses(*policy, [prompt], [response])[0][0].tolist()
        logprobs = [value for value, bit in zip(logprobs, mask) if bit]
        further = {}
        if 1 < turns < 5:
            begins = [i for i in range(1, len(mask)) if not mask[i] and mask[i - 1]]
            scores = [float(torch.tensor(rng.gauss(0, 0.5), dtype=torch.float32)) for _ in begins]
            further = {"sequence_begins": [i for i in begins if rng.randrange(2)], "turn_scores": scores}
        noise = lambda scale: [min(0.0, value + scale * rng.gauss(0, 1)) for value in logprobs]  # noqa: E731
        rows.append({
            "prompt_id": f"p{at // 4}", "prompt_tokens": prompt, "response_tokens": response,
            "rollout_logprobs": noise(0.05), "ref_logprobs": noise(0.3), "score": round(rng.gauss(0, 1), 4),
            "weight": [1.0, 0.5, 2.0, 0.0, 1.5][at % 5], "finish_reason": "length" if length > 14 else "stop",
            **({"response_mask": mask, **further} if turns > 1 else {}),
        })
    # What is written has the precision of f32 on the other side.
    for row in rows:
        for key in ("rollout_logprobs", "ref_logprobs"):
            row[key] = torch.tensor(row[key], dtype=torch.float32).double().tolist()
        row["score"] = float(torch.tensor(row["score"], dtype=torch.float32))
    return rows


def expected(case, policy, critic, rows):
    """What a step does, by `model.parameter`: the first minibatch's gradient, or the way the weights went."""
    options = {key: value for key, value in case["config"].items() if key != "shuffle"}
    trained = ppo.step(policy, critic, rows, dict(options, temperature=case.get("temperature", 1.0)))[:2]
    found = {}
    for name, start, end in zip(("policy", "critic"), (policy, critic), trained):
        if end is None:
            continue
        for parameter, before in start[1].items():
            is_gradient = case["kind"] == "gradient"
            value = end.gradients[parameter] if is_gradient else end.weights[parameter].detach() - before
            found[f"{name}.{parameter}"] = value
    return found
