"""Remove nodes whose result nobody reads."""

from __future__ import annotations

from ..graph import Graph


def drop_dead(graph: Graph) -> Graph:
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint((node.output, *node.more)):
            needed.update(node.inputs)
            kept.append(node)
    return graph.rewritten(reversed(kept))
