"""DenseNet-BC: a layer reads the outputs of all layers before it in its block and adds a few channels (the growth).

Source: Huang et al. 2016, arXiv:1608.06993, table 1. Names as in torchvision; its published files write `norm.1` for
`norm1`, and load too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ..layers import AveragePooling2D, Concatenate, MaxPool2D
from .blocks import Tensor, activate, conv, conv_norm, norm, pooled_classifier
from .registry import register

# name: growth, layers per block, channels before the first block
TABLE = {
    "densenet121": (32, (6, 12, 24, 16), 64),
    "densenet161": (48, (6, 12, 36, 24), 96),
    "densenet169": (32, (6, 12, 32, 32), 64),
    "densenet201": (32, (6, 12, 48, 32), 64),
    "densenet264": (32, (6, 12, 64, 48), 64),
}


def published_names(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, str]:
    pattern = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
    return {name: match[1] + match[2] for name in names if (match := pattern.fullmatch(name))}


def dense_layer(x: Tensor, growth: int, name: str) -> Tensor:
    """Norm, ReLU, 1x1 to four times the growth, norm, ReLU, 3x3 to the growth; the result is appended to the input."""
    y = activate(norm(x, f"{name}.norm1"), "relu")
    y = conv_norm(y, 4 * growth, 1, f"{name}.conv1", f"{name}.norm2")
    y = conv(y, growth, 3, f"{name}.conv2", bias=False)
    return Concatenate()([x, y])


def transition(x: Tensor, name: str) -> Tensor:
    """Half the channels, half the height and width."""
    x = activate(norm(x, f"{name}.norm"), "relu")
    x = conv(x, x.shape[-1] // 2, 1, f"{name}.conv", bias=False)
    return AveragePooling2D(2, strides=2)(x)


def densenet(x: Tensor, growth: int, depths: tuple[int, ...], stem: int) -> Tensor:
    """Image -> feature map of 1/32 of its height and width."""
    x = conv_norm(x, stem, 7, "features.conv0", "features.norm0", stride=2)
    x = MaxPool2D(3, strides=2, padding=1, name="features_pool0")(x)
    for block, depth in enumerate(depths, start=1):
        for layer in range(1, depth + 1):
            x = dense_layer(x, growth, f"features.denseblock{block}.denselayer{layer}")
        if block < len(depths):
            x = transition(x, f"features.transition{block}")
    return activate(norm(x, "features.norm5"), "relu")


for _name, (_growth, _depths, _stem) in TABLE.items():
    register(
        _name,
        head=partial(pooled_classifier, torch_name="classifier"),
        head_names=("classifier",),
        rename=published_names,
        growth=_growth,
        depths=_depths,
        stem=_stem,
    )(densenet)
