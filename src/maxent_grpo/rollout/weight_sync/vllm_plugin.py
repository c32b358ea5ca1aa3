"""The plugin that vLLM calls in each of its processes where this package is installed (``vllm.general_plugins``).

Written against vLLM 0.30.
"""

from typing import Any


def register() -> None:
    """Make weights by gloo known, and let tied heads follow new weights. vLLM may call this more than once."""
    register_gloo()
    keep_tied_heads_current()


def register_gloo() -> None:
    """Make ``--weight-transfer-config '{"backend": "gloo"}'`` known."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "gloo", "maxent_grpo.rollout.weight_sync.gloo_engine", "GlooEngine"
        )


def keep_tied_heads_current() -> None:
    """On a CPU, have a head that shares the embedding's weights compute with the weights themselves.

    vLLM packs them into a copy for its kernel when a model is loaded, and renews only the embedding's copy when
    weights are loaded again: the head would go on with the first ones. A head with weights of its own is left alone.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if hasattr(UnquantizedEmbeddingMethod, "_packs"):
        return
    ties, packs = (
        UnquantizedEmbeddingMethod.tie_weights,
        UnquantizedEmbeddingMethod.process_weights_after_loading,
    )

    def tie(self: Any, layer: Any, embedding: Any) -> Any:
        layer.is_tied = True
        return ties(self, layer, embedding)

    def pack(self: Any, layer: Any) -> None:
        if getattr(layer, "is_tied", False):
            layer.cpu_linear = torch.nn.functional.linear  # called with the layer's weights as they are
        else:
            packs(self, layer)

    UnquantizedEmbeddingMethod._packs = packs
    UnquantizedEmbeddingMethod.tie_weights = tie
    UnquantizedEmbeddingMethod.process_weights_after_loading = pack
