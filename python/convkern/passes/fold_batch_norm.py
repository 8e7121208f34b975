"""Fold a batch norm into the convolution before it.

(conv(x) + b - mean) * s + beta = conv(x) * s + ((b - mean) * s + beta), s = gamma / sqrt(var + eps).
s goes to the node as the parameter `scale`, which is multiplied into the weights when they are packed; it and the new
bias are computed in float64 and rounded once.
"""

from __future__ import annotations

from ..graph import Graph, Node, scale_and_shift, value_of
from .merge import CONVOLUTIONS, merge


def fold_batch_norm(graph: Graph) -> Graph:
    return merge(graph, fold)


def fold(norm: Node, conv: Node) -> Node | None:
    if norm.op != "batch_norm" or conv.op not in CONVOLUTIONS:
        return None
    if "activation" in conv.attrs or conv.attrs.get("residual", False):
        return None
    p = {name: value_of(param) for name, param in norm.params.items()}
    scale, bias = scale_and_shift(p["mean"], p["var"], p.get("gamma"), p.get("beta"), norm.attrs["eps"])
    if "bias" in conv.params:
        bias = bias + value_of(conv.params["bias"]) * scale
    if "scale" in conv.params:
        scale = scale * value_of(conv.params["scale"])
    # what the scale was made of, so that packed weights can be found again and known to be out of date
    made_of = (norm.attrs["eps"], *(norm.params[name] for name in ("gamma", "var") if name in norm.params))
    folded = (*conv.attrs.get("folded", ()), *made_of)
    attrs = {key: norm.attrs[key] for key in ("activation",) if key in norm.attrs}
    return conv.replace(
        attrs={**conv.attrs, **attrs, "folded": folded},
        params={**conv.params, "scale": scale, "bias": bias},
        output=norm.output,
    )
