"""The prompt order: complete epochs, exact resume, refusal of other data."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxent_grpo.data.stream import DifficultyPools, PooledStream, PromptStream
from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.randomness import generator
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


# Difficulty pools

POOLS = DifficultyPools()


def shares_of(prompts, share):
    return [(prompt.index, prompt.epoch, share(prompt.index)) for prompt in prompts]


@pytest.mark.parametrize(
    ("share", "pool", "weight"),
    [
        (None, "unseen", 1.0),
        (0.0, "hard", 0.2),
        (0.25, "hard", 0.2),
        (0.2501, "normal", 1.0),
        (0.75, "normal", 1.0),
        (0.7501, "easy", 0.2),
        (1.0, "easy", 0.2),
    ],
)
def test_pools_have_their_upper_thresholds_within(share, pool, weight):
    assert POOLS.pool_of(share) == pool
    assert POOLS.weight_of(share) == weight


def test_prompts_are_drawn_in_proportion_to_the_weight_of_their_pool():
    pools = DifficultyPools(hard_weight=0.5, normal_weight=2.0, easy_weight=0.0, unseen_weight=1.0)
    stream = PooledStream(prompts_of(4), 3, pools)
    stream.judged([(0, 0, 0.1), (1, 0, 0.5), (2, 0, 1.0)])
    assert stream.sizes() == {"hard": 1, "normal": 1, "easy": 1, "unseen": 1}
    counts = Counter(prompt.index for prompt in stream.take(7_000))
    assert counts[2] == 0
    for index, expected in ((0, 1_000), (1, 4_000), (3, 2_000)):
        assert counts[index] == pytest.approx(
            expected, abs=5 * expected**0.5
        )  # five standard deviations or more


def test_each_draw_inverts_the_cumulative_weights_at_its_own_uniform():
    """By hand, one draw after the other, with the weights as they are at each."""
    stream = PooledStream(prompts_of(5), 11, POOLS)
    latest, number = {}, 0
    for take in (3, 1, 4, 7):
        weights = [POOLS.weight_of(latest.get(index)) for index in range(5)]
        expected = []
        for _ in range(take):
            at = sum(weights) * generator(11, "difficulty pools", number).random()
            expected.append(next(i for i in range(5) if at < sum(weights[: i + 1])))
            number += 1
        prompts = stream.take(take)
        assert [prompt.index for prompt in prompts] == expected
        shares = shares_of(prompts, lambda index: index / 4)
        stream.judged(shares)
        latest |= {index: share for index, _, share in shares}


def test_no_two_draws_of_a_prompt_have_one_key():
    stream = PooledStream(prompts_of(3), 0, POOLS)
    prompts = stream.take(50) + stream.take(50)
    assert len({prompt.key for prompt in prompts}) == 100
    for index in range(3):
        assert [p.epoch for p in prompts if p.index == index] == list(
            range(sum(p.index == index for p in prompts))
        )


def test_the_latest_group_counts_whatever_the_order_in_which_ranks_tell():
    stream = PooledStream(prompts_of(2), 0, POOLS)
    stream.judged([(1, 3, 1.0), (0, 0, 0.5), (1, 2, 0.0)])
    assert stream.sizes() == {"hard": 0, "normal": 1, "easy": 1, "unseen": 0}
    stream.judged([(1, 4, 0.0)])
    assert stream.sizes() == {"hard": 1, "normal": 1, "easy": 0, "unseen": 0}


@settings(deadline=None)
@given(before=st.lists(st.integers(0, 9), max_size=4), after=st.integers(0, 30))
def test_a_resumed_stream_of_pools_continues_exactly(before, after):
    stream = PooledStream(prompts_of(6), 7, POOLS)
    for take in before:
        stream.judged(shares_of(stream.take(take), lambda index: index / 5))
    resumed = PooledStream(prompts_of(6), 7, POOLS)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert resumed.sizes() == stream.sizes()
    assert resumed.drawn == stream.drawn
    assert drawn(resumed.take(after)) == drawn(stream.take(after))
    assert resumed.state_dict() == stream.state_dict()


def test_pools_resume_neither_from_epochs_nor_from_other_weights():
    pooled, plain = PooledStream(prompts_of(3), 0, POOLS), PromptStream(prompts_of(3), 0, shuffle=False)
    other = PooledStream(prompts_of(3), 0, DifficultyPools(hard_weight=0.3))
    for one, state in ((pooled, plain), (plain, pooled), (other, pooled)):
        with pytest.raises(UsageError, match=r"its difficulty_pools is .* and was"):
            one.load_state_dict(state.state_dict())


def test_a_stream_whose_prompts_all_have_weight_0_says_so():
    stream = PooledStream(prompts_of(2), 0, DifficultyPools(easy_weight=0.0))
    stream.judged([(0, 0, 1.0), (1, 0, 1.0)])
    with pytest.raises(
        RunError, match=r"all 2 prompts are in pools of weight 0 .0 hard, 0 normal, 2 easy, 0 unseen"
    ):
        stream.take(1)
