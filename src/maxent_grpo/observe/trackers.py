"""TensorBoard, Weights & Biases and Trackio, through Accelerate's trackers: readers of the same records.

W&B and Trackio work without a network (``WANDB_MODE=offline``; Trackio is local unless told otherwise).
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from maxent_grpo.errors import UsageError
from maxent_grpo.files import escaped
from maxent_grpo.observe.names import without_secrets

if TYPE_CHECKING:
    from accelerate import Accelerator

SUPPORTED: Final = ("tensorboard", "wandb", "trackio")
DEFAULT_PROJECT: Final = "maxent-grpo"
DEFAULT_WANDB_DIR: Final = "var/artifacts/wandb"
TABLE_ROWS: Final = 4  # of a step in the W&B table; completions.jsonl has them all


class Trackers:
    """The trackers named by ``report_to``, started on construction; only the first process logs.

    TensorBoard writes under ``output_dir/tensorboard/<project>``. The project is ``project``, else
    ``WANDB_PROJECT``, else "maxent-grpo"; W&B writes under ``WANDB_DIR``, else ``var/artifacts/wandb``, and
    is left out where ``WANDB_MODE`` is "disabled". ``run_config`` is passed on flattened and without its
    secrets.

    Raises `UsageError` for a tracker that is unknown or whose package is missing.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        report_to: Sequence[str],
        run_name: str,
        output_dir: Path,
        run_config: Mapping[str, Any],
        project: str | None = None,
        wandb_entity: str | None = None,
        wandb_group: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._accelerator = accelerator
        self._names = tracker_names(report_to, environ)
        if not self._names:
            return
        from accelerate.tracking import filter_trackers

        # The accelerator exists before the run's directory does, so that it could not be told of either.
        logging_dir = str(output_dir / "tensorboard")
        accelerator.project_configuration.logging_dir = logging_dir
        accelerator.log_with = filter_trackers(list(self._names), logging_dir)
        accelerator.init_trackers(
            project or environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            config=flat_config(without_secrets(run_config)),
            init_kwargs={
                "wandb": {
                    "name": run_name,
                    "entity": wandb_entity,
                    "group": wandb_group,
                    "dir": _wandb_dir(environ) if "wandb" in self._names else None,
                },
                "trackio": {"name": run_name, "group": wandb_group},
            },
        )

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Log the numbers of ``values`` at ``step``; what is None was not measured and is left out."""
        if self._names:
            self._accelerator.log(
                {name: value for name, value in values.items() if value is not None}, step=step
            )

    def log_completions(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """The first rows of a step's sample table (`run_files.sample_rows`) as the W&B table ``completions``."""
        if "wandb" not in self._names or not rows:
            return
        rewards = list(rows[0]["rewards"])
        shown = ("prompt", "completion", "advantage", "weight")
        columns = ["step", *shown, *(f"reward/{name}" for name in rewards)]
        data = [
            [step, *escaped([row[key] for key in shown]), *(row["rewards"][name] for name in rewards)]
            for row in rows[:TABLE_ROWS]
        ]
        self._accelerator.get_tracker("wandb").log_table("completions", columns=columns, data=data, step=step)

    def finish(self) -> None:
        """Close the trackers. Accelerate ends the process group too: a run's last call, on every rank."""
        if self._names:
            self._accelerator.end_training()


def tracker_names(report_to: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The trackers to start: ``report_to`` without "none", and without W&B under ``WANDB_MODE=disabled``.

    Raises `UsageError` for a name that is not supported or whose package is missing: before anything
    expensive starts.
    """
    chosen = []
    for name in report_to:
        if name == "none" or (name == "wandb" and environ.get("WANDB_MODE") == "disabled"):
            continue
        if name not in SUPPORTED:
            raise UsageError(
                f"report_to: unknown tracker {name!r}; choose from {', '.join(SUPPORTED)} or none"
            )
        package = importlib.util.find_spec(name)
        # A directory ./wandb that an earlier run left is found as a package without an origin.
        if package is None or package.origin is None:
            raise UsageError(f"report_to: {name} needs the package {name}: pip install 'maxent-grpo[{name}]'")
        chosen.append(name)
    return tuple(dict.fromkeys(chosen))


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str | None]:
    """Nested settings as ``outer.inner`` keys with scalars, lists as JSON: all that TensorBoard can take."""
    flat: dict[str, bool | int | float | str | None] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flat_config(value, f"{prefix}{key}."))
        elif value is None or isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
    return flat


def _wandb_dir(environ: Mapping[str, str]) -> str:
    directory = Path(environ.get("WANDB_DIR") or DEFAULT_WANDB_DIR)
    directory.mkdir(parents=True, exist_ok=True)  # W&B goes to the temporary directory where it is missing
    return str(directory)
