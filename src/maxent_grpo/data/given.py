"""Rows from whatever a caller from Python has: texts, chats, rows, columns, data frames, data sets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maxent_grpo.errors import UsageError

Rows = Sequence[Mapping[str, Any]]

TAKE = "take a number of them: list(itertools.islice(rows, 1000))"


def given_rows(given: Any, where: str) -> Rows:
    """The rows of ``given``, which errors call ``where``. A text or a chat becomes a row with a column ``prompt``.

    Taken are lists of texts, of chats and of rows, mappings of columns, data frames of pandas and polars, NumPy
    arrays, and any `datasets.Dataset`, whatever its format.

    Raises:
        UsageError: anything else, with what to give instead; the row is named where one alone is wrong.
    """
    rows = _listed(given, where)
    if len(rows) == 0:
        raise UsageError(f"{where} is empty: give at least one prompt")
    if _is_dataset(rows):
        return rows
    if isinstance(rows[0], Mapping) and rows[0].keys() == {"role", "content"}:
        raise UsageError(f"{where} is one chat: give a list of chats, [[{{'role': …, 'content': …}}], …]")
    return [_row(row, f"{where}, row {index}") for index, row in enumerate(rows)]


def _listed(given: Any, where: str) -> Sequence[Any]:
    """``given`` as a sequence of rows, texts or chats."""
    if given is None:
        raise UsageError(f"{where} is missing: give a list of texts, chats or rows, or a datasets.Dataset")
    if isinstance(given, str | bytes):
        raise UsageError(
            f"{where} is a text: give a list of texts, or load a file with datasets.load_dataset"
        )
    if isinstance(given, Mapping):
        return _of_columns(given, where)
    home = type(given).__module__.partition(".")[0]
    if home == "datasets" and hasattr(given, "with_format") and hasattr(given, "__len__"):
        return given.with_format(None)
    if home == "pandas":
        if not hasattr(given, "to_dict") or not hasattr(given, "columns"):
            return given.tolist()
        return given.astype(object).where(given.notna(), None).to_dict("records")
    if home == "polars":
        return given.to_dicts() if hasattr(given, "to_dicts") else given.to_list()
    if hasattr(given, "tolist"):  # an array
        given = given.tolist()
    if isinstance(given, Iterator) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        kind = type(given).__name__
        if hasattr(given, "__iter__"):
            raise UsageError(f"{where} is a {kind}, whose rows cannot be counted and drawn by number: {TAKE}")
        raise UsageError(f"{where} is a {kind}: give a list of texts, chats or rows, or a datasets.Dataset")
    return [given[index] for index in range(len(given))]


def _of_columns(given: Mapping[str, Any], where: str) -> Rows:
    """The rows of a mapping from names to columns."""
    sets = [name for name, value in given.items() if isinstance(value, Mapping) or _is_dataset(value)]
    of_rows = [
        n for n, v in given.items() if isinstance(v, list) and v and all(isinstance(r, Mapping) for r in v)
    ]
    if sets or (given and len(of_rows) == len(given)):
        names = ", ".join(repr(name) for name in given)
        raise UsageError(
            f"{where} is several data sets ({names}): give one of them, {where}[{next(iter(given))!r}]"
        )
    columns = {
        name: _plain(list(value) if hasattr(value, "__getitem__") and not isinstance(value, str) else value)
        for name, value in given.items()
    }
    for name, column in columns.items():
        if not isinstance(column, list | tuple):
            raise UsageError(
                f"{where}, column '{name}': a {type(column).__name__}, and a column is a list of values"
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"'{name}' has {length}" for name, length in lengths.items())
        raise UsageError(f"{where}: its columns are not of one length: {told}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _row(row: Any, where: str) -> Mapping[str, Any]:
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, Mapping):
        return {str(name): _plain(value) for name, value in row.items()}
    if isinstance(row, list | tuple) and row and all(isinstance(message, Mapping) for message in row):
        return {"prompt": list(row)}
    raise UsageError(
        f"{where}: {row!r:.60} is a {type(row).__name__}, expected a text, a chat or a row (a mapping)"
    )


def _plain(value: Any) -> Any:
    """NumPy's arrays and scalars, and pandas' columns, as Python's own values, as `datasets` makes them."""
    home = type(value).__module__.partition(".")[0]
    if home in ("numpy", "pandas") and hasattr(value, "tolist") and not isinstance(value, str):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def _is_dataset(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "datasets" and hasattr(value, "column_names")
