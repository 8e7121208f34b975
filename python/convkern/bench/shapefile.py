"""Layer lists as text: one convolution a line, with named fields and how many layers of the network have that shape.

    # a comment
    layer1.0.conv2  h=56 w=56 c=64 k=64 r=3 s=3 stride=1 pad=1 groups=1 x3

h, w, c = input rows, columns, channels; k = filters; r, s = filter rows, columns (s = r if left out); stride, pad and
dil take one number or two, rows x columns (`pad=0x3`), and pad also four, topxbottomxleftxright; `xN` = N layers of the
network have this shape. Left out: stride=1 pad=0 dil=1 groups=1 x1. The same files feed the benchmarks and the exact
tests of the kernels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import DataError, ShapeError
from ..graph import Graph, conv_size

Pair = tuple[int, int]

_SHIPPED = resources.files("convkern.bench") / "shapes"


@dataclass(frozen=True)
class ConvShape:
    """One convolution of one image: sizes as in the kernels' problem (see the glossary in csrc/core/problem.h).

    >>> layer = parse_line("conv1 h=224 w=224 c=3 k=64 r=7 stride=2 pad=3 x1")
    >>> layer.p, layer.q, layer.macs
    (112, 112, 118013952)
    """

    name: str
    h: int
    w: int
    c: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))  # (top, bottom), (left, right)
    dil: Pair = (1, 1)
    groups: int = 1
    count: int = 1

    @property
    def p(self) -> int:
        """Output rows."""
        return conv_size(self.h, self.r, self.stride[0], *self.pad[0], self.dil[0])

    @property
    def q(self) -> int:
        """Output columns."""
        return conv_size(self.w, self.s, self.stride[1], *self.pad[1], self.dil[1])

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weights, (R, S, C/G, K)."""
        return (self.r, self.s, self.c // self.groups, self.k)

    @property
    def macs(self) -> int:
        """Multiply-adds of one layer for one image."""
        return self.p * self.q * self.k * self.r * self.s * (self.c // self.groups)

    def bytes(self, n: int = 1) -> int:
        """Bytes that one layer must move for n images in float32: its input, its weights, its output, once each."""
        images = n * (self.h * self.w * self.c + self.p * self.q * self.k)
        return 4 * (images + math.prod(self.kernel_shape))

    def __str__(self) -> str:
        """The line of a shape file."""
        stride, dil = _pair(self.stride), _pair(self.dil)
        (top, bottom), (left, right) = self.pad
        pad = _pair((top, left)) if top == bottom and left == right else f"{top}x{bottom}x{left}x{right}"
        fields = f"h={self.h} w={self.w} c={self.c} k={self.k} r={self.r} s={self.s} stride={stride} pad={pad}"
        return f"{self.name} {fields}{f' dil={dil}' if dil != '1' else ''} groups={self.groups} x{self.count}"


def _pair(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def parse_line(line: str, where: str = "") -> ConvShape:
    """Read one line of a shape file; DataError naming `where` if it is not one."""
    name, *words = line.split()
    fields: dict[str, Any] = {}
    try:
        for word in words:
            key, equals, value = word.partition("=")
            if not equals and word[0] == "x":
                key, value = "count", word[1:]
            if key in fields:
                raise ValueError(f"{key} stands twice")
            fields[key] = tuple(int(v) for v in value.split("x")) if key in ("stride", "pad", "dil") else int(value)
        for key in ("stride", "dil"):
            if key in fields:
                fields[key] = _spread(key, fields[key])
        if "pad" in fields:
            pad = fields["pad"]
            if len(pad) != 4:
                top, left = _spread("pad", pad)
                pad = (top, top, left, left)
            fields["pad"] = (pad[:2], pad[2:])
        fields.setdefault("s", fields.get("r"))
        shape = ConvShape(name, **fields)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where or 'shape'}: cannot read {line.strip()!r}: {error}") from None
    where = f"{where or 'shape'}: {line.strip()!r}"
    positive = (
        shape.h,
        shape.w,
        shape.c,
        shape.k,
        shape.r,
        shape.s,
        *shape.stride,
        *shape.dil,
        shape.groups,
        shape.count,
    )
    if min(positive) < 1 or min(*shape.pad[0], *shape.pad[1]) < 0 or shape.c % shape.groups or shape.k % shape.groups:
        raise DataError(f"{where}: sizes must be positive and groups must divide c and k")
    if min(shape.p, shape.q) < 1:
        raise DataError(f"{where}: the filter is larger than the padded input")
    return shape


def _spread(key: str, values: tuple[int, ...]) -> Pair:
    if len(values) not in (1, 2):
        raise ValueError(f"{key} has {len(values)} numbers, want 1 or 2")
    return (values[0], values[-1])


def names() -> list[str]:
    """The shape files that come with the package.

    >>> names()[:2]
    ['alexnet', 'densenet121']
    """
    return sorted(entry.name[:-4] for entry in _SHIPPED.iterdir() if entry.name.endswith(".txt"))


def load(source: str | os.PathLike[str]) -> list[ConvShape]:
    """The layers of a shape file: one that comes with the package, by name, or any file, by its path.

    Raises DataError if there is no such file or a line cannot be read.

    >>> sum(layer.macs * layer.count for layer in load("vgg16"))
    15346630656
    """
    if str(source) in names():
        text = (_SHIPPED / f"{source}.txt").read_text("utf-8")
    else:
        try:
            text = Path(source).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"no shape file {str(source)!r} ({error}); the package has {', '.join(names())}") from None
    layers = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0]
        if line.strip():
            layers.append(parse_line(line, f"{source}:{number}"))
    if not layers:
        raise DataError(f"{source}: no layers in it")
    return layers


def from_graph(graph: Graph) -> list[ConvShape]:
    """The distinct two-dimensional convolutions of a network, each with the number of layers that have its shape."""
    found: dict[ConvShape, tuple[str, int]] = {}
    for node in graph.nodes:
        shape = graph.shapes[node.inputs[0]]
        if node.op not in ("conv", "depthwise") or len(shape) != 3 or node.attrs.get("transposed"):
            continue
        h, w, c = shape
        kernel, attrs = node.params["kernel"], node.attrs
        vertical, horizontal = attrs.get("padding") or ((0, 0), (0, 0))
        r, s = kernel.shape[:2]
        layer = ConvShape(
            name="",
            **dict(h=h, w=w, c=c, k=graph.shapes[node.output][-1], r=r, s=s),
            stride=tuple(attrs.get("strides") or (1, 1)),
            pad=(vertical, horizontal),
            dil=tuple(attrs.get("dilation") or (1, 1)),
            groups=c if node.op == "depthwise" else attrs.get("groups", 1),
        )
        name, count = found.get(layer, (node.name or f"conv{len(found)}", 0))
        found[layer] = (name, count + 1)
    if not found:
        raise ShapeError("the model has no two-dimensional convolutions")
    return [replace(layer, name=name, count=count) for layer, (name, count) in found.items()]
