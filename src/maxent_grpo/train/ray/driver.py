"""A run on Ray from its configuration to its end, by one of two loops over its supervisors.

Both loops call no other step than `train.step`, in the learner's process.
"""

import signal
from pathlib import Path

from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.data.stream import PromptStream
from maxent_grpo.files import JsonlFile
from maxent_grpo.observe.console import Progress
from maxent_grpo.train.build import Given, make_cadence, make_tokenizer, training_prompts
from maxent_grpo.train.checkpoint import settings_of_checkpoint
from maxent_grpo.train.ray.buffer import Bounds, GroupBuffer
from maxent_grpo.train.ray.cluster import Places, cluster
from maxent_grpo.train.ray.learner_worker import TICKETS_FILE
from maxent_grpo.train.ray.messages import SampledGroup, WorkerConfig
from maxent_grpo.train.ray.supervisors import UPDATES, LearnerSupervisor, RolloutSupervisor, wait
from maxent_grpo.train.records import RecordFiles
from maxent_grpo.train.stopping import stopping_on_signal


def train_on_ray(settings: NativeSettings, given: Given, checkpoint: Path | None) -> int:
    """Train with ``driver=sync`` or ``driver=async``, from ``checkpoint`` if there is one. Returns the last step."""
    workers, records, output_dir = settings.workers, settings.records, settings.output.directory
    assert workers is not None, "train.run looks"
    prompts = training_prompts(settings.data, given, make_tokenizer(settings.model.source, given))
    total_steps = make_cadence(settings.cadence, settings.plan, len(prompts)).total_steps
    files, tickets = RecordFiles(output_dir), JsonlFile(output_dir / TICKETS_FILE)
    stream = PromptStream(prompts, seed=settings.seed, shuffle=settings.shuffle)
    rollout, steps = workers.groups_per_rollout, workers.steps_per_rollout
    buffer = GroupBuffer[SampledGroup](Bounds(rollout, steps, workers.max_staleness, workers.buffer_groups))
    told = WorkerConfig.of(settings, given, total_steps)

    def cut_back(step: int) -> None:
        files.start(records, step, settings_of_checkpoint(checkpoint) if checkpoint else None)
        tickets.cut_back(step or -1)

    with stopping_on_signal(output_dir, signal.SIGUSR1), cluster(workers.address, output_dir):
        places = Places(workers, use_cpu=settings.device.use_cpu)
        with Progress(total_steps, f"{records.title} → {output_dir}", records.progress) as progress:
            rollouts = RolloutSupervisor(told, places, stream, buffer, progress)
            learner = LearnerSupervisor(told, places, rollouts, cut_back)
            try:
                rollouts.start()
                learner.start(checkpoint)
                if workers.driver == "sync":
                    train_sync(rollouts, learner, overlap=workers.overlap)
                else:
                    train_async(rollouts, learner)
                learner.finish()
            finally:
                learner.shutdown()
                rollouts.shutdown()
                places.release()
        return learner.step


def train_sync(rollouts: RolloutSupervisor, learner: LearnerSupervisor, *, overlap: bool) -> None:
    """Sample a rollout, learn from it, publish; with ``overlap`` the next one is sampled while this one is learnt.

    Consumes: prompts, as the buffer admits them: those of one rollout, or two with ``overlap``.
    Produces: the updates of the learner, with its records and checkpoints.
    Waits for: all groups of a rollout; then the learner. Each call of a worker has a deadline of its own.
    Unblocked by: a rollout worker's groups, or its end or deadline, after which its prompts are issued again; the
    learner's last update on the rollout, or its end or deadline, after which it resumes.
    """
    while not learner.done:
        while not learner.updating and not learner.start_updates():
            rollouts.issue()
            wait(rollouts, learner, "the groups of a rollout")
        while learner.updating:
            if overlap:
                rollouts.issue()
            wait(rollouts, learner, UPDATES)
        learner.publish()


def train_async(rollouts: RolloutSupervisor, learner: LearnerSupervisor) -> None:
    """Sample and learn at the same time, within the buffer's bound on staleness.

    Consumes: prompts, as the buffer admits them: by the version of the published weights.
    Produces: the updates of the learner, with its records and checkpoints.
    Waits for: whatever comes first of any worker's groups and the learner's updates. Each call has a deadline.
    Unblocked by: the same as `train_sync`. With ``max_staleness`` 0 nothing is admitted while the learner is behind,
    and this loop makes the steps of that one.
    """
    while not learner.done:
        learner.publish()
        learner.start_updates()
        rollouts.issue()
        wait(rollouts, learner, f"groups, or {UPDATES}")
