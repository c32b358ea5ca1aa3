"""The replay bank: what is admitted, in which order it is replayed, and what its file holds."""

import json
import math
from itertools import permutations

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.train.bank import Found, ReplayBank, digest_of, found_in
from maxent_grpo.types import Group, Prompt, Rollout


def group_of(rows, prompt_ids=(7, 8), utilities=None, masks=(), seeds=0):
    """A group of (tokens, mode) rows; the mode of a wrong one is None. The last ``seeds`` rows are seeded."""
    prompt = Prompt(0, "p", tuple(prompt_ids), {})
    rollout = Rollout(
        prompt,
        tuple(tuple(tokens) for tokens, _ in rows),
        tuple((0.0,) * len(tokens) for tokens, _ in rows),
        tuple("t" for _ in rows),
        ("stop",) * len(rows),
        0,
        seed_prompts=tuple(Prompt(0, "s", (9,), {}, seed_id=i) for i in range(seeds)),
        policy_masks=masks,
    )
    modes = tuple(mode for _, mode in rows)
    right = tuple(mode is not None for mode in modes)
    return Group(rollout, {}, utilities or tuple(map(float, right)), right, tuple(map(float, right)), modes)


def text_of(bank):
    return "\n".join(bank.lines(lambda ids: "·".join(map(str, ids))))


def admitted(*steps, capacity=16, **settings):
    bank = ReplayBank(capacity, **settings)
    for number, groups in enumerate(steps, 1):
        bank.admit([found_in(group) for group in groups], number)
    return bank


def exemplars(bank, prompt_ids=(7, 8)):
    stored = bank.prompts[digest_of(prompt_ids)].exemplars
    return {key: tuple(exemplar.token_ids) for key, exemplar in stored.items()}


ROWS = [((3, 9), "b"), ((3, 1, 5), "b"), ((2,), None), ((5,), "a"), ((4, 4), "c"), ((3, 1), "b")]


def test_a_mode_keeps_the_smallest_tokens_of_its_first_step_whatever_the_order_of_rows():
    expected = admitted([group_of(ROWS)])
    assert exemplars(expected) == {"a": (5,), "b": (3, 1), "c": (4, 4)}
    assert expected.prompts[digest_of((7, 8))].counts == {"a": 1, "b": 3, "c": 1}
    for order in list(permutations(range(6)))[::37]:
        assert text_of(admitted([group_of([ROWS[i] for i in order])])) == text_of(expected)


def test_it_does_not_matter_how_a_steps_rows_are_split_over_groups_and_ranks():
    whole = admitted([group_of(ROWS)])
    assert text_of(admitted([group_of(ROWS[3:]), group_of(ROWS[:3])])) == text_of(whole)


def test_exemplars_are_never_replaced_and_counts_go_on():
    bank = admitted([group_of(ROWS)], [group_of([((1,), "b"), ((0,), "a"), ((6,), "d")])])
    assert exemplars(bank) == {"a": (5,), "b": (3, 1), "c": (4, 4), "d": (6,)}
    assert bank.prompts[digest_of((7, 8))].counts == {"a": 2, "b": 4, "c": 1, "d": 1}
    assert {key: e.step for key, e in bank.prompts[digest_of((7, 8))].exemplars.items()} == {
        "a": 1, "b": 1, "c": 1, "d": 2,
    }  # fmt: skip


def test_new_modes_fill_the_room_in_the_order_of_keys_and_those_without_room_are_counted():
    bank = ReplayBank(2)
    assert bank.admit([found_in(group_of([((1,), "z"), ((2,), "b"), ((3,), "a")]))], 1) == 2
    assert bank.admit([found_in(group_of([((1,), "A")]))], 2) == 0
    assert exemplars(bank) == {"a": (3,), "b": (2,)}
    assert bank.prompts[digest_of((7, 8))].counts == {"z": 1, "b": 1, "a": 1, "A": 1}
    assert exemplars(admitted([group_of([((1,), "z"), ((2,), "b")])], capacity=1)) == {"b": (2,)}


@pytest.mark.parametrize("rows", [[((1,), None)] * 2, [((), "a")], [((1,), None), ((2,), None)]])
def test_a_group_without_a_right_answer_or_without_tokens_adds_nothing(rows):
    assert admitted([group_of(rows)]).prompts == {}


