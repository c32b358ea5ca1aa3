"""Verified replay inside a run: its gradient, its control, what a checkpoint keeps, ranks, and the Ray drivers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

import runs
from maxent_grpo.config.loading import resolve
from maxent_grpo.errors import UsageError
from maxent_grpo.grpo import main
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.objectives.shaping import KLInReward
from maxent_grpo.train import drivers
from maxent_grpo.train.bank import Found, ReplayBank
from maxent_grpo.train.step import step
from ranks import run_ranks
from runs import train

REPLAY = {"replay_coef": 0.1}
EVERYTHING = {"replay_coef": 0.3, "replay_balance_coef": 0.2, "replay_weighting": "frequency", "replay_scale": "plain",
              "replay_banks_per_step": 3}  # fmt: skip


@pytest.fixture
def make_run(configure_tiny):
    """A run in float64 that takes whole gradients as its steps, with a rollout collected and nothing in its bank."""

    def build(**settings):
        plain = {"max_grad_norm": 1e9, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
        run = runs.build(configure_tiny("run", **plain | settings))
        run.learner.model.double()
        drivers.collect(run)
        return run

    return build


def parameters_of(run):
    return torch.cat([p.detach().flatten().clone() for p in run.learner.model.parameters()])


def all_wrong(run):
    """The rollout's groups, in which nothing is right."""
    size = len(run.rollout[0].utilities)
    nothing = {"utilities": (0.0,) * size, "right": (False,) * size, "correctness": (0.0,) * size}
    return [replace(group, modes=(None,) * size, **nothing) for group in run.rollout]


def stocked(run, exemplars=((5, 6, 7), (8, 9)), prompts=2):
    """The run, whose bank holds these exemplars for each of some prompts of its rollout."""
    found = [
        Found(
            group.rollout.prompt.token_ids,
            {str(i): (i + 1, tokens, ()) for i, tokens in enumerate(exemplars)},
        )
        for group in run.rollout[:prompts]
    ]
    run.bank.admit(found, 1)
    return run


def expected_gradient(run, exemplars):
    """The gradient of the term over every bank, by the model's own logits, one exemplar after the other."""
    model, term = run.learner.model, run.objective.replay
    banks = [run.bank.prompts[digest] for digest in run.bank.replayable]
    losses = []
    divergences = []
    for bank in banks:
        scores = []
        for tokens in exemplars:
            ids = torch.tensor([[*bank.prompt_ids, *tokens]])
            logps = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
            start = len(bank.prompt_ids)
            picked = [logps[start + t - 1, token] for t, token in enumerate(tokens)]
            scores.append(torch.stack(picked).mean())
        weights = [float(i + 1) if term.by_frequency else 1.0 for i in range(len(exemplars))]
        losses.append(-sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights))
        logs = torch.log_softmax(torch.stack(scores), dim=0)
        divergences.append(-logs.mean() - torch.tensor(float(len(scores)), dtype=torch.float64).log())
    loss = term.coefficient * sum(losses) / len(losses) + term.balance * sum(divergences) / len(divergences)
    size = len(run.rollout[0].utilities)
    scale = (size - 1) / size**2 if term.as_lone_success else 1.0
    gradient = torch.autograd.grad(scale * loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in gradient]), float((sum(losses) / len(losses)).detach())


@pytest.mark.parametrize("settings", [REPLAY, EVERYTHING], ids=["published", "everything"])
def test_a_step_without_reward_follows_the_banks_gradient_alone(make_run, settings):
    exemplars = ((5, 6, 7), (8, 9))
    run = stocked(make_run(**settings | {"replay_banks_per_step": 2}), exemplars)
    groups = all_wrong(run)
    gradient, loss = expected_gradient(run, exemplars)
    assert gradient.norm() > 1e-3
    before = parameters_of(run)
    result = step(run, groups)
    moved = parameters_of(run) - before
    assert (moved + gradient).norm() <= 1e-6 * gradient.norm()
    assert result.metrics["replay/loss"] == pytest.approx(loss, rel=1e-6)
    assert result.metrics["replay/modes"] == 4
    assert result.metrics["replay/prompts"] == 2
    assert result.metrics["replay/new_modes"] == 0
    assert 0 <= result.metrics["replay/entropy"] <= 0.6932


