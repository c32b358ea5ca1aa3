"""Run by `test_ranks.py` on two processes: what crosses ranks, checked on each of them."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from maxent_grpo.train.learner import Learner
from maxent_grpo.train.meter import Meter
from maxent_grpo.train.schedule import LearningRate
from maxent_grpo.types import Batch, Signal, extreme_stat, mean_stat


def main() -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    model = torch.nn.Linear(2, 2)  # no forward here
    learner = Learner(
        model=model,
        policy=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        learning_rate=LearningRate(1.0, "constant", 0, 1, {}),
        accelerator=accelerator,
        max_grad_norm=0.0,
        max_completion_length=8,
        differentiate_entropy=False,
    )
    mask = torch.ones(4, 3 + rank, dtype=torch.bool)
    blank = torch.zeros(4, 3 + rank)
    prompt = torch.ones(2, 5, dtype=torch.long)
    batch = Batch(prompt, prompt.bool(), blank.long(), mask, blank, torch.zeros(2, 2))
    counts = learner.denominators(batch)
    assert (counts.groups, counts.sequences, counts.tokens) == (4.0, 8.0, 4.0 * 3 + 4.0 * 4)

    meter = Meter(accelerator)
    values = torch.arange(1.0, 3.0 + rank)  # 1 2 on rank 0, 1 2 3 on rank 1
    meter.add({"mean": mean_stat(values), "high": extreme_stat(values, "max")})
    assert meter.reduced() == {"mean": 9 / 5, "high": 3.0}

    assert learner.from_first_rank([0.1 + rank, 2.0]) == [0.1, 2.0]
    gathered = learner.gathered(Signal(torch.full((1, 2), float(rank))))
    assert gathered.advantages.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    Path(sys.argv[1], f"rank-{rank}").touch()


main()
