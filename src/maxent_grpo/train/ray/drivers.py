"""The two loops that train on workers. Both call no other step than `train.step`, in the learner's process."""

from maxent_grpo.train.ray.crew import Crew


def train_sync(crew: Crew, *, overlap: bool) -> None:
    """Sample a rollout, learn from it, publish; with ``overlap`` the next one is sampled while this one is learnt.

    Consumes: prompts, as the buffer admits them: those of one rollout, or two with ``overlap``.
    Produces: the updates of the learner, with its records and checkpoints.
    Waits for: all groups of a rollout; then the learner. Each piece of work has a deadline of its own.
    Unblocked by: a rollout worker's groups, or its end or deadline, after which its prompts are issued again; the
    learner's last update on the rollout, or its end or deadline, after which it resumes.
    """
    while not crew.done:
        while not crew.learning and not crew.learn():
            crew.issue()
            crew.wait("the groups of a rollout")
        while crew.learning:
            if overlap:
                crew.issue()
            crew.wait("the updates on a rollout")
        crew.publish()


def train_async(crew: Crew) -> None:
    """Sample and learn at the same time, within the buffer's bound on staleness.

    Consumes: prompts, as the buffer admits them: by the version of the published weights.
    Produces: the updates of the learner, with its records and checkpoints.
    Waits for: whatever comes first of any worker's groups and the learner's updates. Each piece of work has a deadline.
    Unblocked by: the same as `train_sync`. With ``max_staleness`` 0 nothing is admitted while the learner is behind,
    and this loop makes the steps of that one.
    """
    while not crew.done:
        crew.publish()
        crew.learn()
        crew.issue()
        crew.wait("groups, or the updates on a rollout")
