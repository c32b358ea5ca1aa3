"""Maximum entropy over verified answers: a loop as oracle, the exact expected gradient, and where it leads."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.shaping import mode_entropies, mode_surprisal
from maxent_grpo.types import Batch, Group, Knobs, Prompt, Rollout

MODES = [
    [0, 0, 0, 1, -1, 2],
    [-1, -1, -1, -1, -1, -1],
    [3, -1, -1, -1, -1, -1],
    [1, 1, 1, 1, 1, 1],
    [0, 1, 2, 3, 4, 5],
    [2, -1, 2, 0, -1, -1],
]
HISTORY = [[7, 0, 1, 0, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], [0] * 6, [0, 5, 3, 0, 0, 0]]


def shares(modes: list[int], history: list[int] | None, smoothed: bool) -> dict[int, float]:
    """Completion → its answer's share, by the definition."""
    right = [i for i, mode in enumerate(modes) if mode >= 0]
    found = {}
    for i in right:
        if not smoothed:
            found[i] = sum(modes[j] == modes[i] for j in right) / len(right)
            continue
        seen = Counter(modes[j] for j in right if j != i)
        seen.update(dict(enumerate(history or [])))
        known = sum(count > 0 for count in seen.values())
        found[i] = (seen[modes[i]] + 1) / (sum(seen.values()) + known + 1)
    return found


@pytest.mark.parametrize(("smoothed", "history"), [(False, None), (True, None), (True, HISTORY)])
def test_surprisal_is_that_of_a_loop(smoothed: bool, history: list[list[int]] | None) -> None:
    given = None if history is None else torch.tensor(history)
    found = mode_surprisal(torch.tensor(MODES), given, smoothed=smoothed)
    for row, modes in enumerate(MODES):
        of = shares(modes, None if history is None else history[row], smoothed)
        mean = sum(-math.log(share) for share in of.values()) / max(1, len(of))
        one_answer = len({modes[i] for i in of}) < 2
        expected = [-math.log(of[i]) - mean if i in of and not one_answer else 0.0 for i in range(len(modes))]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.sum(dim=1).abs().max() < 1e-12  # between right answers; none is added to them
    assert not found[[1, 2, 3]].any()  # exactly, where there is nothing to choose


def test_entropy_of_the_answers() -> None:
    found = mode_entropies(torch.tensor(MODES))
    third = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    first = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2))
    assert found[[0, 3, 4, 5]].tolist() == pytest.approx([first, 0.0, math.log(6), third])
    assert found[[1, 2]].isnan().all()


def expected_pull(q: Tensor, size: int, smoothed: bool) -> Tensor:
    """E Σ_i s_i·∇log q(y_i) in the logits of a softmax over answers, all right, by going through all groups: [C]."""
    total = torch.zeros_like(q)
    for draws in itertools.product(range(len(q)), repeat=size):
        modes = torch.tensor([draws])
        chance = q[modes[0]].prod()
        bonus = mode_surprisal(modes, smoothed=smoothed)[0]
        ones = torch.nn.functional.one_hot(modes[0], len(q)).double()
        total += chance * (bonus.unsqueeze(1) * (ones - q)).sum(dim=0)
    return total


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_expected_gradient_is_the_documented_one(size: int) -> None:
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64, requires_grad=True)

    def f(share: Tensor) -> Tensor:
        return sum(
            math.comb(size - 1, b) * share**b * (1 - share) ** (size - 1 - b) * math.log(size / (1 + b))
            for b in range(size)
        )  # type: ignore[return-value]

    values = f(q)
    slopes = torch.autograd.grad(values.sum(), q)[0]
    own = ((size - 1) * values - q * slopes).detach()
    q = q.detach()
    in_logits = q * (own - (q * own).sum())  # ∇q_c = q_c·(e_c − q)
    torch.testing.assert_close(expected_pull(q, size, smoothed=False), in_logits, atol=1e-12, rtol=0)
    if size == 2:
        assert in_logits.abs().max() < 1e-12


@pytest.mark.parametrize("smoothed", [False, True])
def test_equal_shares_are_the_fixed_point_and_ascent_reaches_it(smoothed: bool) -> None:
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert expected_pull(equal, 4, smoothed).abs().max() < 1e-12
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    entropies = []
    for _ in range(60):
        q = torch.softmax(logits, dim=0)
        entropies.append(float(-(q * q.log()).sum()))
        logits = logits + 1.0 * expected_pull(q, 4, smoothed)
    assert all(later > earlier - 1e-12 for earlier, later in itertools.pairwise(entropies))
    assert entropies[-1] > math.log(3) - 1e-3


