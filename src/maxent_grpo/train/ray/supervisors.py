"""Supervisors of a run's workers: what each is doing, until when it must be done, and what replaces it.

They live in the driver's process, beside the prompt stream and the buffer; the workers hold nothing that is not in a
checkpoint or cannot be made again. So a lost worker costs work, and never a prompt.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.checkpoint import checkpoints
from maxent_grpo.train.ray.buffer import GroupBuffer, Ticket
from maxent_grpo.train.ray.cluster import Places
from maxent_grpo.train.ray.learner_worker import LearnerWorker, ReferenceWorker
from maxent_grpo.train.ray.messages import (
    LearnerStart,
    RolloutBatch,
    SampledGroup,
    SampleTask,
    UpdateResult,
    WorkerConfig,
)
from maxent_grpo.train.ray.rollout_worker import RolloutWorker
from maxent_grpo.train.weight_sync import PROBE_PROMPTS

START_SECONDS = 600.0
"""Time that a worker has at least for importing its libraries and loading the model."""
MOST_LOSSES = 8
"""Workers that may be lost over one prompt, or learners without getting further, before the run ends."""
UPDATES = "the updates on a rollout"


class WorkerLostError(Exception):
    """A worker died, or was stuck beyond its deadline. Its supervisor replaces it."""


@dataclass(frozen=True, eq=False)
class Publication:
    """Weights that rollout workers sample with. After the learner went back, a version is published again."""

    weights: Any  # Ray's reference to them, which keeps them in the object store
    version: int  # optimiser steps behind them


@dataclass(eq=False)
class WorkerSlot:
    """The place of a rollout worker, and the one call that it has under way."""

    place: int
    worker: Any
    call: Any  # Ray's reference to what it will give; None: the worker is idle
    doing: str
    deadline: float  # of `time.monotonic`
    tickets: Sequence[Ticket] = ()
    has: Publication | None = None


class RolloutSupervisor:
    """The pool of rollout workers: hands them prompts with the current weights, and fills the buffer."""

    def __init__(
        self,
        config: WorkerConfig,
        places: Places,
        stream: PromptStream,
        buffer: GroupBuffer[SampledGroup],
        progress: Progress,
    ) -> None:
        self.stream = stream
        self.buffer = buffer
        self.progress = progress
        self.step = 0  # optimiser steps that the learner has told of
        self.publication = Publication(None, -1)  # the weights that count
        self.replaced = 0
        self.timing: dict[str, float] = {}  # for the learner's next record
        self._config = config
        self._places = places
        self._timeout = config.workers.timeout
        self._slots: list[WorkerSlot] = []
        self._silent = 0  # workers lost since one gave groups

    @property
    def pending(self) -> list[tuple[Any, float]]:
        """The calls under way, each with its deadline."""
        return [(slot.call, slot.deadline) for slot in self._slots if slot.call is not None]

    def start(self) -> None:
        self._slots = [self._started(place) for place in self._places.of("rollout")]

    def issue(self) -> None:
        """Give workers without work as many prompts as the buffer admits and the run still needs."""
        bounds, now = self.buffer.bounds, self.publication
        left = -(-(self._config.total_steps - self.buffer.next_version) // bounds.steps_per_rollout)
        share = -(-bounds.groups_per_rollout // len(self._slots))
        for slot in self._slots:
            needed = left * bounds.groups_per_rollout - self.buffer.outstanding
            if slot.call is not None or needed <= 0:
                continue
            tickets = self.buffer.issue(min(share, needed), now.version)
            if not tickets:
                return
            weights = None if slot.has is now else now.weights
            slot.call = slot.worker.sample.remote(self._tasks(tickets), weights, now.version)
            slot.doing, slot.deadline = "sampling", time.monotonic() + self._timeout
            slot.tickets, slot.has = tickets, now

    def collect(self, done: Collection[Any], now: float) -> None:
        """Take what the calls in ``done`` gave, and replace the workers that are gone or overdue at ``now``."""
        for slot in self._slots:
            if slot.call in done:
                self._collect(slot)
            elif slot.call is not None and slot.deadline <= now:
                self._replace(slot, f"was stuck: {slot.doing} took more than {self._timeout:g} s")

    def shutdown(self) -> None:
        for slot in self._slots:
            ray.kill(slot.worker)

    def _started(self, place: int) -> WorkerSlot:
        worker = self._places.start(RolloutWorker, place, self._config)
        call = worker.start.remote(self.stream.prompts[:PROBE_PROMPTS])  # engines are compared on them
        deadline = time.monotonic() + max(self._timeout, START_SECONDS)
        return WorkerSlot(place, worker, call, "starting", deadline)

    def _tasks(self, tickets: Sequence[Ticket]) -> list[SampleTask]:
        bounds = self.buffer.bounds
        tasks = []
        for ticket in tickets:
            self.stream.seek(ticket.number)
            step = ticket.number // bounds.groups_per_rollout * bounds.steps_per_rollout
            tasks.append(SampleTask(self.stream.take(1)[0], step))
        return tasks

    def _collect(self, slot: WorkerSlot) -> None:
        try:
            result: tuple[list[SampledGroup], float] | None = ray.get(slot.call)
        except RayError as error:
            self._replace(slot, _reason(error, "a rollout worker"))
            return
        slot.call = None
        if result is None:  # it has started
            return
        self._silent = 0
        groups, seconds = result
        assert slot.has is not None, "it was handed weights with its first tasks"
        for ticket, sampled in zip(slot.tickets, groups, strict=True):
            self.buffer.put(ticket, slot.has.version, sampled)
        tokens = sum(sum(sampled.group.rollout.lengths) for sampled in groups)
        self.timing |= {"time/sample": seconds, "tokens/s/sample": tokens / seconds}

    def _replace(self, slot: WorkerSlot, why: str) -> None:
        """Put a new worker into ``slot`` and have the prompts of the old one issued again."""
        worst = self.buffer.lose(slot.tickets)
        self.replaced += 1
        self.progress.note(
            f"step {self.step}: a rollout worker {why}; a new one starts, and its {len(slot.tickets)} prompts are "
            "sampled again"
        )
        self._silent += 1
        if worst >= MOST_LOSSES or self._silent >= MOST_LOSSES * len(self._slots):
            numbers = ", ".join(str(task.prompt.index) for task in self._tasks(slot.tickets))
            over = f"over prompts {numbers} of the dataset" if numbers else "before they had started"
            raise RunError(
                f"step {self.step}: {max(worst, self._silent)} rollout workers were lost {over} (the last {why}); see "
                "their output in Ray's logs"
            )
        ray.kill(slot.worker)
        self._slots[self._slots.index(slot)] = self._started(slot.place)


class LearnerSupervisor:
    """The learner's ranks and the reference workers: updates, publications, and a new learner for a lost one."""

    def __init__(
        self,
        config: WorkerConfig,
        places: Places,
        rollouts: RolloutSupervisor,
        cut_back: Callable[[int], None],
    ) -> None:
        self._config = config
        self._places = places
        self._rollouts = rollouts
        self._cut_back = cut_back  # the run's records, to what they were after a step
        self._timeout = config.workers.timeout
        self._publish_every = config.workers.update_frequency  # optimiser steps
        self._ranks: list[Any] = []
        self._references: list[Any] = []
        self._calls: list[Any] = []  # of the updates under way, one for each rank
        self._deadline = 0.0
        self._first_checkpoint: Path | None = None
        self._replaced = 0
        self._fruitless = 0  # learners lost since a step was new
        self._furthest = 0

    @property
    def step(self) -> int:
        """Optimiser steps that the learner has told of."""
        return self._rollouts.step

    @property
    def updating(self) -> bool:
        return bool(self._calls)

    @property
    def done(self) -> bool:
        """True when the last step is made."""
        return not self._calls and self.step >= self._config.total_steps

    @property
    def pending(self) -> list[tuple[Any, float]]:
        """The calls under way, each with its deadline."""
        return [(call, self._deadline) for call in self._calls]

    def start(self, checkpoint: Path | None) -> None:
        """Start the learner from ``checkpoint``; publishes its weights."""
        self._first_checkpoint = checkpoint
        with self._replacing():
            self._start(checkpoint)

    def start_updates(self) -> bool:
        """Hand the learner a rollout, if it is free and there is one. Returns whether it was."""
        held = [] if self._calls else self._rollouts.buffer.take()
        if held:
            self._send_rollout(held)
        return bool(held)

    def publish(self) -> None:
        """Put new weights into the object store, if they are due and the learner is free."""
        due = self.step - self._rollouts.publication.version >= self._publish_every
        if due and not self._calls and not self.done:
            with self._replacing():
                self._publish()

    def collect(self, done: Collection[Any], now: float) -> None:
        """Take what the learner tells once a rank is in ``done``; replace the learner if it is overdue at ``now``."""
        if any(call in done for call in self._calls):
            with self._replacing():
                self._collect()
        elif self._calls and self._deadline <= now:
            self._replace(f"was stuck: {UPDATES} took more than {self._timeout:g} s")

    def finish(self) -> None:
        """Have the learner leave the trained policy."""
        try:
            _results([rank.finish.remote() for rank in self._ranks], "saving the policy", self._timeout)
        except WorkerLostError as loss:
            raise RunError(
                f"the learner was lost while it saved the final policy ({loss}); resume with "
                "resume_from_checkpoint=true"
            ) from loss

    def shutdown(self) -> None:
        for worker in [*self._ranks, *self._references]:
            ray.kill(worker)

    def _start(self, checkpoint: Path | None) -> None:
        """All ranks at ``checkpoint`` or at the start, with the buffer as it was there, and their weights published."""
        self._cut_back(0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]))
        patience = max(self._timeout, START_SECONDS)
        start, told, places = self._places.start, self._config, self._places.of("learner")
        self._references = [start(ReferenceWorker, place, told) for place in self._places.of("reference")]
        self._ranks = [start(LearnerWorker, at, told, rank, len(places)) for rank, at in enumerate(places)]
        _results([worker.start.remote() for worker in self._references], "starting the reference", patience)
        (address,) = _results([self._ranks[0].address.remote()], "starting the learner", patience)
        starts = [rank.start.remote(address, checkpoint, self._references) for rank in self._ranks]
        position: LearnerStart = _results(starts, "starting the learner", patience)[0]
        self._rollouts.stream.load_state_dict(position.stream)  # refuses other prompts than the learner's
        self._rollouts.step = position.step
        self._rollouts.buffer.restore(next_version=position.step + position.updates_left, **position.buffer)
        self._publish()
        if position.updates_left:
            self._send_rollout(())

    def _send_rollout(self, held: Sequence[Any]) -> None:
        buffer = self._rollouts.buffer
        replaced = {"rollout_workers": self._rollouts.replaced, "learners": self._replaced}
        metrics = buffer.metrics() | {f"buffer/{name}_replaced": float(n) for name, n in replaced.items()}
        timing, self._rollouts.timing = self._rollouts.timing, {}
        batch = ray.put(RolloutBatch(held, buffer.drawn, buffer.state_dict(), metrics, timing))
        self._deadline = time.monotonic() + self._timeout
        self._calls = [rank.learn.remote(batch) for rank in self._ranks]

    def _collect(self) -> None:
        result: UpdateResult = _results(self._calls, UPDATES, self._timeout)[0]
        self._calls = []
        self._rollouts.step = result.step
        if result.step > self._furthest:
            self._furthest, self._fruitless = result.step, 0
        for call, arguments in result.shown:
            getattr(self._rollouts.progress, call)(*arguments)

    def _publish(self) -> None:
        started = time.perf_counter()
        weights = [rank.publish.remote() for rank in self._ranks]
        _wait_for(weights, "publishing weights", self._timeout)
        self._rollouts.publication = Publication(weights[0], self.step)
        self._rollouts.timing["time/publish"] = time.perf_counter() - started

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Replace the learner where it is lost inside."""
        try:
            yield
        except WorkerLostError as loss:
            self._replace(str(loss))

    def _replace(self, why: str) -> None:
        """New ranks at the newest checkpoint. What was trained since is trained again, from prompts issued again."""
        while True:
            self._replaced += 1
            self._fruitless += 1
            if self._fruitless >= MOST_LOSSES:
                raise RunError(
                    f"step {self.step}: the learner was lost {self._fruitless} times without getting further (the last "
                    f"{why}); see its output in Ray's logs"
                )
            self.shutdown()
            lost, self._calls = self._calls, []
            if lost:  # they write nothing once Ray has told of their end
                ray.wait(lost, num_returns=len(lost), timeout=START_SECONDS)
            checkpoint = self._newest_checkpoint()
            fate = f"resumes from {checkpoint.name}" if checkpoint else "starts again, without a checkpoint"
            self._rollouts.progress.note(f"step {self.step}: the learner {why}; a new one {fate}")
            try:
                self._start(checkpoint)
            except WorkerLostError as loss:
                why = str(loss)
            else:
                return

    def _newest_checkpoint(self) -> Path | None:
        """Of this run's own: an output directory may hold later ones of a history that was given up."""
        newest, found = (
            self._rollouts.buffer.next_version,
            checkpoints(self._config.settings.output.directory),
        )
        own = [path for path in found if int(path.name.rpartition("-")[2]) <= newest]
        return own[-1] if own else self._first_checkpoint


