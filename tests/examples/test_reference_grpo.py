"""The package trains what the one-file specification trains: same completions, losses and parameters."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maxent_grpo.config.loading import resolve
from runs import train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reference_grpo.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference_grpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = {
    "maxent": ("train-maxent", {"objective": "maxent", "maxent_tau": 0.01, "beta": 0.09}),
    "dr_grpo": ("train-baseline", {"objective": "dr_grpo"}),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_package_equals_the_one_file_specification(reference, method, tmp_path):
    settings = reference.Settings(method=method, steps=2, prompts_per_step=4, num_generations=6, seed=3)
    expected, losses = reference.train(settings, report=lambda line: None)
    command, objective = METHODS[method]
    own = {
        "model_name_or_path": "bundled:tiny-policy",
        "dataset_name": "task:graph_coloring",
        "reward_funcs": ["task_reward"],
        "output_dir": str(tmp_path),
        "seed": settings.seed,
        "max_steps": settings.steps,
        "per_device_train_batch_size": 12,
        "gradient_accumulation_steps": 2,
        "num_generations": settings.num_generations,
        "max_completion_length": settings.max_completion_length,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm,
        "force_custom_loop": True,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    train(resolve(command, None, {"flat": own | objective}, environ={}))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[1:]]
    assert [r["train/loss"] for r in records] == pytest.approx(losses, abs=2e-6)
    assert max(abs(loss) for loss in losses) > 1e-3 or method == "dr_grpo"
    trained = load_file(tmp_path / "model.safetensors")
    start = type(expected).from_pretrained(reference.bundled_policy_path(), dtype=torch.float32).state_dict()
    apart = moved = 0.0
    for name, value in expected.state_dict().items():
        if name in trained:
            # Norms, since Adam takes a whole step where a gradient is nothing but rounding: of a key's bias, say, which
            # moves all scores of a query alike.
            difference, step = (trained[name] - value).norm(), (value - start[name]).norm()
            assert difference <= 2e-2 * step, name
            apart, moved = apart + float(difference) ** 2, moved + float(step) ** 2
    assert apart**0.5 <= 2e-3 * moved**0.5
