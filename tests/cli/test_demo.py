"""The demo for real, at two steps: two runs side by side, a table, a plot and a page."""

import pytest

from maxent_grpo.cli import demo
from maxent_grpo.errors import RunError, UsageError


@pytest.mark.slow
def test_the_demo_trains_both_methods_and_compares_them(tmp_path, capsys):
    demo.run_demo({"steps": 2, "seed": 1, "output_dir": str(tmp_path / "demo")})
    out = capsys.readouterr().out
    assert "mean@8" in out
    assert "coverage@8" in out
    for method in ("Dr. GRPO", "MaxEnt-GRPO"):
        assert sum(line.strip().startswith(method) for line in out.splitlines() if "before" in line) == 1
        assert sum(line.strip().startswith(method) for line in out.splitlines() if "after" in line) == 1
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Dr. GRPO against MaxEnt-GRPO" in page
    assert (tmp_path / "demo" / "plots" / "comparison.png").stat().st_size > 10_000
    starts = [
        (tmp_path / "demo" / arm / "metrics.jsonl").read_text().splitlines()[1]
        for arm in ("grpo", "maxent-grpo")
    ]
    assert starts[0] == starts[1]  # the same policy, prompts and draws before the first step


def test_a_failing_arm_is_told_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "METHODS", {"Dr. GRPO": ("train-nowhere", "grpo")})
    with pytest.raises(RunError, match=r"Dr\. GRPO failed: .*Unsupported command: train-nowhere.*train\.log"):
        demo.run_demo({"steps": 2, "output_dir": str(tmp_path / "demo")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stps": 2}, r"demo\.stps: unknown; the demo takes demo\.steps"),
        ({"steps": 0}, r"demo\.steps: 0 is not an integer of at least 1"),
        ({"seed": "x"}, r"demo\.seed: 'x' is not an integer"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        demo.run_demo(options)
