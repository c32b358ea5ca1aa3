"""Procedural tasks whose right answers can all be enumerated, and the tiny policy that starts on them.

Because every right answer of every problem is known, exploration can be counted: how many of the distinct right
answers (the *answer modes*) does a policy find? `registry.load_rows` makes the rows of a task's split,
`registry.grade_response` and `registry.task_reward` verify a completion.
"""
