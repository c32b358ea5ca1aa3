"""The recipes and other configuration files that come with the package, found from anywhere.

A path that exists is itself. One below ``configs/`` that does not is looked for in the checkout that this package is
imported from, and then in the copy that the wheel carries (``maxent_grpo/shipped/``), so that
``configs/recipes/tiny/…`` works outside the repository too. Standard library only.
"""

from pathlib import Path

ROOT = "configs"
PACKAGE = Path(__file__).resolve().parents[1]
HOMES = (PACKAGE.parents[1] / ROOT, PACKAGE / "shipped")
"""The checkout's files, and the wheel's."""


def shipped(path: str | Path) -> Path:
    """``path``, or the shipped file or folder that it names where there is nothing at ``path``."""
    given = Path(path).expanduser()
    if given.exists() or given.is_absolute() or given.parts[:1] != (ROOT,):
        return given
    found = (home.joinpath(*given.parts[1:]) for home in HOMES)
    return next((candidate for candidate in found if candidate.exists()), given)
