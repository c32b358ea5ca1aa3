"""The policy's parameters as a sampler's copy wants them: whole, under their checkpoint names, adapters merged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from maxent_grpo.errors import UsageError
from maxent_grpo.models.loading import is_adapted

Value = TypeVar("Value")

ADAPTER = "default"
"""The name that PEFT gives a run's only adapter."""
WRAPPER = "base_model.model."
"""PEFT's prefix of a parameter's name."""


@dataclass(frozen=True)
class WeightInfo:
    """One parameter on its way to a sampler."""

    name: str
    """As in a checkpoint of the model: without wrappers and adapters."""
    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights(Protocol):
    """The policy's parameters, whole, one at a time.

    Where ranks hold shards, iterating is collective: every rank runs through all of them, in the same order.
    """

    def description(self) -> Sequence[WeightInfo]:
        """The parameters of a pass, in its order; gathers nothing."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """A fresh pass. A tensor is valid until the next one is asked for."""
        ...


class PolicyWeights:
    """See `Weights`. At most one parameter, and of a LoRA run one layer's adapter, is gathered at a time.

    Args:
        model: the policy, with its adapter if there is one; ranks may hold shards of it.
        gathered: its parameters by name, each whole until the next is asked for (`Strategy.gathered`; of a model that
            is whole, `named_parameters`).

    Raises:
        UsageError: an adapter that is more than a product of two matrices (DoRA), or on something else than a matrix.
    """

    def __init__(self, model: PreTrainedModel, gathered: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._model = model
        self._gathered = gathered
        self._adapted = adapted_layers(model)

    def description(self) -> Sequence[WeightInfo]:
        parameters = self._model.named_parameters()
        infos = ((name, WeightInfo(name, p.dtype, whole_shape(p))) for name, p in parameters)
        return [
            WeightInfo(name, info.dtype, info.shape)
            for name, info in self._merged(infos, lambda layer, weight, a, b: weight, lambda info: info)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        # A layer's weight waits for its adapter, and is kept while that is gathered.
        return self._merged(self._gathered(), merged, Tensor.clone)

    def _merged(
        self,
        parameters: Iterator[tuple[str, Value]],
        merge: Callable[[nn.Module, Value, Value, Value], Value],
        kept: Callable[[Value], Value],
    ) -> Iterator[tuple[str, Value]]:
        """Parameters under their own names; where ``B`` of an adapter comes, the layer's weight with it."""
        held: dict[str, Value] = {}
        for name, value in parameters:
            layer, _, rest = name.rpartition(".lora_")
            if name in self._adapted:
                held[name] = kept(value)
            elif rest.startswith("A."):
                held[layer] = kept(value)
            elif rest.startswith("B."):
                weight = f"{layer}.base_layer.weight"
                whole = merge(self._adapted[weight], held.pop(weight), held.pop(layer), value)
                yield own_name(weight), whole
            elif ".original_module." not in name:  # of a module that is trained whole, as it was
                yield own_name(name), value


def adapted_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name of each parameter that an adapter changes → the layer that PEFT made of it."""
    if not is_adapted(model):
        return {}
    from peft.tuners.lora import Linear

    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None) is None or not hasattr(module, "base_layer"):
            continue
        if not isinstance(module, Linear) or ADAPTER not in module.lora_A or module.use_dora.get(ADAPTER):
            raise UsageError(
                f"use_peft: a sampler's copy gets LoRA merged into matrices, and {name} is adapted otherwise; set "
                "use_dora=false, and leave embeddings out of lora_target_modules"
            )
        layers[f"{name}.base_layer.weight"] = module
    return layers


@torch.no_grad()
def merged(layer: nn.Module, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``weight`` + scaling · B A, computed in float32 at least and rounded once."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    change = b.to(exact) @ a.to(exact)
    if layer.fan_in_fan_out:
        change = change.T
    return (weight.to(exact) + layer.scaling[ADAPTER] * change).to(weight.dtype)  # type: ignore[index]


def own_name(name: str) -> str:
    """A parameter's name in the model that PEFT has wrapped."""
    plain = name.removeprefix(WRAPPER).replace(".base_layer.", ".")
    return plain.replace(f".modules_to_save.{ADAPTER}.", ".")


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of the parameter, where a rank holds a shard of it too."""
    return tuple(
        getattr(parameter, "ds_shape", parameter.shape)
    )  # DeepSpeed's; of a DTensor it is the whole's
