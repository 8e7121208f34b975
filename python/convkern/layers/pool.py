"""Pooling layers: maxima and averages over windows, over adaptive windows and over whole images.

"same" leaves the padding out of averages, as Keras does; count_include_pad=True counts explicit padding in, as torch
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ShapeError
from ..graph import Graph
from .arguments import check_data_format, check_padding, per_axis, resolve_padding
from .base import Layer

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]


class _Pool(Layer):
    rank: int
    kind: str
    dilation: tuple[int, ...]

    def _set(self, pool_size: Any, strides: Any, padding: Any, data_format: Any, ceil_mode: Any) -> None:
        self.pool_size = per_axis("pool_size", pool_size, self.rank)
        self.strides = self.pool_size if strides is None else per_axis("strides", strides, self.rank)
        self.padding = check_padding(padding, self.rank)
        self.data_format = check_data_format(data_format)
        self.ceil_mode = bool(ceil_mode)
        if ceil_mode and padding == "same":
            raise ShapeError(
                f"{type(self).__name__}: ceil_mode says nothing with padding='same'; give padding in pixels"
            )

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        sizes = graph.shapes[inputs[0]][:-1]
        attrs = {
            "kind": self.kind,
            "window": self.pool_size,
            "strides": self.strides,
            "padding": resolve_padding(self.padding, sizes, self.pool_size, self.strides, self.dilation),
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": bool(getattr(self, "count_include_pad", False)),
        }
        return graph.add("pool", inputs, attrs)


class _MaxPool(_Pool):
    kind = "max"

    def __init__(
        self,
        pool_size: Ints = 2,
        strides: Ints | None = None,
        padding: Padding = "valid",
        data_format: str | None = None,
        ceil_mode: bool = False,
        dilation: Ints = 1,
        **base: Any,
    ):
        super().__init__(**base)
        self.dilation = per_axis("dilation", dilation, self.rank)
        self._set(pool_size, strides, padding, data_format, ceil_mode)


class _AveragePool(_Pool):
    kind = "avg"

    def __init__(
        self,
        pool_size: Ints = 2,
        strides: Ints | None = None,
        padding: Padding = "valid",
        data_format: str | None = None,
        ceil_mode: bool = False,
        count_include_pad: bool | None = None,
        **base: Any,
    ):
        super().__init__(**base)
        self.dilation = (1,) * self.rank
        self.count_include_pad = None if count_include_pad is None else bool(count_include_pad)
        self._set(pool_size, strides, padding, data_format, ceil_mode)


class MaxPool1D(_MaxPool):
    """The maximum of each window of a sequence: (N, L, C) to (N, Q, C). As MaxPool2D.

    Source: keras.layers.MaxPooling1D.

    >>> from convkern.layers import Input
    >>> MaxPool1D(2)(Input((10, 4))).shape
    (5, 4)
    """

    rank = 1


class MaxPool2D(_MaxPool):
    """The maximum of each window, channel by channel.

    Shapes: (N, H, W, C) to (N, P, Q, C); "valid" gives P = (H - R)//stride + 1, "same" P = ceil(H/stride).
    Arguments: pool_size, strides (None: pool_size), dilation: pixels, one integer or two. padding: "valid", "same" or
        pixels as for Conv2D, up to the window less one. ceil_mode: a last window may hang over the edge, as in torch.
    Errors: ShapeError with the sizes; DTypeError, Unsupported for wrong arguments.
    Source: keras.layers.MaxPooling2D; padding in pixels and ceil_mode as torch.nn.MaxPool2d.

    >>> from convkern.layers import Input
    >>> MaxPool2D(3, strides=2)(Input((55, 55, 96))).shape
    (27, 27, 96)
    """

    rank = 2


class MaxPool3D(_MaxPool):
    """The maximum of each window of a volume: (N, D, H, W, C) to (N, Z, P, Q, C). As MaxPool2D.

    Source: keras.layers.MaxPooling3D.

    >>> from convkern.layers import Input
    >>> MaxPool3D((1, 2, 2))(Input((8, 32, 32, 3))).shape
    (8, 16, 16, 3)
    """

    rank = 3


class AveragePool1D(_AveragePool):
    """The mean of each window of a sequence: (N, L, C) to (N, Q, C). As AveragePool2D.

    Source: keras.layers.AveragePooling1D.

    >>> from convkern.layers import Input
    >>> AveragePool1D(2)(Input((10, 4))).shape
    (5, 4)
    """

    rank = 1


class AveragePool2D(_AveragePool):
    """The mean of each window, channel by channel.

    Shapes and arguments as MaxPool2D (without dilation); count_include_pad: None or False divides by the pixels of the
        image in the window (Keras), True by those of the padded image (torch).
    Errors: ShapeError with the sizes; DTypeError, Unsupported for wrong arguments.
    Source: keras.layers.AveragePooling2D; torch.nn.AvgPool2d for the additions.

    >>> from convkern.layers import Input
    >>> AveragePool2D(2, padding="same")(Input((7, 7, 64))).shape
    (4, 4, 64)
    """

    rank = 2


class AveragePool3D(_AveragePool):
    """The mean of each window of a volume: (N, D, H, W, C) to (N, Z, P, Q, C). As AveragePool2D.

    Source: keras.layers.AveragePooling3D.

    >>> from convkern.layers import Input
    >>> AveragePool3D(2)(Input((8, 32, 32, 3))).shape
    (4, 16, 16, 3)
    """

    rank = 3


class _AdaptivePool(Layer):
    rank: int
    kind: str

    def __init__(self, output_size: Ints, data_format: str | None = None, **base: Any):
        super().__init__(**base)
        self.output_size = per_axis("output_size", output_size, self.rank)
        self.data_format = check_data_format(data_format)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("adaptive_pool", inputs, {"kind": self.kind, "out": self.output_size})


class AdaptiveAveragePool1D(_AdaptivePool):
    """The means of output_size windows that cover a sequence: (N, L, C) to (N, output_size, C). As
    AdaptiveAveragePool2D.

    Source: torch.nn.AdaptiveAvgPool1d.

    >>> from convkern.layers import Input
    >>> AdaptiveAveragePool1D(3)(Input((10, 4))).shape
    (3, 4)
    """

    rank, kind = 1, "avg"


class AdaptiveAveragePool2D(_AdaptivePool):
    """The means of windows chosen so that the output has a given size: window i reads pixels floor(i*H/P) to
    ceil((i+1)*H/P).

    Shapes: (N, H, W, C) to (N, P, Q, C) with (P, Q) = output_size, one integer or two.
    Errors: ShapeError, DTypeError for a wrong size.
    Source: torch.nn.AdaptiveAvgPool2d.

    >>> from convkern.layers import Input
    >>> AdaptiveAveragePool2D(6)(Input((13, 13, 256))).shape
    (6, 6, 256)
    """

    rank, kind = 2, "avg"


class AdaptiveAveragePool3D(_AdaptivePool):
    """The means of windows that cover a volume: (N, D, H, W, C) to (N, Z, P, Q, C). As AdaptiveAveragePool2D.

    Source: torch.nn.AdaptiveAvgPool3d.

    >>> from convkern.layers import Input
    >>> AdaptiveAveragePool3D(1)(Input((4, 7, 7, 8))).shape
    (1, 1, 1, 8)
    """

    rank, kind = 3, "avg"


class AdaptiveMaxPool1D(_AdaptivePool):
    """The maxima of output_size windows that cover a sequence: (N, L, C) to (N, output_size, C). As
    AdaptiveAveragePool2D.

    Source: torch.nn.AdaptiveMaxPool1d.

    >>> from convkern.layers import Input
    >>> AdaptiveMaxPool1D(3)(Input((10, 4))).shape
    (3, 4)
    """

    rank, kind = 1, "max"


class AdaptiveMaxPool2D(_AdaptivePool):
    """The maxima of windows chosen so that the output has a given size. As AdaptiveAveragePool2D.

    Source: torch.nn.AdaptiveMaxPool2d.

    >>> from convkern.layers import Input
    >>> AdaptiveMaxPool2D((6, 5))(Input((13, 13, 256))).shape
    (6, 5, 256)
    """

    rank, kind = 2, "max"


class AdaptiveMaxPool3D(_AdaptivePool):
    """The maxima of windows that cover a volume: (N, D, H, W, C) to (N, Z, P, Q, C). As AdaptiveAveragePool2D.

    Source: torch.nn.AdaptiveMaxPool3d.

    >>> from convkern.layers import Input
    >>> AdaptiveMaxPool3D(2)(Input((4, 7, 7, 8))).shape
    (2, 2, 2, 8)
    """

    rank, kind = 3, "max"


class _GlobalPool(Layer):
    rank: int
    kind: str

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **base: Any):
        super().__init__(**base)
        self.data_format = check_data_format(data_format)
        self.keepdims = bool(keepdims)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("global_pool", inputs, {"kind": self.kind, "keepdims": self.keepdims})


class GlobalAveragePool1D(_GlobalPool):
    """The mean of a whole sequence: (N, L, C) to (N, C). As GlobalAveragePool2D.

    Source: keras.layers.GlobalAveragePooling1D.

    >>> from convkern.layers import Input
    >>> GlobalAveragePool1D()(Input((10, 4))).shape
    (4,)
    """

    rank, kind = 1, "avg"


class GlobalAveragePool2D(_GlobalPool):
    """The mean of each channel over the image.

    Shapes: (N, H, W, C) to (N, C), or (N, 1, 1, C) with keepdims=True.
    Errors: ShapeError for an input that is no image.
    Source: keras.layers.GlobalAveragePooling2D.

    >>> from convkern.layers import Input
    >>> GlobalAveragePool2D()(Input((7, 7, 2048))).shape
    (2048,)
    """

    rank, kind = 2, "avg"


class GlobalAveragePool3D(_GlobalPool):
    """The mean of a whole volume: (N, D, H, W, C) to (N, C). As GlobalAveragePool2D.

    Source: keras.layers.GlobalAveragePooling3D.

    >>> from convkern.layers import Input
    >>> GlobalAveragePool3D()(Input((4, 7, 7, 8))).shape
    (8,)
    """

    rank, kind = 3, "avg"


class GlobalMaxPool1D(_GlobalPool):
    """The maximum of a whole sequence: (N, L, C) to (N, C). As GlobalAveragePool2D.

    Source: keras.layers.GlobalMaxPooling1D.

    >>> from convkern.layers import Input
    >>> GlobalMaxPool1D()(Input((10, 4))).shape
    (4,)
    """

    rank, kind = 1, "max"


class GlobalMaxPool2D(_GlobalPool):
    """The maximum of each channel over the image: (N, H, W, C) to (N, C). As GlobalAveragePool2D.

    Source: keras.layers.GlobalMaxPooling2D.

    >>> from convkern.layers import Input
    >>> GlobalMaxPool2D(keepdims=True)(Input((7, 7, 512))).shape
    (1, 1, 512)
    """

    rank, kind = 2, "max"


class GlobalMaxPool3D(_GlobalPool):
    """The maximum of a whole volume: (N, D, H, W, C) to (N, C). As GlobalAveragePool2D.

    Source: keras.layers.GlobalMaxPooling3D.

    >>> from convkern.layers import Input
    >>> GlobalMaxPool3D()(Input((4, 7, 7, 8))).shape
    (8,)
    """

    rank, kind = 3, "max"
