"""What a run leaves for people and programs to read.

`metrics_log` writes the files that are the truth (``metrics.jsonl``, ``timings.jsonl``,
``completions.jsonl``); the console, the trackers, the plots and the HTML report are readers of them and can
be made again at any time.
"""
