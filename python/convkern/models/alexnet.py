"""AlexNet as torchvision has it: one tower, 64 first filters, no response normalisation (the original: lecture.py).

Source: Krizhevsky 2014, arXiv:1404.5997. Names as in torchvision. Inputs of another size than 224 are averaged to the
6x6 that the dense layers expect.
"""

from __future__ import annotations

from ..layers import AdaptiveAveragePool2D, Dropout, Flatten, MaxPool2D
from .blocks import Tensor, conv, dense
from .registry import register


def head(x: Tensor, classes: int) -> Tensor:
    if x.shape[:2] != (6, 6):
        x = AdaptiveAveragePool2D((6, 6), name="avgpool")(x)
    flattened = x.shape
    x = Dropout(0.5)(Flatten(name="flatten")(x))
    x = Dropout(0.5)(dense(x, 4096, "classifier.1", "relu", flattened))
    x = dense(x, 4096, "classifier.4", "relu")
    return dense(x, classes, "classifier.6")


@register("alexnet", head=head, head_names=("classifier",))
def alexnet(x: Tensor) -> Tensor:
    """Image -> 6x6x256 at 224 pixels."""
    x = conv(x, 64, 11, "features.0", stride=4, padding=2, activation="relu")
    x = MaxPool2D(3, strides=2, name="pool1")(x)
    x = conv(x, 192, 5, "features.3", activation="relu")
    x = MaxPool2D(3, strides=2, name="pool2")(x)
    x = conv(x, 384, 3, "features.6", activation="relu")
    x = conv(x, 256, 3, "features.8", activation="relu")
    x = conv(x, 256, 3, "features.10", activation="relu")
    return MaxPool2D(3, strides=2, name="pool5")(x)
