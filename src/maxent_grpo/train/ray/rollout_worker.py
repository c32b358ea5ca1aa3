"""The worker that samples: a copy of the policy, what samples from it, and the reward functions."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from maxent_grpo.models.adapters import with_adapter
from maxent_grpo.rewards.isolation import Isolation
from maxent_grpo.rewards.scoring import Scorer, group_metrics
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Sampler
from maxent_grpo.train.build import (
    load_model,
    make_seeds,
    make_tokenizer,
    start_accelerator,
    training_rewards,
)
from maxent_grpo.train.drivers import sample_rollouts
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.publishing import Publishing
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.train.ray.engine import publishing_to_engine
from maxent_grpo.train.samplers import configured
from maxent_grpo.types import Group, Metrics, Prompt

Weights = Mapping[str, Tensor]
"""Trained parameters by name, on the CPU."""


@dataclass(frozen=True)
class Errand:
    """A prompt to sample, and the step that its draws are keyed by."""

    prompt: Prompt
    step: int


@dataclass(frozen=True)
class Sampled:
    """A scored group. All its tokens were drawn by the version that its rollout names."""

    group: Group
    metrics: Metrics  # with the first group of a batch: what calls of reward functions and new weights left


@dataclass(frozen=True)
class Work:
    """What a piece of work gave, in the order of its errands."""

    sampled: list[Sampled]
    tokens: int
    seconds: float


class RolloutWorker:
    """Samples and scores with weights that it is handed; it keeps nothing else between two pieces of work."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._version = -1

    def start(self, probed: Sequence[Prompt]) -> None:
        """Load everything but the weights, which come with the first errands. ``probed`` are for an engine's probes."""
        settings, given = self._assignment.take_up(), self._assignment.given
        accelerator = start_accelerator(settings.device)
        tokenizer = make_tokenizer(settings.model.source, given)
        self._scorer = Scorer(
            training_rewards(settings.rewards, given),
            settings.rewards.zero_truncated,
            Isolation(settings.rewards.isolation),
            self._assignment.total_steps,
        )
        self._seeds = make_seeds(settings.seeds, settings.data.prompts, tokenizer, None)
        engine, adapter = settings.sampler.name != "local", settings.model.adapter
        model = load_model(settings.model, given, torch.device("cpu") if engine else accelerator.device)
        self._model: PreTrainedModel = model if adapter is None else with_adapter(model, adapter)
        self._meter = Meter(accelerator)
        self._publishing: Publishing | None = None  # None: the model itself samples
        sampler: Sampler
        if engine:
            self._publishing = publishing_to_engine(settings, self._model, tokenizer, probed, accelerator)
            sampler = self._publishing.sampler
        else:
            sampler = LocalSampler(self._model, tokenizer, accelerator.autocast)
        self._sampler = configured(sampler, settings, tokenizer)
        self._sampling = settings.sampling
        self._seed = settings.seed

    def sample(self, errands: Sequence[Errand], weights: Weights | None, version: int) -> Work:
        """A scored group for each errand, drawn by policy ``version``; ``weights`` are its, or None: it has them."""
        started = time.perf_counter()
        if weights is not None:
            load_weights(self._model, weights)
            self._version = version
            if self._publishing is not None:
                self._publishing.publish(version, self._meter)
        assert self._version == version, "the crew hands out weights with the first errands of a version"
        sampled: list[Sampled] = []
        for step, batch in groupby(errands, key=lambda errand: errand.step):
            sampled += self._score(step, [errand.prompt for errand in batch])
        tokens = sum(sum(one.group.rollout.lengths) for one in sampled)
        return Work(sampled, tokens, time.perf_counter() - started)

    def _score(self, step: int, prompts: Sequence[Prompt]) -> Iterator[Sampled]:
        rollouts = sample_rollouts(
            self._sampler,
            self._sampling,
            self._seeds,
            prompts,
            seed=self._seed,
            step=step,
            version=self._version,
            finished=partial(self._scorer.begin, step=step + 1) if self._scorer.begins_early else None,
        )
        groups, metrics = self._scorer.score(rollouts, step + 1)
        of_groups = group_metrics(groups)  # the learner measures these on what it trains on
        self._meter.add({name: stat for name, stat in metrics.items() if name not in of_groups})
        for group in groups:
            yield Sampled(group, self._meter.taken())


@torch.no_grad()
def load_weights(model: PreTrainedModel, weights: Weights) -> None:
    """Put ``weights`` into the parameters of these names; the others stay as they were loaded."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
