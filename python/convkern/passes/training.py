"""The graph of a forward pass in training: batch norms use the statistics of the batch, dropout drops, and only what a
backward pass can undo is fused.

Operators that no trained parameter comes before (a frozen backbone) are treated as at inference: their norms are
folded, everything is fused. For the others

    batch_norm         becomes batch_norm_train (more: mean, variance of the batch) unless its layer is frozen; it takes
                       a residual, and an activation that is a clamp
    conv, dense, ...   take a residual, and an activation whose slope follows from its output (of few channels: a clamp)
    pool (max)         also gives the positions of its maxima (more: index)
"""

from __future__ import annotations

from collections.abc import Collection

from .. import _core
from ..graph import Graph, Node, Param
from .concat_in_place import concat_in_place
from .drop_dead import drop_dead
from .drop_identities import drop_identities
from .fold_batch_norm import fold
from .fold_pad import fold_pad
from .fuse_activation import fuse
from .fuse_residual import fuse_sum
from .merge import merge
from .share_concats import share_concats

CLAMPS = ("relu", "relu6", "clamp")  # the activations that a batch norm's gradient knows

# Below so many channels a convolution would compute a tanh for a few values at a time: of the 2.0 ms of LeNet-5's first
# convolution (64 images, one thread, Zen 4) 1.3 were tanh; as a step of its own it takes 0.15.
NARROW = 16


def training(graph: Graph, wanted: Collection[Param]) -> Graph:
    """The forward pass of a training step; wanted: the parameters that are trained."""
    graph = drop_dead(drop_identities(graph, training=True))
    graph = with_statistics(fold_pad(graph))
    active = depends_on(graph, wanted)

    def norms(norm: Node, conv: Node) -> Node | None:
        return None if conv.output in active else fold(norm, conv)

    def sums(add: Node, producer: Node) -> Node | None:
        if producer.op == "batch_norm_train":
            return _take_residual(add, producer, graph)
        return fuse_sum(add, producer, graph)

    def activations(act: Node, producer: Node) -> Node | None:
        if act.op != "activation":
            return None
        kind, a, b = act.attrs["kind"], act.attrs.get("a", 0.0), act.attrs.get("b", 0.0)
        if producer.op == "batch_norm_train":
            if kind not in CLAMPS or "activation" in producer.attrs:
                return None
            return producer.with_attrs(activation=(kind, a, b)).replace(output=act.output)
        if producer.output in active:
            narrow = graph.shapes[producer.output][-1] < NARROW and kind not in CLAMPS
            if narrow or not slope_from_output(kind, a, b):
                return None
        return fuse(act, producer)

    for rule in (norms, sums, activations):
        graph = merge(graph, rule)
    return concat_in_place(drop_dead(share_concats(graph)))


def depends_on(graph: Graph, params: Collection[Param], tensors: Collection[int] = ()) -> set[int]:
    """The tensors that change with one of these parameters, or of these tensors."""
    ids = {id(param) for param in params}
    active = set(tensors)
    for node in graph.nodes:
        reads = node.inputs[:1] if node.op == "loss" else node.inputs  # targets are given
        if not active.isdisjoint(reads) or any(id(param) in ids for param in node.params.values()):
            active.add(node.output)
    return active


def with_statistics(graph: Graph) -> Graph:
    """Batch norms that are not frozen, as operators that compute the statistics of their batch; dropouts numbered."""
    result, streams = graph.rewritten(()), 0
    for node in graph.nodes:
        if node.op == "batch_norm" and not node.attrs.get("frozen", False):
            channels = graph.shapes[node.output][-1:]
            more = (result.derived(channels), result.derived(channels))
            node = node.replace(op="batch_norm_train", more=more)
        elif node.op == "dropout":
            node = node.with_attrs(stream=streams)
            streams += 1
        result.nodes.append(node)
    return result


def slope_from_output(kind: str, a: float, b: float) -> bool:
    """Whether the slope of an activation can be told from its output alone (relu, sigmoid, ...)."""
    return _core.slope_from_output(kind, a, b)


def _take_residual(add: Node, norm: Node, graph: Graph) -> Node | None:
    if add.op != "binary" or add.attrs["kind"] != "add" or norm.attrs.get("residual", False):
        return None
    a, b = add.inputs
    other = b if a == norm.output else a
    if other == norm.output or graph.shapes[other] != graph.shapes[norm.output]:
        return None
    return norm.with_attrs(residual=True).replace(inputs=(*norm.inputs, other), output=add.output)
