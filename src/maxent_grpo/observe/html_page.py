"""Pages from templates. Completions are hostile text: everything is escaped, and a missing value is an error."""

from pathlib import Path
from typing import Any


def filled(template: Path, **values: Any) -> str:
    """The page that ``template``, a Jinja file, makes of ``values``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
