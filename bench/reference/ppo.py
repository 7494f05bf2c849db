"""The PPO step as Sluice documents it (learner/src/ppo.rs), in plain PyTorch with autograd: an independent implementation.

`step(policy, critic, samples, options)` trains on one batch; `options` has the keys of `sluice replay --config`, with the
same defaults. Samples are the objects of a batch file. Everything is in the precision of the weights.

Tokens stand where they stood: a matrix has a column for every token behind the prompt, and a mask says which of them the
policy drew. (Sluice takes the others out before it computes anything.)
"""

import math

import torch

import network

DEFAULTS = dict(
    algorithm="pf-ppo", gamma=1.0, gae_lambda=0.95, score_clip=10.0, value_clip=0.2, critic_on="filtered",
    entropy_coefficient=0.0, ppo_epochs=3, minibatch_size=256, policy_lr=5e-7, critic_lr=9e-6,
    betas=(0.9, 0.95), adam_eps=1e-8, weight_decay=0.0, weight_decay_on="all", max_grad_norm=1.0, schedule="constant",
    warmup_steps=0, norm_tokens=None, kl_target=None, kl_horizon=10000.0, overlong=None, off_policy_delta="off",
    covariance="off", positive_weight=1.0, credit="response", turn_gamma=None,
)

# What an algorithm decides where a key is absent: the papers' choices.
PPO = dict(advantage="gae", whiten="after-filter", kl_in="reward", kl_estimator="k1", kl_coefficient=0.01, ratio="token",
           clip_ratio_low=0.2, clip_ratio_high=0.2, dual_clip="off", loss_aggregation="token-mean", correction="none")
GRPO = dict(PPO, advantage="mean-std", whiten="off", kl_in="loss", kl_estimator="k3", kl_coefficient=0.04,
            loss_aggregation="seq-mean-token-mean")
ALGORITHMS = {
    "pf-ppo": PPO,
    "pf-ppo-paper": dict(PPO, whiten="before-filter", loss_aggregation="seq-mean-token-mean"),
    "ppo": PPO,
    "grpo": GRPO,
    "dr-grpo": dict(GRPO, advantage="mean", kl_in="off", loss_aggregation="seq-mean-token-sum-norm"),
    "rloo": dict(PPO, advantage="leave-one-out", whiten="off", ratio="product", loss_aggregation="seq-mean-token-mean"),
    "reinforce-plus-plus": dict(PPO, advantage="return-to-go", whiten="before-filter"),
    "reinforce-plus-plus-baseline": dict(PPO, advantage="mean", whiten="before-filter", kl_in="loss", kl_estimator="k2"),
    "dapo": dict(GRPO, kl_in="off", clip_ratio_high=0.28, dual_clip=10.0, loss_aggregation="token-mean"),
    "gspo": dict(GRPO, kl_in="off", ratio="mean", clip_ratio_low=3e-4, clip_ratio_high=4e-4),
    "cispo": dict(GRPO, kl_in="off", ratio="cispo", clip_ratio_low=1.0, clip_ratio_high=4.0, loss_aggregation="token-mean"),
    "decoupled-ppo": dict(PPO, correction={"token-mask": {"min": 0.0, "max": 5.0}}),
    "on-policy-distillation": dict(PPO, advantage="own-kl", whiten="off", kl_coefficient=1.0),
}


def number(value):
    """A bound, or None where it is "off"."""
    return None if value in ("off", None) else value


def kl_value(estimator, difference):
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    k2 = difference.pow(2) / 2
    if estimator == "k2":
        return k2
    k3 = torch.exp(-difference) - 1 + difference
    return k3 if estimator == "k3" else k2 + (k3 - k2).detach()


def drawn_mask(sample):
    """For every token behind the prompt whether the policy drew it."""
    return sample.get("response_mask") or [1] * len(sample["response_tokens"])


def turns_of(sample):
    """For every turn the columns that the policy drew."""
    mask, turns = drawn_mask(sample), []
    for column, bit in enumerate(mask):
        if bit and (column == 0 or not mask[column - 1]):
            turns.append([])
        if bit:
            turns[-1].append(column)
    return turns


