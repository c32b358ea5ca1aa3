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
from maxent_grpo.models.loading import load_policy, load_tokenizer, with_pad_token
from maxent_grpo.rewards.scoring import Scorer, group_metrics
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Sampler
from maxent_grpo.train.assembly.assemble import start_accelerator
from maxent_grpo.train.assembly.inputs import (
    make_seeds,
    reward_isolation,
    sampling_settings,
    training_rewards,
)
from maxent_grpo.train.assembly.policies import model_source
from maxent_grpo.train.assembly.samplers import configured
from maxent_grpo.train.drivers import sample_rollouts
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.publishing import Publishing
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.train.ray.engine import publishing_to_engine
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
        config, given = self._assignment.take_up(), self._assignment.given
        training = config.training
        accelerator = start_accelerator(config)
        source = model_source(config)
        tokenizer = with_pad_token(given.tokenizer) if given.tokenizer is not None else load_tokenizer(source)
        self._scorer = Scorer(
            training_rewards(config, given),
            training.zero_truncated_completion_rewards,
            reward_isolation(config),
            self._assignment.total_steps,
        )
        self._seeds = make_seeds(config, tokenizer, None, config.script.dataset_prompt_column)
        device = torch.device("cpu") if training.use_vllm else accelerator.device
        model = given.model if given.model is not None else load_policy(source)
        model.to(device)  # type: ignore[arg-type]  # Transformers wraps Module.to untyped
        self._model: PreTrainedModel = with_adapter(model, config.model) if config.model.use_peft else model
        self._meter = Meter(accelerator)
        self._publishing: Publishing | None = None  # None: the model itself samples
        sampler: Sampler
        if training.use_vllm:
            self._publishing = publishing_to_engine(config, self._model, tokenizer, probed, accelerator)
            sampler = self._publishing.sampler
        else:
            sampler = LocalSampler(self._model, tokenizer, accelerator.autocast)
        self._sampler = configured(sampler, config, tokenizer)
        self._sampling = sampling_settings(config, training.num_generations)
        self._seed = training.seed

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
