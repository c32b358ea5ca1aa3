"""The buffer's promises, attacked with arbitrary orders of arrival, deaths, late answers and restarts."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from maxent_grpo.train.ray.buffer import Bounds, GroupBuffer, Ticket

bounds = st.builds(
    lambda groups, steps, staleness, spare: Bounds(groups, steps, staleness, capacity=groups + spare),
    groups=st.integers(1, 4),
    steps=st.integers(1, 3),
    staleness=st.integers(0, 5),
    spare=st.integers(0, 8),
)


class AnyOrder(RuleBasedStateMachine):
    """Workers answer, die and answer late in any order; the learner trains, is killed and goes back to a checkpoint.

    Its own books are kept by hand: who trained on what in the history that counts.
    """

    @initialize(bounds=bounds)
    def start(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.buffer: GroupBuffer[int] = GroupBuffer(bounds)
        self.published = 0
        self.working: list[tuple[Ticket, int]] = []  # issued, with the version that samples them
        self.forgotten: list[tuple[Ticket, int]] = []  # given up, but their workers may answer yet
        self.trained: list[int] = []
        self.checkpoint = ({"drawn": 0}, 0, 0)  # the buffer, groups trained on, version

    @rule(count=st.integers(1, 6))
    def issue(self, count: int) -> None:
        issued = self.buffer.issue(count, self.published)
        self.working += [(ticket, self.published) for ticket in issued]

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        ticket, version = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        assert self.buffer.put(ticket, version, ticket.number)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        given_up = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        self.forgotten.append(given_up)
        assert self.buffer.lose([given_up[0]]) >= 1

    @precondition(lambda self: self.forgotten)
    @rule(data=st.data())
    def answer_late(self, data: st.DataObject) -> None:
        ticket, version = data.draw(st.sampled_from(self.forgotten))
        assert not self.buffer.put(ticket, version, ticket.number)
        assert self.buffer.lose([ticket]) == 0

    @rule(rounds=st.integers(1, 6))
    def overtake(self, rounds: int) -> None:
        """One worker is slow: round after round all others answer and are trained on."""
        for _ in range(rounds):
            self.issue(6)
            for ticket, version in self.working[1:]:
                assert self.buffer.put(ticket, version, ticket.number)
            del self.working[1:]
            self.train(publish=True)

    @rule(publish=st.booleans())
    def train(self, publish: bool) -> None:
        version = self.buffer.next_version
        taken = self.buffer.take()
        assert len(taken) in (0, self.bounds.groups_per_rollout)
        assert [held.group for held in taken] == [held.number for held in taken]
        assert all(0 <= version - held.version <= self.bounds.max_staleness for held in taken)
        self.trained += [held.number for held in taken]
        if publish:
            self.published = self.buffer.next_version

    @rule()
    def save(self) -> None:
        self.checkpoint = (self.buffer.state_dict(), len(self.trained), self.buffer.next_version)

    @rule()
    def go_back(self) -> None:
        state, trained, version = self.checkpoint
        self.buffer.restore(next_version=version, **state)
        del self.trained[trained:]
        self.published = version
        self.forgotten += self.working
        self.working = []

    @invariant()
    def every_prompt_is_in_one_place(self) -> None:
        if not hasattr(self, "buffer"):
            return
        buffer = self.buffer
        places = [*buffer.waiting, *buffer.sampling, *buffer.ready, *self.trained]
        assert sorted(places) == list(range(buffer.drawn))
        assert {ticket.number for ticket, _ in self.working} == set(buffer.sampling)
        assert len(self.trained) == buffer.counts.taken

    @invariant()
    def it_is_bounded(self) -> None:
        if not hasattr(self, "buffer"):
            return
        rollouts = self.bounds.max_staleness // self.bounds.steps_per_rollout + 1
        assert self.buffer.outstanding <= min(self.bounds.capacity, rollouts * self.bounds.groups_per_rollout)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bounds=bounds, chunks=st.lists(st.integers(1, 5), min_size=1), frequency=st.integers(1, 4))
def test_groups_that_arrive_in_order_are_never_too_old(bounds: Bounds, chunks: list[int], frequency: int):
    """Nothing is dropped, and the learner always gets on, whatever is issued at a time."""
    lag = (-(-frequency // bounds.steps_per_rollout) - 1) * bounds.steps_per_rollout
    buffer: GroupBuffer[None] = GroupBuffer(bounds)
    published, order, rollouts, turn = 0, [], 0, 0
    while rollouts < 6:
        issued = buffer.issue(chunks[turn % len(chunks)], published)
        turn += 1
        order += [(ticket, published) for ticket in issued]
        if not issued and order:
            ticket, version = order.pop(0)
            assert buffer.put(ticket, version, None)
        if buffer.take():
            rollouts += 1
        elif not issued and not order:
            # Nothing can be issued, nothing is on its way: only because the weights are too old for η.
            assert lag > bounds.max_staleness
            return
        if buffer.next_version - published >= frequency:
            published = buffer.next_version
    assert buffer.counts.dropped == 0


def test_a_group_that_others_overtook_is_sampled_again():
    buffer: GroupBuffer[str] = GroupBuffer(Bounds(1, 1, 1, capacity=8))
    slow, quick = buffer.issue(2, version=0)
    buffer.put(quick, 0, "quick")
    assert [held.number for held in buffer.take()] == [quick.number]
    (next_one,) = buffer.issue(5, version=1)  # the slow one is still out
    buffer.put(next_one, 1, "next")
    assert [held.number for held in buffer.take()] == [next_one.number]
    buffer.put(slow, 0, "slow")  # two steps old by now
    assert buffer.take() == []
    (again, *_) = buffer.issue(1, version=2)
    assert (again.number, buffer.counts.dropped, buffer.counts.reissued) == (slow.number, 1, 1)


def test_without_staleness_nothing_is_issued_while_the_learner_is_behind():
    buffer: GroupBuffer[None] = GroupBuffer(Bounds(2, 1, 0, capacity=4))
    first = buffer.issue(9, version=0)
    assert [ticket.number for ticket in first] == [0, 1]
    for ticket in first:
        buffer.put(ticket, 0, None)
    assert len(buffer.take()) == 2
    assert buffer.issue(9, version=0) == []  # the learner is making step 1
    assert [ticket.number for ticket in buffer.issue(9, version=1)] == [2, 3]


@pytest.mark.parametrize(("staleness", "ahead"), [(0, 3), (1, 3), (2, 6), (5, 9)])
def test_rollouts_of_several_steps_count_staleness_in_steps(staleness: int, ahead: int):
    assert GroupBuffer(Bounds(3, 2, staleness, capacity=99)).admissible(0) == ahead
