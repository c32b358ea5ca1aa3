"""Sampling with vLLM: a server (`server`), or an engine in this process (`engine`).

A call of the server sampler: `protocol` says what is asked and reads what comes back, `connection` asks it, tries again
and keeps what is this client's, `probe` knows what the server can do. `client_tag` tells several clients apart.
"""
