"""Apply an activation where its input is written, instead of reading and writing it once more."""

from __future__ import annotations

from ..graph import Graph, Node
from .merge import CONVOLUTIONS, merge


def fuse_activation(graph: Graph) -> Graph:
    return merge(graph, fuse)


def fuse(act: Node, producer: Node) -> Node | None:
    if act.op != "activation" or producer.op not in (*CONVOLUTIONS, "binary", "batch_norm"):
        return None
    if "activation" in producer.attrs:
        return None
    parameters = (act.attrs["kind"], act.attrs.get("a", 0.0), act.attrs.get("b", 0.0))
    return producer.with_attrs(activation=parameters).replace(output=act.output)
