"""A run on Ray from its configuration to its end."""

import os
from pathlib import Path

from maxent_grpo.config.launch import launched_processes
from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.plan import batch_plan
from maxent_grpo.config.workers import groups_per_rollout, steps_per_rollout
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.errors import UsageError
from maxent_grpo.files import JsonlFile
from maxent_grpo.models.loading import load_tokenizer, with_pad_token
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.assembly.assemble import make_cadence
from maxent_grpo.train.assembly.inputs import Given, training_prompts
from maxent_grpo.train.assembly.policies import model_source, needs_reference
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.train.ray.buffer import Bounds, GroupBuffer
from maxent_grpo.train.ray.cluster import Places, cluster
from maxent_grpo.train.ray.crew import Crew
from maxent_grpo.train.ray.drivers import train_async, train_sync
from maxent_grpo.train.ray.learner_worker import TICKETS_FILE
from maxent_grpo.train.ray.rollout_worker import Sampled
from maxent_grpo.train.records import RecordFiles, run_title, start_records
from maxent_grpo.train.stopping import stopping_on_signal


def train_on_ray(config: RunConfig, given: Given, output_dir: Path, checkpoint: Path | None) -> int:
    """Train with ``driver=sync`` or ``driver=async``, from ``checkpoint`` if there is one. Returns the last step."""
    training = config.training
    refuse_misfits(config)
    plan = batch_plan(training, training.learner_workers)
    tokenizer = (
        with_pad_token(given.tokenizer)
        if given.tokenizer is not None
        else load_tokenizer(model_source(config))
    )
    prompts = training_prompts(config, given, tokenizer)
    cadence = make_cadence(config, plan, len(prompts))
    logs, tickets = RecordFiles(output_dir), JsonlFile(output_dir / TICKETS_FILE)

    def cut_back(step: int) -> None:
        start_records(config, logs, step)
        tickets.cut_back(step or -1)

    with stopping_on_signal(output_dir), cluster(training.ray_address, output_dir):
        places = Places(training)
        shown = not training.disable_tqdm
        with Progress(cadence.total_steps, run_title(config, output_dir), shown) as progress:
            crew = Crew(
                config,
                Assignment.of(config, given, output_dir, cadence.total_steps),
                places,
                PromptStream(prompts, seed=training.seed, shuffle=training.shuffle_dataset is not False),
                GroupBuffer[Sampled](bounds_of(config)),
                progress,
                cut_back,
            )
            try:
                crew.begin(checkpoint)
                if training.driver == "sync":
                    train_sync(crew, overlap=training.overlap_sampling)
                else:
                    train_async(crew)
                crew.finish()
            finally:
                crew.dismiss()
                places.release()
        return crew.step


def bounds_of(config: RunConfig) -> Bounds:
    """What limits the buffer; where ``buffer_groups`` is unset, ``max_staleness`` alone."""
    training = config.training
    groups, steps = groups_per_rollout(training), steps_per_rollout(training)
    admitted = (training.max_staleness // steps + 1) * groups
    return Bounds(groups, steps, training.max_staleness, training.buffer_groups or admitted)


def refuse_misfits(config: RunConfig) -> None:
    """Raise `UsageError` for what only shows where the run starts."""
    training = config.training
    if launched_processes(os.environ) > 1:
        raise UsageError(
            f"driver: {training.driver} starts its own ranks, and {launched_processes(os.environ)} processes were "
            "launched; start one, and set learner_workers"
        )
    if training.reference_workers and not needs_reference(config):
        raise UsageError(
            f"reference_workers: {training.reference_workers}, and nothing reads the reference policy (beta is 0); set "
            "it to 0, or beta > 0"
        )
