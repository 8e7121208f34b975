"""A convkern graph executed by PyTorch, operator by operator: the peer for whole models.

The same operators on the same weights as ours, called as torch.nn.functional has them, in place where the
published models are (activations and residual adds), channels first or channels last in memory. There is no nn.Module
around them, which only helps PyTorch. So every architecture has its peer without torchvision, and the two results can
be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import Unsupported
from ..graph import Graph, Node, value_of

Op = Callable[..., Any]
Maker = Callable[[np.ndarray, Any], Any]  # from values and the parameter whose they are to a tensor


class TorchGraph:
    """Calls a graph of one output on an (N,C,H,W) tensor (or (N,C,L), (N,C,D,H,W), (N,F))."""

    makers: Mapping[str, Callable[[Graph, Node, Maker, bool], Op]]

    def __init__(self, graph: Graph, memory_format: torch.memory_format = torch.contiguous_format):
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise Unsupported(f"got a model of {counts}, want one of each")
        self.memory_format = memory_format
        self.source, self.result = graph.inputs[0], graph.outputs[0]
        uses = graph.uses()
        self.steps: list[tuple[Op, tuple[int, ...], int]] = []
        writable = set()  # tensors that hold memory of their own, read once: an activation may overwrite them
        last = {tensor: node.output for node in graph.nodes for tensor in node.inputs}
        for node in graph.nodes:
            make = self.makers.get(node.op)
            if make is None:
                raise Unsupported(f"{node.name}: no PyTorch peer for the operator {node.op!r}")
            free = node.inputs[0] in writable and uses[node.inputs[0]] == 1
            self.steps.append((make(graph, node, self._tensor, free), node.inputs, node.output))
            if node.op not in ("reshape", "transpose", "dropout", "identity"):
                writable.add(node.output)
        self.dead = [[t for t in inputs if last[t] == output and t != self.result] for _, inputs, output in self.steps]

    def _tensor(self, array: np.ndarray, param: Any) -> Any:
        """A parameter's values, laid out as PyTorch wants them, as a tensor."""
        tensor = torch.from_numpy(np.array(array))  # a copy: parameters are read-only
        return tensor.contiguous(memory_format=self.memory_format) if tensor.ndim == 4 else tensor

    def __call__(self, x: Any) -> Any:
        values = {self.source: x}
        for (op, inputs, output), dead in zip(self.steps, self.dead):
            values[output] = op(*(values[i] for i in inputs))
            for tensor in dead:
                values.pop(tensor, None)
        return values[self.result]

    def traced(self) -> torch.fx.GraphModule:
        """The same as a module that torch.compile takes whole: the weights are its buffers, which freezing folds."""
        return torch.fx.symbolic_trace(lambda x: self(x))


def _params(node: Node) -> Mapping[str, np.ndarray]:
    return {key: value_of(p) for key, p in node.params.items() if p is not None}


def _optional(tensor: Maker, node: Node, key: str) -> Any:
    param = node.params.get(key)
    return None if param is None else tensor(value_of(param), param)


def _padding(node: Node, rank: int) -> tuple[tuple[int, ...], list[int] | None]:
    """Symmetric padding for the operator itself, or else what F.pad has to do before it."""
    pairs = node.attrs.get("padding") or ((0, 0),) * rank
    if all(lo == hi for lo, hi in pairs):
        return tuple(lo for lo, _ in pairs), None
    return (0,) * rank, [size for pair in reversed(pairs) for size in pair]


def _conv(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    params, attrs = _params(node), node.attrs
    kernel, shape = params["kernel"], graph.shapes[node.inputs[0]]
    rank, groups = len(shape) - 1, attrs.get("groups", 1)
    if node.op == "depthwise":
        groups = shape[-1]
        kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)  # (...,C,m) -> (...,1,C*m)
    weight = tensor(np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))), node.params["kernel"])
    bias = _optional(tensor, node, "bias")
    pads, before = _padding(node, rank)
    strides, dilation = attrs.get("strides") or (1,) * rank, attrs.get("dilation") or (1,) * rank
    if attrs.get("transposed"):
        if before:
            raise Unsupported(f"{node.name}: a transposed convolution with asymmetric padding has no PyTorch peer")
        extra = attrs.get("output_padding") or (0,) * rank
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return lambda x: transposed(x, weight, bias, strides, pads, extra, groups, dilation)
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if before:
        return lambda x: conv(F.pad(x, before), weight, bias, strides, 0, dilation, groups)
    return lambda x: conv(x, weight, bias, strides, pads, dilation, groups)


