"""Reward models: sequence classifiers with one output, as rewards. Prompt and completion go in, a logit comes out.

As in TRL, a chat is rendered by the reward model's own chat template, a text prompt is put before its completion, and
no special tokens are added to either.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import is_initialized
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from maxent_grpo.errors import UsageError, first_line
from maxent_grpo.models.loading import ModelSource, load_tokenizer, with_pad_token


class RewardModel:
    """A reward function (`rewards.registry.RewardFunction`) that asks a sequence classifier.

    Args:
        model: a Transformers sequence classifier with one output. It is set to evaluation, and its parameters need no
            gradient from then on.
        tokenizer: the model's own, which may be another than the policy's.
        batch_size: sequences in a forward pass. Scores depend on it by rounding alone.
        device: where it runs; None: the learner's device. It moves there at the first call.

    Raises:
        UsageError: the model has another number of outputs.
    """

    scaled = True  # `rewards.registry.RewardFunction.scaled`

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        outputs = getattr(getattr(model, "config", None), "num_labels", None)
        path = str(getattr(model, "name_or_path", ""))
        self.__name__ = path.rstrip("/").rpartition("/")[2] or type(model).__name__
        if "ForSequenceClassification" not in type(model).__name__ or outputs != 1:
            raise UsageError(
                f"reward_funcs: {self.__name__} is a {type(model).__name__} with {outputs} outputs; a reward model "
                "is a sequence classifier with one (num_labels=1)"
            )
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = with_pad_token(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id  # by which it finds each sequence's last token
        self._batch_size, self._device = batch_size, device

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """A score per completion.

        Raises:
            ValueError: a sequence is longer than the model's positions.
        """
        device = torch.device(self._device) if self._device else learner_device()
        self._model.to(device)
        ids = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores = [0.0] * len(ids)
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(ids), self._batch_size):
            rows = by_length[start : start + self._batch_size]
            padded = self._tokenizer.pad(
                {"input_ids": [ids[row] for row in rows]}, padding_side="right", return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                logits = self._model(**padded).logits[:, 0].float().tolist()
            for row, score in zip(rows, logits, strict=True):
                scores[row] = score
        return scores

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(completion, str):
            text = prompt + completion
        elif self._tokenizer.chat_template is None:
            raise ValueError("the prompts are chats, and the reward model's tokenizer has no chat template")
        else:
            text = self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(limit, int) and len(ids) > limit:
            raise ValueError(f"{len(ids)} tokens, and the reward model has {limit} positions")
        return ids


def learner_device() -> torch.device:
    """The device that Accelerate gave this process; before it was asked, the first GPU, else the CPU."""
    if is_initialized():
        return PartialState().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_reward_model(
    name: str,
    reward_model_batch_size: int = 16,
    reward_model_device: str | None = None,
    reward_model_dtype: str = "float32",
    reward_model_trust_remote_code: bool = False,
) -> RewardModel:
    """The reward model in a folder, on the hub, or as ``bundled:…``, loaded once in a process.

    Raises:
        UsageError: it cannot be loaded, it is no reward model, or it was saved without its head.
    """
    return _loaded(
        name, reward_model_batch_size, reward_model_device, reward_model_dtype, reward_model_trust_remote_code
    )


@cache
def _loaded(name: str, batch_size: int, device: str | None, dtype: str, trust: bool) -> RewardModel:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"reward_model_device: {device!r} is not there ({first_line(error)}); leave it out for the learner's"
            ) from error
    source = ModelSource(name, dtype=getattr(torch, dtype), trust_remote_code=trust)
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source.location, dtype=source.dtype, trust_remote_code=trust, output_loading_info=True
        )
    except UsageError as error:
        raise _of_reward(name, error) from error
    except Exception as error:
        remedy = (
            "read the code that it brings, then set reward_model_trust_remote_code=true"
            if "trust_remote_code" in str(error)
            else "give a folder or hub id of a sequence classifier, log in with HF_TOKEN for a gated one"
        )
        raise UsageError(
            f"reward_funcs: cannot load the reward model {name!r} ({first_line(error)}); {remedy}"
        ) from error
    # Transformers would draw at random what is missing.
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"reward_funcs: {name!r} was saved without {', '.join(missing[:3])}, so that its scores would be random; "
            "give a sequence classifier that was trained as a reward model"
        )
    try:
        return RewardModel(model, load_tokenizer(source), batch_size, device)
    except UsageError as error:
        raise _of_reward(name, error) from error


def _of_reward(name: str, error: UsageError) -> UsageError:
    """``error`` of loading it, which speaks of the policy's setting, as one of the reward."""
    said = str(error).removeprefix("model_name_or_path: ").removeprefix("reward_funcs: ")
    return UsageError(f"reward_funcs: cannot load the reward model {name!r}: {said}")


def given_reward_model(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any]
) -> RewardModel:
    """A model that a caller loaded. Without ``tokenizer``, the one saved where the model is from.

    Raises:
        UsageError: none is saved there, or it is no reward model.
    """
    name = str(getattr(model, "name_or_path", ""))
    if not hasattr(model, "name_or_path"):
        raise UsageError(
            f"reward_funcs: a {type(model).__name__} is neither a function nor a Transformers model"
        )
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(ModelSource(name))
        except (UsageError, ValueError, KeyError, ImportError) as error:
            raise UsageError(
                f"reward_processing_classes: no tokenizer is saved where the reward model is from ({name!r}); give it"
            ) from error
    return RewardModel(
        model, tokenizer, options["reward_model_batch_size"], options["reward_model_device"] or None
    )
