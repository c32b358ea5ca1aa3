"""Matched comparisons: the same seeds, prompts and budget under several methods, and what the runs allow to say.

`plan` reads what is to be compared, `cells` lays out the runs, `schedule` trains and evaluates what is missing,
`effects` and `regression` analyse, `conclusions` puts the numbers into words, `page` writes the report.
"""
