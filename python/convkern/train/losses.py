"""Losses: what training makes small. A Loss checks targets and adds its operators to a graph; autodiff does the rest.

`lower(graph, output, targets)` gets the graph of a model, its output and the targets' tensors, and returns a tensor of
one number per image. A model that ends in a softmax (or a sigmoid, for the binary loss) is cut before it: the fused
operator works on logits, which is faster and safe for large ones. All other outputs are taken as logits, unless
from_logits=False says that they are probabilities, which is then an error: the missing last layer is what to add.

An own loss is a subclass:

    class Huber(Loss):
        def lower(self, graph, output, targets):
            ...   # graph.add("binary", (output, targets[0]), {"kind": "sub"}) and so on
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import as_ndarray
from ..errors import DataError, DTypeError, ShapeError, Unsupported
from ..graph import Graph, Node, Shape


class Loss:
    """Base of losses.

    name: how it is reported. A subclass defines `lower`, and `targets` if its targets do not have the output's shape.
    """

    final: tuple[str, ...] = ()  # the operators at the end of a model that this loss works in front of

    def __init__(self, name: str | None = None):
        self.name = name or type(self).__name__.lower()

    def logits(self, graph: Graph, output: int) -> int:
        """The tensor that the loss reads: the output, or what its final softmax reads."""
        node = _producer(graph, output)
        return node.inputs[0] if node is not None and _kind(node) in self.final else output

    def target_shapes(self, shape: Shape) -> list[Shape]:
        """The per-image shapes of the targets' arrays, for an output of this shape."""
        return [shape]

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        """A batch's targets as float32 arrays (N, *shape), checked; x: the batch's inputs as a list."""
        return [_values(self.name, y_true, shape)]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        """Add the operators of the loss and return its tensor, of one number for each image (or pixel)."""
        raise NotImplementedError(f"{type(self).__name__} does not define lower(graph, output, targets)")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class _CrossEntropy(Loss):
    final: tuple[str, ...] = ("softmax",)

    def __init__(self, from_logits: bool | None = None, label_smoothing: float = 0.0, name: str | None = None):
        super().__init__(name)
        self.from_logits = from_logits
        self.label_smoothing = float(label_smoothing)
        if not 0 <= self.label_smoothing < 1:
            raise ShapeError(f"{self.name}: label_smoothing={label_smoothing}, want 0 <= label_smoothing < 1")

    def logits(self, graph: Graph, output: int) -> int:
        if self.from_logits:
            return output
        logits = super().logits(graph, output)
        if logits == output and self.from_logits is False:
            raise Unsupported(
                f"{self.name}: from_logits=False, but the model does not end in a {self.final[0]}; add one, or leave "
                f"from_logits out for logits"
            )
        return logits

    def _add(self, graph: Graph, kind: str, output: int, target: int) -> int:
        return graph.add("loss", (output, target), {"kind": kind, "smoothing": self.label_smoothing}, name=self.name)


class SparseCategoricalCrossentropy(_CrossEntropy):
    """-log of the probability of the right class, for labels that are integers.

    Shapes: targets (N,) or (N,1) integers from 0 to classes-1 (for images of logits (N,H,W) or (N,H,W,1)).
    Arguments: from_logits: None looks at the model (see the module); label_smoothing: the share of the label that is
        spread over all classes, as torch has it.
    Errors: DataError naming the first label that is out of range; DTypeError for labels that are not integers.
    Source: keras.losses.SparseCategoricalCrossentropy, torch.nn.CrossEntropyLoss.
    """

    def __init__(
        self,
        from_logits: bool | None = None,
        label_smoothing: float = 0.0,
        name: str = "sparse_categorical_crossentropy",
    ):
        super().__init__(from_logits, label_smoothing, name)

    def target_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[:-1], 1)]

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        return [_labels(self.name, y_true, shape)]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return self._add(graph, "sparse", output, targets[0])


