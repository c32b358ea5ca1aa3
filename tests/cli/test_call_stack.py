"""The way from a command to the backward pass is short enough to be read in one go."""

import traceback
from pathlib import Path

import pytest
import torch

import maxent_grpo
from maxent_grpo.cli import main as scripts

SRC = str(Path(maxent_grpo.__file__).parent)


def test_a_command_reaches_the_backward_pass_in_few_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stacks: list[list[str]] = []
    backward = torch.Tensor.backward

    def noting(loss: torch.Tensor, *arguments: object, **keywords: object) -> None:
        frames = traceback.extract_stack()
        stacks.append([frame.name for frame in frames if frame.filename.startswith(SRC)])
        backward(loss, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "backward", noting)
    arguments = [
        "model.model_name_or_path=bundled:tiny-policy",
        "script.dataset_name=task:arithmetic",
        "script.reward_funcs=[task_reward]",
        f"training.output_dir={tmp_path / 'run'}",
        "training.force_custom_loop=true",
        "training.use_cpu=true",
        "training.disable_tqdm=true",
        "training.num_generations=2",
        "training.per_device_train_batch_size=2",
        "training.max_completion_length=4",
        "training.max_steps=1",
        "training.save_strategy=no",
    ]
    assert scripts.baseline(arguments) == 0
    assert stacks
    below = stacks[0][stacks[0].index("train") :]
    assert below == ["train", "train_inline", "update", "step", "backward", "backward"]
    assert len(stacks[0]) <= 15, stacks[0]
