"""Dense layers and the layers that work value by value: activations, dropout, rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError, Unsupported
from ..graph import Graph
from .arguments import activate, check_activation, integer, number
from .base import Layer, OpenShape, checked_shape, known


class Dense(Layer):
    """A fully connected layer: y = activation(x @ kernel + bias), over the last axis.

    Shapes: input (N, ..., F), kernel (F, units), output (N, ..., units).
    Arguments: activation: a name as in Activation. use_bias: add one number per unit. flatten_shape: the (H, W, C) that
        was flattened into F, where weight files hold it in the order C, H, W (torch's).
    Errors: ShapeError with both sizes; DTypeError, Unsupported for wrong arguments.
    Source: keras.layers.Dense.

    >>> from convkern.layers import Input
    >>> layer = Dense(10, activation="softmax")
    >>> layer(Input((256,))).shape, layer.count_params()
    ((10,), 2570)
    """

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        flatten_shape: Sequence[int] | None = None,
        **base: Any,
    ):
        super().__init__(**base)
        self.units = integer("units", units)
        self.activation = check_activation(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.flatten_shape = None if flatten_shape is None else checked_shape("flatten_shape", flatten_shape)

    def build(self, input_shape: OpenShape) -> None:
        self.add_param("kernel", (known(input_shape, -1, "features"), self.units), self.kernel_initializer)
        if self.use_bias:
            self.add_param("bias", (self.units,), self.bias_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return activate(graph, graph.add("dense", inputs, {}, self.params), self.activation)


class Activation(Layer):
    """Apply a function to every value.

    Names: relu, relu6, silu (swish), sigmoid, hard_swish (hard_silu), hard_sigmoid, gelu (exact; gelu_tanh
        approximates), tanh, elu, leaky_relu (slope 0.2), softplus, exponential (exp), linear; softmax and log_softmax
        work over the last axis.
    Shapes: output as input.
    Errors: Unsupported, with the names there are.
    Source: keras.layers.Activation.

    >>> Activation("relu6")(np.array([[-1, 3, 9]], "f4"))
    array([[0., 3., 6.]], dtype=float32)
    """

    def __init__(self, activation: str, **base: Any):
        super().__init__(**base)
        self.activation = check_activation(activation)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        if self.activation in (None, "linear"):
            return graph.add("identity", inputs)
        return activate(graph, inputs[0], self.activation, suffix=False)


class ReLU(Layer):
    """min(max(x, 0), max_value), with negative_slope * x below zero.

    Shapes: output as input.
    Errors: Unsupported for a threshold other than 0; ShapeError for a negative max_value or slope.
    Source: keras.layers.ReLU.

    >>> ReLU(max_value=6, negative_slope=0.5)(np.array([[-2, 3, 9]], "f4"))
    array([[-1.,  3.,  6.]], dtype=float32)
    """

    def __init__(
        self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0, **base: Any
    ):
        super().__init__(**base)
        self.max_value = None if max_value is None else number("max_value", max_value)
        self.negative_slope = number("negative_slope", negative_slope)
        self.threshold = number("threshold", threshold)
        if self.threshold != 0:
            raise Unsupported(f"ReLU: threshold={threshold}; only 0 is supported")
        if self.max_value is not None and not self.max_value >= 0:
            raise ShapeError(f"ReLU: max_value={max_value}, want 0 or more")
        if not self.negative_slope >= 0:
            raise ShapeError(f"ReLU: negative_slope={negative_slope}, want 0 or more")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        (x,) = inputs
        if self.negative_slope:
            x = graph.add("activation", [x], {"kind": "leaky_relu", "a": self.negative_slope, "b": 0.0})
            if self.max_value is None:
                return x
            return graph.add("activation", [x], {"kind": "clamp", "a": -np.inf, "b": self.max_value}, name="max_value")
        if self.max_value is None:
            return graph.add("activation", [x], {"kind": "relu", "a": 0.0, "b": 0.0})
        return graph.add("activation", [x], {"kind": "clamp", "a": 0.0, "b": self.max_value})


class LeakyReLU(Layer):
    """x above zero, negative_slope * x below.

    Shapes: output as input. Errors: ShapeError for a negative slope.
    Source: keras.layers.LeakyReLU (slope 0.3; torch's is 0.01).

    >>> LeakyReLU(0.25)(np.array([[-4, 3]], "f4"))
    array([[-1.,  3.]], dtype=float32)
    """

    def __init__(self, negative_slope: float = 0.3, **base: Any):
        super().__init__(**base)
        self.negative_slope = number("negative_slope", negative_slope)
        if not self.negative_slope >= 0:
            raise ShapeError(f"LeakyReLU: negative_slope={negative_slope}, want 0 or more")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("activation", inputs, {"kind": "leaky_relu", "a": self.negative_slope, "b": 0.0})


class ELU(Layer):
    """x above zero, alpha * (exp(x) - 1) below.

    Shapes: output as input.
    Source: keras.layers.ELU.

    >>> ELU()(np.array([[0, 3]], "f4"))
    array([[0., 3.]], dtype=float32)
    """

    def __init__(self, alpha: float = 1.0, **base: Any):
        super().__init__(**base)
        self.alpha = number("alpha", alpha)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("activation", inputs, {"kind": "elu", "a": self.alpha, "b": 0.0})


class Softmax(Layer):
    """exp(x) divided by its sum along an axis.

    Shapes: output as input. axis: counts the batch axis, as in Keras, but cannot be it.
    Errors: ShapeError for an axis that is not there.
    Source: keras.layers.Softmax.

    >>> Softmax()(np.zeros((1, 4), "f4"))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """

    def __init__(self, axis: int = -1, **base: Any):
        super().__init__(**base)
        self.axis = integer("axis", axis, -(2**31))

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        (x,) = inputs
        rank = len(graph.shapes[x])
        axis = image_axis("Softmax", self.axis, rank)
        if axis == rank - 1:
            return graph.add("softmax", [x], {"log": False})
        perm = [*range(rank)]
        perm[axis], perm[-1] = perm[-1], perm[axis]  # its own inverse
        y = graph.add("transpose", [x], {"perm": tuple(perm)}, name="transpose")
        return graph.add(
            "transpose", [graph.add("softmax", [y], {"log": False})], {"perm": tuple(perm)}, name="transpose_back"
        )


class Dropout(Layer):
    """Nothing at inference; in training each value is dropped with probability `rate`, and the others are divided by
    1 - rate.

    Arguments: seed: of the layer's own random numbers; None takes them from the seed of the training run.
    Shapes: output as input. Errors: ShapeError for a rate outside [0, 1).
    Source: keras.layers.Dropout.

    >>> Dropout(0.5)(np.ones((1, 2), "f4"))
    array([[1., 1.]], dtype=float32)
    """

    per_image = False

    def __init__(self, rate: float, noise_shape: None = None, seed: int | None = None, **base: Any):
        super().__init__(**base)
        self.rate = number("rate", rate)
        self.seed = None if seed is None else integer("seed", seed, 0)
        self.noise_shape = noise_shape
        if not 0 <= self.rate < 1:
            raise ShapeError(f"{type(self).__name__}: rate={rate}, want 0 <= rate < 1")
        if noise_shape is not None:
            raise Unsupported(f"{type(self).__name__}: noise_shape={noise_shape}; only None is supported")

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        rate = 0.0 if self.per_image and not self.trainable else self.rate
        attrs = {"rate": rate, "seed": self.seed, "per_image": self.per_image}
        return graph.add("dropout", inputs, attrs)


class StochasticDepth(Dropout):
    """Dropout of whole images: in training each image of a branch is dropped with probability `rate` (to be followed by
    an Add with the shortcut), the others are divided by 1 - rate; nothing at inference, and nothing if the layer is
    frozen (`trainable = False`): a frozen backbone runs as at inference.

    Shapes: output as input. Errors: ShapeError for a rate outside [0, 1).
    Source: Huang et al. 2016, "Deep networks with stochastic depth"; torchvision.ops.StochasticDepth with mode "row".

    >>> StochasticDepth(0.5)(np.ones((1, 2), "f4"))
    array([[1., 1.]], dtype=float32)
    """

    per_image = True


class Rescaling(Layer):
    """y = x * scale + offset; scale and offset are numbers, or one per channel.

    Shapes: output as input. Errors: ShapeError if their number is not that of the channels, DTypeError if they are no
        numbers.
    Source: keras.layers.Rescaling.

    >>> Rescaling(1 / 128, -1)(np.array([[0, 128, 192]], "f4"))
    array([[-1. ,  0. ,  0.5]], dtype=float32)
    """

    def __init__(self, scale: float | Sequence[float], offset: float | Sequence[float] = 0.0, **base: Any):
        super().__init__(**base)
        self.scale = _numbers("scale", scale)
        self.offset = _numbers("offset", offset)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("rescale", inputs, {"scale": self.scale, "offset": self.offset})


def _numbers(what: str, value: Any) -> float | tuple[float, ...]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DTypeError(f"{what}: got {value!r}, want a number or one per channel") from None
    if array.ndim > 1:
        raise ShapeError(f"{what}: got the shape {array.shape}, want a number or one per channel")
    return float(array) if array.ndim == 0 else tuple(array.tolist())


def image_axis(what: str, axis: int, rank: int) -> int:
    """An axis counted as Keras does, with the batch axis as number 0, as an axis of one image."""
    if axis == 0 or not -rank <= axis <= rank:
        raise ShapeError(
            f"{what}: axis={axis}, want 1 to {rank} or -1 to -{rank} (0 is the batch) for an input of {rank} dimensions"
        )
    return axis - 1 if axis > 0 else axis + rank
