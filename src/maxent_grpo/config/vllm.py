"""How a run reaches its vLLM server: settings and environment as the plain values of `ServerSettings`."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from maxent_grpo.config.environment import of_environment
from maxent_grpo.config.records import RECORDS, TrainingSettings, fed
from maxent_grpo.errors import UsageError
from maxent_grpo.rollout.settings import ServerSettings
from maxent_grpo.rollout.vllm.client_tag import VARIABLE as TAG_VARIABLE
from maxent_grpo.rollout.vllm.client_tag import derive_tag

ANY_ADDRESS = "0.0.0.0"  # TRL's default host: where a server listens, and this machine for whoever asks


def server_settings(
    training: TrainingSettings, ranks: int, rank: int, environ: Mapping[str, str]
) -> ServerSettings:
    """What process ``rank`` of ``ranks`` uses. A setting wins over its environment variable, that over the default.

    Raises `UsageError` naming the setting or the variable, every problem in one line.
    """
    problems: list[str] = []
    fed_fields: dict[str, Any] = {}
    for field, name in fed("server").items():
        value = getattr(training, name)
        if value is None:
            try:
                value = of_environment(RECORDS["training"][name], environ)
            except UsageError as error:
                problems.append(str(error))
        if value is not None:
            fed_fields[field] = value
    if training.vllm_prompts_per_request > 1 and training.vllm_api == "generate":
        problems.append(
            "vllm_prompts_per_request: /inference/v1/generate takes one prompt; use vllm_api=openai"
        )
    base_url = _base_url(training, problems)
    tag = _tag(training, ranks, rank, environ, problems)
    headers = _extra_headers(environ, problems)
    if problems:
        raise UsageError("; ".join(problems))
    return ServerSettings(
        base_url=base_url,
        client_tag=tag,
        tag_policy=training.vllm_client_tag_policy or ("strict" if tag is not None else "lenient"),
        group_request_id=environ.get("VLLM_GROUP_REQUEST_ID") or None,
        api_key=environ.get("VLLM_API_KEY") or None,
        extra_headers=headers,
        **fed_fields,
    )


def _base_url(training: TrainingSettings, problems: list[str]) -> str:
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
    training: TrainingSettings, ranks: int, rank: int, environ: Mapping[str, str], problems: list[str]
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
