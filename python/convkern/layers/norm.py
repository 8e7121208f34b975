"""Normalization layers."""

from __future__ import annotations

from typing import Any

from ..errors import ShapeError, Unsupported
from ..graph import Graph
from .arguments import integer, number
from .base import Layer, OpenShape, known
from .core import image_axis


class BatchNormalization(Layer):
    """Shift and scale every channel by statistics kept from training: y = (x - moving_mean) / sqrt(moving_variance +
    epsilon) * gamma + beta. In training the statistics are those of the batch, which also move the kept ones; a layer
    with trainable=False uses the kept ones and leaves them alone.

    Shapes: input (N, ..., C), four parameters of shape (C,), output as input. After a convolution or a dense layer it
        costs nothing: it is folded into the weights when a plan is made.
    Arguments: axis: the last one. momentum: the share of the old statistics in an update (Keras; torch's momentum is
        one minus this). unbiased: whether the kept variance is the batch's times n/(n-1), as torch has it (Keras: no).
        center, scale: whether there are beta and gamma. *_initializer: as in convkern.initializers.
    Errors: Unsupported for another axis, ShapeError for a negative epsilon.
    Source: keras.layers.BatchNormalization (epsilon 1e-3; torch's is 1e-5).

    >>> from convkern.layers import Input
    >>> layer = BatchNormalization()
    >>> layer(Input((56, 56, 64))).shape, [w.name for w in layer.weights]
    ((56, 56, 64), ['gamma', 'beta', 'moving_mean', 'moving_variance'])
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        unbiased: bool = False,
        **base: Any,
    ):
        super().__init__(**base)
        self.unbiased = bool(unbiased)
        self.axis = integer("axis", axis, -(2**31))
        self.momentum = number("momentum", momentum)
        self.epsilon = _epsilon(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.beta_initializer = beta_initializer
        self.gamma_initializer = gamma_initializer
        self.moving_mean_initializer = moving_mean_initializer
        self.moving_variance_initializer = moving_variance_initializer

    def build(self, input_shape: OpenShape) -> None:
        _need_last_axis("BatchNormalization", self.axis, input_shape)
        shape = (known(input_shape, -1, "channels"),)
        if self.scale:
            self.add_param("gamma", shape, self.gamma_initializer)
        if self.center:
            self.add_param("beta", shape, self.beta_initializer)
        self.add_param("moving_mean", shape, self.moving_mean_initializer, trainable=False)
        self.add_param("moving_variance", shape, self.moving_variance_initializer, trainable=False)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        params = {
            "gamma": self.params.get("gamma"),
            "beta": self.params.get("beta"),
            "mean": self.params["moving_mean"],
            "var": self.params["moving_variance"],
        }
        attrs = {
            "eps": self.epsilon,
            "momentum": self.momentum,
            "unbiased": self.unbiased,
            "frozen": not self.trainable,
        }
        return graph.add("batch_norm", inputs, attrs, {k: p for k, p in params.items() if p is not None})


class LayerNormalization(Layer):
    """Normalize the channels of every pixel to mean 0 and variance 1, then scale and shift them by gamma and beta.

    Shapes: input (N, ..., C), gamma and beta (C,), output as input.
    Arguments: axis: the last one. center, scale: whether there are beta and gamma.
    Errors: Unsupported for another axis, ShapeError for a negative epsilon.
    Source: keras.layers.LayerNormalization (epsilon 1e-3; torch's is 1e-5).

    >>> from convkern.layers import Input
    >>> LayerNormalization()(Input((10, 64))).shape
    (10, 64)
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        **base: Any,
    ):
        super().__init__(**base)
        self.axis = integer("axis", axis, -(2**31))
        self.epsilon = _epsilon(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.beta_initializer = beta_initializer
        self.gamma_initializer = gamma_initializer

    def build(self, input_shape: OpenShape) -> None:
        _need_last_axis("LayerNormalization", self.axis, input_shape)
        shape = (known(input_shape, -1, "channels"),)
        if self.scale:
            self.add_param("gamma", shape, self.gamma_initializer)
        if self.center:
            self.add_param("beta", shape, self.beta_initializer)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("layer_norm", inputs, {"eps": self.epsilon}, self.params)


class LocalResponseNormalization(Layer):
    """Divide every value by (k + alpha/size * the sum of squares over `size` neighbouring channels) ** beta (AlexNet,
    2012, section 3.3).

    Shapes: output as input. Note that alpha is divided by size, as in torch; AlexNet's paper writes alpha itself.
    Errors: ShapeError for a size below 1.
    Source: torch.nn.LocalResponseNorm.

    >>> import numpy as np
    >>> LocalResponseNormalization(5)(np.zeros((1, 4, 4, 8), "f4")).shape
    (1, 4, 4, 8)
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, **base: Any):
        super().__init__(**base)
        self.size = integer("size", size)
        self.alpha = number("alpha", alpha)
        self.beta = number("beta", beta)
        self.k = number("k", k)

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        return graph.add("lrn", inputs, {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k})


def _epsilon(value: Any) -> float:
    epsilon = number("epsilon", value)
    if not epsilon >= 0:
        raise ShapeError(f"epsilon: got {value}, want 0 or more")
    return epsilon


def _need_last_axis(what: str, axis: int, shape: OpenShape) -> None:
    if image_axis(what, axis, len(shape)) != len(shape) - 1:
        raise Unsupported(
            f"{what}: axis={axis} of an input of {len(shape)} dimensions; only the last (-1, the channels) is supported"
        )
