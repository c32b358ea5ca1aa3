"""The run's sampler, and what keeps one with a copy of the weights on the learner's: sync, probe, lost servers.

All ranks call everything in here together.
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
from transformers import PreTrainedTokenizerBase

from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.models.loading import padding_id
from maxent_grpo.rollout import samplers
from maxent_grpo.rollout.dialogue import DialogueSampler
from maxent_grpo.rollout.environment import load_environment
from maxent_grpo.rollout.sampler import Sampler, SamplingSettings
from maxent_grpo.rollout.samplers import SamplerParts
from maxent_grpo.rollout.settings import SamplerSettings
from maxent_grpo.rollout.weight_sync.control import SyncFailed
from maxent_grpo.rollout.weight_sync.sync import PRECISIONS, WeightSync
from maxent_grpo.rollout.weight_sync.weights import PolicyWeights, Weights
from maxent_grpo.rollout.wrappers import SamplerInParts
from maxent_grpo.stats import Meter, Metrics, Stat, extreme_stat, mean_stat
from maxent_grpo.train.collate import collate
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.ranks import gathered, together
from maxent_grpo.types import Batch, Group, Prompt

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ATTEMPTS = 3
"""Syncs in a row that may fail, or that a probe may find wrong, before the run ends."""
WEIGHTS_FOLDER = ".published"
"""Folder of the output directory for weights that travel by disk."""
LOSSES = 3
"""Times that a server may lose its weights while one and the same rollout is sampled."""
PROBE_PROMPTS, PROBE_COMPLETIONS, PROBE_TOKENS = 2, 2, 8
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Mean |log-prob difference| per token that rounding explains, by the coarser precision of sampler and learner.

Another policy's log-probs are whole nats away. In 16 bits single tokens differ by tenths, hence the mean."""


