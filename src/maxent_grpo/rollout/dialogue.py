"""Completions in several turns: the policy writes, an environment answers, the policy goes on.

A turn is sampled as a completion of all that stands before it, so that any `Sampler` will do. Its token ids are
appended as they were sampled; between two turns stand the tokens of the chat template and of the environment's message.
Nothing is decoded and tokenised again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from maxent_grpo.data.prompts import PromptSettings, next_turn
from maxent_grpo.errors import UsageError
from maxent_grpo.randomness import KeyPart
from maxent_grpo.rollout.environment import Environment
from maxent_grpo.rollout.sampler import Finished, Sampler, SamplingSettings
from maxent_grpo.rollout.texts import completion_texts
from maxent_grpo.types import Prompt, Rollout


@dataclass
class Episode:
    """One completion as it grows."""

    prompt: Prompt
    place: int
    """Its number in its group."""
    budget: int
    """Tokens that the policy may still write."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    """0 at the environment's tokens."""
    written: list[bool] = field(default_factory=list)
    """By the policy."""
    turns: list[str] = field(default_factory=list)
    finish: Literal["stop", "length"] = "stop"
    over: bool = False

    @property
    def branch(self) -> Prompt:
        """The prompt that the next turn continues. Its key is its own: draws of different turns are independent."""
        ids = self.prompt.token_ids + tuple(self.ids)
        return replace(self.prompt, token_ids=ids, branch=(len(self.turns), self.place))

    def write(self, ids: Sequence[int], logps: Sequence[float], text: str, *, stopped: bool) -> None:
        """Append a turn of the policy, no longer than its budget."""
        self.ids += ids
        self.logps += logps
        self.written += [True] * len(ids)
        self.turns.append(text)
        self.budget -= len(ids)
        if not stopped:
            self.finish, self.over = "length", True

    def read(self, ids: Sequence[int]) -> None:
        """Append what the policy is told."""
        self.ids += ids
        self.logps += [0.0] * len(ids)
        self.written += [False] * len(ids)


@dataclass(frozen=True)
class DialogueSampler(Sampler):
    """Draws completions of up to ``max_turns`` turns.

    ``max_completion_length`` bounds the tokens that the policy writes in all its turns together; what the environment
    says comes on top. A completion's text, which is rewarded, is the policy's last turn.
    """

    sampler: Sampler
    environment: Environment
    max_turns: int
    tokenizer: PreTrainedTokenizerBase
    prompt_settings: PromptSettings
    """Its chat template and system prompt are read."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        key: tuple[KeyPart, ...],
        policy_version: int,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """See `Sampler.sample`. First turns are the completions that ``sampler`` draws without an environment.

        ``finished`` is told of nothing: the last turn is rewarded, and known at the end.
        """
        budget = settings.max_completion_length
        groups = []
        for rollout in self.sampler.sample(prompts, settings, key, policy_version):
            group = [Episode(rollout.prompt, place, budget) for place in range(settings.num_generations)]
            for episode in group:
                self._add_turn(episode, rollout, episode.place)
            groups.append(group)
        episodes = [episode for group in groups for episode in group]
        for _ in range(self.max_turns - 1):
            for episode in episodes:
                if not episode.over:
                    self._answer(episode)
            going = [episode for episode in episodes if not episode.over]
            if not going:
                break
            longest = max(episode.budget for episode in going)
            one_each = replace(settings, num_generations=1, max_completion_length=longest)
            branches = [episode.branch for episode in going]
            sampled = self.sampler.sample(branches, one_each, key, policy_version)
            for episode, rollout in zip(going, sampled, strict=True):
                self._add_turn(episode, rollout, 0)
        return [self._rollout(group, policy_version) for group in groups]

    def _add_turn(self, episode: Episode, rollout: Rollout, row: int) -> None:
        """Append a sampled turn, cut where the budget ends: others may have had more."""
        ids, logps, text = rollout.token_ids[row], rollout.logps[row], rollout.texts[row]
        stopped = rollout.finish_reasons[row] == "stop"
        if len(ids) > episode.budget:
            ids, logps, stopped = ids[: episode.budget], logps[: episode.budget], False
            (text,) = completion_texts(self.tokenizer, [ids])
        episode.write(ids, logps, text, stopped=stopped)

    def _answer(self, episode: Episode) -> None:
        """Have the environment answer the last turn, or end the episode."""
        message = self.environment.reply(episode.prompt, tuple(episode.turns))
        if message is None:
            episode.over = True
            return
        if episode.budget == 0:
            episode.finish, episode.over = "length", True
            return
        between = next_turn(message, self.tokenizer, self.prompt_settings, episode.prompt.index)
        # The policy may have written the end of its turn itself.
        between = between.removeprefix(str(self.tokenizer.decode([episode.ids[-1]])))
        ids = self.tokenizer(between, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UsageError("the chat template puts nothing between two answers; set chat_template")
        episode.read(ids)

    def _rollout(self, group: Sequence[Episode], policy_version: int) -> Rollout:
        return Rollout(
            prompt=group[0].prompt,
            token_ids=tuple(tuple(episode.ids) for episode in group),
            logps=tuple(tuple(episode.logps) for episode in group),
            texts=tuple(episode.turns[-1] for episode in group),
            finish_reasons=tuple(episode.finish for episode in group),
            policy_version=policy_version,
            policy_masks=tuple(tuple(episode.written) for episode in group),
            turns=tuple(tuple(episode.turns) for episode in group),
            transcripts=tuple(self.tokenizer.batch_decode([episode.ids for episode in group])),
        )