def _dense(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    kernel = node.params["kernel"]
    weight, bias = tensor(np.ascontiguousarray(value_of(kernel).T), kernel), _optional(tensor, node, "bias")
    if len(graph.shapes[node.inputs[0]]) == 1:
        return lambda x: F.linear(x, weight, bias)
    return lambda x: F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def _pool(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    attrs, rank = node.attrs, len(graph.shapes[node.inputs[0]]) - 1
    window, ceil_mode = attrs["window"], attrs.get("ceil_mode", False)
    strides = attrs.get("strides") or window
    pads, before = _padding(node, rank)
    if attrs["kind"] == "max":
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        dilation = attrs.get("dilation") or (1,) * rank
        if before:
            return lambda x: pool(F.pad(x, before, value=-torch.inf), window, strides, 0, dilation, ceil_mode)
        return lambda x: pool(x, window, strides, pads, dilation, ceil_mode)
    include, divisor = attrs.get("count_include_pad", True), attrs.get("divisor") or None
    if before and not include:
        raise Unsupported(f"{node.name}: an average that leaves out asymmetric padding has no PyTorch peer")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    options = (divisor,) if rank > 1 else ()
    if before:
        return lambda x: average(F.pad(x, before), window, strides, 0, ceil_mode, True, *options)
    return lambda x: average(x, window, strides, pads, ceil_mode, include, *options)


def _adaptive_pool(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    rank = len(graph.shapes[node.inputs[0]]) - 1
    pools: dict[str, tuple[Op, ...]] = {
        "max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        "avg": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    }
    pool = pools[node.attrs["kind"]][rank - 1]
    if node.op == "adaptive_pool":
        out = tuple(node.attrs["out"])
        return lambda x: pool(x, out)
    if node.attrs.get("keepdims"):
        return lambda x: pool(x, 1)
    return lambda x: pool(x, 1).flatten(1)


def _batch_norm(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    eps = node.attrs["eps"]
    mean, var, gamma, beta = (_optional(tensor, node, key) for key in ("mean", "var", "gamma", "beta"))
    return lambda x: F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)


def _layer_norm(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    eps, shape = node.attrs["eps"], graph.shapes[node.inputs[0]][-1:]
    gamma, beta = _optional(tensor, node, "gamma"), _optional(tensor, node, "beta")
    return lambda x: F.layer_norm(x.movedim(1, -1), shape, gamma, beta, eps).movedim(-1, 1)


def _activation(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    a, b = node.attrs.get("a", 0.0), node.attrs.get("b", 0.0)
    if node.attrs["kind"] == "clamp" and b == np.inf and a == 0:
        return lambda x: F.relu(x, inplace=free)
    ops: dict[str, Op] = {
        "none": lambda x: x,
        "relu": lambda x: F.relu(x, inplace=free),
        "relu6": lambda x: F.hardtanh(x, 0.0, 6.0, inplace=free),
        "clamp": lambda x: F.hardtanh(x, a, b, inplace=free),
        "silu": lambda x: F.silu(x, inplace=free),
        "sigmoid": lambda x: x.sigmoid_() if free else x.sigmoid(),
        "hard_swish": lambda x: F.hardswish(x, inplace=free),
        "hard_sigmoid": lambda x: F.hardsigmoid(x, inplace=free),
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "tanh": torch.tanh,
        "elu": lambda x: F.elu(x, a, inplace=free),
        "leaky_relu": lambda x: F.leaky_relu(x, a, inplace=free),
        "softplus": lambda x: F.softplus(x, a, b),
        "exp": torch.exp,
    }
    return ops[node.attrs["kind"]]


def _binary(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    left, right = (graph.shapes[i] for i in node.inputs)
    if node.attrs["kind"] == "add" and free and left == right:
        return lambda a, b: a.add_(b)
    rank = len(graph.shapes[node.output])

    def ranked(x: Any) -> Any:  # sizes of one in front, which is behind the channels here
        return x[(slice(None), slice(None), *(None,) * (rank + 1 - x.ndim))]

    ops: dict[str, Op] = dict(
        add=torch.add, sub=torch.sub, mul=torch.mul, div=torch.div, max=torch.maximum, min=torch.minimum
    )
    op = ops[node.attrs["kind"]]
    return op if len(left) == len(right) else lambda a, b: op(ranked(a), ranked(b))


def _axis(rank: int, axis: int) -> int:
    """An axis of a per-image, channels-last shape as an axis of the batched, channels-first tensor."""
    axis %= rank
    return 1 if axis == rank - 1 else axis + 2


def _concat(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    axis = _axis(len(graph.shapes[node.output]), node.attrs.get("axis", -1))
    return lambda *xs: torch.cat(xs, axis)


def _pad(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    *spatial, channels = node.attrs["padding"]
    mode, value = node.attrs.get("mode", "constant"), node.attrs.get("value", 0.0)
    pads = [size for pair in reversed([channels, *spatial]) for size in pair]
    if mode == "constant":
        return lambda x: F.pad(x, pads, value=value)
    if any(channels):
        raise Unsupported(f"{node.name}: {mode} padding of channels has no PyTorch peer")
    return lambda x: F.pad(x, pads[:-2], mode=mode)


def _resize(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    out, mode, rank = tuple(node.attrs["out"]), node.attrs.get("mode", "nearest"), len(graph.shapes[node.inputs[0]]) - 1
    if node.attrs.get("scales"):
        raise Unsupported(f"{node.name}: a resize with given scales has no PyTorch peer")
    corners = node.attrs.get("align_corners", False)
    if mode.startswith("nearest"):
        return lambda x: F.interpolate(x, out, mode=mode)
    mode = {"linear": ("linear", "bilinear", "trilinear")[rank - 1], "cubic": "bicubic"}[mode]
    return lambda x: F.interpolate(x, out, mode=mode, align_corners=corners)


def _reshape(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    shape = graph.shapes[node.output]
    flat_in, flat_out = len(graph.shapes[node.inputs[0]]) == 1, len(shape) == 1

    def reshape(x: Any) -> Any:  # the order of elements is ours: channels last
        y = (x if flat_in else x.movedim(1, -1)).reshape(x.shape[0], *shape)
        return y if flat_out else y.movedim(-1, 1)

    return reshape


def _transpose(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    perm = [0, *(i + 1 for i in node.attrs["perm"])]
    return lambda x: x.movedim(1, -1).permute(perm).movedim(-1, 1)


def _rescale(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    rank = len(graph.shapes[node.output])

    def per_channel(value: Any) -> Any:
        array = np.asarray(value, np.float32)
        return torch.from_numpy(array.reshape(-1, *(1,) * (rank - 1))) if array.size > 1 else float(array.reshape(()))

    scale, offset = per_channel(node.attrs.get("scale", 1.0)), per_channel(node.attrs.get("offset", 0.0))
    return lambda x: x * scale + offset


def _lrn(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    size, alpha, beta, k = (node.attrs[key] for key in ("size", "alpha", "beta", "k"))
    return lambda x: F.local_response_norm(x, size, alpha, beta, k)


def _softmax(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    return (lambda x: F.log_softmax(x, 1)) if node.attrs.get("log") else (lambda x: F.softmax(x, 1))


def _identity(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    return lambda x: x


_MAKERS: dict[str, Callable[[Graph, Node, Maker, bool], Op]] = {
    "conv": _conv,
    "depthwise": _conv,
    "dense": _dense,
    "pool": _pool,
    "adaptive_pool": _adaptive_pool,
    "global_pool": _adaptive_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "lrn": _lrn,
    "softmax": _softmax,
    "activation": _activation,
    "binary": _binary,
    "concat": _concat,
    "pad": _pad,
    "resize": _resize,
    "reshape": _reshape,
    "transpose": _transpose,
    "rescale": _rescale,
    "dropout": _identity,
    "identity": _identity,
}
TorchGraph.makers = _MAKERS
