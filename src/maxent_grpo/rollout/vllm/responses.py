"""What a vLLM-like server answers, as tokens and log-probs. Pure, and suspicious: an answer is checked, never mended.

Accepted shapes: ``choices[]`` (OpenAI's completions, vLLM's ``/inference/v1/generate``), ``results[]`` with or
without ``outputs[]``, ``completion_ids[]`` with parallel lists (TRL's own server), and ``text[]`` with parallel
lists. Text alone is refused: completions are never made of text that is tokenised again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

LOGP_TOLERANCE = 1e-3
"""How far above 0 a log-prob may lie by rounding."""
TOKEN_PREFIX = "token_id:"
PARALLEL = ("completion_ids", "token_ids", "text")


class ResponseError(Exception):
    """The answer is not what was asked for. The message says what is wrong, without the answer itself."""


class MissingLogprobs(ResponseError):
    """Completions came without one log-prob per token."""


@dataclass(frozen=True)
class Output:
    """One completion as the server tells it."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]  # one per token
    finish_reason: str | None  # "stop" and "length" are finished completions; "abort" and the like are not
    prompt_token_ids: tuple[int, ...] | None = None  # what it continues, where the server says so

    @property
    def finished(self) -> Literal["stop", "length"] | None:
        """How the completion ended; None where it was cut off and has to be asked for again."""
        if not self.token_ids:
            return None
        return self.finish_reason if self.finish_reason in ("stop", "length") else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Limits:
    """What every completion of an answer must keep to."""

    vocabulary: int  # token ids lie in [0, vocabulary)
    max_tokens: int


@dataclass(frozen=True)
class Parsed:
    """An answer's completions, prompt by prompt."""

    groups: tuple[tuple[Output, ...], ...]  # one per prompt, each at most n; fewer where some are missing
    excess: int  # completions beyond those asked for, left out


def read_json(content: bytes) -> dict[str, Any]:
    """The JSON object in ``content``. Raises `ResponseError` for anything else, cut-off JSON included."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:
        kind = "cut off or not JSON" if content.lstrip()[:1] in (b"{", b"[") else "not JSON"
        raise ResponseError(f"the answer of {len(content)} bytes is {kind} ({_short(error)})") from error
    if not isinstance(reply, dict):
        raise ResponseError(f"the answer is a JSON {type(reply).__name__}, not an object")
    return reply


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
            raise ResponseError(f"a log-prob is {_short(value)}, not a finite number")
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
        raise ResponseError(f"{_short(token)} is no token id")
    return int(digits)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:79] + "…"
