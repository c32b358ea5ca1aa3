"""The documented API, name by name: signatures, values against hand-made numbers, and the limits."""

import dataclasses
import inspect
import json
import math

import pytest
import torch

from maxent_grpo.rewards import maxent as api
from maxent_grpo.rewards.maxent.settings import set_knobs

DOCUMENTED = {
    "compute_reward_statistics": "gen_batch, reward_spec, device, q_temperature, q_epsilon, controller_beta=None, "
    "controller_tau=None, scale_rewards=True, zero_truncated_completion_rewards=False, max_completion_len=None, "
    "seed_grpo_enabled=False, seed_grpo_alpha=0.0417, seed_grpo_alpha_normalize_by_max_entropy=True, "
    "seed_grpo_length_normalize_logprobs=True, seed_grpo_num_generations=None",
    "compute_reward_totals": "reward_spec, completion_batch, flat_answers",
    "group_advantages": "grouped_comps, total_utils, *, scale_rewards=True",
    "prepare_generation_batch": "batch, generator, generation_stats, expected_generations, max_retry_rounds=None",
    "reward_moments": "total_utils, device",
    "WeightLoggingView": "entropy=0.0, entropy_norm=0.0, entropy_min=0.0, entropy_max=0.0, "
    "advantage_entropy_mean=0.0, advantage_entropy_std=0.0",
    "WeightStats": "weights_grouped, flat_weights, weight_entropy, weight_entropy_min, weight_entropy_max, "
    "advantage_entropy",
    "WeightingSettings": "tau, beta, normalization, q_distribution, tau_schedule, kl_controller, "
    "train_grpo_objective, scale_rewards=True, controller_meta=<factory>, controller_state=None, "
    "allow_empty_weight_fallback=False",
    "apply_meta_controller_update": "weighting_cfg, *, tau_grad=None, beta_grad=None, lr_scale=1.0",
    "broadcast_controller_state": "accelerator, weighting_cfg",
    "build_uniform_weight_stats": "grouped_completions",
    "collect_weight_entropy": "weights_grouped",
    "compute_weight_stats": "grouped_completions, reward_comp, ref_stats, weighting_cfg",
    "controller_state_dict": "weighting_cfg",
    "load_controller_state": "path, weighting_cfg",
    "maybe_update_beta": "weighting_cfg, measured_kl",
    "maybe_update_tau": "weighting_cfg, weight_stats, global_step, lr_scale=None",
    "save_controller_state": "path, weighting_cfg",
    "split_reference_logprobs": "grouped_completions, ref_stats, len_norm_ref",
    "split_reference_token_counts": "grouped_completions, ref_stats",
    "weight_matrix_from_q": "q_values, logp_values, token_counts, weighting_cfg, *, include_reference_term=True, "
    "normalize_by_tokens=True",
    "weight_vector_from_q": "q_values, logp_values, token_counts, weighting_cfg, *, include_reference_term=True, "
    "normalize_by_tokens=True",
}
CPU = torch.device("cpu")
GROUPS = [["a", "bb"], ["ccc", "dd", "e"]]


def settings(tau=0.3, beta=0.2, grpo=False, **parts):
    meta = parts.pop("meta", api.ControllerMetaSettings())
    return api.WeightingSettings(
        tau=tau,
        beta=beta,
        normalization=api.WeightNormalizationSettings(
            parts.pop("denom", tau + beta), parts.pop("len_norm", True)
        ),
        q_distribution=api.QDistributionSettings(1.0, 1e-6),
        tau_schedule=parts.pop("schedule", api.TauSchedule(None, 0.0, 0.0, 0.0, 0)),
        kl_controller=parts.pop("kl", api.KlControllerSettings(0.0, 0, 0.0)),
        train_grpo_objective=grpo,
        controller_meta=meta,
    )


