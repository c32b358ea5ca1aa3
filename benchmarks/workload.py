"""What every system is given: the same weights, prompts, reward and, for updates, the same completions."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from benchmarks.models import SIZES, Size, build_model, build_tokenizer, stop_count
from maxent_grpo.randomness import generator

LEARNING_RATE = 1e-6  # an optimiser step costs the same at any rate; a small one leaves lengths as they are
MAX_GRAD_NORM = 1.0


def modular_reward(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward that costs nothing, is the same in every system, and differs within every group."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


@dataclass(frozen=True)
class Workload:
    """One row of a benchmark's table."""

    size: str = "4m"
    prompt: int = 128  # tokens
    completion: int = 64  # tokens, the limit
    group: int = 8
    prompts: int = 8  # of each rank
    micro_prompts: int = 8  # prompts (times group rows) in one forward and backward pass
    lengths: str = "full"  # or "geometric"
    precision: str = "float32"  # or "bf16": autocast over float32 weights
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    ranks: int = 1
    rank: int = 0
    strategy: str = "ddp"  # of ours, where there are several ranks; a peer runs ddp

    @property
    def shape(self) -> Size:
        return SIZES[self.size]

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def trainer_settings(self) -> dict[str, Any]:
        """The settings of the workload, under the names that TRL's configuration and this package's share."""
        return {
            "num_generations": self.group,
            "per_device_train_batch_size": self.micro_prompts * self.group,
            "gradient_accumulation_steps": self.prompts // self.micro_prompts,
            "max_completion_length": self.completion,
            "temperature": 1.0,
            "beta": 0.0,
            "num_iterations": 1,
            "learning_rate": LEARNING_RATE,
            "max_grad_norm": MAX_GRAD_NORM,
            "lr_scheduler_type": "constant",
            "max_steps": 1_000_000,
            "shuffle_dataset": False,
            "seed": self.seed,
            "use_cpu": self.device == "cpu",
            "bf16": self.precision == "bf16",
            "disable_tqdm": True,
            "report_to": [],
        }

    def model(self) -> Qwen2ForCausalLM:
        """A fresh copy of the policy: each system trains its own, from equal weights."""
        stops = stop_count(self.shape, self.completion, self.lengths)
        return build_model(self.shape, stops, self.prompt + self.completion, self.seed)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer(self.shape)

    @cached_property
    def dataset(self) -> list[str]:
        """The prompts of all ranks as text: one word per token, so that every tokenizer call gives the ids back."""
        draws = generator(self.seed, "benchmark", "prompts")
        ids = draws.integers(1, self.shape.vocabulary, (self.ranks * self.prompts, self.prompt)).tolist()
        return [" ".join(f"t{i}" for i in row) for row in ids]

    @property
    def prompt_texts(self) -> list[str]:
        """This rank's prompts."""
        return self.dataset[self.rank * self.prompts : (self.rank + 1) * self.prompts]

    @property
    def prompt_ids(self) -> list[list[int]]:
        """[prompts][prompt] token ids of this rank's prompts."""
        return [[int(word[1:]) for word in text.split()] for text in self.prompt_texts]

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """This rank's completions that updates are measured on, [rows][≤ completion]: equal for all systems.

        Geometric lengths are drawn with mean completion / 2 and cut at the limit, as sampling draws them.
        """
        draws = generator(self.seed, "benchmark", "completions")
        count = self.ranks * self.rows
        lengths = [self.completion] * count
        if self.lengths == "geometric":
            lengths = draws.geometric(2 / self.completion, count).clip(max=self.completion).tolist()
        # No stop token inside a completion, and none at its end either: it does not enter the cost of an update.
        last = self.shape.vocabulary - stop_count(self.shape, self.completion, self.lengths)
        completions = [draws.integers(1, last, length).tolist() for length in lengths]
        return completions[self.rank * self.rows : (self.rank + 1) * self.rows]

    @cached_property
    def directory(self) -> Path:
        """Where trainers may write; it goes with the workload."""
        return Path(self._temporary.name)

    @cached_property
    def _temporary(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="benchmark-")

    def use_threads(self) -> None:
        torch.set_num_threads(self.threads)
