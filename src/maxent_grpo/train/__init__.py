"""Training. Start with `maxent_grpo.train.step.step`: the step, top to bottom."""
