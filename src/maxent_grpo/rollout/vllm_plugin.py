"""What vLLM calls in each of its processes where this package is installed (entry point ``vllm.general_plugins``)."""


def register() -> None:
    """Make ``--weight-transfer-config '{"backend": "gloo"}'`` known. vLLM may call this more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "maxent_grpo.rollout.gloo_engine", "GlooEngine")
