"""One system in a process of its own, for its peak memory: ``python -m benchmarks.alone SYSTEM ACTION WORKLOAD``.

Started by `benchmarks.measure.peak_memory`; prints one line of JSON.
"""

import json
import sys

import torch

from benchmarks.measure import reset_high_water, resident_mib
from benchmarks.systems import build
from benchmarks.workload import Workload

MIB = 2**20


def main() -> None:
    name, action, text = sys.argv[1:]
    workload = Workload(**json.loads(text))
    workload.use_threads()
    system = build(name, workload)
    on_gpu = workload.device == "cuda"
    idle = torch.cuda.memory_allocated() / MIB if on_gpu else resident_mib()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_high_water()
    for _ in range(2):  # the first run allocates the optimiser's state
        getattr(system, action)()
    peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else resident_mib(high_water=True)
    print(json.dumps({"idle": idle, "peak": peak}))


if __name__ == "__main__":
    main()
