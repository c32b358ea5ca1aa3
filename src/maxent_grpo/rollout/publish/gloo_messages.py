"""What a trainer tells a server's gloo engine, as JSON. Imports no vLLM: the trainer has none."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxent_grpo.rollout.publish.publisher import WeightInfo


@dataclass
class GlooInit:
    """Where to meet the trainer, and as whom."""

    master_address: str
    master_port: int
    rank_offset: int  # rank of the server's first worker
    world_size: int  # the trainer and the workers of all servers


@dataclass
class GlooUpdate:
    """The parameters that follow, in their order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    @classmethod
    def of(cls, description: Sequence[WeightInfo]) -> "GlooUpdate":
        return cls(
            names=[info.name for info in description],
            dtype_names=[str(info.dtype).removeprefix("torch.") for info in description],
            shapes=[list(info.shape) for info in description],
        )
