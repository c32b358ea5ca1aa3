"""The bundled tiny policy: where its files are, and the command that rebuilds them.

It answers the tasks imperfectly on purpose. On graph colouring one completion of eight is nearly always right
and most are wrong: there, reinforcement learning helps and diversity can collapse.
"""

import argparse
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maxent_grpo.tasks.warm_start import Quality

DEFAULT_STEPS = 600
DEFAULT_SEED = 0
THREADS = 1  # the files must not depend on the number of cores, and matrices as small as these gain little from more

REPORTED = {
    "graph colouring": ("graph_coloring", "eval", ""),
    "countdown, 3 numbers": ("countdown", "eval", "numbers=3"),
    "arithmetic": ("arithmetic", "eval", ""),
    "divisors": ("divisors", "eval", ""),
    "equations": ("equations", "eval", ""),
    "lattice paths": ("lattice_paths", "eval", ""),
}
"""Label → (task, split, config) of what `main` measures after training."""


def bundled_policy_path() -> Path:
    """The folder of the policy that the package ships, for ``from_pretrained``: float16 weights and the tokenizer."""
    return Path(str(files("maxent_grpo.tasks").joinpath("tiny_policy_files")))


def build_policy(
    output_dir: Path, seed: int, steps: int, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> "dict[str, Quality]":
    """Train a tiny policy, save it to ``output_dir`` and return its quality by label of `REPORTED`.

    The files are the same for the same arguments on the same machine with the same number of torch threads.
    ``on_step(step, loss)`` is called after every training step.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from maxent_grpo.randomness import integer_seed
    from maxent_grpo.tasks.registry import load_rows
    from maxent_grpo.tasks.warm_start import build_model, build_tokenizer, measure, train

    tokenizer = build_tokenizer()
    torch.manual_seed(integer_seed(seed, "tiny policy"))
    model = build_model(tokenizer)
    train(model, tokenizer, steps, seed, on_step)
    model.half().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    saved = AutoModelForCausalLM.from_pretrained(output_dir, dtype=torch.float32)
    return {label: measure(saved, tokenizer, load_rows(*rows)) for label, rows in REPORTED.items()}


def main() -> None:
    """Console script ``maxent-grpo-tiny-policy``."""
    parser = argparse.ArgumentParser(
        prog="maxent-grpo-tiny-policy",
        description="Rebuild the bundled tiny policy: a Qwen2 model of a million parameters with a byte tokenizer, "
        "trained for a few minutes on problems of the bundled tasks that none of their splits contains. Needs no "
        "network and no GPU. Its quality on held-out problems is printed at the end.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("var/tiny-policy"),
        help="folder for the weights and the tokenizer",
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="of the initial weights and the training problems"
    )
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_STEPS, help="training steps; fewer give a weaker policy"
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps {arguments.steps}: at least one step is needed")
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        parser.error(f"--output-dir {arguments.output_dir}: there is a file of that name; name a folder")
    _build_with_progress(arguments.output_dir, arguments.seed, arguments.steps)


def _build_with_progress(output_dir: Path, seed: int, steps: int) -> None:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    torch.set_num_threads(THREADS)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("training", total=steps, loss=float("nan"))
        quality = build_policy(
            output_dir, seed, steps, lambda step, loss: progress.update(bar, advance=1, loss=loss)
        )
    print(f"saved to {output_dir}")
    for label, found in quality.items():
        print(f"{label}: mean@8 {found.mean:.2f}, pass@8 {found.passed:.2f}, coverage@8 {found.coverage:.2f}")


if __name__ == "__main__":
    main()
