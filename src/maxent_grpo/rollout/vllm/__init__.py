"""Sampling with vLLM: a server (`server`), or an engine in this process (`colocate`).

A call of the server sampler: `requests` says what is asked, `http` asks it and tries again, `responses` reads what
comes back, `answers` keeps what is this client's, `facts` knows what the server can do. `client_tag` and `proxy` serve
several clients or servers at once.
"""
