"""Several datasets as one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from maxent_grpo.data.sources import RetryPolicy, load_rows
from maxent_grpo.errors import UsageError
from maxent_grpo.randomness import permutation

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture; ``id``, ``config``, ``split`` and ``columns`` as in `load_rows`."""

    id: str
    config: str | None = None
    split: str = "train"
    columns: tuple[str, ...] | None = None
    weight: float = 1.0  # the share of its rows that is kept, in (0, 1]


@dataclass(frozen=True)
class Mixture:
    """Datasets to draw from together."""

    datasets: tuple[MixturePart, ...]
    seed: int = 0
    test_split_size: float | None = None  # the share of all kept rows that is held out, in (0, 1)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Mixture":
        """The mixture that ``{datasets: [{id, config, split, columns, weight}, …], seed, test_split_size}``
        describes.

        Raises:
            UsageError: an unknown or missing key, or a value out of its range.
        """
        _refuse_unknown(settings, cls, "dataset_mixture")
        entries = settings.get("datasets")
        if not isinstance(entries, list | tuple) or not entries:
            raise UsageError("dataset_mixture: 'datasets' must list at least one dataset, each with an 'id'")
        parts = tuple(_parse_part(entry, f"dataset_mixture.datasets[{i}]") for i, entry in enumerate(entries))
        size = settings.get("test_split_size")
        if size is not None and not (_is_number(size) and 0.0 < size < 1.0):
            raise UsageError(
                f"dataset_mixture.test_split_size is {size!r}: it must be a fraction between 0 and 1"
            )
        return cls(parts, int(settings.get("seed", 0)), size)


def load_mixture(
    mixture: Mixture | Mapping[str, Any], retry: RetryPolicy | None = None
) -> "tuple[Dataset, Dataset | None]":
    """The training rows of a mixture, shuffled, and its held-out rows (``None`` without a
    ``test_split_size``).

    Of each dataset ``floor(n · weight)`` rows are drawn without replacement. All draws are keyed by the
    mixture's seed.

    Raises:
        UsageError: columns that differ between datasets or cannot be joined, a dataset or a side of the
            split left empty; and what `load_rows` raises.
    """
    from datasets import concatenate_datasets

    if not isinstance(mixture, Mixture):
        mixture = Mixture.parse(mixture)

    kept = [_draw(part, number, mixture.seed, retry) for number, part in enumerate(mixture.datasets)]
    for part, rows in zip(mixture.datasets, kept, strict=True):
        if set(rows.column_names) != set(kept[0].column_names):
            raise UsageError(
                f"dataset_mixture: '{part.id}' has the columns {sorted(rows.column_names)} and "
                f"'{mixture.datasets[0].id}' {sorted(kept[0].column_names)}: select the same with 'columns'"
            )
    try:
        joined = concatenate_datasets([rows.select_columns(kept[0].column_names) for rows in kept])
    except ValueError as error:  # a column of one name and two types
        raise UsageError(
            f"dataset_mixture: the datasets cannot be joined: {' '.join(str(error).split())}"
        ) from error
    order = permutation(len(joined), mixture.seed, "mixture order")
    if mixture.test_split_size is None:
        return joined.select(order), None
    held_out = _share(len(joined), mixture.test_split_size)
    if not 0 < held_out < len(joined):
        raise UsageError(
            f"dataset_mixture.test_split_size: {mixture.test_split_size} of {len(joined)} rows leaves one "
            "side empty; change it, or keep more rows"
        )
    return joined.select(order[held_out:]), joined.select(order[:held_out])


def _draw(part: MixturePart, number: int, seed: int, retry: RetryPolicy | None) -> "Dataset":
    rows = load_rows(part.id, config=part.config, split=part.split, columns=part.columns, retry=retry)
    count = _share(len(rows), part.weight)
    if count == 0:
        raise UsageError(
            f"dataset_mixture: weight {part.weight} of the {len(rows)} rows of '{part.id}' keeps none"
        )
    # The position keys the draw too: a dataset that is listed twice is not drawn alike twice.
    return rows.select(permutation(len(rows), seed, "mixture draw", number, part.id)[:count])


def _share(n: int, fraction: float) -> int:
    return math.floor(n * fraction + 1e-9)  # 0.29 · 100 is 28.999… in floating point and means 29


def _parse_part(entry: Any, where: str) -> MixturePart:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
        raise UsageError(f"{where}: expected a mapping with the dataset's name as 'id', got {entry!r}")
    _refuse_unknown(entry, MixturePart, where)
    values = {key: value for key, value in entry.items() if value is not None}
    weight = values.get("weight", 1.0)
    if not (_is_number(weight) and 0.0 < weight <= 1.0):
        raise UsageError(
            f"{where}.weight is {weight!r}: it is the share of '{entry['id']}' to keep, above 0 and at most 1"
        )
    columns = values.pop("columns", None)
    if isinstance(columns, str):
        raise UsageError(f"{where}.columns is {columns!r}: it must be a list of column names")
    return MixturePart(**values, columns=None if columns is None else tuple(columns))


def _refuse_unknown(settings: Mapping[str, Any], kind: type[Mixture] | type[MixturePart], where: str) -> None:
    known = [field.name for field in fields(kind)]
    for key in settings:
        if key not in known:
            raise UsageError(f"{where}: unknown key '{key}'; known are {', '.join(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
