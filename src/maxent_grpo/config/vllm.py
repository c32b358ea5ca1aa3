"""How a run reaches its vLLM server: settings and environment as the plain values of `ServerSettings`."""

import json
import math
from collections.abc import Mapping
from urllib.parse import urlsplit

from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.client_tag import VARIABLE as TAG_VARIABLE
from maxent_grpo.rollout.vllm.client_tag import derive_tag

ANY_ADDRESS = "0.0.0.0"  # TRL's default host: where a server listens, and this machine for whoever asks
MOST_RETRIES = 50
FLAGS = {"1": True, "true": True, "0": False, "false": False}


def server_settings(
    training: GRPOConfig, ranks: int, rank: int, environ: Mapping[str, str]
) -> ServerSettings:
    """What process ``rank`` of ``ranks`` uses. A setting wins over its environment variable, that over the default.

    Raises `UsageError` naming the setting or the variable, every problem in one line.
    """
    problems: list[str] = []

    def numbered(setting: str, variable: str, default: float) -> float:
        """The setting, its variable or the default; not a number counts as a problem."""
        given = getattr(training, setting)
        if given is not None:
            return float(given)
        text = environ.get(variable)
        if not text:
            return default
        try:
            return float(text)
        except ValueError:
            problems.append(f"{variable}: {text!r} is not a number")
            return default

    timeout = numbered("vllm_request_timeout", "VLLM_TIMEOUT", 120.0)
    retries = numbered("vllm_max_retries", "VLLM_MAX_RETRIES", 3)
    backoff = numbered("vllm_backoff", "VLLM_BACKOFF", 1.0)
    multiplier = numbered("vllm_backoff_multiplier", "VLLM_BACKOFF_MULTIPLIER", 2.0)
    fail_after = numbered("vllm_logprob_fail_after", "MAXENT_VLLM_LOGPROB_FAIL_AFTER", 3)
    bounds = {
        "vllm_request_timeout (VLLM_TIMEOUT)": (timeout, 0.001, math.inf, False),
        "vllm_max_retries (VLLM_MAX_RETRIES)": (retries, 0, MOST_RETRIES, True),
        "vllm_backoff (VLLM_BACKOFF)": (backoff, 0, math.inf, False),
        "vllm_backoff_multiplier (VLLM_BACKOFF_MULTIPLIER)": (multiplier, 1, math.inf, False),
        "vllm_logprob_fail_after (MAXENT_VLLM_LOGPROB_FAIL_AFTER)": (fail_after, 0, math.inf, True),
        "vllm_max_completion_rounds": (training.vllm_max_completion_rounds, 0, math.inf, True),
        "vllm_retry_sleep": (training.vllm_retry_sleep, 0, math.inf, False),
        "vllm_concurrency": (training.vllm_concurrency, 1, math.inf, True),
        "vllm_prompts_per_request": (training.vllm_prompts_per_request, 1, math.inf, True),
        "vllm_server_timeout": (training.vllm_server_timeout, 0, math.inf, False),
    }
    for name, (value, least, most, whole) in bounds.items():
        if not (math.isfinite(value) and least <= value <= most and (not whole or value == int(value))):
            kind = "a whole number" if whole else "a number"
            upper = f" to {most:g}" if math.isfinite(most) else " or more"
            problems.append(f"{name}: {value:g} must be {kind} of {least:g}{upper}")
    if training.vllm_prompts_per_request > 1 and training.vllm_api == "generate":
        problems.append(
            "vllm_prompts_per_request: /inference/v1/generate takes one prompt; use vllm_api=openai"
        )
    base_url = _base_url(training, problems)
    tag = _tag(training, ranks, rank, environ, problems)
    headers = _extra_headers(environ, problems)
    fail_fast = training.vllm_client_tag_fail_fast
    if fail_fast is None:
        fail_fast = _flag("MAXENT_VLLM_CLIENT_TAG_FAIL_FAST", environ, problems)
    if problems:
        raise UsageError("; ".join(problems))
    return ServerSettings(
        base_url=base_url,
        model=training.vllm_model,
        api=training.vllm_api,
        timeout=timeout,
        startup_timeout=float(training.vllm_server_timeout),
        max_retries=int(retries),
        backoff=backoff,
        backoff_multiplier=multiplier,
        max_completion_rounds=training.vllm_max_completion_rounds,
        retry_sleep=training.vllm_retry_sleep,
        concurrency=training.vllm_concurrency,
        prompts_per_request=training.vllm_prompts_per_request,
        client_tag=tag,
        tag_policy=training.vllm_client_tag_policy or ("strict" if tag is not None else "lenient"),
        tag_fail_fast=fail_fast,
        logprob_fail_after=int(fail_after),
        group_request_id=environ.get("VLLM_GROUP_REQUEST_ID") or None,
        api_key=environ.get("VLLM_API_KEY") or None,
        extra_headers=headers,
    )


def _base_url(training: GRPOConfig, problems: list[str]) -> str:
    """``scheme://host:port`` of whichever setting gives the address; a path that names an endpoint is cut off."""
    host = training.vllm_server_host
    local = f"http://{'127.0.0.1' if host == ANY_ADDRESS else host}:{training.vllm_server_port}"
    name, given = "vllm_server_host", local
    for setting in ("vllm_url", "vllm_server_base_url"):
        if getattr(training, setting):
            name, given = setting, getattr(training, setting)
    address = given if "//" in given else f"http://{given}"
    try:
        parts = urlsplit(address)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = given.rpartition("@")[2]
        problems.append(f"{name}: {shown!r} is no address; write http://host:port")
        return ""
    path = parts.path.rstrip("/")
    for endpoint in ("/generate", "/v1"):
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _tag(
    training: GRPOConfig, ranks: int, rank: int, environ: Mapping[str, str], problems: list[str]
) -> str | None:
    try:
        return derive_tag(training.vllm_client_tag, rank, ranks, environ)
    except ValueError as error:
        name = "vllm_client_tag" if training.vllm_client_tag else TAG_VARIABLE
        problems.append(f"{name}: {error}")
        return None


def _extra_headers(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """VLLM_EXTRA_HEADERS as a mapping. Its text may hold secrets and is not repeated."""
    text = environ.get("VLLM_EXTRA_HEADERS")
    if not text:
        return {}
    try:
        headers = json.loads(text)
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(
        isinstance(value, str) and value.isprintable() and name.isascii() for name, value in headers.items()
    ):
        problems.append('VLLM_EXTRA_HEADERS: is not a JSON object of texts, as in {"X-Team": "a"}')
        return {}
    return headers


def _flag(variable: str, environ: Mapping[str, str], problems: list[str]) -> bool:
    text = environ.get(variable) or "true"
    if text.lower() not in FLAGS:
        problems.append(f"{variable}: {text!r} is not one of {', '.join(FLAGS)}")
    return FLAGS.get(text.lower(), True)
