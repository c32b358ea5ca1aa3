"""Sampling by a vLLM server: token ids in, token ids and log-probs out.

One request per completion, seeded by (key, prompt, number in the group), so that a completion can be asked for again
alone and is the same; the server's prefix cache computes a prompt once. What is still missing after the rounds comes
from ``backfill``, where there is one, counted and logged; else the run ends: a group is never trained incomplete.
Left out: penalties, beam search and guided decoding, whose log-probs the learner could not compute.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError
from maxent_grpo.http import Fault, run_to_end
from maxent_grpo.models.loading import stop_token_ids
from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.samplers import SamplerParts
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.texts import completion_texts
from maxent_grpo.rollout.vllm.connection import (
    GenerationServiceError,
    GenerationStats,
    Post,
    ResponseCheck,
    ServerConnection,
)
from maxent_grpo.rollout.vllm.probe import ServerInfo, probe_server, refuse_long_prompts, refuse_other_logps
from maxent_grpo.rollout.vllm.protocol import (
    PATHS,
    CompletionRequest,
    Output,
    Slot,
    group_request_id,
    plan_requests,
    request_body,
)
from maxent_grpo.rollout.weight_sync.sync import WeightSync, server_weight_sync
from maxent_grpo.stats import Metrics
from maxent_grpo.types import Prompt, Rollout

logger = logging.getLogger(__name__)


@dataclass
class VLLMServerSampler(Sampler):
    """Samples with a server. ``restore`` syncs the learner's weights again; it is called when a lost server is back."""

    settings: ServerSettings
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int] = ()
    vocabulary: int | None = None
    """Rows of the model's embedding; None: token ids are not checked against it."""
    backfill: Sampler | None = None
    restore: Callable[[], None] | None = None
    info: ServerInfo | None = field(default=None, init=False)
    _stats: GenerationStats = field(default_factory=GenerationStats, init=False)
    _check: ResponseCheck = field(init=False)

    def __post_init__(self) -> None:
        self._check = ResponseCheck(self.settings, self._stats, self.vocabulary)

    def drain_stats(self) -> Metrics:
        """``generation/…`` metrics since the last call."""
        return self._stats.drain()

    def use_restore(self, restore: Callable[[], None]) -> None:
        self.restore = restore

    def check(self, *sampling: SamplingSettings) -> ServerInfo:
        """Wait for the server and find out that it can serve what ``sampling`` asks for.

        Raises:
            GenerationServiceError: it is not reachable, serves another model, gives no token ids or log-probs, or does
                not echo the tag under the strict policy.
            UsageError: its log-probs are not those that the learner computes.
        """
        self.info = run_to_end(self._probe_server())
        for settings in sampling:
            refuse_other_logps(self.info, settings, self.settings.endpoint)
        return self.info

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """See `Sampler.sample`. Raises `GenerationServiceError` where completions are missing in the end."""
        info = self.info or self.check()
        refuse_other_logps(info, settings, self.settings.endpoint)
        refuse_long_prompts(info, settings, prompts)
        call = _Call(prompts, settings, key, policy_version, info, finished)
        failure = run_to_end(self._fill(call))
        if call.missing():
            self._backfill(call, failure)
        group = range(settings.num_generations)
        return [
            self._rollout(prompt, [call.found[p, g] for g in group], policy_version)
            for p, prompt in enumerate(prompts)
        ]

    async def _probe_server(self) -> ServerInfo:
        async with ServerConnection(self.settings, self._stats) as connection:
            return await probe_server(connection, self._check)

    async def _fill(self, call: "_Call") -> GenerationServiceError | None:
        """Ask for completions in rounds. Returns what ended them early, where ``backfill`` may make up for it."""
        rounds = self.settings.max_completion_rounds or call.settings.num_generations
        each = 1 if call.info.protocol == "generate" else self.settings.prompts_per_request
        async with ServerConnection(self.settings, self._stats, self.restore) as connection:
            for round_number in range(rounds):
                if round_number:
                    self._stats.count("retry_rounds")
                    await asyncio.sleep(self.settings.retry_sleep)
                requests = plan_requests(call.prompts, call.missing(), call.key, each)
                failure = await self._ask_all(connection, call, requests)
                if failure is not None and self.backfill is None:
                    raise failure
                if failure is not None or not call.missing():
                    return failure
            return None if self.backfill is not None else self._give_up(connection, call, rounds)

    async def _ask_all(
        self, connection: ServerConnection, call: "_Call", requests: Sequence[CompletionRequest]
    ) -> GenerationServiceError | None:
        """Ask for everything, ``concurrency`` at a time. The first failure cancels the rest and is returned."""
        name = group_request_id(self.settings.group_request_id, requests)
        waiting = iter(requests)

        async def ask_one_by_one() -> None:
            for request in waiting:
                await self._complete(connection, call, request, name)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self.settings.concurrency, len(requests))):
                    tasks.create_task(ask_one_by_one())
        except BaseExceptionGroup as errors:
            first = _first(errors)
            if not isinstance(first, GenerationServiceError):
                raise first from None
            return first
        return None

    def _give_up(self, connection: ServerConnection, call: "_Call", rounds: int) -> NoReturn:
        missing = call.missing()
        message = (
            f"{len(missing)} completions of {len({p for p, _ in missing})} prompts are missing after {rounds} rounds: "
            "the server cuts them off; look at its log, or raise vllm_max_completion_rounds"
        )
        post = Post(PATHS[call.info.protocol], {}, call.key, prompts=len({p for p, _ in missing}))
        fault = Fault(message, 200)
        fault.attempt = rounds
        raise connection.failed(post, fault, message)

    async def _complete(
        self, connection: ServerConnection, call: "_Call", request: CompletionRequest, request_id: str
    ) -> None:
        """Ask for one request's completions, in halves where that fails; finished ones go into ``call.found``."""
        protocol, model = call.info.protocol, call.info.model
        post = Post(
            path=PATHS[protocol],
            body=request_body(
                protocol, model, request, call.settings, self.stop_token_ids, self.settings.client_tag
            ),
            key=request.key,
            prompts=len(request.prompts),
            request_id=request_id,
            extra={"prompt_hash": request.prompt_hash, "policy_version": call.policy_version},
        )
        longest = call.settings.max_completion_length
        try:
            outputs = await connection.ask(
                post, lambda reply: self._check.completions(reply, request, model, longest)
            )
        except GenerationServiceError as error:
            if len(request.members) == 1 or not _may_be_too_much(error):
                raise
            self._stats.count("halved_requests")
            for half in request.halves():
                await self._complete(connection, call, half, request_id)
            return
        for slot, output in zip(request.members, outputs, strict=True):
            if output is not None and output.finished:
                call.found[slot] = output
                if call.finished is not None:
                    call.finished(self._rollout(call.prompts[slot[0]], [output], call.policy_version))
            elif output is not None:
                self._stats.count("unfinished_completions")

    def _backfill(self, call: "_Call", failure: GenerationServiceError | None) -> None:
        """The missing completions by the local sampler: those that it gives for the same numbers of the groups."""
        assert self.backfill is not None  # else the run has ended
        missing = call.missing()
        positions = sorted({p for p, _ in missing})
        logger.warning(
            "%d completions of %d prompts come from the local sampler instead of the vLLM server: %s",
            len(missing), len(positions), failure or "the server did not finish them",
        )  # fmt: skip
        self._stats.count("backfilled_completions", len(missing))
        self._stats.count("backfilled_prompts", len(positions))
        chosen = [call.prompts[p] for p in positions]
        rollouts = self.backfill.sample(chosen, call.settings, call.key, call.policy_version)
        of_prompt = dict(zip(positions, rollouts, strict=True))
        for p, g in missing:
            spare = of_prompt[p]
            call.found[p, g] = Output(spare.token_ids[g], spare.logps[g], spare.finish_reasons[g])

    def _rollout(self, prompt: Prompt, outputs: Sequence[Output], policy_version: int) -> Rollout:
        ids = [list(output.token_ids) for output in outputs]
        return Rollout(
            prompt=prompt,
            token_ids=tuple(output.token_ids for output in outputs),
            logps=tuple(output.logps for output in outputs),
            texts=tuple(completion_texts(self.tokenizer, ids)),
            finish_reasons=tuple(output.finished or "stop" for output in outputs),
            policy_version=policy_version,
        )


