"""The backward pass of a graph: a pure function Graph -> Graph that appends the operators of the gradients.

Only what is needed is computed: the gradient of a tensor exists if a trained parameter comes before it, that of a
parameter if it is trained. Every rule below gets a node of the forward pass and the gradient of its result, and hands
gradients to the tensors it reads. The operators that it appends (all lowered in train/lowering.py; `of` names the
forward operator where several share one, attributes are the forward's):

    input_gradient       dy, sum so far?      kernel        of a conv, depthwise, dense
    kernel_gradient      x, dy                              a total (one for the batch)
    bias_gradient        dy                                 a total
    batch_norm_gradient  dy, x, mean, var     gamma?, beta? more: of gamma, of beta
    layer_norm_gradient  dy, x                gamma?        more: of gamma, of beta
    scale_gradient       dy                                 dy * scale per channel: of a frozen norm, of rescale
    lrn_gradient         dy, x
    softmax_gradient     dy, y
    activation_gradient  dy, x or y
    pool_gradient        dy, index?                         of pool, adaptive_pool, global_pool
    binary_gradient      dy, a, b                           more: of b; wants: which of them
    reduce               dy                                 sums dy over the dimensions that were broadcast
    channel_slice        dy                                 first, count: of a concat along channels
    pad_gradient, resize_gradient dy

The loss operator gives its own gradient (more: dx), times the constant by which it reaches the total loss. Where that
is not a constant (an own loss of several operators), the seed of the backward pass is an input of the graph: for each
pixel, its weight over the number of pixels.

`recompute` trades time for memory: the forward pass is cut into that many parts; what is inside a part is not kept, but
computed again when the backward pass comes to it (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import Unsupported
from ..graph import Graph, Node, Param, Shape, scale_and_shift, value_of
from ..passes.drop_dead import drop_dead
from ..passes.training import depends_on, slope_from_output


@dataclass(frozen=True)
class Gradients:
    """What `differentiate` returns: the graph of both passes, and which of its tensors is what."""

    graph: Graph
    params: dict[Param, list[int]]  # the gradients of each parameter, to be added up (several: a shared layer)
    inputs: dict[int, int]  # of the tensors in wanted_inputs
    weights: dict[int, int]  # inputs: number of a loss -> its pixels' weights, which its values are multiplied by
    seeds: dict[int, int]  # inputs: number of a loss -> its pixels' weights over their number; its values are not


@dataclass(frozen=True)
class Seed:
    """The gradient at a loss: for each pixel its weight, over the number of pixels of the batch, times `scale`."""

    loss: int  # its number
    scale: float


def differentiate(
    graph: Graph,
    losses: Sequence[int],
    wanted: Collection[Param],
    *,
    factors: Sequence[float] | None = None,
    weighted: bool = False,
    recompute: int = 0,
    wanted_inputs: Collection[int] = (),
) -> Gradients:
    """Append the backward pass of the sum over the losses of factor * mean over the batch's pixels.

    graph: a forward pass after passes.training. losses: its tensors of one number per pixel. factors: one for each (1).
    wanted: the parameters whose gradients are needed; wanted_inputs: tensors likewise. weighted: whether pixels have
    weights. recompute: the number of parts (0, 1: keep everything).
    Raises Unsupported for an operator that has no gradient.
    """
    tape = _Tape(graph, losses, wanted, wanted_inputs, weighted)
    for number, loss in enumerate(losses):
        tape.give(loss, Seed(number, 1.0 if factors is None else float(factors[number])))
    edges = [0, *_cuts(graph, tape.active, recompute), len(graph.nodes)]
    for first, last in reversed(list(pairwise(edges))):
        if last < len(graph.nodes):
            tape.compute_again(first, last)
        for index in reversed(range(first, last)):
            tape.backward(index)
    return tape.finished()


class _Tape:
    """The nodes so far, and the gradients that wait for the node that made their tensor."""

    def __init__(
        self,
        graph: Graph,
        losses: Sequence[int],
        wanted: Collection[Param],
        wanted_inputs: Collection[int],
        weighted: bool,
    ):
        self.graph = graph.rewritten(())
        self.shapes = self.graph.shapes
        self.losses = list(losses)
        self.wanted = {id(param) for param in wanted}
        self.wanted_inputs = list(wanted_inputs)
        self.active = depends_on(graph, wanted, wanted_inputs)
        self.nodes = [self._with_positions(node) for node in graph.nodes]  # then what is appended
        self.pending: dict[int, int | Seed] = {}  # the sums of gradients so far
        self.params: dict[Param, list[int]] = {param: [] for param in wanted}
        self.again: dict[int, int] = {}  # tensors that are not kept -> their second computation
        self.weighted = weighted
        self.weights: dict[int, int] = {}
        self.seeds: dict[int, int] = {}

    def _with_positions(self, node: Node) -> Node:
        """A max pooling that gives the positions of its maxima, which its gradient reads."""
        if node.attrs.get("kind") == "max" and node.op != "binary" and node.inputs[0] in self.active:
            return node.replace(more=(self.graph.derived(self.shapes[node.output]),))
        return node

    def finished(self) -> Gradients:
        params = {param: found for param, found in self.params.items() if found}  # the others change no loss
        self.graph.nodes = self.nodes
        inputs = {tensor: self.tensor(self.pending[tensor]) for tensor in self.wanted_inputs}
        self.graph.outputs += [*(t for found in params.values() for t in found), *inputs.values()]
        return Gradients(drop_dead(self.graph), params, inputs, self.weights, self.seeds)

    def backward(self, index: int) -> None:
        """Hand the gradient of a node's result on to what it reads."""
        node = self.nodes[index]
        if node.output not in self.active or node.output not in self.pending:
            return
        rule = _RULES.get(node.op)
        if rule is None:
            raise Unsupported(f"{node.name or node.op}: the operator {node.op!r} has no gradient")
        dy = self.pending[node.output] if node.output in self.wanted_inputs else self.pending.pop(node.output)
        if isinstance(dy, Seed) and node.op not in _CONSTANT:
            dy = self.tensor(dy)
        rule(self, index, node, dy)

    def compute_again(self, first: int, last: int) -> None:
        """Append a second computation of what these nodes make and no later one reads."""
        kept = {t for node in self.nodes[last:] for t in node.inputs} | set(self.graph.outputs) | set(self.losses)
        for node in self.nodes[first:last]:
            if node.attrs.get("in_place", False):  # slices of one buffer are kept as one
                kept.update((node.output, *node.inputs))
        for node in self.nodes[first:last]:
            if node.output not in kept and node.op != "loss":
                inputs = tuple(self.again.get(t, t) for t in node.inputs)
                output, *more = (self.graph.derived(self.shapes[t]) for t in (node.output, *node.more))
                self.nodes.append(node.replace(inputs=inputs, output=output, more=tuple(more)))
                self.again[node.output] = output
                if node.op.endswith("pool"):
                    self.again.update(zip(node.more, more))  # the statistics of norms, which are small, are kept

    # What rules use.

    def saved(self, tensor: int) -> int:
        """A tensor of the forward pass, as the backward pass can read it."""
        return self.again.get(tensor, tensor)

    def wants(self, param: Any) -> bool:
        return id(param) in self.wanted

    def emit(
        self,
        op: str,
        inputs: Sequence[int],
        shapes: Sequence[Shape],
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> list[int]:
        """Append a node that makes tensors of these shapes."""
        output, *more = made = [self.graph.derived(shape) for shape in shapes]
        self.nodes.append(Node(op, tuple(inputs), output, dict(attrs or {}), dict(params or {}), name, tuple(more)))
        return made

    def give(self, tensor: int, gradient: int | Seed) -> None:
        """Add to the gradient of a tensor, if it needs one."""
        if tensor not in self.active:
            return
        before = self.pending.get(tensor)
        if before is None:
            self.pending[tensor] = gradient
        elif isinstance(before, Seed) and isinstance(gradient, Seed) and before.loss == gradient.loss:
            self.pending[tensor] = Seed(before.loss, before.scale + gradient.scale)
        else:
            terms = self.tensor(before), self.tensor(gradient)
            (self.pending[tensor],) = self.emit("binary", terms, [self.shapes[tensor]], {"kind": "add"})

    def so_far(self, tensor: int) -> tuple[int, ...]:
        """Take the gradient of a tensor so far, for an operator that adds to it."""
        before = self.pending.pop(tensor, None)
        return () if before is None else (self.tensor(before),)

    def give_param(self, param: Any, gradient: int) -> None:
        if self.wants(param):
            self.params[param].append(gradient)

    def tensor(self, gradient: int | Seed) -> int:
        """A gradient as a tensor, also where it is only known by its formula."""
        if not isinstance(gradient, Seed):
            return gradient
        if gradient.loss not in self.seeds:
            self.seeds[gradient.loss] = self.graph.input(self.shapes[self.losses[gradient.loss]])
        seed = self.seeds[gradient.loss]
        if gradient.scale == 1:
            return seed
        return self.emit("scale_gradient", (seed,), [self.shapes[seed]], {"scale": gradient.scale})[0]

    def before_activation(self, node: Node, dy: int) -> int:
        """The gradient in front of an activation that was fused into a node."""
        if "activation" not in node.attrs:
            return dy
        kind, a, b = node.attrs["activation"]
        attrs = {"kind": kind, "a": a, "b": b}
        return self.emit(
            "activation_gradient", (dy, self.saved(node.output)), [self.shapes[dy]], attrs, name=node.name
        )[0]


_Rule = Callable[[_Tape, int, Node, Any], None]
_RULES: dict[str, _Rule] = {}
_CONSTANT = ("loss", "rescale", "identity")  # operators whose rules take a Seed


def _rule(*ops: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@_rule("conv", "depthwise", "dense")
def _convolution(tape: _Tape, index: int, node: Node, dy: int) -> None:
    x, kernel, bias = node.inputs[0], node.params["kernel"], node.params.get("bias")
    dy = tape.before_activation(node, dy)
    if node.attrs.get("residual", False):
        tape.give(node.inputs[1], dy)
    attrs = {key: value for key, value in node.attrs.items() if key not in ("activation", "residual")}
    attrs["of"] = node.op
    if tape.wants(bias):
        tape.give_param(bias, tape.emit("bias_gradient", (dy,), [bias.shape], name=node.name)[0])  # type: ignore[union-attr]
    if tape.wants(kernel):
        made = tape.emit("kernel_gradient", (tape.saved(x), dy), [kernel.shape], attrs, {"kernel": kernel}, node.name)
        tape.give_param(kernel, made[0])
    if x in tape.active:
        reads = (dy, *tape.so_far(x))
        made = tape.emit("input_gradient", reads, [tape.shapes[x]], attrs, {"kernel": kernel}, node.name)
        tape.give(x, made[0])


@_rule("batch_norm_train")
def _batch_norm_train(tape: _Tape, index: int, node: Node, dy: int) -> None:
    x, (mean, var) = node.inputs[0], node.more
    attrs = {"eps": node.attrs["eps"]}
    if node.attrs.get("residual", False):
        dy = tape.before_activation(node, dy)
        tape.give(node.inputs[1], dy)
    elif "activation" in node.attrs:
        attrs["activation"] = node.attrs["activation"]  # the operator finds it again from x
    params = {key: node.params[key] for key in ("gamma", "beta") if key in node.params}
    shapes = [tape.shapes[x], tape.shapes[mean], tape.shapes[mean]]
    dx, dgamma, dbeta = tape.emit(
        "batch_norm_gradient", (dy, tape.saved(x), mean, var), shapes, attrs, params, node.name
    )
    tape.give(x, dx)
    tape.give_param(node.params.get("gamma"), dgamma)
    tape.give_param(node.params.get("beta"), dbeta)


@_rule("batch_norm")
def _batch_norm(tape: _Tape, index: int, node: Node, dy: int) -> None:
    """Of a frozen norm, whose parameters are not trained."""
    dy = tape.before_activation(node, dy)
    p = {name: value_of(param) for name, param in node.params.items()}
    scale, _ = scale_and_shift(p["mean"], p["var"], p.get("gamma"), p.get("beta"), node.attrs["eps"])
    tape.give(
        node.inputs[0], tape.emit("scale_gradient", (dy,), [tape.shapes[dy]], {"scale": scale}, name=node.name)[0]
    )


@_rule("rescale")
def _rescale(tape: _Tape, index: int, node: Node, dy: int | Seed) -> None:
    scale = node.attrs.get("scale", 1.0)
    if isinstance(dy, Seed) and isinstance(scale, (int, float)):
        tape.give(node.inputs[0], Seed(dy.loss, dy.scale * scale))
        return
    dy = tape.tensor(dy)
    tape.give(
        node.inputs[0], tape.emit("scale_gradient", (dy,), [tape.shapes[dy]], {"scale": scale}, name=node.name)[0]
    )


@_rule("layer_norm")
def _layer_norm(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    channels = tape.shapes[x][-1:]
    params = {key: node.params[key] for key in ("gamma",) if key in node.params}
    shapes = [tape.shapes[x], channels, channels]
    made = tape.emit("layer_norm_gradient", (dy, tape.saved(x)), shapes, {"eps": node.attrs["eps"]}, params, node.name)
    tape.give(x, made[0])
    tape.give_param(node.params.get("gamma"), made[1])
    tape.give_param(node.params.get("beta"), made[2])


@_rule("activation")
def _activation(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    kind, a, b = node.attrs["kind"], node.attrs.get("a", 0.0), node.attrs.get("b", 0.0)
    saved = tape.saved(node.output if slope_from_output(kind, a, b) else x)
    attrs = {"kind": kind, "a": a, "b": b}
    tape.give(x, tape.emit("activation_gradient", (dy, saved), [tape.shapes[x]], attrs, name=node.name)[0])


@_rule("lrn")
def _lrn(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    tape.give(x, tape.emit("lrn_gradient", (dy, tape.saved(x)), [tape.shapes[x]], node.attrs, name=node.name)[0])


@_rule("softmax")
def _softmax(tape: _Tape, index: int, node: Node, dy: int) -> None:
    reads = (dy, tape.saved(node.output))
    made = tape.emit("softmax_gradient", reads, [tape.shapes[node.output]], node.attrs, name=node.name)
    tape.give(node.inputs[0], made[0])


@_rule("pool", "adaptive_pool", "global_pool")
def _pool(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    reads: tuple[int, ...] = (dy,)
    if node.attrs["kind"] == "max":
        reads = (dy, tape.saved(node.more[0]))
    attrs = {**node.attrs, "of": node.op}
    tape.give(x, tape.emit("pool_gradient", reads, [tape.shapes[x]], attrs, name=node.name)[0])


@_rule("binary")
def _binary(tape: _Tape, index: int, node: Node, dy: int) -> None:
    a, b = node.inputs
    dy = tape.before_activation(node, dy)
    kind, shape = node.attrs["kind"], tape.shapes[node.output]
    if kind == "add":
        for tensor in node.inputs:
            if tensor in tape.active:
                given = dy
                if tape.shapes[tensor] != shape:
                    (given,) = tape.emit("reduce", (dy,), [tape.shapes[tensor]], name=node.name)
                tape.give(tensor, given)
        return
    wants = (a in tape.active, b in tape.active)
    reads = (dy, tape.saved(a), tape.saved(b))
    shapes = [tape.shapes[a], tape.shapes[b]]
    made = tape.emit("binary_gradient", reads, shapes, {"kind": kind, "wants": wants}, name=node.name)
    for tensor, gradient in zip((a, b), made):
        tape.give(tensor, gradient)


@_rule("concat")
def _concat(tape: _Tape, index: int, node: Node, dy: int) -> None:
    rank = len(tape.shapes[node.output])
    axis, first = node.attrs.get("axis", -1) % rank, 0
    total = tape.shapes[node.output][axis]
    for tensor in node.inputs:
        shape = tape.shapes[tensor]
        if tensor in tape.active:
            if axis == rank - 1:
                attrs = {"first": first, "count": shape[axis]}
                made = tape.emit("channel_slice", (dy,), [shape], attrs, name=node.name)
            else:
                edges = (-first, first + shape[axis] - total)
                padding = tuple(edges if i == axis else (0, 0) for i in range(rank))
                made = tape.emit("pad", (dy,), [shape], {"padding": padding}, name=node.name)
            tape.give(tensor, made[0])
        first += shape[axis]


@_rule("pad")
def _pad(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    tape.give(x, tape.emit("pad_gradient", (dy,), [tape.shapes[x]], node.attrs, name=node.name)[0])


@_rule("resize")
def _resize(tape: _Tape, index: int, node: Node, dy: int) -> None:
    (x,) = node.inputs
    tape.give(x, tape.emit("resize_gradient", (dy,), [tape.shapes[x]], node.attrs, name=node.name)[0])


@_rule("reshape")
def _reshape(tape: _Tape, index: int, node: Node, dy: int) -> None:
    shape = tape.shapes[node.inputs[0]]
    tape.give(node.inputs[0], tape.emit("reshape", (dy,), [shape], {"shape": shape}, name=node.name)[0])


@_rule("transpose")
def _transpose(tape: _Tape, index: int, node: Node, dy: int) -> None:
    perm = tuple(node.attrs["perm"])
    back = tuple(perm.index(axis) for axis in range(len(perm)))
    made = tape.emit("transpose", (dy,), [tape.shapes[node.inputs[0]]], {"perm": back}, name=node.name)
    tape.give(node.inputs[0], made[0])


@_rule("dropout")
def _dropout(tape: _Tape, index: int, node: Node, dy: int) -> None:
    made = tape.emit("dropout", (dy,), [tape.shapes[node.output]], node.attrs, name=node.name)
    tape.give(node.inputs[0], made[0])


@_rule("identity")
def _identity(tape: _Tape, index: int, node: Node, dy: int | Seed) -> None:
    tape.give(node.inputs[0], dy)


@_rule("loss")
def _loss(tape: _Tape, index: int, node: Node, dy: int | Seed) -> None:
    x, target = node.inputs
    shape = tape.shapes[x]
    dx = tape.graph.derived(shape)
    if isinstance(dy, Seed) and (not tape.weighted or node.output == tape.losses[dy.loss]):
        weights: tuple[int, ...] = ()
        if tape.weighted:
            weights = (tape.graph.input(tape.shapes[node.output]),)
            tape.weights[dy.loss] = weights[0]
        attrs = {**node.attrs, "scale": dy.scale, "mean": True}
        tape.nodes[index] = node.replace(inputs=(x, target, *weights), attrs=attrs, more=(dx,))
        tape.give(x, dx)
    else:
        dy = tape.tensor(dy)
        tape.nodes[index] = node.replace(attrs={**node.attrs, "scale": 1.0, "mean": False}, more=(dx,))
        tape.give(x, tape.emit("binary", (dx, dy), [shape], {"kind": "mul"}, name=node.name)[0])


def _cuts(graph: Graph, active: set[int], parts: int) -> list[int]:
    """Where to cut the forward pass into parts: before these nodes, where one tensor alone is handed on, so that the
    parts have about the same bytes.
    """
    if parts < 2:
        return []
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        last.update(dict.fromkeys(node.inputs, index))
    made, candidates = 0, []
    alive: set[int] = set()
    for index, node in enumerate(graph.nodes):
        alive = {t for t in alive if last.get(t, -1) >= index}
        if index and len(alive) == 1:
            candidates.append((made, index))
        if node.output in active:
            alive.add(node.output)
            made += math.prod(graph.shapes[node.output])
    cuts = set()
    for part in range(1, parts):
        if candidates:
            cuts.add(min(candidates, key=lambda at: abs(at[0] - made * part / parts))[1])
    return sorted(cuts)
