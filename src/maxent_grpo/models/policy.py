"""The policy as one module: what parallel training wraps."""

import torch.utils._pytree as pytree
from torch import nn
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError
from maxent_grpo.models.logps import EntropyMode, completion_logps
from maxent_grpo.types import Batch, Forward

# FSDP2 looks for the tensors in a module's output by flattening it as a tree.
pytree.register_dataclass(Forward)


class PolicyForward(nn.Module):
    """The module whose forward is all of a micro-batch: prompts, completions and the language-model head.

    DDP, FSDP2 and ZeRO gather parameters before a module's forward and reduce gradients after its backward, and count
    on one backward per forward. The model itself runs more than once per micro-batch; this module runs once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, *, temperature: float, entropy: EntropyMode = "none", shared_prefix: bool = True
    ) -> Forward:
        """See `completion_logps`."""
        return completion_logps(
            self.model, batch, temperature=temperature, entropy=entropy, shared_prefix=shared_prefix
        )


class AdapterOff(nn.Module):
    """The reference policy of a LoRA run: the policy's own forward, its adapter switched off. No second model.

    Args:
        policy: `PolicyForward`, or what parallel training wrapped around it.
        model: the PEFT model inside.
    """

    def __init__(self, policy: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.model = model

    def forward(self, batch: Batch, *, temperature: float, shared_prefix: bool = True) -> Forward:
        """See `completion_logps`; to be called without gradient. Dropout and checkpointing are off, too."""
        was_training = self.model.training
        self.model.eval()
        with self.model.disable_adapter():  # type: ignore[operator]  # a method of PEFT's models
            forward = self.policy(batch, temperature=temperature, shared_prefix=shared_prefix)
        self.model.train(was_training)
        return forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks, by the class names that the architecture says must not be split.

    Raises `UsageError` where it names none: sharding would gather the whole model at once.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UsageError(
            f"distributed: {type(model).__name__} names no blocks to shard (_no_split_modules); use ddp or zero3"
        )
    return layers
