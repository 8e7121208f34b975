"""Plain text for the command line: aligned tables, bars, and numbers a person can read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any


class Columns:
    """A table that can be printed line by line: the widths are known beforehand.

    spec: (title, width) pairs; a negative width aligns left.

    >>> table = Columns([("layer", -8), ("ms", 6)])
    >>> print(table.head())
    layer         ms
    >>> print(table.row("conv1", 1.25))
    conv1       1.25
    """

    def __init__(self, spec: Iterable[tuple[str, int]]):
        self.spec = [(title, max(abs(width), len(title)), width < 0) for title, width in spec]

    def head(self) -> str:
        return self.row(*(title for title, _, _ in self.spec))

    def row(self, *values: Any) -> str:
        cells = (str(v).ljust(width) if left else str(v).rjust(width) for v, (_, width, left) in zip(values, self.spec))
        return "  ".join(cells).rstrip()


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Lines of a table, as wide as its cells; the first `left` columns are aligned left.

    >>> print(table(["kernel", "steps"], [["conv_ref", 3]]))
    kernel    steps
    conv_ref      3
    """
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    columns = Columns((title, -width if i < left else width) for i, (title, width) in enumerate(zip(titles, widths)))
    return "\n".join([columns.head(), *(columns.row(*row) for row in rows)])


def bar(share: float, width: int = 24) -> str:
    """A horizontal bar: `share` (0 to 1) of `width` characters, to an eighth of one where the terminal can show it.

    >>> len(bar(0.5, 10))
    5
    """
    share = min(max(share, 0.0), 1.0)
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def emit(text: str, style: str = "") -> None:
    """Print a line, in colour where the output is a terminal and rich is installed."""
    if style and sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console(highlight=False, soft_wrap=True).print(text, style=style, markup=False)
            return
    print(text, flush=True)


def seconds(value: float) -> str:
    """A duration in the unit that fits.

    >>> seconds(0.0123), seconds(45e-6), seconds(2.5)
    ('12.3 ms', '45.0 us', '2.50 s')
    """
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"


def size(count: float) -> str:
    """Bytes in decimal units.

    >>> size(552_000_000), size(900)
    ('552 MB', '900 B')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:.0f} B"
