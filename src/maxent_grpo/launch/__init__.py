"""Jobs on machines and clusters: who serves, who trains, what runs where, and what happens when a job is stopped.

Pure functions turn a request and an allocation into a typed plan, which ``--dry-run`` prints as a table; `supervision`
runs it. ``python -m maxent_grpo.launch train|math-eval|sweep|ray|lighteval`` is what the scripts in ``ops/`` start.
"""
