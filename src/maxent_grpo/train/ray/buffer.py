"""A bounded buffer of whole groups, and the account of where every prompt is.

Bookkeeping alone: it knows neither Ray nor models, only numbers and the groups that it is handed.

A *ticket* is the number of a prompt in the stream: 0 is the first that the run draws. Every ticket below ``drawn`` is
in one place at a time: *waiting* to be issued again, *sampling*, *ready*, or taken by the learner. Nothing else moves
tickets than `issue`, `put`, `lose` and `take`, so none is lost and none is taken twice.

Versions count optimiser steps. All completions of a group are drawn under one version, which is that of each of their
tokens: a worker takes new weights between two pieces of work, never within one. A group's *age* is the learner's
version when the first update on it begins, minus its own. Two rules bound it by ``max_staleness``:

- *Admission*: a ticket is issued only if its group would be young enough for the rollout in which it is due, with
  everything issued before it trained on first. Groups that arrive in order are therefore never too old.
- *The check*: a group that others overtook may be too old when its turn comes. `take` puts it back to be sampled again.

docs/guides/ray.md has the argument in full.
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Bounds:
    """The limits of the buffer."""

    groups_per_rollout: int  # R: what the learner takes at once
    steps_per_rollout: int  # k: the optimiser steps that it makes of them
    max_staleness: int  # η, optimiser steps
    capacity: int  # groups that may be sampling or ready at a time; at least R


@dataclass(frozen=True)
class Ticket:
    """A prompt issued to be sampled."""

    number: int  # its place in the prompt stream
    issue: int  # unique in this buffer, so that a late answer is told from that to a later issue


@dataclass(frozen=True)
class Held(Generic[Payload]):
    """A sampled group."""

    number: int
    version: int  # of the policy that sampled it
    group: Payload


@dataclass
class Counts:
    """Totals of a run; in checkpoints."""

    taken: int = 0
    dropped: int = 0
    lost: int = 0
    reissued: int = 0
    late: int = 0


@dataclass
class GroupBuffer(Generic[Payload]):
    """The account of every prompt. ``next_version`` is the learner's version when it next takes groups."""

    bounds: Bounds
    next_version: int = 0
    drawn: int = 0  # tickets that ever left the stream
    counts: Counts = field(default_factory=Counts)
    waiting: list[int] = field(default_factory=list)  # a heap: the oldest prompt goes first
    sampling: dict[int, int] = field(default_factory=dict)  # number → issue
    ready: dict[int, Held[Payload]] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)  # number → workers that ended while they had it
    issues: int = 0  # never taken back: not even when the rest is restored

    @property
    def outstanding(self) -> int:
        """Groups on their way to the learner."""
        return len(self.sampling) + len(self.ready)

    def admissible(self, version: int) -> int:
        """Tickets that may be issued now, to be sampled with weights of ``version``.

        With n groups outstanding the next one is due in rollout n // R from here, at version ``next_version`` +
        k·(n // R); it is admitted while that is at most ``version`` + η.
        """
        bounds = self.bounds
        rollouts = (version + bounds.max_staleness - self.next_version) // bounds.steps_per_rollout + 1
        room = min(rollouts * bounds.groups_per_rollout, bounds.capacity)
        return max(0, room - self.outstanding)

    def issue(self, count: int, version: int) -> list[Ticket]:
        """At most ``count`` tickets to sample with weights of ``version``, those that wait before new ones."""
        tickets = []
        for _ in range(min(count, self.admissible(version))):
            if self.waiting:
                number = heapq.heappop(self.waiting)
                self.counts.reissued += 1
            else:
                number, self.drawn = self.drawn, self.drawn + 1
            self.sampling[number] = self.issues
            tickets.append(Ticket(number, self.issues))
            self.issues += 1
        return tickets

    def put(self, ticket: Ticket, version: int, group: Payload) -> bool:
        """Store the group of ``ticket``; False where the ticket was issued again meanwhile: the group is not used."""
        if self.sampling.get(ticket.number) != ticket.issue:
            self.counts.late += 1
            return False
        del self.sampling[ticket.number]
        self.losses.pop(ticket.number, None)
        self.ready[ticket.number] = Held(ticket.number, version, group)
        return True

    def lose(self, tickets: Collection[Ticket]) -> int:
        """Have ``tickets`` issued again: whoever sampled them is gone. Returns how often the unluckiest was lost."""
        worst = 0
        for ticket in tickets:
            if self.sampling.get(ticket.number) != ticket.issue:
                continue
            del self.sampling[ticket.number]
            heapq.heappush(self.waiting, ticket.number)
            self.counts.lost += 1
            self.losses[ticket.number] = self.losses.get(ticket.number, 0) + 1
            worst = max(worst, self.losses[ticket.number])
        return worst

    def take(self) -> list[Held[Payload]]:
        """The oldest R groups for the learner's next updates, in stream order; none while there are not as many."""
        oldest = self.next_version - self.bounds.max_staleness
        for number in [number for number, held in self.ready.items() if held.version < oldest]:
            del self.ready[number]
            heapq.heappush(self.waiting, number)
            self.counts.dropped += 1
        size = self.bounds.groups_per_rollout
        if len(self.ready) < size:
            return []
        taken = [self.ready.pop(number) for number in sorted(self.ready)[:size]]
        self.next_version += self.bounds.steps_per_rollout
        self.counts.taken += size
        return taken

    def metrics(self) -> dict[str, float]:
        """Fill and totals, by the names that `observe.names` defines."""
        counts = {name: getattr(self.counts, name) for name in ("dropped", "lost", "reissued", "late")}
        fill = {"ready": len(self.ready), "sampling": len(self.sampling)}
        return {f"buffer/{name}": float(value) for name, value in (fill | counts).items()}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: everything but ``next_version``, which follows from the learner's position.

        What is being sampled now will have to be sampled again: it waits in the restored buffer.
        """
        return {
            "drawn": self.drawn,
            "waiting": sorted([*self.waiting, *self.sampling]),
            "ready": list(self.ready.values()),
            "counts": vars(self.counts).copy(),
        }

    def restore(
        self,
        *,
        next_version: int,
        drawn: int,
        waiting: Sequence[int] = (),
        ready: Sequence[Held[Payload]] = (),
        counts: dict[str, int] | None = None,
    ) -> None:
        """Put the buffer where `state_dict` was taken. What was issued since is not expected any more."""
        self.next_version, self.drawn = next_version, drawn
        self.waiting = sorted(waiting)
        self.sampling, self.losses = {}, {}
        self.ready = {held.number: held for held in ready}
        self.counts = Counts(**(counts or {}))
