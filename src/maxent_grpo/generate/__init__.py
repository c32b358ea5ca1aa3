"""Completions for the rows of a data set from an OpenAI-compatible endpoint. Start reading at `generate.run`."""
