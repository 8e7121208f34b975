"""Pictures of a training: curves over its epochs, and the confusion matrix. Drawn with matplotlib (convkern[plot])."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ShapeError, Unsupported


def check(path: str | os.PathLike[str]) -> None:
    """Unsupported or DataError now, if a picture could not be drawn or written later."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unsupported("pictures are drawn with matplotlib: pip install 'convkern[plot]'") from None
    if not Path(path).parent.is_dir():
        raise DataError(f"{os.fspath(path)}: there is no such folder")


def plot_history(history: Any, path: str | os.PathLike[str]) -> None:
    """Draw each figure of a training over its epochs, training beside validation, as PNG (or by the path's suffix).

    history: what `fit` returned, or its .history. Errors: Unsupported without matplotlib; DataError if the file cannot
    be written.
    """
    check(path)
    values: Mapping[str, Sequence[float]] = getattr(history, "history", history)
    names = [name for name in values if not name.startswith("val_")]
    if not names:
        raise ShapeError("plot_history: the history has no epoch")
    figure, axes = _figure(len(names))
    for name, axis in zip(names, axes):
        for key, style, label in ((name, "-", "training"), (f"val_{name}", "--", "validation")):
            if key in values:
                epochs = range(1, len(values[key]) + 1)
                axis.plot(epochs, values[key], style, marker="o", markersize=3, label=label)
        axis.set_title(name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def plot_confusion(matrix: Any, classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix: rows are the true classes, columns the predicted ones.

    matrix: counts (classes, classes), as `confusion_matrix` gives them. Errors: as plot_history.
    """
    check(path)
    counts = np.asarray(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ShapeError(f"plot_confusion: got a matrix of shape {counts.shape} for {len(classes)} classes")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axis,) = _figure(1, 2.5 + 0.5 * len(classes))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour)
    _save(figure, path)


def confusion_matrix(y_true: Any, y_pred: Any, classes: int) -> np.ndarray:
    """How many images of each true class (row) were given each class (column).

    y_true, y_pred: integer labels (N,).

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(y_true, np.int64), np.asarray(y_pred, np.int64)), 1)
    return counts


def _figure(count: int, size: float = 4.0) -> tuple[Any, Sequence[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * 1.2 * count, size), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Whole or not at all: a picture that is looked at while the training goes on is never half a file."""
    target = Path(path)
    suffix = target.suffix or ".png"
    temporary = target.with_name(f".{target.stem}.tmp{suffix}")
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:  # matplotlib's word for a suffix that it does not know
        raise Unsupported(f"{os.fspath(path)}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
