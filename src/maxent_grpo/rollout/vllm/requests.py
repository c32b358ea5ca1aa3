"""What a vLLM-like server is asked: token ids in, token ids and log-probs out. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maxent_grpo.randomness import KeyPart, integer_seed
from maxent_grpo.rollout.sampler import SamplingSettings
from maxent_grpo.rollout.vllm.client_tag import FIELD
from maxent_grpo.types import Prompt

Protocol = Literal["openai", "generate", "trl"]
PATHS: dict[Protocol, str] = {
    "openai": "/v1/completions",
    "generate": "/inference/v1/generate",
    "trl": "/generate/",
}


@dataclass(frozen=True)
class Request:
    """One completion each of some prompts, drawn from one seed."""

    members: tuple[tuple[int, int], ...]  # (position of the prompt in the call, number of the completion)
    prompts: tuple[Prompt, ...]  # one per member
    seed: int
    key: tuple[KeyPart, ...]  # names the request's jitter

    def halves(self) -> tuple["Request", "Request"]:
        """The request in two, with its seed: a completion does not change because its company failed."""
        middle = len(self.members) // 2
        first, second = (
            Request(self.members[part], self.prompts[part], self.seed, (*self.key, half))
            for half, part in enumerate((slice(None, middle), slice(middle, None)))
        )
        return first, second

    @property
    def prompt_hash(self) -> str:
        """Sixteen hexadecimal digits that tell the prompts from others."""
        text = "|".join(",".join(map(str, prompt.token_ids)) for prompt in self.prompts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_requests(
    prompts: Sequence[Prompt],
    missing: Sequence[tuple[int, int]],
    key: tuple[KeyPart, ...],
    prompts_per_request: int,
) -> list[Request]:
    """Requests for the completions ``missing``, each (prompt, number), seeded by (``key``, prompt, number).

    Several prompts of a request share the seed of the first. Equal prompts never do: they would get equal completions.
    """
    requests: list[Request] = []
    for number in sorted({number for _, number in missing}):
        company: list[int] = []
        texts: set[tuple[int, ...]] = set()
        for position in (p for p, n in missing if n == number):
            tokens = prompts[position].token_ids
            if len(company) == prompts_per_request or tokens in texts:
                requests.append(_request(prompts, company, number, key))
                company, texts = [], set()
            company.append(position)
            texts.add(tokens)
        requests.append(_request(prompts, company, number, key))
    return requests


def _request(
    prompts: Sequence[Prompt], company: Sequence[int], number: int, key: tuple[KeyPart, ...]
) -> Request:
    own_key = (*key, *prompts[company[0]].key, number)
    return Request(
        members=tuple((position, number) for position in company),
        prompts=tuple(prompts[position] for position in company),
        seed=integer_seed(*own_key),
        key=own_key,
    )


def request_body(
    protocol: Protocol,
    model: str | None,
    request: Request,
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


def group_request_id(given: str | None, requests: Sequence[Request]) -> str:
    """One name for all requests of a call, for a server's or a proxy's log."""
    digest = hashlib.sha256("".join(request.prompt_hash for request in requests).encode()).hexdigest()
    return given or digest[:32]
