"""Pieces that several families share, with torch's conventions spelled out: symmetric padding, batch norm with eps 1e-5
and a running average that keeps 0.9 of its past (torch's momentum 0.1), no bias under a norm, He initialisation over
the fan out (which, unlike the fan in of a (R,S,C,1) kernel, is also right for depthwise convolutions).

Every layer that owns parameters carries `torch_name`, the name of its tensors in the published state dicts; its
Keras-style name is the same with dots replaced.
"""

from __future__ import annotations

from typing import Any

from ..initializers import VarianceScaling
from ..layers import (
    Activation,
    Add,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    GlobalAveragePool2D,
    Multiply,
)

Tensor = Any  # a symbolic tensor; its sizes are None where they may differ from call to call

HE = VarianceScaling(2.0, "fan_out", "untruncated_normal")


def layer_name(torch_name: str) -> str:
    return torch_name.replace(".", "_")


def conv(
    x: Tensor,
    filters: int,
    kernel: int | tuple[int, int],
    torch_name: str,
    *,
    stride: int = 1,
    padding: Any = None,
    groups: int = 1,
    bias: bool = True,
    activation: str | None = None,
) -> Tensor:
    """A convolution, depthwise if groups == channels; padding None = (kernel-1)//2: the size stays at stride 1."""
    if padding is None:
        padding = (kernel - 1) // 2 if isinstance(kernel, int) else tuple((size - 1) // 2 for size in kernel)
    common: dict[str, Any] = dict(
        strides=stride,
        padding=padding,
        use_bias=bias,
        activation=activation,
        name=layer_name(torch_name),
        torch_name=torch_name,
    )
    channels = x.shape[-1]
    if groups == channels == filters and groups > 1:
        return DepthwiseConv2D(kernel, depthwise_initializer=HE, **common)(x)
    return Conv2D(filters, kernel, groups=groups, kernel_initializer=HE, **common)(x)


def norm(x: Tensor, torch_name: str, *, eps: float = 1e-5, momentum: float = 0.9) -> Tensor:
    layer = BatchNormalization(
        epsilon=eps, momentum=momentum, unbiased=True, name=layer_name(torch_name), torch_name=torch_name
    )
    return layer(x)


def activate(x: Tensor, kind: str | None) -> Tensor:
    return x if kind is None else Activation(kind)(x)


def conv_norm(
    x: Tensor,
    filters: int,
    kernel: int | tuple[int, int],
    conv_name: str,
    norm_name: str,
    activation: str | None = "relu",
    *,
    stride: int = 1,
    padding: Any = None,
    groups: int = 1,
    bias: bool = False,
    eps: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """Convolution, batch norm, activation."""
    x = conv(x, filters, kernel, conv_name, stride=stride, padding=padding, groups=groups, bias=bias)
    return activate(norm(x, norm_name, eps=eps, momentum=momentum), activation)


def squeeze_excite(x: Tensor, squeezed: int, torch_name: str, activation: str = "silu") -> Tensor:
    """Scale each channel by a gate computed from the channels' means (Hu et al. 2018, arXiv:1709.01507)."""
    gate = GlobalAveragePool2D(keepdims=True)(x)
    gate = conv(gate, squeezed, 1, f"{torch_name}.fc1", activation=activation)
    gate = conv(gate, x.shape[-1], 1, f"{torch_name}.fc2", activation="sigmoid")
    return Multiply()([x, gate])


def residual(x: Tensor, shortcut: Tensor, activation: str | None = None) -> Tensor:
    return activate(Add()([x, shortcut]), activation)


def dense(
    x: Tensor, units: int, torch_name: str, activation: str | None = None, flatten_shape: tuple[int, ...] | None = None
) -> Tensor:
    """A dense layer; after a Flatten, `flatten_shape` is the (H,W,C) that was flattened (torch flattens C,H,W)."""
    name = layer_name(torch_name)
    return Dense(units, activation=activation, flatten_shape=flatten_shape, name=name, torch_name=torch_name)(x)


def pooled_classifier(x: Tensor, classes: int, torch_name: str, dropout: float = 0.0) -> Tensor:
    """Mean over the pixels, dropout, one dense layer."""
    x = GlobalAveragePool2D(name="avgpool")(x)
    if dropout:
        x = Dropout(dropout)(x)
    return dense(x, classes, torch_name)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of the divisor without losing more than a tenth (Howard et al. 2017)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
