"""A run on Ray from its configuration to its end."""

from pathlib import Path

from maxent_grpo.config.run_settings import NativeSettings, WorkerSettings
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.build import Given, make_cadence, make_tokenizer, training_prompts
from maxent_grpo.train.ray.assignment import Assignment
from maxent_grpo.train.ray.buffer import Bounds, GroupBuffer
from maxent_grpo.train.ray.cluster import Places, cluster
from maxent_grpo.train.ray.crew import Crew
from maxent_grpo.train.ray.drivers import train_async, train_sync
from maxent_grpo.train.ray.learner_worker import TICKETS_FILE
from maxent_grpo.train.ray.rollout_worker import Sampled
from maxent_grpo.train.records import RecordFiles, run_title, start_records
from maxent_grpo.train.stopping import stopping_on_signal


def train_on_ray(settings: NativeSettings, given: Given, checkpoint: Path | None) -> int:
    """Train with ``driver=sync`` or ``driver=async``, from ``checkpoint`` if there is one. Returns the last step."""
    workers, output_dir = settings.workers, settings.output.directory
    assert workers is not None, "train.run looks"
    tokenizer = make_tokenizer(settings.model.source, given)
    prompts = training_prompts(settings.data, given, tokenizer)
    cadence = make_cadence(settings.cadence, settings.plan, len(prompts))
    logs, tickets = RecordFiles(output_dir), JsonlFile(output_dir / TICKETS_FILE)

    def cut_back(step: int) -> None:
        start_records(settings.records, logs, step)
        tickets.cut_back(step or -1)

    with stopping_on_signal(output_dir), cluster(workers.address, output_dir):
        places = Places(workers, use_cpu=settings.device.use_cpu)
        title = run_title(settings.records, output_dir)
        with Progress(cadence.total_steps, title, settings.records.progress) as progress:
            crew = Crew(
                workers,
                Assignment.of(settings, given, cadence.total_steps),
                places,
                PromptStream(prompts, seed=settings.seed, shuffle=settings.shuffle),
                GroupBuffer[Sampled](bounds_of(workers)),
                progress,
                cut_back,
            )
            try:
                crew.begin(checkpoint)
                if workers.driver == "sync":
                    train_sync(crew, overlap=workers.overlap)
                else:
                    train_async(crew)
                crew.finish()
            finally:
                crew.dismiss()
                places.release()
        return crew.step


def bounds_of(workers: WorkerSettings) -> Bounds:
    """The limits of the buffer."""
    return Bounds(
        workers.groups_per_rollout, workers.steps_per_rollout, workers.max_staleness, workers.buffer_groups
    )
