"""The HTML report: one page that carries everything it shows, made from the files of a run or of several."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maxent_grpo.files import replace_file
from maxent_grpo.observe import names
from maxent_grpo.observe.definitions import definitions
from maxent_grpo.observe.names import is_secret, without_secrets
from maxent_grpo.observe.plots import figure_specs, plot_comparison, plot_run
from maxent_grpo.observe.run_files import Record, RunFiles, load_run

TEMPLATE: Final = Path(__file__).with_name("report.html")
FINAL_SHARE: Final = 0.1  # a final training number is the mean over the last tenth of the logged steps
FINAL_METRICS: Final = (
    (names.REWARD, "Reward, training"),
    (names.PASS, "Pass, training"),
    (names.COVERAGE, "Coverage, training"),
    (names.KL, "KL to the reference, nats per token"),
    (names.TOKEN_ENTROPY, "Token entropy, nats"),
    (names.WEIGHT_ENTROPY, "Weight entropy, nats"),
    (names.TAU, "τ"),
    (names.BETA, "β"),
    (names.TOKENS_PER_SECOND, "Tokens per second"),
)
SAMPLE_GROUPS: Final = 2  # prompts shown of each logged step
COMPARISON_CAPTION: Final = (
    "All runs in each panel, over optimiser steps. Lines are training batches, points held-out prompts with "
    "their standard error. Coverage is the share of the distinct right answers that k completions find."
)


@dataclass(frozen=True)
class SummaryTable:
    """A table to put at the top of a report."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    figures: tuple[Path, ...]


def report_run(run_dir: Path) -> ReportPaths:
    """Write ``report.html`` and ``plots/`` of a run into its directory. Raises `UsageError` for no run."""
    header = load_run(run_dir).header
    objective = header.get("run/objective", "run")
    return write_report([(str(objective), run_dir)], run_dir, title=f"{objective}: {run_dir.resolve().name}")


