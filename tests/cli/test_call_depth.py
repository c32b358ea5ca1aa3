"""How far it is from the command to the gradient."""

import sys
from pathlib import Path

import pytest
import torch

import maxent_grpo
from maxent_grpo.cli import main as scripts

SOURCE = str(Path(maxent_grpo.__file__).parent)
TINY = """\
maxent.recipe=configs/recipes/tiny/maxent-grpo/config_graph_coloring.yaml max_steps=1 per_device_train_batch_size=4
gradient_accumulation_steps=1 num_generations=4 num_generations_eval=2 max_completion_length=8 eval_strategy=no
save_strategy=no disable_tqdm=true maxent_target_weight_entropy=1.0
dataset_config="train_size=8,eval_size=6" eval_dataset_config="train_size=8,eval_size=6"
"""


def test_the_first_backward_pass_is_ten_of_our_frames_below_the_command(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    backward = torch.Tensor.backward

    def watched(self: torch.Tensor, *args: object, **kwargs: object) -> None:
        stack, frame = [], sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(SOURCE):
                stack.append(frame.f_code.co_qualname)
            frame = frame.f_back
        stacks.append(stack)
        backward(self, *args, **kwargs)

    monkeypatch.chdir(repository)
    monkeypatch.setattr(torch.Tensor, "backward", watched)
    assert scripts.maxent([*TINY.split(), f"output_dir={tmp_path / 'run'}"]) == 0
    assert stacks
    assert len(stacks[0]) <= 10, stacks[0]
