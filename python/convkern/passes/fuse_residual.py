"""Let a convolution add the other branch while its result is in registers: conv(x) + other -> conv(x, residual)."""

from __future__ import annotations

from ..graph import Graph, Node
from .merge import CONVOLUTIONS, merge


def fuse_residual(graph: Graph) -> Graph:
    return merge(graph, lambda add, conv: fuse_sum(add, conv, graph))


def fuse_sum(add: Node, conv: Node, graph: Graph) -> Node | None:
    if add.op != "binary" or add.attrs["kind"] != "add" or conv.op not in CONVOLUTIONS:
        return None
    if "activation" in conv.attrs or conv.attrs.get("residual", False):
        return None
    a, b = add.inputs
    other = b if a == conv.output else a
    if graph.shapes[other] != graph.shapes[conv.output]:  # broadcast
        return None
    attrs = {key: add.attrs[key] for key in ("activation",) if key in add.attrs}
    return conv.replace(
        attrs={**conv.attrs, **attrs, "residual": True},
        inputs=(*conv.inputs, other),
        output=add.output,
    )
