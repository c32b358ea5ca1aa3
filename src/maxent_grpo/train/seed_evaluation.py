"""Evaluation with seeds: one completion of every seeded variant of every held-out prompt."""

from collections.abc import Callable

import torch
from torch import Tensor

from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.evaluate.passk import exploration_scores, with_standard_errors
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.objectives.infoseed import nearest_centroid, seed_distances
from maxent_grpo.rollout.wrappers import with_seeded
from maxent_grpo.train.collate import collate
from maxent_grpo.train.micro_batches import scoring_batches
from maxent_grpo.train.state import Run
from maxent_grpo.types import Group, Rollout


def evaluate_seeds(
    run: Run, evaluation: Evaluation, seeds: SeedPrompts, advance: Callable[[int], None]
) -> dict[str, float]:
    """Metrics ``eval_seed/…`` of the current weights. Draws are keyed by (run seed, prompt, seed), not by the step."""
    groups: list[Group] = []
    states: list[Tensor] = []
    completions = evaluation.prompts_per_batch * evaluation.sampling.num_generations
    together = max(1, completions // seeds.count)
    for start in range(0, len(evaluation.prompts), together):
        prompts = evaluation.prompts[start : start + together]
        empty = [Rollout(prompt, (), (), (), (), run.step) for prompt in prompts]
        variants = [seeds.variants(prompt) for prompt in prompts]
        key = (run.seed, "seed evaluation")
        rollouts = with_seeded(empty, variants, run.sampler, evaluation.sampling, key)
        scored = evaluation.scorer.score(rollouts, run.step)[0]
        groups += scored
        states.append(pooled_states(run, scored))
        advance(len(prompts))
    scores = {name.rpartition("_at_")[0]: values for name, values in exploration_scores(groups).items()}
    scores["pass_at_1"] = scores.pop("pass")  # right with one sample per seed
    scores |= state_scores(torch.cat(states))
    return {f"eval_seed/{name}": value for name, value in with_standard_errors(scores).items()}


def state_scores(states: Tensor) -> dict[str, list[float]]:
    """One number per prompt of how far its seeds are told apart in the pooled states [P, S, D]."""
    scores = {"diversity_l2": seed_distances(states).tolist()}
    if states.shape[0] > 1:
        scores["pred_acc"] = nearest_centroid(states).double().mean(dim=1).tolist()
    return scores


def pooled_states(run: Run, groups: list[Group]) -> Tensor:
    """Pooled states of seeded completions under the current weights, without dropout: [P, S, D] on the CPU."""
    batch = collate(groups, pad_id=run.pad_id, on_policy=True).to(run.learner.device)
    policy = run.learner.policy
    was_training = policy.training
    policy.eval()
    pooled = run.learner.pooled(batch, scoring_batches(batch, run.plan, run.learner.max_over_ranks))
    policy.train(was_training)
    return pooled.float().cpu().view(*batch.utilities.shape, -1)
