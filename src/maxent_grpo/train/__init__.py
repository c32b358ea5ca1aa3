"""Training. Start with `maxent_grpo.train.step.step`: the step, top to bottom.

The step: `step` → `collate`, `micro_batches`, `learner`, `pooled_states` (InfoSeed), `meter`; its data is `state`.
A run: `run` → `build` (settings → parts), `drivers` (who calls the step) → `records`, `checkpoint`, `stopping`.
Ranks: `strategies` (how they hold the policy), `ranks` (what they tell each other).
The sampler, and weights of its own: `weight_sync`. In Ray workers: `ray`. In TRL's trainer: `trl_route` → `trl`.
"""
