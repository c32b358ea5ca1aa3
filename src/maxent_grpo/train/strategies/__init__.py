"""Ways in which ranks hold the policy: whole (`replicated`), or in shards (`fsdp2`, `zero`)."""
