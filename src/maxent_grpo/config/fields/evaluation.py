"""The settings of evaluation while training."""

from dataclasses import dataclass

from maxent_grpo.config.fields import setting


@dataclass
class EvaluationFields:
    """Evaluation during training."""

    eval_temperature: float = setting(
        0.6, "Temperature of sampled evaluation, whatever training samples at; 0: the likeliest token."
    )
    eval_top_p: float = setting(0.95, "Nucleus of sampled evaluation, in (0, 1]; 1 keeps every token.")
    eval_top_k: int = setting(0, "Tokens that sampled evaluation keeps; 0: all.")
    eval_min_p: float | None = setting(
        None, "Least probability relative to the likeliest token in sampled evaluation; unset: none."
    )
    greedy_eval_enabled: bool = setting(
        False, "Also evaluate one greedy completion per prompt, under eval/greedy/."
    )
