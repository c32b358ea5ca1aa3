"""TRL's GRPOTrainer: its own generation, scoring, loss and optimiser, timed from outside.

Nothing of TRL is copied. `training_step` runs on a batch of prompts as in ``train()``: it generates, scores and
computes loss and gradient; the four lines of the training loop around it (clip, optimiser, schedule, zero) follow.
The time inside ``_generate`` is the sampling, the rest of ``_generate_and_score_completions`` the scoring, and all
else the update.

Set-up, the best that is comparable: no vLLM (ours samples in-process as well), SDPA attention with a key/value cache,
no gradient checkpointing (TRL's default is on: it trades time for memory; ours is off), one iteration and no second
forward for old log-probs, β = 0 so no reference, no logging, no reports, TRL's own chunked LM head, fused AdamW as
both default to, prompts of equal length so that TRL pads nothing.
"""

from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measure import Clock, Measured
from benchmarks.workload import Workload, modular_reward


class Trl:
    """Dr. GRPO with TRL's trainer."""

    name = "trl"

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.clock = Clock(workload.device)
        self.sampled_tokens = 0
        self.trainer = trainer = GRPOTrainer(
            model=workload.model(),
            reward_funcs=modular_reward,
            args=trl_config(workload),
            train_dataset=Dataset.from_dict({"prompt": workload.dataset}),
            processing_class=workload.tokenizer(),
        )
        loader = trainer.get_train_dataloader()
        self.model, loader = trainer._prepare_for_training(1_000_000, loader, None)
        self.batch: list[dict[str, Any]] = next(iter(loader))  # each prompt, group times
        assert not trainer.model.is_activation_checkpointing
        assert [row["prompt"] for row in self.batch[:: workload.group]] == workload.prompt_texts
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self.model.train()
        trainer._generate = self.clock.timed("sample", self._counting(trainer._generate))
        trainer._generate_and_score_completions = self.clock.timed(
            "collect", trainer._generate_and_score_completions
        )

    def step(self) -> Measured:
        self.trainer.rollout_func = None
        return self._train_once()

    def sample(self) -> Measured:
        self.trainer.rollout_func = None
        self.clock.take()
        self.trainer._generate([row["prompt"] for row in self.batch])
        return Measured(self.clock.take(), self.sampled_tokens)

    def update(self) -> Measured:
        self.trainer.rollout_func = self._given_rollout
        measured = self._train_once()
        return Measured(
            {"update": measured.phases["update"]}, measured.tokens, measured.loss, measured.grad_norm
        )

    def logps(self) -> list[list[float]]:
        self.trainer.rollout_func = self._given_rollout
        inputs = self.trainer._generate_and_score_completions(self.batch)
        prompt, completion = inputs["prompt_ids"], inputs["completion_ids"]
        logps, _, _ = self.trainer._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([prompt, completion], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            completion.shape[1],
            batch_size=self.trainer.args.per_device_train_batch_size,
        )
        masks = inputs["completion_mask"].bool()
        return [row[mask].tolist() for row, mask in zip(logps.detach(), masks, strict=True)]

    def _train_once(self) -> Measured:
        trainer, model = self.trainer, self.model
        self.clock.take()
        with self.clock.phase("whole"):
            losses = []
            for left in reversed(range(trainer.args.gradient_accumulation_steps)):
                with trainer.accelerator.no_sync(model) if left else nullcontext():
                    losses.append(trainer.training_step(model, self.batch, None))
            norm = trainer._clip_grad_norm(model)
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            model.zero_grad()
        trainer.state.global_step += 1
        spent = self.clock.take()
        phases = {
            "sample": spent["sample"],
            "score": spent["collect"] - spent["sample"],
            "update": spent["whole"] - spent["collect"],
        }
        return Measured(phases, self.sampled_tokens, float(sum(losses)), float(norm))

    def _given_rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's hook for rollouts from elsewhere: the workload's completions."""
        ids = [row for row in self.workload.prompt_ids for _ in range(self.workload.group)]
        return {"prompt_ids": ids, "completion_ids": self.workload.completion_ids, "logprobs": None}

    def _counting(self, generate: Any) -> Any:
        def counted(prompts: list[str]) -> Any:
            output = generate(prompts)
            self.sampled_tokens = sum(map(len, output[1]))
            return output

        return counted


def trl_config(workload: Workload) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(workload.directory / "trl"),
        steps_per_generation=workload.prompts // workload.micro_prompts,
        loss_type="dr_grpo",
        scale_rewards="none",
        activation_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        **workload.trainer_settings(),
    )
