"""Where the time of our step goes, against the arithmetic that it cannot avoid.

Three tables. *Floor*: FLOPs that sampling and updating need (benchmarks/flops.py says what counts), divided by the
rate at which this machine multiplies the model's own matrices at the batch's row counts; "% of floor" is floor over
measured CPU time, so 100 % would be matrix products and nothing else. On a GPU, model FLOPs utilisation against the
device's peak stands in its place. *Kinds of work*: time inside torch's operators, from torch's profiler; what is left
of the run is Python and dispatch. *Objective and controllers*: their own share of a step.
"""

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks import flops
from benchmarks.measure import Clock, Measured
from benchmarks.models import Size
from benchmarks.options import describe, note, parser, workloads
from benchmarks.systems.ours import Ours
from benchmarks.workload import Workload

KINDS = {
    # Products of batches of matrices are decoding's attention, and a rotary embedding's few.
    "attention": r"scaled_dot_product|flash_attention|efficient_attention|aten::(bmm|baddbmm)",
    "linear layers": r"aten::(mm|addmm|matmul|linear|mkldnn_linear)",
    "optimiser and clipping": r"adam|_foreach|linalg_vector_norm",
    "softmax and drawing": r"softmax|logsumexp|cumsum|searchsorted|multinomial|sort|topk|gather|isin",
    "copies and cache": r"aten::(cat|copy_|_to_copy|clone|repeat|fill_|slice|(_?index(_select|_put_|_put_impl_)?))$",
}
"""Kind → operator names, tried in this order; the rest is norms and elementwise."""
REST, HEAD, OVERHEAD = "norms and elementwise", "LM head", "Python and dispatch"


def kind_of(name: str, operands: list[list[int]], size: Size) -> str:
    """The kind of work of one profiled operator. A product with the embedding matrix belongs to the LM head."""
    kind = next((kind for kind, names in KINDS.items() if re.search(names, name)), REST)
    with_embedding = any(set(shape) == {size.hidden, size.vocabulary} for shape in operands)
    return HEAD if kind == "linear layers" and with_embedding else kind


def profiled(action: Callable[[], Measured], workload: Workload) -> dict[str, float]:
    """Share of each kind of work in one run of ``action``, adding up to 1."""
    clock = Clock(workload.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (workload.device == "cuda")
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile, clock.phase("run"):
        action()
    spent: Counter[str] = Counter()
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key.startswith("aten::") or workload.device == "cuda":
            operands = [shape for shape in event.input_shapes or [] if shape]
            on_gpu = workload.device == "cuda"
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[kind_of(event.key, operands, workload.shape)] += microseconds / 1e6
    total = clock.take()["run"].wall
    spent[OVERHEAD] = max(0.0, total - sum(spent.values()))
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.most_common()}


def floors(workload: Workload, lengths: list[list[int]]) -> dict[str, tuple[float, float]]:
    """Phase → (FLOPs needed, seconds of CPU time that they take at the measured rate)."""
    size, dtype = workload.shape, torch.bfloat16 if workload.precision == "bf16" else torch.float32
    prompt_only = flops.forward_flops(size, workload.prompt, [[1]] * workload.prompts)
    decode = flops.forward_flops(size, workload.prompt, lengths) - prompt_only
    update = flops.update_flops(size, workload.prompt, lengths)
    rows = [n for group in lengths for n in group]
    live = max(1, round(sum(rows) / max(rows)))  # mean number of rows still being written
    rates = {
        "prefill": flops.matmul_rate(size, workload.prompts * workload.prompt, dtype, workload.device),
        "decode": flops.matmul_rate(size, live, dtype, workload.device),
        "update": flops.matmul_rate(size, min(sum(rows), 4096), dtype, workload.device),
    }
    note(", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    return {
        "sample": (prompt_only + decode, prompt_only / rates["prefill"] + decode / rates["decode"]),
        "update": (update, update / rates["update"]),
    }


def floor_table(workload: Workload, measured: dict[str, list[Measured]], peak: float | None) -> list[str]:
    """Sampling and update against their floor, or against the peak of a GPU."""
    size = workload.group
    given = [
        list(map(len, workload.completion_ids))[p * size : (p + 1) * size] for p in range(workload.prompts)
    ]
    limits = floors(workload, given)
    last = "% of peak (MFU)" if peak else "% of floor"
    lines = [
        f"| phase | GFLOP needed | s | GFLOP/s | floor, s | {last} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for phase, (needed, floor) in limits.items():
        clock = "wall" if workload.device == "cuda" else "cpu"
        tokens = sum(map(sum, given))
        spent = statistics.median(
            getattr(m.phases[phase], clock) * tokens / m.tokens for m in measured[phase]
        )
        share = needed / spent / peak if peak else floor / spent
        lines.append(
            f"| {phase} | {needed / 1e9:.2f} | {spent:.3f} | {needed / spent / 1e9:.1f} | {floor:.3f} | {share:.0%} |"
        )
    return lines


def own_share(system: Ours, repeats: int) -> float:
    """The part of a step's CPU time that signal, loss (without its backward) and controllers take."""
    clock, run, objective = Clock(system.workload.device), system.run, system.run.objective
    shares = []
    for _ in range(repeats):
        run.objective = _Timed(objective, ("signal", "loss"), clock)  # type: ignore[assignment]
        run.controllers = _Timed(run.controllers, ("knobs", "update"), clock)  # type: ignore[assignment]
        clock.take()
        measured = system.step()  # leaves plain controllers behind
        shares.append(clock.take()["own"].cpu / measured.total.cpu)
    run.objective = objective
    return statistics.median(shares)


@dataclass
class _Timed:
    """Stands in for ``inner`` and adds the time of its ``methods`` to a clock."""

    inner: Any
    methods: tuple[str, ...]
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return self.clock.timed("own", value) if name in self.methods else value


def report(workload: Workload, options: argparse.Namespace) -> None:
    workload.use_threads()
    note(f"{describe(workload)}: building")
    system = Ours(workload, options.objective)
    peak = flops.device_peak(options.peak_tflops) if workload.device == "cuda" else None
    measured: dict[str, list[Measured]] = {}
    for phase in ("sample", "update"):
        action = getattr(system, phase)
        action()
        measured[phase] = [action() for _ in range(options.repeats)]
        note(f"{phase} timed")
    print(f"{describe(workload)}, objective {options.objective}\n")
    print("\n".join(floor_table(workload, measured, peak)), end="\n\n")
    for phase in ("sample", "update"):
        shares = profiled(getattr(system, phase), workload)
        print(f"| {phase}: kind of work | share |\n| --- | --- |")
        print("\n".join(f"| {kind} | {share:.1%} |" for kind, share in shares.items()), end="\n\n")
    print(f"Objective and controllers: {own_share(system, options.repeats):.2%} of a step.")


def main(arguments: list[str] | None = None) -> None:
    flags = parser(__doc__ or "", peers=False)
    flags.add_argument(
        "--objective", default="dr_grpo", help="objective to train (dr_grpo); maxent has weights and τ, β"
    )
    flags.add_argument(
        "--peak-tflops", type=float, help="peak of the GPU, where its name is not in the table"
    )
    options = flags.parse_args(arguments)
    for workload in workloads(options):
        report(workload, options)


if __name__ == "__main__":
    main()
