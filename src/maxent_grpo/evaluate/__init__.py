"""What a policy finds when it is asked several times: accuracy, and how many different right answers."""
