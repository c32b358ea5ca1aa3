"""Sampling and learning in Ray workers: the drivers ``sync`` and ``async`` (docs/guides/ray.md)."""
