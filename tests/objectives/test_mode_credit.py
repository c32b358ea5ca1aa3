"""Credit for which right answer it is: values by hand and by enumeration, expected gradients, limits, refusals."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from objective_batches import TESTED, denominators, gradient, make_batch
from torch import Tensor

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.objectives.advantages import dr_grpo, max_at_k, pass_at_k, rloo
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.mode_credit import (
    gapo,
    pcmd_credit,
    poly_epo,
    same_answers,
    semantic_maxent,
    set_marginals,
    ucpo,
)
from maxent_grpo.types import Batch, Group, Knobs, Prompt, Rollout, Signal

KNOBS = Knobs(0.3, 0.0)
ANSWERS = [
    [0, 0, 0, 1, -1, 2],
    [-1, -1, -1, -1, -1, -1],
    [3, -1, -1, -1, -1, -1],
    [1, 1, 1, 1, 1, 1],
    [0, 1, 2, 3, 4, 5],
    [2, -1, 2, 0, -1, -1],
]
MODES = torch.tensor(ANSWERS)


def close(found: Tensor, expected: list[float], atol: float = 1e-12) -> None:
    assert found.flatten().tolist() == pytest.approx(expected, abs=atol)


def advantages_of(spec: ObjectiveSpec, modes: list[list[int]], utilities: list[list[float]]) -> Signal:
    batch, _ = make_batch(len(modes), len(modes[0]), torch.tensor(utilities, dtype=torch.float64))
    counts = torch.tensor([max(1, len(set(row) - {-1})) for row in modes])
    history = torch.zeros(len(modes), 6, dtype=torch.long)
    batch = replace(batch, modes=torch.tensor(modes), mode_counts=counts, mode_history=history)
    return build_objective(spec).signal(batch, KNOBS)[0]


def expected_pull(q: Tensor, size: int, credit: object) -> Tensor:
    """E Σ_i credit_i·∇log q(y_i) in the logits of a softmax over right answers, by going through all groups: [C]."""
    total = torch.zeros_like(q)
    for draws in itertools.product(range(len(q)), repeat=size):
        modes = torch.tensor([draws])
        ones = torch.nn.functional.one_hot(modes[0], len(q)).double()
        total += q[modes[0]].prod() * (credit(modes)[0].unsqueeze(1) * (ones - q)).sum(dim=0)  # type: ignore[operator]
    return total


# GAPO


def test_gapo_at_its_limits() -> None:
    known = torch.full((6,), 2)
    rewards = gapo(MODES, known, unit=False)
    close(rewards[1], [-1.0] * 6)
    close(rewards[2], [0.5] + [-1.0] * 5)  # one right: 1/L
    assert not dr_grpo(rewards[[1, 3]]).any()  # none right; all right with one answer
    assert rewards[4].max() > 1  # a share below an even one
    torch.testing.assert_close(gapo(MODES, known, unit=True), (rewards + 1) / 2)
    three_to_one = gapo(torch.tensor([[0, 0, 0, 1]]), torch.tensor([2]), unit=True)
    close(dr_grpo(three_to_one), [-0.0625] * 3 + [0.1875])


def test_gapo_as_published_is_standardised_and_keeps_other_rewards() -> None:
    paper = CATALOG["grpo"].with_settings(gapo="paper")
    found = advantages_of(paper, [[0, 0, 1, -1]], [[1.0, 1.0, 1.0, 0.0]]).advantages
    rewards = [1 - (2 / 3 - 1 / 2)] * 2 + [1 - (1 / 3 - 1 / 2), -1.0]
    mean = sum(rewards) / 4
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
    close(found, [(r - mean) / (deviation + 1e-4) for r in rewards])
    batch, _ = make_batch(1, 4, torch.tensor([[1.5, 1.0, 1.0, 0.5]], dtype=torch.float64))
    right = torch.tensor([[True, True, True, False]])
    batch = replace(
        batch,
        right=right,
        correctness=right.double(),
        modes=torch.tensor([[0, 0, -1, -1]]),  # the third is right and has no key: one more answer
        mode_counts=torch.tensor([2]),
    )
    shaped = build_objective(CATALOG["gapo"]).shaping[0](batch.utilities, batch, KNOBS)
    unit = [(1 + 1 - (share - 1 / 2)) / 2 for share in (2 / 3, 2 / 3, 1 / 3)]
    close(shaped, [0.5 + unit[0], unit[1], unit[2], 0.5])


# UCPO


@pytest.mark.parametrize("per_token", [False, True])
def test_ucpo_by_a_loop(per_token: bool) -> None:
    right = torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4])
    scores = -torch.tensor(
        [[5.0, 5.5, 9.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0, 9.0]], dtype=torch.float64
    )
    advantages = dr_grpo(right.double())
    floor = 1e-6 if per_token else 0.0
    found = ucpo(advantages, scores, right, 0.2, floor=floor)
    shares = [math.exp(s) for s in scores[0, :3].tolist()]
    inverse = [1 / max(share / sum(shares), floor) for share in shares]
    close(found[0], [0.25 * (0.8 + 0.2 * 3 * v / sum(inverse)) for v in inverse] + advantages[0, 3:].tolist())
    assert found[0, :3].tolist() == pytest.approx([0.203, 0.204, 0.343], abs=5e-4)
    assert float(found[0, :3].sum()) == pytest.approx(0.75)
    assert torch.equal(found[1:], advantages[1:])  # one right; all right
    assert torch.equal(ucpo(advantages, scores, ~right & right, 0.2), advantages)
    torch.testing.assert_close(ucpo(advantages, scores, right, 0.0), advantages)


# Semantic MaxEnt


def test_semantic_maxent_by_hand() -> None:
    history = torch.tensor([[10, 0], [10, 0], [0, 0]])
    modes = torch.tensor([[0, -1, -1], [1, -1, -1], [0, -1, -1]])
    found = 0.1 * semantic_maxent(modes, history, 5.0, is_open=True)
    close(found[:, 0], [-0.0040, 0.0440, 0.0], atol=5e-5)
    assert not found[:, 1:].any()
    assert not found[2].any()  # exactly: no history and no peer
    closed = semantic_maxent(modes, history, 5.0, is_open=False)
    assert not closed[[0, 2]].any()  # one answer is all there is
    p = torch.tensor([11 / 12, 1 / 12], dtype=torch.float64)
    close(closed[1, :1], [float(-p[1].log() + (p * p.log()).sum())])


@pytest.mark.parametrize("is_open", [True, False])
def test_semantic_maxent_is_bounded_by_its_cap_and_blind_to_order(is_open: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    history = torch.randint(0, 2000, (6, 6), generator=draw) * torch.randint(0, 2, (6, 6), generator=draw)
    found = semantic_maxent(MODES, history, 0.7, is_open=is_open)
    assert found.abs().max() <= (1.0 if is_open else 0.7)
    order = torch.randperm(6, generator=draw)
    torch.testing.assert_close(
        semantic_maxent(MODES[:, order], history, 0.7, is_open=is_open), found[:, order]
    )
    assert not found[MODES < 0].any()


# PCMD


@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_pcmd_credit_follows_the_gradient_of_pcmd_alone(size: int) -> None:
    q = torch.softmax(torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64), dim=0)
    in_logits = -2 * q * (q - (q * q).sum())  # of 1 − Σ q²
    torch.testing.assert_close(expected_pull(q, size, pcmd_credit), size / 2 * in_logits, atol=1e-12, rtol=0)


def test_the_pcmd_credit_at_its_limits() -> None:
    found = pcmd_credit(MODES)
    assert found.sum(dim=1).abs().max() < 1e-12
    assert not found[MODES < 0].any()
    assert not found[[1, 2, 3]].any()  # none, one, one answer of all
    assert not pcmd_credit(torch.tensor([[0, 1, -1, -1]])).any()  # two right ones
    assert not found[4].any()  # all differ
    assert (found[0, :3] < 0).all()
    assert (found[0, [3, 5]] > 0).all()


# SetPO


def diversity(kernel: Tensor, members: list[int]) -> float:
    near = [sum(float(kernel[i, j]) for j in members) / len(members) for i in members]
    return -sum(math.log1p(x) for x in near) / len(members)


def test_set_marginals_equal_their_definition() -> None:
    draw = torch.Generator().manual_seed(5)
    vectors = torch.nn.functional.normalize(torch.rand(3, 5, 4, generator=draw, dtype=torch.float64), dim=2)
    kernel = vectors @ vectors.transpose(1, 2)
    members = torch.tensor([[True] * 5, [True, False, True, True, False], [False, True, False, False, False]])
    found = set_marginals(kernel.masked_fill(~members.unsqueeze(1), math.nan), members)
    for p in range(2):
        omega = members[p].nonzero().flatten().tolist()
        for i in range(5):
            less = [j for j in omega if j != i]
            expected = diversity(kernel[p], omega) - diversity(kernel[p], less) if i in omega else 0.0
            assert float(found[p, i]) == pytest.approx(expected, abs=1e-12)
    assert not found[2].any()


def test_set_marginals_of_answers() -> None:
    modes = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3]])
    found = set_marginals(same_answers(modes), modes >= 0)
    assert found[0].tolist() == pytest.approx([-0.039] * 3 + [0.218], abs=1e-3)
    assert not found[1].any()
    assert found[2].tolist() == pytest.approx([0.065] * 4, abs=1e-3)  # uncentred, as published


def first_tokens(batch: Batch) -> Tensor:
    first = batch.completion_ids[:, 0].view_as(batch.utilities)
    return (first.unsqueeze(1) == first.unsqueeze(2)).double()


def out_of_range(batch: Batch) -> Tensor:
    return 2.0 * first_tokens(batch)


def test_somebodys_kernel_is_over_all_completions() -> None:
    spec = CATALOG["setpo"].with_settings(setpo_kernel="test_mode_credit:first_tokens")
    utilities = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    batch, _ = make_batch(1, 4, utilities)
    tokens = batch.completion_ids.clone()
    tokens[1] = 7
    batch = replace(batch, completion_ids=tokens, modes=None)
    found = build_objective(spec).signal(batch, KNOBS)[0].advantages - dr_grpo(utilities)
    expected = set_marginals(first_tokens(batch), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(found, expected)
    assert float(found[0, 1]) == float(found.max())  # wrong, and rewarded for it
    with pytest.raises(RunError, match=r"setpo_kernel: returned similarities outside \[0, 1\]"):
        build_objective(spec.with_settings(setpo_kernel="test_mode_credit:out_of_range")).signal(batch, KNOBS)
    with pytest.raises(UsageError, match="setpo_kernel: module 'nowhere_at_all'"):
        build_objective(spec.with_settings(setpo_kernel="nowhere_at_all:kernel"))


# Poly-EPO


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_poly_epo_over_all_sets(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    utilities = torch.where(MODES >= 0, 1.0, 0.3 * torch.rand(6, 6, generator=draw)).double()
    found = dr_grpo(poly_epo(utilities, MODES, size))
    for p, answers in enumerate(ANSWERS):
        worth = {
            s: utilities[p, list(s)].mean().item() * len({answers[i] for i in s} - {-1}) / size
            for s in itertools.combinations(range(6), size)
        }
        overall = sum(worth.values()) / len(worth)
        mine = [[v - overall for s, v in worth.items() if i in s] for i in range(6)]
        close(found[p], [sum(values) / len(values) for values in mine])


def test_poly_epo_at_its_limits() -> None:
    right = (MODES >= 0).double()
    torch.testing.assert_close(poly_epo(right, MODES, 1), right)  # sets of one: Dr. GRPO
    found = dr_grpo(poly_epo(right, MODES, 4))
    assert not found[[1, 3, 4]].any()  # exactly: none right, one answer, all different
    seven_to_one = torch.tensor([[0] * 7 + [1]])
    close(dr_grpo(poly_epo(torch.ones(1, 8).double(), seven_to_one, 4)), [-0.018] * 7 + [0.125], atol=5e-4)
    with pytest.raises(RunError, match="poly_epo_size=7 is above the 6 completions"):
        poly_epo(right, MODES, 7)


# The best of k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("utilities", [[0.0, 1.0, 1.0, -0.5, 2.0, 2.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]])
def test_max_at_k_over_all_sets(utilities: list[float], k: int) -> None:
    given, size = torch.tensor([utilities], dtype=torch.float64), len(utilities)
    outside, within = [], []
    for i in range(size):
        others = utilities[:i] + utilities[i + 1 :]
        sets = [*itertools.combinations(others, k - 1)]
        best = sum(max(utilities[i], *s) if s else utilities[i] for s in sets) / len(sets)
        without = [max(s) for s in itertools.combinations(others, k)]
        outside.append(best - sum(without) / len(without))
        if k > 1:
            within.append(best - sum(max(s) for s in sets) / len(sets))
    close(max_at_k(given, k), outside)
    close(max_at_k(given, k).sum(), [0.0])
    if k == 1:
        torch.testing.assert_close(max_at_k(given, 1), rloo(given))
    else:
        close(max_at_k(given, k, within=True), within)


def test_the_best_less_the_second_is_the_largest_k_within() -> None:
    given = torch.tensor([[0.2, 0.9, 0.5], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    close(max_at_k(given, 3, within=True), [0, 0.4, 0, 0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("k", [2, 3])
def test_pass_at_k_is_max_at_k_over_its_deviation(k: int) -> None:
    size, groups = 6, torch.tensor([[1.0] * right + [0.0] * (6 - right) for right in range(7)]).double()
    reached = torch.tensor(
        [1 - math.comb(6 - right, k) / math.comb(6, k) for right in range(7)], dtype=torch.float64
    )
    deviation = (reached * (1 - reached)).sqrt().unsqueeze(1)
    found = max_at_k(groups, k) * (size - k) / size
    torch.testing.assert_close(pass_at_k(groups, k) * deviation, found, atol=1e-12, rtol=0)
    wrong = 4
    inside = max_at_k(groups[2:3], k, within=True)
    close(inside, [math.comb(wrong, k - 1) / math.comb(size - 1, k - 1)] * 2 + [0.0] * 4)
    assert not max_at_k(groups, k)[[0, 6]].any()
    assert not max_at_k(groups, k, within=True)[[0, 6]].any()


@pytest.mark.parametrize("within", [False, True])
def test_k_times_the_expected_pull_is_the_gradient_of_the_best_of_k(within: bool) -> None:
    size, k, values = 4, 2, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    logits = torch.tensor([0.3, 0.5, -0.8], dtype=torch.float64, requires_grad=True)
    q = torch.softmax(logits, dim=0)
    best = sum(q[list(s)].prod() * values[list(s)].max() for s in itertools.product(range(3), repeat=k))
    exact = torch.autograd.grad(best, logits)[0]  # type: ignore[arg-type]
    pull = expected_pull(
        torch.softmax(logits.detach(), dim=0), size, lambda draws: max_at_k(values[draws], k, within=within)
    )
    torch.testing.assert_close(k * pull / size, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("k", "within"), [(4, False), (5, True), (1, True)])
def test_another_k_is_refused(k: int, within: bool) -> None:
    with pytest.raises(RunError, match=rf"max_k={k} must be"):
        max_at_k(torch.ones(1, 4), k, within=within)


# Which of them can tell right answers apart


@pytest.mark.parametrize("name", ["dr_grpo", "maxrl", "pass_at_k", "max_at_k", "pkpo"])
def test_advantages_of_right_or_wrong_leave_shares_among_right_answers_alone(name: str) -> None:
    """The expected gradient is a multiple of that of the chance to be right: the answers' odds keep their course."""
    q = torch.softmax(torch.tensor([0.8, -0.3, 0.1], dtype=torch.float64), dim=0)  # the last is wrong
    pull = torch.zeros(3, dtype=torch.float64)
    kind = build_objective(TESTED[name]).advantages.kind
    for draws in itertools.product(range(3), repeat=4):
        picked = torch.tensor(draws)
        right = (picked < 2).double().unsqueeze(0)
        advantages = torch.where(right.amax() > right.amin(), kind(right), 0.0)[0]
        pull += q[picked].prod() * (advantages.unsqueeze(1) * (torch.eye(3).double()[picked] - q)).sum(dim=0)
    of_right = q * ((torch.arange(3) < 2).double() - q[:2].sum())
    ratio = pull / of_right
    assert ratio.max() - ratio.min() < 1e-9
    assert ratio[0] > 0.01