class Batch:
    """The samples that take part, padded, and what the step derives from them before it trains."""

    def __init__(self, samples, options):
        self.options = options
        with_critic = options["advantage"] == "gae"
        takes_all = with_critic and (options["whiten"] == "before-filter" or options["critic_on"] == "all")
        takes_all = takes_all or (not with_critic and options["credit"] != "response")
        # Of those that do not take part score and length are known: baselines and whitening go by all of them.
        self.absent = [s for s in samples if not (takes_all or s.get("weight", 1.0) > 0)]
        samples = [s for s in samples if takes_all or s.get("weight", 1.0) > 0]
        self.samples = samples
        self.prompts = [s["prompt_tokens"] for s in samples]
        self.responses = [s["response_tokens"] for s in samples]
        self.mask = network.pad([drawn_mask(s) for s in samples]).bool()
        self.lengths = self.mask.sum(1)
        self.turns = [turns_of(s) for s in samples]
        self.last = torch.tensor([turns[-1][-1] for turns in self.turns])
        self.weights = torch.tensor([s.get("weight", 1.0) for s in samples], dtype=torch.float64)
        self.trained = self.weights > 0
        self.scores = self.shaped(samples)
        self.rollout = self.padded("rollout_logprobs")
        self.ref = self.padded("ref_logprobs") if all(s.get("ref_logprobs") for s in samples) else None

    def shaped(self, samples):
        """Scores as they are rewarded."""
        scores = torch.tensor([s["score"] for s in samples], dtype=torch.float64)
        lengths = torch.tensor([sum(drawn_mask(s)) for s in samples], dtype=torch.float64)
        if self.options["overlong"]:
            longest, cache = self.options["overlong"]["max_length"], self.options["overlong"]["cache"]
            scores = scores + ((longest - cache - lengths) / cache).clamp(-1, 0)
        limit = number(self.options["score_clip"])
        return scores if limit is None else scores.clamp(-limit, limit)

    def padded(self, key):
        """Numbers of drawn tokens at the columns of these."""
        found = torch.zeros(self.mask.shape, dtype=torch.float64)
        found[self.mask] = torch.cat([torch.tensor(s[key], dtype=torch.float64) for s in self.samples])
        return found

    def forward(self, model, which):
        # A further sequence sees nothing of what stands in front of it: it is computed by itself.
        pieces = []
        for row, i in enumerate(which):
            cuts = [0, *(self.samples[i].get("sequence_begins") or []), len(self.responses[i])]
            pieces.append((row, 0, self.prompts[i], self.responses[i][:cuts[1]]))
            for begin, end in zip(cuts[1:], cuts[2:]):
                pieces.append((row, begin + 1, self.responses[i][begin:begin + 1], self.responses[i][begin + 1:end]))
        rows, places, prompts, responses = zip(*pieces)
        values, entropies, _ = network.of_responses(*model, prompts, responses, self.options["temperature"])

        def joined(found):
            whole = [[] for _ in which]
            for row, place, response, numbers in zip(rows, places, responses, found):
                whole[row] += [numbers.new_zeros(place - sum(map(len, whole[row]))), numbers[:len(response)]]
            width = self.mask.shape[1]
            return torch.stack([torch.nn.functional.pad(torch.cat(r), (0, width - sum(map(len, r)))) for r in whole])

        return joined(values), None if entropies is None else joined(entropies)

    def estimate(self, old, values, beta):
        """Token rewards, advantages (whitened where asked for), returns and correction weights."""
        options, mask = self.options, self.mask.to(old.dtype)
        rewards = torch.zeros_like(old)
        if options["kl_in"] == "reward" and beta > 0:
            rewards = -beta * kl_value(options["kl_estimator"], (old - self.ref) * mask)
        if options["advantage"] != "own-kl":
            rewards[torch.arange(len(self.scores)), self.last] += self.scores.to(old.dtype)
            for i, turns in enumerate(self.turns if options["credit"] != "response" else []):
                for turn, score in zip(turns, self.samples[i].get("turn_scores") or []):
                    rewards[i, turn[-1]] += score
                    rewards[i, self.last[i]] -= score
        advantages, returns, absent = self.advantages(rewards * mask, values)
        if options["whiten"] != "off":
            after = options["whiten"] == "after-filter"
            chosen = advantages[self.mask & self.trained[:, None]] if after else torch.cat([advantages[self.mask], absent])
            advantages = (advantages - chosen.mean()) / torch.sqrt(chosen.var(unbiased=False) + 1e-8)
        return advantages * mask, returns, self.corrections(old)

    def advantages(self, rewards, values):
        options, kind = self.options, self.options["advantage"]
        steps = rewards.shape[1]
        if kind == "own-kl":
            return rewards, torch.zeros_like(rewards), rewards.new_zeros(0)
        if options["credit"] == "turn":
            return self.advantages_of_turns(rewards, values)
        if kind in ("gae", "return-to-go"):
            trace = 1.0 if kind == "return-to-go" else options["gae_lambda"]
            values = torch.zeros_like(rewards) if kind == "return-to-go" else values
            running, found = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards)
            following, discounts = torch.zeros_like(running), torch.full_like(rewards, options["gamma"])
            if options["turn_gamma"] is not None:
                for i, turns in enumerate(self.turns):
                    discounts[i, [turn[-1] for turn in turns]] = options["turn_gamma"]
            for t in reversed(range(steps)):
                # A token that was given takes no time: what follows it follows the token before it.
                here = self.mask[:, t]
                gamma = discounts[:, t]
                now = rewards[:, t] + gamma * following - values[:, t] + gamma * trace * running
                running = torch.where(here, now, running)
                following = torch.where(here, values[:, t], following)
                found[:, t] = running * here
            lengths = [sum(drawn_mask(s)) for s in self.absent]
            absent = [options["gamma"] ** torch.arange(n, dtype=rewards.dtype) * score for score, n in zip(self.shaped(self.absent), lengths)]
            return found, found + values, torch.cat([*absent, rewards.new_zeros(0)])
        totals = rewards.sum(1)
        found, absent = torch.zeros_like(totals), []
        keys = [str(s["prompt_id"]) for s in self.samples]
        for key in set(keys):
            members = [i for i, k in enumerate(keys) if k == key]
            others = [s for s in self.absent if str(s["prompt_id"]) == key]
            # The KL part of those that are not there is the mean of the others'.
            kl = (totals[members] - self.scores[members]).mean()
            drawn = torch.cat([totals[members], self.shaped(others) + kl])
            centred = drawn - drawn.mean()
            if len(drawn) < 2 or centred.abs().max() == 0:
                centred = torch.zeros_like(drawn)
            elif kind == "mean-std":
                centred = centred / (drawn.std() + 1e-6)
            elif kind == "leave-one-out":
                centred = centred * len(drawn) / (len(drawn) - 1)
            found[members] = centred[:len(members)]
            for value, other in zip(centred[len(members):], others):
                absent.append(value.expand(sum(drawn_mask(other))))
        absent = torch.cat([*absent, rewards.new_zeros(0)])
        return found[:, None].expand_as(rewards), torch.zeros_like(rewards), absent

    def advantages_of_turns(self, rewards, values):
        """Turns are the steps: an advantage is of a turn, and all its tokens have it."""
        options, kind = self.options, self.options["advantage"]
        gamma = 1.0 if options["turn_gamma"] is None else options["turn_gamma"]
        sums = [[rewards[i, turn].sum() for turn in turns] for i, turns in enumerate(self.turns)]
        heads = [[values[i, turn[0]] for turn in turns] for i, turns in enumerate(self.turns)]
        found, returns, togo = [], [], []
        for earned, value in zip(sums, heads):
            if kind != "gae":
                value = [0.0] * len(earned)
            trace = options["gae_lambda"] if kind == "gae" else 1.0
            advantage, own = 0.0, []
            for k in reversed(range(len(earned))):
                following = value[k + 1] if k + 1 < len(value) else 0.0
                advantage = earned[k] + gamma * following - value[k] + gamma * trace * advantage
                own.insert(0, advantage)
            found.append(own)
            returns.append([a + v for a, v in zip(own, value)])
            togo.append(own)
        if kind not in ("gae", "return-to-go"):
            found = self.against_siblings(togo)
        spread = torch.zeros_like(rewards), torch.zeros_like(rewards)
        for i, turns in enumerate(self.turns):
            for k, turn in enumerate(turns):
                spread[0][i, turn], spread[1][i, turn] = found[i][k], returns[i][k]
        return *spread, rewards.new_zeros(0)

    def against_siblings(self, togo):
        """Each turn's return-to-go against the same turn of its siblings; alone, the whole response against theirs."""
        kind, found = self.options["advantage"], [list(returns) for returns in togo]
        keys = [str(s["prompt_id"]) for s in self.samples]

        def compared(own, all_of_them):
            centred = own - sum(all_of_them) / len(all_of_them)
            if len(all_of_them) < 2 or max(all_of_them) == min(all_of_them):
                return 0.0
            if kind == "leave-one-out":
                return centred * len(all_of_them) / (len(all_of_them) - 1)
            return centred / (torch.stack(all_of_them).std() + 1e-6) if kind == "mean-std" else centred

        for i, returns in enumerate(togo):
            siblings = [other for other, key in zip(togo, keys) if key == keys[i]]
            whole = compared(returns[0], [other[0] for other in siblings])
            for k in range(len(returns)):
                same = [other[k] for other in siblings if len(other) > k]
                found[i][k] = compared(returns[k], same) if len(same) > 1 else whole
        return found

    def corrections(self, old):
        correction, mask = self.options["correction"], self.mask.to(old.dtype)
        logs = (old - self.rollout) * mask
        ratio, total = logs.exp(), logs.sum(1, keepdim=True)
        if correction == "none":
            return torch.ones_like(old)
        if correction == "token":
            return ratio
        (kind, bounds), = correction.items()
        low, high = bounds.get("min", 0.0), bounds["max"]
        inside = lambda x: (x >= low) & (x <= high)  # noqa: E731
        if kind == "token-truncate":
            return ratio.clamp(max=high)
        if kind == "token-mask":
            return ratio * inside(ratio)
        if kind == "sequence-truncate":
            return total.exp().clamp(max=high).expand_as(old)
        if kind == "sequence-mask":
            return ratio * inside((total / self.lengths[:, None]).exp())
        if kind == "sequence-product-mask":
            return (total.exp() * (total.exp() <= high)).expand_as(old)
        raise ValueError(f"unknown correction {kind}")

    def held_back(self, advantages):
        """Which tokens are held back for the sake of the entropy (arXiv 2505.22617); of Clip-Cov only with a share of 1."""
        held = torch.zeros_like(advantages)
        if self.options["covariance"] == "off":
            return held
        (kind, told), = self.options["covariance"].items()
        chosen = self.mask & self.trained[:, None]
        logprobs, values = self.rollout[chosen].to(advantages.dtype), advantages[chosen]
        covariances = (logprobs - logprobs.mean()) * (values - values.mean())
        if kind == "clip-cov":
            assert told["share"] == 1.0
            held[chosen] = ((covariances > told["low"]) & (covariances < told["high"])).to(held.dtype)
            return held
        marks = torch.zeros_like(covariances)
        marks[covariances.topk(max(1, int(len(covariances) * told["share"]))).indices] = 1.0
        held[chosen] = marks
        return held

    def aggregate(self, losses, which, weights):
        """Token losses of a minibatch `[n, T]` as one number."""
        kind = self.options["loss_aggregation"]
        mask, lengths = self.mask[which].to(losses.dtype), self.lengths[which]
        weights = weights.to(losses.dtype)
        sums = (losses * mask).sum(1)
        if kind == "token-mean":
            return (weights * sums).sum() / (weights * lengths).sum()
        if kind == "seq-mean-token-mean":
            return (weights * sums / lengths).sum() / weights.sum()
        if kind == "seq-mean-token-sum":
            return (weights * sums).sum() / weights.sum()
        if kind == "seq-mean-token-sum-norm":
            return (weights * sums).sum() / weights.sum() / self.options["norm_tokens"]
        if kind == "token-sum":
            return (weights * sums).sum()
        raise ValueError(f"unknown aggregation {kind}")

    def policy_loss(self, model, which, known, beta):
        old, advantages, _, corrections = known
        options = self.options
        logprobs, entropies = self.forward(model, which)
        advantages, mask = advantages[which], self.mask[which].to(logprobs.dtype)
        logs = (logprobs - old[which]) * mask
        if options["ratio"] in ("mean", "product"):
            summed = logs.sum(1, keepdim=True)
            logs = (summed / self.lengths[which][:, None] if options["ratio"] == "mean" else summed).expand_as(logs)
        ratio = logs.exp()
        clipped = ratio.clamp(1 - options["clip_ratio_low"], 1 + options["clip_ratio_high"])
        if options["ratio"] == "cispo":
            losses = -clipped.detach() * advantages * logprobs
        else:
            losses = -torch.minimum(ratio * advantages, clipped * advantages)
            if number(options["dual_clip"]) is not None:
                bounded = torch.minimum(losses, -options["dual_clip"] * advantages)
                losses = torch.where(advantages < 0, bounded, losses)
        losses = losses * corrections[which]
        losses = losses * torch.where(advantages > 0, options["positive_weight"], 1.0)
        covariance, held = options["covariance"], self.held_back(known[1])[which]
        if "clip-cov" in covariance:
            losses = losses * (1 - held)
        if number(options["off_policy_delta"]) is not None:
            lengths = self.lengths[which]
            fallen = ((self.rollout[which] - logprobs.detach()) * mask).sum(1) / lengths
            bad = (advantages.sum(1) / lengths < 0) & (fallen > options["off_policy_delta"])
            losses = losses * ~bad[:, None]
        surrogate = self.aggregate(losses, which, self.weights[which])
        loss = surrogate
        if "kl-cov" in covariance:
            distance = ((logprobs - old[which]) * mask).abs() * held
            loss = loss + covariance["kl-cov"]["coefficient"] * self.aggregate(distance, which, self.weights[which])
        if options["kl_in"] == "loss" and beta > 0:
            kl = kl_value(options["kl_estimator"], (logprobs - self.ref[which]) * mask)
            loss = loss + beta * self.aggregate(kl, which, self.weights[which])
        if options["entropy_coefficient"] > 0:
            loss = loss - options["entropy_coefficient"] * self.aggregate(entropies, which, self.weights[which])
        return loss, float(surrogate.detach())

    def value_loss(self, model, which, old_values, returns):
        values, _ = self.forward(model, which)
        old_values, returns = old_values[which], returns[which]
        squares = (values - returns).pow(2)
        clip = number(self.options["value_clip"])
        if clip is not None:
            clipped = old_values + (values - old_values).clamp(-clip, clip)
            squares = torch.maximum(squares, (clipped - returns).pow(2))
        everyone = self.options["critic_on"] == "all"
        weights = torch.ones(len(which), dtype=torch.float64) if everyone else self.weights[which]
        return 0.5 * self.aggregate(squares, which, weights)