def batch_of(modes: list[list[int]], utilities: list[list[float]]) -> Batch:
    rows = len(modes) * len(modes[0])
    ids, mask = torch.ones(rows, 2, dtype=torch.long), torch.ones(rows, 2, dtype=torch.bool)
    prompts = torch.ones(len(modes), 1, dtype=torch.long)
    return Batch(
        prompts,
        prompts.bool(),
        ids,
        mask,
        -torch.ones(rows, 2),
        torch.tensor(utilities),
        modes=torch.tensor(modes),
    )


def test_a_group_that_is_all_right_has_a_signal_where_answers_differ() -> None:
    objective = build_objective(CATALOG["mode_entropy"])
    batch = batch_of(
        [[0, 0, 0, 1], [0, 0, 0, 0], [-1, 0, 1, 1]], [[1.0] * 4, [1.0] * 4, [0.0, 1.0, 1.0, 1.0]]
    )
    signal, metrics = objective.signal(batch, Knobs(tau=0.5, beta=0.0))
    surprisal = mode_surprisal(batch.modes)
    expected = torch.tensor([[0.0] * 4, [0.0] * 4, [-0.75, 0.25, 0.25, 0.25]]) + 0.5 * surprisal.float()
    torch.testing.assert_close(signal.advantages, expected)
    assert objective.has_gradient(batch, signal, Knobs(0.5, 0.0)).tolist() == [True, False, True]
    mean = mode_entropies(batch.modes).mean()
    assert float(metrics["mode_entropy"].value / metrics["mode_entropy"].weight) == pytest.approx(float(mean))


def test_without_tau_it_is_dr_grpo() -> None:
    batch = batch_of([[0, 0, -1, 1]], [[1.0, 1.0, 0.0, 1.0]])
    signals = [
        build_objective(CATALOG[name]).signal(batch, Knobs(0.0, 0.0))[0].advantages
        for name in ("mode_entropy", "dr_grpo")
    ]
    assert torch.equal(*signals)


def test_a_completion_without_a_score_changes_nothing_for_the_others() -> None:
    objective, knobs = build_objective(CATALOG["mode_entropy"]), Knobs(0.5, 0.0)
    whole, _ = objective.signal(batch_of([[0, 0, 1, -1]], [[1.0, 1.0, 1.0, 0.0]]), knobs)
    one_lost, _ = objective.signal(batch_of([[0, 0, 1, -1, -1]], [[1.0, 1.0, 1.0, 0.0, math.nan]]), knobs)
    torch.testing.assert_close(one_lost.advantages, torch.cat([whole.advantages, torch.zeros(1, 1)], dim=1))


def test_dynamic_sampling_keeps_what_mode_entropy_tells_apart() -> None:
    prompt = Prompt(index=0, text="?", token_ids=(1,), columns={})
    rollout = Rollout(prompt, ((2,),) * 3, ((-0.1,),) * 3, ("a", "b", "c"), ("stop",) * 3, 0)
    group = Group(rollout, {}, (1.0,) * 3, (True,) * 3, (1.0,) * 3, ("a", "a", "b"))
    alike = replace(group, modes=("a", "a", "a"))
    objectives = [build_objective(CATALOG[name]) for name in ("mode_entropy", "dr_grpo")]
    assert [o.has_signal(group) for o in objectives] == [True, False]
    assert [o.has_signal(alike) for o in objectives] == [False, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_loss": "tilted"}, r"mode_entropy: its weight is τ, and so is the temperature"),
        ({"advantage": "maxrl"}, r"mode_entropy: changes utilities, and advantage=maxrl reads what is right"),
        ({"mode_entropy": "all"}, r"mode_entropy: 'all' is not one of none, group, leave_one_out, history"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObjectiveSpec(**{"scale_rewards": "none", "mode_entropy": "group", **settings})


def test_without_modes_in_the_batch_it_says_so() -> None:
    with pytest.raises(ValueError, match=r"needs Batch\.modes"):
        build_objective(CATALOG["mode_entropy"]).signal(
            replace(batch_of([[0, 1]], [[1.0, 1.0]]), modes=None), Knobs(0.5, 0.0)
        )