def test_what_lost_its_utility_or_was_seeded_is_not_admitted():
    rows = [((1,), "a"), ((2,), "b"), ((3,), "c")]
    assert exemplars(admitted([group_of(rows, utilities=(1.0, math.nan, 1.0), seeds=1)])) == {"a": (1,)}
    without = Group(group_of(rows).rollout, {}, (1.0,) * 3)
    assert found_in(without).modes == {}


def test_of_a_dialogue_the_mask_of_what_the_policy_wrote_is_kept():
    masks = ((True, False, True), (False, False, False))
    bank = admitted([group_of([((1, 2, 3), "a"), ((0, 0, 0), "b")], masks=masks)])
    (exemplar,) = bank.prompts[digest_of((7, 8))].exemplars.values()
    assert exemplar.policy_mask == masks[0]
    loaded = ReplayBank(16)
    loaded.load(text_of(bank).split("\n"))
    assert text_of(loaded) == text_of(bank)


def test_banks_come_in_turn_by_digest_and_the_turn_goes_on_behind_the_last():
    prompts = [(1,), (2,), (3,)]
    bank = admitted([group_of([((1,), "a")], prompt_ids=p) for p in prompts])
    order = sorted(prompts, key=digest_of)
    turns = [[tuple(b.prompt_ids) for b in bank.next_banks(count)] for count in (1, 1, 2, 5)]
    assert turns == [[order[0]], [order[1]], [order[2], order[0]], [order[1], order[2], order[0]]]
    assert ReplayBank(1).next_banks(3) == []


def test_the_banks_of_a_steps_own_prompts_come_once_and_only_where_there_is_an_exemplar():
    bank = admitted([group_of([((1,), "a")], prompt_ids=(p,)) for p in (1, 2, 3)])
    own = bank.banks_of([(3,), (1,), (3,), (9,)])
    assert [tuple(b.prompt_ids) for b in own] == sorted([(1,), (3,)], key=digest_of)


def test_most_prompts_that_have_a_bank_and_a_bank_that_only_counts():
    groups = [group_of([((1,), "a")], prompt_ids=(p,)) for p in (1, 2, 3)]
    bank = admitted(groups, [groups[0]], max_prompts=2)
    assert sorted(bank.prompts) == sorted(digest_of((p,)) for p in (1, 2, 3))[:2]
    counting = admitted(groups, capacity=0)
    assert counting.replayable == []
    assert [dict(b.counts) for b in counting.prompts.values()] == [{"a": 1}] * 3


def test_the_history_of_a_group_is_what_earlier_steps_found():
    first, second = group_of(ROWS), group_of([((1,), "b"), ((6,), "d")])
    bank = admitted([first])
    assert bank.history(second, counted=False) == {"a": 1, "b": 3, "c": 1}
    bank.admit([found_in(second)], 2)
    assert bank.history(second, counted=True) == {"a": 1, "b": 3, "c": 1}
    assert bank.history(second, counted=False) == {"a": 1, "b": 4, "c": 1, "d": 1}
    assert bank.history(group_of(ROWS, prompt_ids=(1,)), counted=False) == {}


def test_the_file_reads_back_to_the_same_bank_and_says_texts():
    bank = admitted([group_of([((3, 1), "é\u2028\udc80"), ((5,), "a")])], settings={"replay_capacity": 16})
    bank.next_banks(1)
    lines = text_of(bank).split("\n")
    assert json.loads(lines[0]) == {"settings": {"replay_capacity": 16}, "cursor": 1}
    assert json.loads(lines[1])["prompt"] == "7·8"
    assert [e["text"] for e in json.loads(lines[1])["exemplars"]] == ["5", "3·1"]
    loaded = ReplayBank(16, settings={"replay_capacity": 16})
    loaded.load(lines)
    assert text_of(loaded) == text_of(bank)
    assert loaded.cursor == 1
    with pytest.raises(UsageError, match="replay_capacity was 16 and is 1: what a bank holds"):
        ReplayBank(1, settings={"replay_capacity": 1}).load(lines)


def test_prompts_are_told_apart_by_their_exact_tokens():
    assert digest_of((1, 23)) != digest_of((12, 3))
    assert Found((1,), {}).modes == {}
