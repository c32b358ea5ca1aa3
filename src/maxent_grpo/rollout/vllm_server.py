"""Sampling by a vLLM server: token ids in, token ids and log-probs out.

One request per completion, seeded by (key, prompt, number in the group), so that a completion can be asked for again
alone and is the same; the server's prefix cache computes a prompt once. What is still missing after the rounds comes
from ``backfill``, where there is one, counted and logged; else the run ends: a group is never trained incomplete.
Left out: penalties, beam search and guided decoding, whose log-probs the learner could not compute.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NoReturn

from transformers import PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError
from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.client_tag import own_part
from maxent_grpo.rollout.event_loop import run_to_end
from maxent_grpo.rollout.generation_error import GenerationServiceError
from maxent_grpo.rollout.generation_stats import GenerationStats
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.server_settings import ServerSettings
from maxent_grpo.rollout.vllm_http import LastingFault, PassingFault, Post, ServerConnection
from maxent_grpo.rollout.vllm_requests import (
    PATHS,
    Protocol,
    Request,
    group_request_id,
    plan_requests,
    request_body,
)
from maxent_grpo.rollout.vllm_responses import (
    Limits,
    MissingLogprobs,
    Output,
    ResponseError,
    parse,
    read_json,
)
from maxent_grpo.types import Metrics, Prompt, Rollout

logger = logging.getLogger(__name__)

ECHO_REMEDY = (
    "start vLLM with `--middleware maxent_grpo.rollout.client_tag.EchoMiddleware`, or put maxent-grpo-vllm-proxy in "
    "front of it; vllm_client_tag_policy=lenient keeps untagged answers, which is safe only for a server of one's own"
)
ANY_TOKEN = 2**31  # the vocabulary's size where it is not known
CERTAIN = -1e-6  # a log-prob above this is that of the only token there was

Slot = tuple[int, int]  # (position of the prompt in the call, number of the completion in its group)


@dataclass(frozen=True)
class ServerFacts:
    """What `VLLMServerSampler.check` found out."""

    protocol: Protocol
    model: str | None
    max_model_len: int | None  # tokens of prompt and completion together
    # Which log-probs it reports: raw is at temperature 1 before truncation, processed at the sampling temperature
    # and after it. None: the probe could not tell.
    logprobs_mode: Literal["raw", "processed"] | None
    echoes_tag: bool


@dataclass
class VLLMServerSampler:
    """See the module. ``restore`` publishes the learner's weights again; it is called when a lost server is back."""

    settings: ServerSettings
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int] = ()
    vocabulary: int | None = None  # rows of the model's embedding; None: token ids are not checked against it
    backfill: Sampler | None = None
    restore: Callable[[], None] | None = None
    facts: ServerFacts | None = field(default=None, init=False)
    _stats: GenerationStats = field(default_factory=GenerationStats, init=False)
    _answers_without_logps: int = field(default=0, init=False)  # in a row

    def drain_stats(self) -> Metrics:
        """``generation/…`` metrics since the last call."""
        return self._stats.drain()

    def check(self, *sampling: SamplingSettings) -> ServerFacts:
        """Wait for the server and find out that it can serve what ``sampling`` asks for.

        Raises `GenerationServiceError` where it is not reachable, serves another model, gives no token ids or
        log-probs, or does not echo the tag under the strict policy; `UsageError` where its log-probs are not those
        that the learner computes.
        """
        self.facts = run_to_end(self._facts())
        for settings in sampling:
            self._refuse_other_logps(self.facts, settings)
        return self.facts

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """See `Sampler.sample`. Raises `GenerationServiceError` where completions are missing in the end."""
        facts = self.facts or self.check()
        self._refuse_other_logps(facts, settings)
        _refuse_long_prompts(prompts, settings, facts)
        call = _Call(prompts, settings, key, policy_version, facts, finished)
        failure = run_to_end(self._fill(call))
        if call.missing():
            self._backfill(call, failure)
        group = range(settings.num_generations)
        return [
            self._rollout(prompt, [call.found[p, g] for g in group], policy_version)
            for p, prompt in enumerate(prompts)
        ]

    async def _fill(self, call: "_Call") -> GenerationServiceError | None:
        """Ask for completions in rounds. Returns what ended them early, where ``backfill`` may make up for it."""
        rounds = self.settings.max_completion_rounds or call.settings.num_generations
        each = 1 if call.facts.protocol == "generate" else self.settings.prompts_per_request
        async with ServerConnection(self.settings, self._stats, self.restore) as connection:
            for round_number in range(rounds):
                if round_number:
                    self._stats.retry_rounds += 1
                    await asyncio.sleep(self.settings.retry_sleep)
                requests = plan_requests(call.prompts, call.missing(), call.key, each)
                failure = await self._ask_all(connection, call, requests)
                if failure is not None and self.backfill is None:
                    raise failure
                if failure is not None or not call.missing():
                    return failure
            return None if self.backfill is not None else self._give_up(connection, call, rounds)

    async def _ask_all(
        self, connection: ServerConnection, call: "_Call", requests: Sequence[Request]
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
        post = Post(PATHS[call.facts.protocol], {}, call.key, prompts=len({p for p, _ in missing}))
        raise connection.failed(post, PassingFault(message), 200, rounds, message)

    async def _complete(
        self, connection: ServerConnection, call: "_Call", request: Request, request_id: str
    ) -> None:
        """Ask for one request's completions, in halves where that fails; finished ones go into ``call.found``."""
        protocol, model = call.facts.protocol, call.facts.model
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
        limits = Limits(self.vocabulary or ANY_TOKEN, call.settings.max_completion_length)
        try:
            outputs = await connection.ask(
                post, partial(self._outputs, request=request, limits=limits, model=model)
            )
        except GenerationServiceError as error:
            if len(request.members) == 1 or not _may_be_too_much(error):
                raise
            self._stats.halved_requests += 1
            for half in request.halves():
                await self._complete(connection, call, half, request_id)
            return
        for slot, output in zip(request.members, outputs, strict=True):
            if output is not None and output.finished:
                call.found[slot] = output
                if call.finished is not None:
                    call.finished(self._rollout(call.prompts[slot[0]], [output], call.policy_version))
            elif output is not None:
                self._stats.unfinished_completions += 1

    def _outputs(
        self, reply: dict[str, Any], request: Request, limits: Limits, model: str | None
    ) -> list[Output | None]:
        """This client's completions in an answer, one per member, None where it is missing."""
        own = self._own(reply)
        served = own.get("model")
        if isinstance(served, str) and model not in (None, served):
            raise LastingFault(
                f"it answers with model {served[:80]!r} instead of {model!r}; serve that, or set vllm_model"
            )
        try:
            parsed = parse(own, len(request.prompts), 1, limits)
        except MissingLogprobs as error:
            self._stats.logprobs_missing += 1
            self._answers_without_logps += 1
            if 0 < self.settings.logprob_fail_after <= self._answers_without_logps:
                raise LastingFault(
                    f"{error}, {self._answers_without_logps} answers in a row; the learner needs those of the "
                    "sampled tokens"
                ) from error
            raise
        self._answers_without_logps = 0
        self._stats.excess_completions += parsed.excess
        for prompt, outputs in zip(request.prompts, parsed.groups, strict=True):
            for output in outputs:
                if output.prompt_token_ids not in (None, prompt.token_ids):
                    raise ResponseError(
                        f"a completion continues another prompt than prompt {prompt.index}: answers were mixed up"
                    )
        return [outputs[0] if outputs else None for outputs in parsed.groups]

    def _own(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The answer without other clients' groups. Raises where nothing is left of it."""
        tag, policy = self.settings.client_tag, self.settings.tag_policy
        filtered = own_part(reply, tag, policy)
        self._stats.filtered_groups += filtered.dropped
        if filtered.kept or not filtered.dropped:
            return filtered.reply
        self._stats.client_tag_errors += 1
        if filtered.untagged:
            message = f"its answer does not echo client_tag={tag!r} (policy {policy}); {ECHO_REMEDY}"
        else:
            message = (
                f"all {filtered.dropped} groups of its answer carry other tags than client_tag={tag!r}: what stands "
                "between this client and the server mixes up answers"
            )
        raise (LastingFault if self.settings.tag_fail_fast else ResponseError)(message)

    def _backfill(self, call: "_Call", failure: GenerationServiceError | None) -> None:
        """The missing completions by the local sampler: those that it gives for the same numbers of the groups."""
        assert self.backfill is not None  # else the run has ended
        missing = call.missing()
        positions = sorted({p for p, _ in missing})
        logger.warning(
            "%d completions of %d prompts come from the local sampler instead of the vLLM server: %s",
            len(missing), len(positions), failure or "the server did not finish them",
        )  # fmt: skip
        self._stats.backfilled_completions += len(missing)
        self._stats.backfilled_prompts += len(positions)
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
            texts=tuple(self.tokenizer.batch_decode(ids, skip_special_tokens=True)),
            finish_reasons=tuple(output.finished or "stop" for output in outputs),
            policy_version=policy_version,
        )

    async def _facts(self) -> ServerFacts:
        """See `check`."""
        async with ServerConnection(self.settings, self._stats) as connection:
            nothing = Post("/health", {}, ("check",))
            try:
                await connection.wait_until_healthy()
                status, content = await connection.get("/v1/models")
            except PassingFault as error:
                waited = f"not healthy within {self.settings.startup_timeout:g} s (vllm_server_timeout)"
                remedy = "start it with `vllm serve MODEL`, or correct vllm_server_base_url"
                raise connection.failed(
                    nothing, error, error.status, 1, f"{waited}: {error}; {remedy}"
                ) from error
            listing = replace(nothing, path="/v1/models")
            try:
                model, length = self._served_model(status, content)
            except (LastingFault, ResponseError) as error:
                raise connection.failed(listing, error, status, 1, str(error)) from error
            protocol = self._protocol(status)
            output, echoes = await self._probe(connection, protocol, model, _KEEPING_ONE)
            mode: Literal["raw", "processed"] | None = "raw"
            if output.logps[0] >= CERTAIN:
                output, _ = await self._probe(connection, protocol, model, _KEEPING_ALL)
                mode = "processed" if output.logps[0] < CERTAIN else None
        return ServerFacts(protocol, model, length, mode, echoes)

    def _protocol(self, status: int) -> Protocol:
        """How the server is spoken to, where /v1/models answered ``status``."""
        if self.settings.api == "auto":
            return "openai" if status == 200 else "trl"
        return self.settings.api

    async def _probe(
        self, connection: ServerConnection, protocol: Protocol, model: str | None, settings: SamplingSettings
    ) -> tuple[Output, bool]:
        """One token, and whether its answer carries this client's tag. A server that keeps only the likeliest token and
        gives it log-prob 0 reports the truncated distribution, unless the model is certain of that token anyway."""
        tag = self.settings.client_tag
        request = plan_requests([_PROBE], [(0, 0)], ("check",), 1)[0]
        limits = Limits(self.vocabulary or ANY_TOKEN, max_tokens=1)

        def read(reply: dict[str, Any]) -> tuple[Output, bool]:
            (output,) = self._outputs(reply, request, limits, model)
            if output is None or not output.token_ids:
                raise ResponseError("the answer holds no completion")
            return output, tag is not None and own_part(reply, tag, "strict").kept > 0

        body = request_body(protocol, model, request, settings, (), tag)
        return await connection.ask(Post(PATHS[protocol], body, request.key, prompts=1), read)

    def _served_model(self, status: int, content: bytes) -> tuple[str | None, int | None]:
        """The name and the context length of the model to be used."""
        if status in (401, 403):
            raise LastingFault(
                f"it refuses /v1/models with HTTP {status} (the key is read from VLLM_API_KEY)"
            )
        if status != 200:
            if self.settings.api in ("openai", "generate"):
                raise LastingFault(
                    f"/v1/models answers HTTP {status}: this is no vLLM server (vllm_api={self.settings.api})"
                )
            return self.settings.model, None
        cards = read_json(content).get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            raise ResponseError("/v1/models lists no models")
        names = [str(card.get("id"))[:200] for card in cards]
        wanted = self.settings.model
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            asked = (
                "no model is named and it serves several"
                if wanted is None
                else f"it does not serve {wanted!r}"
            )
            raise LastingFault(
                f"{asked}; it serves {', '.join(names) or 'none'}: set vllm_model to the right one"
            )
        length = cards[names.index(wanted)].get("max_model_len")
        return wanted, length if type(length) is int else None

    def _refuse_other_logps(self, facts: ServerFacts, settings: SamplingSettings) -> None:
        """Raise `UsageError` where the server's log-probs are not those of `rollout.local.draw_tokens`.

        Those are of the whole distribution at the sampling temperature: raw ones at temperature 1, processed ones
        where nothing is truncated. At temperature 0 both servers report temperature 1, as the learner does.
        """
        if not settings.for_learning or settings.temperature == 0:
            return
        truncated = settings.top_p < 1 or settings.top_k > 0 or bool(settings.min_p)
        if settings.temperature == 1 and (facts.logprobs_mode == "raw" or not truncated):
            return
        if facts.logprobs_mode == "processed" and not truncated:
            return
        where = f"vLLM server {self.settings.endpoint}"
        if truncated and settings.temperature != 1:
            raise UsageError(
                f"temperature: with top_p, top_k or min_p no log-prob that {where} reports is the learner's at "
                f"temperature {settings.temperature:g}; use temperature 1, or drop the truncation"
            )
        if truncated:
            raise UsageError(
                f"top_p: {where} reports log-probs of the truncated distribution, the learner those of the whole one; "
                "start it with --logprobs-mode raw_logprobs, or drop top_p, top_k and min_p"
            )
        raise UsageError(
            f"temperature: {where} reports log-probs at temperature 1, the learner those at {settings.temperature:g}; "
            "start it with --logprobs-mode processed_logprobs, or use temperature 1"
        )


@dataclass(frozen=True)
class _Call:
    """One call of `VLLMServerSampler.sample` and what it has got so far."""

    prompts: Sequence[Prompt]
    settings: SamplingSettings
    key: tuple[KeyPart, ...]
    policy_version: int
    facts: ServerFacts
    finished: Finished | None = None
    found: dict[Slot, Output] = field(default_factory=dict)

    def missing(self) -> list[Slot]:
        group = range(self.settings.num_generations)
        return [(p, g) for p in range(len(self.prompts)) for g in group if (p, g) not in self.found]


_PROBE = Prompt(index=-1, text="", token_ids=(0, 1), columns={})
_KEEPING_ALL = SamplingSettings(num_generations=1, max_completion_length=1)
_KEEPING_ONE = replace(_KEEPING_ALL, top_k=1)


def _may_be_too_much(error: GenerationServiceError) -> bool:
    """Whether a smaller request may fare better: the server answered, or ran out of time."""
    status = error.failure.status_code
    if status is None:
        return error.failure.exception_type == "TimeoutError"
    return status not in (401, 403, 404)


def _refuse_long_prompts(prompts: Sequence[Prompt], settings: SamplingSettings, facts: ServerFacts) -> None:
    """A server would refuse such a prompt, or end its completions early."""
    room = (facts.max_model_len or ANY_TOKEN) - settings.max_completion_length
    long = next((prompt for prompt in prompts if len(prompt.token_ids) > room), None)
    if long is not None:
        raise UsageError(
            f"max_prompt_length: prompt {long.index} has {len(long.token_ids)} tokens and its completion may have "
            f"{settings.max_completion_length}, but the vLLM server holds {facts.max_model_len} together; serve with a "
            f"larger --max-model-len, or set max_prompt_length to {max(1, room)}"
        )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however it nests."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
