"""What a server sampler had to do to get its completions, as metrics."""

from dataclasses import dataclass, fields

import torch

from maxent_grpo.types import Metrics, Stat


@dataclass
class GenerationStats:
    """Counts since they were last drained. Every rank has the same names, so that they add up over ranks."""

    requests: int = 0  # answered ones, bad answers included
    retry_attempts: int = 0
    retry_rounds: int = 0  # further rounds for completions that were missing
    halved_requests: int = 0
    server_losses: int = 0  # how often the server went away and came back
    unfinished_completions: int = 0  # cut off by the server (an abort), and asked for again
    excess_completions: int = 0  # not asked for, dropped
    filtered_groups: int = 0  # of other clients, dropped
    client_tag_errors: int = 0  # answers without a group of this client's
    logprobs_missing: int = 0  # answers without log-probs
    backfilled_completions: int = 0  # sampled by the local sampler instead
    backfilled_prompts: int = 0
    latency_total: float = 0.0  # seconds
    latency_max: float = 0.0

    def answered(self, seconds: float) -> None:
        """Count an answer that took ``seconds``, waiting for a free place in the queue not included."""
        self.requests += 1
        self.latency_total += seconds
        self.latency_max = max(self.latency_max, seconds)

    def drain(self) -> Metrics:
        """The counts as ``generation/…`` sums, the latency in milliseconds as mean and maximum; all start over."""
        metrics = {
            f"generation/{f.name}": _stat(getattr(self, f.name), "sum") for f in fields(self) if f.type is int
        }
        metrics["generation/latency_ms"] = Stat(_number(1000 * self.latency_total), _number(self.requests))
        metrics["generation/latency_ms_max"] = _stat(1000 * self.latency_max, "max")
        for f in fields(self):
            setattr(self, f.name, f.default)
        return metrics


def _stat(value: float, kind: str) -> Stat:
    return Stat(_number(value), _number(1), kind)  # type: ignore[arg-type]


def _number(value: float) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)
