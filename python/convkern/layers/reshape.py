"""Layers that move values without changing them, or change the size of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import DTypeError, ShapeError, Unsupported
from ..graph import Graph
from .arguments import check_data_format, integer, number, pairs, per_axis
from .base import Layer

Ints = int | Sequence[int]
Pads = int | Sequence[int] | Sequence[Sequence[int]]


class Flatten(Layer):
    """All values of an image in one row, channels fastest: (N, H, W, C) to (N, H*W*C). No copy is made.

    Source: keras.layers.Flatten. (torch flattens in the order C, H, W; weight files are permuted when read and
        written.)

    >>> from convkern.layers import Input
    >>> Flatten()(Input((7, 7, 512))).shape
    (25088,)
    """

    def __init__(self, data_format: str | None = None, **base: Any):
        super().__init__(**base)
        self.data_format = check_data_format(data_format)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("reshape", inputs, {"shape": (math.prod(graph.shapes[inputs[0]]),)})


class Reshape(Layer):
    """The same values in the same order under another shape.

    Shapes: (N, ...) to (N, *target_shape); one entry may be -1. No copy is made.
    Errors: ShapeError with both numbers of values; Unsupported for more than four dimensions.
    Source: keras.layers.Reshape.

    >>> from convkern.layers import Input
    >>> Reshape((7, -1))(Input((7, 7, 3))).shape
    (7, 21)
    """

    def __init__(self, target_shape: Sequence[int], **base: Any):
        super().__init__(**base)
        if not isinstance(target_shape, Sequence) or isinstance(target_shape, str):
            raise ShapeError(f"Reshape: target_shape={target_shape!r}, want a tuple of sizes")
        self.target_shape = tuple(integer("target_shape", n, -1) for n in target_shape)
        if 0 in self.target_shape or self.target_shape.count(-1) > 1:
            raise ShapeError(f"Reshape: target_shape={target_shape}, want sizes of at least 1 and at most one -1")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("reshape", inputs, {"shape": self.target_shape})


class Permute(Layer):
    """The axes of an image in another order.

    Arguments: dims: the input's axes in the output's order, counted from 1 (the batch axis stays first).
    Errors: ShapeError if dims is no order of the axes.
    Source: keras.layers.Permute.

    >>> from convkern.layers import Input
    >>> Permute((3, 1, 2))(Input((28, 20, 3))).shape
    (3, 28, 20)
    """

    def __init__(self, dims: Sequence[int], **base: Any):
        super().__init__(**base)
        if not isinstance(dims, Sequence) or isinstance(dims, str):
            raise ShapeError(f"Permute: dims={dims!r}, want a tuple such as (2, 1)")
        self.dims = tuple(integer("dims", n) for n in dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ShapeError(f"Permute: dims={dims}, want each of 1 to {len(self.dims)} once")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("transpose", inputs, {"perm": tuple(n - 1 for n in self.dims)})


class _Border(Layer):
    rank: int
    sign: int
    argument: str

    def _set(self, amount: Any, data_format: Any) -> None:
        setattr(self, self.argument, pairs(self.argument, amount, self.rank))
        self.data_format = check_data_format(data_format)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        amounts = getattr(self, self.argument)
        padding = (*((self.sign * lo, self.sign * hi) for lo, hi in amounts), (0, 0))
        return graph.add("pad", inputs, {"padding": padding, "mode": "constant", "value": 0.0})


class _ZeroPadding(_Border):
    sign, argument = 1, "padding"

    def __init__(self, padding: Pads = 1, data_format: str | None = None, **base: Any):
        super().__init__(**base)
        self._set(padding, data_format)


class _Cropping(_Border):
    sign, argument = -1, "cropping"

    def __init__(self, cropping: Pads = 0, data_format: str | None = None, **base: Any):
        super().__init__(**base)
        self._set(cropping, data_format)


class ZeroPadding1D(_ZeroPadding):
    """Zeros before and after a sequence: (N, L, C) to (N, L + padding, C). padding: one integer or (before, after), in
    steps.

    Source: keras.layers.ZeroPadding1D.

    >>> from convkern.layers import Input
    >>> ZeroPadding1D((2, 1))(Input((10, 4))).shape
    (13, 4)
    """

    rank = 1


class ZeroPadding2D(_ZeroPadding):
    """Zeros around an image.

    Shapes: (N, H, W, C) to (N, H + top + bottom, W + left + right, C). padding: one integer, (vertical, horizontal), or
        ((top, bottom), (left, right)), in pixels. In front of a convolution or an average it costs nothing: it becomes
        that layer's padding.
    Errors: ShapeError, DTypeError for wrong amounts.
    Source: keras.layers.ZeroPadding2D.

    >>> from convkern.layers import Input
    >>> ZeroPadding2D(((0, 1), (0, 1)))(Input((224, 224, 3))).shape
    (225, 225, 3)
    """

    rank = 2


class ZeroPadding3D(_ZeroPadding):
    """Zeros around a volume: (N, D, H, W, C). padding: one integer, three, or three pairs. As ZeroPadding2D.

    Source: keras.layers.ZeroPadding3D.

    >>> from convkern.layers import Input
    >>> ZeroPadding3D((0, 1, 1))(Input((8, 30, 30, 3))).shape
    (8, 32, 32, 3)
    """

    rank = 3


class Cropping1D(_Cropping):
    """A sequence without its ends: (N, L, C) to (N, L - cropping, C). As Cropping2D.

    Source: keras.layers.Cropping1D.

    >>> from convkern.layers import Input
    >>> Cropping1D(1)(Input((10, 4))).shape
    (8, 4)
    """

    rank = 1


class Cropping2D(_Cropping):
    """An image without its border: (N, H, W, C) to (N, H - top - bottom, W - left - right, C).

    Arguments: cropping: one integer, (vertical, horizontal), or ((top, bottom), (left, right)), in pixels.
    Errors: ShapeError if nothing would be left.
    Source: keras.layers.Cropping2D.

    >>> from convkern.layers import Input
    >>> Cropping2D(((2, 2), (4, 4)))(Input((28, 28, 3))).shape
    (24, 20, 3)
    """

    rank = 2


class Cropping3D(_Cropping):
    """A volume without its border: (N, D, H, W, C). As Cropping2D.

    Source: keras.layers.Cropping3D.

    >>> from convkern.layers import Input
    >>> Cropping3D(1)(Input((8, 30, 30, 3))).shape
    (6, 28, 28, 3)
    """

    rank = 3


_MODES = {"nearest": "nearest-exact", "bilinear": "linear", "bicubic": "cubic"}  # Keras' words: half-pixel centres


def _check_interpolation(what: str, value: str) -> str:
    if value not in _MODES:
        raise Unsupported(f"{what}: interpolation={value!r}; want one of {', '.join(_MODES)}")
    return value


class UpSampling1D(Layer):
    """Every step of a sequence repeated `size` times: (N, L, C) to (N, L*size, C).

    Source: keras.layers.UpSampling1D.

    >>> from convkern.layers import Input
    >>> UpSampling1D(3)(Input((10, 4))).shape
    (30, 4)
    """

    rank = 1

    def __init__(self, size: int = 2, **base: Any):
        super().__init__(**base)
        self.size = integer("size", size)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        out = (graph.shapes[inputs[0]][0] * self.size,)
        return graph.add("resize", inputs, {"out": out, "mode": "nearest", "align_corners": False})


class UpSampling2D(Layer):
    """An image enlarged by whole factors.

    Shapes: (N, H, W, C) to (N, H*size[0], W*size[1], C). interpolation: "nearest" repeats pixels; "bilinear" and
        "bicubic" (a = -0.75, as torch) interpolate between pixel centres.
    Errors: ShapeError, DTypeError for a wrong size, Unsupported for another interpolation.
    Source: keras.layers.UpSampling2D.

    >>> from convkern.layers import Input
    >>> UpSampling2D((2, 3))(Input((7, 7, 64))).shape
    (14, 21, 64)
    """

    rank = 2

    def __init__(self, size: Ints = 2, data_format: str | None = None, interpolation: str = "nearest", **base: Any):
        super().__init__(**base)
        self.size = per_axis("size", size, 2)
        self.data_format = check_data_format(data_format)
        self.interpolation = _check_interpolation("UpSampling2D", interpolation)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        h, w, _ = graph.shapes[inputs[0]]
        mode = "nearest" if self.interpolation == "nearest" else _MODES[self.interpolation]
        return graph.add(
            "resize", inputs, {"out": (h * self.size[0], w * self.size[1]), "mode": mode, "align_corners": False}
        )


class UpSampling3D(Layer):
    """Every voxel of a volume repeated: (N, D, H, W, C) to (N, D*size[0], H*size[1], W*size[2], C).

    Source: keras.layers.UpSampling3D.

    >>> from convkern.layers import Input
    >>> UpSampling3D()(Input((2, 3, 4, 5))).shape
    (4, 6, 8, 5)
    """

    rank = 3

    def __init__(self, size: Ints = 2, data_format: str | None = None, **base: Any):
        super().__init__(**base)
        self.size = per_axis("size", size, 3)
        self.data_format = check_data_format(data_format)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        out = tuple(n * s for n, s in zip(graph.shapes[inputs[0]], self.size))
        return graph.add("resize", inputs, {"out": out, "mode": "nearest", "align_corners": False})


class Resizing(Layer):
    """An image resized to height x width pixels.

    Shapes: (N, H, W, C) to (N, height, width, C).
    Arguments: interpolation: "bilinear", "nearest" or "bicubic" (a = -0.75, as torch), between pixel centres, without
        smoothing first.
        crop_to_aspect_ratio: cut the centre to the wanted ratio first, instead of distorting. pad_to_aspect_ratio: add
        a border of fill_value instead.
    Errors: ShapeError, DTypeError for wrong sizes, Unsupported for another interpolation.
    Source: keras.layers.Resizing.

    >>> from convkern.layers import Input
    >>> Resizing(224, 224)(Input((300, 451, 3))).shape
    (224, 224, 3)
    """

    rank = 2

    def __init__(
        self,
        height: int,
        width: int,
        interpolation: str = "bilinear",
        crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = False,
        fill_mode: str = "constant",
        fill_value: float = 0.0,
        data_format: str | None = None,
        **base: Any,
    ):
        super().__init__(**base)
        self.height = integer("height", height)
        self.width = integer("width", width)
        self.interpolation = _check_interpolation("Resizing", interpolation)
        self.crop_to_aspect_ratio = bool(crop_to_aspect_ratio)
        self.pad_to_aspect_ratio = bool(pad_to_aspect_ratio)
        self.fill_mode = fill_mode
        self.fill_value = number("fill_value", fill_value)
        self.data_format = check_data_format(data_format)
        if fill_mode != "constant":
            raise Unsupported(f"Resizing: fill_mode={fill_mode!r}; only 'constant' is supported")
        if self.crop_to_aspect_ratio and self.pad_to_aspect_ratio:
            raise DTypeError("Resizing: crop_to_aspect_ratio and pad_to_aspect_ratio exclude each other")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        (x,) = inputs
        if self.crop_to_aspect_ratio or self.pad_to_aspect_ratio:
            h, w, _ = graph.shapes[x]
            # The height that goes with the width, and the other way round, at the wanted ratio.
            limit = min if self.crop_to_aspect_ratio else max
            rows = max(1, limit(h, int(w * self.height / self.width)))
            columns = max(1, limit(w, int(h * self.width / self.height)))
            top, left = int((rows - h) / 2), int((columns - w) / 2)  # negative: cut off
            padding = ((top, rows - h - top), (left, columns - w - left), (0, 0))
            x = graph.add("pad", [x], {"padding": padding, "mode": "constant", "value": self.fill_value}, name="aspect")
        out = (self.height, self.width)
        return graph.add("resize", [x], {"out": out, "mode": _MODES[self.interpolation], "align_corners": False})
