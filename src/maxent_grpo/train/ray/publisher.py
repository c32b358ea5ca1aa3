"""Weights on their way from the learner to the rollout workers, through Ray's object store."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Publisher:
    """The weights that count, and who has them.

    The learner leaves them in the object store once; a worker fetches them with its first errands after that, so that
    it changes weights between two pieces of work and a group is drawn under one version.
    """

    frequency: int  # optimiser steps between two versions
    version: int = -1  # optimiser steps behind the weights
    weights: Any = None  # the object's reference; it keeps the object alive
    serial: int = 0  # of the publication: after the learner has gone back, a version is published again

    def due(self, step: int) -> bool:
        """Whether the learner, which stands after ``step`` optimiser steps, should publish."""
        return step - self.version >= self.frequency

    def accept(self, weights: Any, version: int) -> None:
        """Make ``weights`` the ones that count."""
        self.weights, self.version, self.serial = weights, version, self.serial + 1
