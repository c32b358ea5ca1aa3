"""The demo with a language model: what it counts, the page, and the whole of it once on the bundled policy."""

import re

import pytest

from maxent_grpo.cli import demo_llm
from maxent_grpo.cli.demo_llm import Answers, Asked, answers_of, page_text, run_demo_llm, summary
from maxent_grpo.errors import UsageError
from maxent_grpo.models.location import HOME_VARIABLE

LABELS = ("Before training", "A", "B")


def asked(question: str) -> Asked:
    spread = tuple((f"State {i}", 0.05) for i in range(10))
    one = Answers((("California", 1.0),), 1.0)
    return Asked(question, 50, (Answers((("Ohio", 0.25), ("Utah", 0.25)), 0.5), one, Answers(spread, 0.5)))


def test_a_record_becomes_ranked_shares_of_all_samples():
    modes = ["Ohio", None, "Utah", "Ohio", None, "Alaska", "Utah", "Utah"]
    counted = answers_of({"num_generations": 8, "answer_modes": modes})
    assert counted.names == (("Utah", 3 / 8), ("Ohio", 2 / 8), ("Alaska", 1 / 8))
    assert (counted.right, counted.different) == (6 / 8, 3)
    assert answers_of({"num_generations": 2, "answer_modes": [None, None]}) == Answers((), 0.0)


def test_the_summary_averages_over_questions():
    other = Asked(
        "Name one ocean.", 5, (Answers((), 0.0), Answers((), 0.0), Answers((("Pacific", 1.0),), 1.0))
    )
    rows = dict(summary(LABELS, [asked("Name one US state."), other], [other]))
    assert rows["Before training"] == [
        "50% right, 2.0 different",
        "25% right, 1.0 different",
        "0% right, 0.0 different",
    ]
    assert rows["B"] == ["50% right, 10.0 different", "75% right, 5.5 different", "100% right, 1.0 different"]


def test_the_page_ranks_names_counts_the_rest_together_and_escapes_what_it_shows():
    settings = {**demo_llm.DEFAULTS, "model": "m"}
    hostile = asked("<script>alert(1)</script>")
    page = page_text(LABELS, [asked("Name one US state.")], [hostile], settings, "report.html", 4.0)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.search(
        r'2 more</span><span class="bar"><i style="width: 10\.0%"></i></span><span class="share">10 %', page
    )
    names = re.findall(r'<li><span class="name">([^<]+)<', page)
    assert names[:3] == ["Ohio", "Utah", "California"]
    assert len(names) == 2 + 1 + demo_llm.BARS
    assert not re.search(r'(src|href)="(?!report\.html)', page)  # nothing is loaded from elsewhere


def test_a_model_that_was_not_fetched_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UsageError, match="command=fetch-model"):
        run_demo_llm({"output_dir": str(tmp_path / "demo")})
    assert not (tmp_path / "demo").exists()
    with pytest.raises(UsageError, match=r"demo\.samples: 0 is not an integer of at least 1"):
        run_demo_llm({"samples": 0})


@pytest.mark.slow
def test_the_demo_trains_samples_and_shows(tmp_path, capsys):
    run_demo_llm({"steps": 1, "samples": 2, "model": "bundled:tiny-policy", "output_dir": str(tmp_path)})
    said = capsys.readouterr().out
    assert "Name one US state." in said
    page = (tmp_path / "index.html").read_text()
    for label in (demo_llm.BASE, *demo_llm.METHODS):
        assert label in page
    assert "Name one ocean." in page
    assert (tmp_path / "report.html").is_file()
