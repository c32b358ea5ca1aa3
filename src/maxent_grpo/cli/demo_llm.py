"""The demo with a language model: which US states it names before training, after Dr. GRPO, and where it explores.

Two ordinary runs on ``task:name_one``, side by side, then an ordinary evaluation of three policies on the questions of
training and on others, and a page that shows the answers.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maxent_grpo.cli.demo import checked, launch, show_table, watch_to_the_end
from maxent_grpo.config.shipped import shipped
from maxent_grpo.evaluate.benchmarks import Question, load_questions, resolve_benchmark
from maxent_grpo.evaluate.math_eval import run_evaluation
from maxent_grpo.evaluate.records import Record, read_records
from maxent_grpo.evaluate.settings import ArtifactSettings, EvaluationRequest, InferenceModelSpec
from maxent_grpo.files import replace_file
from maxent_grpo.models.location import model_location
from maxent_grpo.observe.report import render_page, write_report

RECIPE = "configs/recipes/SmolLM2-135M-Instruct/grpo/config_name_one.yaml"
BASE = "Before training"
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Dr. GRPO": ("train-baseline", "grpo", {}),
    "Dr. GRPO + mode entropy": (
        "train-maxent",
        "mode-entropy",
        {
            "training.objective": "mode_entropy",
            "training.train_grpo_objective": False,
            "training.maxent_tau": 0.5,
        },
    ),
}
"""Label → command, folder of its run, what it sets otherwise than the recipe."""

DEFAULTS: dict[str, Any] = {
    "steps": 30,
    "seed": 0,
    "samples": 64,
    "model": "bundled:smollm2-135m-instruct",
    "output_dir": "var/demo-llm",
}
KINDS = "kinds=lists"
SHOWN_QUESTION = "Name one US state."
BARS: Final = 8
"""Names with a bar of their own; the rest are counted together."""
TEMPLATE: Final = Path(__file__).with_name("demo_llm.html")


@dataclass(frozen=True)
class Answers:
    """What one policy answered to one question, n times."""

    names: tuple[
        tuple[str, float], ...
    ]  # right answers and their share of all samples, the most frequent first
    right: float  # share of right samples

    @property
    def different(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Asked:
    """A question and every policy's answers to it, in the order of the labels."""

    question: str
    possible: int  # right answers that there are
    answers: tuple[Answers, ...]


def run_demo_llm(options: Mapping[str, Any]) -> None:
    """Train, sample, and write the page.

    ``options``: ``steps`` (30), ``seed`` (0), ``samples`` of each question (64), ``model``
    (bundled:smollm2-135m-instruct), ``output_dir`` (var/demo-llm, whose earlier demo is replaced).
    Raises `UsageError` on an unknown option or a model that was not fetched, and `RunError` if a run fails.
    """
    settings = checked(DEFAULTS, options)
    directory, steps, model = Path(str(settings["output_dir"])), settings["steps"], str(settings["model"])
    model_location(model)  # says how to fetch it, before anything starts
    print(
        f"1/2 training {model} on questions such as '{SHOWN_QUESTION}': {' and '.join(METHODS)}, side by side, {steps} "
        f"steps each, same prompts and seed; needs 6 GB of memory. Files: {directory}/",
        flush=True,
    )
    started = time.monotonic()
    runs = [
        launch(
            label,
            directory / folder,
            {
                "command": command,
                f"{command.removeprefix('train-')}.recipe": shipped(RECIPE),
                "model.model_name_or_path": model,
                "training.eval_strategy": "no",
                "training.max_steps": steps,
                "training.seed": settings["seed"],
                **own,
            },
            share=1 / len(METHODS),
        )
        for label, (command, folder, own) in METHODS.items()
    ]
    watch_to_the_end(runs, steps)
    print(f"2/2 sampling {settings['samples']} answers to each question from three policies", flush=True)
    policies = {BASE: model} | {run.label: str(run.directory) for run in runs}
    trained, held_out = (
        sampled(policies, split, settings["samples"], directory) for split in ("train", "eval")
    )
    report = write_report(
        [(run.label, run.directory) for run in runs], directory, title="Name one …: how the two runs went"
    )
    page = directory / "index.html"
    minutes = (time.monotonic() - started) / 60
    replace_file(page, page_text(list(policies), trained, held_out, settings, report.html.name, minutes))
    columns = ("policy", SHOWN_QUESTION, "questions of training", "other questions")
    rows = [(label, *cells) for label, cells in summary(list(policies), trained, held_out)]
    show_table(
        columns, rows, f"Right samples, and different right answers in {settings['samples']}. One seed."
    )
    print(f"page    {page}  ({minutes:.0f} minutes in all)")


