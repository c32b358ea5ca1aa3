"""A vLLM server's properties, probed before anything is sampled, and what it must therefore not be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from maxent_grpo.errors import UsageError
from maxent_grpo.http import Fault, read_json
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.settings import Api, ServerSettings
from maxent_grpo.rollout.vllm.client_tag import own_part
from maxent_grpo.rollout.vllm.connection import Post, ResponseCheck, ServerConnection
from maxent_grpo.rollout.vllm.protocol import (
    PATHS,
    Output,
    ResponseError,
    ServerProtocol,
    plan_requests,
    request_body,
)
from maxent_grpo.types import Prompt

CERTAIN = -1e-6
"""A log-prob above this is that of the only token there was."""


@dataclass(frozen=True)
class ServerInfo:
    """The properties of a server, as `probe_server` found them."""

    protocol: ServerProtocol
    model: str | None
    max_model_len: int | None
    """Tokens of prompt and completion together."""
    logprobs_mode: Literal["raw", "processed"] | None
    """The log-probs that it reports: raw is at temperature 1 before truncation, processed at the sampling temperature
    and after it. None: the probe could not tell."""
    echoes_tag: bool


async def probe_server(connection: ServerConnection, check: ResponseCheck) -> ServerInfo:
    """Wait for the server, and ask it for its model and for a token or two.

    Raises:
        GenerationServiceError: as `VLLMServerSampler.check` says.
    """
    settings = check.settings
    looking = Post("/health", {}, ("check",))
    try:
        await connection.wait_until_healthy()
        listing = await connection.get("/v1/models")
    except Fault as fault:
        waited = f"not healthy within {settings.startup_timeout:g} s (vllm_server_timeout)"
        remedy = "start it with `vllm serve MODEL`, or correct vllm_server_base_url"
        raise connection.failed(looking, fault, f"{waited}: {fault}; {remedy}") from fault
    try:
        model, length = _served_model(settings, listing.status, listing.content)
    except Fault as fault:
        fault.status = listing.status
        raise connection.failed(replace(looking, path="/v1/models"), fault, str(fault)) from fault
    protocol = _protocol(settings.api, listing.status)
    output, echoes = await _probe(connection, check, protocol, model, _KEEPING_ONE)
    mode: Literal["raw", "processed"] | None = "raw"
    if output.logps[0] >= CERTAIN:
        output, _ = await _probe(connection, check, protocol, model, _KEEPING_ALL)
        mode = "processed" if output.logps[0] < CERTAIN else None
    return ServerInfo(protocol, model, length, mode, echoes)


def refuse_other_logps(info: ServerInfo, sampling: SamplingSettings, endpoint: str) -> None:
    """Refuse a server whose log-probs are not those of `rollout.token_sampling.draw_tokens`.

    Those are of the whole distribution at the sampling temperature: raw ones at temperature 1, processed ones
    where nothing is truncated. At temperature 0 both servers report temperature 1, as the learner does.

    Raises:
        UsageError: it reports others.
    """
    if not sampling.for_learning or sampling.temperature == 0:
        return
    truncated = sampling.top_p < 1 or sampling.top_k > 0 or bool(sampling.min_p)
    if sampling.temperature == 1 and (info.logprobs_mode == "raw" or not truncated):
        return
    if info.logprobs_mode == "processed" and not truncated:
        return
    where = f"vLLM server {endpoint}"
    if truncated and sampling.temperature != 1:
        raise UsageError(
            f"temperature: with top_p, top_k or min_p no log-prob that {where} reports is the learner's at "
            f"temperature {sampling.temperature:g}; use temperature 1, or drop the truncation"
        )
    if truncated:
        raise UsageError(
            f"top_p: {where} reports log-probs of the truncated distribution, the learner those of the whole one; "
            "start it with --logprobs-mode raw_logprobs, or drop top_p, top_k and min_p"
        )
    raise UsageError(
        f"temperature: {where} reports log-probs at temperature 1, the learner those at {sampling.temperature:g}; "
        "start it with --logprobs-mode processed_logprobs, or use temperature 1"
    )


def refuse_long_prompts(info: ServerInfo, sampling: SamplingSettings, prompts: Sequence[Prompt]) -> None:
    """Raise `UsageError` for a prompt that the server would refuse, or whose completions it would end early."""
    if not info.max_model_len:
        return
    room = info.max_model_len - sampling.max_completion_length
    long = next((prompt for prompt in prompts if len(prompt.token_ids) > room), None)
    if long is not None:
        raise UsageError(
            f"max_prompt_length: prompt {long.index} has {len(long.token_ids)} tokens and its completion may have "
            f"{sampling.max_completion_length}, but the vLLM server holds {info.max_model_len} together; serve with a "
            f"larger --max-model-len, or set max_prompt_length to {max(1, room)}"
        )


def _served_model(settings: ServerSettings, status: int, content: bytes) -> tuple[str | None, int | None]:
    """The name and the context length of the model to be used."""
    if status in (401, 403):
        raise Fault(f"it refuses /v1/models with HTTP {status} (the key is read from VLLM_API_KEY)")
    if status != 200:
        if settings.api in ("openai", "generate"):
            raise Fault(f"/v1/models answers HTTP {status}: this is no vLLM server (vllm_api={settings.api})")
        return settings.model, None
    cards = read_json(content).get("data")
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise ResponseError("/v1/models lists no models")
    names = [str(card.get("id"))[:200] for card in cards]
    wanted = settings.model
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        asked = (
            "no model is named and it serves several" if wanted is None else f"it does not serve {wanted!r}"
        )
        raise Fault(f"{asked}; it serves {', '.join(names) or 'none'}: set vllm_model to the right one")
    length = cards[names.index(wanted)].get("max_model_len")
    return wanted, length if type(length) is int else None


def _protocol(api: Api, status: int) -> ServerProtocol:
    """The server's protocol, where /v1/models answered ``status``."""
    if api == "auto":
        return "openai" if status == 200 else "trl"
    return api


_PROBE = Prompt(index=-1, text="", token_ids=(0, 1), columns={})
_KEEPING_ALL = SamplingSettings(num_generations=1, max_completion_length=1)
_KEEPING_ONE = replace(_KEEPING_ALL, top_k=1)


async def _probe(
    connection: ServerConnection,
    check: ResponseCheck,
    protocol: ServerProtocol,
    model: str | None,
    sampling: SamplingSettings,
) -> tuple[Output, bool]:
    """One token, and whether its answer carries this client's tag. A server that keeps only the likeliest token and
    gives it log-prob 0 reports the truncated distribution, unless the model is certain of that token anyway."""
    tag = check.settings.client_tag
    request = plan_requests([_PROBE], [(0, 0)], ("check",), 1)[0]

    def read(reply: dict[str, Any]) -> tuple[Output, bool]:
        (output,) = check.completions(reply, request, model, max_tokens=1)
        if output is None or not output.token_ids:
            raise ResponseError("the answer holds no completion")
        return output, tag is not None and own_part(reply, tag, "strict").kept > 0

    body = request_body(protocol, model, request, sampling, (), tag)
    return await connection.ask(Post(PATHS[protocol], body, request.key, prompts=1), read)