class Model:
    """Parameters with their optimizer."""

    def __init__(self, model, lr, options, total):
        self.config, weights = model
        self.weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
        decay = options["weight_decay"]
        matrices = [t for t in self.weights.values() if t.dim() > 1]
        others = [t for t in self.weights.values() if t.dim() == 1]
        other_decay = decay if options["weight_decay_on"] == "all" else 0.0
        groups = [dict(params=matrices, weight_decay=decay), dict(params=others, weight_decay=other_decay)]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(options["betas"]), eps=options["adam_eps"])
        self.lr, self.options, self.total = lr, options, total
        self.gradients = None

    def pair(self):
        return self.config, self.weights

    def update(self, loss, step):
        self.optimizer.zero_grad()
        loss.backward()
        for tensor in self.weights.values():
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        if self.gradients is None:
            self.gradients = {name: tensor.grad.clone() for name, tensor in self.weights.items()}
        most = number(self.options["max_grad_norm"])
        if most is not None:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), most)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor(self.options, step, self.total)
        self.optimizer.step()


def factor(options, step, total):
    """Learning-rate factor of an optimizer step, as transformers.get_scheduler."""
    warmup = options["warmup_steps"]
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[options["schedule"]]


def settings(options, samples):
    """Options with every default filled in."""
    given = {key: value for key, value in options.items() if value is not None}
    merged = {**DEFAULTS, **ALGORITHMS[given.get("algorithm", "pf-ppo")], **given}
    merged.setdefault("temperature", 1.0)
    if merged["norm_tokens"] is None:
        merged["norm_tokens"] = max(sum(drawn_mask(s)) for s in samples)
    return merged