class CategoricalCrossentropy(_CrossEntropy):
    """The cross-entropy with targets that are distributions: one-hot rows, or those of a mix-up.

    Shapes: targets as the output, (N,classes), float32.
    Arguments: as SparseCategoricalCrossentropy.
    Errors: ShapeError, DTypeError with what came; DataError for negative targets.
    Source: keras.losses.CategoricalCrossentropy.
    """

    def __init__(
        self, from_logits: bool | None = None, label_smoothing: float = 0.0, name: str = "categorical_crossentropy"
    ):
        super().__init__(from_logits, label_smoothing, name)

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        values = _values(self.name, y_true, shape)
        if values.size and not values.min() >= 0:
            raise DataError(f"{self.name}: the targets reach {values.min()}, want distributions over the classes")
        return [values]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return self._add(graph, "dense", output, targets[0])


class BinaryCrossentropy(_CrossEntropy):
    """The mean, over the outputs, of the cross-entropies of independent yes-or-no answers.

    Shapes: targets as the output (N,K), or (N,) for K=1: float32, integers or bools from 0 to 1.
    Arguments: as SparseCategoricalCrossentropy; a final sigmoid is what is looked for.
    Errors: DataError for targets outside 0 to 1.
    Source: keras.losses.BinaryCrossentropy, torch.nn.BCEWithLogitsLoss.
    """

    final = ("sigmoid",)

    def __init__(
        self, from_logits: bool | None = None, label_smoothing: float = 0.0, name: str = "binary_crossentropy"
    ):
        super().__init__(from_logits, label_smoothing, name)

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        values = _values(self.name, y_true, shape, integers=True)
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise DataError(f"{self.name}: the targets reach from {values.min()} to {values.max()}, want 0 to 1")
        return [values]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return self._add(graph, "sigmoid", output, targets[0])


class MeanSquaredError(Loss):
    """The mean of the squared differences.

    Shapes: targets as the output, float32 or integers.
    Source: keras.losses.MeanSquaredError.
    """

    def __init__(self, name: str = "mean_squared_error"):
        super().__init__(name)

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        return [_values(self.name, y_true, shape, integers=True)]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return graph.add("loss", (output, targets[0]), {"kind": "squared", "smoothing": 0.0}, name=self.name)


class MeanAbsoluteError(MeanSquaredError):
    """The mean of the absolute differences.

    Shapes: targets as the output, float32 or integers.
    Source: keras.losses.MeanAbsoluteError.
    """

    def __init__(self, name: str = "mean_absolute_error"):
        super().__init__(name)

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return graph.add("loss", (output, targets[0]), {"kind": "absolute", "smoothing": 0.0}, name=self.name)