# At work


def test_a_group_that_is_all_right_has_a_signal_where_its_answers_differ() -> None:
    modes, utilities = [[0, 0, 0, 1], [0, 0, 0, 0], [-1, -1, -1, -1]], [[1.0] * 4, [1.0] * 4, [0.0] * 4]
    for name in ("gapo", "pcmd", "setpo", "poly_epo"):
        found = advantages_of(TESTED[name], modes, utilities).advantages
        assert found[0].any()
        assert found[0, 3] > found[0, 0]
        assert not found[1:].any()
    silent = advantages_of(CATALOG["ucpo"], modes, utilities).advantages
    assert not silent.any()


def group_of(modes: tuple[str | None, ...], utilities: tuple[float, ...]) -> Group:
    prompt, size = Prompt(index=0, text="?", token_ids=(1,), columns={}), len(modes)
    rollout = Rollout(prompt, ((2,),) * size, ((-0.1,),) * size, ("a",) * size, ("stop",) * size, 0)
    right = tuple(u >= 1 for u in utilities)
    return Group(rollout, {}, utilities, right, utilities, modes)


def test_dynamic_sampling_keeps_what_they_tell_apart() -> None:
    differ, alike = group_of(("a", "a", "b"), (1.0,) * 3), group_of(("a",) * 3, (1.0,) * 3)
    kept = {
        name for name in (*CATALOG,) if not {"replay_coef"} & CATALOG[name].settings.keys()
        if build_objective(CATALOG[name]).has_signal(differ)
    }  # fmt: skip
    assert kept == {"mode_entropy", "gapo", "semantic_maxent", "setpo", "poly_epo", "pcmd"}
    assert not any(build_objective(CATALOG[name]).has_signal(alike) for name in kept)
    own = CATALOG["setpo"].with_settings(setpo_kernel="test_mode_credit:first_tokens")
    assert build_objective(own).has_signal(alike)


