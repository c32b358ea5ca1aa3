"""Matched comparisons: the same seeds, prompts and budget under several methods, and what the runs allow to say.

`plan` reads what is to be compared, `runs` lays out the runs and knows how far each has come, `scheduler` trains and
evaluates what is missing, `effects` (on `paired` and `regression`) analyses, `figures` and `report` show it.
"""