class Distillation(Loss):
    """Learn from a teacher's outputs besides the labels.

    alpha * crossentropy(labels) + (1 - alpha) * T**2 * KL(teacher || student), both distributions softened by the
    temperature T. The teacher runs on each batch; it is not changed.

    Shapes: labels as SparseCategoricalCrossentropy; teacher: a model (or any function of the inputs) that gives logits
        (N,classes) for them.
    Errors: ShapeError if the teacher's outputs do not fit.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    """

    final = ("softmax",)

    def __init__(
        self,
        teacher: Callable[[Any], Any],
        temperature: float = 4.0,
        alpha: float = 0.1,
        name: str = "distillation",
    ):
        super().__init__(name)
        if not callable(teacher):
            raise DTypeError(f"{name}: got the teacher {teacher!r}, want a model")
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise ShapeError(f"{name}: temperature={temperature}, alpha={alpha}; want more than 0, and 0 to 1")
        self.teacher, self.temperature, self.alpha = teacher, float(temperature), float(alpha)

    def target_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[:-1], 1), shape, (*shape[:-1], 1)]

    def targets(self, y_true: Any, x: Any, shape: Shape) -> list[np.ndarray]:
        labels = _labels(self.name, y_true, shape)
        logits = as_ndarray(self.teacher(x[0] if len(x) == 1 else x), f"{self.name}: teacher")
        if logits.shape != (len(labels), *shape):
            raise ShapeError(f"{self.name}: the teacher gave {logits.shape}, want {(len(labels), *shape)}")
        z = logits.astype(np.float64) / self.temperature
        z -= z.max(-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        p = np.exp(log_p)
        return [labels, p.astype(np.float32), -(p * log_p).sum(-1, keepdims=True).astype(np.float32)]

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        labels, soft, entropy = targets
        name = self.name
        hard = graph.add("loss", (output, labels), {"kind": "sparse", "smoothing": 0.0}, name=f"{name}/hard")
        cooled = graph.add("rescale", (output,), {"scale": 1 / self.temperature}, name=f"{name}/cool")
        cross = graph.add("loss", (cooled, soft), {"kind": "dense", "smoothing": 0.0}, name=f"{name}/soft")
        divergence = graph.add("binary", (cross, entropy), {"kind": "sub"}, name=f"{name}/divergence")
        weight = (1 - self.alpha) * self.temperature**2
        a = graph.add("rescale", (hard,), {"scale": self.alpha}, name=f"{name}/alpha")
        b = graph.add("rescale", (divergence,), {"scale": weight}, name=f"{name}/beta")
        return graph.add("binary", (a, b), {"kind": "add"}, name=f"{name}/sum")


def _producer(graph: Graph, tensor: int) -> Node | None:
    return next((node for node in reversed(graph.nodes) if node.output == tensor), None)


def _kind(node: Node) -> str:
    if node.op == "softmax":
        return "log_softmax" if node.attrs.get("log") else "softmax"
    return node.attrs["kind"] if node.op == "activation" else node.op


def _fitted(what: str, array: np.ndarray, shape: Shape) -> np.ndarray:
    """(N, *shape), where a last axis of one may be left out."""
    if array.shape[1:] == shape:
        return array
    if shape[-1] == 1 and array.shape[1:] == shape[:-1] and array.ndim:
        return array[..., None]
    want = f"(N, {', '.join(map(str, shape))})"
    raise ShapeError(f"{what}: got targets of shape {array.shape}, want {want}")


def _labels(what: str, y_true: Any, shape: Shape) -> np.ndarray:
    array = as_ndarray(y_true, f"{what}: y")
    if array.dtype.kind not in "iub":
        if array.shape[1:] == shape and shape[-1] > 1:
            raise DTypeError(
                f"{what}: got targets of {array.dtype} and shape {array.shape}, want integer labels; one-hot rows go "
                f"with 'categorical_crossentropy'"
            )
        raise DTypeError(f"{what}: got labels of {array.dtype}, want integers: convert with y.astype('int64')")
    array = _fitted(what, array, (*shape[:-1], 1))
    wrong = (array < 0) | (array >= shape[-1])
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise DataError(
            f"{what}: label {array[tuple(first)]} (image {first[0]} of the batch) is out of range, want 0 to "
            f"{shape[-1] - 1} for {shape[-1]} classes"
        )
    return array.astype(np.float32)


def _values(what: str, y_true: Any, shape: Shape, integers: bool = False) -> np.ndarray:
    array = as_ndarray(y_true, f"{what}: y")
    if array.dtype != np.float32 and not (integers and array.dtype.kind in "iub"):
        hint = "; integer labels go with 'sparse_categorical_crossentropy'" if array.dtype.kind in "iu" else ""
        raise DTypeError(f"{what}: got targets of {array.dtype}, want float32: convert with y.astype('float32'){hint}")
    return _fitted(what, array, shape).astype(np.float32, copy=False)


_NAMES: dict[str, Callable[[], Loss]] = {
    "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
    "categorical_crossentropy": CategoricalCrossentropy,
    "binary_crossentropy": BinaryCrossentropy,
    "mean_squared_error": MeanSquaredError,
    "mse": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "mae": MeanAbsoluteError,
}


def get(loss: Any) -> Loss:
    """A Loss from its name, or itself.

    Errors: Unsupported, with the names there are; a plain Python function has no gradient here.

    >>> get("mse").name
    'mean_squared_error'
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in _NAMES:
        return _NAMES[loss]()
    raise Unsupported(f"loss {loss!r}; want one of {', '.join(_NAMES)}, or a Loss (see convkern.train.losses)")
