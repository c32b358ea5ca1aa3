"""GRPO and MaxEnt-GRPO in one file: the executable specification of what the package trains.

    python examples/reference_grpo.py --method maxent --steps 20

Written to be read, not to be fast: no cache, no micro-batches, no padding tricks, one forward per sampled token.
From the package it takes the task and the bundled policy; everything about the *method* is below. A test keeps it
equal to the package: same completions, same losses, same parameters. What was left out: checkpoints, controllers,
logging, ranks, and every objective but two.

Shapes: P prompts, G completions each, B = P·G rows, T completion tokens.
"""

import argparse
import copy
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from maxent_grpo.tasks.registry import load_rows, task_reward
from maxent_grpo.tasks.tiny_policy import bundled_policy_path


@dataclass(frozen=True)
class Settings:
    """Names as in the recipes."""

    method: str = "maxent"  # or "dr_grpo"
    seed: int = 0
    steps: int = 20
    prompts_per_step: int = 8  # P
    num_generations: int = 8  # G
    max_completion_length: int = 16  # T
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    epsilon: float = 0.2  # clip range of the probability ratio
    tau: float = 0.01  # weight of the entropy over the group
    beta: float = 0.09  # weight of the reference policy
    q_temperature: float = 1.0
    q_epsilon: float = 1e-6


# 1. Randomness: every draw is a function of a key.


def generator(*key: int | str) -> np.random.Generator:
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def prompt_order(n: int, seed: int, epoch: int) -> list[int]:
    return [int(i) for i in generator(seed, "epoch", epoch).permutation(n)]


# 2. Sampling: a token is where the cumulative distribution passes the row's next uniform draw.


@torch.no_grad()
def sample(model, prompt: list[int], draws: np.ndarray, stop_id: int) -> list[int]:
    """One completion, its end token included, of at most ``len(draws)`` tokens."""
    completion: list[int] = []
    for draw in draws:
        logits = model(torch.tensor([prompt + completion])).logits[0, -1].float()
        cumulative = logits.log_softmax(-1).exp().cumsum(-1, dtype=torch.float64)
        completion.append(int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True)))
        if completion[-1] == stop_id:
            break
    return completion


def token_logps(model, prompt: list[int], completion: list[int]) -> Tensor:
    """log π(token | prefix) of each completion token: [T_i]."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


# 3. The two objectives, one group at a time. Both return the group's share of the loss.


def dr_grpo_loss(logps: list[Tensor], utilities: Tensor, s: Settings) -> Tensor:
    """Dr. GRPO (Liu et al., 2025): PPO's clipped surrogate with advantage U − mean(U), divided by a constant length.

    On-policy, with one update per rollout, the old log-probs are the current ones: the ratio is 1, with a gradient.
    """
    advantages = utilities - utilities.mean()
    loss = torch.zeros(())
    for logp, advantage in zip(logps, advantages, strict=True):
        ratio = (logp - logp.detach()).exp()
        clipped = ratio.clamp(1 - s.epsilon, 1 + s.epsilon)
        loss = loss - torch.minimum(ratio * advantage, clipped * advantage).sum()
    return loss / (s.num_generations * s.max_completion_length)


def maxent_loss(logps: list[Tensor], reference_logps: list[Tensor], utilities: Tensor, s: Settings) -> Tensor:
    """MaxEnt-GRPO, listwise: move the policy's softmax over the group towards the maximum-entropy weights.

    q is the softmax of the utilities, with a floor. The weights maximise E_w[log q] − β·KL(w ‖ π_ref) + τ·H(w):
    w_i ∝ exp[(log q_i + β·log π_ref(i)) / (τ + β)]. The loss is the cross-entropy from w to softmax(log π(i)), in the
    units of Dr. GRPO (a constant length). A group whose utilities are all equal teaches nothing.
    """
    if utilities.max() == utilities.min():
        return sum(logp.sum() for logp in logps) * 0.0
    q = torch.softmax(utilities / s.q_temperature, dim=0)
    q = q * (1 - s.q_epsilon * s.num_generations) + s.q_epsilon
    reference = torch.stack([logp.sum() for logp in reference_logps])
    weights = torch.softmax((q.log() + s.beta * reference) / (s.tau + s.beta), dim=0)
    scores = torch.stack([logp.sum() for logp in logps])
    return -(weights * scores.log_softmax(dim=0)).sum() / s.max_completion_length


# 4. The loop.


def train(s: Settings, report=print):
    """Train the bundled policy; returns the model and the loss of every step."""
    path = bundled_policy_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    reference = copy.deepcopy(model).requires_grad_(False)
    rows = load_rows("graph_coloring", "train")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["problem"]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for row in rows
    ]
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain}], lr=s.learning_rate, weight_decay=0.0
    )
    order = [(epoch, i) for epoch in range(s.steps) for i in prompt_order(len(rows), s.seed, epoch)]
    losses = []
    for step in range(s.steps):
        drawn = order[step * s.prompts_per_step : (step + 1) * s.prompts_per_step]
        loss, rewards = torch.zeros(()), []
        for epoch, index in drawn:
            keys = [(s.seed, "completion", step, epoch, index, g) for g in range(s.num_generations)]
            uniforms = [generator(*key).random(s.max_completion_length) for key in keys]
            group = [sample(model, prompts[index], draws, tokenizer.eos_token_id) for draws in uniforms]
            texts = tokenizer.batch_decode(group, skip_special_tokens=True)
            row = rows[index]
            rewards += task_reward(texts, [row["task"]] * len(texts), [row["facts"]] * len(texts))
            utilities = torch.tensor(rewards[-s.num_generations :])
            logps = [token_logps(model, prompts[index], ids) for ids in group]
            if s.method == "maxent":
                anchors = [token_logps(reference, prompts[index], ids) for ids in group]
                loss = loss + maxent_loss(logps, anchors, utilities, s) / len(drawn)
            else:
                loss = loss + dr_grpo_loss(logps, utilities, s) / len(drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        report(f"step {step + 1:3d}  loss {losses[-1]:+.5f}  reward {sum(rewards) / len(rewards):.3f}")
    return model, losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description="GRPO and MaxEnt-GRPO in one file, on the bundled tiny policy."
    )
    parser.add_argument("--method", choices=["maxent", "dr_grpo"], default="maxent")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(Settings(method=options.method, steps=options.steps, seed=options.seed))


if __name__ == "__main__":
    main()
