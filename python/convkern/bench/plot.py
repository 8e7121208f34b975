"""A run of the benchmark as a picture: rooflines of the layers, bars of layers and whole models beside the peers.

One column for each batch size. Roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): a layer lies at the
operations of the direct algorithm over the bytes it must move (its input, weights and output once each), below the roof
of the measured multiply-add peak and the measured bandwidth. Winograd does fewer operations, so it may lie above. A
grey dot below or above a layer is the best peer. Bars show speed: 1 is the best peer on that layer or model.
"""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, Unsupported
from . import report
from .report import Document, Row
from .shapefile import parse_line

FORMATS = (".png", ".svg", ".pdf")

OURS = "convkern"
COLOURS = {
    OURS: "#d1495b",
    "PyTorch": "#a9b4c2",
    "torch.compile": "#7d8597",
    "ONNX Runtime": "#5aa17f",
    "OpenVINO": "#2e5e8c",
}
# Kinds of layers that share a colour in the roofline.
_POINTS = (
    ("3x3, C,K >= 64", "#d1495b", report.KINDS[:2]),
    ("1x1", "#2e5e8c", ("1x1", "1x1 map")),
    ("first (C=3)", "#edae49", ("first (C=3)",)),
    ("grouped", "#8c4fb0", ("grouped",)),
    ("depthwise", "#3c9d6f", ("depthwise",)),
    ("other", "#555555", ("3x3 s1, other", "other")),
)


