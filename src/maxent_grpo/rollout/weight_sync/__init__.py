"""The learner's weights on their way to samplers that keep a copy of their own.

`weights` says what travels, `sync` who sees to it that every copy has it, `transports` and `gloo` how it gets there;
`vllm_plugin` and `gloo_engine` run inside vLLM.
"""
