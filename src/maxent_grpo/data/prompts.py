"""From dataset rows to the prompts that a policy reads: column mapping, clipping, chat template, tokens."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from maxent_grpo.data.templates import rendered
from maxent_grpo.errors import UsageError
from maxent_grpo.named import one_line
from maxent_grpo.types import Prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")

Message = dict[str, Any]

PROMPT_COLUMNS = ("prompt", "problem", "question")
"""Columns that hold prompts, as TRL, Open-R1 and GSM8K call them: the first that is there, where none is named."""


@dataclass(frozen=True)
class PromptSettings:
    """How rows become prompts."""

    prompt_column: str | None = None
    """Holds a text, or a chat: a list of {role, content}; None: the first of `PROMPT_COLUMNS`. Columns may be paths,
    ``data.problem``."""
    solution_column: str = "answer"
    """Holds the gold, which rewards receive as ``answer``."""
    system_prompt: str | None = None
    """Put before chats that do not bring their own system message."""
    chat_template: str | None = None
    """None: the tokenizer's own, or "ROLE: text" lines where it has none."""
    apply_chat_template: bool | None = None
    """Whether a text becomes a user's message; None: a question does, and a text of the column ``prompt`` goes to the
    model as it is (as in TRL) where there is neither a system prompt nor a template of one's own."""
    needs_gold: bool = True
    """Whether a reward reads golds: rows without one are left out, and a missing column is a warning."""
    max_prompt_chars: int | None = None
    """Length to which user messages are cut, see `char_limit`; None: never."""
    max_prompt_length: int | None = None
    """Tokens of the whole templated prompt; longer ones are dropped."""

    @property
    def char_limit(self) -> int | None:
        """Characters kept of each user message: at least four per token that a prompt may have."""
        if self.max_prompt_chars is None:
            return None
        return max(self.max_prompt_chars, 4 * (self.max_prompt_length or 0))


def build_prompts(
    rows: "Dataset | Sequence[Mapping[str, Any]]",
    tokenizer: "PreTrainedTokenizerBase",
    settings: PromptSettings,
) -> list[Prompt]:
    """The prompts of a dataset, in its order. ``Prompt.index`` is the row number in ``rows``.

    ``Prompt.columns`` is the row, with the gold also under ``answer``. User messages are clipped to
    ``char_limit`` characters, where there is such a limit, *before* templating.
    ``Prompt.messages`` is the clipped chat where the row has one in place of a text.
    ``Prompt.text`` holds all special tokens that the model reads, a beginning-of-sequence token included,
    and ``Prompt.token_ids`` encodes exactly this text.

    Left out, each with one warning that counts them: rows with an empty prompt, or without the gold that rewards
    need, and prompts of more than ``max_prompt_length`` tokens. A missing solution column is a warning as well.

    Raises:
        UsageError: no prompt column, a prompt that is neither text nor chat, texts beside chats, half a
            character, a template that refuses a chat, or no prompts left.
    """
    if len(rows) == 0:
        raise UsageError("there are no rows to make prompts from")
    names = list(rows[0])
    if settings.prompt_column is None and (several := [c for c in PROMPT_COLUMNS if c in names])[1:]:
        logger.warning("prompts are taken from the column '%s', not %s", several[0], " or ".join(several[1:]))
    prompt_column = _prompt_column(rows[0], settings.prompt_column)
    solution_column = _solution_column(rows[0], settings.solution_column, settings.needs_gold)
    kept: list[Prompt] = []  # as yet without tokens
    unread = [name for name in names if name in MEDIA_COLUMNS]
    if unread:
        logger.warning("not read: the columns %s; models see the text of a prompt only", ", ".join(unread))
    empty = clipped = untemplated = 0
    for index, row in enumerate(rows):
        if row.keys() != set(names):
            raise UsageError(
                f"row {index} has the columns {', '.join(row)}, and row 0 has {', '.join(names)}"
            )
        asked = column_value(row, prompt_column)
        gold = None if solution_column is None else column_value(row, solution_column)
        chat = chat_of(asked, f"row {index}, column '{prompt_column}'")
        if _is_empty(chat) or (settings.needs_gold and solution_column is not None and _is_blank(gold)):
            empty += 1
            continue
        chat, was_clipped = _clip(chat, settings.char_limit)
        clipped += was_clipped
        columns = row if solution_column is None else {**row, "answer": gold}
        messages = chat if isinstance(asked, list) else None
        if _goes_as_it_is(asked, prompt_column, settings):
            untemplated += 1
            text = _plain_begin(tokenizer, chat[-1]["content"]) + chat[-1]["content"]
        else:
            text = _rendered(chat, tokenizer, settings, index, row)
        _refuse_surrogates(text, f"row {index}, column '{prompt_column}'")
        if kept and (kept[0].messages is None) != (messages is None):
            raise UsageError(
                f"row {index}, column '{prompt_column}': a {'text' if messages is None else 'chat'}, and row "
                f"{kept[0].index} is none: give chats, [{{'role': 'user', 'content': text}}], or texts alone"
            )
        kept.append(Prompt(index, text, (), columns, messages=messages))
    _warn(empty, "rows without a prompt or a gold answer left out of %d", len(rows))
    _warn(clipped, "prompts clipped: their user text has more than %d characters", settings.char_limit)
    if untemplated and settings.apply_chat_template is None and tokenizer.chat_template:
        logger.warning(
            "%d texts of the column '%s' go to the model as they are; apply_chat_template=true makes them a user's "
            "message, false says that this is meant",
            untemplated,
            prompt_column,
        )
    prompts = _tokenise(kept, tokenizer, settings.max_prompt_length)
    if not prompts:
        raise UsageError(
            f"none of the {len(rows)} rows gives a prompt: {empty} have an empty '{prompt_column}' or gold, "
            f"and {len(kept)} exceed max_prompt_length={settings.max_prompt_length}; raise it, or check the "
            "columns"
        )
    return prompts