@pytest.mark.parametrize("settings", [REPLAY, EVERYTHING], ids=["published", "everything"])
def test_the_gradient_does_not_depend_on_how_many_exemplars_share_a_pass(make_run, settings):
    exemplars = tuple((5 + i, *range(6, 7 + i)) for i in range(11))
    moved, metrics = [], []
    for plan in ({}, {"micro_tokens": 1}, {"micro_tokens": 70}, {"micro_groups": 1}):
        run = stocked(make_run(**settings), exemplars)
        run.plan = replace(run.plan, **plan)
        before = parameters_of(run)
        metrics.append(step(run, run.rollout).metrics)
        moved.append(parameters_of(run) - before)
    for change, measured in zip(moved[1:], metrics[1:], strict=True):
        assert (change - moved[0]).norm() <= 1e-6 * moved[0].norm()
        assert measured == pytest.approx(metrics[0], rel=1e-5, abs=1e-7)


def test_replay_adds_to_the_objectives_own_gradient(make_run):
    changes = []
    for settings in ({"replay_coef": 0.1}, {}, {"replay_coef": 0.1}):
        run = make_run(**settings)
        if settings:
            stocked(run, prompts=1)
        groups = all_wrong(run) if len(changes) == 2 else run.rollout
        if run.bank is not None:
            run.updates_done = run.plan.updates_per_rollout  # a later pass: nothing is admitted
        before = parameters_of(run)
        step(run, groups)
        changes.append(parameters_of(run) - before)
    both, fresh, rehearsed = changes
    assert rehearsed.norm() > 0
    assert (both - fresh - rehearsed).norm() <= 1e-6 * both.norm()


@pytest.mark.parametrize("objective", ["dr_grpo", "tilted", "maxent"])
def test_the_controls_parameters_are_those_of_a_run_without_replay_to_the_bit(
    configure_tiny, tmp_path, objective
):
    settings = {"objective": objective, "max_steps": 3, "save_steps": 3}
    if objective != "dr_grpo":
        settings |= {"command": "train-maxent", "beta": 0.1, "maxent_tau": 0.05}
    train(configure_tiny("without", **settings))
    train(
        configure_tiny("control", replay_coef=0.1, replay_control=True, replay_banks_per_step=4, **settings)
    )
    train(configure_tiny("replay", replay_coef=0.1, replay_banks_per_step=4, **settings))
    policies = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "control", "replay")
    ]
    assert policies[0] == policies[1] != policies[2]
    rows = [json.loads(line) for line in (tmp_path / "control" / "metrics.jsonl").read_text().splitlines()][
        1:
    ]
    plain = [json.loads(line) for line in (tmp_path / "without" / "metrics.jsonl").read_text().splitlines()][
        1:
    ]
    assert sum(row["train/replay/new_modes"] for row in rows) > 0
    assert [{k: v for k, v in row.items() if "/replay/" not in k} for row in rows] == plain


def test_the_groups_drop_the_units_that_they_would_drop_without_replay(make_run):
    moved = []
    for settings in ({}, REPLAY | {"replay_control": True}, REPLAY):
        run = make_run(**settings)
        run.learner.model.config.attention_dropout = 0.5
        for layer in run.learner.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        policy = PolicyForward(run.learner.model).train()
        run.learner.strategy.policy = run.learner.strategy.module = policy
        if run.bank is not None:
            stocked(run)
        torch.manual_seed(3)
        before = parameters_of(run)
        step(run, run.rollout)
        moved.append(parameters_of(run) - before)
    without, control, replayed = moved
    assert torch.equal(without, control)
    assert not torch.equal(without, replayed)


