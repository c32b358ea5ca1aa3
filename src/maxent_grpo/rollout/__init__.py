"""Sampling: prompts in, rollouts out.

`sampler` is what every sampler promises. `local` samples in this process, `vllm.server` and `vllm.colocate` with vLLM,
`publish` brings the learner's weights to samplers that keep a copy of their own. `parts`, `seeded` and `dialogue` are
put around any sampler.
"""
