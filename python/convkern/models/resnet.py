"""ResNet, Wide ResNet and ResNeXt: stages of blocks that add their input to their output.

Source: He et al. 2015, arXiv:1512.03385, table 1; Zagoruyko and Komodakis 2016, arXiv:1605.07146; Xie et al. 2016,
arXiv:1611.05431. Names and details as in torchvision: the stride of a bottleneck is on its 3x3 convolution (v1.5), a
changed shape takes a 1x1 shortcut.
"""

from __future__ import annotations

from functools import partial

from ..layers import MaxPool2D
from .blocks import Tensor, conv_norm, pooled_classifier, residual
from .registry import register

# name: block, blocks per stage, groups, channels of a group in the first stage
TABLE = {
    "resnet18": ("basic", (2, 2, 2, 2), 1, 64),
    "resnet34": ("basic", (3, 4, 6, 3), 1, 64),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 1, 64),
    "resnet101": ("bottleneck", (3, 4, 23, 3), 1, 64),
    "resnet152": ("bottleneck", (3, 8, 36, 3), 1, 64),
    "wide_resnet50_2": ("bottleneck", (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": ("bottleneck", (3, 4, 23, 3), 1, 128),
    "resnext50_32x4d": ("bottleneck", (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": ("bottleneck", (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": ("bottleneck", (3, 4, 23, 3), 64, 4),
}


def shortcut(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    if stride == 1 and x.shape[-1] == filters:
        return x
    return conv_norm(x, filters, 1, f"{name}.downsample.0", f"{name}.downsample.1", None, stride=stride)


def basic(x: Tensor, stage: int, stride: int, name: str, groups: int, group_width: int) -> Tensor:
    """3x3, 3x3, plus the input."""
    filters = 64 * 2**stage
    y = conv_norm(x, filters, 3, f"{name}.conv1", f"{name}.bn1", stride=stride)
    y = conv_norm(y, filters, 3, f"{name}.conv2", f"{name}.bn2", None)
    return residual(y, shortcut(x, filters, stride, name), "relu")


def bottleneck(x: Tensor, stage: int, stride: int, name: str, groups: int, group_width: int) -> Tensor:
    """1x1 to fewer channels, 3x3 (in groups), 1x1 to four times the stage's channels, plus the input."""
    width, filters = groups * group_width * 2**stage, 4 * 64 * 2**stage
    y = conv_norm(x, width, 1, f"{name}.conv1", f"{name}.bn1")
    y = conv_norm(y, width, 3, f"{name}.conv2", f"{name}.bn2", stride=stride, groups=groups)
    y = conv_norm(y, filters, 1, f"{name}.conv3", f"{name}.bn3", None)
    return residual(y, shortcut(x, filters, stride, name), "relu")


def resnet(x: Tensor, block: str, depths: tuple[int, ...], groups: int = 1, group_width: int = 64) -> Tensor:
    """Image -> feature map of 1/32 of its height and width."""
    make = {"basic": basic, "bottleneck": bottleneck}[block]
    x = conv_norm(x, 64, 7, "conv1", "bn1", stride=2)
    x = MaxPool2D(3, strides=2, padding=1, name="maxpool")(x)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            x = make(x, stage, stride, f"layer{stage + 1}.{i}", groups, group_width)
    return x


for _name, (_block, _depths, _groups, _width) in TABLE.items():
    register(
        _name,
        head=partial(pooled_classifier, torch_name="fc"),
        head_names=("fc",),
        block=_block,
        depths=_depths,
        groups=_groups,
        group_width=_width,
    )(resnet)
