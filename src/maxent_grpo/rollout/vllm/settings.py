"""How a vLLM server is reached, and how patiently."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from maxent_grpo.rollout.vllm.client_tag import TagPolicy

Api = Literal["auto", "openai", "generate", "trl"]


@dataclass(frozen=True)
class ServerSettings:
    """Plain values, checked by whoever makes them (`config.vllm.server_settings`). Times in seconds."""

    base_url: str = field(
        repr=False
    )  # scheme://host:port, no path; a user and password in it are shown nowhere
    model: str | None = None  # the name that the server must serve; None: the only one that it serves
    # openai: POST /v1/completions · generate: /inference/v1/generate · trl: /generate/ of TRL's former own server ·
    # auto: openai where /v1/models answers, else trl
    api: Api = "auto"
    timeout: float = 120.0  # from sending a request to the last byte of its answer
    startup_timeout: float = 240.0  # how long a server may stay away, at the start or after it was lost
    max_retries: int = 3  # further attempts of one request
    backoff: float = (
        1.0  # pause before the first of them, grown by `backoff_multiplier` and up to half by jitter
    )
    backoff_multiplier: float = 2.0
    max_completion_rounds: int = (
        0  # rounds that ask for what is missing; 0: as many as completions per prompt
    )
    retry_sleep: float = 0.5  # pause before such a round
    concurrency: int = 64  # requests in flight
    prompts_per_request: int = 1  # more than one: they share a seed, and a completion depends on its company
    client_tag: str | None = None
    tag_policy: TagPolicy = "lenient"
    tag_fail_fast: bool = (
        True  # an answer without this client's groups ends the run at once, not after retries
    )
    logprob_fail_after: int = (
        3  # answers in a row without log-probs that end the run, whatever retries remain; 0: off
    )
    group_request_id: str | None = None  # X-VLLM-Group-Request-ID; None: a digest of the prompts
    api_key: str | None = field(default=None, repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def endpoint(self) -> str:
        """The address without user and password: what may be shown."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may contain, should a server repeat it."""
        userinfo = unquote(urlsplit(self.base_url).netloc.rpartition("@")[0])
        basic = base64.b64encode(userinfo.encode()).decode()  # as it travels
        parts = (self.api_key, *self.extra_headers.values(), userinfo, basic, userinfo.partition(":")[2])
        return tuple(part for part in parts if part)
