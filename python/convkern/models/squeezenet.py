"""SqueezeNet: AlexNet's accuracy in 1.2 M parameters, from fire modules: a narrow 1x1 feeding a 1x1 and a 3x3.

Source: Iandola et al. 2016, arXiv:1602.07360; 1.1 moves the pools forward for 2.4 times less work. Names and the pools'
ceil mode as in torchvision.
"""

from __future__ import annotations

from typing import Any

from ..layers import Concatenate, Dropout, GlobalAveragePool2D, MaxPool2D
from .blocks import Tensor, conv
from .registry import register

# first convolution (filters, kernel), then "pool" or the squeezed channels of a fire module (it gives 2 x 4 times as
# many)
TABLE = {
    "squeezenet1_0": ((96, 7), ("pool", 16, 16, 32, "pool", 32, 48, 48, 64, "pool", 64)),
    "squeezenet1_1": ((64, 3), ("pool", 16, 16, "pool", 32, 32, "pool", 48, 48, 64, 64)),
}


def fire(x: Tensor, squeezed: int, name: str) -> Tensor:
    x = conv(x, squeezed, 1, f"{name}.squeeze", activation="relu")
    one = conv(x, 4 * squeezed, 1, f"{name}.expand1x1", activation="relu")
    three = conv(x, 4 * squeezed, 3, f"{name}.expand3x3", activation="relu")
    return Concatenate()([one, three])


def head(x: Tensor, classes: int) -> Tensor:
    """The classifier is a convolution; the logits are means over the pixels, after a ReLU."""
    x = Dropout(0.5)(x)
    x = conv(x, classes, 1, "classifier.1", activation="relu")
    return GlobalAveragePool2D(name="avgpool")(x)


def squeezenet(x: Tensor, first: tuple[int, int], plan: tuple[Any, ...]) -> Tensor:
    """Image -> feature map of 1/16 of its height and width, 512 channels."""
    filters, kernel = first
    x = conv(x, filters, kernel, "features.0", stride=2, padding=0, activation="relu")
    for index, step in enumerate(plan, start=2):
        x = MaxPool2D(3, strides=2, ceil_mode=True)(x) if step == "pool" else fire(x, step, f"features.{index}")
    return x


for _name, (_first, _plan) in TABLE.items():
    register(_name, head=head, head_names=("classifier",), first=_first, plan=_plan)(squeezenet)
