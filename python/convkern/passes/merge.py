"""The common form of a fusion: a node swallows the producer of one of its inputs, if nobody else reads it."""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph, Node

# Operators that run as one convolution: they take a scale, a bias, a residual and an activation.
CONVOLUTIONS = ("conv", "depthwise", "dense")


def merge(graph: Graph, rule: Callable[[Node, Node], Node | None]) -> Graph:
    """Replace pairs by rule(node, producer), a node that writes what `node` wrote; None leaves the pair alone.

    The merged node stands where `node` stood, so everything it reads has been written. Of two producers the later one
    is asked first: it then moves less far from its own place, and its inputs need not live longer.
    """
    uses = graph.uses()
    written: dict[int, Node] = {}
    for node in graph.nodes:
        for tensor in sorted(node.inputs, reverse=True):
            producer = written.get(tensor)
            merged = rule(node, producer) if producer is not None and uses[tensor] == 1 else None
            if merged is not None:
                del written[tensor]
                node = merged
                break
        written[node.output] = node
    return graph.rewritten(written.values())
