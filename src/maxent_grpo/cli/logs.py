"""Logging of a command: one plain format on stderr, other people's libraries at warning."""

import logging

_CHATTY = (
    "transformers",
    "datasets",
    "accelerate",
    "trl",
    "httpx",
    "urllib3",
    "filelock",
    "fsspec",
    "matplotlib",
)


def configure_logging(level: str) -> None:
    """Set up the root logger once for the process.

    Args:
        level: as ``log_level``: debug, info, warning, error, critical; ``passive`` is warning.
    """
    wanted = logging.getLevelNamesMapping().get(level.upper(), logging.WARNING)
    logging.basicConfig(level=wanted, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(wanted, logging.WARNING))
    # Transformers imports DeepSpeed, where installed, to save a model; on a CPU it then warns that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.msg)
