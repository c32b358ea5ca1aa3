import re

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.observe.report import SummaryTable, final_numbers, repeat_commands, report_run, write_report
from maxent_grpo.observe.run_files import load_run


def test_a_report_of_a_run_is_one_page_that_needs_nothing_else(make_run):
    run = make_run()
    paths = report_run(run)
    page = paths.html.read_text()
    assert paths.html == run / "report.html"
    assert page.count("data:image/png;base64,") == len(paths.figures) == 8
    assert not re.search(r"""(src|href)=["']?(?!data:)""", re.sub(r"&lt;.*?&gt;", "", page))
    for part in (
        "0123456789abcdef",
        "configs/recipes/tiny.yaml",
        "0.905",
        "coverage@8",
        "train/weight_entropy",
    ):
        assert part in page


def test_completions_are_escaped(make_run):
    page = report_run(make_run()).html.read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in page


def test_labels_and_titles_are_escaped(make_run, tmp_path):
    paths = write_report([("<b>a</b>", make_run())], tmp_path / "out", title="<i>t</i>")
    page = paths.html.read_text()
    assert "<b>a" not in page
    assert "<i>t" not in page


def test_secrets_of_the_configuration_stay_out(make_run):
    page = report_run(make_run()).html.read_text()
    assert "hf_thisisnotforanyone" not in page
    assert "learning_rate: 0.0001" in page


def test_the_page_can_be_made_again_with_equal_bytes(make_run):
    run = make_run(steps=20)
    assert report_run(run).html.read_bytes() == report_run(run).html.read_bytes()


def test_several_runs_get_their_comparison_and_a_given_table(make_run, tmp_path):
    runs = [("Dr.GRPO", make_run("a", collapse=True)), ("MaxEnt", make_run("b", seed=1))]
    table = SummaryTable(("arm", "coverage@8"), (("Dr.GRPO", "0.22"), ("MaxEnt", "0.38")), "Mean of 3 seeds.")
    paths = write_report(runs, tmp_path / "out", "Two arms", table)
    page = paths.html.read_text()
    assert [path.name for path in paths.figures] == ["comparison.png"]
    assert "Mean of 3 seeds." in page
    assert page.index("Dr.GRPO, step 1") < page.index("MaxEnt, step 1")


def test_final_numbers_are_the_last_evaluation_and_the_mean_of_the_last_tenth(make_run):
    run = load_run(make_run(steps=60))
    cells = {row[0]: row[1] for row in final_numbers([("a", run)]).rows}
    assert cells["pass@8, held out"] == "0.910 ± 0.020"
    assert cells["Reward, training"] == f"{run.series('train/reward').values[-6:].mean():.4g}"
    assert cells["τ"] == "0.05"


def test_the_commands_repeat_the_run(make_run):
    run = make_run()
    assert repeat_commands(load_run(run)) == [
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "maxent-grpo command=train-maxent maxent.recipe=configs/recipes/tiny.yaml",
        f"maxent-grpo command=report run={run}",
    ]


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "train/loss": 1}\n'])
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path, content):
    directory = tmp_path / "run"
    with pytest.raises(UsageError, match="no such directory"):
        report_run(directory)
    directory.mkdir()
    if content is not None:
        (directory / "metrics.jsonl").write_text(content)
    with pytest.raises(UsageError, match="give the output_dir of a run") as caught:
        report_run(directory)
    assert "\n" not in str(caught.value)
