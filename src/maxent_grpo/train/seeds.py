"""InfoSeed while training: pooled states of the whole optimiser batch, and evaluation with seeds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maxent_grpo.data.prompts import SeedPrompts
from maxent_grpo.evaluate.passk import exploration_scores, with_standard_errors
from maxent_grpo.evaluate.training import Evaluation
from maxent_grpo.objectives.infoseed import InfoSeed, nearest_centroid, seed_distances
from maxent_grpo.rollout.wrappers import with_seeded
from maxent_grpo.stats import Metrics
from maxent_grpo.train.collate import collate
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.micro_batches import MicroBatch, scoring_batches
from maxent_grpo.train.state import Run
from maxent_grpo.types import Batch, Forward, Group, Rollout, Signal


class PooledStates:
    """What InfoSeed needs of all states before the micro-batches, and measures of them afterwards; else nothing."""

    def __init__(
        self, seeds: InfoSeed | None, learner: Learner, batch: Batch, parts: Sequence[MicroBatch]
    ) -> None:
        self._seeds = seeds
        self._learner = learner
        self._batch = batch
        self._parts = parts
        self._seen: list[tuple[list[int], Tensor | None]] = []

    def prepared(self, signal: Signal) -> Signal:
        """The signal with the gradient of the contrast over the optimiser batch: all micro-batches, all ranks.

        A contrast compares every completion with every other, so it is no sum over micro-batches. Its gradient in the
        pooled states needs no graph, though: a pass without gradient gives the states, and the micro-batches then pass
        that gradient on to the parameters (GradCache). Nothing is done where the batch is a single forward anyway.
        """
        accelerator = self._learner.accelerator
        alone = accelerator.num_processes == 1 and len(self._parts) == 1
        if self._seeds is None or not self._seeds.contrasts or alone:
            return signal
        assert self._batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
        pooled = self._learner.pooled(self._batch, self._parts)
        first = accelerator.process_index * len(pooled)
        states, seed_ids = accelerator.gather(pooled), accelerator.gather(self._batch.seed_ids)
        return self._seeds.prepared(signal, states, seed_ids, slice(first, first + len(pooled)))

    def add(self, part: MicroBatch, forward: Forward) -> None:
        """Keep the states of a pass."""
        self._seen.append((part.groups, forward.pooled))

    def metrics(self) -> Metrics:
        """Statistics over the states of all passes and ranks."""
        if self._seeds is None:
            return {}
        assert self._batch.seed_ids is not None, "the driver samples seeds where the objective reads them"
        order = [group for groups, _ in self._seen for group in groups]
        seeded = self._batch.seed_ids.view(len(order), -1)[order].flatten() >= 0
        pooled = torch.cat([states.detach() for _, states in self._seen if states is not None])[seeded]
        return self._seeds.state_metrics(self._learner.accelerator.gather(pooled))


SEED_SCORES = ("mean", "pass", "distinct", "coverage")


def evaluate_seeds(
    run: Run, evaluation: Evaluation, seeds: SeedPrompts, advance: Callable[[int], None]
) -> dict[str, float]:
    """Metrics ``eval_seed/…`` of the current weights, from one completion of every seeded variant of every held-out
    prompt. Draws are keyed by (run seed, prompt, seed), not by the step."""
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
    scores = {name: values for name, values in scores.items() if name in SEED_SCORES}
    if "pass" in scores:
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
