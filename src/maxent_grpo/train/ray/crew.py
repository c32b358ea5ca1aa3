"""The workers of a run: what each is doing, until when it must be done, and what happens when one is gone.

The driver's process holds this, the prompt stream and the buffer; the workers hold nothing that is not in a checkpoint
or cannot be made again. So a lost worker costs work, and never a prompt.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from maxent_grpo.config.run_settings import WorkerSettings
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.checkpoint import checkpoints
from maxent_grpo.train.publishing import PROBE_PROMPTS
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.train.ray.buffer import GroupBuffer, Ticket
from maxent_grpo.train.ray.cluster import Places
from maxent_grpo.train.ray.learner_worker import LearnerWorker, Learnt, Lesson, Position
from maxent_grpo.train.ray.publisher import Publisher
from maxent_grpo.train.ray.reference_worker import ReferenceWorker
from maxent_grpo.train.ray.rollout_worker import Errand, RolloutWorker, Sampled, Work

logger = logging.getLogger(__name__)

START_SECONDS = 600.0
"""What a worker has at least for importing its libraries and loading the model."""
MOST_LOSSES = 8
"""Workers that may be lost over one prompt, or learners without getting further, before the run ends."""


class WorkerLostError(Exception):
    """A worker died, or was stuck beyond its deadline. The crew replaces it."""


@dataclass
class Task:
    """A piece of work that a worker has."""

    answer: Any  # Ray's reference to what it will give
    what: str
    deadline: float  # of `time.monotonic`
    version: int = -1
    tickets: list[Ticket] = field(default_factory=list)


@dataclass
class Seat:
    """The place of a rollout worker, whoever sits there."""

    place: int
    worker: Any
    task: Task | None  # one at a time
    serial: int = -1  # the publication that it has


class Crew:
    """All workers of a run, and the one way to wait for them."""

    def __init__(
        self,
        workers: WorkerSettings,
        assignment: Assignment,
        places: Places,
        stream: PromptStream,
        buffer: GroupBuffer[Sampled],
        progress: Progress,
        cut_back: Callable[[int], None],
    ) -> None:
        self.buffer = buffer
        self.step = 0  # optimiser steps that the learner has told of
        self._assignment = assignment
        self._places = places
        self._stream = stream
        self._probed = stream.prompts[:PROBE_PROMPTS]  # for engines that are compared with the policy
        self._progress = progress
        self._cut_back = cut_back  # the run's records, to what they were after a step
        self._timeout = workers.timeout
        self._publisher = Publisher(workers.update_frequency)
        self._chunk = -(-buffer.bounds.groups_per_rollout // workers.rollout)
        self._learners: list[Any] = []
        self._references: list[Any] = []
        self._seats: list[Seat] = []
        self._lessons: list[Task] = []  # what the learner's ranks are doing, one each
        self._first_checkpoint: Path | None = None
        self._replaced = {"rollout_workers": 0, "learners": 0}
        self._fruitless = 0  # learners lost since a step was new
        self._furthest = 0
        self._silent = 0  # rollout workers lost since one gave groups
        self._timing: dict[str, float] = {}  # for the learner's next record

    # What the drivers ask

    @property
    def learning(self) -> bool:
        """Whether the learner has updates to make."""
        return bool(self._lessons)

    @property
    def done(self) -> bool:
        """Whether the last step is made."""
        return not self._lessons and self.step >= self._assignment.total_steps

    def begin(self, checkpoint: Path | None) -> None:
        """Start all workers, and the learner from ``checkpoint``; publishes its weights."""
        self._first_checkpoint = checkpoint
        for place in self._places.of("rollout"):
            self._seats.append(self._new_seat(place))
        try:
            self._start_learner(checkpoint)
        except WorkerLostError as loss:
            self._replace_learner(str(loss))

    def issue(self) -> None:
        """Give rollout workers without work as many prompts as the buffer admits and the run still needs."""
        bounds = self.buffer.bounds
        left = -(-(self._assignment.total_steps - self.buffer.next_version) // bounds.steps_per_rollout)
        for seat in self._seats:
            needed = left * bounds.groups_per_rollout - self.buffer.outstanding
            if seat.task is not None or needed <= 0:
                continue
            version = self._publisher.version
            tickets = self.buffer.issue(min(self._chunk, needed), version)
            if not tickets:
                return
            weights = None if seat.serial == self._publisher.serial else self._publisher.weights
            answer = seat.worker.sample.remote(self._errands(tickets), weights, version)
            seat.serial = self._publisher.serial
            seat.task = Task(answer, "sampling", time.monotonic() + self._timeout, version, tickets)

    def learn(self) -> bool:
        """Hand the learner a rollout, if it is free and there is one. Whether it was."""
        if self._lessons:
            return False
        held = self.buffer.take()
        if not held:
            return False
        self._teach(held)
        return True

    def publish(self) -> None:
        """Put new weights into the object store, if they are due and the learner is free."""
        if self._lessons or self.done or not self._publisher.due(self.step):
            return
        try:
            self._publish()
        except WorkerLostError as loss:
            self._replace_learner(str(loss))

    def wait(self, what: str) -> None:
        """Wait until a worker is done, gone or overdue, and deal with that. ``what`` is for the message if none can be.

        Raises:
            RunError: nothing is under way that could bring ``what``, or a worker's own `RunError`.
            UsageError: a worker's own.
        """
        tasks = [seat.task for seat in self._seats if seat.task is not None] + self._lessons
        if not tasks:
            raise RunError(
                f"step {self.step}: waiting for {what}, and no worker is doing anything "
                f"({self.buffer.outstanding} groups outstanding, weights of step {self._publisher.version}); this is a "
                "fault of the driver: resume from the last checkpoint and report it"
            )
        patience = min(task.deadline for task in tasks) - time.monotonic()
        done = set(ray.wait([task.answer for task in tasks], num_returns=1, timeout=max(0.0, patience))[0])
        now = time.monotonic()
        for seat in self._seats:
            if seat.task is not None and seat.task.answer in done:
                self._settle(seat, seat.task)
            elif seat.task is not None and seat.task.deadline <= now:
                self._replace(seat, f"was stuck: {seat.task.what} took more than {self._timeout:g} s")
        if any(task.answer in done for task in self._lessons):
            self._settle_lesson()
        elif any(task.deadline <= now for task in self._lessons):
            self._replace_learner(f"was stuck: {self._lessons[0].what} took more than {self._timeout:g} s")

    def finish(self) -> None:
        """Have the learner leave the trained policy."""
        try:
            self._all([rank.finish.remote() for rank in self._learners], "saving the policy", self._timeout)
        except WorkerLostError as loss:
            raise RunError(
                f"the learner was lost while it saved the final policy ({loss}); resume with "
                "resume_from_checkpoint=true"
            ) from loss

    def dismiss(self) -> None:
        """End all workers."""
        for worker in [*self._learners, *self._references, *(seat.worker for seat in self._seats)]:
            ray.kill(worker)

    # Rollout workers

    def _errands(self, tickets: Sequence[Ticket]) -> list[Errand]:
        bounds = self.buffer.bounds
        errands = []
        for ticket in tickets:
            self._stream.seek(ticket.number)
            (prompt,) = self._stream.take(1)
            step = ticket.number // bounds.groups_per_rollout * bounds.steps_per_rollout
            errands.append(Errand(prompt, step))
        return errands

    def _new_seat(self, place: int) -> Seat:
        actor = ray.remote(RolloutWorker).options(**self._places.options(place))
        worker: Any = actor.remote(self._assignment)
        return Seat(
            place, worker, Task(worker.start.remote(self._probed), "starting", self._start_deadline())
        )

    def _start_deadline(self) -> float:
        return time.monotonic() + max(self._timeout, START_SECONDS)

    def _settle(self, seat: Seat, task: Task) -> None:
        """Take what a rollout worker gave, or replace it if it is gone."""
        seat.task = None
        try:
            work: Work | None = ray.get(task.answer)
        except RayError as error:
            seat.task = task
            self._replace(seat, _reason(error, "a rollout worker"))
            return
        if work is None:  # it has started
            return
        self._silent = 0
        for ticket, sampled in zip(task.tickets, work.sampled, strict=True):
            self.buffer.put(ticket, task.version, sampled)
        self._timing["time/sample"] = work.seconds
        self._timing["tokens/s/sample"] = work.tokens / work.seconds

    def _replace(self, seat: Seat, why: str) -> None:
        """Put a new worker into ``seat`` and have the prompts of the old one issued again."""
        task = seat.task
        assert task is not None
        worst = self.buffer.lose(task.tickets)
        self._replaced["rollout_workers"] += 1
        self._progress.note(
            f"step {self.step}: a rollout worker {why}; a new one starts, and its {len(task.tickets)} prompts are "
            "sampled again"
        )
        self._silent += 1
        if worst >= MOST_LOSSES or self._silent >= MOST_LOSSES * len(self._seats):
            numbers = ", ".join(str(errand.prompt.index) for errand in self._errands(task.tickets))
            over = f"over prompts {numbers} of the dataset" if numbers else "before they had started"
            raise RunError(
                f"step {self.step}: {max(worst, self._silent)} rollout workers were lost {over} (the last {why}); see "
                "their output in Ray's logs"
            )
        ray.kill(seat.worker)
        fresh = self._new_seat(seat.place)
        seat.worker, seat.task, seat.serial = fresh.worker, fresh.task, fresh.serial

    # The learner

    def _teach(self, held: Sequence[Any]) -> None:
        buffer = self.buffer
        replaced = {f"buffer/{name}_replaced": float(count) for name, count in self._replaced.items()}
        lesson = ray.put(
            Lesson(held, buffer.drawn, buffer.state_dict(), buffer.metrics() | replaced, self._timing)
        )
        self._timing = {}
        deadline = time.monotonic() + self._timeout
        self._lessons = [
            Task(rank.learn.remote(lesson), "the updates on a rollout", deadline) for rank in self._learners
        ]

    def _settle_lesson(self) -> None:
        """Take what the learner tells when all its ranks have made their updates."""
        try:
            answers = [task.answer for task in self._lessons]
            learnt: list[Learnt] = self._all(answers, "the updates on a rollout", self._timeout)
        except WorkerLostError as loss:
            self._replace_learner(str(loss))
            return
        self._lessons = []
        self.step = learnt[0].step
        if self.step > self._furthest:
            self._furthest, self._fruitless = self.step, 0
        for call, arguments in learnt[0].shown:
            getattr(self._progress, call)(*arguments)

    def _start_learner(self, checkpoint: Path | None) -> None:
        """All ranks at ``checkpoint`` or at the start, with the buffer as it was there, and their weights published."""
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        self._cut_back(step)
        patience = max(self._timeout, START_SECONDS)
        options = self._places.options
        reference = ray.remote(ReferenceWorker)
        self._references = [
            reference.options(**options(place)).remote(self._assignment)
            for place in self._places.of("reference")
        ]
        places = self._places.of("learner")
        learner = ray.remote(LearnerWorker)
        self._learners = [
            learner.options(**options(place)).remote(self._assignment, rank, len(places))
            for rank, place in enumerate(places)
        ]
        self._all([worker.start.remote() for worker in self._references], "starting the reference", patience)
        (address,) = self._all([self._learners[0].address.remote()], "starting the learner", patience)
        starts = [rank.start.remote(address, checkpoint, self._references) for rank in self._learners]
        position: Position = self._all(starts, "starting the learner", patience)[0]
        self._stream.load_state_dict(position.stream)  # refuses other prompts than the learner's
        self.step = position.step
        self.buffer.restore(next_version=position.step + position.updates_left, **position.buffer)
        self._publish()
        if position.updates_left:
            self._teach(())

    def _publish(self) -> None:
        started = time.perf_counter()
        weights = [rank.publish.remote() for rank in self._learners]
        self._ready(weights, "publishing weights", self._timeout)
        self._publisher.accept(weights[0], self.step)
        self._timing["time/publish"] = time.perf_counter() - started

    def _replace_learner(self, why: str) -> None:
        """New ranks at the newest checkpoint. What was trained since is trained again, from prompts issued again."""
        for _ in itertools.count():
            self._replaced["learners"] += 1
            self._fruitless += 1
            if self._fruitless >= MOST_LOSSES:
                raise RunError(
                    f"step {self.step}: the learner was lost {self._fruitless} times without getting further (the last "
                    f"{why}); see its output in Ray's logs"
                )
            for worker in [*self._learners, *self._references]:
                ray.kill(worker)
            lost, self._lessons = self._lessons, []
            if lost:  # they write nothing once Ray has told of their end
                ray.wait([task.answer for task in lost], num_returns=len(lost), timeout=START_SECONDS)
            checkpoint = self._newest_checkpoint()
            fate = f"resumes from {checkpoint.name}" if checkpoint else "starts again, without a checkpoint"
            self._progress.note(f"step {self.step}: the learner {why}; a new one {fate}")
            try:
                self._start_learner(checkpoint)
            except WorkerLostError as loss:
                why = str(loss)
                continue
            return

    def _newest_checkpoint(self) -> Path | None:
        """Of this run's own: an output directory may hold later ones of a history that was given up."""
        found = [
            path
            for path in checkpoints(self._assignment.settings.output.directory)
            if int(path.name.rpartition("-")[2]) <= self.buffer.next_version
        ]
        return found[-1] if found else self._first_checkpoint

    # Waiting for several workers at once

    def _ready(self, answers: Sequence[Any], what: str, timeout: float) -> None:
        """Wait until all ``answers`` are there, whatever they are. Raises `WorkerLostError` at the deadline."""
        missing = ray.wait(list(answers), num_returns=len(answers), timeout=timeout, fetch_local=False)[1]
        if missing:
            raise WorkerLostError(f"was stuck: {what} took more than {timeout:g} s")

    def _all(self, answers: Sequence[Any], what: str, timeout: float) -> list[Any]:
        """What all ``answers`` hold. Raises `WorkerLostError` where a worker is gone or overdue."""
        self._ready(answers, what, timeout)
        reasons: list[RayError] = []
        results = []
        for answer in answers:
            try:
                results.append(ray.get(answer, timeout=timeout))
            except RayError as error:  # also where its answer does not come in time
                reasons.append(error)
        deaths = [error for error in reasons if not isinstance(error, RayTaskError)]
        # Where one rank dies the others fail for it: the death is the reason, not what they make of it.
        if reasons:
            raise WorkerLostError(_reason((deaths or reasons)[0], "the learner"))
        return results


def _reason(error: RayError, who: str) -> str:
    """How a worker was lost, for a message. A failure of its own is raised instead: another worker would fail alike."""
    if not isinstance(error, RayTaskError):
        return f"died ({type(error).__name__})"
    cause = error.cause
    if isinstance(cause, RayError):  # an object that it was to read, or a worker that it asked
        return f"lost what it needs ({type(cause).__name__})"
    if isinstance(cause, UsageError | RunError):
        raise type(cause)(str(cause)) from error
    text = " ".join(str(cause).split())
    raise RunError(f"{who} failed: {type(cause).__name__}: {text}") from error
