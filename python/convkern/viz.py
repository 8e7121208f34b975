"""Pictures: training curves, confusion matrices, filters, feature maps, and how a convolution walks over its input.

Each function draws with matplotlib (extra: convkern[plot]), without a display, and writes one PNG, whole or not at
all (atomic.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import write_file
from .errors import DataError, DTypeError, ShapeError, Unsupported

__all__ = ["confusion_matrix", "curves"]

TRAIN, VALIDATION = "#2e5e8c", "#d1495b"
MOST_CELLS = 30  # a confusion matrix with more classes gets no numbers inside


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
