import pytest

from maxent_grpo.errors import UsageError
from maxent_grpo.train.learner import LearningRate


def factors(name: str, warmup: int, total: int, **options) -> list[float]:
    rate = LearningRate(1e-4, name, warmup, total, options)
    return [rate.factor(step) for step in range(total)]


def test_the_first_warm_up_step_and_the_last_decay_step_learn():
    linear = factors("linear", warmup=4, total=10)
    assert linear[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert linear[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert min(factors("cosine", warmup=0, total=7)) > 0


def test_a_constant_schedule_is_constant():
    assert factors("constant", warmup=0, total=3) == [1.0, 1.0, 1.0]


def test_a_schedule_that_depends_on_more_than_the_step_is_refused():
    with pytest.raises(
        UsageError, match="lr_scheduler_type: 'reduce_lr_on_plateau' depends on more than the step"
    ):
        factors("reduce_lr_on_plateau", warmup=0, total=3)
