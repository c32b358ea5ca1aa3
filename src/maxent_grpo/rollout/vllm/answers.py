"""Which part of a vLLM server's answer is this client's, and whether it answers what was asked."""

from dataclasses import dataclass, field
from typing import Any

from maxent_grpo.rollout.vllm.client_tag import own_part
from maxent_grpo.rollout.vllm.http import LastingFault
from maxent_grpo.rollout.vllm.requests import Request
from maxent_grpo.rollout.vllm.responses import Limits, MissingLogprobs, Output, ResponseError, parse
from maxent_grpo.rollout.vllm.settings import ServerSettings
from maxent_grpo.rollout.vllm.stats import GenerationStats

ECHO_REMEDY = (
    "start vLLM with `--middleware maxent_grpo.rollout.vllm.client_tag.EchoMiddleware`, or put maxent-grpo-vllm-proxy "
    "in front of it; vllm_client_tag_policy=lenient keeps untagged answers, which is safe only for a server of one's "
    "own"
)
ANY_TOKEN = 2**31  # the vocabulary's size where it is not known


@dataclass
class AnswerCheck:
    """Reads the answers of one server, and counts what is wrong with them."""

    settings: ServerSettings
    stats: GenerationStats
    vocabulary: int | None  # rows of the model's embedding; None: token ids are not checked against it
    _without_logps: int = field(default=0, init=False)  # answers, in a row

    def completions(
        self, reply: dict[str, Any], request: Request, model: str | None, max_tokens: int
    ) -> list[Output | None]:
        """This client's completions in an answer, one per member, None where it is missing.

        Raises `ResponseError` for an answer to be asked for again, `LastingFault` for one that ends the run.
        """
        own = self._own(reply)
        served = own.get("model")
        if isinstance(served, str) and model not in (None, served):
            raise LastingFault(
                f"it answers with model {served[:80]!r} instead of {model!r}; serve that, or set vllm_model"
            )
        try:
            parsed = parse(own, len(request.prompts), 1, Limits(self.vocabulary or ANY_TOKEN, max_tokens))
        except MissingLogprobs as error:
            self.stats.logprobs_missing += 1
            self._without_logps += 1
            if 0 < self.settings.logprob_fail_after <= self._without_logps:
                raise LastingFault(
                    f"{error}, {self._without_logps} answers in a row; the learner needs those of the sampled tokens"
                ) from error
            raise
        self._without_logps = 0
        self.stats.excess_completions += parsed.excess
        for prompt, outputs in zip(request.prompts, parsed.groups, strict=True):
            for output in outputs:
                if output.prompt_token_ids not in (None, prompt.token_ids):
                    raise ResponseError(
                        f"a completion continues another prompt than prompt {prompt.index}: answers were mixed up"
                    )
        return [outputs[0] if outputs else None for outputs in parsed.groups]

    def _own(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The answer without other clients' groups. Raises where nothing is left of it."""
        tag, policy = self.settings.client_tag, self.settings.tag_policy
        filtered = own_part(reply, tag, policy)
        self.stats.filtered_groups += filtered.dropped
        if filtered.kept or not filtered.dropped:
            return filtered.reply
        self.stats.client_tag_errors += 1
        if filtered.untagged:
            message = f"its answer does not echo client_tag={tag!r} (policy {policy}); {ECHO_REMEDY}"
        else:
            message = (
                f"all {filtered.dropped} groups of its answer carry other tags than client_tag={tag!r}: what stands "
                "between this client and the server mixes up answers"
            )
        raise (LastingFault if self.settings.tag_fail_fast else ResponseError)(message)
