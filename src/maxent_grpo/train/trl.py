"""MaxEnt-GRPO inside TRL: `MaxEntGRPOTrainer` is TRL's ``GRPOTrainer`` with other advantages.

Each objective of this package is, on-policy and to first order, a policy gradient whose advantages
`maxent_grpo.objectives.objective.Objective.signal` computes from whole groups. So TRL keeps its loop, its loss and its
options, and only the advantages change: G·(w − p) for ``listwise``, G·w·A for ``tilted``, SEED-GRPO's scale for GRPO.
After several updates on one rollout the two differ: TRL clips the ratio of a frozen advantage, where the native loop
follows the objective itself.
"""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.trainer.grpo_config import GRPOConfig as TRLConfig

from maxent_grpo.config.plan import controller_settings, objective_spec
from maxent_grpo.config.schema import GRPOConfig
from maxent_grpo.controllers.controller import Controllers, Measurement
from maxent_grpo.controllers.settings import ControllerSettings
from maxent_grpo.controllers.state import read_state, write_state
from maxent_grpo.errors import UsageError
from maxent_grpo.objectives.advantages import dr_grpo
from maxent_grpo.objectives.catalog import CATALOG, ObjectiveSpec, build_objective
from maxent_grpo.objectives.components import NUMBERS
from maxent_grpo.objectives.objective import Objective
from maxent_grpo.objectives.token_loss import TokenLoss
from maxent_grpo.objectives.weights import weighs
from maxent_grpo.rewards.registry import BUILTIN_REWARDS, RIGHT, correctness_of
from maxent_grpo.stats import Metrics, mean_stat
from maxent_grpo.tasks.registry import answer_clusters
from maxent_grpo.types import Batch, Signal

logger = logging.getLogger(__name__)

TRL_ONLY_TAU = 0.05
"""τ where the arguments are TRL's own: that of the shipped MaxEnt recipes."""

BEYOND_ADVANTAGES = (
    "surrogate",
    "tis_cap",
    "behaviour_kl_coef",
    "use_adaptive_entropy",
    "clip_cov_fraction",
    "kl_cov_fraction",
    "entropy_bonus_coef",
    "maxent_tau_mode_adaptive",
    "mode_entropy",
    "gapo",
    "poly_epo_size",
    "ucpo_coef",
    "semantic_maxent_coef",
    "pcmd_coef",
    "setpo_coef",
)
"""Settings of an objective that are no advantage: they need the native loop's loss, or data that TRL has not."""

OWN_NAMES = {
    "reward": "utility",
    "reward_std": "utility_std",
    "frac_reward_zero_std": "frac_utility_zero_std",
}
"""The objective's metrics whose names are TRL's for something else: over whole rollouts, unscored rows left out."""

SCORER = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
"""What TRL's scorer takes: of a batch with images, all that the model reads besides tokens."""


class RefusedSettings(UsageError, ValueError):
    """Settings that `MaxEntGRPOTrainer` refuses: a ``ValueError`` too, as TRL's own refusals are."""


class MaxEntGRPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` with the constructor, datasets and reward functions that it has.

    With this package's ``GRPOConfig`` as ``args`` it trains the objective that they name, with its controllers. With
    TRL's own it trains ``tilted`` at τ = 0.05 on top of what they say, and ``beta`` keeps TRL's meaning (a KL term in
    the loss). Groups are compared over all processes. Evaluation losses keep TRL's advantages.

    Raises:
        UsageError: the objective is not one that advantages alone can express, or its reference is missing.
    """

    objective: Objective
    controllers: Controllers
    num_generations: int

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: TRLConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
    ) -> None:
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        assert isinstance(self.args, TRLConfig), "TRL's trainer takes no other"
        try:
            spec, settings = settings_of(self.args)
        except UsageError as error:
            raise RefusedSettings(str(error)) from error
        self.objective = build_objective(spec)
        self.controllers = Controllers.start(settings)
        self._beta_in_loss = spec["kl_in_loss"] or not isinstance(self.args, GRPOConfig)
        if not self._beta_in_loss:
            self.beta = 0.0  # the reference acts through the weights: TRL must not add its KL term as well
        self._changes_advantages = changes_advantages(self.objective)
        self._judge = judge_of(self.reward_func_names, getattr(self.args, "correctness_reward", None))
        if self._judge is None and self.objective.needs_correctness:
            raise UsageError(
                "correctness_reward: the objective needs to know which completions are right, and none of "
                f"{', '.join(self.reward_func_names)} is known to tell; name the one that does"
            )
        self._controlled_step = -1
        self._rewards: Tensor | None = None  # [B, functions] of all processes, as TRL gathered them
        self._answers: list[
            tuple[str, Any]
        ] = []  # this process's completions, with the procedural task of each

    def _send_telemetry(self) -> None:
        """TRL would report every trainer to the hub; nobody is told of this one."""

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """The rewards [B, functions] of all processes, which are kept for the advantages."""
        self._rewards = self._scores(inputs, prompts, completions, completion_ids_list)
        self._answers = [
            (answer_text(completion), row.get("task"))
            for completion, row in zip(completions, inputs, strict=True)
        ]
        return self._rewards

    def _scores(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's rewards [B, functions] of all processes, NaN where a function gave none."""
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with this objective's advantages; the controllers move on once per optimiser step."""
        knobs = self.controllers.knobs()
        if isinstance(self.args, GRPOConfig):
            self.beta = knobs.beta  # has TRL score the reference; TRL's own arguments keep their β
        output = super()._generate_and_score_completions(inputs)
        if not self._beta_in_loss:
            self.beta = 0.0
        if not (self._changes_advantages and self.model is not None and self.model.training):
            return output
        batch = self._whole_batch(output)
        signal, metrics = self.objective.signal(batch, knobs)
        advantages = signal.advantages.flatten()
        rows = output["completion_mask"].shape[0]
        start = self.accelerator.process_index * rows
        output["advantages"] = advantages[start : start + rows].to(output["advantages"].dtype)
        self._show(advantages)
        numbers = numbers_of(metrics | self._kl(batch))
        numbers |= self._control(signal, numbers)
        if self.beta != 0.0:
            numbers.pop("kl", None)  # TRL logs the one in its loss under this name
        for name, value in numbers.items():
            self._metrics["train"][OWN_NAMES.get(name, name)].append(value)
        return output

    def _whole_batch(self, output: Mapping[str, Any]) -> Batch:
        """The completions of all processes.

        A completion takes part in its group, and has a utility, where some function scored it and it has tokens to
        learn from: TRL leaves none to those that ``mask_truncated_completions`` is about. A token counts where the
        policy wrote it (no tool and no environment did) and its log-probs are known.
        """
        assert self._rewards is not None, "TRL scores before it returns"
        own = output["completion_mask"] * output.get("tool_mask", 1)
        mask = self._gathered(own).bool()
        needs_logps = self.objective.reads_logps or self.controllers.settings.kl_target > 0
        behaviour = self._gathered(self._behaviour_logps(output) if needs_logps else torch.zeros_like(own))
        reference = output.get("ref_per_token_logps")
        reference = None if reference is None else self._gathered(reference)
        for logps in (behaviour, reference):
            mask = mask if logps is None else mask & logps.isfinite()
        kept = ~self._rewards.isnan().all(dim=1) & mask.any(dim=1)
        utilities = self._utilities(self._rewards, kept)
        scores = (
            None if self._judge is None else self._rewards[:, self._judge].nan_to_num(0.0).view_as(utilities)
        )
        clusters = self._answer_clusters().view_as(utilities) if self.objective.needs_answers else None
        return Batch(
            prompt_ids=mask.new_zeros(
                utilities.shape[0], 1, dtype=torch.long
            ),  # advantages do not read prompts
            prompt_mask=mask.new_ones(utilities.shape[0], 1),
            completion_ids=mask.long(),
            completion_mask=mask,
            behaviour_logps=behaviour,
            utilities=utilities,
            reference_logps=reference,
            answer_clusters=clusters,
            right=None if scores is None else scores >= RIGHT,
            correctness=None if scores is None else scores * self.reward_weights[self._judge].to(scores),
        )

    def _utilities(self, rewards: Tensor, kept: Tensor) -> Tensor:
        """Weighted sums [P, G] of the rewards [B, functions], NaN where ``kept`` [B] is false."""
        grouped = rewards.masked_fill(~kept.unsqueeze(1), torch.nan)
        grouped = grouped.view(-1, self.num_generations, rewards.shape[1])
        if self.multi_objective_aggregation == "normalize_then_sum":
            centred = grouped - grouped.nanmean(dim=1, keepdim=True)
            counts = (~grouped.isnan()).sum(dim=1, keepdim=True)
            std = (centred.square().nansum(dim=1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
            grouped = centred / (std + 1e-4)
        utilities = (grouped * self.reward_weights.to(rewards.device)).nansum(dim=2)
        return utilities.masked_fill(~kept.view_as(utilities), torch.nan)

    def _behaviour_logps(self, output: Mapping[str, Any]) -> Tensor:
        """Log-probs [B, T] of the policy that sampled: as the sampler or TRL has them, else of the policy as it is.

        vLLM has NaN for some tokens; there the policy's own stands in, as TRL takes its ratio to the sampler for 1.
        """
        sampled, old = output.get("sampling_per_token_logps"), output.get("old_per_token_logps")
        if sampled is None:
            return self._policy_logps(output) if old is None else old
        unknown = sampled.isnan()
        if not bool(self.accelerator.gather(unknown.any().view(1)).any()):
            return sampled
        return torch.where(unknown, self._policy_logps(output) if old is None else old, sampled)

    def _policy_logps(self, output: Mapping[str, Any]) -> Tensor:
        """Log-probs [B, T] of the policy as it is, which reads images where the batch has them."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        beside = {name: output[name] for name in SCORER if output.get(name) is not None}
        with torch.no_grad():
            logps: Tensor = self._get_per_token_logps_and_entropies(
                self.model,
                ids,
                mask,
                output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                **beside,
            )[0]
        return logps

    def _show(self, advantages: Tensor) -> None:
        """Put what is trained on, [B] of all processes, into the table of completions in place of TRL's."""
        shown: Any = self._logs["advantages"]
        for _ in range(min(len(shown), len(advantages))):
            shown.pop()
        shown.extend(advantages.tolist())

    def _answer_clusters(self) -> Tensor:
        """Which completions of a group answer the same, over all processes: [B] int64."""
        answers = gather_object(self._answers)
        clusters: list[int] = []
        for start in range(0, len(answers), self.num_generations):
            group = answers[start : start + self.num_generations]
            clusters += answer_clusters([text for text, _ in group], {"task": group[0][1]})
        return torch.tensor(clusters, device=self.accelerator.device)

    def _gathered(self, values: Tensor) -> Tensor:
        """Rows [B, T] of all processes, padded with 0 to the longest."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(values, dim=1))

    def _kl(self, batch: Batch) -> Metrics:
        """KL(policy ‖ reference) at the rollout, where the reference was scored and the KL is controlled."""
        if batch.reference_logps is None or not self.controllers.settings.kl_target:
            return {}
        mask = batch.completion_mask
        kl = self.objective.kl.estimator(batch.behaviour_logps, batch.reference_logps, mask)
        return {"kl": mean_stat(kl, mask)}

    def _control(self, signal: Signal, measured: Mapping[str, float]) -> dict[str, float]:
        """Let the controllers see this rollout; at most once per optimiser step."""
        step = self.state.global_step
        if step == self._controlled_step:
            return {}
        self._controlled_step = step
        base = self.args.learning_rate
        scheduler = self.lr_scheduler
        counted = signal
        if signal.weights is not None and signal.scored is not None:
            groups = weighs(signal.scored).nonzero().flatten().tolist()
            counted = signal.select(groups) if groups else signal
        self.controllers, metrics = self.controllers.update(
            Measurement(
                step=step + 1,
                kl=measured.get("kl"),
                weight_entropy=measured.get("weight_entropy"),
                lr_scale=float(scheduler.get_last_lr()[0]) / base if scheduler is not None and base else 1.0,
                weights=lambda tau, beta: self.objective.weights(counted, tau, beta),
            )
        )
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = (
                Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            write_state(folder / "controller_state.json", self.controllers.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / "controller_state.json"
        if path.is_file():
            self.controllers = self.controllers.load_state_dict(read_state(path), source=str(path))
        elif self.accelerator.is_main_process:
            logger.warning(
                "%s is not there (TRL's own trainer writes none): the controllers start afresh", path
            )


def settings_of(args: TRLConfig) -> tuple[ObjectiveSpec, ControllerSettings]:
    """The objective and the controllers that ``args`` ask for; see `MaxEntGRPOTrainer`."""
    if not isinstance(args, GRPOConfig):
        # TRL leaves one of "group", "batch" and "none" in scale_rewards
        scale = "batch" if args.multi_objective_aggregation == "normalize_then_sum" else args.scale_rewards
        spec = CATALOG["tilted"].with_settings(scale_rewards=scale, kl_in_loss=False)
        return spec, ControllerSettings(tau=TRL_ONLY_TAU, beta=0.0)
    spec = objective_spec(args)
    beyond = [name for name in BEYOND_ADVANTAGES if spec[name] != NUMBERS[name].default]
    if spec.has("reference"):
        beyond.append("objective")
    if beyond:
        raise UsageError(
            f"{', '.join(beyond)}: MaxEntGRPOTrainer changes TRL's advantages and nothing else; use "
            "maxent_grpo.train.trainer.GRPOTrainer"
        )
    if args.beta == 0 and args.kl_target > 0:
        raise UsageError(
            "kl_target: TRL loads no reference policy at beta=0, so there is no KL; set beta above 0"
        )
    return spec, controller_settings(args, max(args.max_steps, 1))


def judge_of(names: Sequence[str], asked: str | None) -> int | None:
    """Place of the correctness reward among functions that TRL calls ``names``; None: there is none."""
    if asked in BUILTIN_REWARDS and asked not in names:  # TRL names a function, a recipe a reward
        asked = BUILTIN_REWARDS[asked].path
    judge = correctness_of(names, asked)
    return None if judge is None else names.index(judge)


def changes_advantages(objective: Objective) -> bool:
    """Whether its advantages are others than TRL's centered and scaled rewards."""
    advantages, loss = objective.advantages, objective.policy_loss
    plain = advantages.kind is dr_grpo and not advantages.positive_only and not objective.shaping
    return not (plain and isinstance(loss, TokenLoss) and loss.reweighting is None)


def answer_text(completion: Any) -> str:
    """The policy's last words: a plain completion, or the last message of a chat that is the assistant's."""
    if isinstance(completion, str):
        return completion
    said = [
        message.get("content") for message in completion if message.get("role", "assistant") == "assistant"
    ]
    content = said[-1] if said else None
    if isinstance(content, list):  # blocks, as chats with images have them
        return "".join(str(block.get("text") or "") for block in content)
    return str(content or "")


def numbers_of(metrics: Metrics) -> dict[str, float]:
    """The numbers that statistics of the whole batch stand for; means and extremes over nothing are left out."""
    found = {name: s for name, s in metrics.items() if s.kind != "mean" or s.weight > 0}
    numbers = {name: float(s.value / s.weight if s.kind == "mean" else s.value) for name, s in found.items()}
    return {name: value for name, value in numbers.items() if not math.isinf(value)}
