"""Peak memory of an update against completion length, ours and TRL's, with a vocabulary of 151,936.

Each figure is of a process that holds one system and makes two updates: the highest resident memory on a CPU, the
highest allocation on a GPU. "Above idle" is what the update adds to a built trainer: gradients, optimiser state,
activations and logits. A flat column means that [rows, tokens, vocabulary] is never built.
"""

import argparse
import math
from dataclasses import replace

from benchmarks.measure import peak_memory
from benchmarks.options import describe, note, parser, workloads
from benchmarks.workload import Workload

LENGTHS = (32, 64, 128, 256)


def rows_of(options: argparse.Namespace) -> list[Workload]:
    """The workloads of the command line; unless given: 151k vocabulary, prompt 32, the lengths above, one prompt."""
    options.memory = True  # whatever was asked: under torchrun `workloads` refuses it
    options.size = options.size or ["151k"]
    options.prompt = options.prompt or [32]
    options.completion = options.completion or list(LENGTHS)
    prompts = options.prompts or 1
    return [
        replace(row, prompts=prompts, micro_prompts=options.micro_prompts or prompts)
        for row in workloads(options)
    ]


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__ or "").parse_args(arguments)
    rows = rows_of(options)
    systems = ["ours"] + [options.peer] * (options.peer != "none")
    print("| completion | " + " | ".join(f"{s}, peak MiB | {s}, above idle" for s in systems) + " |")
    print("| --- |" + " --- | --- |" * len(systems))
    for row in rows:
        note(describe(row))
        cells = [str(row.completion)]
        for system in systems:
            mib = peak_memory(system, "update", row)
            killed = math.isinf(mib["peak"])
            cells += (
                ["out of memory", "-"]
                if killed
                else [f"{mib['peak']:.0f}", f"{mib['peak'] - mib['idle']:.0f}"]
            )
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
