"""The facts of a recipe that a launcher needs before anything starts. The trainer checks the rest, and all of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maxent_grpo.config.recipe import Unread, read_recipe
from maxent_grpo.config.trl_settings import TRL_DEFAULTS
from maxent_grpo.errors import UsageError
from maxent_grpo.launch.allocation import Sampling
from maxent_grpo.launch.flags import Values, flag_value
from maxent_grpo.objectives.catalog import CATALOG, find_objective

TASKS = {
    "grpo": ("grpo", "maxent_grpo.grpo"),
    "maxent": ("maxent-grpo", "maxent_grpo.maxent_grpo"),
    "maxent-grpo": ("maxent-grpo", "maxent_grpo.maxent_grpo"),
    "infoseed": ("infoseed", "maxent_grpo.infoseed"),
    "info-seed": ("infoseed", "maxent_grpo.infoseed"),
}
"""``--task`` → folder of its recipes, module that trains it."""


@dataclass(frozen=True)
class RecipeFacts:
    """The settings that decide what a job starts, after the trainer's own flags."""

    path: Path
    model: str
    revision: str | None
    output_dir: Path
    sampling: Sampling
    server: str | None
    """Address of a server that somebody else runs; None: the job starts its own where it needs one."""
    accumulation: int
    native: bool | None = None
    """Whether this package's loop trains, as the settings say; None: as the task implies."""
    syncs_weights: bool = True
    """Whether the trainer sends its weights to the server."""


def chosen_recipe(values: Values, root: Path) -> Path:
    """The recipe that is named, or ``configs/recipes/MODEL/TASKDIR/config_CONFIG.yaml``.

    Raises `UsageError` where there is none, or two are named.
    """
    task = values.text("task")
    if task not in TASKS:
        raise UsageError(f"--task {task}: one of {', '.join(TASKS)}")
    typed = [f"--{name}" for name in ("model", "config") if values.sources[name] == f"--{name}"]
    named = values["recipe"]
    if named is not None and values.sources["recipe"] == "--recipe" and typed:
        raise UsageError(f"--recipe and {typed[0]} both name a recipe: keep one")
    if named is not None and not typed:
        if not Path(named).is_file():
            raise UsageError(f"{values.sources['recipe']}={named}: there is no such recipe")
        return Path(named)
    recipes = root / "configs" / "recipes"
    path = recipes / values.text("model") / TASKS[task][0] / f"config_{values.text('config')}.yaml"
    if not path.is_file():
        there = sorted(str(p.relative_to(recipes)) for p in recipes.glob("*/*/config_*.yaml"))
        raise UsageError(f"{path}: there is no such recipe; there are {', '.join(there) or 'none'}")
    return path


def read_facts(path: Path, words: Sequence[str], mode: str | None = None) -> RecipeFacts:
    """The facts of the recipe at ``path``, with the trainer's flags ``words`` on top.

    Args:
        mode: VLLM_MODE, which the recipe's ``vllm_mode`` gives way to.

    Raises:
        UsageError: for a file that is no recipe, or one that names no model or no output directory.
    """
    ignore = flag_value(words, "unknown_keys") == "ignore"
    sections, _ = read_recipe(path, str(path), Unread(), ignore=ignore)
    settings = {name: value for section in sections.values() for name, value in section.items()}

    def value(name: str) -> str | None:
        given = flag_value(words, name)
        return given if given is not None else None if settings.get(name) is None else str(settings[name])

    model, output_dir = value("model_name_or_path"), value("output_dir")
    if model is None or output_dir is None:
        raise UsageError(f"{path}: a recipe must set model_name_or_path and output_dir")
    sampling: Sampling = "in-process"
    server = None
    if (value("use_vllm") or "false").lower() == "true":
        chosen = flag_value(words, "vllm_mode") or mode or value("vllm_mode") or TRL_DEFAULTS["vllm_mode"]
        if chosen not in ("server", "colocate"):
            raise UsageError(f"vllm_mode={chosen}: server or colocate")
        sampling = "server" if chosen == "server" else "colocate"
    if sampling == "server":
        host, port = flag_value(words, "vllm_server_host"), value("vllm_server_port")
        named = f"http://{host}:{port or 8000}" if host else None
        server = value("vllm_server_base_url") or value("vllm_url") or named
    accumulation = int(value("gradient_accumulation_steps") or 1)
    revision = value("model_revision")
    syncs = (value("vllm_sync_weights") or "true").lower() != "false" and value(
        "vllm_sync_interval_steps"
    ) != "0"
    native = _trains_natively(value)
    return RecipeFacts(path, model, revision, Path(output_dir), sampling, server, accumulation, native, syncs)


def _trains_natively(value: Callable[[str], str | None]) -> bool | None:
    """See `RecipeFacts.native`. The rule is that of `config.loading.route_of`."""
    flags = ("info_seed_enabled", "force_custom_loop", "controller_meta_enabled")
    if any((value(name) or "").lower() == "true" for name in flags) or value("driver") not in (
        None,
        "inline",
    ):
        return True
    grpo, objective = value("train_grpo_objective"), value("objective")
    if grpo is not None:
        return grpo.lower() == "false"
    return find_objective(objective).is_maxent if objective in CATALOG else None