def reference(sums, counts):
    raw, count = torch.tensor(sums), torch.tensor(counts)
    return api.ReferenceLogprobs(raw / count, count, raw, float(raw.mean()), float(count.mean()))


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signature_is_the_documented_one(name):
    plain = ", ".join(
        str(p.replace(annotation=inspect.Parameter.empty))
        for p in inspect.signature(getattr(api, name)).parameters.values()
        if p.kind is not inspect.Parameter.KEYWORD_ONLY
    )
    keyword = [
        str(p.replace(annotation=inspect.Parameter.empty))
        for p in inspect.signature(getattr(api, name)).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    assert plain + (", *, " + ", ".join(keyword) if keyword else "") == DOCUMENTED[name]


def test_every_public_name_is_there():
    assert set(DOCUMENTED) | {"WeightingConfigLike"} <= set(api.__all__)
    assert isinstance(settings(), api.WeightingConfigLike)


def test_flat_accessors_read_and_write_the_parts():
    cfg = settings()
    for part, flat in [
        ("normalization", {"denom": "denom", "len_norm_ref": "len_norm_ref"}),
        ("q_distribution", {"q_temperature": "temperature", "q_epsilon": "epsilon"}),
        (
            "tau_schedule",
            {
                "tau_target_entropy": "target_entropy",
                "tau_lr": "learning_rate",
                "tau_min": "minimum_value",
                "tau_max": "maximum_value",
                "tau_warmup_steps": "warmup_steps",
            },
        ),
        ("kl_controller", {"kl_target": "target", "kl_horizon": "horizon", "kl_ctl_step_size": "step_size"}),
    ]:
        for name, inner in flat.items():
            setattr(cfg, name, 7)
            assert getattr(getattr(cfg, part), inner) == 7 == getattr(cfg, name)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("by_tokens", [True, False])
def test_weights_follow_the_closed_form(with_reference, by_tokens):
    cfg, q, logp, counts = settings(), [0.2, 0.5, 0.3], [-1.0, -2.0, -0.5], [3, 5, 2]
    beta = 0.2 if with_reference else 0.0
    expected = softmax([(math.log(a) + beta * b) / 0.5 for a, b in zip(q, logp, strict=True)])
    if by_tokens:
        expected = [w * t for w, t in zip(expected, counts, strict=True)]
        expected = [w / sum(expected) for w in expected]
    options = {"include_reference_term": with_reference, "normalize_by_tokens": by_tokens}
    assert api.weight_vector_from_q(q, logp, counts, cfg, **options) == pytest.approx(expected, abs=1e-12)


def test_the_matrix_form_equals_the_vector_form_row_by_row():
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(5, 4, generator=generator, dtype=torch.float64).softmax(dim=1)
    logp = -torch.rand(5, 4, generator=generator, dtype=torch.float64) * 20
    counts = torch.randint(0, 9, (5, 4), generator=generator).double()
    matrix = api.weight_matrix_from_q(q, logp, counts, settings())
    for i in range(5):
        row = api.weight_vector_from_q(q[i].tolist(), logp[i].tolist(), counts[i].tolist(), settings())
        assert row == matrix[i].tolist()
    with pytest.raises(ValueError, match="1 dimensions"):
        api.weight_matrix_from_q(q[0], logp[0], None, settings())
    with pytest.raises(ValueError, match="they must agree"):
        api.weight_matrix_from_q(q, logp[:, :2], None, settings())


def test_rewards_become_utilities_advantages_and_q():
    spec = api.RewardSpec(
        [lambda c, a: [float(len(t)) for t in c], lambda c, a: [math.nan] * len(c)], [2.0, 1.0]
    )
    batch = api.GenerationBatch(["p", "r"], ["x", "y"], GROUPS)
    got = api.compute_reward_statistics(batch, spec, CPU, 2.0, 0.0)
    assert got.total_utils == [2.0, 4.0, 6.0, 4.0, 2.0]
    assert got.per_reward_values["reward_0"] == [1.0, 2.0, 3.0, 2.0, 1.0]
    assert got.advantage.grouped[0] == pytest.approx([-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)])
    assert got.advantage_samples[2:] == pytest.approx([2 / 2.0001, 0.0, -2 / 2.0001])
    assert got.q_grouped[0] == pytest.approx(softmax([1.0, 2.0]))
    assert got.q_grouped[1] == pytest.approx(softmax([3.0, 2.0, 1.0]))
    assert (got.train_reward_mean, got.train_reward_std) == pytest.approx((3.6, 1.4966630), abs=1e-6)
    assert got.pairs.prompts == ["p", "p", "r", "r", "r"]
    unscaled = api.compute_reward_statistics(batch, spec, CPU, 2.0, 0.0, scale_rewards=False)
    assert unscaled.advantage.grouped == [[-1.0, 1.0], [2.0, 0.0, -2.0]]
    assert api.compute_reward_statistics(api.GenerationBatch([], [], []), spec, CPU, 1.0, 0.0) is None
    assert api.group_advantages([["a"]], [3.0]) == ([[0.0]], [0.0])


