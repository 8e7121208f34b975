"""MobileNet-v2: inverted residuals (widen with a 1x1, filter each channel with a depthwise 3x3, narrow again, add).

Source: Sandler et al. 2018, arXiv:1801.04381, table 2. Names as in torchvision. `width` scales the channels.
"""

from __future__ import annotations

from functools import partial

from .blocks import Tensor, conv_norm, make_divisible, pooled_classifier, residual
from .registry import register

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def inverted_residual(x: Tensor, filters: int, stride: int, expansion: int, name: str) -> Tensor:
    y, channels, step = x, x.shape[-1], 0
    hidden = channels * expansion
    if expansion != 1:
        y = conv_norm(y, hidden, 1, f"{name}.0.0", f"{name}.0.1", "relu6")
        step = 1
    y = conv_norm(y, hidden, 3, f"{name}.{step}.0", f"{name}.{step}.1", "relu6", stride=stride, groups=hidden)
    y = conv_norm(y, filters, 1, f"{name}.{step + 1}", f"{name}.{step + 2}", None)
    return residual(y, x) if stride == 1 and channels == filters else y


@register(
    "mobilenet_v2", head=partial(pooled_classifier, torch_name="classifier.1", dropout=0.2), head_names=("classifier",)
)
def mobilenet_v2(x: Tensor, width: float = 1.0) -> Tensor:
    """Image -> feature map of 1/32 of its height and width, 1280 channels."""
    x = conv_norm(x, make_divisible(32 * width), 3, "features.0.0", "features.0.1", "relu6", stride=2)
    index = 1
    for expansion, channels, depth, first_stride in STAGES:
        for i in range(depth):
            stride = first_stride if i == 0 else 1
            x = inverted_residual(x, make_divisible(channels * width), stride, expansion, f"features.{index}.conv")
            index += 1
    last = make_divisible(1280 * max(1.0, width))
    return conv_norm(x, last, 1, f"features.{index}.0", f"features.{index}.1", "relu6")
