"""Tables that the package writes itself: a comment ``<!-- generated: NAME -->`` in a page becomes the table NAME.

They are made from the dataclasses, the catalog and the metric definitions at build time, so that they cannot drift.
"""

import re
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from maxent_grpo.cli.helptext import facts, named, topics
from maxent_grpo.config.records import OWN, RECORDS, chosen_type, describe
from maxent_grpo.config.trl_settings import INERT, READ
from maxent_grpo.objectives.catalog import CATALOG
from maxent_grpo.objectives.components import NUMBERS
from maxent_grpo.observe.definitions import Definition, definitions
from maxent_grpo.settings import Setting

MARKER = re.compile(r"^<!-- generated: ([\w ]+) -->$", flags=re.MULTILINE)
GUIDES = Path(__file__).resolve().parents[1] / "guides"

METRIC_FAMILIES = {
    "Training: reward and completions": r"train/(reward|frac_|completions/|pass$|distinct$|coverage$|dynamic_)",
    "Training: loss, entropy and divergence": r"train/(loss|kl$|behaviour_kl|entropy$|clip|ratio|tis|kl_cov|top_|off_)",
    "Training: weights over the group": r"train/(weight_(entropy($|_norm|_min|_max)|norm_denom)|effective|q_entropy)",
    "Training: SEED-GRPO": r"train/seed_grpo/",
    "Training: InfoSeed": r"(train/(seed|info_seed)/|eval_seed/)",
    "Training: controllers": r"train/(tau|beta|delta|weight_entropy_|kl_|entropy_coef|controller|meta)",
    "Training: the optimiser": r"train/",
    "Evaluation while training": r"eval/",
    "Timing": r"",
}
"""Heading → pattern of the names below it; a metric stands under the first that fits."""


def settings() -> str:
    """This package's settings by topic, with type, default and help."""
    lines: list[str] = []
    for heading, records in topics().items():
        lines += [f"### {heading}", "", listed(line for record in records for line in entry(record))]
    return "\n".join(lines)


def trl_settings() -> str:
    """TRL's and Transformers' settings of the training section that this package's loop reads."""
    return trl_section("training", READ.split())


def trl_script_settings() -> str:
    """TRL's settings of the script section."""
    return trl_section("script", RECORDS["script"])


def model_settings() -> str:
    """The model section, which is TRL's."""
    return trl_section("model", RECORDS["model"])


def trl_section(section: str, names: Container[str]) -> str:
    taken = [r for r in RECORDS[section].values() if r.name in names and r.name not in OWN]
    return listed(line for record in taken for line in entry(record))


def refused_settings() -> str:
    """What this package's loop refuses, or takes without effect, by reason."""
    refused: dict[str, list[str]] = {}
    for record in RECORDS["training"].values():
        if record.route == "trl":
            refused.setdefault(record.instead, []).append(record.name)
    inert = {reason: names.split() for reason, names in INERT.items()}
    rows = [
        (" ".join(f"`{name}`" for name in names), verdict, reason)
        for verdict, reasons in (("refused", refused), ("accepted", inert))
        for reason, names in reasons.items()
    ]
    return table(("settings", "on this package's loop", "because"), rows)


def objectives() -> str:
    """The catalog: what each name composes, where it differs from GRPO."""
    rows = []
    for name, spec in CATALOG.items():
        changed = [f"{key}: {spec[key]}" for key, number in NUMBERS.items() if spec[key] != number.default]
        rows.append((f"`{name}`", ", ".join(f"`{part}`" for part in changed) or "GRPO itself"))
    return table(("objective", "what it sets"), rows)


def metrics() -> str:
    """Every metric by family: name, unit, meaning, and what a bad value looks like."""
    left = definitions()
    lines: list[str] = []
    for heading, pattern in METRIC_FAMILIES.items():
        family = [metric for metric in left if re.match(pattern, metric.name)]
        left = [metric for metric in left if metric not in family]
        lines += [f"## {heading}", "", listed(line for metric in family for line in metric_entry(metric))]
    return "\n".join(lines)


def metric_entry(metric: Definition) -> list[str]:
    """A metric as a definition-list entry of Markdown."""
    lines = [
        f"`{metric.name}`",
        f": {metric.unit or 'a number'}",
        "",
        f"  {escaped(capital(metric.meaning))}.",
        "",
    ]
    return lines + ([f"  **Bad:** {escaped(metric.warning)}.", ""] if metric.warning else [])


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(lines: Iterable[str]) -> str:
    """A definition list in the site's style."""
    return "\n".join([":::{div} settings", "", *lines, ":::", ""])


def entry(record: Setting) -> list[str]:
    """A setting as a definition-list entry of Markdown."""
    text = one_line(record.help + facts(record))
    native = " · this package's loop only" if record.route == "native" else ""
    kind = describe(chosen_type(record)).removesuffix(" or null")
    lines = [f"`{named(record)}`", f": {escaped(kind)}, default {default(record.default)}{native}", ""]
    lines += [f"  {escaped(text)}", ""] if text else []
    return lines


def default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows])


def cell(text: str) -> str:
    """Text that may stand in a cell: code as it is, the rest escaped."""
    if text.startswith("`"):
        return text.replace("|", "\\|")
    return escaped(text)


def escaped(text: str) -> str:
    """Prose for Markdown: what would be markup is text."""
    return re.sub(r"([|<>*_`$\[\]{}\\])", r"\\\1", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


def guide(name: str) -> str:
    """A link to a part's guide where this version has one, else the plain truth."""
    page = GUIDES / f"{name}.md"
    if not page.is_file():
        return "Not in this version. A setting that asks for it ends with a line that says so."
    title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    return f"The guide: [{title}](guides/{name}.md)."


TABLES: dict[str, Callable[[], str]] = {
    **{
        f"guide {name}": partial(guide, name)
        for name in ("vllm", "slurm", "ray", "generation", "checkpoints")
    },
    "settings": settings,
    "settings of trl": trl_settings,
    "script settings of trl": trl_script_settings,
    "model settings": model_settings,
    "refused settings": refused_settings,
    "objectives": objectives,
    "metrics": metrics,
}


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of a page by their tables."""
    for name in MARKER.findall(source[0]):
        if name not in TABLES:
            raise ExtensionError(f"{docname}: no generated table {name!r}; there are {', '.join(TABLES)}")
    source[0] = MARKER.sub(lambda match: TABLES[match[1]](), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
