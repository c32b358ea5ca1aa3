"""The workers that learn: ranks of the learner, with the parts and the step of a run without Ray, and the reference."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from maxent_grpo.evaluate.training import exploration_metrics
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.console import Progress
from maxent_grpo.rewards.scoring import group_metrics
from maxent_grpo.stats import Metrics, Stat, extreme_stat, mean_stat
from maxent_grpo.train.build import build, load_model, make_reference, start_accelerator
from maxent_grpo.train.checkpoint import BUFFER, group_from_json, load_checkpoint, save_final
from maxent_grpo.train.drivers import evaluate, next_groups, seed_libraries, update
from maxent_grpo.train.learner import Reference
from maxent_grpo.train.ranks import naming_lost_ranks, own_part
from maxent_grpo.train.ray.buffer import Held
from maxent_grpo.train.ray.messages import (
    LearnerStart,
    RolloutBatch,
    SampledGroup,
    UpdateResult,
    Weights,
    WorkerConfig,
)
from maxent_grpo.train.records import RunRecorder
from maxent_grpo.train.state import Run
from maxent_grpo.train.stopping import forget_request
from maxent_grpo.types import Batch, Group

TICKETS_FILE = "tickets.jsonl"
"""The prompts that each rollout trained on, and the version under which each was sampled."""


class LearnerWorker:
    """One rank. All ranks are called alike: `start`, then `publish` and `learn` in turn, then `finish`."""

    def __init__(self, config: WorkerConfig, rank: int, ranks: int) -> None:
        self._config = config
        self._rank = rank
        self._ranks = ranks

    def address(self) -> tuple[str, int]:
        """The meeting point of the ranks: this one's node, and a port that was free a moment ago."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def start(
        self, address: tuple[str, int], checkpoint: Path | None, references: Sequence[Any]
    ) -> LearnerStart:
        """Join the other ranks, load everything, and go to ``checkpoint``."""
        if self._ranks > 1 or self._config.settings.optimizer.distributed == "fsdp2":
            os.environ |= {  # as torchrun sets them
                "RANK": str(self._rank),
                "LOCAL_RANK": "0",  # Ray shows each worker its own devices only
                "WORLD_SIZE": str(self._ranks),
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": address[0],
                "MASTER_PORT": str(address[1]),
            }
        settings = self._config.load_config()
        self._run = run = build(settings, self._config.given)
        if references:
            run.reference = partial(scored_remotely, references, self._config.workers.timeout)
        self._timing: dict[str, float] = {}  # of the update under way; its reference enters its own time
        if run.reference is not None:
            run.reference = timed(run.reference, self._timing)
        buffer: dict[str, Any] = {"drawn": run.stream.drawn}
        if checkpoint is not None:
            load_checkpoint(run, checkpoint)
            buffer = stored_buffer(checkpoint, run)
        self._tickets = JsonlFile(run.output_dir / TICKETS_FILE)
        self._relay = Relay()
        self._recorder = RunRecorder(run, settings.records, self._relay)
        if run.step == 0 and run.cadence.eval_on_start:
            evaluate(run, self._recorder)
        self._finished = time.perf_counter()
        return LearnerStart(run.step, run.updates_left, run.stream.state_dict(), buffer)

    def learn(self, batch: RolloutBatch) -> UpdateResult:
        """All updates on a rollout: each is the step of every driver, with the same records and checkpoints."""
        run = self._run
        began = time.perf_counter()
        self._relay.kept = []
        run.stream.seek(batch.drawn)
        if batch.held:
            self._open_rollout(batch.held)
        run.buffer = partial(buffer_as_json, batch.buffer)
        self._timing.clear()
        self._timing |= dict(batch.timing) | {"time/wait": began - self._finished}
        measured = {n: mean_stat(torch.tensor(v, dtype=torch.float64)) for n, v in batch.metrics.items()}
        with naming_lost_ranks():
            while run.updates_left > 0 and run.step < run.cadence.total_steps:
                seed_libraries(run)
                run.meter.add(measured | ages(run, next_groups(run)))
                update(run, self._recorder, self._finished, self._timing)
                self._finished = time.perf_counter()
                self._timing.clear()
        return UpdateResult(run.step, self._relay.kept)

    def publish(self) -> Weights | None:
        """The trained weights, for rollout workers to sample with; None on all ranks but the first."""
        trained = {
            name for name, value in self._run.learner.policy.model.named_parameters() if value.requires_grad
        }
        with self._run.learner.strategy.full_weights() as model:
            if self._rank > 0:
                return None
            return {
                name: value.detach().to("cpu", copy=True)
                for name, value in model.named_parameters()
                if name in trained
            }

    def finish(self) -> None:
        """Leave the trained policy in the output directory, and close the records."""
        forget_request(self._run.output_dir, self._run.learner.accelerator)
        save_final(self._run)
        self._run.learner.accelerator.wait_for_everyone()
        self._run.close()
        self._recorder.finish()

    def _open_rollout(self, held: Sequence[Held[SampledGroup]]) -> None:
        run, groups = self._run, [one.group.group for one in held]
        run.rollout = own_part(groups, run.plan.prompts_per_step, run.learner.accelerator)
        run.updates_done = 0
        originals = [group.originals() for group in run.rollout]
        run.meter.add(group_metrics(run.rollout) | exploration_metrics(originals))
        # What rollout workers measured is one rank's to count; the others know its name.
        own = 1.0 if self._rank == 0 else 0.0
        zero = Stat(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), "sum")
        run.meter.add({"reward/errors": zero, "reward/timeouts": zero})
        for one in held:
            run.meter.add({name: _share(stat, own) for name, stat in one.group.metrics.items()})
        if self._rank == 0:
            numbers, versions = [one.number for one in held], [one.version for one in held]
            self._tickets.append({"step": run.step + 1, "tickets": numbers, "versions": versions})