@pytest.mark.parametrize("name", ["ucpo_coef", "semantic_maxent_coef", "pcmd_coef", "setpo_coef"])
def test_a_small_coefficient_is_nearly_the_backbone_and_0_is_it(name: str) -> None:
    batch, _ = make_batch(4, 6)
    plain = build_objective(CATALOG["dr_grpo"]).signal(batch, KNOBS)[0].advantages
    spec = CATALOG["dr_grpo"].with_settings(**{name: 1e-7})
    signal, metrics = build_objective(spec).signal(batch, KNOBS)
    assert 0 < (signal.advantages - plain).abs().max() < 1e-5
    assert float(metrics["mode_credit"].value) == pytest.approx(
        float((signal.advantages - plain).abs().sum())
    )
    off = build_objective(spec.with_settings(**{name: 0.0}))
    assert off.credit == ()
    assert torch.equal(off.signal(batch, KNOBS)[0].advantages, plain)


def test_tilted_weighs_the_credited_advantages() -> None:
    batch, forward = make_batch(4, 6)
    objective = build_objective(CATALOG["tilted"].with_settings(pcmd_coef=0.5))
    credited = dr_grpo(batch.utilities) + 0.5 * pcmd_credit(batch.modes)
    weights = torch.softmax(credited / KNOBS.tau, dim=1)
    signal, _ = objective.signal(batch, KNOBS)
    torch.testing.assert_close(signal.weights, weights)
    torch.testing.assert_close(signal.advantages, 6 * weights * credited)
    loss, _ = objective.loss(forward, batch, signal, KNOBS, denominators(batch))
    assert gradient(loss, forward.logps).isfinite().all()
    tau = torch.tensor(
        KNOBS.tau, dtype=torch.float64, requires_grad=True
    )  # what the meta-controller differentiates
    at_tau = objective.weights(signal, tau, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(at_tau, weights)
    assert torch.autograd.gradcheck(lambda t: objective.weights(signal, t, torch.zeros(()).double()), (tau,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_loss": "listwise", "pcmd_coef": 0.5}, r"pcmd_coef: changes advantages, and policy_loss=listwise"),
        ({"policy_loss": "flow", "setpo_coef": 1.0}, r"setpo_coef: changes advantages, and policy_loss=flow"),
        ({"positive_only": True, "ucpo_coef": 0.2}, r"ucpo_coef: changes advantages after positive_only"),
        ({"gapo": "unit", "advantage": "maxrl", "scale_rewards": "none"}, r"gapo: changes utilities, and advantage="),
        ({"gapo": "unit", "mode_entropy": "group"}, r"mode_entropy: says what a right answer is worth"),
        ({"gapo": "half"}, r"gapo: 'half' is not one of none, unit, paper"),
        ({"ucpo_coef": 1.5}, r"ucpo_coef: 1\.5 must be"),
        ({"semantic_maxent_cap": 0.0}, r"semantic_maxent_cap: 0\.0 must be"),
        ({"advantage": "max_at_k"}, r"scale_rewards: advantage=max_at_k has its own scale"),
        ({"advantage": "max_at_k", "scale_rewards": "none", "max_k": 1, "max_k_baseline": "within"},
         r"max_k: 1 leaves no other"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObjectiveSpec(**settings)


@pytest.mark.parametrize("name", ["gapo", "poly_epo", "semantic_maxent", "pcmd", "setpo"])
def test_what_the_batch_lacks_is_named(name: str) -> None:
    batch, _ = make_batch(4, 6)
    with pytest.raises(ValueError, match=r"needs Batch\.modes"):
        build_objective(CATALOG[name]).signal(replace(batch, modes=None), KNOBS)
    objective = build_objective(CATALOG[name])
    assert objective.reads_modes
    assert objective.needs_mode_history == objective.keeps_modes == (name == "semantic_maxent")
    assert objective.needs_answers == (name == "gapo")


def test_what_else_the_batch_lacks_is_named() -> None:
    batch, _ = make_batch(4, 6)
    with pytest.raises(ValueError, match=r"needs Batch\.mode_history"):
        build_objective(CATALOG["semantic_maxent"]).signal(replace(batch, mode_history=None), KNOBS)
    with pytest.raises(ValueError, match=r"needs Batch\.mode_counts"):
        build_objective(CATALOG["gapo"]).signal(replace(batch, mode_counts=None), KNOBS)
