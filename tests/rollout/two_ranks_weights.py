"""Run by `test_policy_weights.py` on two processes: sharded parameters are published whole, one at a time."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from maxent_grpo.config.environment import CheckpointSettings
from maxent_grpo.models.policy import PolicyForward
from maxent_grpo.rollout.weight_sync.weights import PolicyWeights
from maxent_grpo.train.strategies.fsdp2 import FullyShardedStrategy
from maxent_grpo.train.strategies.zero import ZeroStrategy


def main() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    policy_dir, kind, report = sys.argv[1:]
    expected = dict(AutoModelForCausalLM.from_pretrained(policy_dir).state_dict())
    policy = PolicyForward(AutoModelForCausalLM.from_pretrained(policy_dir))

    def optimizer_of(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    if kind == "fsdp2":
        strategy = FullyShardedStrategy(policy, optimizer_of, accelerator)
    else:
        strategy = ZeroStrategy(
            policy, optimizer_of, accelerator, stage=3, max_grad_norm=0.0, checkpoints=CheckpointSettings()
        )
    weights = PolicyWeights(policy.model, strategy.gathered)
    description = weights.description()
    seen = []
    for info, (name, tensor) in zip(description, weights, strict=True):
        assert (info.name, info.dtype, info.shape) == (name, tensor.dtype, tuple(tensor.shape)), name
        assert torch.equal(tensor, expected[name]), name
        seen.append(name)
        own = list(policy.model.parameters())
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in own)
        whole = sum(value.numel() for value in expected.values())
        if kind == "fsdp2":  # what stays is this rank's half
            assert held < 0.6 * whole, (held, whole)
        else:  # ZeRO-3 leaves an empty tensor of every parameter but the gathered one
            assert held == tensor.numel(), (held, tensor.numel())
    assert set(seen) == set(expected)
    Path(report, f"rank-{accelerator.process_index}").touch()


main()
