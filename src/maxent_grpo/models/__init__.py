"""Loading policies, and the log-probs that they give to sampled completions."""
