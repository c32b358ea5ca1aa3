"""The API pages: docstrings as they are, and signatures without the long values of tables.

This package writes |x| for a length and a norm, which reStructuredText reads as markup.
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

LONGEST_VALUE = 60  # characters; a longer one is a table, to be read in the source


def escape_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape ``|`` outside literals, in place."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`)", line)
        lines[i] = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def drop_long_values(app: Sphinx, doctree: nodes.document) -> None:
    """Remove ``= value`` from the signature of data whose value is long."""
    for annotation in list(doctree.findall(addnodes.desc_annotation)):
        text = annotation.astext()
        if text.lstrip().startswith("=") and len(text) > LONGEST_VALUE:
            annotation.parent.remove(annotation)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("doctree-read", drop_long_values)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
