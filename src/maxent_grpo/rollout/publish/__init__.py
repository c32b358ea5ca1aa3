"""New weights for samplers that keep a copy of their own.

`server_publisher` pauses, updates and resumes vLLM servers through `control`; the weights travel by one of three
transports: `disk_transport`, `gloo_transport` (this package's engine, which `vllm_plugin` puts into vLLM) or
`vllm_transport` (NCCL or CUDA IPC).
"""
