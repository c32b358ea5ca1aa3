"""A plan is read, ordered and refused with the key and the remedy."""

from pathlib import Path

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.study.plan import plan_of, read_plan
from maxent_grpo.study.runs import config_of, refused_arms, runs_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_baseline_comes_first_and_the_aa_arm_second(tree):
    plan = plan_of(tree)
    assert [arm.name for arm in plan.arms] == ["dr_grpo", "aa", "other"]
    assert plan.aa is not None
    assert (plan.aa.recipe, plan.aa.command) == ("dr.yaml", "train-baseline")


def test_the_cells_are_whole_pairs_in_a_stable_order(plan):
    cells = runs_of(plan)
    assert [cell.index for cell in cells] == list(range(24))
    assert [cell.name for cell in cells[:4]] == [
        "graph_coloring/dr_grpo/seed-0",
        "graph_coloring/aa/seed-0",
        "graph_coloring/other/seed-0",
        "graph_coloring/dr_grpo/seed-1",
    ]
    assert cells[4].run_seed == 1001


def change(tree, path, value):
    *front, last = path.split(".")
    for key in front:
        tree = tree.setdefault(key, {})
    tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sedes", [0], r"sedes: unknown key \(did you mean seeds\?\)"),
        ("arms.other.overides", {}, r"arms.other.overides: unknown key \(did you mean overrides\?\)"),
        (
            "arms.other.command",
            "train-baselin",
            "arms.other.command: 'train-baselin' is not one of train-base",
        ),
        (
            "arms.aa.same_as",
            "dr_gpro",
            r"arms.aa.same_as: no arm 'dr_gpro' above it \(did you mean dr_grpo\?\)",
        ),
        ("arms.aa.seed_offset", 3, "arms.aa.seed_offset: seed 3 would be a run of the baseline as well"),
        (
            "arms.aa.seed_offset",
            0,
            "arms.aa: the same settings and seeds as dr_grpo, so the same runs to the",
        ),
        ("arms.other.seed_offset", 1000, "arms.other: an arm with a seed_offset repeats the baseline"),
        (
            "arms.other.overrides",
            {"seed": 4},
            "arms.other.overrides.seed: not for a plan to override: the pla",
        ),
        ("arms.aa.overrides", [3], "arms.aa.overrides: a mapping of settings is needed"),
        ("arms.other.recipe", None, "arms.other.recipe: None is not a text"),
        ("baseline", "dr-grpo", r"baseline: no arm is called 'dr-grpo' \(did you mean dr_grpo\?\)"),
        ("seeds", [0, 0], r"seeds: \[0, 0\] names a value twice"),
        ("seeds", 3, "seeds: 3 is not a list"),
        ("budget.steps", 0, "budget.steps: 0 is not an integer of at least 1"),
        ("budget.stpes", 3, r"budget.stpes: unknown key \(did you mean steps\?\)"),
        ("evaluation.temperatures", [0.0], "evaluation.temperatures: 0.0 is not a number above 0"),
        ("judgement.primary", "covrage", r"'covrage' is not one of mean, .*\(did you mean coverage\?\)"),
        ("judgement.outcomes", ["mean"], "judgement.primary: coverage is not among judgement.outcomes"),
        ("judgement.margin", {"coverage": -1}, "judgement.margin.coverage: -1 is not a number above 0"),
        ("judgement.margin", 3, "judgement.margin: 3 is not a mapping of outcomes"),
        (
            "judgement.test",
            "sgin_flip",
            r"judgement.test: 'sgin_flip' is not one of sign_flip, t \(did you mean",
        ),
        ("arms.untrained", {"same_as": "dr_grpo"}, "arms.untrained: every study has it by itself"),
        ("tasks", {"a/b": None}, "tasks: 'a/b' is no name: letters, digits"),
    ],
)
def test_a_wrong_plan_is_refused_by_key(tree, path, value, message):
    change(tree, path, value)
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(tree)
    assert "\n" not in str(caught.value)


def test_a_missing_key_and_a_missing_file_are_named(tree, tmp_path):
    del tree["question"]
    with pytest.raises(UsageError, match="question: a plan must say it"):
        plan_of(tree)
    with pytest.raises(UsageError, match=r"study.plan=.*nowhere.yaml: there is no such file"):
        read_plan(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(UsageError, match=r"broken\.yaml: not YAML in line 2"):
        read_plan(tmp_path / "broken.yaml")


@pytest.mark.parametrize("name", ["smoke", "reduced", "tiny_exploration"])
def test_a_shipped_plan_resolves(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(ROOT / "configs" / "study" / f"{name}.yaml")
    assert not refused_arms(plan)


def test_the_frontier_plan_resolves_but_for_methods_to_come(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(ROOT / "configs" / "study" / "frontier.yaml")
    assert (len(plan.arms), len(plan.tasks), len(plan.seeds)) == (21, 2, 8)
    to_come = {"gapo", "ucpo", "semantic_maxent", "pcmd"}
    assert {name.partition("_entropy")[0] for name in refused_arms(plan)} <= {*to_come, "mode"}
    first = [run.name for run in runs_of(plan)[: 2 * 21]]
    assert {name.rpartition("/")[2] for name in first} == {
        "seed-0"
    }  # whole over arms and tasks before the next
    assert len(set(first)) == 42


def test_the_reduced_plan_is_four_arms_by_eight_seeds():
    plan = read_plan(ROOT / "configs" / "study" / "reduced.yaml")
    assert (len(plan.arms), len(plan.seeds), len(plan.tasks)) == (4, 8, 1)
    assert plan.aa is not None


def test_settings_of_an_arm_win_over_those_of_task_and_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(ROOT / "configs" / "study" / "tiny_exploration.yaml")
    cell = next(
        c for c in runs_of(plan) if c.arm.name == "hot" and c.task.name == "countdown" and c.seed == 3
    )
    config = config_of(plan, cell)
    assert config.training.temperature == 1.2
    assert config.training.max_completion_length == 32
    assert config.training.eval_steps == 50
    assert config.training.max_steps == 200
    assert config.training.seed == 3
    assert config.script.dataset_config == "numbers=4,modes=flat,train_size=192,eval_size=96"


def test_countdown_of_the_overnight_plan_has_that_many_problems():
    from maxent_grpo.tasks.registry import load_rows

    options = "numbers=4,modes=flat,train_size=192,eval_size=96"
    assert len(load_rows("countdown", "train", options)) == 192
    assert len(load_rows("countdown", "eval", options)) == 96
