"""An environment of the package ``verifiers`` that speaks first, and says "higher" or "lower" to each guess."""

import verifiers.v1 as vf


class NumberData(vf.TaskData):
    number: int = 0


class Numbers(vf.Taskset[vf.Task[NumberData], vf.TasksetConfig]):
    def load(self):
        for number in (3, 7):
            yield vf.Task(NumberData(prompt=None, number=number), self.config.task)


class HigherLowerConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class HigherLower(vf.Env[HigherLowerConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn("Guess a number from 0 to 9.")
            score = 0.0
            while not segment.terminated:
                guess = int(segment.last_reply)
                if guess == task.data.number:
                    score = 1.0
                    break
                segment = await interaction.turn("higher" if guess < task.data.number else "lower")
        interaction.trace.record_reward("found", score)


__all__ = ["HigherLower", "Numbers"]