class Relay(Progress):
    """Keeps what it would show, for the driver's console."""

    def __init__(self) -> None:
        super().__init__(0, "", enabled=False)
        self.kept: list[tuple[str, tuple[Any, ...]]] = []

    def update(self, step: int, metrics: Mapping[str, float | None], timing: Mapping[str, float]) -> None:
        self.kept.append(("update", (step, dict(metrics), dict(timing))))

    def note(self, text: str) -> None:
        self.kept.append(("note", (text,)))


class ReferenceWorker:
    """Holds the reference policy: the named one, or the policy as it was before the first step."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config

    def start(self) -> None:
        settings = self._config.load_config()
        self._accelerator = start_accelerator(settings.device)
        policy = load_model(settings.model, self._config.given, self._accelerator.device)
        self._reference = make_reference(settings.model, policy, settings.sampling.temperature)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Log-probs [B, T] of the batch's completions, on the CPU."""
        with self._accelerator.autocast():
            return self._reference(batch.to(self._accelerator.device))[0].cpu()


def scored_remotely(workers: Sequence[Any], timeout: float, batch: Batch) -> tuple[Tensor]:
    """Log-probs [B, T] under the reference of ``workers``, each of which scores a share of the groups.

    Raises Ray's error where a worker does not answer in time.
    """
    count, device = batch.utilities.shape[0], batch.completion_ids.device
    shares = [list(range(count))[rank :: len(workers)] for rank in range(len(workers))]
    busy = [(share, worker) for share, worker in zip(shares, workers, strict=True) if share]
    cpu = batch.to(torch.device("cpu"))
    answers = ray.get([worker.score.remote(cpu.select(share)) for share, worker in busy], timeout=timeout)
    logps = torch.zeros(count, batch.group_size, batch.completion_ids.shape[1])
    for (share, _), scored in zip(busy, answers, strict=True):
        logps[share, :, : scored.shape[1]] = scored.view(len(share), batch.group_size, -1).to(logps)
    return (logps.flatten(0, 1).to(device),)


def timed(reference: Reference, timing: dict[str, float]) -> Reference:
    """``reference``, which adds the seconds that it takes to an entry of ``timing``."""

    def score(batch: Batch) -> tuple[Tensor, ...]:
        started = time.perf_counter()
        scored = reference(batch)
        timing["time/reference"] = timing.get("time/reference", 0.0) + time.perf_counter() - started
        return scored

    return score


def ages(run: Run, groups: Sequence[Group]) -> Metrics:
    """Optimiser steps since the weights were current that sampled these groups."""
    age = torch.tensor([float(run.step - group.rollout.policy_version) for group in groups])
    return {"buffer/policy_age_mean": mean_stat(age), "buffer/policy_age_max": extreme_stat(age, "max")}


def buffer_as_json(state: Mapping[str, Any]) -> dict[str, Any]:
    """`GroupBuffer.state_dict` without Python objects. What was measured beside the groups is not kept."""
    ready = [
        {"number": held.number, "version": held.version, "group": asdict(held.group.group)}
        for held in state["ready"]
    ]
    return dict(state) | {"ready": ready}


def stored_buffer(checkpoint: Path, run: Run) -> dict[str, Any]:
    """The buffer that ``checkpoint`` holds; of a checkpoint of the inline driver, an empty one."""
    if not (checkpoint / BUFFER).is_file():
        return {"drawn": run.stream.drawn}
    state = json.loads((checkpoint / BUFFER).read_text())
    ready = [
        Held(one["number"], one["version"], SampledGroup(group_from_json(one["group"]), {}))
        for one in state["ready"]
    ]
    return state | {"ready": ready}


def _share(stat: Stat, share: float) -> Stat:
    """``share`` of a sum or mean; an extreme stays what it is, however many ranks know it."""
    return stat if stat.kind in ("min", "max") else Stat(stat.value * share, stat.weight * share, stat.kind)
