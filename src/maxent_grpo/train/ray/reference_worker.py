"""The worker that scores the frozen reference policy, and what the learner asks it through."""

from collections.abc import Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from maxent_grpo.train.build import load_model, make_reference, start_accelerator
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.types import Batch


class ReferenceWorker:
    """Holds the reference policy: the named one, or the policy as it was before the first step."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment

    def start(self) -> None:
        settings = self._assignment.take_up()
        self._accelerator = start_accelerator(settings.device)
        policy = load_model(settings.model, self._assignment.given, self._accelerator.device)
        self._reference = make_reference(settings.model, policy, settings.sampling.temperature)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of the batch's completions, on the CPU."""
        with self._accelerator.autocast():
            return self._reference(batch.to(self._accelerator.device))[0].cpu()


class RemoteReference:
    """Scores a batch on ``workers``, each a share of its groups. To the step it is a reference as any other."""

    def __init__(self, workers: Sequence[Any], timeout: float) -> None:
        self._workers = workers
        self._timeout = timeout

    def __call__(self, batch: Batch) -> tuple[Tensor]:
        """Log-probs [B, T] under the reference; raises Ray's error where a worker does not answer in time."""
        count, device = batch.utilities.shape[0], batch.completion_ids.device
        shares = [list(range(count))[rank :: len(self._workers)] for rank in range(len(self._workers))]
        busy = [(share, worker) for share, worker in zip(shares, self._workers, strict=True) if share]
        cpu = batch.to(torch.device("cpu"))
        answers = ray.get(
            [worker.score.remote(cpu.select(share)) for share, worker in busy], timeout=self._timeout
        )
        logps = torch.zeros(count, batch.group_size, batch.completion_ids.shape[1])
        for (share, _), scored in zip(busy, answers, strict=True):
            logps[share, :, : scored.shape[1]] = scored.view(len(share), batch.group_size, -1).to(logps)
        return (logps.flatten(0, 1).to(device),)
