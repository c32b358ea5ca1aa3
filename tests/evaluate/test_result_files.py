"""The page of completions: everything is there, nothing of it is alive."""

from html.parser import HTMLParser

import pytest

from maxent_grpo.evaluate.result_files import completions_page, printable
from maxent_grpo.evaluate.results import result_of

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202eabc\ud800"


def record(index: int, texts: list[str], scores: list[float], seed: int = 0) -> dict:
    return {
        "seed": seed,
        "dataset_id": "math_500",
        "model_id": "org/<b>m</b>",
        "model_label": "m (<i>grpo</i>)",
        "style": "grpo",
        "temperature": 0.6,
        "num_generations": len(texts),
        "prompt_index": index,
        "prompt": f"problem {index} <script>1</script>",
        "answer": ["1", "2"],
        "generations": texts,
        "answer_extracted": ["<u>1</u>", None],
        "answer_modes": [None, None],
        "mode_count": None,
        "finish_reasons": ["stop", "length"],
        "scores": scores,
    }


class Page(HTMLParser):
    """Tags, and the text of every completion."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.completions: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self.completions.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "pre":
            self.completions[-1] += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(found == tag and attributes.items() <= given.items() for found, given in self.tags)


@pytest.fixture
def records():
    return {
        seed: [record(0, ["fine", HOSTILE], [1.0, 0.0], seed), record(1, ["a", "b"], [0.0, 0.0], seed)]
        for seed in (0, 1)
    }


def page(records, **limits) -> str:
    return completions_page(result_of(records, [1, 2]), records, **limits)


def test_hostile_completions_are_text(records):
    html = page(records)
    found = Page(html)
    assert found.count("script") == found.count("script", nonce="page") == 1
    assert found.count("img") == found.count("b") - found.count("section") == 0
    assert "\x00" not in html
    assert "\x1b" not in html
    assert any(text.startswith("</pre><script>alert(1)</script>") for text in found.completions)
    html.encode()  # no lone surrogates


def test_prompts_can_be_told_apart_by_outcome(records):
    found = Page(page(records))
    assert (
        found.count("article", **{"data-outcome": "some"})
        == found.count("article", **{"data-outcome": "none"})
        == 1
    )
    assert found.count("section", **{"class": "sample right"}) == 2
    assert found.count("section", **{"class": "sample"}) == 6


def test_a_page_that_would_be_too_long_says_what_is_missing(records):
    html = page(records, limit=10)
    assert "The first 1 of 2 prompts are shown" in html
    assert Page(html).count("article") == 1


def test_control_signs_are_made_visible():
    assert printable("a\nb\tc\x00\x7f\x85\udc80") == "a\nb\tc␀␡��"
