"""``command=math-eval``: read the request, evaluate, show the table and write it beside the artifacts."""

from collections.abc import Mapping
from typing import Any

from maxent_grpo.cli.boundary import show
from maxent_grpo.cli.logs import configure_logging


def evaluate(section: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Carry out the ``inference`` section of a command line.

    Raises:
        UsageError: if the request is wrong, or its artifacts were made with other settings.
        RunError: if the evaluation fails.
    """
    from maxent_grpo.evaluate.settings import read_request

    request = read_request(section)
    configure_logging(environ.get("MAXENT_LOG_LEVEL") or environ.get("MAXENT_GRPO_LOGLEVEL") or "warning")

    from maxent_grpo.evaluate.math_eval import run_evaluation
    from maxent_grpo.evaluate.result_files import results_table, write_results

    results = run_evaluation(request)
    show(results_table(results))
    if request.artifacts.enabled:
        for result in results:
            written = write_results(result)
            show(f"{result.label}, temperature {result.temperature:g}: {', '.join(map(str, written))}")
