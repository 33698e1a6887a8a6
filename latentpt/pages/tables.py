"""Numbers and tables as text: aligned for the terminal, Markdown for a document; `document.table` is for pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def quantity(value: float) -> str:
    """Three significant digits with an SI prefix: 23400000 -> 23.4 M."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    power = min(max(math.floor(math.log10(abs(value)) / 3), 0), len(PREFIXES) - 1)
    digits = f"{value / 1000**power:#.3g}".rstrip(".")
    if digits.startswith("1.00e"):  # 999.6 rounds up into the next prefix
        power, digits = power + 1, "1.00"
    return f"{digits} {PREFIXES[power]}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3.5 min, 2.1 h, 4.0 d."""
    for unit, size, least in (("d", 86400, 2 * 86400), ("h", 3600, 3600), ("min", 60, 60)):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart, the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is flush left and whose others are flush right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])