def test_truncated_completions_lose_their_utility():
    info = [
        [{"truncated": True}, {"finish_reason": "stop"}],
        [{"finish_reason": "length"}, {"token_count": 9}, {}],
    ]
    batch = api.GenerationBatch(["p", "r"], ["x", "y"], GROUPS, None, info)
    spec = api.RewardSpec([lambda c, a: [1.0] * len(c)], [1.0])
    got = api.compute_reward_statistics(
        batch, spec, CPU, 1.0, 0.0, zero_truncated_completion_rewards=True, max_completion_len=9
    )
    assert got.total_utils == [0.0, 1.0, 0.0, 0.0, 1.0]


def test_seed_grpo_scales_by_the_entropy_of_the_answers():
    groups = [[r"\boxed{1}", r"\boxed{1}", r"\boxed{2}", "?"]]
    sums, counts = [-2.0, -4.0, -3.0, -6.0], [2, 2, 3, 2]
    meta = [[{"logprob_sum": s, "token_count": n} for s, n in zip(sums, counts, strict=True)]]
    batch = api.GenerationBatch(["p"], ["1"], groups, meta)
    spec = api.RewardSpec([lambda c, a: [1.0, 0.0, 0.0, 0.5]], [1.0])
    plain = api.compute_reward_statistics(batch, spec, CPU, 1.0, 0.0)
    scaled = api.compute_reward_statistics(
        batch, spec, CPU, 1.0, 0.0, seed_grpo_enabled=True, seed_grpo_alpha=0.5
    )
    p = softmax([s / n for s, n in zip(sums, counts, strict=True)])
    clusters = [p[0] + p[1], p[2], p[3]]
    entropy = -sum(c * math.log(c) for c in clusters)
    scale = 1 / (1 + 0.5 / math.log(4) * entropy)
    assert scaled.advantage_samples == pytest.approx([a * scale for a in plain.advantage_samples])
    with pytest.raises(ValueError, match="completion 0 has none"):
        api.compute_reward_statistics(
            api.GenerationBatch(["p"], ["1"], groups), spec, CPU, 1.0, 0.0, seed_grpo_enabled=True
        )


def test_missing_completions_are_asked_for_again_and_counted():
    calls = []

    def generator(prompts, num, per_prompt_counts=None):
        calls.append((list(prompts), num, per_prompt_counts))
        if len(calls) == 1:
            return [["a1"], [], ["c1", "c2", "c3"], []], None
        return [["more"] if p != "d" else [] for p in prompts], None

    stats = {}
    batch = {"prompt": ["a", "b", "c", "d"], "answer": ["1", "2", "3", "4"]}
    got = api.prepare_generation_batch(batch, generator, stats, 2, max_retry_rounds=1)
    assert calls[1] == (["a", "b", "d"], 2, [1, 2, 2])
    assert got.prompts == ["a", "b", "c"]
    assert got.answers == ["1", "2", "3"]
    assert got.grouped_completions == [["a1", "more"], ["more"], ["c1", "c2"]]
    assert stats == {
        "vllm_retry_rounds": 1,
        "vllm_excess_prompts": 1,
        "vllm_excess_completions": 1,
        "dropped_prompts": 1,
        "partial_prompts": 1,
    }
    nothing = api.prepare_generation_batch(batch, lambda p, n, c=None: ([[] for _ in p], None), {}, 2)
    assert nothing is None


