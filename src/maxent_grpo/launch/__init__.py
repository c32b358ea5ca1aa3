"""Jobs on machines and clusters: who serves, who trains, what runs where, and what happens when a job is stopped.

Pure functions turn a request (`flags`) and an allocation (`allocation`) into a typed plan (`train`, `ray_cluster`,
`evaluation_jobs`), which ``--dry-run`` prints (`plan_text`); `supervision` runs it. The scripts in ``ops/`` start
``python -m maxent_grpo.launch train|math-eval|sweep|ray|lighteval``.
"""
