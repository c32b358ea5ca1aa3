"""The evaluation: every model × temperature × seed on one benchmark, resumable prompt by prompt.

Read `run_evaluation` top to bottom: check everything, lock every file, ask what is missing, add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maxent_grpo.evaluate.artifacts import AnswerFile, Answers, AnswersInMemory
from maxent_grpo.evaluate.backends import open_backend
from maxent_grpo.evaluate.fingerprint import fingerprint_of, model_fingerprint
from maxent_grpo.evaluate.grading import Grader, grader_for
from maxent_grpo.evaluate.presets import Benchmark, resolve_benchmark
from maxent_grpo.evaluate.prompting import prompt_fingerprint, system_prompt_of
from maxent_grpo.evaluate.questions import Question, content_digest, load_questions
from maxent_grpo.evaluate.records import record_of
from maxent_grpo.evaluate.results import MathEvalResult, result_of
from maxent_grpo.evaluate.settings import (
    DEFAULT_SEEDS,
    ArtifactSettings,
    EvaluationRequest,
    InferenceModelSpec,
    temperature_folder,
)
from maxent_grpo.observe.console import Ticker


def run_math_eval_inference(
    specs: Sequence[InferenceModelSpec],
    *,
    dataset: str = "math_500",
    eval_overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    num_generations: int = 8,
    temperature: float | Sequence[float] = 0.6,
    ks: Sequence[int] | None = None,
    limit: int | None = None,
    collect_generations: bool = False,
    artifacts: ArtifactSettings | None = None,
    grader: Grader | None = None,
    progress: bool = True,
) -> list[MathEvalResult]:
    """Evaluate models on a benchmark; one result per model and temperature, in the order given.

    Args:
        dataset: a preset of `maxent_grpo.evaluate.presets.PRESETS`, or a name for what ``eval_overrides`` describe.
        eval_overrides: fields of the benchmark to replace: ``dataset_name`` (a local file, for instance), columns.
        seeds: one set of samples per seed; figures are averaged over them.
        num_generations: samples per prompt and seed, each drawn on its own.
        temperature: one or several.
        ks: the k of pass@k and its relatives; 1, 2, 4, … and ``num_generations`` by default.
        limit: the first prompts only. A later call without it goes on from their answers.
        collect_generations: return the texts with the results.
        artifacts: where answers are kept and whether they are reused.
        grader: judges completions in place of the benchmark's own grader.
        progress: report to stderr.

    Raises:
        UsageError: a request that cannot be carried out, or artifacts that were made with other settings.
        RunError: the hub or an endpoint cannot be reached, or another process writes the same artifacts.
    """
    temperatures = (temperature,) if isinstance(temperature, int | float) else tuple(temperature)
    request = EvaluationRequest(
        models=tuple(specs),
        dataset=dataset,
        eval=dict(eval_overrides or {}),
        seeds=tuple(seeds),
        num_generations=num_generations,
        temperatures=temperatures,
        ks=None if ks is None else tuple(ks),
        limit=limit,
        collect_generations=collect_generations,
        artifacts=artifacts or ArtifactSettings(),
    )
    return run_evaluation(request, grader=grader, progress=progress)


def run_evaluation(
    request: EvaluationRequest, *, grader: Grader | None = None, progress: bool = True
) -> list[MathEvalResult]:
    """Carry out ``request``; see `run_math_eval_inference`."""
    request.check()
    benchmark = resolve_benchmark(request.dataset, request.eval)
    questions = load_questions(benchmark)
    judge = grader or grader_for(benchmark)
    plan = Plan(request, benchmark, questions, judge)
    with closing(judge), plan.opened_cells() as cells:
        pending = sum(len(cell.pending) for cell in cells)
        with Ticker(f"{benchmark.dataset_id}", pending, enabled=progress and pending > 0) as ticker:
            for spec in request.models:
                own = [cell for cell in cells if cell.spec is spec and cell.pending]
                if own:  # else the model is not even loaded
                    plan.answer(spec, own, ticker.advance)
        return [plan.result(spec, temperature, cells) for spec, temperature in plan.arms]


@dataclass
class Cell:
    """One artifact file: one model at one temperature under one seed."""

    spec: InferenceModelSpec
    temperature: float
    seed: int
    answers: Answers
    questions: Sequence[Question]  # those that are asked for, all of them
    path: Path | None

    @property
    def pending(self) -> list[Question]:
        """The questions without an answer."""
        return [question for question in self.questions if question.index not in self.answers.records]

    def accuracy_so_far(self) -> str:
        """Pass@1 and Pass@n of the answers there are, in words."""
        records = self.answers.records.values()
        first = sum(record["pass_at_1_ok"] for record in records) / len(records)
        any_right = sum(record["pass_at_k_ok"] for record in records) / len(records)
        n = next(iter(records))["num_generations"]
        return f"{self.spec.name} seed {self.seed}  Pass@1 {first:.3f}  Pass@{n} {any_right:.3f}"


@dataclass(frozen=True)
class Plan:
    """A checked request with its benchmark loaded."""

    request: EvaluationRequest
    benchmark: Benchmark
    all_questions: Sequence[Question]
    grader: Grader

    @property
    def questions(self) -> Sequence[Question]:
        """Those within the limit."""
        return self.all_questions[: self.request.limit]

    @property
    def arms(self) -> list[tuple[InferenceModelSpec, float]]:
        """What gets a result each."""
        return [(spec, t) for spec in self.request.models for t in self.request.temperatures_of(spec)]

    def folder(self, spec: InferenceModelSpec, temperature: float) -> Path:
        """Where the artifacts of one result lie."""
        root = Path(self.request.artifacts.root_dir)
        return root / spec.folder / self.benchmark.dataset_id / temperature_folder(temperature)

    @contextmanager
    def opened_cells(self) -> Iterator[list[Cell]]:
        """All files of the evaluation, locked first and read then, so that nothing is touched by half."""
        settings = self.request.artifacts
        with ExitStack() as stack:
            cells = []
            for spec, temperature in self.arms:
                for seed in self.request.seeds:
                    answers: Answers = AnswersInMemory()
                    path = None
                    if settings.enabled:
                        path = self.folder(spec, temperature) / f"seed_{seed}.jsonl"
                        answers = stack.enter_context(AnswerFile(path))
                    cells.append(Cell(spec, temperature, seed, answers, self.questions, path))
            for cell in cells:
                if isinstance(cell.answers, AnswerFile):
                    cell.answers.load(self._fingerprint(cell), settings.resume)
            yield cells

    def answer(
        self, spec: InferenceModelSpec, cells: Sequence[Cell], advance: Callable[[int, str], None]
    ) -> None:
        """Ask one model for everything that its ``cells`` lack. Each answer is on the disk before it counts."""
        system_prompt = system_prompt_of(spec, self.benchmark.system_prompt)
        by_index = {question.index: question for question in self.questions}
        with open_backend(spec, system_prompt) as backend:
            for cell in cells:
                for sampled in backend.sample(
                    cell.pending,
                    seed=cell.seed,
                    temperature=cell.temperature,
                    num_generations=self.request.samples_of(spec),
                ):
                    question = by_index[sampled.index]
                    record = record_of(
                        self.benchmark,
                        spec,
                        cell.seed,
                        cell.temperature,
                        question,
                        sampled,
                        self.grader.judge(question, sampled.completions),
                        system_prompt=system_prompt,
                        write_prompt=self.request.artifacts.write_prompts,
                    )
                    cell.answers.append(record)
                    advance(1, cell.accuracy_so_far())

    def result(self, spec: InferenceModelSpec, temperature: float, cells: Sequence[Cell]) -> MathEvalResult:
        """The figures of one model at one temperature over its seeds."""
        own = [cell for cell in cells if cell.spec is spec and cell.temperature == temperature]
        return result_of(
            {cell.seed: [cell.answers.records[q.index] for q in cell.questions] for cell in own},
            self.request.ks_of(spec),
            collect_generations=self.request.collect_generations,
            artifacts=[cell.path for cell in own if cell.path is not None],
        )

    @cached_property
    def _dataset_fingerprint(self) -> dict[str, Any]:
        # Content alone: a file that has moved is the same data, and a limit leaves the rest of it what it is.
        return {"content": "sha256:" + content_digest(self.all_questions)}

    @cached_property
    def _model_fingerprints(self) -> dict[int, dict[str, Any]]:
        return {id(spec): model_fingerprint(spec) for spec in self.request.models}

    def _fingerprint(self, cell: Cell) -> dict[str, Any]:
        return fingerprint_of(
            cell.spec,
            self._model_fingerprints[id(cell.spec)],
            self._dataset_fingerprint,
            prompt_fingerprint(cell.spec, system_prompt_of(cell.spec, self.benchmark.system_prompt)),
            self.grader.fingerprint(),
            seed=cell.seed,
            temperature=cell.temperature,
            num_generations=self.request.samples_of(cell.spec),
        )
