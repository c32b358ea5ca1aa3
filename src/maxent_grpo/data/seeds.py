"""InfoSeed's variants of a prompt, one for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maxent_grpo.data.prompts import PromptSettings, seedable_chat, seeded_prompt
from maxent_grpo.errors import UsageError
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SeedPrompts:
    """Makes the variants of any prompt that ``settings`` made: when it is drawn, since few are at a time."""

    template: str  # holds {seed}, and may hold {prompt}; see `data.prompts.seeded_prompt`
    count: int  # S
    tokenizer: "PreTrainedTokenizerBase"
    settings: PromptSettings

    def variants(self, prompt: Prompt) -> list[Prompt]:
        """``prompt`` with each of the seeds 0 … S − 1."""
        return [
            seeded_prompt(prompt, seed, self.template, self.tokenizer, self.settings)
            for seed in range(self.count)
        ]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `UsageError` where a prompt cannot carry a seed, or the tokenizer cannot tell two seeds apart."""
        for prompt in prompts:
            seedable_chat(prompt, self.settings)
        seeds: dict[tuple[int, ...], int] = {}
        for variant in self.variants(prompts[0]):
            same = seeds.setdefault(variant.token_ids, variant.seed_id)
            if same != variant.seed_id:
                raise UsageError(
                    f"info_seed_prompt_template: seeds {same} and {variant.seed_id} are the same tokens to this "
                    f"tokenizer in {self.template!r}; choose characters that it knows"
                )
