"""Let the producers of a concatenation along channels write into their slice of its buffer, so that nothing is copied.

The mark `in_place` on a concat tells the compiler to do so. A concat that is itself a slice of a later one shares that
one's buffer, so the chain of a dense block lives in one piece of memory.
"""

from __future__ import annotations

from ..graph import Graph, Node
from .merge import CONVOLUTIONS

_WRITERS = (*CONVOLUTIONS, "pool", "adaptive_pool", "global_pool")  # steps that can write with a pixel stride


def concat_in_place(graph: Graph) -> Graph:
    reshaped = {tensor for node in graph.nodes if node.op == "reshape" for tensor in node.inputs}
    written: dict[int, Node] = {}
    placed: set[int] = set()  # tensors that are slices of a buffer: each can be in one only
    for node in graph.nodes:
        if (
            node.op == "concat"
            and node.attrs.get("axis", -1) in (-1, len(graph.shapes[node.output]) - 1)
            and len(set(node.inputs)) == len(node.inputs)
            and not placed.intersection(node.inputs)
            and not reshaped.intersection(node.inputs)  # a slice is not dense, so it cannot be seen in another shape
            and all(_can_write(written.get(tensor)) for tensor in node.inputs)
        ):
            placed.update(node.inputs)
            node = node.with_attrs(in_place=True)
        written[node.output] = node
    return graph.rewritten(written.values())


def _can_write(node: Node | None) -> bool:
    return node is not None and (node.op in _WRITERS or node.attrs.get("in_place", False))
