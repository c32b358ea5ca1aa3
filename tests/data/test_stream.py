"""The prompt order: complete epochs, exact resume, refusal of other data."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.types import Prompt


def prompts_of(n, shift=0):
    return [Prompt(i, f"p{i}", (i, i + 1 + shift), {"problem": f"p{i}"}) for i in range(n)]


def drawn(prompts):
    return [(p.epoch, p.index) for p in prompts]


@settings(deadline=None)
@given(n=st.integers(1, 12), takes=st.lists(st.integers(0, 30), max_size=8), seed=st.integers(0, 5))
def test_every_epoch_draws_every_prompt_once_however_it_is_cut(n, takes, seed):
    stream = PromptStream(prompts_of(n), seed)
    sequence = [pair for take in takes for pair in drawn(stream.take(take))]
    assert sequence == drawn(PromptStream(prompts_of(n), seed).take(sum(takes)))
    assert [epoch for epoch, _ in sequence] == [i // n for i in range(len(sequence))]
    assert all(count == 1 for count in Counter(sequence).values())
    assert stream.epoch == pytest.approx(sum(takes) / n)


@settings(deadline=None)
@given(n=st.integers(1, 10), before=st.integers(0, 35), after=st.integers(0, 35), shuffle=st.booleans())
def test_a_resumed_stream_continues_exactly_also_past_the_end_of_an_epoch(n, before, after, shuffle):
    stream = PromptStream(prompts_of(n), 7, shuffle)
    stream.take(before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(prompts_of(n), 7, shuffle)
    resumed.load_state_dict(state)
    assert resumed.epoch == stream.epoch
    assert drawn(resumed.take(after)) == drawn(stream.take(after))
    assert resumed.state_dict() == stream.state_dict()


def test_the_order_depends_on_seed_and_epoch():
    orders = [
        tuple(p.index for p in stream.take(30))
        for stream in (PromptStream(prompts_of(30), 0), PromptStream(prompts_of(30), 1))
    ]
    stream = PromptStream(prompts_of(30), 0)
    stream.take(30)
    orders.append(tuple(p.index for p in stream.take(30)))
    assert len(set(orders)) == 3


def test_without_shuffling_the_given_order_repeats():
    taken = PromptStream(prompts_of(3), 0, shuffle=False).take(5)
    assert drawn(taken) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert taken[3].token_ids == taken[0].token_ids


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (PromptStream(prompts_of(5), 0), "size"),
        (PromptStream(prompts_of(4, shift=1), 0), "fingerprint"),
        (PromptStream(prompts_of(4)[::-1], 0), "fingerprint"),
        (PromptStream(prompts_of(4), 1), "seed"),
        (PromptStream(prompts_of(4), 0, shuffle=False), "shuffle"),
    ],
)
def test_a_state_of_other_prompts_or_another_order_is_refused(other, key):
    with pytest.raises(UsageError, match=f"cannot resume the prompt stream: its {key} is"):
        other.load_state_dict(PromptStream(prompts_of(4), 0).state_dict())


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(UsageError, match="no prompts"):
        PromptStream([], 0)


@pytest.mark.parametrize("count", [0, 3, 5, 6, 10, 13])
def test_seeking_stands_where_drawing_would(count):
    walked, sought = PromptStream(prompts_of(5), seed=1), PromptStream(prompts_of(5), seed=1)
    walked.take(count)
    sought.take(8)
    sought.seek(count)
    assert sought.state_dict() == walked.state_dict()
    assert sought.drawn == count
    assert drawn(sought.take(7)) == drawn(walked.take(7))
