"""From a dataset name to prompts in a reproducible, resumable order."""
