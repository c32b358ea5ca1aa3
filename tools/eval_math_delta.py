"""Compare a candidate with a baseline on MATH-500: prints both accuracies; exit code 1 if the candidate lost 0.01.

python tools/eval_math_delta.py --baseline PATH --candidate PATH --runner transformers --dataset math_500.jsonl
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.evaluate.benchmarks import load_questions, resolve_benchmark
from maxent_grpo.evaluate.grading import Grader, grader_for
from maxent_grpo.inference import ArtifactSettings, InferenceModelSpec, run_math_eval_inference

TOLERATED_LOSS = 0.01
"""A candidate that is worse by more than this has failed."""

TOY_PROBLEMS = (("What is 1 + 1?", "2"), ("What is 7 * 6?", "42"), ("What is 9 - 4?", "5"))


@dataclass(frozen=True)
class Delta:
    """Two accuracies: greedy Pass@1 on the same questions."""

    baseline: float
    candidate: float

    @property
    def delta(self) -> float:
        return self.candidate - self.baseline

    @property
    def is_loss(self) -> bool:
        """Worse than tolerated (a hair of rounding aside)."""
        return self.delta < -TOLERATED_LOSS - 1e-12


def compare(
    baseline: str,
    candidate: str,
    runner: Literal["stub", "transformers"],
    dataset: Path | None,
    limit: int,
    seed: int,
    max_new_tokens: int = 768,
    grader: Grader | None = None,
) -> Delta:
    """Evaluate both on the first ``limit`` questions of ``dataset`` (columns as MATH-500's; None: three toy problems).

    ``transformers`` loads both models and decodes greedily. ``stub`` loads none and answers every question with
    its gold in a box: it shows that the data are read and that the grader accepts their golds, which gives 1.0 twice.

    Raises:
        UsageError: as `run_math_eval_inference`.
    """
    with TemporaryDirectory() as folder:
        overrides = {"dataset_name": str(dataset or _toy_file(Path(folder)))}
        if runner == "stub":
            accuracy = _stub_accuracy(overrides, limit, grader)
            return Delta(accuracy, accuracy)
        results = run_math_eval_inference(
            [
                InferenceModelSpec(model, label=label, max_new_tokens=max_new_tokens)
                for model, label in ((baseline, "baseline"), (candidate, "candidate"))
            ],
            eval_overrides=overrides,
            seeds=[seed],
            num_generations=1,
            temperature=0.0,
            limit=limit,
            artifacts=ArtifactSettings(enabled=False),
            grader=grader,
        )
    return Delta(results[0].accuracy, results[1].accuracy)


def _stub_accuracy(overrides: Mapping[str, str], limit: int, grader: Grader | None) -> float:
    benchmark = resolve_benchmark("math_500", overrides)
    questions = load_questions(benchmark)[:limit]
    with closing(grader or grader_for(benchmark)) as judge:
        scores = [judge.judge(question, [f"\\boxed{{{question.gold}}}"])[0].score for question in questions]
    return sum(scores) / len(scores)


def _toy_file(folder: Path) -> Path:
    path = folder / "toy.jsonl"
    rows = [json.dumps({"problem": problem, "answer": answer}) for problem, answer in TOY_PROBLEMS]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--baseline", default="stub-baseline", help="model name or path")
    parser.add_argument("--candidate", default="stub-candidate", help="model name or path")
    parser.add_argument(
        "--runner",
        choices=("stub", "transformers"),
        default="stub",
        help="stub loads no model and answers the gold",
    )
    parser.add_argument(
        "--dataset", type=Path, help="a JSONL file with problem and answer; toy problems without"
    )
    parser.add_argument("--limit", type=int, default=8, help="questions (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=768)
    options = parser.parse_args(arguments)
    try:
        found = compare(
            options.baseline,
            options.candidate,
            options.runner,
            options.dataset,
            options.limit,
            options.seed,
            options.max_new_tokens,
        )
    except (UsageError, RunError) as error:
        print(f"eval_math_delta: {error}", file=sys.stderr)
        return error.exit_code
    print(f"baseline_acc={found.baseline:.4f} candidate_acc={found.candidate:.4f} delta={found.delta:+.4f}")
    return int(found.is_loss)


if __name__ == "__main__":
    sys.exit(main())
