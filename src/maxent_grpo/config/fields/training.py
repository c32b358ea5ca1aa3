"""The settings of the training section."""

from dataclasses import dataclass

from maxent_grpo.config.fields.completions import CompletionFields
from maxent_grpo.config.fields.controllers import ControllerFields
from maxent_grpo.config.fields.divergences import DivergenceFields
from maxent_grpo.config.fields.evaluation import EvaluationFields
from maxent_grpo.config.fields.infoseed import InfoSeedFields
from maxent_grpo.config.fields.maxent import MaxEntFields
from maxent_grpo.config.fields.objective import IngredientFields, ObjectiveFields
from maxent_grpo.config.fields.run import RunFields, TrackerFields
from maxent_grpo.config.fields.vllm import VLLMFields
from maxent_grpo.config.fields.workers import WorkerFields


@dataclass
class TrainingFields(
    TrackerFields,
    VLLMFields,
    RunFields,
    WorkerFields,
    InfoSeedFields,
    EvaluationFields,
    CompletionFields,
    ControllerFields,
    DivergenceFields,
    MaxEntFields,
    IngredientFields,
    ObjectiveFields,
):
    """How a run trains: the objective, its controllers, and what differs from TRL's defaults.

    A dataclass takes the fields of its last base first: read the list from its end.
    """
