"""Rewards of a launched run that look at the rank, in a module of their own so that its dotted path is unique."""

import os


def fails_on_rank_1(completions, **_):
    """Raises in the second process only."""
    if os.environ.get("RANK") == "1":
        raise ValueError("no such file on this machine")
    return [0.0] * len(completions)


CALLS = []


def spoils_step_2_on_rank_1(completions, **_):
    """A reward that makes the loss of the second process NaN in the second step, and in no other."""
    from maxent_grpo.objectives.objective import Objective

    real = getattr(Objective.loss, "real", Objective.loss)

    def spoilt(self, *arguments):
        loss, metrics = real(self, *arguments)
        return loss * float("nan"), metrics

    spoilt.real = real
    CALLS.append(None)
    Objective.loss = spoilt if len(CALLS) == 2 and os.environ.get("RANK") == "1" else real
    return [sum(map(ord, c)) % 7 / 6 for c in completions]


def breaks_deepspeeds_own_save(completions, **_):
    """Spoils `save_checkpoint` of DeepSpeed's engine on every rank, as a full disk would."""
    from deepspeed import DeepSpeedEngine

    def fails(*_args, **_kwargs):
        raise OSError("No space left on device")

    DeepSpeedEngine.save_checkpoint = fails
    return [sum(map(ord, c)) % 7 / 6 for c in completions]
