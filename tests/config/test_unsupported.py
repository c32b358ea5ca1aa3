"""What the trainer of a route would ignore is refused, with the reason."""

import pytest

from maxent_grpo.config.records import RECORDS
from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.config.settle import refuse_unsupported
from maxent_grpo.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataloader_num_workers", 2),
        ("push_to_hub", True),
        ("mask_truncated_completions", True),
        ("torch_compile", True),
        ("logging_first_step", True),
        ("repetition_penalty", 1.1),
        ("load_best_model_at_end", True),
    ],
)
def test_the_native_loop_refuses_what_it_would_ignore(name: str, value: object) -> None:
    extra = (
        {"eval_strategy": "steps", "save_steps": 10, "eval_steps": 10} if name.startswith("load_best") else {}
    )
    training = GRPOConfig(output_dir="x", use_cpu=True, **{name: value}, **extra)
    with pytest.raises(UsageError) as caught:
        refuse_unsupported(training, "native")
    assert f"{name}: {RECORDS['training'][name].instead}; remove it" in str(caught.value)
    refuse_unsupported(training, "trl")


@pytest.mark.parametrize(("name", "value"), [("eval_strategy", "epoch"), ("save_strategy", "best")])
def test_the_native_loop_counts_steps_and_not_epochs(name: str, value: str) -> None:
    training = GRPOConfig(output_dir="x", use_cpu=True, **{name: value})
    with pytest.raises(
        UsageError, match=f"^{name}: the native loop counts steps; '{value}' is not one of no, steps$"
    ):
        refuse_unsupported(training, "native")


def test_defaults_and_honoured_settings_pass_both_routes() -> None:
    training = GRPOConfig(output_dir="x", use_cpu=True, lr_scheduler_type="cosine", hub_model_id="me/mine")
    refuse_unsupported(training, "native")
    refuse_unsupported(training, "trl")
    assert (training.lr_scheduler_type, training.hub_model_id) == (
        "cosine",
        "me/mine",
    )  # and leaves them alone


@pytest.mark.parametrize(
    ("name", "value"),
    [("tis_cap", 2.0), ("kl_estimator", "k2"), ("log_reference_kl", True), ("stop_sequences", "</answer>")],
)
def test_trl_refuses_what_only_the_native_loop_reads(name: str, value: object) -> None:
    training = GRPOConfig(output_dir="x", use_cpu=True, **{name: value})
    refuse_unsupported(training, "native")
    with pytest.raises(
        UsageError, match=f"^{name}: TRL's trainer does not read it; set force_custom_loop=true$"
    ):
        refuse_unsupported(training, "trl")
