import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from maxent_grpo.errors import UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.charts import moved_apart, smooth, smoothing_window
from maxent_grpo.observe.plots import plot_comparison, plot_run
from maxent_grpo.observe.run_files import load_run


def test_a_run_gets_every_figure_that_it_has_data_for(finished_run):
    paths = sorted((finished_run / "plots").iterdir())
    expected = [
        "controllers",
        "divergence",
        "entropy",
        "exploration",
        "lengths",
        "optimisation",
        "reward",
        "time",
    ]
    assert [path.stem for path in paths] == expected
    for path in paths:
        assert imread(path)[..., :3].std() > 0.02  # something was drawn


def test_a_run_with_a_header_alone_gets_no_figure(tmp_path):
    JsonlFile(tmp_path / "metrics.jsonl").append({"step": 0, "run/git_sha": "abc"})
    assert plot_run(tmp_path, tmp_path / "plots") == []
    with pytest.raises(UsageError, match="no metric to compare"):
        plot_comparison([("a", tmp_path)], tmp_path / "c.png")


def test_a_metric_that_is_null_throughout_is_survived(tmp_path):
    log = JsonlFile(tmp_path / "metrics.jsonl")
    log.append({"step": 0, "run/git_sha": "abc"})
    for step in range(1, 20):
        log.append({"step": step, "train/kl": float("nan"), "train/reward": 0.0})
    assert [path.stem for path in plot_run(tmp_path, tmp_path / "p")] == ["reward", "divergence"]


def test_the_comparison_draws_both_runs_in_their_own_colours(make_run, tmp_path):
    runs = [("Dr.GRPO", make_run("a", collapse=True)), ("MaxEnt", make_run("b", seed=1))]
    image = imread(plot_comparison(runs, tmp_path / "comparison.png"))[..., :3]
    for colour in ("#0072B2", "#D55E00"):
        distance = np.abs(image - matplotlib.colors.to_rgb(colour)).max(axis=-1)
        assert (distance < 0.02).sum() > 500


def test_drawing_leaves_no_global_state(make_run, tmp_path):
    before = dict(matplotlib.rcParams)
    plot_run(make_run(steps=5), tmp_path / "p")
    assert dict(matplotlib.rcParams) == before


def test_series_carry_standard_errors_and_nulls(make_run):
    run = load_run(make_run(steps=30))
    series = run.series("eval/coverage_at_8")
    assert series.steps.tolist() == [15, 30]
    assert series.errors.tolist() == [0.011, 0.011]
    assert run.series("train/reward").errors is None
    assert run.last_step == 30


def test_smoothing_keeps_constants_and_lines_and_skips_nan():
    np.testing.assert_allclose(smooth(np.full(20, 3.0), 5), 3.0)
    line = np.arange(20.0)
    np.testing.assert_allclose(smooth(line, 5)[2:-2], line[2:-2])
    np.testing.assert_allclose(smooth(np.array([1.0, np.nan, 3.0]), 3), [1.0, 2.0, 3.0])
    assert smoothing_window(5) == 1
    assert smoothing_window(100) == 11


def test_labels_are_moved_apart_as_little_as_needed():
    assert moved_apart([0.1, 0.9], 0.1) == [0.1, 0.9]
    assert moved_apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    placed = moved_apart([0.52, 0.5, 0.51, 0.9], 0.1)
    assert placed == pytest.approx([0.61, 0.41, 0.51, 0.9])