def test_weight_statistics_of_groups():
    spec = api.RewardSpec([lambda c, a: [float(len(t)) for t in c]], [1.0])
    reward = api.compute_reward_statistics(
        api.GenerationBatch(["p", "r"], ["", ""], GROUPS), spec, CPU, 1.0, 0.0
    )
    stats = reference([-4.0, -9.0, -2.0, -3.0, -1.0], [2.0, 3.0, 1.0, 3.0, 2.0])
    got = api.compute_weight_stats(GROUPS, reward, stats, settings())
    expected = softmax(
        [(math.log(q) + 0.2 * ref) / 0.5 for q, ref in zip(reward.q_grouped[0], [-2, -3], strict=True)]
    )
    assert got.weights_grouped[0] == pytest.approx(expected)
    entropies = [-sum(w * math.log(w) for w in group) for group in got.weights_grouped]
    assert got.weight_entropy == pytest.approx(sum(entropies) / 2)
    assert (got.weight_entropy_min, got.weight_entropy_max) == pytest.approx((min(entropies), max(entropies)))
    assert got.advantage_entropy[0] == pytest.approx(expected[0] - 0.5)
    # Per completion instead of per token: raw sums, and still no factor for the number of tokens.
    raw = api.compute_weight_stats(GROUPS, reward, stats, settings(len_norm=False))
    plain = [(math.log(q) + 0.2 * ref) / 0.5 for q, ref in zip(reward.q_grouped[0], [-4, -9], strict=True)]
    assert raw.weights_grouped[0] == pytest.approx(softmax(plain))
    grpo = api.compute_weight_stats(GROUPS, reward, stats, settings(grpo=True, denom=1.0))
    assert grpo.weights_grouped[0] == pytest.approx(reward.q_grouped[0])
    assert grpo.weight_entropy == 0.0
    assert api.compute_weight_stats([], reward, stats, settings()) is None
    with pytest.raises(ValueError, match="5 reference log-probs for 2 completions"):
        api.split_reference_logprobs(GROUPS[:1], stats, True)


def test_uniform_weights():
    got = api.build_uniform_weight_stats(GROUPS)
    assert got.flat_weights == [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]
    assert got.weight_entropy == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert got.advantage_entropy == [0.0] * 5
    assert api.build_uniform_weight_stats([[]]) is None


def test_beta_follows_the_kl_and_the_denominator_follows_beta():
    cfg = settings(kl=api.KlControllerSettings(0.1, 10, 0.5))
    api.maybe_update_beta(cfg, 0.3)
    assert cfg.beta == pytest.approx(0.2 * 1.05)
    assert cfg.denom == pytest.approx(0.3 + 0.21)
    api.maybe_update_beta(cfg, math.nan)
    assert cfg.beta == pytest.approx(0.21)
    off = settings()
    api.maybe_update_beta(off, 9.0)
    assert off.beta == 0.2


@pytest.mark.parametrize(
    ("tau", "beta", "denom", "expected"),
    [
        (0.5, 0.2, 0.5, 0.6),  # τ alone
        (0.5, 0.2, 0.7, 0.8),  # τ + β
        (0.5, 0.2, 3.0, 3.0),  # a constant
        (0.5, 0.0, 0.5, 0.6),
        (0.0, 0.0, 1.0, 0.6),
    ],
)
def test_a_controller_step_keeps_the_denominator_that_was_configured(tau, beta, denom, expected):
    cfg = settings(tau=tau, beta=beta, denom=denom)
    set_knobs(cfg, tau=0.6)
    assert cfg.denom == pytest.approx(expected)


def test_a_denominator_that_is_not_positive_is_tau():
    weights = api.weight_vector_from_q([0.7, 0.3], [0.0, 0.0], None, settings(tau=0.5, beta=0.0, denom=-1.0))
    assert weights == pytest.approx(softmax([math.log(0.7) / 0.5, math.log(0.3) / 0.5]))


def test_a_generator_that_fails_gives_no_batch():
    batch = {"prompt": ["a"], "answer": ["1"]}
    assert api.prepare_generation_batch(batch, lambda *_: None, {}, 2) is None
    assert api.prepare_generation_batch({"prompt": [], "answer": []}, lambda *_: 1 / 0, {}, 2) is None


def test_tau_follows_the_entropy_after_the_warm_up():
    cfg = settings(schedule=api.TauSchedule(1.0, 0.5, 0.0, 0.0, 2))
    view = api.WeightLoggingView(entropy=0.4)
    api.maybe_update_tau(cfg, view, 2)
    assert (cfg.tau, cfg.tau_entropy_ema) == (0.3, 0.4)
    api.maybe_update_tau(cfg, dataclasses.replace(view, entropy=0.8), 3, lr_scale=0.5)
    ema = 0.9 * 0.4 + 0.1 * 0.8
    assert cfg.tau == pytest.approx(0.3 * math.exp(0.25 * (1.0 - ema)))
    assert cfg.denom == pytest.approx(cfg.tau + 0.2)
    bounded = settings(schedule=api.TauSchedule(9.0, 5.0, 0.0, 0.35, 0))
    api.maybe_update_tau(bounded, view, 1)
    assert bounded.tau == pytest.approx(0.35)


