"""Remove operators that return their input: dropout at inference, reshapes to the same shape, empty padding, ..."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node


def drop_identities(graph: Graph, training: bool = False) -> Graph:
    stands_for: dict[int, int] = {}  # output of a removed node -> the tensor to read instead
    nodes = []
    for node in graph.nodes:
        node = node.replace(inputs=tuple(stands_for.get(tensor, tensor) for tensor in node.inputs))
        if _is_identity(node, graph, training):
            stands_for[node.output] = node.inputs[0]
        else:
            nodes.append(node)
    return graph.rewritten(nodes, [stands_for.get(tensor, tensor) for tensor in graph.outputs])


def _is_identity(node: Node, graph: Graph, training: bool) -> bool:
    attrs = node.attrs
    match node.op:
        case "identity":
            return True
        case "dropout":
            return not training or attrs["rate"] == 0
        case "activation":
            return attrs["kind"] == "none"
        case "reshape":
            return graph.shapes[node.inputs[0]] == graph.shapes[node.output]
        case "transpose":
            return tuple(attrs["perm"]) == tuple(range(len(attrs["perm"])))
        case "pad":
            return not np.any(attrs["padding"])
        case "concat":
            return len(node.inputs) == 1
        case "rescale":
            return bool(np.all(np.equal(attrs.get("scale", 1.0), 1)) and not np.any(attrs.get("offset", 0.0)))
    return False
