"""Plain settings of samplers and of weight sync, checked by whoever makes them. Times in seconds; imports no torch."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

TagPolicy = Literal["strict", "lenient"]
Api = Literal["auto", "openai", "generate", "trl"]
SAMPLERS = {
    "local": "maxent_grpo.rollout.samplers:local_sampler",
    "vllm_server": "maxent_grpo.rollout.vllm.server:server_sampler",
    "vllm_engine": "maxent_grpo.rollout.vllm.engine:engine_sampler",
}
"""Name of a sampler → its `samplers.SamplerFactory`."""
TRANSPORTS = {
    "disk": "maxent_grpo.rollout.weight_sync.transports:DiskTransport",
    "gloo": "maxent_grpo.rollout.weight_sync.gloo:GlooTransport",
    "nccl": "maxent_grpo.rollout.weight_sync.transports:NCCLTransport",
    "ipc": "maxent_grpo.rollout.weight_sync.transports:IPCTransport",
}
"""``vllm_sync_backend`` → a function from `SyncSettings` to a transport."""


def public_url(url: str) -> str:
    """``url`` without user, password and query: what may be shown."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


@dataclass(frozen=True)
class ServerSettings:
    """A vLLM server's address, and the patience with it."""

    base_url: str = field(repr=False)
    """scheme://host:port, no path; a user and password in it are shown nowhere."""
    model: str | None = None
    """The name that the server must serve; None: the only one that it serves."""
    api: Api = "auto"
    """openai: POST /v1/completions · generate: /inference/v1/generate · trl: /generate/ of TRL's former own server ·
    auto: openai where /v1/models answers, else trl."""
    timeout: float = 120.0
    """From sending a request to the last byte of its answer."""
    startup_timeout: float = 240.0
    """Time that a server may stay away, at the start or after it was lost."""
    max_retries: int = 3
    """Further attempts of one request."""
    backoff: float = 1.0
    """Pause before the first of them, grown by `backoff_multiplier` and up to half by jitter."""
    backoff_multiplier: float = 2.0
    max_completion_rounds: int = 0
    """Rounds that ask for what is missing; 0: as many as completions per prompt."""
    retry_sleep: float = 0.5
    """Pause before such a round."""
    concurrency: int = 64
    """Requests in flight."""
    prompts_per_request: int = 1
    """More than one share a seed, and a completion depends on its batch mates."""
    client_tag: str | None = None
    tag_policy: TagPolicy = "lenient"
    tag_fail_fast: bool = True
    """An answer without this client's groups ends the run at once, not after retries."""
    logprob_fail_after: int = 3
    """Answers in a row without log-probs that end the run, whatever retries remain; 0: off."""
    group_request_id: str | None = None
    """X-VLLM-Group-Request-ID; None: a digest of the prompts."""
    api_key: str | None = field(default=None, repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def endpoint(self) -> str:
        """The address that may be shown."""
        return public_url(self.base_url)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request, the key's included."""
        key = {} if not self.api_key else {"Authorization": f"Bearer {self.api_key}"}
        return {**self.extra_headers, **key}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may contain, should a server repeat them."""
        userinfo = unquote(urlsplit(self.base_url).netloc.rpartition("@")[0])
        basic = base64.b64encode(userinfo.encode()).decode()  # as it travels
        parts = (self.api_key, *self.extra_headers.values(), userinfo, basic, userinfo.partition(":")[2])
        return tuple(part for part in parts if part)


@dataclass(frozen=True)
class EngineSettings:
    """A vLLM engine in this process."""

    model: str
    """Directory or hub id: its weights are replaced before the first sample."""
    dtype: str
    """float32, bfloat16 …"""
    memory_fraction: float
    """Of the device's memory, for weights and cache together."""
    max_model_len: int | None
    """Tokens of prompt and completion together; None: the model's own limit."""
    temperature: float = 1.0
    """At which its log-probs are asked for."""
    sleep: bool = False
    """Give the cache's memory back while the learner works."""
    trust_remote_code: bool = False
    tensor_parallel: int = 1


@dataclass(frozen=True)
class SyncSettings:
    """The way that the learner's weights take to a sampler with a copy of its own."""

    backend: str = "auto"
    """auto, disk, gloo, nccl, ipc, or module:NAME of a transport factory."""
    interval: int = 1
    """Optimizer steps between two syncs; 0: never."""
    urls: Sequence[str] = ()
    """All servers behind a proxy; empty: the sampler's own address."""
    directory: str = ""
    """For disk, under one path on trainer and servers."""
    port: int = 0
    """The port where the members of a process group meet; 0: a free one."""
    timeout: float = 300.0
    """Seconds that one attempt may take."""


@dataclass(frozen=True)
class SamplerSettings:
    """A sampler by its name, and the settings of those that need any."""

    name: str = "local"
    """local, vllm_server, vllm_engine, or module:NAME of a sampler factory."""
    server: ServerSettings | None = None
    engine: EngineSettings | None = None
    sync: SyncSettings = field(default_factory=SyncSettings)
    backfill: bool = False
    """Completions that a server does not deliver come from the learner's own model."""
