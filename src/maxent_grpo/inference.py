"""Evaluation from Python: ``from maxent_grpo.inference import InferenceModelSpec, run_math_eval_inference``."""

from maxent_grpo.evaluate.math_eval import run_math_eval_inference
from maxent_grpo.evaluate.results import Estimate, MathEvalResult
from maxent_grpo.evaluate.settings import ArtifactSettings, InferenceModelSpec

__all__ = [
    "ArtifactSettings",
    "Estimate",
    "InferenceModelSpec",
    "MathEvalResult",
    "run_math_eval_inference",
]
