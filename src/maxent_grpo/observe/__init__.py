"""Records of a run, and their readers.

``metrics.jsonl``, ``timings.jsonl`` and ``completions.jsonl``, each a `maxent_grpo.files.JsonlFile`, are the truth; the
console, the trackers, the plots and the HTML report are readers of them and can be made again at any time.
"""