def write_report(
    runs: Sequence[tuple[str, Path]], out_dir: Path, title: str, table: SummaryTable | None = None
) -> ReportPaths:
    """Write ``out_dir/report.html`` about ``runs`` (label, directory), its figures under ``out_dir/plots``.

    One run gets all its figures, several get their comparison. ``table`` replaces the final numbers.
    Raises `UsageError` where a directory is not that of a run.
    """
    loaded = [(label, load_run(directory)) for label, directory in runs]
    plots = out_dir / "plots"
    figures = (
        plot_run(runs[0][1], plots) if len(runs) == 1 else [plot_comparison(runs, plots / "comparison.png")]
    )
    # Runs that share a label are seeds of one arm: the first speaks for it.
    sampled = {label: run for label, run in reversed(loaded) if run.completions}
    page = render_page(
        TEMPLATE,
        title=title,
        facts=_facts(loaded),
        table=table or final_numbers(loaded),
        images=[_image(path) for path in figures],
        samples=[(label, list(_sample_steps(run))) for label, run in reversed(sampled.items())],
        definitions=_definitions([run for _, run in loaded]),
        configs=[(label, _config_text(run)) for label, run in loaded if run.config is not None],
        commands=[(label, repeat_commands(run)) for label, run in loaded],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    html = out_dir / TEMPLATE.name
    replace_file(html, page)
    return ReportPaths(html, tuple(figures))


def _image(path: Path) -> dict[str, str]:
    """A PNG with what it shows; the comparison is none of a run's figures."""
    shown = {spec.stem: (spec.title, spec.caption) for spec in figure_specs()[0]}
    title, caption = shown.get(path.stem, ("The runs side by side", COMPARISON_CAPTION))
    return {"data": base64.b64encode(path.read_bytes()).decode(), "title": title, "caption": caption}


def render_page(template: Path, **values: Any) -> str:
    """The page that ``template``, a Jinja file, makes of ``values``.

    Completions are hostile text: everything is escaped, and a missing value is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def _facts(runs: Sequence[tuple[str, RunFiles]]) -> SummaryTable:
    """The runs: a row per fact of the headers, a column per run."""
    keys = dict.fromkeys(
        key for _, run in runs for key in without_secrets(run.header) if key.startswith("run/")
    )
    rows = [(_fact_name(key), *(_text(run.header.get(key)) for _, run in runs)) for key in keys]
    rows.append(("steps", *(str(run.last_step) for _, run in runs)))
    rows.append(("directory", *(str(run.directory) for _, run in runs)))
    return SummaryTable(("", *(label for label, _ in runs)), tuple(rows))


def _fact_name(key: str) -> str:
    return key.removeprefix("run/").replace("_", " ").replace("git sha", "git commit")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value if not is_secret(str(item).partition("=")[0]))
    return "–" if value is None else str(value)


def final_numbers(runs: Sequence[tuple[str, RunFiles]]) -> SummaryTable:
    """By run: the last evaluation, and each training metric's mean over the last tenth of the steps."""
    evaluated = dict.fromkeys(
        name
        for _, run in runs
        for name in run.metric_names()
        if name.startswith("eval/") and not name.endswith("_se")
    )
    wanted = [*((name, f"{name.removeprefix('eval/')}, held out") for name in evaluated), *FINAL_METRICS]
    rows = []
    for name, title in wanted:
        cells = [_final(run, name) for _, run in runs]
        if any(cell != "–" for cell in cells):
            rows.append((title.replace("_at_", "@").replace("_", " "), *cells))
    caption = (
        "Held out: the last evaluation ± its standard error. Training: mean over the last tenth of the steps."
    )
    return SummaryTable(("", *(label for label, _ in runs)), tuple(rows), caption)


def _final(run: RunFiles, name: str) -> str:
    from numpy import isfinite

    series = run.series(name)
    finite = series.values[isfinite(series.values)]
    if not len(finite):
        return "–"
    if not name.startswith("eval/"):
        return f"{finite[-max(1, round(FINAL_SHARE * len(finite))) :].mean():.4g}"
    if series.errors is None or not isfinite(series.errors[-1]):
        return f"{finite[-1]:.4g}"
    return f"{series.values[-1]:.3f} ± {series.errors[-1]:.3f}"


def _sample_steps(run: RunFiles) -> Iterator[Mapping[str, Any]]:
    """The first and the last logged step of the sample table, each with its first groups."""
    steps = sorted({row["step"] for row in run.completions})
    for step in dict.fromkeys((steps[0], steps[-1])):
        groups: dict[int, list[Record]] = {}
        for row in run.completions:
            if row["step"] == step:
                groups.setdefault(row["prompt_index"], []).append(row)
        yield {"step": step, "groups": list(groups.values())[:SAMPLE_GROUPS]}


def _definitions(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """(name, meaning) of every logged metric: rewards, objectives, controllers, then evaluation and timing."""
    logged = {name for run in runs for name in run.metric_names()}
    return [
        (metric.name, metric.meaning)
        for metric in definitions()
        if any(metric.pattern.fullmatch(name) for name in logged)
    ]


def _config_text(run: RunFiles) -> str:
    import yaml

    return yaml.safe_dump(without_secrets(run.config or {}), allow_unicode=True, sort_keys=False)


def repeat_commands(run: RunFiles) -> list[str]:
    """The commands that repeat the run, as far as its header tells, and the one that makes the page again."""
    commands = []
    sha, command, recipe = (run.header.get(f"run/{key}") for key in ("git_sha", "command", "recipe_path"))
    if sha and sha != "unknown":
        commands.append(f"git checkout {sha}")
    if command and recipe:
        overrides = _text(run.header.get("run/overrides", []))
        recipe_key = f"{command.removeprefix('train-')}.recipe"
        commands.append(f"maxent-grpo command={command} {recipe_key}={recipe} {overrides}".strip())
    commands.append(f"maxent-grpo command=report run={run.directory}")
    return commands
