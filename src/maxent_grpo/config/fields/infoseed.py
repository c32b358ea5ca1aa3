"""The settings of InfoSeed."""

from dataclasses import dataclass
from typing import Literal

from maxent_grpo.config.fields import setting


@dataclass
class InfoSeedFields:
    """Seeded prompts, and the loss that tells their completions apart."""

    info_seed_enabled: bool = setting(
        False, "Add seeded prompts to every group and train the seed auxiliary loss."
    )
    info_seed_num_seeds: int = setting(
        0,
        "Seeded completions per prompt, one per seed id 0 … S − 1, on top of num_generations; 4 to 8 is usual.",
    )
    info_seed_lambda: float = setting(
        0.0, "Coefficient of the seed loss; 0.01 is usual, more invites stylistic tricks."
    )
    info_seed_temperature: float = setting(0.1, "Temperature of the contrastive similarities, > 0.")
    info_seed_alpha_entropy: float = setting(
        0.0, "Coefficient of the entropy gap between original and seeded completions, ≥ 0."
    )
    info_seed_prompt_template: str = setting(
        "\n[seed={seed}]",
        "Appended to the prompt with {seed} filled in; with {prompt} it replaces the prompt.",
    )
    info_seed_loss_type: Literal["infonce", "ce"] = setting(
        "infonce", "Seed loss: contrastive over pooled states, or cross-entropy of a linear seed head."
    )
    info_seed_pooling: Literal["mean", "last"] = setting(
        "mean", "How a completion's hidden states become one vector."
    )
