"""Does an accelerator compute what the CPU computes, and how fast?

    python -m benchmarks.device_check

Samples the same keyed groups with the bundled policy on both devices, compares completions and the gradient of one
MaxEnt-GRPO step in float32, and then times whole steps of the tiny recipe on each, alternating.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from maxent_grpo.config.loading import resolve
from maxent_grpo.train.assembly import assemble, start_accelerator
from maxent_grpo.train.drivers import collect, next_groups
from maxent_grpo.train.run import Given
from maxent_grpo.train.state import Run
from maxent_grpo.train.step import step

RECIPE = Path(__file__).parents[1] / "configs/recipes/tiny/maxent-grpo/config_graph_coloring.yaml"
TIMED_STEPS = 8


def start(use_cpu: bool, directory: str) -> Run:
    settings = {
        "use_cpu": use_cpu,
        "bf16": False,
        "output_dir": directory,
        "eval_strategy": "no",
        "eval_on_start": False,
    }
    config = resolve("train-maxent", RECIPE, {"training": settings}, environ={})
    return assemble(config, Given(), start_accelerator(config), Path(directory))


def gradient_step(run: Run) -> torch.Tensor:
    """Parameters after one SGD step of rate 1, minus those before: the negative gradient."""
    run.learner.optimizer = torch.optim.SGD(run.learner.model.parameters(), lr=1.0)
    run.learner.max_grad_norm = 0.0
    before = torch.cat([p.detach().flatten() for p in run.learner.model.parameters()])
    step(run, next_groups(run))
    return (torch.cat([p.detach().flatten() for p in run.learner.model.parameters()]) - before).cpu()


def timed_step(run: Run) -> tuple[float, int]:
    started = time.perf_counter()
    collect(run)
    step(run, next_groups(run))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    tokens = sum(len(ids) for group in run.rollout for ids in group.rollout.token_ids)
    return time.perf_counter() - started, tokens


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: there is nothing to compare the CPU with")
    from accelerate.state import AcceleratorState

    torch.backends.cuda.matmul.allow_tf32 = False
    runs = {}
    for name, use_cpu in (("CPU", True), (torch.cuda.get_device_name(), False)):
        AcceleratorState._reset_state(reset_partial_state=True)  # one device per process is Accelerate's rule
        runs[name] = start(use_cpu, tempfile.mkdtemp())
        collect(runs[name])
    cpu, gpu = runs.values()
    pairs = [
        (a, b)
        for one, other in zip(cpu.rollout, gpu.rollout, strict=True)
        for a, b in zip(one.rollout.token_ids, other.rollout.token_ids, strict=True)
    ]
    print(f"completions equal on both devices: {sum(a == b for a, b in pairs)} of {len(pairs)}")
    gpu.rollout = cpu.rollout
    differences = [gradient_step(run) for run in (cpu, gpu)]
    error = (differences[0] - differences[1]).norm() / differences[0].norm()
    print(f"gradient of one step, same completions: relative difference {error:.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TIMED_STEPS):
        for name, run in runs.items():
            elapsed, tokens = timed_step(run)
            seconds[name].append(elapsed)
            rates[name].append(tokens / elapsed)
    for name in runs:
        print(
            f"{name}: {statistics.median(seconds[name]):.3f} s per step of 256 completions, "
            f"{statistics.median(rates[name]):.0f} tokens/s (medians of {TIMED_STEPS})"
        )


if __name__ == "__main__":
    main()
