"""VGG: stacks of 3x3 convolutions and 2x2 pools, then three dense layers that hold nine tenths of the parameters.

Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1 (columns A, B, D, E). Names as in torchvision, which
number every module. Inputs of another size than 224 are averaged to the 7x7 that the dense layers expect.
"""

from __future__ import annotations

from ..layers import AdaptiveAveragePool2D, Dropout, Flatten, MaxPool2D
from .blocks import Tensor, conv, conv_norm, dense
from .registry import register

# convolutions per stage; the stages have 64, 128, 256, 512, 512 channels and end in a pool
TABLE = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def vgg(x: Tensor, depths: tuple[int, ...], batch_norm: bool = False) -> Tensor:
    """Image -> feature map of 1/32 of its height and width."""
    index = 0  # of the module inside torchvision's Sequential: convolution, (norm), activation, ..., pool
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            name = f"features.{index}"
            if batch_norm:
                x = conv_norm(x, CHANNELS[stage], 3, name, f"features.{index + 1}", bias=True)
            else:
                x = conv(x, CHANNELS[stage], 3, name, activation="relu")
            index += 3 if batch_norm else 2
        x = MaxPool2D(2, strides=2, name=f"pool{stage + 1}")(x)
        index += 1
    return x


def head(x: Tensor, classes: int) -> Tensor:
    if x.shape[:2] != (7, 7):
        x = AdaptiveAveragePool2D((7, 7), name="avgpool")(x)
    flattened = x.shape
    x = Flatten(name="flatten")(x)
    x = Dropout(0.5)(dense(x, 4096, "classifier.0", "relu", flattened))
    x = Dropout(0.5)(dense(x, 4096, "classifier.3", "relu"))
    return dense(x, classes, "classifier.6")


for _name, _depths in TABLE.items():
    register(_name, head=head, head_names=("classifier",), depths=_depths)(vgg)
    register(f"{_name}_bn", head=head, head_names=("classifier",), depths=_depths, batch_norm=True)(vgg)
