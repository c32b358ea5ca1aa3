"""The worker that samples: a copy of the policy, what samples from it, and the reward functions."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.models.loading import with_adapter
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rewards.isolation import Isolation
from maxent_grpo.rewards.modes import load_mode_key
from maxent_grpo.rewards.scoring import Scorer, group_metrics
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Sampler
from maxent_grpo.rollout.samplers import SamplerParts
from maxent_grpo.rollout.weight_sync.weights import PolicyWeights
from maxent_grpo.stats import Meter
from maxent_grpo.train.build import (
    load_model,
    make_seeds,
    make_tokenizer,
    start_accelerator,
    training_rewards,
)
from maxent_grpo.train.drivers import sample_rollouts
from maxent_grpo.train.ray.messages import SampledGroup, SampleTask, Weights, WorkerConfig
from maxent_grpo.train.weight_sync import SamplerSync, configured, sampler_settings, synced
from maxent_grpo.types import Batch, Prompt


class RolloutWorker:
    """Samples and scores with weights that it is handed; it keeps nothing else between two calls."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._version = -1

    def start(self, probed: Sequence[Prompt]) -> None:
        """Load everything but the weights, which come with the first tasks. ``probed`` are for an engine's probes."""
        settings, given = self._config.load_config(), self._config.given
        accelerator = start_accelerator(settings.device)
        tokenizer = make_tokenizer(settings.model.source, given)
        self._scorer = Scorer(
            training_rewards(settings.rewards, given),
            settings.rewards.zero_truncated,
            Isolation(settings.rewards.isolation),
            self._config.total_steps,
            load_mode_key(settings.rewards.mode_key),
        )
        self._seeds = make_seeds(settings.seeds, settings.data.prompts, tokenizer, None)
        engine, adapter = settings.sampler.name != "local", settings.model.adapter
        model = load_model(settings.model, given, torch.device("cpu") if engine else accelerator.device)
        self._model: PreTrainedModel = model if adapter is None else with_adapter(model, adapter)
        self._meter = Meter(accelerator)
        self._sync: SamplerSync | None = None  # None: the model itself samples
        sampler: Sampler
        if engine:
            sampler, self._sync = sampler_of_copy(settings, self._model, tokenizer, probed, accelerator)
        else:
            sampler = LocalSampler(self._model, tokenizer, accelerator.autocast)
            _ = sampler.way  # refused at start, where it cannot sample
        self._sampler = configured(sampler, settings, tokenizer)
        self._sampling = settings.sampling
        self._seed = settings.seed

    def sample(
        self, tasks: Sequence[SampleTask], weights: Weights | None, version: int
    ) -> tuple[list[SampledGroup], float]:
        """A scored group for each task, drawn by policy ``version``, and the seconds that all of them took.

        ``weights`` are those of ``version``, or None: the worker has them.
        """
        started = time.perf_counter()
        if weights is not None:
            load_weights(self._model, weights)
            self._version = version
            if self._sync is not None:
                self._sync.sync(version, self._meter)
        assert self._version == version, "the supervisor hands out weights with the first tasks of a version"
        sampled: list[SampledGroup] = []
        for step, batch in groupby(tasks, key=lambda task: task.step):
            sampled += self._score(step, [task.prompt for task in batch])
        return sampled, time.perf_counter() - started

    def _score(self, step: int, prompts: Sequence[Prompt]) -> Iterator[SampledGroup]:
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
            yield SampledGroup(group, self._meter.taken())


@torch.no_grad()
def load_weights(model: PreTrainedModel, weights: Weights) -> None:
    """Put ``weights`` into the parameters of these names; the others stay as they were loaded."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


class HostCopy:
    """The `Source` of an engine's weights: the worker's copy of the policy, which leaves the device to the engine."""

    def __init__(self, model: PreTrainedModel, temperature: float, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._policy = PolicyForward(model, temperature=temperature).eval()

    @property
    def device(self) -> torch.device:
        return self._policy.model.device

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        logps: Tensor = self._policy(batch)[0]
        return logps


def sampler_of_copy(
    settings: NativeSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    accelerator: Accelerator,
) -> tuple[Sampler, SamplerSync | None]:
    """The worker's sampler, and what keeps it on the weights of ``model``, compared on ``prompts``.

    Raises:
        UsageError: vLLM is not installed or cannot do what is asked.
    """
    # What can be refused is refused before the engine starts.
    weights = PolicyWeights(model, model.named_parameters)
    parts = SamplerParts(model, tokenizer, settings.sampling, sampler_settings(settings))
    copy = HostCopy(model, settings.sampling.temperature, accelerator)
    dtype = settings.model.source.dtype
    return synced(parts, weights, copy, prompts=prompts, precision=dtype, seed=settings.seed, every=1)