def test_tau_follows_a_target_that_moves():
    schedule = api.TauSchedule(
        1.0, 0.5, 0.0, 0.0, 0, target_entropy_start=0.2, target_entropy_final=1.4, target_entropy_horizon=4
    )
    cfg, tau = settings(schedule=schedule), 0.3
    for step in range(7):
        target = 0.2 + 1.2 * min(step, 4) / 4
        assert schedule.target_at(step) == pytest.approx(target)
        api.maybe_update_tau(cfg, api.WeightLoggingView(entropy=0.4), step)
        tau *= math.exp(0.5 * (target - 0.4)) if step > 0 else 1.0  # step 0 is of the warm-up
        assert cfg.tau == pytest.approx(tau)
    assert api.TauSchedule(None, 0.5, 0.0, 0.0, 0).target_at(3) is None
    assert api.TauSchedule(None, 0.5, 0.0, 0.0, 0, target_entropy_final=1.4).target_at(3) is None
    assert api.TauSchedule(0.5, 0.5, 0.0, 0.0, 0, target_entropy_final=1.4).target_at(0) == 1.4
    assert api.TauSchedule(0.5, 0.5, 0.0, 0.0, 0, None, 1.5, 10).target_at(-3) == 0.5


def test_the_analytic_meta_step_is_projected_and_clipped():
    meta = api.ControllerMetaSettings(True, learning_rate=0.1, beta_learning_rate=0.5, beta_grad_clip=0.2)
    cfg = settings(meta=meta, schedule=api.TauSchedule(None, 0.0, 0.25, 1.0, 0))
    assert api.apply_meta_controller_update(cfg, tau_grad=1.0, beta_grad=3.0, lr_scale=2.0)
    assert (cfg.tau, cfg.beta) == pytest.approx((0.25, 0.2 + 0.5 * 2 * 0.2))
    assert (meta.last_tau_grad, meta.last_beta_grad) == (1.0, 3.0)
    assert not api.apply_meta_controller_update(settings(), tau_grad=1.0)
    other = settings(meta=dataclasses.replace(meta, method="first_order"))
    assert not api.apply_meta_controller_update(other, tau_grad=1.0)


def test_state_goes_to_disk_and_comes_back(tmp_path, caplog):
    cfg = settings(meta=api.ControllerMetaSettings(True, learning_rate=0.1))
    cfg.controller_state = api.TorchControllerState(0.3, 0.2)
    cfg.tau_entropy_ema = 0.7
    path = str(tmp_path / "state" / "controller_state.json")
    api.save_controller_state(path, cfg)
    saved = json.loads((tmp_path / "state" / "controller_state.json").read_text())
    assert saved["meta"]["version"] == 1
    assert saved["meta"]["controller"]["learning_rate"] == 0.1
    fresh = settings(tau=1.0, beta=1.0)
    fresh.controller_state = api.TorchControllerState(1.0, 1.0)
    assert api.load_controller_state(path, fresh)
    assert (fresh.tau, fresh.beta, fresh.tau_entropy_ema) == (0.3, 0.2, 0.7)
    assert fresh.denom == pytest.approx(0.5)
    assert fresh.controller_meta.enabled
    assert float(fresh.controller_state.tau) == 0.3
    assert not api.load_controller_state(str(tmp_path / "nowhere.json"), fresh)
    assert not api.load_controller_state(None, fresh)
    assert "meta" not in api.controller_state_dict(settings())
    (tmp_path / "bad.json").write_text('{"tau": "x", "beta": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "meta.json").write_text(
        '{"tau": 1, "beta": 1, "meta": {"controller": {"learning_rate": "x"}}}'
    )
    for name, why in {"bad": "tau is 'x'", "broken": "not JSON", "meta": "could not convert"}.items():
        caplog.clear()
        assert not api.load_controller_state(str(tmp_path / f"{name}.json"), fresh)
        assert why in caplog.text
    assert (fresh.tau, fresh.beta) == (0.3, 0.2)


def test_ranks_take_over_the_first_ranks_state():
    class Gathers:
        device = "cpu"

        def gather(self, row):
            return torch.cat([torch.tensor([[0.9, 0.1, -0.5, math.nan]], dtype=row.dtype), row])

    cfg = settings()
    cfg.tau_entropy_ema = 3.0
    assert api.broadcast_controller_state(Gathers(), cfg)
    assert (cfg.tau, cfg.beta, cfg.tau_log, cfg.tau_entropy_ema) == (0.9, 0.1, -0.5, None)
    assert not api.broadcast_controller_state(object(), cfg)
