"""This package: a run assembled as training assembles it, stepped as the inline driver steps it."""

from dataclasses import replace
from functools import cached_property

from trl.trainer.model_config import ModelConfig

from benchmarks.measure import Clock, Measured
from benchmarks.workload import Workload, modular_reward
from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.config.schema import GRPOConfig, GRPOScriptArguments
from maxent_grpo.train.build import Given, build
from maxent_grpo.train.collate import collate
from maxent_grpo.train.drivers import collect, next_groups
from maxent_grpo.train.step import step
from maxent_grpo.types import Group, Rollout


class Ours:
    """Dr. GRPO with this package's own sampler, scorer, step and learner."""

    name = "ours"

    def __init__(self, workload: Workload, objective: str = "dr_grpo") -> None:
        self.workload = workload
        self.clock = Clock(workload.device)
        config = run_config(workload, objective)
        rows = [{"prompt": text, "answer": "-"} for text in workload.dataset]
        given = Given(workload.model(), workload.tokenizer(), [modular_reward], rows)
        settings = run_settings(config)
        assert isinstance(settings, NativeSettings)
        output = replace(settings.output, directory=workload.directory)
        self.run = build(replace(settings, output=output), given)
        self.run.sampler.sample = self.clock.timed("sample", self.run.sampler.sample)  # type: ignore[method-assign]
        everybody = self.run.stream.take(workload.ranks * workload.prompts)
        self.prompts = everybody[workload.rank * workload.prompts :][: workload.prompts]
        assert [list(prompt.token_ids) for prompt in self.prompts] == workload.prompt_ids

    def step(self) -> Measured:
        self.clock.take()
        with self.clock.phase("collect"):
            collect(self.run)
        groups = next_groups(self.run)
        tokens = sum(len(ids) for group in groups for ids in group.rollout.token_ids)
        return self._measured_update(groups, tokens)

    def sample(self) -> Measured:
        self.clock.take()
        key = (self.workload.seed, "completion", self.run.step)
        rollouts = self.run.sampler.sample(self.prompts, self.run.sampling, key, self.run.step)
        tokens = sum(len(ids) for rollout in rollouts for ids in rollout.token_ids)
        self.run.step += 1  # the next sample draws anew
        return Measured(self.clock.take(), tokens)

    def update(self) -> Measured:
        self.clock.take()
        return self._measured_update(self.groups, sum(map(len, self.workload.completion_ids)))

    def logps(self) -> list[list[float]]:
        batch = collate(self.groups, pad_id=self.run.pad_id, on_policy=True).to(self.run.learner.device)
        logps = self.run.learner.forward(batch).logps.detach()
        return [row[mask].tolist() for row, mask in zip(logps, batch.completion_mask, strict=True)]

    def _measured_update(self, groups: list[Group], tokens: int) -> Measured:
        with self.clock.phase("update"):
            metrics = step(self.run, groups).metrics
        spent = self.clock.take()
        if "collect" in spent:
            spent["score"] = spent.pop("collect") - spent["sample"]
        return Measured(spent, tokens, metrics["loss"], metrics["grad_norm"])

    @cached_property
    def groups(self) -> list[Group]:
        """The workload's completions, scored."""
        ids, size = self.workload.completion_ids, self.workload.group
        rollouts = [
            Rollout(
                prompt=prompt,
                token_ids=tuple(map(tuple, ids[p * size : (p + 1) * size])),
                logps=tuple((0.0,) * len(row) for row in ids[p * size : (p + 1) * size]),
                texts=("",) * size,
                finish_reasons=("length",) * size,
                policy_version=0,
            )
            for p, prompt in enumerate(self.prompts)
        ]
        return list(self.run.scorer.score(rollouts, 1)[0])


def run_config(workload: Workload, objective: str) -> RunConfig:
    """The settings of the run; what is not named here is the package's default."""
    training = GRPOConfig(
        output_dir="benchmark",  # the ranks' common name for a run that writes nothing
        objective=objective,
        distributed=workload.strategy if workload.ranks > 1 else None,
        **workload.trainer_settings(),
    )
    return RunConfig(
        command="train-baseline",
        route="native",
        script=GRPOScriptArguments(dataset_name="given from Python"),
        training=training,
        model=ModelConfig(model_name_or_path="random"),
        recipe_path=None,
        max_prompt_chars=16 * workload.prompt,
    )
