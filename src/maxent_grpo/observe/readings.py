"""How to read each metric: its unit, and what a bad value looks like.

Names are full, as in ``metrics.jsonl``. A metric that some room defines must have a line here: a test says so.
"""

from collections.abc import Mapping
from typing import Final

from maxent_grpo.observe import names

_SHARE, _NATS, _TOKENS, _REWARD, _COUNT, _FLAG, _STEPS = (
    "share",
    "nats",
    "tokens",
    "reward",
    "count",
    "0 or 1",
    "steps",
)

READINGS: Final[Mapping[str, tuple[str, str]]] = {
    # Rewards and completions
    "train/rewards/<name>/mean": (
        _REWARD,
        "stuck at its smallest value: the format that it asks for never occurs",
    ),
    "train/rewards/<name>/std": (_REWARD, "0: this function tells no completion of a group from another"),
    "train/reward/errors": (_COUNT, "above 0: read the warning in the log, which names function and prompt"),
    "train/reward/timeouts": (
        _COUNT,
        "above 0: raise reward_timeout, or look for the answers that hang the function",
    ),
    "train/reward/logged/<name>": ("as logged", ""),
    "train/reward/unscored": (_COUNT, "above 0: completions train with utility 0 for want of a score"),
    "train/completions/mean_length_sampled": (
        _TOKENS,
        "growing to max_completion_length: babbling, or a limit too low",
    ),
    "train/completions/min_length_sampled": (_TOKENS, "1: empty answers, whose first token ends the text"),
    "train/completions/max_length_sampled": (_TOKENS, "always max_completion_length: see clipped_frac"),
    "train/completions/mean_length_terminated": (_TOKENS, "absent: no completion ended by itself"),
    "train/completions/clipped_frac": (
        _SHARE,
        "well above 0: the limit decides which answers count; raise it",
    ),
    # Utilities
    "train/reward": (
        _REWARD,
        "flat from the start: task too hard or reward never given; falling: learning rate too high",
    ),
    "train/reward_std": (_REWARD, "0: no signal in any group"),
    "train/frac_reward_zero_std": (
        _SHARE,
        "near 1: most groups teach nothing; other prompts, larger groups, or dynamic_sampling",
    ),
    "train/reward_shaped": (_REWARD, "far below reward: the shaping, and not the task, is what is learnt"),
    # SEED-GRPO
    "train/seed_grpo/semantic_entropy_mean": (
        _NATS,
        "0: all answers of a group agree, and SEED-GRPO is its backbone",
    ),
    "train/seed_grpo/semantic_entropy_min": (_NATS, ""),
    "train/seed_grpo/semantic_entropy_max": (_NATS, ""),
    "train/seed_grpo/advantage_scale_mean": (
        "factor",
        "near 0: advantages are almost switched off; lower seed_grpo_alpha",
    ),
    "train/seed_grpo/advantage_scale_min": ("factor", ""),
    "train/seed_grpo/advantage_scale_max": ("factor", ""),
    "train/seed_grpo/alpha_effective": ("per nat", ""),
    "train/seed_grpo/max_possible_entropy": (_NATS, ""),
    # Weights over the group
    "train/weight_entropy": (_NATS, "0: one candidate takes the whole group; ln G: the weights say nothing"),
    "train/weight_entropy_norm": (_SHARE, "at 0 or 1 for long: τ is far too small or too large"),
    "train/weight_entropy_min": (_NATS, ""),
    "train/weight_entropy_max": (_NATS, ""),
    "train/weight_norm_denom": ("", "much larger than τ: β decides the weights, and moving τ changes little"),
    "train/effective_rollouts": ("candidates", "1: a group of G is used as one sample"),
    "train/q_entropy_mean": (_NATS, "ln G: utilities are equal; 0: one candidate is the whole target"),
    "train/q_entropy_min": (_NATS, ""),
    "train/q_entropy_max": (_NATS, ""),
    # The loss
    "train/loss": (
        "loss",
        "null: not finite, and nothing was stepped. Its level says little: watch reward and grad_norm",
    ),
    "train/loss/policy": ("loss", "exactly 0 in every step: no group carries signal"),
    "train/loss/kl": (_NATS, ""),
    "train/loss/weighted_kl": ("loss", "larger than loss/policy for long: β holds the policy where it was"),
    "train/loss/behaviour_kl": ("loss", ""),
    "train/loss/entropy": ("loss", "larger than loss/policy: entropy is what is trained"),
    "train/loss/kl_cov": ("loss", ""),
    "train/kl_cov/held": (_SHARE, ""),
    "train/clip_cov/dropped": (
        _SHARE,
        "0: the covariance range holds no token; see clip_cov_low and clip_cov_high",
    ),
    "train/top_entropy/kept": (_SHARE, ""),
    "train/off_policy_mask/kept": (_SHARE, "far below 1: samples are too old for the policy that learns"),
    "train/kl": (
        "nats per token",
        "growing without end: the policy leaves the reference; lower learning_rate or raise beta",
    ),
    "train/behaviour_kl": (
        "nats per token",
        "not near 0 in the first update of a rollout: sampler and learner disagree",
    ),
    "train/entropy": (
        "nats per token",
        "falling to 0: collapse, every group the same text; rising fast: noise",
    ),
    "train/clip_ratio": (
        _SHARE,
        "large: updates are too large for one rollout; 0 is normal with one update each",
    ),
    "train/clip_ratio/low_mean": (_SHARE, ""),
    "train/clip_ratio/high_mean": (_SHARE, ""),
    "train/ratio/mean": ("ratio", "far from 1: the policy moved far within one rollout"),
    "train/ratio/max": ("ratio", "huge: single tokens dominate the gradient; clip, or set delta"),
    "train/ratio/square_mean": ("ratio²", "much larger than 1: few tokens carry the step"),
    "train/tis/mean": ("weight", "far from 1: sampler and learner compute different log-probs"),
    "train/tis/capped": (_SHARE, "well above 0: the same, more strongly"),
    # InfoSeed
    "train/loss/seed": ("loss", "stuck at ln of the number of candidates × λ: seeds are not told apart yet"),
    "train/info_seed/entropy": ("loss", ""),
    "train/seed/entropy/orig": (_NATS, ""),
    "train/seed/entropy/seed_aug": (_NATS, ""),
    "train/seed/seed_aug_frac": (_SHARE, ""),
    "train/seed/seed_pred_acc": (
        _SHARE,
        "1/S: seeds leave no trace; near 1 while eval_seed/mean falls: malformed answers mark the seed",
    ),
    "train/seed/seed_pred_acc_aug": (_SHARE, "the same, as the loss's own classifier sees it"),
    "train/seed/seed_diversity_l2": (
        "distance",
        "near 0: the completions of all seeds look alike to the policy",
    ),
    # Controllers
    "train/tau": ("τ", "at maxent_tau_min or maxent_tau_max for long: the entropy target cannot be reached"),
    "train/beta": ("β", "growing without end: kl_target is out of reach"),
    "train/tau_log": ("ln τ", ""),
    "train/delta_tau": ("τ", "changing sign at every step with growing size: the step size is too large"),
    "train/delta_beta": ("β", "the same"),
    "train/tau_target_entropy": (_NATS, "above ln G: cannot be reached"),
    "train/weight_entropy_ema": (_NATS, ""),
    "train/weight_entropy_error": (
        _NATS,
        "of one sign for hundreds of steps: τ moves too slowly, or is at a bound",
    ),
    "train/kl_error_to_target": ("nats per token", "of one sign for long: the same for β"),
    "train/kl_ratio_to_target": ("ratio", "far above 1: the policy drifts faster than β answers"),
    "train/kl_controller/enabled": (_FLAG, ""),
    "train/kl_controller/target": ("nats per token", ""),
    "train/kl_controller/horizon": (_STEPS, ""),
    "train/kl_controller/step_size": ("ratio", ""),
    "train/entropy_coef": ("per nat", "at entropy_coef_max for long: the bonus does not raise the entropy"),
    "train/controller/skipped": (
        _COUNT,
        "above 0: a measurement was not finite; look at loss and grad_norm of that step",
    ),
    "train/meta/enabled": (_FLAG, ""),
    "train/meta/lr": ("", ""),
    "train/meta/update_interval": (_STEPS, ""),
    "train/meta/truncation_steps": (_COUNT, ""),
    "train/meta/use_hessian": (_FLAG, ""),
    "train/meta/loss": (
        "nats²",
        "not falling over hundreds of steps: see tau_projected, or raise controller_meta_lr",
    ),
    "train/meta/tau_grad": (
        "",
        "0 with first_order or truncated_backprop: weights are one-hot; set maxent_tau_min",
    ),
    "train/meta/beta_grad": ("", ""),
    "train/meta/grad_norm": ("", ""),
    "train/meta/tau_projected": (_FLAG, "1 for long: τ rests at its bound"),
    "train/meta/beta_projected": (_FLAG, "1 for long: even β = 0 leaves less KL than its target"),
    # Exploration of the training groups
    "train/pass": (_SHARE, "falling while reward rises: the policy gives hard prompts up"),
    "train/distinct": ("answers", "towards 1 while reward rises: collapse onto one answer per prompt"),
    "train/coverage": (_SHARE, "falling while reward rises: right answers are being forgotten"),
    "train/dynamic_sampling/rounds": (
        _COUNT,
        "always dynamic_sampling_max_rounds: most prompts are too easy or too hard",
    ),
    "train/dynamic_sampling/dropped": (
        _COUNT,
        "several times the step's groups: sampling costs more than learning",
    ),
    "train/dynamic_sampling/filled": (
        _COUNT,
        "above 0 for long: the step holds groups without signal all the same",
    ),
    # Sampling through vLLM
    "train/sampling/publishes": (_COUNT, ""),
    "train/sampling/lost_weights": (_COUNT, "above 0: a server was started again; read its log"),
    "train/sampling/staleness": (
        _STEPS,
        "above 0 under the inline driver: weights are not published every step",
    ),
    "train/sampling/ratio/mean": ("ratio", "far from 1: sampler and learner disagree"),
    "train/sampling/ratio/min": ("ratio", ""),
    "train/sampling/ratio/max": ("ratio", ""),
    "train/sampling/logp_difference/mean": (_NATS, "well above rounding: the sampler has other weights"),
    "train/sampling/logp_difference/max": (_NATS, ""),
    "train/generation/requests": (_COUNT, ""),
    "train/generation/retry_attempts": (_COUNT, "many: the server is overloaded or ill; read its log"),
    "train/generation/retry_rounds": (_COUNT, "above 0: the server aborts completions"),
    "train/generation/halved_requests": (_COUNT, "above 0: lower vllm_prompts_per_request"),
    "train/generation/server_losses": (_COUNT, "above 0: a server was started again; read its log"),
    "train/generation/unfinished_completions": (_COUNT, "above 0: the server aborts completions"),
    "train/generation/excess_completions": (
        _COUNT,
        "above 0: something between here and the server adds answers",
    ),
    "train/generation/filtered_groups": (_COUNT, ""),
    "train/generation/client_tag_errors": (_COUNT, "above 0: the server does not echo client tags"),
    "train/generation/logprobs_missing": (_COUNT, "above 0: the server gives no log-probs"),
    "train/generation/backfilled_completions": (_COUNT, "above 0: the server leaves work undone"),
    "train/generation/backfilled_prompts": (_COUNT, ""),
    "train/generation/latency_ms": ("milliseconds", "growing: more is asked at once than the server can do"),
    "train/generation/latency_ms_max": (
        "milliseconds",
        "near vllm_request_timeout: raise it, or ask for less at once",
    ),
    # The Ray drivers
    "train/buffer/policy_age_mean": (
        _STEPS,
        "at max_staleness: samplers are too slow, or weights come too seldom",
    ),
    "train/buffer/policy_age_max": (_STEPS, ""),
    "train/buffer/ready": (
        _COUNT,
        "0 for long: the learner waits for samples; large: samplers wait for the learner",
    ),
    "train/buffer/sampling": (_COUNT, ""),
    "train/buffer/dropped": (
        _COUNT,
        "growing: work is thrown away; raise max_staleness or use fewer rollout workers",
    ),
    "train/buffer/lost": (_COUNT, "growing: workers die; read their logs"),
    "train/buffer/reissued": (_COUNT, "growing: see dropped and lost"),
    "train/buffer/late": (_COUNT, "growing: worker_timeout is too short"),
    "train/buffer/rollout_workers_replaced": (_COUNT, "growing: workers die; read their logs"),
    "train/buffer/learners_replaced": (_COUNT, "growing: the learner dies; read its log"),
    # Importance weights
    "train/tis/raw_mean": ("weight", "far from 1: sampler and learner disagree"),
    "train/tis/raw_max": ("weight", ""),
    "train/tis/raw_square_mean": ("weight²", "much larger than 1: few tokens carry the step"),
    # The learner
    "train/learning_rate": ("", ""),
    "train/grad_norm": (
        "L2 norm",
        "0: nothing is learnt; far above max_grad_norm for long: the clip sets the step size",
    ),
    "train/update_skipped": (_FLAG, "1: not stepped; max_nonfinite_steps of them in a row end the run"),
    "train/epoch": ("passes", ""),
    "train/num_tokens": (_TOKENS, ""),
    # Evaluation
    "eval/mean_reward": (_REWARD, "falling while train/reward rises: overfitting to the training prompts"),
    "eval/mean_length": (_TOKENS, "near max_completion_length: answers are cut off"),
    "eval/mean_at_<k>": (_SHARE, ""),
    "eval/pass_at_<k>": (_SHARE, "falling while mean_at_k rises: fewer problems within reach"),
    "eval/distinct_at_<k>": ("answers", "falling while mean_at_k rises: collapse"),
    "eval/coverage_at_<k>": (_SHARE, "falling while mean_at_k rises: collapse"),
    "eval/rewards/<name>/mean": (_REWARD, ""),
    "eval/greedy/<metric>": (
        "as its metric",
        "far above mean_at_k: the policy knows more than its samples show",
    ),
    "eval_seed/pass_at_1": (_SHARE, ""),
    "eval_seed/mean": (_SHARE, "falling while seed_pred_acc rises: seeds are marked by wrong answers"),
    "eval_seed/distinct": ("answers", ""),
    "eval_seed/coverage": (_SHARE, ""),
    "eval_seed/pred_acc": (_SHARE, "1/S: chance"),
    "eval_seed/diversity_l2": ("distance", ""),
    "eval_seed/<metric>_se": ("as its metric", ""),
    "eval/<metric>_se": ("as its metric", "as large as the difference that you look at: too few prompts"),
    # Timing
    "time/<phase>": ("seconds", "sample far above update: sampling is the bottleneck"),
    names.TOKENS_PER_SECOND: (
        "tokens per second",
        "falling over a run: completions get longer, or memory is short",
    ),
}
"""Full metric name → (unit, what a bad value looks like). An empty unit is a plain number; empty: nothing is bad."""