@dataclass(frozen=True)
class _Call:
    """One call of `VLLMServerSampler.sample` and what it has got so far."""

    prompts: Sequence[Prompt]
    settings: SamplingSettings
    key: tuple[KeyPart, ...]
    policy_version: int
    info: ServerInfo
    finished: Finished | None = None
    found: dict[Slot, Output] = field(default_factory=dict)

    def missing(self) -> list[Slot]:
        group = range(self.settings.num_generations)
        return [(p, g) for p in range(len(self.prompts)) for g in group if (p, g) not in self.found]


def _may_be_too_much(error: GenerationServiceError) -> bool:
    """True if a smaller request may fare better: the server answered, or ran out of time."""
    status = error.payload["status_code"]
    if status is None:
        return bool(error.payload["exception_type"] == "TimeoutError")
    return status not in (401, 403, 404)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however it nests."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def server_sampler(parts: SamplerParts) -> tuple[Sampler, WeightSync]:
    """The factory of ``sampler: vllm_server``.

    Raises:
        GenerationServiceError: the server is not there, or does not answer as it must.
        UsageError: it cannot do what is asked, or a backfill would need a policy that ranks hold shards of.
    """
    settings = parts.settings
    assert settings.server is not None, "a server's settings come with its name"
    backfill = None
    if settings.backfill:
        if parts.whole is not parts.model:
            raise UsageError(
                "vllm_backfill_with_model: each rank holds a part of the policy and cannot sample alone; remove it, or "
                "use distributed=ddp"
            )
        backfill = LocalSampler(parts.model, parts.tokenizer, parts.autocast)
    sampler = VLLMServerSampler(
        settings.server,
        parts.tokenizer,
        stop_token_ids(parts.whole, parts.tokenizer),
        vocabulary=int(parts.whole.config.vocab_size),
        backfill=backfill,
    )
    sampler.check(parts.sampling)
    sends = parts.rank == 0 and settings.sync.interval > 0
    return sampler, server_weight_sync(settings.server, settings.sync, is_sender=sends, ranks=parts.ranks)
