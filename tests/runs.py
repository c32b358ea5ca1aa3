"""Runs of a test's configuration."""

from maxent_grpo.config.loading import RunConfig
from maxent_grpo.config.parts import NativeSettings
from maxent_grpo.config.run_settings import run_settings
from maxent_grpo.train import run as training
from maxent_grpo.train.build import Given
from maxent_grpo.train.build import build as build_run
from maxent_grpo.train.run import TrainResult
from maxent_grpo.train.state import Run


def train(config: RunConfig, given: Given | None = None) -> TrainResult:
    """Train as a command line with this configuration does."""
    return training.train(run_settings(config), given)


def native(config: RunConfig) -> NativeSettings:
    """The settings of a run in this package's loop."""
    settings = run_settings(config)
    assert isinstance(settings, NativeSettings)
    return settings


def build(config: RunConfig, given: Given | None = None) -> Run:
    """All parts of the run at its first step."""
    return build_run(native(config), given or Given())
