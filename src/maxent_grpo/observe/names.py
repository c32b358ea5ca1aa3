"""Names that this room reads or owns: the files of a run directory, and metrics with their meaning.

A metric has one name. The learner's own metrics are defined beside the objectives
(`maxent_grpo.objectives.catalog.METRIC_DEFINITIONS`); those of evaluation and timing are defined here.
"""

from collections.abc import Mapping
from typing import Final

METRICS_FILE: Final = "metrics.jsonl"
TIMINGS_FILE: Final = "timings.jsonl"
COMPLETIONS_FILE: Final = "completions.jsonl"
CONFIG_FILE: Final = "resolved_config.yaml"

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
    PASS: "fraction of the step's groups with at least one right completion",
    COVERAGE: "distinct answer modes that a group found / modes that it could have found; mean over groups",
    TAU: "weight of the candidate entropy in this step",
    BETA: "weight of the reference policy in this step",
    "train/learning_rate": "learning rate of this step",
    "train/grad_norm": "L2 norm of the gradient over all parameters, before clipping",
    "train/rewards/<name>/mean": "mean score that the reward function gave",
    "train/rewards/<name>/std": "standard deviation of the scores that the reward function gave",
    "train/completions/mean_length_sampled": "mean length of the completions, in tokens",
    "train/completions/clipped_frac": "fraction of completions that the length limit cut off",
    "eval/mean_reward": "mean reward of the completions of held-out prompts",
    "eval/mean_at_<k>": "fraction of right completions among k per held-out prompt; mean over prompts",
    "eval/pass_at_<k>": "fraction of held-out prompts that at least one of k completions solves (unbiased)",
    "eval/coverage_at_<k>": "distinct answer modes among k completions / modes that they could show; "
    "mean over held-out prompts",
    "eval/<metric>_se": "standard error of the metric over held-out prompts",
    "time/<phase>": "wall-clock seconds of one phase of the step (timings.jsonl)",
    TOKENS_PER_SECOND: "sampled completion tokens per wall-clock second of the step (timings.jsonl)",
}
"""Full metric name → what it is. ``<…>`` stands for a part that varies."""
