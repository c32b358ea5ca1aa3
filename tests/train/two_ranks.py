"""Run by `test_ranks.py` on two processes: what crosses ranks, checked on each of them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from maxent_grpo.errors import RunError, UsageError
from maxent_grpo.stats import Meter, extreme_stat, mean_stat
from maxent_grpo.train.learner import Learner, LearningRate
from maxent_grpo.train.ranks import gathered, on_first_rank, own_part, refuse_disagreement, together
from maxent_grpo.train.strategies.replicated import Replicated
from maxent_grpo.types import Batch, Signal


class Given(torch.nn.Module):
    """In the place of a `PolicyForward`, of which only the parameters are needed here."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seed_head = None


def fail_on(rank: int, failing: int) -> int:
    if rank == failing:
        raise UsageError("no such file")
    return rank


def main() -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    model = torch.nn.Linear(2, 2)  # no forward here
    learner = Learner(
        strategy=Replicated(
            Given(model), lambda parameters: torch.optim.SGD(parameters, lr=1.0), accelerator
        ),
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
    signal = learner.gathered(Signal(torch.full((1, 2), float(rank))))
    assert signal.advantages.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    utilities = torch.arange(4.0).view(2, 2) + 4 * rank
    spread = learner.utility_std(replace(batch, utilities=utilities))
    assert torch.equal(spread, torch.arange(8.0).std())

    for parameter in model.parameters():  # as after a backward that no rank shared
        parameter.grad = torch.full_like(parameter, 1.0 + rank)
    with pytest.raises(RunError, match="step 1: the gradients of ranks 0 and 1 are not synchronised"):
        learner.update(0)
    refuse_disagreement(accelerator, {"settings": {"a": 1}})
    with pytest.raises(RunError, match="ranks 0 and 1 started with different policy parameters"):
        refuse_disagreement(accelerator, {"settings": 1, "policy parameters": rank})

    with together():
        pass
    with pytest.raises(UsageError, match="rank 1: no such file"), together():
        fail_on(rank, 1)
    assert on_first_rank(lambda: "found", is_first=rank == 0) == "found"
    assert [own_part(range(8), 4, accelerator)] == [[[0, 1, 4, 5], [2, 3, 6, 7]][rank]]
    assert gathered([rank, "a"], accelerator) == [0, "a", 1, "a"]
    Path(sys.argv[1], f"rank-{rank}").touch()


main()
