"""The evaluation: every model × temperature × seed on one benchmark, resumable prompt by prompt.

Read `run_evaluation` top to bottom: check everything, lock every file, ask what is missing, add up.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maxent_grpo.errors import RunError
from maxent_grpo.evaluate.backends import Backend, open_backend, prompt_fingerprint
from maxent_grpo.evaluate.benchmarks import (
    Benchmark,
    Question,
    content_digest,
    load_questions,
    resolve_benchmark,
)
from maxent_grpo.evaluate.grading import Grader, grader_for
from maxent_grpo.evaluate.records import Answers, Unanswered, graded
from maxent_grpo.evaluate.results import MathEvalResult, result_of
from maxent_grpo.evaluate.settings import (
    DEFAULT_SEEDS,
    ArtifactSettings,
    EvaluationRequest,
    InferenceModelSpec,
)
from maxent_grpo.observe.console import Ticker

FAILED_IN_A_ROW = 32
"""Prompts without an answer after which it is not the prompts that are wrong."""


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
        dataset: a preset of `maxent_grpo.evaluate.benchmarks.PRESETS`, or a name for what ``eval_overrides`` describe.
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
    request = EvaluationRequest(
        models=tuple(specs),
        dataset=dataset,
        eval=dict(eval_overrides or {}),
        seeds=tuple(seeds),
        num_generations=num_generations,
        temperatures=(temperature,) if isinstance(temperature, int | float) else tuple(temperature),
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
    every_question = load_questions(benchmark)
    questions = every_question[: request.limit]
    # Content alone: a file that has moved is the same data, and a limit leaves the rest of it what it is.
    dataset = {"content": "sha256:" + content_digest(every_question)}
    with ExitStack() as stack:
        judges = {id(spec): grader or grader_for(benchmark, spec.grader_policy) for spec in request.models}
        for judge in {id(judge): judge for judge in judges.values()}.values():
            stack.callback(judge.close)
        runs = [
            stack.enter_context(SeedRun(request, benchmark, spec, temperature, seed, questions))
            for spec in request.models
            for temperature in request.temperatures_of(spec)
            for seed in request.seeds
        ]  # all files are locked before one is read, so that nothing is touched by half
        backends = {
            id(spec): open_backend(spec, spec.system_prompt_or(benchmark.system_prompt))
            for spec in request.models
        }
        for run in runs:
            run.resume(dataset, judges[id(run.spec)], backends[id(run.spec)])
        pending = sum(len(run.pending) for run in runs)
        with Ticker(f"{benchmark.dataset_id}", pending, enabled=progress and pending > 0) as ticker:
            for spec in request.models:
                own = [run for run in runs if run.spec is spec and run.pending]
                if own:  # else the model is not even loaded
                    with backends[id(spec)] as backend:
                        for run in own:
                            run.answer(backend, judges[id(spec)], ticker.advance)
        return [
            _result(request, [run for run in runs if run.spec is spec and run.temperature == temperature])
            for spec in request.models
            for temperature in request.temperatures_of(spec)
        ]


class SeedRun(Answers):
    """One model at one temperature under one seed, which is one artifact file."""

    def __init__(
        self,
        request: EvaluationRequest,
        benchmark: Benchmark,
        spec: InferenceModelSpec,
        temperature: float,
        seed: int,
        questions: Sequence[Question],
    ) -> None:
        folder = Path(spec.folder, benchmark.dataset_id, temperature_folder(temperature))
        path = Path(request.artifacts.root_dir) / folder / f"seed_{seed}.jsonl"
        super().__init__(path if request.artifacts.enabled else None)
        self.spec, self.temperature, self.seed = spec, temperature, seed
        self.questions = questions  # those that are asked for, all of them
        self.errors: dict[int, str] = {}  # those without an answer, and why
        self._request, self._benchmark = request, benchmark
        self._samples = request.samples_of(spec)
        self._system_prompt = spec.system_prompt_or(benchmark.system_prompt)

    @property
    def pending(self) -> list[Question]:
        """The questions without an answer."""
        return [question for question in self.questions if question.index not in self.records]

    def resume(self, dataset: Mapping[str, Any], grader: Grader, backend: Backend) -> None:
        """Take the answers of an earlier call, if everything that decides answers and scores is still the same."""
        if self.path is None:
            return
        sampling = {
            "seed": self.seed,
            "temperature": self.temperature,
            "num_generations": self._samples,
            "top_p": self.spec.top_p,
            "max_new_tokens": self.spec.max_new_tokens,
            "stop_sequences": self.spec.stop_sequences,
            **self.spec.generation_kwargs,
        }
        sections = {
            "dataset": dataset,
            "prompt": prompt_fingerprint(self.spec, self._system_prompt),
            "sampling": sampling,
            "grader": grader.fingerprint(),
            **backend.fingerprint(),
        }
        self.load(flatten(sections), self._request.artifacts.resume)

    def answer(self, backend: Backend, grader: Grader, advance: Callable[[int, str], None]) -> None:
        """Ask ``backend`` for everything that is lacking. Each answer is on the disk before it counts."""
        by_index = {question.index: question for question in self.questions}
        answers = backend.sample(
            self.pending, seed=self.seed, temperature=self.temperature, num_generations=self._samples
        )
        in_a_row = 0
        for one in answers:
            if isinstance(one, Unanswered):
                self.errors[one.index] = one.error
                self.write_errors(self.errors)
                advance(1, self._accuracy_so_far())
                in_a_row += 1
                if in_a_row == FAILED_IN_A_ROW:
                    raise RunError(f"{in_a_row} prompts in a row have no answer, the last: {one.error}")
                continue
            in_a_row = 0
            question = by_index[one.index]
            grades = grader.judge(question, one.completions)
            self.append(
                {
                    "dataset_id": self._benchmark.dataset_id,
                    "dataset_name": self._benchmark.dataset_name,
                    "dataset_config": self._benchmark.dataset_config,
                    "split": self._benchmark.split,
                    "model_id": self.spec.model_name_or_path,
                    "model_label": self.spec.name,
                    "style": self.spec.style,
                    "revision": self.spec.revision,
                    "seed": self.seed,
                    "temperature": self.temperature,
                    "num_generations": len(grades),
                    "prompt_index": question.index,
                    "prompt": one.prompt if self._request.artifacts.write_prompts else None,
                    "answer": question.gold,
                    "system_prompt": self._system_prompt,
                    **graded(one, grades, question.mode_count),
                    "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
            advance(1, self._accuracy_so_far())
        self.write_errors(self.errors)

    def _accuracy_so_far(self) -> str:
        records = self.records.values()
        if not records:
            return ""
        first = sum(record["pass_at_1_ok"] for record in records) / len(records)
        any_right = sum(record["pass_at_k_ok"] for record in records) / len(records)
        n = next(iter(records))["num_generations"]
        return f"{self.spec.name} seed {self.seed}  Pass@1 {first:.3f}  Pass@{n} {any_right:.3f}"


def _result(request: EvaluationRequest, runs: Sequence[SeedRun]) -> MathEvalResult:
    """The figures of one model at one temperature over its seeds, of the prompts that have an answer under each.

    Raises `RunError` where none has.
    """
    answered = [q for q in runs[0].questions if all(q.index in run.records for run in runs)]
    errors = {index: error for run in runs for index, error in run.errors.items()}
    if not answered:
        raise RunError(f"{runs[0].spec.name}: no prompt has an answer, {next(iter(errors.values()))}")
    return result_of(
        {run.seed: [run.records[q.index] for q in answered] for run in runs},
        request.ks_of(runs[0].spec),
        errors=errors,
        collect_generations=request.collect_generations,
        artifacts=[run.path for run in runs if run.path is not None],
    )


def temperature_folder(temperature: float) -> str:
    """``temp_0p60``; more digits where two would not say it all."""
    text = f"{temperature:.2f}"
    return "temp_" + (text if float(text) == temperature else repr(temperature)).replace(".", "p")


def flatten(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``{"sampling": {"seed": 0}}`` as ``{"sampling.seed": 0}``, deeper mappings included."""
    flat: dict[str, Any] = {}
    for name, section in sections.items():
        for key, value in section.items():
            if isinstance(value, Mapping):
                flat |= flatten({f"{name}.{key}": value})
            else:
                flat[f"{name}.{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
