"""Files of the repository as pages: ``<!-- file: CHANGELOG.md -->`` becomes that file, its links turned to the site."""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- file: ([\w./-]+) -->$", flags=re.MULTILINE)
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "citing.md",
    "benchmarks/RESULTS.md": "results.md",
    "docs/decisions/README.md": "decisions/index.md",
}
"""File of the repository → page of the site that shows it; files below docs/ are pages as they are."""


def page_of(target: str, file: Path) -> str:
    """Where the link ``target``, as written in ``file``, leads on the site."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, hash_, anchor = target.partition("#")
    place = (file.parent / path).resolve().relative_to(ROOT).as_posix()
    return PAGES.get(place, place.removeprefix("docs/")) + hash_ + anchor


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    def text(match: re.Match[str]) -> str:
        file = ROOT / match[1]
        app.env.note_dependency(str(file), docname=docname)
        written = file.read_text(encoding="utf-8")
        return re.sub(r"(?<=\]\()([^)\s]+)(?=\))", lambda link: page_of(link[1], file), written)

    source[0] = MARKER.sub(text, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