def seeded_prompt(
    prompt: Prompt, seed: int, template: str, tokenizer: "PreTrainedTokenizerBase", settings: PromptSettings
) -> Prompt:
    """The variant of ``prompt`` that carries ``seed``: the same chat with its last user message changed.

    The message is followed by ``template`` with ``{seed}`` filled in, or is the template itself where that has a
    ``{prompt}`` to fill in. The seed comes after clipping and before the chat template, so that it is neither cut
    nor put behind the assistant's header; its few tokens come on top of ``max_prompt_length``. The variant has no
    columns of its own: it is rewarded as its parent.

    Raises:
        UsageError: a chat without a user message.
    """
    chat, last = seedable_chat(prompt, settings)
    chat, _ = _clip(chat, settings.char_limit)
    content = chat[last]["content"]
    filled = template.format(seed=seed, prompt=content)
    chat[last] = chat[last] | {"content": filled if "{prompt}" in template else content + filled}
    column = _prompt_column(prompt.columns, settings.prompt_column)
    if _goes_as_it_is(column_value(prompt.columns, column), column, settings):
        text = _plain_begin(tokenizer, chat[-1]["content"]) + chat[-1]["content"]
    else:
        text = _rendered(chat, tokenizer, settings, prompt.index, prompt.columns)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(prompt.index, text, tuple(ids), {}, prompt.epoch, seed_id=seed)


def next_turn(
    message: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PromptSettings,
    index: int,
) -> str:
    """What stands between one answer of the policy and the next: text that follows the first one's last word.

    It is the chat template's end of an assistant's turn, ``message`` in its own markers, and the header of the next
    answer. ``index`` is the prompt's, for errors.

    Raises:
        UsageError: a template that refuses the chat, or does not write an answer as it is.
    """
    answer = "\N{SECTION SIGN}answer\N{SECTION SIGN}"
    chat: list[Message] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": answer},
        dict(message),
    ]
    _, found, rest = _render(chat, tokenizer, settings, index).partition(answer)
    if not found or answer in rest:
        raise UsageError(
            "the chat template does not write an answer once and as it is, so that no turn can follow it; "
            "set chat_template"
        )
    return rest


def seedable_chat(prompt: Prompt, settings: PromptSettings) -> tuple[list[Message], int]:
    """The chat that ``prompt`` was made from, and which of its messages takes a seed: the user's last.

    Raises:
        UsageError: there is none.
    """
    column = _prompt_column(prompt.columns, settings.prompt_column)
    where = f"row {prompt.index}, column '{column}'"
    chat = chat_of(column_value(prompt.columns, column), where)
    asked = [i for i, message in enumerate(chat) if message["role"] == "user"]
    if not asked:
        raise UsageError(f"{where}: the chat has no user message to put a seed into; InfoSeed needs one")
    return chat, asked[-1]