def wait(rollouts: RolloutSupervisor, learner: LearnerSupervisor, what: str) -> None:
    """Wait until a worker is done, gone or overdue, and deal with that. ``what`` is for the message if none can be.

    Raises:
        RunError: nothing is under way that could bring ``what``, or a worker's own `RunError`.
        UsageError: a worker's own.
    """
    pending = rollouts.pending + learner.pending
    if not pending:
        raise RunError(
            f"step {learner.step}: waiting for {what}, and no worker is doing anything "
            f"({rollouts.buffer.outstanding} groups outstanding, weights of step {rollouts.publication.version}); this "
            "is a fault of the driver: resume from the last checkpoint and report it"
        )
    patience = min(deadline for _, deadline in pending) - time.monotonic()
    done = set(ray.wait([call for call, _ in pending], num_returns=1, timeout=max(0.0, patience))[0])
    now = time.monotonic()
    rollouts.collect(done, now)
    learner.collect(done, now)


def _wait_for(calls: Sequence[Any], what: str, timeout: float) -> None:
    """Wait until all ``calls`` have ended, however they did. Raises `WorkerLostError` at the deadline."""
    missing = ray.wait(list(calls), num_returns=len(calls), timeout=timeout, fetch_local=False)[1]
    if missing:
        raise WorkerLostError(f"was stuck: {what} took more than {timeout:g} s")


