"""Build a long concatenation from a shorter one: concat(a, b, c) after concat(a, b) becomes concat(concat(a, b), c).

A dense block that joins all earlier features again for every layer then becomes a chain, which `concat_in_place` turns
into one buffer without copies.
"""

from __future__ import annotations

from ..graph import Graph


def share_concats(graph: Graph) -> Graph:
    joined: dict[tuple[int, tuple[int, ...]], int] = {}  # axis and inputs of the concats so far -> their outputs
    nodes = []
    for node in graph.nodes:
        if node.op == "concat":
            axis = node.attrs.get("axis", -1) % len(graph.shapes[node.output])
            inputs = node.inputs
            for count in range(len(inputs) - 1, 1, -1):
                if (axis, inputs[:count]) in joined:
                    node = node.replace(inputs=(joined[axis, inputs[:count]], *inputs[count:]))
                    break
            joined.setdefault((axis, inputs), node.output)
        nodes.append(node)
    return graph.rewritten(nodes)
