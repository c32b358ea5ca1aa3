"""Two small environments of the package ``verifiers``, as its users write them: one turn, and a game that answers."""

import verifiers.v1 as vf


class GuessData(vf.TaskData):
    answer: str = ""


class GuessTask(vf.Task[GuessData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(self.data.answer == (trace.last_reply or "").strip())


class Guess(vf.Taskset[GuessTask, vf.TasksetConfig]):
    def load(self):
        for n in range(3):
            data = GuessData(prompt=f"Say {n}.", system_prompt="Be brief.", answer=str(n))
            yield GuessTask(data, self.config.task)


__all__ = ["Guess"]
