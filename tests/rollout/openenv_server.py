"""A server of the package ``openenv`` with a small environment: guess a number that the seed draws."""

import sys

import uvicorn
from openenv.core import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    number: int


class Hint(Observation):
    hint: str = ""


class Guessing(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._number, self._state = 0, State()

    def reset(self, seed=None, episode_id=None, **_):
        self._number, self._state = (3 * (seed or 0) + 4) % 10, State(episode_id=episode_id, step_count=0)
        return Hint(hint="guess a number from 0 to 9", done=False)

    def step(self, action, timeout_s=None, **_):
        self._state.step_count += 1
        if action.number == self._number:
            return Hint(hint="right", reward=1.0, done=True)
        return Hint(hint="higher" if action.number < self._number else "lower", reward=-0.1, done=False)

    @property
    def state(self):
        return self._state


if __name__ == "__main__":
    uvicorn.run(
        create_app(Guessing, Guess, Hint, max_concurrent_envs=4), port=int(sys.argv[1]), log_level="warning"
    )
