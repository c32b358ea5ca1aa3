"""Evaluation: accuracy, and the number of different right answers when a policy is asked several times."""
