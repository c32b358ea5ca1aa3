"""Keeps a sampler that has a copy of the weights on the learner's: publishes, probes, and notices a lost server.

Every method is called by all ranks together.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.rollout.publish.publisher import Publisher, PublishFailed, Weights
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.train.collate import collate
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.ranks import gathered
from maxent_grpo.types import Batch, Group, Metrics, Prompt, Stat, extreme_stat, mean_stat

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ATTEMPTS = 3
"""Publishes in a row that may fail, or that a probe may find wrong, before the run ends."""
LOSSES = 3
"""How often a server may lose its weights while one and the same rollout is sampled."""
PROBE_PROMPTS, PROBE_COMPLETIONS, PROBE_TOKENS = 2, 2, 8
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Mean |log-prob difference| per token that rounding explains, by the coarser precision of sampler and learner.

Another policy's log-probs are whole nats away. In 16 bits single tokens differ by tenths, hence the mean."""


class Source(Protocol):
    """Where the weights of a publication come from: the learner, or a rollout worker's own copy of the policy."""

    accelerator: Accelerator
    """The ranks that publish together."""

    @property
    def device(self) -> torch.device: ...

    def logps(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of a small batch's completions, without gradient and dropout."""
        ...


@dataclass(frozen=True)
class Probe:
    """A few tokens, sampled and scored again by the source of the weights after every publish."""

    prompts: Sequence[Prompt]  # of this rank
    settings: SamplingSettings
    tolerance: float  # nats, of the mean
    pad_id: int

    def differences(self, run_seed: int, number: int, sampler: Sampler, source: Source) -> Tensor:
        """|sampler − source| log-prob of each sampled token: [N], of this rank's completions."""
        key = (run_seed, "probe", number)
        rollouts = sampler.sample(self.prompts, self.settings, key, policy_version=0)
        nothing = (0.0,) * self.settings.num_generations
        groups = [Group(rollout, {}, nothing) for rollout in rollouts]
        batch = collate(groups, pad_id=self.pad_id, on_policy=True).to(source.device)
        gap = source.logps(batch) - batch.behaviour_logps
        return gap.abs()[batch.completion_mask]


@dataclass
class Publishing:
    """What keeps a sampler that is not the source's own model on its weights."""

    sampler: Sampler  # as the engine offers it, without what the configuration puts around it
    publisher: Publisher
    weights: Weights
    probe: Probe
    source: Source
    seed: int
    every: int  # optimiser steps between two publishes; 0: never
    name: str = field(default_factory=lambda: secrets.token_hex(4))  # tells this run's weights from another's
    published: int | None = None  # the optimiser step whose weights the sampler has
    seconds: float = 0.0  # spent on publishing since `take_seconds`
    _probes: int = 0

    @property
    def accelerator(self) -> Accelerator:
        return self.source.accelerator

    def sampled(
        self,
        sample: Callable[[], Result],
        step: int,
        weights_step: int,
        meter: Meter,
        *,
        newest: bool = False,
    ) -> Result:
        """What ``sample`` returns when the sampler has the weights that are due, or, if ``newest``, the current ones.

        The current ones were made by optimiser step ``weights_step``; the run stands after ``step``.

        A server that was started again meanwhile has answered with the weights that it was started with: they are
        published again and everything is sampled anew. Draws are keyed, so nothing is lost and nothing comes twice.

        Raises:
            RunError: servers are lost again and again, publishing fails, or a probe finds another policy.
        """
        if self.every == 0:
            return sample()
        for _ in range(LOSSES):
            if self._due(weights_step, newest):
                self.publish(weights_step, meter)
            result = sample()
            if self._still_there():
                return result
            logger.warning(
                "a sampler lost its weights while it sampled; they are published and it samples again"
            )
            meter.add({"sampling/lost_weights": _count(self.accelerator)})
            self.published = None
        raise RunError(
            f"step {step}: the sampler lost its weights {LOSSES} times during one rollout; look at the log of its "
            "vLLM server, which was started again each time"
        )

    def restore(self) -> None:
        """Publish the weights of the last publication again, of one process only: for a sampler that lost its server.

        Raises:
            RunError: the server that came back did not take them.
        """
        try:
            self.publisher.publish(self.weights, f"{self.name}-{self.published}")
        except PublishFailed as error:
            raise RunError(f"the vLLM server came back and did not get its weights: {error}") from error

    def _due(self, current: int, newest: bool) -> bool:
        if self.published is None:
            return True
        return current > self.published if newest else current - self.published >= self.every

    def publish(self, step: int, meter: Meter) -> None:
        """Publish the source's weights, those of optimiser step ``step``, and probe them, up to `ATTEMPTS` times.

        Raises:
            RunError: no attempt brought the right weights.
        """
        started = time.perf_counter()
        for attempt in range(1, ATTEMPTS + 1):
            failure = self._attempt(f"{self.name}-{step}")
            meter.add({"sampling/publishes": _count(self.accelerator)})
            if failure is None:
                failure = self._probe(meter)
            if failure is None:
                self.published = step
                self.seconds += time.perf_counter() - started
                return
            logger.warning(
                "publishing the weights of step %d (attempt %d of %d): %s", step, attempt, ATTEMPTS, failure
            )
        raise RunError(f"step {step}: the sampler did not get its weights: {failure}")

    def _attempt(self, version: str) -> str | None:
        """One publish; what went wrong with it on any rank, on every rank. Raises what no other attempt can mend."""
        told: tuple[str, str] | None = None
        try:
            self.publisher.publish(self.weights, version)
        except (PublishFailed, UsageError, RunError) as error:
            told = (type(error).__name__, str(error))
        return _agreed(told, self.accelerator)

    def _still_there(self) -> bool:
        told: tuple[str, str] | None = None
        try:
            if not self.publisher.holds(f"{self.name}-{self.published}"):
                told = ("PublishFailed", "lost")
        except (PublishFailed, UsageError, RunError) as error:
            told = (type(error).__name__, str(error))
        return _agreed(told, self.accelerator) is None

    def _probe(self, meter: Meter) -> str | None:
        """Compare log-probs; says what is wrong, on every rank, or None."""
        self._probes += 1
        found = self.probe.differences(self.seed, self._probes, self.sampler, self.source)
        metrics: Metrics = {
            "sampling/logp_difference/mean": mean_stat(found),
            "sampling/logp_difference/max": extreme_stat(found, "max"),
        }
        meter.add(metrics)
        sums = gathered([(float(found.double().sum()), found.numel())], self.accelerator)
        mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
        if mean <= self.probe.tolerance:
            return None
        return (
            f"its log-probs differ from the learner's by {mean:.3g} nats per token (at most {self.probe.tolerance:g} "
            "is rounding): it has other weights, another tokenizer or chat model, or other log-probs "
            "(vllm serve --logprobs-mode)"
        )

    def take_seconds(self) -> float:
        """Seconds spent on publishing since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def make_probe(
    prompts: Sequence[Prompt], settings: SamplingSettings, dtype: torch.dtype, pad_id: int, rank: int
) -> Probe:
    """The probe of this rank: a few of the training prompts, other ones on every rank where there are enough."""
    first = rank * PROBE_PROMPTS
    own = [prompts[(first + i) % len(prompts)] for i in range(min(PROBE_PROMPTS, len(prompts)))]
    tokens = min(PROBE_TOKENS, settings.max_completion_length)
    small = replace(settings, num_generations=PROBE_COMPLETIONS, max_completion_length=tokens, stop=())
    return Probe(own, small, TOLERANCE[dtype], pad_id)


@torch.no_grad()
def sampling_ratios(logps: Tensor, batch: Batch) -> Metrics:
    """The learner's probability of each sampled token over the sampler's, before any cap or mask."""
    ratios = (logps - batch.behaviour_logps).exp()[batch.completion_mask]
    return {
        "sampling/ratio/mean": mean_stat(ratios),
        "sampling/ratio/min": extreme_stat(ratios, "min"),
        "sampling/ratio/max": extreme_stat(ratios, "max"),
    }


def _count(accelerator: Accelerator) -> Stat:
    """One event of all ranks together."""
    one = torch.tensor(float(accelerator.is_main_process), dtype=torch.float64)
    return Stat(one, torch.ones((), dtype=torch.float64), "sum")


def _agreed(told: tuple[str, str] | None, accelerator: Accelerator) -> str | None:
    """The first message of any rank, on every rank; raised where it is not one of `PublishFailed`."""
    messages = [message for message in gathered([told], accelerator) if message is not None]
    for kind, message in messages:
        if kind != "PublishFailed":
            raise (UsageError if kind == "UsageError" else RunError)(message)
    return messages[0][1] if messages else None