def step(policy, critic, samples, options):
    """Trains on a batch without shuffling. Returns the trained weights of both, the gradients of the first minibatch, and
    metrics."""
    options = settings(options, samples)
    batch = Batch(samples, options)
    with_critic = options["advantage"] == "gae"
    everyone = list(range(len(batch.samples)))
    trained = [i for i in everyone if batch.trained[i]]
    order = everyone if with_critic and options["critic_on"] == "all" else trained
    size = options["minibatch_size"]
    minibatches = [order[i:i + size] for i in range(0, len(order), size)]
    total = options["ppo_epochs"] * len(minibatches)
    policy = Model(policy, options["policy_lr"], options, total)
    critic = Model(critic, options["critic_lr"], options, total) if with_critic else None
    beta = options["kl_coefficient"] if options["kl_in"] != "off" else 0.0
    with torch.no_grad():
        old, _ = batch.forward(policy.pair(), everyone)
        old_values = batch.forward(critic.pair(), everyone)[0] if with_critic else torch.zeros_like(old)
        advantages, returns, corrections = batch.estimate(old, old_values, beta)
    losses = []
    for done in range(total):
        chunk = minibatches[done % len(minibatches)]
        own = [i for i in chunk if batch.trained[i]]
        if own:
            loss, surrogate = batch.policy_loss(policy.pair(), own, (old, advantages, returns, corrections), beta)
            losses.append(surrogate)
        # Both losses are of the weights before the minibatch: policy and critic share nothing.
        if with_critic:
            value_loss = batch.value_loss(critic.pair(), chunk, old_values, returns)
            critic.update(value_loss, done)
        if own:
            policy.update(loss, done)
    metrics = {"policy_loss": sum(losses) / max(1, len(losses)), "old_logprobs": old}
    return policy, critic, metrics