def column_value(row: Mapping[str, Any], column: str) -> Any:
    """What stands in ``column``: a name, or a path into mappings such as ``reward_model.ground_truth``.

    None where a mapping on the way is None or lacks the key.
    """
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _has_column(row: Mapping[str, Any], column: str) -> bool:
    return column in row or ("." in column and isinstance(row.get(column.partition(".")[0]), Mapping))


def _prompt_column(row: Mapping[str, Any], wanted: str | None) -> str:
    usual = wanted is None or wanted == "problem"  # what older recipes wrote, whatever the data set
    for column in (wanted, *(PROMPT_COLUMNS if usual else ())):
        if column is not None and _has_column(row, column):
            return column
    raise UsageError(
        f"the dataset has no column '{wanted or PROMPT_COLUMNS[0]}' to take prompts from; it has {', '.join(row)}: "
        "set dataset_prompt_column (from Python: prompt_column)"
    )


def _solution_column(row: Mapping[str, Any], wanted: str, needed: bool) -> str | None:
    if _has_column(row, wanted):
        return wanted
    if not needed:
        return None
    logger.warning(
        "the dataset has no column '%s' to take gold answers from (it has %s): rewards that need a gold "
        "will fail; set dataset_solution_column (from Python: solution_column)",
        wanted,
        ", ".join(row),
    )
    return None


def chat_of(prompt: Any, where: str) -> list[Message]:
    """The messages of a prompt, a text or a chat; none for None. Raises `UsageError` for anything else."""
    if prompt is None:
        return []
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise UsageError(
            f"{where}: a prompt is a {type(prompt).__name__}, expected a text or a list of messages"
        )
    for message in prompt:
        if not (
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise UsageError(f"{where}: a message is {message!r}, expected {{'role': text, 'content': text}}")
    # A column of chats pads the keys that a message lacks with None; templates test for the key.
    return [{key: value for key, value in message.items() if value is not None} for message in prompt]


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: holds half a character (a lone surrogate, {text[error.start]!a}), which no tokenizer reads; "
            "text.encode('utf-8', 'replace').decode() replaces it"
        ) from error


def _is_empty(chat: Sequence[Message]) -> bool:
    return not any(message["content"].strip() for message in chat if message["role"] != "system")


def _is_blank(gold: Any) -> bool:
    return (
        not gold.strip() if isinstance(gold, str) else gold is None or (isinstance(gold, list) and not gold)
    )


def _clip(chat: list[Message], limit: int | None) -> tuple[list[Message], bool]:
    if limit is None:
        return chat, False
    long = [message["role"] == "user" and len(message["content"]) > limit for message in chat]
    clipped = [
        message | {"content": message["content"][:limit]} if is_long else message
        for message, is_long in zip(chat, long, strict=True)
    ]
    return clipped, any(long)


def _render(
    chat: list[Message],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PromptSettings,
    index: int,
    columns: Mapping[str, Any] | None = None,
) -> str:
    """The text of a chat up to where the policy writes: the header of its answer, or the end of an answer begun.

    A chat whose last message is the assistant's is continued, not answered. The row's columns ``tools`` and
    ``chat_template_kwargs`` go to the template, as in TRL.
    """
    from jinja2 import TemplateError

    if settings.system_prompt and not any(message["role"] == "system" for message in chat):
        chat = [{"role": "system", "content": settings.system_prompt}, *chat]
    begun = chat[-1]["role"] == "assistant"
    template = settings.chat_template or tokenizer.chat_template
    if template is None:
        lines = [f"{message['role'].upper()}: {message['content']}" for message in chat]
        return "\n".join(lines if begun else [*lines, "ASSISTANT:"])
    arguments = _template_arguments(columns or {}, index)
    try:
        return rendered(
            lambda: tokenizer.apply_chat_template(
                chat,
                chat_template=settings.chat_template,
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                **arguments,
            )
        )
    except TemplateError as error:  # also how a template says that it knows no system role
        raise UsageError(
            f"the chat template refuses the prompt of row {index}: {error}; set chat_template"
        ) from error
    except (
        Exception
    ) as error:  # a template is the user's program: it divides by zero, it calls what is not there
        raise UsageError(
            f"the chat template fails on the prompt of row {index} ({one_line(error, 200)}); set chat_template"
        ) from error


