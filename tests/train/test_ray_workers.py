"""A rollout worker with an engine: here a local sampler on a copy of the model, which a weight sync fills."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from copy_sync import CopySync

import runs
from maxent_grpo.config.environment import MODE
from maxent_grpo.config.loading import RunConfig, resolve, resolved
from maxent_grpo.errors import RunError
from maxent_grpo.models.loading import is_adapted, load_tokenizer
from maxent_grpo.rollout.local import LocalSampler
from maxent_grpo.rollout.samplers import SAMPLERS, SamplerParts
from maxent_grpo.train.build import Given, start_accelerator, training_prompts
from maxent_grpo.train.collate import collate
from maxent_grpo.types import Prompt

ray = pytest.importorskip("ray")

from maxent_grpo.train.ray.messages import SampleTask, WorkerConfig  # noqa: E402
from maxent_grpo.train.ray.rollout_worker import HostCopy, RolloutWorker  # noqa: E402

ON_RAY: dict[str, Any] = {"driver": "async", "use_vllm": True, "vllm_mode": "colocate"}
ADAPTER: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 4,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "down_proj"],
}
UNTRAINED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def started(
    configure: Callable[..., RunConfig], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RolloutWorker, list[Prompt]]]:
    """A started worker, and prompts. What stands for its engine begins with random weights."""

    def start(forgets: str = "", **settings: Any) -> tuple[RolloutWorker, list[Prompt]]:
        def factory(parts: SamplerParts) -> tuple[LocalSampler, CopySync]:
            other = copy.deepcopy(parts.model)
            other = other.unload() if is_adapted(other) else other
            for parameter in other.parameters():
                torch.nn.init.normal_(parameter)
            return LocalSampler(other, parts.tokenizer), CopySync(other, forgets=forgets)

        monkeypatch.setitem(SAMPLERS, "vllm_engine", factory)
        told = runs.native(configure(**ON_RAY | settings))
        worker = RolloutWorker(WorkerConfig.of(told, Given(), total_steps=6))
        prompts = training_prompts(told.data, Given(), load_tokenizer(told.model.source))
        worker.start(prompts[:2])
        return worker, prompts

    return start


def moved(worker: RolloutWorker) -> dict[str, torch.Tensor]:
    """What a learner would publish after a step: all that is trained, at other values."""
    torch.manual_seed(5)
    trained = {n: p for n, p in worker._model.named_parameters() if p.requires_grad}
    return {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in trained.items()}


@pytest.mark.parametrize("settings", [{}, ADAPTER], ids=["whole", "adapter"])
def test_new_weights_reach_the_engine_and_are_probed_before_it_samples(
    started: Callable[..., Any], settings: dict[str, Any]
) -> None:
    worker, prompts = started(**settings)
    sampled, _ = worker.sample([SampleTask(prompt, 3) for prompt in prompts[:3]], moved(worker), 3)
    first, *others = (one.metrics for one in sampled)
    assert first["sampling/publishes"].value == 1
    assert 0 < first["sampling/logp_difference/max"].value < 1e-4
    mean = first["sampling/logp_difference/mean"]
    assert 0 < mean.value / mean.weight < 1e-4
    assert all("sampling/publishes" not in metrics for metrics in others)
    assert [one.group.rollout.policy_version for one in sampled] == [3] * 3
    batch = collate([one.group for one in sampled], pad_id=0, on_policy=True)
    copy_of_weights = HostCopy(worker._model, 1.0, start_accelerator(worker._config.settings.device))
    gap = (copy_of_weights.logps(batch) - batch.behaviour_logps)[batch.completion_mask]
    assert gap.abs().max() < 1e-4
    again, _ = worker.sample([SampleTask(prompts[3], 3)], None, 3)  # the same version: nothing is published
    assert not any(name.startswith("sampling/") for name in again[0].metrics)


def test_an_engine_that_misses_a_parameter_ends_the_run(started: Callable[..., Any]) -> None:
    worker, prompts = started(forgets=UNTRAINED)
    with pytest.raises(RunError, match=r"^step 2: the sampler did not get its weights: its log-probs differ"):
        worker.sample([SampleTask(prompts[0], 2)], moved(worker), 2)
    assert len(worker._sync.weight_sync.versions) == 3  # type: ignore[union-attr]


def test_a_worker_gets_every_setting_that_the_driver_resolved(configure: Callable[..., RunConfig]) -> None:
    """Those of the environment too, which a worker on another machine does not have."""
    sections = resolved(configure(**ON_RAY))
    command = sections.pop("command")
    told = runs.native(resolve(command, None, sections, {MODE: "shallow", "MAX_PROMPT_CHARS": "99"}))
    sent = ray.cloudpickle.dumps(WorkerConfig.of(told, Given(), total_steps=6))
    got = pickle.loads(sent).load_config()
    assert (got.checkpoints.metadata, got.data.prompts.max_prompt_chars) == ("shallow", 99)
    assert got == told


def test_the_learner_has_no_engine_and_measures_what_engines_sample(
    configure: Callable[..., RunConfig], tmp_path: Any
) -> None:
    config = configure(**ON_RAY)
    run = runs.build(config)
    assert isinstance(run.sampler, LocalSampler)
    assert run.sampler_sync is None
    assert run.sampled_by_engine
    run.close()
