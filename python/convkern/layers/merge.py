"""Layers that make one tensor out of several: sums, products, extremes, concatenation.

Shapes broadcast as in NumPy (a (1, 1, C) gate scales an (H, W, C) image).
"""

from __future__ import annotations

from typing import Any

from ..graph import Graph
from .arguments import integer
from .base import Layer
from .core import image_axis


class _Merge(Layer):
    min_inputs = 2
    max_inputs: int | None = None
    kind: str

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        y = inputs[0]
        for i, x in enumerate(inputs[1:]):
            y = graph.add("binary", [y, x], {"kind": self.kind}, name=str(i) if i else "")
        return y


class Add(_Merge):
    """The sum of two or more tensors.

    Shapes: inputs that broadcast together; output the common shape.
    Errors: ShapeError with both shapes, or for fewer than two inputs.
    Source: keras.layers.Add.

    >>> from convkern.layers import Input
    >>> Add()([Input((7, 7, 64)), Input((7, 7, 64))]).shape
    (7, 7, 64)
    """

    kind = "add"


class Subtract(_Merge):
    """The first tensor minus the second. As Add, of exactly two.

    Source: keras.layers.Subtract.

    >>> from convkern.layers import Input
    >>> Subtract()([Input((3,)), Input((3,))]).shape
    (3,)
    """

    kind = "sub"
    max_inputs = 2


class Multiply(_Merge):
    """The product of two or more tensors. As Add.

    Source: keras.layers.Multiply.

    >>> from convkern.layers import Input
    >>> Multiply()([Input((7, 7, 64)), Input((1, 1, 64))]).shape
    (7, 7, 64)
    """

    kind = "mul"


class Maximum(_Merge):
    """The larger of two or more tensors, value by value. As Add.

    Source: keras.layers.Maximum.

    >>> from convkern.layers import Input
    >>> Maximum()([Input((3,)), Input((3,))]).shape
    (3,)
    """

    kind = "max"


class Minimum(_Merge):
    """The smaller of two or more tensors, value by value. As Add.

    Source: keras.layers.Minimum.

    >>> from convkern.layers import Input
    >>> Minimum()([Input((3,)), Input((3,))]).shape
    (3,)
    """

    kind = "min"


class Average(_Merge):
    """The mean of two or more tensors. As Add.

    Source: keras.layers.Average.

    >>> from convkern.layers import Input
    >>> Average()([Input((3,)), Input((3,)), Input((3,))]).shape
    (3,)
    """

    kind = "add"

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        total = super().lower(graph, inputs)
        return graph.add("rescale", [total], {"scale": 1 / len(inputs), "offset": 0.0}, name="mean")


class Concatenate(_Merge):
    """Tensors side by side.

    Shapes: inputs equal but for one axis; the output has the sum there. axis: -1 (channels) or counted with the batch
        axis as 0, as in Keras.
    Errors: ShapeError with the shapes that differ.
    Source: keras.layers.Concatenate.

    >>> from convkern.layers import Input
    >>> Concatenate()([Input((7, 7, 64)), Input((7, 7, 32))]).shape
    (7, 7, 96)
    """

    min_inputs = 1

    def __init__(self, axis: int = -1, **base: Any):
        super().__init__(**base)
        self.axis = integer("axis", axis, -(2**31))

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        axis = image_axis("Concatenate", self.axis, len(graph.shapes[inputs[0]]))
        return graph.add("concat", inputs, {"axis": axis})
