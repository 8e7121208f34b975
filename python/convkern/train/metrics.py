"""Metrics: what is reported beside the loss, computed with NumPy from a model's outputs, batch by batch.

A metric adds up what it has seen (`update`) and divides at the end (`result`); a few numbers hold its state, so that a
resumed epoch ends with the figures of an unbroken one. Metrics do not weigh samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError, Unsupported


class Metric:
    """Base of metrics that are means over images: a subclass defines `values(y_true, y_pred)`, one number per image.

    >>> class Bias(Metric):
    ...     def values(self, y_true, y_pred):
    ...         return (y_pred - y_true).mean(axis=1)
    >>> bias = Bias()
    >>> bias.update(np.zeros((2, 3)), np.ones((2, 3)))
    >>> bias.name, bias.result()
    ('bias', 1.0)
    """

    def __init__(self, name: str | None = None):
        self.name = name or type(self).__name__.lower()
        self.reset()

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """One number for each image (or for each value: their mean counts)."""
        raise NotImplementedError(f"{type(self).__name__} does not define values(y_true, y_pred)")

    def update(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        """Count a batch in."""
        values = np.asarray(self.values(y_true, y_pred), np.float64)
        self.total += float(values.sum())
        self.count += values.size

    def result(self) -> float:
        """The mean so far; 0 before the first batch."""
        return self.total / self.count if self.count else 0.0

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    @property
    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.total, self.count]

    @state.setter
    def state(self, value: list[float]) -> None:
        self.total, self.count = float(value[0]), int(value[1])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}={self.result():.4g}>"


class Accuracy(Metric):
    """The share of images (or pixels) whose largest output is that of the right class.

    y_true: labels (N,) or (N,1), or one-hot (N,classes). y_pred: logits or probabilities (N,classes). With a single
    output: whether it is on the right side of `threshold` (0 for logits, 0.5 for probabilities).

    >>> accuracy = Accuracy()
    >>> accuracy.update(np.array([1, 0]), np.array([[0.1, 0.9], [0.2, 0.8]]))
    >>> accuracy.result()
    0.5
    """

    def __init__(self, name: str | None = "accuracy", threshold: float = 0.5):
        super().__init__(name)
        self.threshold = threshold

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        if y_pred.shape[-1] == 1:
            return (y_pred > self.threshold) == (y_true.reshape(y_pred.shape) > 0.5)
        return y_pred.argmax(-1) == labels_of(y_true, y_pred)


class BinaryAccuracy(Accuracy):
    """The share of values that are on the right side of `threshold`: for several independent yes-or-no outputs.

    >>> accuracy = BinaryAccuracy()
    >>> accuracy.update(np.array([[1, 0]]), np.array([[0.9, 0.8]]))
    >>> accuracy.result()
    0.5
    """

    def __init__(self, name: str | None = "binary_accuracy", threshold: float = 0.5):
        super().__init__(name, threshold)

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return (y_pred > self.threshold) == (y_true.reshape(y_pred.shape) > 0.5)


class TopK(Metric):
    """The share of images whose class is among the k largest outputs; ties count for the image.

    >>> top2 = TopK(2)
    >>> top2.update(np.array([0, 0]), np.array([[2.0, 3.0, 1.0], [1.0, 2.0, 3.0]]))
    >>> top2.name, top2.result()
    ('top_2', 0.5)
    """

    def __init__(self, k: int = 5, name: str | None = None):
        super().__init__(name or f"top_{k}")
        self.k = k

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        labels = labels_of(y_true, y_pred)
        own = np.take_along_axis(y_pred, labels[..., None], -1)
        return (y_pred > own).sum(-1) < self.k


class MeanSquaredError(Metric):
    """The mean of the squared differences.

    >>> mse = MeanSquaredError()
    >>> mse.update(np.zeros((1, 2)), np.array([[1.0, 3.0]]))
    >>> mse.result()
    5.0
    """

    def __init__(self, name: str | None = "mse"):
        super().__init__(name)

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return np.square(y_pred - y_true.reshape(y_pred.shape))


class Function(Metric):
    """A function of (y_true, y_pred) that gives one number per image, as a metric."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], Any]):
        super().__init__(getattr(function, "__name__", "metric"))
        self.function = function

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return np.asarray(self.function(y_true, y_pred))


def labels_of(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Integer labels, from labels or from one-hot rows.

    >>> labels_of(np.array([[0, 1], [1, 0]]), np.zeros((2, 2))).tolist()
    [1, 0]
    """
    if y_true.shape == y_pred.shape:
        return y_true.argmax(-1)
    if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
        y_true = y_true[..., 0]
    if y_true.shape != y_pred.shape[:-1]:
        raise ShapeError(f"accuracy: got targets of shape {y_true.shape} for outputs of shape {y_pred.shape}")
    return y_true.astype(np.int64)


_NAMES: dict[str, Callable[[], Metric]] = {
    "sparse_categorical_accuracy": lambda: Accuracy("sparse_categorical_accuracy"),
    "categorical_accuracy": lambda: Accuracy("categorical_accuracy"),
    "top_5": lambda: TopK(5),
    "top5": lambda: TopK(5, "top5"),
    "top_k_categorical_accuracy": lambda: TopK(5, "top_k_categorical_accuracy"),
    "sparse_top_k_categorical_accuracy": lambda: TopK(5, "sparse_top_k_categorical_accuracy"),
    "mse": MeanSquaredError,
    "mean_squared_error": lambda: MeanSquaredError("mean_squared_error"),
}


def get(metric: Any, binary: bool = False, from_logits: bool = False) -> Metric:
    """A metric from a name, a Metric, or a function of (y_true, y_pred).

    binary: whether "accuracy" is that of independent yes-or-no outputs; from_logits: whether such outputs are logits.

    >>> get("acc").name, get("top5").name
    ('acc', 'top5')
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        threshold = 0.0 if from_logits else 0.5
        if metric in ("accuracy", "acc"):
            return (BinaryAccuracy if binary else Accuracy)(metric, threshold)
        if metric == "binary_accuracy":
            return BinaryAccuracy(metric, threshold)
        if metric in _NAMES:
            return _NAMES[metric]()
        raise Unsupported(
            f"metric {metric!r}; want 'accuracy', 'acc', 'binary_accuracy', {', '.join(map(repr, _NAMES))}, a Metric "
            f"or a function of (y_true, y_pred)"
        )
    if callable(metric):
        return Function(metric)
    raise DTypeError(f"metric: got {metric!r}, want a name, a Metric or a function of (y_true, y_pred)")
