"""Pictures: training curves, confusion matrices, filters, feature maps, and how a convolution walks over its input.

Each function draws with matplotlib (extra: convkern[plot]), without a display, and writes one PNG, whole or not at
all (atomic.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_file
from .errors import DataError, DTypeError, ShapeError, Unsupported
from .layers.arguments import per_axis

__all__ = ["confusion_matrix", "convolution_arithmetic", "curves", "feature_maps", "filters"]

TRAIN, VALIDATION = "#2e5e8c", "#d1495b"
MOST_CELLS = 30  # a confusion matrix with more classes gets no numbers inside
INPUT, OUTPUT, WINDOW = "#9ecae1", "#a1d99b", "#08519c"
MOST_PANELS = 100  # positions of a window in one picture
MOST_TILES = 1024  # filters or maps in one picture


def curves(history: Any, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw how a training went: one panel for each quantity, the training and the validation values together.

    Args:
        history: name -> one value for each epoch, as {"loss": [...], "val_loss": [...], "accuracy": [...]}; or an
            object with such a dict as `.history`. Values that are not finite leave a gap; lengths may differ.
        path: the PNG to write.
        title: stands above all panels.

    Raises: DataError for a history without values or a path that cannot be written; ImportError without matplotlib.

    >>> curves({"loss": [2.3, 1.1, 0.7], "val_loss": [1.9, 1.2, 1.0], "lr": [0.1, 0.1, 0.01]}, "curves.png")
    """
    values = {str(name): _series(name, row) for name, row in _history(history).items()}
    values = {name: row for name, row in values.items() if len(row)}
    if not values:
        raise DataError("curves: the history has no epochs")
    names = list(dict.fromkeys(name.removeprefix("val_") for name in values))
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = _figure(4.6 * columns, 3.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(grid, names):
        pair = ((name, "training", TRAIN), (f"val_{name}", "validation", VALIDATION))
        shown = [(values[key], label, colour) for key, label, colour in pair if key in values]
        for row, label, colour in shown:
            epochs = np.arange(1, len(row) + 1)
            axes.plot(
                epochs, row, color=colour, label=label, linewidth=1.6, marker="o" if len(row) < 25 else "", ms=3.5
            )
        axes.set(title=name.replace("_", " "), xlabel="epoch")
        axes.set_xlim(0.5, max(len(row) for row, _, _ in shown) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=9)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    _save(figure, path, title)


def _history(history: Any) -> Mapping[Any, Any]:
    history = getattr(history, "history", history)
    if not isinstance(history, Mapping):
        raise DTypeError(f"curves: got a {type(history).__name__}, want a dict of lists or an object with .history")
    return history


def _series(name: Any, row: Any) -> np.ndarray:
    try:
        values = np.asarray(row, np.float64)
    except (TypeError, ValueError):
        raise DTypeError(f"curves: {name!r} has values that are not numbers") from None
    if values.ndim != 1:
        raise ShapeError(f"curves: {name!r} has shape {values.shape}, want one value for each epoch")
    return np.where(np.isfinite(values), values, np.nan)


def confusion_matrix(
    matrix: Any,
    labels: Sequence[str] | None,
    path: str | os.PathLike[str],
    *,
    normalize: bool = True,
    title: str = "",
) -> None:
    """Draw a confusion matrix: rows are the true classes, columns the predicted ones.

    Args:
        matrix: counts, (classes, classes).
        labels: a name for each class; None = numbers.
        path: the PNG to write.
        normalize: colours show the share of each row (recall); False: the counts. Up to 30 classes, the counts stand in
            the cells.

    Raises: ShapeError for a matrix that is not square or labels that do not fit it; DataError for negative counts.

    >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"], "confusion.png")
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ShapeError(f"confusion_matrix: got shape {counts.shape}, want (classes, classes)")
    if counts.dtype.kind not in "iufb":
        raise DTypeError(f"confusion_matrix: got elements of {counts.dtype}, want numbers")
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise DataError("confusion_matrix: counts cannot be negative or NaN")
    n = len(counts)
    names = [str(i) for i in range(n)] if labels is None else [str(label) for label in labels]
    if len(names) != n:
        raise ShapeError(f"confusion_matrix: got {len(names)} labels for {n} classes")
    sums = counts.sum(1, keepdims=True)
    shares = counts / np.where(sums == 0, 1, sums) if normalize else counts / max(counts.max(), 1)

    side = min(max(3.2, 0.46 * n), 16)
    figure = _figure(side + 2.2, side + 1.2)
    axes = figure.subplots()
    image = axes.imshow(shares if normalize else counts, cmap="Blues", vmin=0, vmax=1 if normalize else None)
    small = n <= MOST_CELLS
    if small:
        for i, j in np.ndindex(n, n):
            if counts[i, j]:
                colour = "white" if shares[i, j] > 0.55 else "#222222"
                axes.text(j, i, f"{counts[i, j]:g}", ha="center", va="center", fontsize=8, color=colour)
    font = 9 if small else max(3.0, 9 * MOST_CELLS / n)
    if small or font > 3.0:
        turned = max(map(len, names)) > 3
        axes.set_xticks(
            range(n), names, rotation=45 if turned else 0, ha="right" if turned else "center", fontsize=font
        )
        axes.set_yticks(range(n), names, fontsize=font)
        axes.tick_params(length=0)
    total = counts.sum()
    correct = f"{np.trace(counts) / total:.1%} of {total:g} correct" if total else "no samples"
    axes.set(xlabel="predicted", ylabel="true", title=correct)
    axes.title.set_fontsize(10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class" if normalize else "count")
    _save(figure, path, title)


# Filters and feature maps


def filters(weights: Any, path: str | os.PathLike[str], columns: int | None = None, title: str = "") -> None:
    """Draw a convolution's filters, one tile each.

    Filters of three channels are drawn in colour, each stretched to its own range; others by channel: red and blue are
    positive and negative weights, white is zero, and all tiles share the scale.

    Args:
        weights: (R,S,C,K), or a layer that has such weights. columns: tiles in a row; None = as many as rows, or C for
            filters that are drawn by channel, so that a row is a filter.

    Raises: ShapeError for weights of another rank, or more than 1024 tiles: pass some of them, as w[..., :64].

    >>> filters(np.random.default_rng(0).normal(size=(7, 7, 3, 64)), "filters.png")
    """
    w = _numbers("filters", weights.get_weights()[0] if hasattr(weights, "get_weights") else weights)
    if w.ndim != 4 or not w.size:
        raise ShapeError(f"filters: got weights of shape {w.shape}, want (R, S, C, K)")
    channels, count = w.shape[2:]
    if channels == 3:
        low, high = w.min((0, 1, 2)), w.max((0, 1, 2))
        tiles = list(np.moveaxis((w - low) / np.where(high > low, high - low, 1), -1, 0))
        _tiles("filters", tiles, columns, path, title, {})
        return
    most = np.abs(w).max() or 1.0
    tiles = [w[:, :, c, k] for k in range(count) for c in range(channels)]
    columns = columns or (channels if channels > 1 else None)
    _tiles("filters", tiles, columns, path, title, dict(cmap="RdBu_r", vmin=-most, vmax=most))


def feature_maps(maps: Any, path: str | os.PathLike[str], columns: int | None = None, title: str = "") -> None:
    """Draw the channels of a layer's output for one image, each stretched to its own range; dark is low.

    Args:
        maps: (H,W,C), or (1,H,W,C): for instance Model(model.inputs, model.get_layer("conv1").output)(image).
        columns: tiles in a row; None = as many as rows.

    Raises: ShapeError for other shapes, or more than 1024 channels.

    >>> feature_maps(np.random.default_rng(0).normal(size=(1, 14, 14, 6)), "maps.png", columns=3)
    """
    values = _numbers("feature_maps", maps)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3 or not values.size:
        raise ShapeError(f"feature_maps: got shape {values.shape}, want (H, W, C) of one image")
    _tiles("feature_maps", list(np.moveaxis(values, -1, 0)), columns, path, title, dict(cmap="viridis"))


def _numbers(what: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise DTypeError(f"{what}: got elements of {array.dtype}, want numbers")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{what}: NaN or infinite values cannot be drawn")
    return array


def _tiles(
    what: str, tiles: list[np.ndarray], columns: int | None, path: Any, title: str, options: dict[str, Any]
) -> None:
    if len(tiles) > MOST_TILES:
        raise ShapeError(f"{what}: {len(tiles)} tiles, want at most {MOST_TILES}: pass some of them")
    across = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    if across < 1:
        raise ShapeError(f"{what}: columns={columns}, want 1 or more")
    down = -(-len(tiles) // across)
    side = min(1.0, 14 / across, 30 / down)
    high, wide = tiles[0].shape[:2]
    figure = _figure(across * side + 0.2, down * side * high / wide + (0.5 if title else 0.2))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, tile in zip(grid, tiles):
        axes.imshow(tile, interpolation="nearest", **options)
    _save(figure, path, title)


# How a convolution walks


def convolution_arithmetic(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] = 5,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    transposed: bool = False,
    output_padding: int | tuple[int, int] = 0,
    positions: Sequence[tuple[int, int]] | None = None,
    title: str | None = None,
) -> None:
    """Draw which inputs make each output of a convolution, one panel for each output pixel, in its place.

    A panel has the input grid (blue), its padding (dashed), the pixels under the kernel (dark), and to the right the
    output (green) with the pixel that they make. A transposed convolution is drawn as the convolution it is: zeros
    stand between the input's pixels and around them.

    Args:
        size, kernel, stride, padding, dilation, output_padding: one number, or one for rows and one for columns; as in
            convkern.ops.conv2d and conv_transpose2d.
        positions: outputs (row, column) to draw; None = all.
        title: None = the sizes and the formula.

    Raises: ShapeError for sizes without an output, positions outside of it, or more than 100 panels.
    Source: the pictures of Dumoulin and Visin 2016, arXiv:1603.07285.

    >>> convolution_arithmetic("same.png", size=4, kernel=3, padding=1)
    """
    n, r, s, p, d, extra = (
        per_axis(name, value, 2, least)
        for name, value, least in (
            ("size", size, 1),
            ("kernel", kernel, 1),
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
            ("output_padding", output_padding, 0),
        )
    )
    if any(extra) and not transposed:
        raise Unsupported("output_padding belongs to transposed convolutions")
    walk = Walk(n, r, s, p, d, extra, transposed)
    out = walk.out
    if min(out) < 1:
        raise ShapeError(f"convolution_arithmetic: size {n}, kernel {r}, padding {p} give an output of {out}")
    wanted = list(np.ndindex(*out)) if positions is None else [tuple(at) for at in positions]
    for at in wanted:
        if len(at) != 2 or not (0 <= at[0] < out[0] and 0 <= at[1] < out[1]):
            raise ShapeError(f"convolution_arithmetic: position {at} is not in an output of {out}")
    if not 1 <= len(wanted) <= MOST_PANELS:
        raise ShapeError(f"convolution_arithmetic: {len(wanted)} panels, want 1 to {MOST_PANELS}: pass positions")

    across = out[1] if positions is None else min(len(wanted), 4)
    down = -(-len(wanted) // across)
    rows, columns = walk.canvas
    height, shift = max(len(rows), out[0]), columns.stop + 1
    width = shift + out[1] - columns.start
    cell = min(0.26, 15 / (across * (width + 1)), 20 / (down * (height + 1)))
    figure = _figure(across * (width + 0.5) * cell + 0.3, down * (height + 1.5) * cell + 0.6)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (i, j) in zip(grid, wanted):
        window = walk.window(i, j)
        for y in rows:
            for x in columns:
                real = walk.source(y, x) is not None
                _cell(axes, x, y, INPUT if real else "white", dashed=not real, dark=(y, x) in window)
        top = rows.start + (height - out[0]) / 2
        for y, x in np.ndindex(*out):
            _cell(axes, shift + x, top + y, OUTPUT, dashed=False, dark=(y, x) == (i, j))
        left, bottom = columns.start - 0.3, rows.start + height + 0.3
        axes.set(xlim=(left, shift + out[1] + 0.3), ylim=(bottom, rows.start - 0.3), aspect="equal")
    _save(figure, path, _arithmetic(n, r, s, p, d, out, transposed) if title is None else title)


class Walk:
    """Where the window of a convolution stands, in the coordinates of the padded input.

    A transposed convolution is one of stride 1 over its input's pixels, spread by zeros and with more zeros around.
    """

    def __init__(self, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, extra: Any, transposed: bool):
        self._size, self._kernel, self._dilation = size, kernel, dilation
        self._spread: Any = stride if transposed else (1, 1)
        self._step: Any = (1, 1) if transposed else stride
        extent = [d * (r - 1) + 1 for d, r in zip(dilation, kernel)]
        self._before = [e - 1 - p if transposed else p for e, p in zip(extent, padding)]
        self._inner = [(n - 1) * s + 1 for n, s in zip(size, self._spread)]
        self._total = [2 * b + n + e for b, n, e in zip(self._before, self._inner, extra)]
        self.out = tuple((t - e) // s + 1 for t, e, s in zip(self._total, extent, self._step))

    @property
    def canvas(self) -> tuple[range, range]:
        """Rows and columns that a picture needs: a padding below zero cuts the input, but the input is all there."""
        rows, columns = (range(min(0, b), max(t, b + n)) for b, t, n in zip(self._before, self._total, self._inner))
        return rows, columns

    def window(self, i: int, j: int) -> set[tuple[int, int]]:
        """The places that output (i, j) is made of."""
        top, left = i * self._step[0], j * self._step[1]
        return {(top + r * self._dilation[0], left + s * self._dilation[1]) for r, s in np.ndindex(*self._kernel)}

    def source(self, y: int, x: int) -> tuple[int, int] | None:
        """The input pixel at a place; None for a zero."""
        found = []
        for at, before, inner, spread in zip((y, x), self._before, self._inner, self._spread):
            place = at - before
            if not 0 <= place < inner or place % spread:
                return None
            found.append(place // spread)
        return found[0], found[1]


def _cell(axes: Any, x: float, y: float, colour: str, dashed: bool, dark: bool) -> None:
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = dict(
        facecolor=colour, edgecolor="#8a8a8a", linewidth=0.6, linestyle=(0, (2, 2)) if dashed else "-"
    )
    axes.add_patch(Rectangle((x, y), 1, 1, **style))
    if dark:
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=WINDOW, alpha=0.55, edgecolor=WINDOW, linewidth=1.0))


def _arithmetic(n: Any, r: Any, s: Any, p: Any, d: Any, out: Any, transposed: bool) -> str:
    def by(pair: Any) -> str:
        return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"

    words = [f"input {by(n)}", f"kernel {by(r)}", f"stride {by(s)}", f"padding {by(p)}"]
    words += [f"dilation {by(d)}"] if max(d) > 1 else []
    return f"{'transposed, ' if transposed else ''}{', '.join(words)}: output {by(out)}"


# What all pictures share


def _figure(width: float, height: float) -> Any:
    """A figure in inches that knows no window system: it is drawn by Agg, whatever pyplot's backend is."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'convkern[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | os.PathLike[str], title: str = "") -> None:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise Unsupported(f"{path}: want a name that ends in .png")
    if title:
        figure.suptitle(title)
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=120))
