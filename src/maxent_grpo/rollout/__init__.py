"""Sampling: prompts in, rollouts out.

`sampler` is the interface of every sampler, `samplers` makes them by name. `local` samples in this process, `vllm` with
a server or an engine, and `weight_sync` brings the learner's weights to samplers that keep a copy of their own.
`wrappers` and `dialogue` are put around any sampler.
"""
