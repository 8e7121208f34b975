"""Inception-v3: blocks of parallel branches whose 5x5 and 7x7 filters are made of 3x3, 1x7 and 7x1 ones.

Source: Szegedy et al. 2015, arXiv:1512.00567, figures 5 to 7. Names, batch norm (eps 1e-3) and the averages that count
padding as in torchvision, whose published file was trained with inputs scaled to -1..1; its auxiliary classifier, which
only training reads, is left out.
"""

from __future__ import annotations

from functools import partial

from ..layers import AveragePooling2D, Concatenate, MaxPool2D
from .blocks import Tensor, conv_norm, pooled_classifier
from .registry import register


def unit(
    x: Tensor,
    filters: int,
    kernel: int | tuple[int, int],
    name: str,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """Convolution, batch norm, ReLU."""
    return conv_norm(x, filters, kernel, f"{name}.conv", f"{name}.bn", stride=stride, padding=padding, eps=1e-3)


def row(x: Tensor, filters: int, size: int, name: str) -> Tensor:
    """A filter of one row; the map keeps its size."""
    return unit(x, filters, (1, size), name, padding=(0, size // 2))


def column(x: Tensor, filters: int, size: int, name: str) -> Tensor:
    return unit(x, filters, (size, 1), name, padding=(size // 2, 0))


def pooled(x: Tensor, filters: int, name: str) -> Tensor:
    x = AveragePooling2D(3, strides=1, padding=1, count_include_pad=True)(x)
    return unit(x, filters, 1, f"{name}.branch_pool")


def block_a(x: Tensor, pool_filters: int, name: str) -> Tensor:
    """Figure 5: 1x1; 5x5; two 3x3; average."""
    one = unit(x, 64, 1, f"{name}.branch1x1")
    five = unit(x, 48, 1, f"{name}.branch5x5_1")
    five = unit(five, 64, 5, f"{name}.branch5x5_2", padding=2)
    three = unit(x, 64, 1, f"{name}.branch3x3dbl_1")
    three = unit(three, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    three = unit(three, 96, 3, f"{name}.branch3x3dbl_3", padding=1)
    return Concatenate()([one, five, three, pooled(x, pool_filters, name)])


def reduction_a(x: Tensor, name: str) -> Tensor:
    """Half the height and width: 3x3; two 3x3; maximum."""
    one = unit(x, 384, 3, f"{name}.branch3x3", stride=2)
    two = unit(x, 64, 1, f"{name}.branch3x3dbl_1")
    two = unit(two, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    two = unit(two, 96, 3, f"{name}.branch3x3dbl_3", stride=2)
    return Concatenate()([one, two, MaxPool2D(3, strides=2)(x)])


def block_b(x: Tensor, narrow: int, name: str) -> Tensor:
    """Figure 6: 1x1; 7x7 as 1x7 and 7x1; the same twice; average."""
    one = unit(x, 192, 1, f"{name}.branch1x1")
    seven = unit(x, narrow, 1, f"{name}.branch7x7_1")
    seven = row(seven, narrow, 7, f"{name}.branch7x7_2")
    seven = column(seven, 192, 7, f"{name}.branch7x7_3")
    twice = unit(x, narrow, 1, f"{name}.branch7x7dbl_1")
    twice = column(twice, narrow, 7, f"{name}.branch7x7dbl_2")
    twice = row(twice, narrow, 7, f"{name}.branch7x7dbl_3")
    twice = column(twice, narrow, 7, f"{name}.branch7x7dbl_4")
    twice = row(twice, 192, 7, f"{name}.branch7x7dbl_5")
    return Concatenate()([one, seven, twice, pooled(x, 192, name)])


def reduction_b(x: Tensor, name: str) -> Tensor:
    """Half the height and width: 3x3; 7x7 and 3x3; maximum."""
    three = unit(x, 192, 1, f"{name}.branch3x3_1")
    three = unit(three, 320, 3, f"{name}.branch3x3_2", stride=2)
    seven = unit(x, 192, 1, f"{name}.branch7x7x3_1")
    seven = row(seven, 192, 7, f"{name}.branch7x7x3_2")
    seven = column(seven, 192, 7, f"{name}.branch7x7x3_3")
    seven = unit(seven, 192, 3, f"{name}.branch7x7x3_4", stride=2)
    return Concatenate()([three, seven, MaxPool2D(3, strides=2)(x)])


def block_c(x: Tensor, name: str) -> Tensor:
    """Figure 7: 1x1; 1x3 beside 3x1; the same after a 3x3; average."""
    one = unit(x, 320, 1, f"{name}.branch1x1")
    three = unit(x, 384, 1, f"{name}.branch3x3_1")
    wide = [row(three, 384, 3, f"{name}.branch3x3_2a"), column(three, 384, 3, f"{name}.branch3x3_2b")]
    twice = unit(x, 448, 1, f"{name}.branch3x3dbl_1")
    twice = unit(twice, 384, 3, f"{name}.branch3x3dbl_2", padding=1)
    wider = [row(twice, 384, 3, f"{name}.branch3x3dbl_3a"), column(twice, 384, 3, f"{name}.branch3x3dbl_3b")]
    return Concatenate()([one, *wide, *wider, pooled(x, 192, name)])


@register(
    "inception_v3",
    head=partial(pooled_classifier, torch_name="fc", dropout=0.5),
    head_names=("fc",),
    unused_names=("AuxLogits",),
    size=299,
    resize=342,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
def inception_v3(x: Tensor) -> Tensor:
    """Image -> feature map of about 1/32 of its height and width (8x8 for 299x299), 2048 channels."""
    x = unit(x, 32, 3, "Conv2d_1a_3x3", stride=2)
    x = unit(x, 32, 3, "Conv2d_2a_3x3")
    x = unit(x, 64, 3, "Conv2d_2b_3x3", padding=1)
    x = MaxPool2D(3, strides=2, name="maxpool1")(x)
    x = unit(x, 80, 1, "Conv2d_3b_1x1")
    x = unit(x, 192, 3, "Conv2d_4a_3x3")
    x = MaxPool2D(3, strides=2, name="maxpool2")(x)
    for letter, pool_filters in (("b", 32), ("c", 64), ("d", 64)):
        x = block_a(x, pool_filters, f"Mixed_5{letter}")
    x = reduction_a(x, "Mixed_6a")
    for letter, narrow in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        x = block_b(x, narrow, f"Mixed_6{letter}")
    x = reduction_b(x, "Mixed_7a")
    for letter in "bc":
        x = block_c(x, f"Mixed_7{letter}")
    return x