def _template_arguments(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What a row's columns ``tools`` and ``chat_template_kwargs`` say to the template, values or JSON.

    Arguments that Arrow pads with None are left out.
    """
    tools, given = (_parsed(row.get(column)) for column in ("tools", "chat_template_kwargs"))
    where = f"row {index}, column"
    if tools and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise UsageError(
            f"{where} 'tools': {tools!r} is no list of tools (mappings that describe a function)"
        )
    if given and not isinstance(given, Mapping):
        raise UsageError(f"{where} 'chat_template_kwargs': {given!r} is no mapping of arguments")
    arguments = {str(key): value for key, value in (given or {}).items() if value is not None}
    return {"tools": tools or None, **arguments}


def _parsed(column: Any) -> Any:
    try:
        return json.loads(column) if isinstance(column, str) and column.strip() else column or None
    except ValueError:
        return column


def _goes_as_it_is(asked: Any, column: str, settings: PromptSettings) -> bool:
    """Whether a prompt is a text that no chat template touches. See `PromptSettings.apply_chat_template`.

    Raises:
        UsageError: a system prompt, and a text that is not to be part of a chat.
    """
    if not isinstance(asked, str) or settings.apply_chat_template:
        return False
    if settings.apply_chat_template is None:
        return column == "prompt" and not (settings.system_prompt or settings.chat_template)
    if settings.system_prompt:
        raise UsageError(
            "system_prompt: needs the chat template; set apply_chat_template=true, or leave it out"
        )
    return True


def _rendered(
    chat: list[Message],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PromptSettings,
    index: int,
    columns: Mapping[str, Any],
) -> str:
    """The chat as text, with the beginning-of-sequence token where no template brings its own."""
    text = _render(chat, tokenizer, settings, index, columns)
    return text if settings.chat_template or tokenizer.chat_template else _plain_begin(tokenizer, text) + text


def _plain_begin(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """The beginning-of-sequence token where the tokenizer would add it and ``text`` does not hold it."""
    begin = tokenizer.bos_token
    adds = begin is not None and tokenizer.bos_token_id in tokenizer("")["input_ids"]
    return str(begin) if adds and not text.startswith(str(begin)) else ""


def _tokenise(
    kept: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> list[Prompt]:
    if not kept:
        return []
    # The text already holds its special tokens; adding them here would double the first.
    encoded = tokenizer([prompt.text for prompt in kept], add_special_tokens=False)["input_ids"]
    prompts = [
        replace(prompt, token_ids=tuple(ids))
        for prompt, ids in zip(kept, encoded, strict=True)
        if max_length is None or len(ids) <= max_length
    ]
    _warn(len(kept) - len(prompts), "prompts of more than %d tokens left out (max_prompt_length)", max_length)
    return prompts


def _warn(count: int, message: str, detail: int | None) -> None:
    if count:
        logger.warning("%d " + message, count, detail)


@dataclass(frozen=True)
class SeedPrompts:
    """Makes the variants of any prompt that ``settings`` made: when it is drawn, since few are at a time."""

    template: str  # holds {seed}, and may hold {prompt}; see `data.prompts.seeded_prompt`
    count: int  # S
    tokenizer: "PreTrainedTokenizerBase"
    settings: PromptSettings

    def variants(self, prompt: Prompt) -> list[Prompt]:
        """``prompt`` with each of the seeds 0 … S − 1."""
        return [
            seeded_prompt(prompt, seed, self.template, self.tokenizer, self.settings)
            for seed in range(self.count)
        ]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `UsageError` where a prompt cannot carry a seed, or the tokenizer cannot tell two seeds apart."""
        for prompt in prompts:
            seedable_chat(prompt, self.settings)
        seeds: dict[tuple[int, ...], int] = {}
        for variant in self.variants(prompts[0]):
            same = seeds.setdefault(variant.token_ids, variant.seed_id)
            if same != variant.seed_id:
                raise UsageError(
                    f"info_seed_prompt_template: seeds {same} and {variant.seed_id} are the same tokens to this "
                    f"tokenizer in {self.template!r}; choose characters that it knows"
                )
