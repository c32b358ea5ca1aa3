import json
import re
from html.parser import HTMLParser

import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.report import SummaryTable, final_numbers, repeat_commands, report_run, write_report
from maxent_grpo.observe.run_files import load_run


class Attributes(HTMLParser):
    """Every tag and every (tag, attribute, value) of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.found: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [(tag, name, value or "") for name, value in attrs]


def test_a_report_of_a_run_is_one_page_that_needs_nothing_else(finished_run):
    page = (finished_run / "report.html").read_text()
    sources = [value for _, name, value in Attributes(page).found if name in ("src", "href")]
    assert len(sources) == len(list((finished_run / "plots").glob("*.png"))) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for part in (
        "0123456789abcdef",
        "configs/recipes/tiny.yaml",
        "0.910",
        "coverage@8",
        "train/weight_entropy",
    ):
        assert part in page


def test_every_metric_of_a_run_that_objectives_controllers_or_evaluation_own_is_defined(finished_run):
    page = (finished_run / "report.html").read_text()
    defined = set(re.findall(r"<dt><code>(.*?)</code></dt>", page))
    expected = ["train/kl", "train/weight_entropy", "train/tau", "train/beta", "train/coverage", "tokens/s"]
    assert set(expected) <= defined
    assert "eval/coverage_at_&lt;k&gt;" in defined
    assert "train/ratio/max" not in defined  # not logged by this run


def test_completions_are_escaped(finished_run):
    page = (finished_run / "report.html").read_text()
    parsed = Attributes(page)
    assert "script" not in parsed.tags
    assert not [name for _, name, _ in parsed.found if name.startswith("on")]
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in page


def test_a_lone_surrogate_in_a_completion_is_shown_as_an_escape(make_run):
    run = make_run("surrogate")
    path = run / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    JsonlFile(path).cut_back(-1)
    for row in rows:
        JsonlFile(path).append(row | {"completion": "before \ud800 after"})
    report_run(run)
    assert "before \\ud800 after" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("contents", [b"{", b"\xff", b"a: b: c"])
def test_a_damaged_configuration_is_named(make_run, contents):
    run = make_run("damaged")
    (run / "resolved_config.yaml").write_bytes(contents)
    with pytest.raises(UsageError, match=r"resolved_config.yaml: .*restore the file that the run wrote"):
        report_run(run)


def test_labels_and_titles_are_escaped(make_run, tmp_path):
    paths = write_report([("<b>a</b>", make_run(steps=1))], tmp_path / "out", title="<i>t</i>")
    assert not {"b", "i"} & Attributes(paths.html.read_text()).tags


def test_secrets_of_the_configuration_stay_out(finished_run):
    page = (finished_run / "report.html").read_text()
    assert "hf_thisisnotforanyone" not in page
    assert "learning_rate: 0.0001" in page


def test_the_page_can_be_made_again_with_equal_bytes(finished_run):
    before = (finished_run / "report.html").read_bytes()
    assert report_run(finished_run).html.read_bytes() == before


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
    run = make_run(steps=1)
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
