"""Convolution layers: plain, depthwise, separable, transposed, in one to three dimensions.

Kernels are shaped as in Keras and the lecture, (F, F, C_in, C_out): (R, S, C/groups, K) for images, (S, C/groups, K)
for sequences, (T, R, S, C/groups, K) for volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ShapeError
from ..graph import Graph
from .arguments import activate, check_activation, check_data_format, check_padding, integer, per_axis, resolve_padding
from .base import Layer, OpenShape, known

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]


class _Windowed(Layer):
    """What the convolutions share: a window that slides, a bias, an activation."""

    rank: int
    words: tuple[str, ...] = ("valid", "same")

    def _set(
        self,
        kernel_size: Any,
        strides: Any,
        padding: Any,
        dilation_rate: Any,
        data_format: Any,
        activation: Any,
        use_bias: Any,
    ) -> None:
        self.kernel_size = per_axis("kernel_size", kernel_size, self.rank)
        self.strides = per_axis("strides", strides, self.rank)
        self.padding = check_padding(padding, self.rank, self.words)
        self.dilation_rate = per_axis("dilation_rate", dilation_rate, self.rank)
        self.data_format = check_data_format(data_format)
        self.activation = check_activation(activation)
        self.use_bias = bool(use_bias)

    def _window(self, graph: Graph, x: int) -> dict[str, Any]:
        sizes = graph.shapes[x][:-1]
        padding = resolve_padding(self.padding, sizes, self.kernel_size, self.strides, self.dilation_rate)
        return {"strides": self.strides, "padding": padding, "dilation": self.dilation_rate}


class _Conv(_Windowed):
    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: Padding = "valid",
        data_format: str | None = None,
        dilation_rate: Ints = 1,
        groups: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **base: Any,
    ):
        super().__init__(**base)
        self._set(kernel_size, strides, padding, dilation_rate, data_format, activation, use_bias)
        self.filters = integer("filters", filters)
        self.groups = integer("groups", groups)
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        if self.filters % self.groups:
            raise ShapeError(f"{type(self).__name__}: groups={groups} does not divide filters={filters}")

    def build(self, input_shape: OpenShape) -> None:
        c = known(input_shape, -1, "channels")
        if c % self.groups:
            raise ShapeError(f"groups={self.groups} does not divide the {c} channels of the input {input_shape}")
        self.add_param("kernel", (*self.kernel_size, c // self.groups, self.filters), self.kernel_initializer)
        if self.use_bias:
            self.add_param("bias", (self.filters,), self.bias_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        y = graph.add("conv", inputs, {**self._window(graph, inputs[0]), "groups": self.groups}, self.params)
        return activate(graph, y, self.activation)


class Conv1D(_Conv):
    """Convolve sequences with a bank of filters.

    Shapes: input (N, L, C), kernel (kernel_size, C/groups, filters), output (N, Q, filters); "valid" gives
        Q = (L - dilation*(kernel_size-1) - 1)//stride + 1, "same" Q = ceil(L/stride), "causal" is "valid" behind
        dilation*(kernel_size-1) zeros.
    Arguments: padding also takes an integer or (before, after), in steps. Others as Conv2D.
    Errors: ShapeError with the sizes, Unsupported for unknown words.
    Source: keras.layers.Conv1D.

    >>> from convkern.layers import Input
    >>> Conv1D(8, 3, padding="causal")(Input((100, 4))).shape
    (100, 8)
    """

    rank = 1
    words = ("valid", "same", "causal")


class Conv2D(_Conv):
    """Convolve images with a bank of filters (cross-correlation, as everywhere in this field).

    Shapes: input (N, H, W, C), kernel (R, S, C/groups, filters), output (N, P, Q, filters); "valid" gives
        P = (H - dilation*(R-1) - 1)//stride + 1, "same" P = ceil(H/stride) with the odd pixel of padding below and
        right.
    Arguments: filters: number of output channels. kernel_size, strides, dilation_rate: pixels, one integer or two
        (dilation 1 = dense).
        padding: "valid", "same", or pixels as an integer, (vertical, horizontal) or ((top, bottom), (left, right)).
        groups: slices of the channels that do not see each other. activation: a name as in Activation. use_bias: add
        one number per filter. kernel_initializer, bias_initializer: as in convkern.initializers. data_format: only
        "channels_last".
    Errors: ShapeError with the sizes that do not fit, DTypeError for a size that is no integer, Unsupported for unknown
        words.
    Source: keras.layers.Conv2D; padding in pixels as torch.nn.Conv2d.

    >>> from convkern.layers import Input
    >>> layer = Conv2D(128, 3, padding="same", activation="relu")
    >>> layer(Input((56, 56, 64))).shape, layer.count_params()
    ((56, 56, 128), 73856)
    """

    rank = 2


class Conv3D(_Conv):
    """Convolve volumes or videos with a bank of filters.

    Shapes: input (N, D, H, W, C), kernel (T, R, S, C/groups, filters), output (N, Z, P, Q, filters). Sizes, arguments
        and errors as Conv2D.
    Source: keras.layers.Conv3D.

    >>> from convkern.layers import Input
    >>> Conv3D(16, 3, strides=(1, 2, 2), padding="same")(Input((8, 32, 32, 3))).shape
    (8, 16, 16, 16)
    """

    rank = 3


class _DepthwiseConv(_Windowed):
    def __init__(
        self,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: Padding = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Ints = 1,
        activation: str | None = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **base: Any,
    ):
        super().__init__(**base)
        self._set(kernel_size, strides, padding, dilation_rate, data_format, activation, use_bias)
        self.depth_multiplier = integer("depth_multiplier", depth_multiplier)
        self.depthwise_initializer = depthwise_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape: OpenShape) -> None:
        c = known(input_shape, -1, "channels")
        self.add_param("kernel", (*self.kernel_size, c, self.depth_multiplier), self.depthwise_initializer)
        if self.use_bias:
            self.add_param("bias", (c * self.depth_multiplier,), self.bias_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        y = graph.add("depthwise", inputs, self._window(graph, inputs[0]), self.params)
        return activate(graph, y, self.activation)


class DepthwiseConv1D(_DepthwiseConv):
    """Convolve every channel of a sequence with its own depth_multiplier filters.

    Shapes: input (N, L, C), kernel (kernel_size, C, depth_multiplier), output (N, Q, C*depth_multiplier). Others as
        DepthwiseConv2D.
    Source: keras.layers.DepthwiseConv1D.

    >>> from convkern.layers import Input
    >>> DepthwiseConv1D(3)(Input((10, 4))).shape
    (8, 4)
    """

    rank = 1
    words = ("valid", "same", "causal")


class DepthwiseConv2D(_DepthwiseConv):
    """Convolve every channel of an image with its own depth_multiplier filters.

    Shapes: input (N, H, W, C), kernel (R, S, C, depth_multiplier), output (N, P, Q, C*depth_multiplier): channel
        c*depth_multiplier + j is channel c under filter j. Sizes, paddings and errors as Conv2D.
    Source: keras.layers.DepthwiseConv2D.

    >>> from convkern.layers import Input
    >>> layer = DepthwiseConv2D(3, padding="same")
    >>> layer(Input((14, 14, 32))).shape, layer.count_params()
    ((14, 14, 32), 320)
    """

    rank = 2


class _SeparableConv(_Windowed):
    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: Padding = "valid",
        data_format: str | None = None,
        dilation_rate: Ints = 1,
        depth_multiplier: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **base: Any,
    ):
        super().__init__(**base)
        self._set(kernel_size, strides, padding, dilation_rate, data_format, activation, use_bias)
        self.filters = integer("filters", filters)
        self.depth_multiplier = integer("depth_multiplier", depth_multiplier)
        self.depthwise_initializer = depthwise_initializer
        self.pointwise_initializer = pointwise_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape: OpenShape) -> None:
        c = known(input_shape, -1, "channels")
        self.add_param("depthwise_kernel", (*self.kernel_size, c, self.depth_multiplier), self.depthwise_initializer)
        self.add_param(
            "pointwise_kernel", (*(1,) * self.rank, c * self.depth_multiplier, self.filters), self.pointwise_initializer
        )
        if self.use_bias:
            self.add_param("bias", (self.filters,), self.bias_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        depthwise = {"kernel": self.params["depthwise_kernel"]}
        pointwise = {"kernel": self.params["pointwise_kernel"]}
        if self.use_bias:
            pointwise["bias"] = self.params["bias"]
        y = graph.add("depthwise", inputs, self._window(graph, inputs[0]), depthwise, name="depthwise")
        y = graph.add("conv", [y], {}, pointwise, name="pointwise")
        return activate(graph, y, self.activation)


class SeparableConv1D(_SeparableConv):
    """A depthwise convolution, then one of size 1 across the channels, on sequences. As SeparableConv2D.

    Source: keras.layers.SeparableConv1D.

    >>> from convkern.layers import Input
    >>> SeparableConv1D(8, 3)(Input((10, 4))).shape
    (8, 8)
    """

    rank = 1
    words = ("valid", "same", "causal")


class SeparableConv2D(_SeparableConv):
    """A depthwise convolution, then one of size 1x1 across the channels, with nothing in between (Chollet 2017,
    arXiv:1610.02357).

    Shapes: input (N, H, W, C), depthwise kernel (R, S, C, depth_multiplier), pointwise kernel (1, 1,
        C*depth_multiplier, filters), output (N, P, Q, filters). Sizes, paddings and errors as Conv2D.
    Source: keras.layers.SeparableConv2D.

    >>> from convkern.layers import Input
    >>> layer = SeparableConv2D(64, 3, padding="same")
    >>> layer(Input((14, 14, 32))).shape, layer.count_params()
    ((14, 14, 64), 2400)
    """

    rank = 2


class _ConvTranspose(_Windowed):
    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: Padding = "valid",
        output_padding: Ints | None = None,
        data_format: str | None = None,
        dilation_rate: Ints = 1,
        groups: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **base: Any,
    ):
        super().__init__(**base)
        self._set(kernel_size, strides, padding, dilation_rate, data_format, activation, use_bias)
        self.filters = integer("filters", filters)
        self.groups = integer("groups", groups)
        self.output_padding = (
            None if output_padding is None else per_axis("output_padding", output_padding, self.rank, 0)
        )
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        if self.filters % self.groups:
            raise ShapeError(f"{type(self).__name__}: groups={groups} does not divide filters={filters}")
        for extra, stride in zip(self.output_padding or (), self.strides):
            if extra >= stride:
                raise ShapeError(
                    f"{type(self).__name__}: output_padding={output_padding}, want less than strides={strides}"
                )

    def build(self, input_shape: OpenShape) -> None:
        c = known(input_shape, -1, "channels")
        if c % self.groups:
            raise ShapeError(f"groups={self.groups} does not divide the {c} channels of the input {input_shape}")
        self.add_param("kernel", (*self.kernel_size, self.filters // self.groups, c), self.kernel_initializer)
        if self.use_bias:
            self.add_param("bias", (self.filters,), self.bias_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        trims = [self._trim(axis) for axis in range(self.rank)]
        attrs = {
            "strides": self.strides,
            "dilation": self.dilation_rate,
            "groups": self.groups,
            "transposed": True,
            "padding": tuple((lo, hi) for lo, hi, _ in trims),
            "output_padding": tuple(extra for _, _, extra in trims),
        }
        y = graph.add("conv", inputs, attrs, self.params)
        return activate(graph, y, self.activation)

    def _trim(self, axis: int) -> tuple[int, int, int]:
        """Pixels cut off before and after the full result, and zeros added after it.

        The full result has (H-1)*stride + extent pixels. Keras' words say how many are wanted: "valid" H*stride +
        max(extent - stride, 0), "same" H*stride; with output_padding, (H-1)*stride + extent - 2*(extent//2 if "same"
        else 0) + output_padding.
        """
        stride, extent = self.strides[axis], self.dilation_rate[axis] * (self.kernel_size[axis] - 1) + 1
        given = None if self.output_padding is None else self.output_padding[axis]
        if not isinstance(self.padding, str):
            return (*self.padding[axis], given or 0)
        if given is not None:
            surplus = (extent // 2 * 2 if self.padding == "same" else 0) - given
        else:
            surplus = extent - stride if self.padding == "same" else min(extent - stride, 0)
        return (surplus // 2, surplus - surplus // 2, 0) if surplus > 0 else (0, 0, -surplus)


class Conv1DTranspose(_ConvTranspose):
    """The gradient of Conv1D with respect to its input, used forwards. As Conv2DTranspose.

    Shapes: input (N, L, C), kernel (kernel_size, filters/groups, C), output (N, Q, filters).
    Source: keras.layers.Conv1DTranspose.

    >>> from convkern.layers import Input
    >>> Conv1DTranspose(8, 3, strides=2, padding="same")(Input((10, 4))).shape
    (20, 8)
    """

    rank = 1


class Conv2DTranspose(_ConvTranspose):
    """The gradient of Conv2D with respect to its input, used forwards: every input pixel adds a scaled filter to the
    output.

    Shapes: input (N, H, W, C), kernel (R, S, filters/groups, C), output (N, P, Q, filters); "valid" gives P = H*stride
        + max(R - stride, 0), "same" P = H*stride; padding in pixels P = (H-1)*stride - top - bottom + dilation*(R-1) +
        output_padding + 1, as torch.
    Arguments: output_padding: pixels more at the bottom and right, less than strides; others as Conv2D.
    Errors: ShapeError with the sizes, Unsupported for unknown words.
    Source: keras.layers.Conv2DTranspose (as computed by TensorFlow); padding in pixels as torch.nn.ConvTranspose2d.

    >>> from convkern.layers import Input
    >>> Conv2DTranspose(8, 3, strides=2, padding="same")(Input((14, 14, 4))).shape
    (28, 28, 8)
    """

    rank = 2


class Conv3DTranspose(_ConvTranspose):
    """The gradient of Conv3D with respect to its input, used forwards. As Conv2DTranspose.

    Shapes: input (N, D, H, W, C), kernel (T, R, S, filters/groups, C), output (N, Z, P, Q, filters).
    Source: keras.layers.Conv3DTranspose.

    >>> from convkern.layers import Input
    >>> Conv3DTranspose(8, 2, strides=2)(Input((4, 7, 7, 3))).shape
    (8, 14, 14, 8)
    """

    rank = 3
