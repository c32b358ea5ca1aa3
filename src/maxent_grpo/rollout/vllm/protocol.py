"""The protocols of vLLM-like servers: token ids in, token ids and log-probs out. Pure, and suspicious of answers.

Accepted shapes of an answer: ``choices[]`` (OpenAI's completions, vLLM's ``/inference/v1/generate``), ``results[]``
with or without ``outputs[]``, ``completion_ids[]`` with parallel lists (TRL's own server), and ``text[]`` with parallel
lists. An answer is checked, never mended; text alone is refused, as completions are never tokenised again.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from maxent_grpo.http import Fault, shortened
from maxent_grpo.randomness import KeyPart, integer_seed
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.vllm.client_tag import FIELD
from maxent_grpo.types import Prompt

ServerProtocol = Literal["openai", "generate", "trl"]
PATHS: dict[ServerProtocol, str] = {
    "openai": "/v1/completions",
    "generate": "/inference/v1/generate",
    "trl": "/generate/",
}

Slot = tuple[int, int]
"""(position of the prompt in the call, number of the completion in its group)"""


@dataclass(frozen=True)
class CompletionRequest:
    """One completion each of some prompts, drawn from one seed."""

    members: tuple[Slot, ...]
    prompts: tuple[Prompt, ...]
    """One per member."""
    seed: int
    key: tuple[KeyPart, ...]
    """Names the request's jitter."""

    def halves(self) -> tuple["CompletionRequest", "CompletionRequest"]:
        """The request in two. Both keep its seed, so that a retried completion is unchanged."""
        middle = len(self.members) // 2
        first, second = (
            CompletionRequest(self.members[part], self.prompts[part], self.seed, (*self.key, half))
            for half, part in enumerate((slice(None, middle), slice(middle, None)))
        )
        return first, second

    @property
    def prompt_hash(self) -> str:
        """Sixteen hexadecimal digits that tell the prompts from others."""
        text = "|".join(",".join(map(str, prompt.token_ids)) for prompt in self.prompts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_requests(
    prompts: Sequence[Prompt], missing: Sequence[Slot], key: tuple[KeyPart, ...], prompts_per_request: int
) -> list[CompletionRequest]:
    """Requests for the completions ``missing``, each (prompt, number), seeded by (``key``, prompt, number).

    Several prompts of a request share the seed of the first. Equal prompts never do: they would get equal completions.
    """
    requests: list[CompletionRequest] = []
    for number in sorted({number for _, number in missing}):
        batch_mates: list[int] = []
        texts: set[tuple[int, ...]] = set()
        for position in (p for p, n in missing if n == number):
            tokens = prompts[position].token_ids
            if len(batch_mates) == prompts_per_request or tokens in texts:
                requests.append(_request(prompts, batch_mates, number, key))
                batch_mates, texts = [], set()
            batch_mates.append(position)
            texts.add(tokens)
        requests.append(_request(prompts, batch_mates, number, key))
    return requests


def _request(
    prompts: Sequence[Prompt], batch_mates: Sequence[int], number: int, key: tuple[KeyPart, ...]
) -> CompletionRequest:
    own_key = (*key, *prompts[batch_mates[0]].key, number)
    return CompletionRequest(
        members=tuple((position, number) for position in batch_mates),
        prompts=tuple(prompts[position] for position in batch_mates),
        seed=integer_seed(*own_key),
        key=own_key,
    )


def request_body(
    protocol: ServerProtocol,
    model: str | None,
    request: CompletionRequest,
    settings: SamplingSettings,
    stop_token_ids: Sequence[int],
    tag: str | None,
) -> dict[str, Any]:
    """The JSON of one request. Every parameter is given: a server's own defaults come from the model's files."""
    sampling: dict[str, Any] = {
        "n": 1,
        "max_tokens": settings.max_completion_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p or 0.0,
        "repetition_penalty": 1.0,
    }
    ending = {
        "stop": list(settings.stop),
        "stop_token_ids": list(stop_token_ids),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # stop strings may contain special tokens, as they may for the local sampler
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "seed": request.seed,
    }
    tagged = {} if tag is None else {FIELD: tag}
    prompts = [list(prompt.token_ids) for prompt in request.prompts]
    if protocol == "trl":
        sampling["top_k"] = settings.top_k or -1  # what "all" was called when that server was current
        return {"prompts": prompts, **sampling, "logprobs": 0, "generation_kwargs": ending, **tagged}
    if protocol == "generate":
        (tokens,) = prompts
        final_only = {"output_kind": 2}  # else the server's default would return what finished last
        parameters = {**sampling, **ending, "logprobs": 0, **final_only}
        return {"model": model, "token_ids": tokens, "sampling_params": parameters, "stream": False, **tagged}
    return {
        "model": model,
        "prompt": prompts,
        **sampling,
        **ending,
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": False,
        **tagged,
    }


def group_request_id(given: str | None, requests: Sequence[CompletionRequest]) -> str:
    """One name for all requests of a call, for a server's or a proxy's log."""
    digest = hashlib.sha256("".join(request.prompt_hash for request in requests).encode()).hexdigest()
    return given or digest[:32]


# Answers

LOGP_TOLERANCE = 1e-3
"""Distance above 0 that rounding explains."""
TOKEN_PREFIX = "token_id:"
PARALLEL = ("completion_ids", "token_ids", "text")


class ResponseError(Fault):
    """The answer is not what was asked for. The message says what is wrong, without the answer itself."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=200)


class MissingLogprobs(ResponseError):
    """Completions came without one log-prob per token."""


@dataclass(frozen=True)
class Output:
    """One completion as the server tells it."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    """One per token."""
    finish_reason: str | None
    """ "stop" and "length" are finished completions; "abort" and the like are not."""
    prompt_token_ids: tuple[int, ...] | None = None
    """The prompt that it continues, where the server says so."""

    @property
    def finished(self) -> Literal["stop", "length"] | None:
        """The end of the completion; None where it was cut off and has to be asked for again."""
        if not self.token_ids:
            return None
        return self.finish_reason if self.finish_reason in ("stop", "length") else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Limits:
    """Bounds of every completion of an answer: token ids lie in [0, vocabulary)."""

    vocabulary: int
    max_tokens: int


@dataclass(frozen=True)
class Parsed:
    """An answer's completions, prompt by prompt."""

    groups: tuple[tuple[Output, ...], ...]
    """One per prompt, each at most n; fewer where some are missing."""
    excess: int
    """Completions beyond those asked for, left out."""


def parse(reply: Mapping[str, Any], prompts: int, n: int, limits: Limits) -> Parsed:
    """The completions of ``prompts`` prompts, ``n`` of each. Raises `ResponseError` naming what is wrong.

    Singleton groups are joined into groups of ``n``. Completions of a prompt may be missing where the answer says which
    prompt each belongs to; otherwise a wrong number of groups is an error, as nothing tells whose they are.
    """
    slots = _slots(_records(reply), prompts, n)
    groups: list[tuple[Output, ...]] = []
    excess = sum(max(0, len(slot) - n) for slot in slots)
    for records in slots[:prompts]:
        groups.append(tuple(_output(record, limits) for record in records[:n]))
    excess += sum(min(n, len(slot)) for slot in slots[prompts:])
    return Parsed(tuple(groups), excess)


def _records(reply: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Groups of outputs, as the answer groups them."""
    if "choices" in reply:
        return [[choice] for choice in _mappings(reply, "choices")]
    if "results" in reply:
        return [
            _mappings(result, "outputs") if "outputs" in result else [result]
            for result in _mappings(reply, "results")
        ]
    key = next((key for key in PARALLEL if isinstance(reply.get(key), list)), None)
    if key is None:
        known = ", ".join(sorted(map(str, reply))[:6]) or "nothing"
        raise ResponseError(
            f"the answer holds neither choices, results, completion_ids nor text (it holds {known})"
        )
    return [[record] for record in _columns(reply, key)]


def _columns(reply: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Parallel lists as one record per completion."""
    rows = reply[key]
    ids = reply[key] if key != "text" else reply.get("token_ids")
    if not isinstance(ids, list):
        raise ResponseError("the answer holds text without token ids")
    columns: dict[str, list[Any]] = {"token_ids": ids}
    for name in ("logprobs", "logprob_token_ids", "finish_reason", "finish_reasons"):
        if isinstance(reply.get(name), list):
            columns[name.removesuffix("s") if name == "finish_reasons" else name] = reply[name]
    for name, column in columns.items():
        if len(column) != len(rows):
            raise ResponseError(f"{key} has {len(rows)} entries and {name} has {len(column)}")
    return [{name: column[i] for name, column in columns.items()} for i in range(len(rows))]


def _slots(records: list[list[Mapping[str, Any]]], prompts: int, n: int) -> list[list[Mapping[str, Any]]]:
    """The records of each prompt, and after those of the last one what was not asked for."""
    if prompts == 1:  # however it is grouped, it continues the one prompt
        return [[record for group in records for record in group]]
    if any(len(group) != 1 for group in records):
        if len(records) >= prompts:
            return records
    else:
        flat = [group[0] for group in records]
        placed = _by_index(flat, prompts, n)
        if placed is not None:
            return placed
        if len(flat) == prompts * n:
            return [flat[p * n : (p + 1) * n] for p in range(prompts)]
    raise ResponseError(
        f"the answer holds {len(records)} groups for {prompts} prompts of {n} completions each, and nothing says "
        "which prompt each belongs to"
    )


def _by_index(
    flat: Sequence[Mapping[str, Any]], prompts: int, n: int
) -> list[list[Mapping[str, Any]]] | None:
    """Completions placed by their ``index``, which counts prompt by prompt; None where the indices say nothing."""
    indices = [record["index"] for record in flat if type(record.get("index")) is int]
    if len(set(indices)) < len(flat) or any(i < 0 for i in indices):
        return None
    if len(flat) <= prompts * n and any(i >= prompts * n for i in indices):
        return None  # counted over more than this answer holds: another's groups were taken out of it
    placed: list[list[Mapping[str, Any]]] = [[] for _ in range(prompts + 1)]
    for i, record in sorted(zip(indices, flat, strict=True), key=lambda pair: pair[0]):
        placed[min(i // n, prompts)].append(record)
    return placed


def _output(record: Mapping[str, Any], limits: Limits) -> Output:
    ids = _token_ids(record, limits)
    reason = record.get("finish_reason")
    if reason is None and isinstance(record.get("metadata"), Mapping):
        reason = record["metadata"].get("finish_reason")
    if reason is None and "finish_reason" not in record:  # TRL's server gives none
        reason = "length" if len(ids) == limits.max_tokens else "stop"
    if reason == "length" and len(ids) < limits.max_tokens:
        raise ResponseError(
            f"a completion ended for length after {len(ids)} of {limits.max_tokens} tokens: the server's "
            "--max-model-len is too small"
        )
    echoed = record.get("prompt_token_ids")
    return Output(
        token_ids=ids,
        logps=_logps(record, ids),
        finish_reason=reason if isinstance(reason, str) else None,
        prompt_token_ids=None if echoed is None else _integers(echoed, "prompt_token_ids"),
    )


def _token_ids(record: Mapping[str, Any], limits: Limits) -> tuple[int, ...]:
    metadata = record.get("metadata")
    sources = (record, metadata if isinstance(metadata, Mapping) else {})
    found = (source.get(key) for source in sources for key in ("token_ids", "completion_ids"))
    ids = next((value for value in found if value is not None), None)
    if ids is None and isinstance(record.get("logprobs"), Mapping):
        tokens = record["logprobs"].get("tokens")
        if isinstance(tokens, list) and all(
            isinstance(t, str) and t.startswith(TOKEN_PREFIX) for t in tokens
        ):
            ids = [_number_after_prefix(token) for token in tokens]
    if ids is None:
        what = "text without token ids" if "text" in record else "no token ids"
        raise ResponseError(f"a completion holds {what} (vLLM gives them for return_token_ids, since 0.10.2)")
    checked = _integers(ids, "token_ids")
    if len(checked) > limits.max_tokens:
        raise ResponseError(
            f"a completion has {len(checked)} tokens, asked for were at most {limits.max_tokens}"
        )
    outside = next((i for i in checked if not 0 <= i < limits.vocabulary), None)
    if outside is not None:
        raise ResponseError(
            f"token id {outside} is outside the vocabulary of {limits.vocabulary}: the server has another model"
        )
    return checked


def _logps(record: Mapping[str, Any], ids: Sequence[int]) -> tuple[float, ...]:
    """One log-prob per token, wherever the server put them."""
    metadata = record.get("metadata")
    sources = (record, metadata if isinstance(metadata, Mapping) else {})
    names = ("logprobs", "token_logprobs", "output_token_logprobs")
    found = [source[name] for source in sources for name in names if source.get(name) is not None]
    values = _values(found[0], record, ids) if found else None
    if values is None or any(value is None for value in values):
        if not ids:
            return ()
        sums = any(key in source for source in sources for key in ("cumulative_logprob", "logprob_sum"))
        what = "only the sum of its log-probs" if sums else "no log-probs"
        raise MissingLogprobs(f"a completion of {len(ids)} tokens comes with {what}")
    if len(values) != len(ids):
        raise ResponseError(f"a completion has {len(ids)} tokens and {len(values)} log-probs")
    checked = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ResponseError(f"a log-prob is {shortened(value)}, not a finite number")
        if value > LOGP_TOLERANCE:
            raise ResponseError(f"a log-prob is {value:g}, above 0")
        checked.append(min(0.0, float(value)))
    return tuple(checked)


def _values(found: Any, record: Mapping[str, Any], ids: Sequence[int]) -> list[Any] | None:
    """The sampled tokens' log-probs in one of the forms that servers use; None where it is none of them."""
    if isinstance(found, Mapping):  # OpenAI's completions, or its chat
        if isinstance(found.get("token_logprobs"), list):
            return list(found["token_logprobs"])
        if isinstance(found.get("content"), list):
            return [
                entry.get("logprob") if isinstance(entry, Mapping) else None for entry in found["content"]
            ]
        return None
    if not isinstance(found, list):
        return None
    listed = record.get("logprob_token_ids")
    candidates = listed if isinstance(listed, list) else []
    return [
        _sampled(entry, alternatives, token)
        for entry, alternatives, token in zip_longest(found, candidates[: len(found)], ids[: len(found)])
    ]


def _sampled(entry: Any, candidates: Any, token: int | None) -> Any:
    """The log-prob of ``token`` in one position's entry: a number, a list of candidates, or a mapping by token id."""
    if isinstance(entry, list):
        if isinstance(candidates, list) and token in candidates and len(candidates) == len(entry):
            return entry[candidates.index(token)]
        names_token = len(entry) == 3 and entry[1] == token  # SGLang: log-prob, token id, text
        return entry[0] if len(entry) == 1 or names_token else None
    if isinstance(entry, Mapping):
        inner = entry.get("logprob", entry.get(str(token)))
        return inner.get("logprob") if isinstance(inner, Mapping) else inner
    return entry


def _mappings(owner: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = owner[key]
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ResponseError(f"{key} is not a list of objects")
    return value


def _integers(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ResponseError(f"{name} is not a list of integers")
    return tuple(value)


def _number_after_prefix(token: str) -> int:
    digits = token.removeprefix(TOKEN_PREFIX)
    if not digits.isdecimal() or len(digits) > 12:
        raise ResponseError(f"{shortened(token)} is no token id")
    return int(digits)