def test_a_rollout_of_several_updates_is_entered_once(make_run):
    run = make_run(**REPLAY, num_iterations=2)
    first = step(run, run.rollout).metrics["replay/new_modes"]
    run.updates_done += 1
    counts = {digest: dict(bank.counts) for digest, bank in run.bank.prompts.items()}
    second = step(run, run.rollout).metrics["replay/new_modes"]
    assert first > 0
    assert second == 0
    assert {digest: dict(bank.counts) for digest, bank in run.bank.prompts.items()} == counts
    assert sum(sum(c.values()) for c in counts.values()) == sum(
        key is not None for group in run.rollout for key in group.modes
    )


def test_own_prompts_are_replayed_where_asked(make_run):
    run = make_run(replay_coef=0.1, replay_scope="own_prompts")
    stocked(run, prompts=1)
    others = [Found((1, 2, 3), {"x": (1, (4, 5), ())})]
    run.bank.admit(others, 1)
    groups = all_wrong(run)
    gradient, _ = expected_gradient_of_first(run)
    before = parameters_of(run)
    step(run, groups)
    assert (parameters_of(run) - before + gradient).norm() <= 1e-6 * gradient.norm()


def expected_gradient_of_first(run):
    own = run.bank.banks_of([run.rollout[0].rollout.prompt.token_ids])
    kept = run.bank.prompts
    run.bank.prompts = {digest: bank for digest, bank in kept.items() if bank is own[0]}
    try:
        return expected_gradient(run, ((5, 6, 7), (8, 9)))
    finally:
        run.bank.prompts = kept


class WithHistory(KLInReward):
    """Keeps the batches that it sees."""

    reads_logps = False
    needs_mode_history = True
    seen: ClassVar[list] = []

    def __call__(self, utilities, batch, knobs):
        self.seen.append(batch)
        return utilities


def test_an_objective_may_read_the_history_without_replay(make_run):
    run = make_run(num_iterations=2)
    run.objective = replace(run.objective, shaping=(WithHistory(),))
    run.bank = ReplayBank(0)
    WithHistory.seen.clear()
    for _ in range(2):
        for _ in range(2):
            step(run, run.rollout)
            run.updates_done += 1
        run.updates_done = 0  # as if the next rollout had brought the same groups
    first, again, later, last = (batch.mode_history for batch in WithHistory.seen)
    modes = WithHistory.seen[0].modes
    assert first.sum() == 0
    assert torch.equal(again, first)
    assert torch.equal(last, later)
    for group in range(len(modes)):
        counts = [int((modes[group] == mode).sum()) for mode in range(later.shape[1])]
        assert later[group].tolist() == counts
    assert run.bank.replayable == []


def test_infoseeds_head_and_its_seeded_completions_go_with_replay(configure_tiny, tmp_path):
    settings = {"command": "train-infoseed", "info_seed_enabled": True, "info_seed_num_seeds": 2, "max_steps": 2,
                "info_seed_lambda": 0.01, "info_seed_loss_type": "ce", "save_strategy": "no"}  # fmt: skip
    train(configure_tiny("control", **settings, **REPLAY, replay_control=True))
    train(configure_tiny("without", **settings))
    policies = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("control", "without")]
    assert policies[0] == policies[1]
    lines = (tmp_path / "control" / "replay_bank.jsonl").read_text().splitlines()
    assert len(lines) > 1
    assert not any("[seed=" in json.loads(line)["prompt"] for line in lines[1:])


