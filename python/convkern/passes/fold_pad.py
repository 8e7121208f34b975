"""Let convolutions and poolings pad by themselves instead of reading a padded copy.

A convolution pads with zeros; an average that counts its padding does too; a maximum pads with -inf, which is the same
as zero only where the input is known to be positive and no window lies in the padding alone.
"""

from __future__ import annotations

from ..graph import Graph, Node

_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid", "softplus", "exp")


def fold_pad(graph: Graph) -> Graph:
    producers = graph.producers()
    nodes = []
    for node in graph.nodes:
        while (pad := producers.get(node.inputs[0])) is not None and _folds(pad, node, graph, producers):
            own = node.attrs.get("padding") or ((0, 0),) * (len(pad.attrs["padding"]) - 1)
            padding = tuple((lo + a, hi + b) for (lo, hi), (a, b) in zip(own, pad.attrs["padding"]))
            node = node.with_attrs(padding=padding).replace(inputs=(pad.inputs[0], *node.inputs[1:]))
        nodes.append(node)
    return graph.rewritten(nodes)  # a pad that nobody reads any more is dead


def _folds(pad: Node, node: Node, graph: Graph, producers: dict[int, Node]) -> bool:
    if pad.op != "pad" or pad.attrs.get("mode", "constant") != "constant" or pad.attrs.get("value", 0.0) != 0:
        return False
    *spatial, channels = pad.attrs["padding"]
    if any(channels) or any(lo < 0 or hi < 0 for lo, hi in spatial):
        return False
    if node.op in ("conv", "depthwise"):
        return not node.attrs.get("transposed", False)
    if node.op != "pool" or any(d > 1 for d in node.attrs.get("dilation") or ()):
        return False
    if node.attrs.get("ceil_mode", False):  # a last window may start in zeros, not in the pooling's own padding
        return False
    own = node.attrs.get("padding") or ((0, 0),) * len(spatial)
    fits = all(max(a + lo, b + hi) < r for (a, b), (lo, hi), r in zip(own, spatial, node.attrs["window"]))
    if node.attrs["kind"] == "avg":
        # what the pooling itself left out of the count would be mixed with zeros that do count
        return fits and (node.attrs.get("count_include_pad", True) or bool(node.attrs.get("divisor")))
    source = producers.get(pad.inputs[0])
    return fits and source is not None and _activation(source) in _NON_NEGATIVE


def _activation(node: Node) -> str:
    if node.op == "activation":
        return node.attrs["kind"]
    return node.attrs.get("activation", ("none",))[0]