class WeightSource(Protocol):
    """The owner of the weights: the learner, or a rollout worker's own copy of the policy."""

    accelerator: Accelerator
    """The ranks that sync together."""

    @property
    def device(self) -> torch.device: ...

    def logps(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of a small batch's completions, without gradient and dropout."""
        ...


@dataclass(frozen=True)
class Probe:
    """A few tokens, sampled and scored again by the source of the weights after every sync."""

    prompts: Sequence[Prompt]
    """Of this rank."""
    settings: SamplingSettings
    tolerance: float
    """Nats, of the mean."""
    pad_id: int

    def differences(self, run_seed: int, number: int, sampler: Sampler, source: WeightSource) -> Tensor:
        """|sampler − source| log-prob of each sampled token: [N], of this rank's completions."""
        key = (run_seed, "probe", number)
        rollouts = sampler.sample(self.prompts, self.settings, key, policy_version=0)
        nothing = (0.0,) * self.settings.num_generations
        groups = [Group(rollout, {}, nothing) for rollout in rollouts]
        batch = collate(groups, pad_id=self.pad_id, on_policy=True).to(source.device)
        gap = source.logps(batch) - batch.behaviour_logps
        return gap.abs()[batch.completion_mask]


@dataclass
class SamplerSync:
    """Keeps a sampler that is not the source's own model on its weights."""

    sampler: Sampler
    """As its factory made it, without what the configuration puts around it."""
    weight_sync: WeightSync
    weights: Weights
    probe: Probe
    source: WeightSource
    seed: int
    every: int
    """Optimizer steps between two syncs; 0: never."""
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells this run's weights from another's."""
    version: int | None = None
    """The optimizer step whose weights the sampler has."""
    seconds: float = 0.0
    """Spent on syncing since `take_seconds`."""
    _probes: int = 0

    @property
    def accelerator(self) -> Accelerator:
        return self.source.accelerator

    def sampled(
        self, sample: Callable[[], Result], *, step: int, version: int, meter: Meter, newest: bool = False
    ) -> Result:
        """The result of ``sample`` when the sampler has the weights that are due, or, if ``newest``, the current ones.

        A server that was started again meanwhile has answered with the weights that it was started with: they are
        synced again and everything is sampled anew. Draws are keyed, so nothing is lost and nothing comes twice.

        Args:
            step: optimizer steps done.
            version: the optimizer step that made the current weights.

        Raises:
            RunError: servers are lost again and again, a sync fails, or a probe finds another policy.
        """
        if self.every == 0:
            return sample()
        for _ in range(LOSSES):
            if self._due(version, newest):
                self.sync(version, meter)
            result = sample()
            if self._still_there():
                return result
            logger.warning(
                "a sampler lost its weights while it sampled; they are synced and it samples again"
            )
            meter.add({"sampling/lost_weights": _count(self.accelerator)})
            self.version = None
        raise RunError(
            f"step {step}: the sampler lost its weights {LOSSES} times during one rollout; look at the log of its "
            "vLLM server, which was started again each time"
        )

    def metrics(self, step: int, version: int) -> Metrics:
        """The sampler's own metrics since the last call, and the steps that it lags behind ``version`` at ``step``."""
        behind = version - (step if self.version is None else self.version)
        return self.sampler.drain_stats() | {"sampling/staleness": mean_stat(torch.tensor(float(behind)))}

    def restore(self) -> None:
        """Sync the weights of the last sync again, of one process only: for a sampler that lost its server.

        Raises:
            RunError: the server that came back did not take them.
        """
        try:
            self.weight_sync.sync(self.weights, f"{self.name}-{self.version}")
        except SyncFailed as error:
            raise RunError(f"the vLLM server came back and did not get its weights: {error}") from error

    def _due(self, current: int, newest: bool) -> bool:
        if self.version is None:
            return True
        return current > self.version if newest else current - self.version >= self.every

    def sync(self, version: int, meter: Meter) -> None:
        """Sync the source's weights, those of optimizer step ``version``, and probe them, up to `ATTEMPTS` times.

        Raises:
            RunError: no attempt brought the right weights.
        """
        started = time.perf_counter()
        for attempt in range(1, ATTEMPTS + 1):
            failure = self._agreed(lambda: self.weight_sync.sync(self.weights, f"{self.name}-{version}"))
            meter.add({"sampling/publishes": _count(self.accelerator)})
            if failure is None:
                failure = self._probe(meter)
            if failure is None:
                self.version = version
                self.seconds += time.perf_counter() - started
                return
            logger.warning(
                "syncing the weights of step %d (attempt %d of %d): %s", version, attempt, ATTEMPTS, failure
            )
        raise RunError(f"step {version}: the sampler did not get its weights: {failure}")

    def _still_there(self) -> bool:
        version = f"{self.name}-{self.version}"
        return self._agreed(lambda: None if self.weight_sync.holds(version) else "lost") is None

    def _agreed(self, call: Callable[[], str | None]) -> str | None:
        """The failure of ``call``, returned or raised, on any rank, on every rank; raised where nothing can mend it."""
        told: tuple[str, str] | None = None
        try:
            failure = call()
            told = None if failure is None else ("SyncFailed", failure)
        except (SyncFailed, UsageError, RunError) as error:
            told = (type(error).__name__, str(error))
        messages = [message for message in gathered([told], self.accelerator) if message is not None]
        for kind, message in messages:
            if kind != "SyncFailed":
                raise (UsageError if kind == "UsageError" else RunError)(message)
        return messages[0][1] if messages else None

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
        """Seconds spent on syncing since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def make_sampler(
    settings: NativeSettings, learner: Learner, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[Sampler, SamplerSync | None]:
    """The learner's sampler, and what keeps it on the learner's weights; None: it samples with them.

    Raises:
        UsageError: the sampler cannot do what is asked.
        RunError: a server is not there.
    """
    accelerator, dtype = learner.accelerator, settings.model.source.dtype
    parts = SamplerParts(
        learner.policy.model,
        tokenizer,
        settings.sampling,
        # Rollout workers have samplers of their own.
        SamplerSettings() if settings.workers is not None else sampler_settings(settings),
        learner.strategy.sampling_model,
        accelerator.autocast,
        accelerator.process_index,
        accelerator.num_processes,
    )
    return synced(
        parts,
        PolicyWeights(learner.policy.model, learner.strategy.gathered),
        learner,
        prompts=prompts,
        precision=torch.bfloat16 if settings.device.bf16 else dtype,
        seed=settings.seed,
        every=settings.sampler.sync.interval,
    )


def synced(
    parts: SamplerParts,
    weights: Weights,
    source: WeightSource,
    *,
    prompts: Sequence[Prompt],
    precision: torch.dtype,
    seed: int,
    every: int,
) -> tuple[Sampler, SamplerSync | None]:
    """The sampler that ``parts`` name, and what keeps it on the weights of ``source``, if it has a copy of them.

    Args:
        prompts: a few of them are sampled and scored again after every sync.
        precision: that ``source`` computes log-probs in.
        every: optimizer steps between two syncs; 0: never.
    """
    accelerator = source.accelerator
    with together():
        sampler, weight_sync = samplers.make_sampler(parts)
    if weight_sync is None:
        return sampler, None
    dtypes = gathered([weight_sync.dtype], accelerator)  # a rank that sends nothing does not know
    coarsest = max(*dtypes, precision, key=PRECISIONS.index)
    pad_id = padding_id(parts.model, parts.tokenizer)
    probe = make_probe(prompts, parts.sampling, coarsest, pad_id, accelerator.process_index)
    kept = SamplerSync(sampler, weight_sync, weights, probe, source, seed, every)
    if every > 0 and accelerator.num_processes == 1:  # several ranks sync together, after they have sampled
        sampler.use_restore(kept.restore)
    return sampler, kept


def sampler_settings(settings: NativeSettings) -> SamplerSettings:
    """The sampler's settings, with the places that the run's output and model give."""
    asked = settings.sampler
    directory = asked.sync.directory or str(settings.output.directory / WEIGHTS_FOLDER)
    engine = asked.engine and replace(asked.engine, model=settings.model.source.location)
    return replace(asked, engine=engine, sync=replace(asked.sync, directory=directory))


def configured(sampler: Sampler, settings: NativeSettings, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """``sampler``, in parts where a batch size is set, in several turns where there is an environment."""
    if settings.sampling_batch_size is not None:
        sampler = SamplerInParts(sampler, settings.sampling_batch_size)
    dialogue = settings.dialogue
    if dialogue is None:
        return sampler
    environment = load_environment(dialogue.environment)
    return DialogueSampler(sampler, environment, dialogue.max_turns, tokenizer, dialogue.prompts)


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