def test_a_dialogues_exemplar_is_learned_from_where_the_policy_wrote(make_run):
    run = make_run(**REPLAY)
    prompt = run.rollout[0].rollout.prompt.token_ids
    run.bank.admit([Found(prompt, {"a": (1, (5, 6, 7, 8), (True, False, False, True))})], 1)
    ids = torch.tensor([[*prompt, 5, 6, 7, 8]])
    logps = torch.log_softmax(run.learner.model(ids).logits[0], dim=-1)
    first = len(prompt) - 1
    loss = -(logps[first, 5] + logps[first + 3, 8]) / 2
    size = len(run.rollout[0].utilities)
    gradient = torch.autograd.grad(0.1 * (size - 1) / size**2 * loss, list(run.learner.model.parameters()))
    gradient = torch.cat([g.flatten() for g in gradient])
    before = parameters_of(run)
    result = step(run, all_wrong(run))
    assert (parameters_of(run) - before + gradient).norm() <= 1e-6 * gradient.norm()
    assert result.metrics["replay/loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert "replay/entropy" not in result.metrics  # one exemplar leaves nothing to choose


def test_a_bank_that_was_read_back_rehearses_in_the_same_order(make_run):
    """The file has keys in order, whatever the order in which they were admitted."""
    tokens = {key: tuple(range(5, 7 + i)) for i, key in enumerate("gcfaebd")}
    moved = []
    for read_back in (False, True):
        run = make_run(**EVERYTHING)
        for number, (key, ids) in enumerate(tokens.items(), 1):
            run.bank.admit([Found(run.rollout[0].rollout.prompt.token_ids, {key: (number, ids, ())})], number)
        if read_back:
            lines = list(run.bank.lines(str))
            run.bank = ReplayBank(run.bank.capacity, settings=run.bank.settings)
            run.bank.load(lines)
        before = parameters_of(run)
        step(run, all_wrong(run))
        moved.append(parameters_of(run) - before)
    assert torch.equal(*moved)


LAST = (
    "replay_bank.jsonl",
    "optimizer.safetensors",
    "trainer_state.json",
    "model.safetensors",
    "manifest.json",
)


class Stopped(BaseException):
    """Stands for a kill inside the process: nothing may catch it."""


@pytest.mark.parametrize("settings", [EVERYTHING, {"replay_coef": 0.1, "replay_scope": "own_prompts"}],
                         ids=["in turn", "own prompts"])  # fmt: skip
def test_a_stopped_run_resumes_to_the_same_bytes_with_its_bank(
    configure_tiny, tmp_path, monkeypatch, settings
):
    settings = settings | {"max_steps": 6, "steps_per_generation": 2, "num_iterations": 2, "save_steps": 1}
    train(configure_tiny("whole", **settings))
    real = drivers.step

    def stopping(run, groups):
        if run.step + 1 == 4:
            raise Stopped
        return real(run, groups)

    with monkeypatch.context() as patch:
        patch.setattr(drivers, "step", stopping)
        with pytest.raises(Stopped):
            train(configure_tiny("cut", **settings))
    assert (tmp_path / "cut" / "replay_bank.jsonl").read_bytes() == (
        tmp_path / "cut" / "checkpoint-3" / "replay_bank.jsonl"
    ).read_bytes()
    train(configure_tiny("cut", resume_from_checkpoint=True, **settings))
    names = ["metrics.jsonl", "completions.jsonl", "replay_bank.jsonl", "model.safetensors"]
    names += [
        f"checkpoint-6/{name}" for name in LAST if (tmp_path / "whole" / "checkpoint-6" / name).exists()
    ]
    assert "checkpoint-6/replay_bank.jsonl" in names
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_a_bank_depends_on_cannot_change_between_runs(configure_tiny, tmp_path):
    settings = {"max_steps": 2, "save_steps": 1}
    train(configure_tiny("run", **settings, **REPLAY))
    again = settings | {"max_steps": 3, "resume_from_checkpoint": True}
    with pytest.raises(UsageError, match=r"replay_capacity was 16 and is 8.*resume with the replay settings"):
        train(configure_tiny("run", **again, replay_coef=0.1, replay_capacity=8))
    with pytest.raises(UsageError, match="holds a replay bank, and this objective keeps none"):
        train(configure_tiny("run", **again))
    train(configure_tiny("plain", **settings))
    with pytest.raises(UsageError, match="holds no replay bank, and this objective keeps one"):
        train(configure_tiny("plain", **again, **REPLAY))
    bank = tmp_path / "run" / "checkpoint-2" / "replay_bank.jsonl"
    bank.write_bytes(bank.read_bytes()[:-2] + b" \n")
    with pytest.raises(UsageError, match=r"checkpoint-2 is damaged.*replay_bank.jsonl"):
        train(configure_tiny("run", **again, **REPLAY))


def test_replay_without_a_correctness_reward_and_on_trls_route_is_refused(configure_tiny):
    rewards = ["format", "repetition_penalty"]
    with pytest.raises(UsageError, match="correctness_reward: the objective needs to know"):
        train(configure_tiny("run", reward_funcs=rewards, **REPLAY))
    flat = {"output_dir": "run", "model_name_or_path": "bundled:tiny-policy", "dataset_name": "task:arithmetic",
            "reward_funcs": ["task_reward"], "use_cpu": True, "force_custom_loop": False}  # fmt: skip
    for settings in ({"objective": "dr_grpo", **REPLAY}, {"objective": "re_dr"}):
        with pytest.raises(UsageError, match=r"replay_coef: .*force_custom_loop=true"):
            resolve("train-baseline", None, {"flat": flat | settings}, environ={})


def test_the_readable_bank_says_prompts_answers_and_counts(configure_tiny, tmp_path):
    train(configure_tiny("run", max_steps=2, save_strategy="no", objective="re_max"))
    head, *prompts = map(json.loads, (tmp_path / "run" / "replay_bank.jsonl").read_text().splitlines())
    assert head["settings"]["replay_coef"] == 0.1
    assert prompts
    for line in prompts:
        assert line["exemplars"]
        for exemplar in line["exemplars"]:
            assert line["counts"][exemplar["mode"]] >= 1
            assert set(exemplar["mode"]) <= set("123")  # the task's key: the colours of all vertices
            assert exemplar["text"]


SINGLE = {"replay_capacity": 1, "replay_banks_per_step": 1}
"""A step replays one completion, so that one of two ranks has none."""
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "recipes" / "tiny" / "grpo" / "config_graph_coloring.yaml"


def arguments(output_dir, **settings):
    flags = {"dataset_config": "train_size=24,eval_size=5", "num_generations": 4, "max_steps": 4, "save_steps": 4,
             "adam_epsilon": 1e-6, "disable_tqdm": True, "eval_strategy": "no", "eval_on_start": False,
             "output_dir": str(output_dir)} | EVERYTHING | settings  # fmt: skip
    return [
        "--config",
        str(RECIPE),
        *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
    ]


NIGHTLY = [("fsdp2", SINGLE), ("zero2", {}), ("zero3", {})]


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
@pytest.mark.parametrize(
    ("distributed", "settings"),
    [
        ("ddp", {}),
        ("ddp", SINGLE),
        ("fsdp2", {}),
        *(pytest.param(*v, marks=pytest.mark.nightly) for v in NIGHTLY),
    ],
)
def test_two_ranks_keep_the_bank_and_the_policy_of_one_process(tmp_path, distributed, settings):
    if distributed.startswith("zero"):
        pytest.importorskip("deepspeed")
    assert main(arguments(tmp_path / "one", per_device_train_batch_size=32, **settings)) == 0
    two = arguments(tmp_path / "two", per_device_train_batch_size=16, distributed=distributed, **settings)
    ended = run_ranks(tmp_path, two)
    assert ended.codes == [0, 0], ended.errors
    assert (tmp_path / "two" / "replay_bank.jsonl").read_bytes() == (
        tmp_path / "one" / "replay_bank.jsonl"
    ).read_bytes()
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model.safetensors").items():
        assert (value - expected[name]).abs().max() <= 1e-6, name
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()][1:]
        for run in ("one", "two")
    ]
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name.startswith("train/replay/") or name == "train/loss":
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_ray_drivers_end_at_the_inline_drivers_bank_and_policy(ray_here, configure_tiny, tmp_path):
    pytest.importorskip("ray")
    settings = {"max_steps": 5} | EVERYTHING
    train(configure_tiny("inline", **settings))
    train(configure_tiny("async", driver="async", max_staleness=0, rollout_workers=2, **settings))
    for name in ("model.safetensors", "replay_bank.jsonl", "checkpoint-4/replay_bank.jsonl"):
        assert (tmp_path / "async" / name).read_bytes() == (tmp_path / "inline" / name).read_bytes(), name