def check(file: str | os.PathLike[str]) -> None:
    """Raise what `draw` would: ImportError without matplotlib, Unsupported or DataError for a file it cannot write."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'convkern[plot]'") from error
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise Unsupported(f"{path}: want a name that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: no such folder")


def draw(doc: Document, file: str | os.PathLike[str]) -> None:
    """Draw a document of report.py into a file, whose name says the format."""
    check(file)
    if not doc["rows"]:
        raise DataError("there is nothing in the run to draw")
    from matplotlib.figure import Figure

    batches = sorted({row["n"] for row in doc["rows"]})
    rows = {n: [row for row in doc["rows"] if row["n"] == n and "same_as" not in row] for n in batches}
    layers = {n: [row for row in rows[n] if row["layer"] is not None] for n in batches}
    kinds = {n: _layer_bars(layers[n]) for n in batches}
    models = {n: [(row["model"], _speeds(row)) for row in rows[n] if row["layer"] is None] for n in batches}

    panels: list[tuple[float, Any]] = []  # height in inches, what draws it
    if any(layers.values()):
        panels.append((4.6, lambda axes, n: _roofline(axes, doc, layers[n], n)))
    for title, bars in (("layers, geometric means", kinds), ("whole models", models)):
        count = max(len(bars[n]) for n in batches)
        if count:
            height = 1.0 + count * 0.62
            panels.append((height, lambda axes, n, t=title, b=bars: _bars(axes, b[n], f"{t}, N={n}", n == batches[0])))
    heights = [height for height, _ in panels]
    figure = Figure(figsize=(7.2 * len(batches), 0.7 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), len(batches), squeeze=False, height_ratios=heights)
    for axes_row, (_, paint) in zip(grid, panels):
        for axes, n in zip(axes_row, batches):
            paint(axes, n)
    shown = dict(zip(*reversed(grid[-1, -1].get_legend_handles_labels())))
    if OURS in shown:
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown), fontsize=9, frameon=False)
    figure.suptitle(textwrap.fill(report.describe(doc), 88 * len(batches)), fontsize=9, color="#444444")
    figure.savefig(file, dpi=120)


def _roofline(axes: Any, doc: Document, rows: Sequence[Row], n: int) -> None:
    groups: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for row in rows:
        layer = parse_line(row["shape"])
        groups[report.kind(layer)].append((2 * row["macs"] * n / layer.bytes(n), row))
    points = [point for group in groups.values() for point in group]
    for intensity, row in points:
        best = report.best_peer(row)
        if best:
            rate = 2e-9 * row["macs"] * n / row["peers"][best[0]]["median"]
            axes.plot([intensity] * 2, [rate, row["gflops"]], color="#dddddd", linewidth=0.8, zorder=1)
            axes.plot(intensity, rate, ".", color="#9a9a9a", markersize=4, zorder=2)
    for label, colour, kinds in _POINTS:
        found = [point for kind in kinds for point in groups[kind]]
        for winograd, marker in ((False, "o"), (True, "^")):  # two ways to do 3x3 and 5x5
            chosen = [(x, row["gflops"]) for x, row in found if ("winograd" in row["kernel"]) == winograd]
            if chosen:
                name = f"{label}{', Winograd' if winograd else ''}"
                axes.plot(*zip(*chosen), marker, color=colour, markersize=5, label=name, zorder=3, alpha=0.85)
    if any(row["peers"] for _, row in points):
        axes.plot([], [], ".", color="#9a9a9a", label="best peer")
    low, high = min(x for x, _ in points) / 1.6, max(x for x, _ in points) * 1.6
    _roof(axes, low, high, doc["peak_gflops"], doc.get("bandwidth", 0.0) / 1e9)
    axes.set(xscale="log", yscale="log", xlim=(low, high), title=f"roofline of {len(rows)} layers, N={n}")
    axes.set(xlabel="FLOP of the direct algorithm / byte of input, weights and output", ylabel="GFLOP/s")
    axes.grid(which="major", color="#eeeeee")
    axes.legend(fontsize=8, loc="lower right")


def _roof(axes: Any, low: float, high: float, peak: float, slope: float) -> None:
    """min(peak, slope * intensity) between two intensities; the level alone where no bandwidth was measured."""
    ridge = min(max(low, peak / slope), high) if slope else low
    style = dict(color="#222222", linewidth=1.2, zorder=2)
    words = dict(textcoords="offset points", fontsize=8, color="#222222")
    if ridge > low:
        axes.plot([low, ridge], [slope * low, slope * ridge], **style)
        middle = (low * ridge) ** 0.5
        axes.annotate(f"{slope:.0f} GB/s", (middle, slope * middle), xytext=(-5, 4), ha="right", **words)
    if ridge < high:
        axes.plot([ridge, high], [peak, peak], **style)
        axes.annotate(f"{peak:.0f} GFLOP/s", (high, peak), xytext=(-3, 4), ha="right", **words)


def _speeds(row: Row) -> dict[str, float]:
    """Contestant -> speed in units of the best peer; PyTorch is the better of its two layouts. Empty without peers."""
    best = report.best_peer(row)
    if best is None:
        return {}
    fastest = row["peers"][best[0]]["median"]
    speeds = {OURS: best[1]}
    for name, timing in row["peers"].items():
        eager = name.startswith("torch.") and name != "torch.compile"
        title = "PyTorch" if eager else report.TITLES.get(name, name)
        speeds[title] = max(speeds.get(title, 0.0), fastest / timing["median"])
    return speeds


def _layer_bars(rows: Iterable[Row]) -> list[tuple[str, dict[str, float]]]:
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        speeds = _speeds(row)
        if speeds:
            for kind in ("all layers", report.kind(parse_line(row["shape"]))):
                groups[kind].append(speeds)
    bars: list[tuple[str, dict[str, float]]] = []
    for kind in ("all layers", *report.KINDS):
        found = groups[kind]
        if found:
            means = {name: report.geometric_mean(speeds[name] for speeds in found) for name in found[0]}
            bars.append((f"{kind} ({len(found)})", means))
    return bars


def _bars(axes: Any, bars: Sequence[tuple[str, dict[str, float]]], title: str, named: bool) -> None:
    contestants = [name for name in COLOURS if any(name in speeds for _, speeds in bars)]
    thick = 0.84 / max(1, len(contestants))
    for i, name in enumerate(contestants):
        places = [(y + (i - (len(contestants) - 1) / 2) * thick, s[name]) for y, (_, s) in enumerate(bars) if name in s]
        ys, speeds = zip(*places)
        axes.barh(ys, speeds, thick * 0.92, color=COLOURS[name], label=name)
        if name == OURS:
            for y, speed in places:
                axes.annotate(
                    f"{speed:.2f}", (speed, y), textcoords="offset points", xytext=(3, 0), va="center", fontsize=8
                )
    axes.axvline(1.0, color="#222222", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(bars)), [name if named else "" for name, _ in bars], fontsize=9)
    axes.set(title=title, xlabel="speed, best peer = 1", ylim=(len(bars) - 0.45, -0.55))
    most = max([1.0, *(speed for _, speeds in bars for speed in speeds.values())])
    axes.set_xlim(0, most * 1.12)
    axes.spines[["top", "right"]].set_visible(False)
