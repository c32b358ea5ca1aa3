"""Verified replay in a step: what the groups found enters the bank, and exemplars of the bank are rehearsed.

The passes come before those of the groups, so that the last of these completes the gradients over all ranks, as without
replay. Each rank runs a share of the exemplars, and all run equally many passes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maxent_grpo.config.plan import BatchPlan
from maxent_grpo.objectives.reduce import row_sums
from maxent_grpo.objectives.replay import Replay, balance_loss, bank_entropies, mass_loss
from maxent_grpo.stats import Metrics, mean_stat, sum_stat
from maxent_grpo.train.bank import PromptBank, found_in
from maxent_grpo.train.collate import Completed, collate_rows
from maxent_grpo.train.learner import Learner
from maxent_grpo.train.micro_batches import packed_by_tokens
from maxent_grpo.train.ranks import gathered, share
from maxent_grpo.train.state import Run
from maxent_grpo.types import Group, consecutive


def mode_histories(run: Run, groups: Sequence[Group]) -> list[Mapping[str, int]] | None:
    """How often earlier steps found each mode of the groups' prompts; None where no bank counts them."""
    if run.bank is None:
        return None
    return [run.bank.history(group, counted=not run.is_first_pass) for group in groups]


def replay(run: Run, groups: Sequence[Group]) -> Metrics:
    """Enter what ``groups`` (this rank's share) found, and add the gradient of the objective's replay term.

    A group is entered once, whatever the number of updates on its rollout. What it found can be replayed at once.
    """
    bank, term, learner = run.bank, run.objective.replay, run.learner
    if bank is None:
        return {}
    found = gathered([found_in(group) for group in groups], learner.accelerator)
    admitted = bank.admit(found, run.step + 1) if run.is_first_pass else 0
    if term is None:
        return {}
    own = (one.prompt_ids for one in found)
    banks = bank.banks_of(own) if term.own_prompts else bank.next_banks(term.banks_per_step)
    stored = [len(bank.prompts[digest].exemplars) for digest in bank.replayable]
    state = {"new_modes": admitted, "modes": sum(stored), "prompts": len(stored)}
    metrics = {f"replay/{name}": mean_stat(torch.tensor(float(number))) for name, number in state.items()}
    size = len(groups[0].utilities)
    return metrics | (rehearse(learner, run.plan, run.pad_id, term, banks, size) if banks else {})


def rehearse(
    learner: Learner, plan: BatchPlan, pad_id: int, term: Replay, banks: Sequence[PromptBank], group_size: int
) -> Metrics:
    """Add the gradient of ``term`` over ``banks``, at least one, which are the same on every rank.

    The term is a function of the exemplars' scores alone, so that its gradient in them is known before the passes that
    carry it to the parameters; where it depends on the scores, passes without gradient measure them first.
    """
    rows = [(bank.prompt_ids, e.token_ids, e.policy_mask) for bank in banks for _, e in bank.in_order]
    sizes = [len(bank.exemplars) for bank in banks]
    seen = [bank.counts[key] for bank in banks for key, _ in bank.in_order]
    counts = torch.tensor(seen, dtype=torch.float64).split(sizes)
    lengths = torch.tensor([sum(mask) or len(tokens) for _, tokens, mask in rows], dtype=torch.float64)
    parts = own_passes(rows, plan, group_size, learner)

    def log_probs(pull: Tensor | None) -> Tensor:
        return measured(rows, parts, learner, pad_id, pull)

    scores: Sequence[Tensor] = counts  # of the right shape; not read
    if term.needs_scores:
        scores = (log_probs(None) / lengths).split(sizes)
    gradient = term.scale(group_size) * torch.cat(term.gradient(scores, counts))
    whole = log_probs(gradient / lengths)
    scores = (whole / lengths).split(sizes)
    metrics = {
        "replay/loss": mean_stat(mass_loss(scores, term.weights(counts))),
        "replay/entropy": mean_stat(bank_entropies(whole.split(sizes))),
    }
    if term.needs_scores:
        metrics["replay/balance"] = mean_stat(balance_loss(scores))
    added = 0.0 if term.is_control else term.scale(group_size) / learner.accelerator.num_processes
    return metrics | {"loss": sum_stat(added * term(scores, counts))}


def own_passes(
    rows: Sequence[Completed], plan: BatchPlan, group_size: int, learner: Learner
) -> list[tuple[list[int], bool]]:
    """The rows of each of this rank's passes, and whether the pass counts: one that does not keeps step with others.

    A pass holds as many completions as one over groups, or tokens, each row's prompt among them.
    """
    own = share(len(rows), learner.accelerator)
    indices = range(own.start, own.stop)
    if plan.micro_tokens is None:
        parts = [
            [indices[i] for i in part] for part in consecutive(len(indices), plan.micro_groups * group_size)
        ]
    else:
        tokens = [len(prompt) + len(completion) for prompt, completion, _ in rows]
        parts = packed_by_tokens(indices, tokens, plan.micro_tokens)
    needed = learner.max_over_ranks([len(parts)])[0]
    return [(part, True) for part in parts] + [([0], False)] * (needed - len(parts))


def measured(
    rows: Sequence[Completed],
    parts: Sequence[tuple[list[int], bool]],
    learner: Learner,
    pad_id: int,
    pull: Tensor | None,
) -> Tensor:
    """Log-probs of the completions, summed over the policy's tokens: [N] in float64, of all ranks' rows.

    With ``pull`` [N], a backward pass adds the gradient of ``Σ pull·log-prob``. The generators of dropout are put back,
    so that the groups' passes drop what they would without replay.
    """
    own: list[float] = []
    devices = [learner.device] if learner.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(pull is not None):
        for part, counts in parts:
            batch = collate_rows([rows[i] for i in part], pad_id=pad_id).to(learner.device)
            forward = learner.forward(batch, last=False, entropy=False)
            sums = row_sums(forward.logps, batch.completion_mask)
            if pull is not None:
                loss = (pull[part].to(sums) * sums).sum()
                learner.backward(loss if counts else 0.0 * loss, forward)
            own += sums.tolist() if counts else []
    return torch.tensor(gathered(own, learner.accelerator), dtype=torch.float64)
