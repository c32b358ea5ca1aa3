"""Names that this room reads or owns: the files of a run directory, and metrics with their meaning.

A metric has one name. Objectives and controllers define theirs
(`maxent_grpo.objectives.catalog.METRIC_DEFINITIONS`, `maxent_grpo.controllers.controller.CONTROLLER_METRICS`);
those of evaluation and timing, and the learner's few others, are defined here. `observe.definitions` puts all together,
with units and warning signs.
"""

from collections.abc import Mapping
from typing import Final

METRICS_FILE: Final = "metrics.jsonl"
TIMINGS_FILE: Final = "timings.jsonl"
COMPLETIONS_FILE: Final = "completions.jsonl"
CONFIG_FILE: Final = "resolved_config.yaml"
STOP_FILE: Final = "stop"  # not of a run: whoever makes it asks the run to save and end

REWARD: Final = "train/reward"
PASS: Final = "train/pass"
COVERAGE: Final = "train/coverage"
TAU: Final = "train/tau"
BETA: Final = "train/beta"
KL: Final = "train/kl"
TOKEN_ENTROPY: Final = "train/entropy"
WEIGHT_ENTROPY: Final = "train/weight_entropy"
TOKENS_PER_SECOND: Final = "tokens/s"

DEFINITIONS: Final[Mapping[str, str]] = {
    PASS: "fraction of the step's groups with at least one right completion (InfoSeed's seeded ones not counted)",
    "train/distinct": "distinct answer modes that a group found (as for pass); mean over groups",
    COVERAGE: "distinct answer modes that a group found (as for pass) / all modes of its prompt; mean over groups",
    "train/dynamic_sampling/rounds": "sampling rounds that the step's rollout took",
    "train/dynamic_sampling/dropped": "groups with equal utilities that were sampled and not trained on",
    "train/dynamic_sampling/filled": "groups with equal utilities that completed the rollout after the last round",
    "train/sampling/publishes": "times that weights were sent to the sampler before this step",
    "train/sampling/lost_weights": "times that a rollout was sampled anew, as a server had been started again",
    "train/sampling/staleness": "optimiser steps that the sampler's weights were behind the learner's",
    "train/sampling/ratio/mean": "mean of the learner's probability of a sampled token over the sampler's, before any "
    "cap or mask",
    "train/sampling/ratio/min": "smallest of these ratios",
    "train/sampling/ratio/max": "largest of these ratios",
    "train/sampling/logp_difference/mean": "mean |log-prob of sampler − of learner| of the tokens of the probes after "
    "publishing, in nats",
    "train/sampling/logp_difference/max": "largest of these differences, in nats",
    "train/generation/requests": "requests to the vLLM server that were answered, bad answers included",
    "train/generation/retry_attempts": "requests that were sent again",
    "train/generation/retry_rounds": "further rounds for completions that were missing",
    "train/generation/halved_requests": "requests that failed and were sent again in halves",
    "train/generation/server_losses": "times that the server went away and came back",
    "train/generation/unfinished_completions": "completions that the server cut off, and that were asked for again",
    "train/generation/excess_completions": "completions that were not asked for, dropped",
    "train/generation/filtered_groups": "groups of other clients, dropped",
    "train/generation/client_tag_errors": "answers without a group of this client",
    "train/generation/logprobs_missing": "answers without log-probs",
    "train/generation/backfilled_completions": "completions that the local sampler drew in the server's place",
    "train/generation/backfilled_prompts": "prompts of these completions",
    "train/generation/latency_ms": "mean milliseconds until the server answered, the wait for a free place not counted",
    "train/generation/latency_ms_max": "the longest of them",
    "train/buffer/policy_age_mean": "mean over the groups of the optimiser steps since the weights that sampled them",
    "train/buffer/policy_age_max": "the largest of these ages",
    "train/buffer/ready": "groups that wait in the buffer after a rollout was taken",
    "train/buffer/sampling": "groups that are being sampled at that time",
    "train/buffer/dropped": "groups dropped so far for their age, whose prompts were sampled again",
    "train/buffer/lost": "groups lost so far with a worker that died or was stuck, whose prompts were sampled again",
    "train/buffer/reissued": "prompts issued again so far, for either reason or after a learner resumed",
    "train/buffer/late": "groups so far that arrived after their prompt had been issued again, and were not used",
    "train/buffer/rollout_workers_replaced": "rollout workers replaced so far",
    "train/buffer/learners_replaced": "times that the learner was replaced and resumed from its last checkpoint",
    "train/learning_rate": "learning rate of this step",
    "train/grad_norm": "L2 norm of the gradient over all parameters, before clipping",
    "train/update_skipped": "1 where the loss or a gradient was not finite and nothing was stepped",
    "train/epoch": "how often the prompts have been run through, with the fraction of the current pass",
    "train/num_tokens": "completion tokens trained on so far",
    "eval/mean_reward": "mean reward of the completions of held-out prompts",
    "eval/mean_length": "mean length in tokens of the completions of held-out prompts",
    "eval/mean_at_<k>": "fraction of right completions among k per held-out prompt; mean over prompts",
    "eval/pass_at_<k>": "fraction of held-out prompts with at least one right completion among k",
    "eval/distinct_at_<k>": "distinct answer modes among k completions; mean over held-out prompts",
    "eval/coverage_at_<k>": "distinct answer modes among k completions / all modes of the prompt; mean over prompts",
    "eval/rewards/<name>/mean": "mean score of reward function <name> over the completions that it gave a score",
    "eval/greedy/<metric>": "the metric for one greedy completion per held-out prompt",
    "eval_seed/pass_at_1": "fraction of held-out prompts with a right completion among one per InfoSeed seed",
    "eval_seed/mean": "fraction of right completions among one per seed; mean over held-out prompts",
    "eval_seed/distinct": "distinct answer modes among one completion per seed; mean over held-out prompts",
    "eval_seed/coverage": "the same / all modes of the prompt; mean over held-out prompts",
    "eval_seed/pred_acc": "train/seed/seed_pred_acc on held-out prompts",
    "eval_seed/diversity_l2": "train/seed/seed_diversity_l2 on held-out prompts",
    "eval_seed/<metric>_se": "standard error of the metric over held-out prompts",
    "eval/<metric>_se": "standard error of the metric over held-out prompts",
    "time/<phase>": "wall-clock seconds of one phase of the step (timings.jsonl)",
    TOKENS_PER_SECOND: "sampled completion tokens per wall-clock second of the step (timings.jsonl)",
}
"""Full metric name → what it is. ``<…>`` stands for a part that varies."""
