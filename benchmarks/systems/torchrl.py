"""TorchRL's GRPO: its Transformers wrapper samples, its GRPOLoss scores and trains.

Put together as TorchRL's own GRPO scripts do (sota-implementations/grpo), in one process: a `TransformersWrapper` with
``generate=True`` and its log-probs, a second one with ``generate=False`` as the actor of `GRPOLoss`, clip, and AdamW.

Set-up, in TorchRL's favour where there was a choice: token ids in and out (no chat history, no templates), SDPA
attention with a key/value cache, padded rather than ragged outputs, no entropy bonus, no KL, fused AdamW, and neither
collector nor replay buffer: the reward is called directly, and advantages are group-centred here instead of in
`MCAdvantage`. `GRPOLoss` needs the sampler's log-probs, so its sampler keeps all logits to compute them. (It sets those
of first tokens to 0; that costs no time, and the systems are checked against each other on given completions.)

The loss averages over tokens; advantages are scaled by tokens / (rows × completion), which makes it equal to the
Dr. GRPO loss of the other systems.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.modules.llm import TransformersWrapper
from torchrl.objectives.llm import GRPOLoss

from benchmarks.measure import Clock, Measured
from benchmarks.workload import LEARNING_RATE, MAX_GRAD_NORM, Workload, modular_reward


class TorchRl:
    """GRPO with TorchRL's parts."""

    name = "torchrl"

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.clock = Clock(workload.device)
        self.model = model = workload.model().to(workload.device).eval()  # as `GRPOLoss` asks for
        tokenizer = workload.tokenizer()
        tokenizer.pad_token = (
            tokenizer.eos_token
        )  # past the vocabulary: no sampled token is taken for padding
        limits = {"max_new_tokens": workload.completion, "do_sample": True, "temperature": 1.0}
        self.sampler = TransformersWrapper(
            model,
            tokenizer=tokenizer,
            input_mode="tokens",
            generate=True,
            return_log_probs=True,
            pad_output=True,
            num_samples=workload.group,
            generate_kwargs=limits,
        )
        policy = TransformersWrapper(
            model, tokenizer=tokenizer, input_mode="tokens", generate=False, pad_output=True
        )
        self.loss = GRPOLoss(policy, clip_epsilon=0.2, entropy_bonus=False, masking_strategy="rlhf")
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.stops = torch.tensor(model.generation_config.eos_token_id, device=workload.device)

    def step(self) -> Measured:
        self.clock.take()
        with self.clock.phase("sample"):
            completions, logps = self._sampled()
        with self.clock.phase("score"):
            batch = self._batch(completions, logps)
        return self._measured_update(batch, sum(map(len, completions)))

    def sample(self) -> Measured:
        self.clock.take()
        with self.clock.phase("sample"):
            completions, _ = self._sampled()
        return Measured(self.clock.take(), sum(map(len, completions)))

    def update(self) -> Measured:
        batch = self.given  # its log-probs are those of the weights at hand: on-policy
        self.clock.take()
        return self._measured_update(batch, sum(map(len, self.workload.completion_ids)))

    @torch.no_grad()
    def logps(self) -> list[list[float]]:
        batch = self._batch(self.workload.completion_ids, None)
        with self._autocast():
            scored, _, _ = self.loss._get_cur_log_prob(batch)
        return [
            row[-len(ids) :].tolist() for row, ids in zip(scored, self.workload.completion_ids, strict=True)
        ]

    @cached_property
    def given(self) -> TensorDict:
        """The workload's completions with the log-probs of the weights before the first update."""
        return self._batch(self.workload.completion_ids, self.logps())

    @torch.no_grad()
    def _sampled(self) -> tuple[list[list[int]], list[list[float]]]:
        """Completions up to their first stop token, and their log-probs."""
        prompts = torch.tensor(self.workload.prompt_ids, device=self.workload.device)
        with self._autocast():
            out = self.sampler(TensorDict(tokens=TensorDict(prompt=prompts), batch_size=[len(prompts)]))
        rows = self.workload.rows
        ids = out["tokens", "response"].reshape(rows, -1)
        logps = out["log_probs", "response"].reshape(rows, -1)
        ended = torch.isin(ids, self.stops)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]).tolist()
        cut = list(zip(ids.tolist(), logps.tolist(), lengths, strict=True))
        return [row[:n] for row, _, n in cut], [row[:n] for _, row, n in cut]

    def _batch(self, completions: Sequence[Sequence[int]], logps: list[list[float]] | None) -> TensorDict:
        """What `GRPOLoss` reads, [rows, prompt + longest], padded on the left as it pads."""
        work, tokens = self.workload, sum(map(len, completions))
        rewards = torch.tensor(modular_reward(completions)).view(work.prompts, work.group)
        advantages = rewards - rewards.mean(dim=1, keepdim=True)
        advantages = advantages.flatten() * (tokens / (work.rows * work.completion))
        width = work.prompt + max(map(len, completions))
        prompts = [ids for ids in work.prompt_ids for _ in range(work.group)]
        full = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        ids = left_padded(full, width, 0)
        answered = left_padded([[1] * len(c) for c in completions], width, 0).bool()
        present = left_padded([[1] * len(row) for row in full], width, 0).bool()
        behaviour = left_padded(logps or [[0.0] * len(c) for c in completions], width, 0.0)
        batch = TensorDict(
            tokens=TensorDict(full=ids),
            masks=TensorDict(all_attention_mask=present, all_assistant_mask=answered),
            log_probs=TensorDict(full=behaviour),
            advantage=advantages[:, None, None].expand(-1, width, 1),
            batch_size=[work.rows],
        )
        return batch.to(work.device)

    def _measured_update(self, batch: TensorDict, tokens: int) -> Measured:
        parts = batch.split(self.workload.micro_prompts * self.workload.group)
        answered = batch["masks", "all_assistant_mask"].sum()
        total = 0.0
        with self.clock.phase("update"):
            for part in parts:
                share = (
                    part["masks", "all_assistant_mask"].sum() / answered
                )  # the loss averages over its own tokens
                with self._autocast():
                    loss = self.loss(part).loss_objective.sum() * share
                loss.backward()
                total += float(loss.detach())
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return Measured(self.clock.take(), tokens, total, float(norm))

    def _autocast(self) -> AbstractContextManager[None]:
        if self.workload.precision == "float32":
            return nullcontext()
        return torch.autocast(self.workload.device, torch.bfloat16)


def left_padded(rows: Sequence[Sequence[float]], width: int, fill: float) -> Tensor:
    """[N, width], each row at the right end."""
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])
