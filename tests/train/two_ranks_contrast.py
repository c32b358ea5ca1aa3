"""Run by `test_infoseed.py` on two processes: the contrast of each rank is its part of the contrast over both."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import Tensor

from maxent_grpo.objectives.infoseed import InfoSeed, contrast_gradient
from maxent_grpo.train.learner import Learner, LearningRate
from maxent_grpo.train.micro_batches import MicroBatch
from maxent_grpo.train.seeds import PooledStates
from maxent_grpo.types import Batch, Signal

GROUPS, ORIGINALS, SEEDS, WIDTH = 2, 1, 3, 5  # per rank


@dataclass
class GivenStates(Learner):
    """A learner whose pooled states are given."""

    states: Tensor | None = None

    def pooled(self, batch: Batch, parts: Sequence[MicroBatch]) -> Tensor:
        return self.states


def main() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rows = GROUPS * (ORIGINALS + SEEDS)
    everywhere = torch.randn(2 * rows, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = slice(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)
    learner = GivenStates(
        strategy=SimpleNamespace(),
        learning_rate=LearningRate(1.0, "constant", 0, 1, {}),
        accelerator=accelerator,
        max_grad_norm=0.0,
        max_completion_length=1,
        differentiate_entropy=False,
        states=everywhere[own],
    )
    ids = torch.tensor(([-1] * ORIGINALS + list(range(SEEDS))) * GROUPS)
    blank = torch.zeros(rows, 1)
    batch = Batch(
        blank.long(), blank.bool(), blank.long(), blank.bool(), blank, torch.zeros(GROUPS, 4), seed_ids=ids
    )
    seeds = InfoSeed(SEEDS, coefficient=1.0, temperature=0.3)
    states = PooledStates(seeds, learner, batch, [MicroBatch([0, 1], needs_backward=True)])
    signal = states.prepared(Signal(torch.zeros(GROUPS, 4)))
    shares, gradient = contrast_gradient(everywhere, ids.repeat(2), 0.3)
    torch.testing.assert_close(signal.contrast_losses.flatten(), shares[own], atol=1e-12, rtol=0)
    torch.testing.assert_close(signal.contrast_gradient.flatten(0, 1), gradient[own], atol=1e-12, rtol=0)
    Path(sys.argv[1], f"rank-{accelerator.process_index}").touch()


main()