def sampled(policies: Mapping[str, str], split: str, samples: int, directory: Path) -> list[Asked]:
    """The answers of all policies (label → model) to the questions of a split; US states first."""
    benchmark = {"dataset_config": KINDS, "split": split, "dataset_id": f"name_one_{split}"}
    specs = [
        InferenceModelSpec(name, label=label, max_new_tokens=8, top_p=1.0, batch_size=16)
        for label, name in policies.items()
    ]
    request = EvaluationRequest(
        tuple(specs),
        dataset="name_one",
        eval=benchmark,
        seeds=(0,),
        num_generations=samples,
        temperatures=(1.0,),
        artifacts=ArtifactSettings(root_dir=str(directory / "answers"), resume=False),
    )
    records = [read_records(result.artifacts[0]) for result in run_evaluation(request)]
    questions = load_questions(resolve_benchmark("name_one", benchmark))
    asked = [asked_of(question, [found[question.index] for found in records]) for question in questions]
    return sorted(asked, key=lambda one: (one.question != SHOWN_QUESTION, one.question))


def asked_of(question: Question, records: Sequence[Record]) -> Asked:
    """``question`` with what each policy's record says of it."""
    return Asked(question.text, question.mode_count or 0, tuple(answers_of(record) for record in records))


def answers_of(record: Record) -> Answers:
    """The right answers of an evaluation's record, counted; ties in alphabetical order."""
    total = record["num_generations"]
    counted = Counter(mode for mode in record["answer_modes"] if mode is not None)
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return Answers(tuple((name, count / total) for name, count in ranked), counted.total() / total)


def summary(
    labels: Sequence[str], trained: Sequence[Asked], held_out: Sequence[Asked]
) -> list[tuple[str, list[str]]]:
    """Label → share of right samples and different right answers: of the first question, of each split on average."""
    rows = []
    for i, label in enumerate(labels):
        groups = [[one.answers[i] for one in asked] for asked in (trained[:1], trained, held_out)]
        rows.append(
            (label, [f"{_mean_right(g):.0%} right, {_mean_different(g):.1f} different" for g in groups])
        )
    return rows


def page_text(
    labels: Sequence[str],
    trained: Sequence[Asked],
    held_out: Sequence[Asked],
    settings: Mapping[str, Any],
    report: str,
    minutes: float,
) -> str:
    """The page. Its first picture: what each policy answers to the first question, as ranked bars."""
    first = trained[0]
    widest = max((share for one in first.answers for _, share in one.names), default=1.0)
    widest = max(widest, *(1 - one.right for one in first.answers))
    panels = [
        {
            "label": label,
            "right": one.right,
            "different": one.different,
            "bars": one.names[:BARS],
            "more": len(one.names[BARS:]),
            "more_share": sum(share for _, share in one.names[BARS:]),
            "wrong": 1 - one.right,
        }
        for label, one in zip(labels, first.answers, strict=True)
    ]
    tables = [
        _table("Questions that no run has seen", "Neither run was trained on these.", held_out),
        _table("The questions of training", "Both runs were trained on these eight.", trained),
    ]
    return render_page(
        TEMPLATE,
        question=first.question,
        possible=first.possible,
        labels=labels,
        panels=panels,
        widest=widest,
        tables=tables,
        settings=settings,
        report=report,
        minutes=minutes,
        commands=[
            f"maxent-grpo command=demo-llm demo.steps={settings['steps']} demo.seed={settings['seed']}"
        ],
    )


def _table(title: str, says: str, asked: Sequence[Asked]) -> dict[str, Any]:
    """The rows of a table: the average over the questions, then each of them."""
    columns = list(zip(*(one.answers for one in asked), strict=True))
    average = [{"right": _mean_right(c), "different": f"{_mean_different(c):.1f}"} for c in columns]
    rows = [{"question": "All of them, on average", "cells": average, "mean": True}]
    for one in asked:
        cells = [{"right": a.right, "different": f"{a.different}"} for a in one.answers]
        rows.append({"question": one.question, "cells": cells, "mean": False})
    return {"title": title, "says": says, "rows": rows}


def _mean_right(answers: Sequence[Answers]) -> float:
    return sum(one.right for one in answers) / len(answers)


def _mean_different(answers: Sequence[Answers]) -> float:
    return sum(one.different for one in answers) / len(answers)