def _results(calls: Sequence[Any], what: str, timeout: float) -> list[Any]:
    """The results of all ``calls``. Raises `WorkerLostError` where a worker is gone or overdue."""
    _wait_for(calls, what, timeout)
    reasons: list[RayError] = []
    results = []
    for call in calls:
        try:
            results.append(ray.get(call, timeout=timeout))
        except RayError as error:  # also where its answer does not come in time
            reasons.append(error)
    # Where one rank dies the others fail for it: the death is the reason, not what they make of it.
    deaths = [error for error in reasons if not isinstance(error, RayTaskError)]
    if reasons:
        raise WorkerLostError(_reason((deaths or reasons)[0], "the learner"))
    return results


def _reason(error: RayError, who: str) -> str:
    """The way a worker was lost, for a message. A failure of its own is raised: another worker would fail alike."""
    if not isinstance(error, RayTaskError):
        return f"died ({type(error).__name__})"
    cause = error.cause
    if isinstance(cause, RayError):  # an object that it was to read, or a worker that it asked
        return f"lost what it needs ({type(cause).__name__})"
    if isinstance(cause, UsageError | RunError):
        raise type(cause)(str(cause)) from error
    text = " ".join(str(cause).split())
    raise RunError(f"{who} failed: {type(cause).__name__}: {text}") from error
