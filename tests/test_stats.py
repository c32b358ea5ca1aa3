import torch
from accelerate import Accelerator

from maxent_grpo.stats import Meter, Stat, extreme_stat, mean_stat


def test_means_are_weighted_and_extremes_compete_over_micro_batches():
    meter = Meter(Accelerator(cpu=True))
    for values in ([1.0, 2.0, 3.0], [10.0]):
        tensor = torch.tensor(values)
        meter.add(
            {
                "mean": mean_stat(tensor),
                "low": extreme_stat(tensor, "min"),
                "high": extreme_stat(tensor, "max"),
                "sum": Stat(tensor.sum(), torch.ones(()), "sum"),
            }
        )
    assert meter.reduced() == {"mean": 4.0, "low": 1.0, "high": 10.0, "sum": 16.0}
    assert meter.reduced() == {}


def test_a_mean_over_nothing_is_left_out():
    meter = Meter(Accelerator(cpu=True))
    meter.add({"empty": mean_stat(torch.ones(2), torch.tensor([False, False]))})
    assert meter.reduced() == {}
