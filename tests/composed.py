"""Command lines as the jobs that Hydra composes of them."""

from collections.abc import Sequence

from maxent_grpo.cli.compose import Composed, compose, sort_arguments


def jobs_of(arguments: Sequence[str]) -> list[Composed]:
    """The one job of the arguments, or the jobs of a sweep."""
    jobs: list[Composed] = []
    single = compose(sort_arguments(arguments), jobs.append)
    return [single] if single is not None else jobs
