"""What a sampler raises when a generation service fails it: one line for people, the facts for programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from maxent_grpo.errors import RunError

LONGEST_MESSAGE = 512
"""Characters of a server's own words that an error repeats."""


@dataclass(frozen=True)
class ServiceFailure:
    """The request that failed. Nothing here is secret: no header, no key, no user or password of an address."""

    service: str
    endpoint: str
    model: str | None
    exception_type: str
    exception_message: str  # at most `LONGEST_MESSAGE` characters
    prompt_count: int = 0
    payload_chars: int = 0  # of the request's JSON
    payload_size_bytes: int = 0
    status_code: int | None = None  # None: no answer came
    attempt: int = 0
    max_attempts: int = 0
    request_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # prompt_hash, client_tag, policy_version …


class GenerationServiceError(RunError):
    """A generation service gave no usable completions. ``payload`` holds the facts as plain values."""

    def __init__(self, message: str, failure: ServiceFailure) -> None:
        super().__init__(message)
        self.failure = failure

    @property
    def payload(self) -> dict[str, Any]:
        """The failure as a JSON-ready mapping."""
        return asdict(self.failure)
