"""Plans as text: titled tables of two or more columns, in plain characters that a log file keeps readable."""

from collections.abc import Sequence

Row = Sequence[str]


def table(title: str, rows: Sequence[Row]) -> str:
    """``rows`` under ``title``, every column but the last as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines])


def gpu_names(gpus: Sequence[str]) -> str:
    """``GPU 0``, ``GPU 1-7``, ``GPU 0,2`` or ``CPU``."""
    if not gpus:
        return "CPU"
    if len(gpus) > 1 and all(g.isdecimal() for g in gpus):
        numbers = [int(g) for g in gpus]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return f"GPU {gpus[0]}-{gpus[-1]}"
    return f"GPU {','.join(gpus)}"
