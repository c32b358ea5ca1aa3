"""A publisher to a copy of the model in this process, which can be made to fail."""

from typing import Any

from maxent_grpo.rollout.publish.publisher import PublishFailed, Weights


class CopyPublisher:
    """Fills a copy of the model. The events happen at the publication of their number, counted from 1."""

    def __init__(self, model: Any, lost_after: int = 0, failing: int = 0, forgets: str = "") -> None:
        self.model = model
        self.versions: list[str] = []
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        self._lost_after, self._failing, self._forgets = lost_after, failing, forgets

    def publish(self, weights: Weights, version: str) -> None:
        self.versions.append(version)
        own = dict(self.model.named_parameters())
        for name, value in weights:
            if name != self._forgets:
                own[name].data.copy_(value)
        if len(self.versions) == self._failing:
            raise PublishFailed("the connection broke")

    def holds(self, version: str) -> bool:
        if len(self.versions) != self._lost_after:
            return True
        self.model.load_state_dict(self._initial)  # as a server that is started again
        return False

    def close(self) -> None:
        """Nothing is open."""
