"""A convkern graph as an ONNX file: what ONNX Runtime and OpenVINO are given, for single layers and whole models.

Channels first, as ONNX has it, with a fixed batch; the same operators on the same weights, none of them fused: that is
the runtimes' business. Where our meaning has no ONNX operator (an average that counts the padding but not what
ceil_mode hangs over it) there are two; where there is none, Unsupported says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import Unsupported
from ..graph import Graph, Node, pool_size, value_of

OPSET, IR_VERSION = 20, 9  # the first with Gelu, for runtimes of 2024 and later

Pairs = Sequence[tuple[int, int]]


def export(graph: Graph, n: int) -> bytes:
    """The serialised model for batches of n: input "x" (n,C,H,W), one output.

    Raises Unsupported for an operator, or a setting of one, that ONNX does not have, and for several inputs or outputs.
    """
    from onnx import TensorProto, helper

    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise Unsupported(f"got a model of {counts}, want one of each")
    writer = _Writer(graph, n)
    result = writer.add("Identity", graph.outputs[0])  # so that a graph without nodes has an output of its own
    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, *_channels_first(graph.shapes[tensor])])
        for name, tensor in (("x", graph.inputs[0]), (result, graph.outputs[0]))
    )
    onnx_graph = helper.make_graph(writer.nodes, "convkern", [inputs], [outputs], writer.constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(onnx_graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()


def _channels_first(shape: Sequence[int]) -> list[int]:
    return [shape[-1], *shape[:-1]]


class _Writer:
    """Walks the nodes once; each method named after an operator of graph.py returns the name of its result."""

    def __init__(self, graph: Graph, n: int):
        self.graph, self.n = graph, n
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names = {graph.inputs[0]: "x"}
        for node in graph.nodes:
            make: Callable[[Node], str] | None = getattr(self, node.op, None)
            if make is None:
                raise Unsupported(f"{node.name}: no ONNX peer for the operator {node.op!r}")
            self.names[node.output] = make(node)

    def add(self, op: str, *inputs: int | str | np.ndarray | None, **attrs: Any) -> str:
        """Append an ONNX operator. Inputs: a tensor of the graph, a result, a constant, or nothing."""
        from onnx import helper

        names = [self._name(x) for x in inputs]
        output = f"{op}_{len(self.nodes)}"
        attrs = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(helper.make_node(op, names, [output], **attrs))
        return output

    def _name(self, x: int | str | np.ndarray | None) -> str:
        from onnx import numpy_helper

        if isinstance(x, np.ndarray):
            name = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(x), name))
            return name
        return self.names[x] if isinstance(x, int) else x or ""

    def shape(self, node: Node) -> tuple[int, ...]:
        return self.graph.shapes[node.inputs[0]]

    def param(self, node: Node, key: str, default: float | None = None) -> np.ndarray | None:
        """A parameter as float32; if the node lacks it nothing or, with a default, that number for every channel."""
        value = node.params.get(key)
        if value is None:
            return None if default is None else np.full(self.shape(node)[-1], default, np.float32)
        return np.asarray(value_of(value), np.float32)

    # Operators, by their names in graph.py

    def conv(self, node: Node) -> str:
        attrs, rank = node.attrs, len(self.shape(node)) - 1
        kernel = self.param(node, "kernel")
        assert kernel is not None
        groups = attrs.get("groups", 1)
        if node.op == "depthwise":
            groups = self.shape(node)[-1]
            kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)  # (...,C,m) -> (...,1,C*m)
        transposed = bool(attrs.get("transposed"))
        return self.add(
            "ConvTranspose" if transposed else "Conv",
            node.inputs[0],
            np.moveaxis(kernel, (-1, -2), (0, 1)),
            *_given(self.param(node, "bias")),
            kernel_shape=list(kernel.shape[:-2]),
            strides=list(attrs.get("strides") or (1,) * rank),
            pads=_pads(attrs.get("padding") or ((0, 0),) * rank),
            dilations=list(attrs.get("dilation") or (1,) * rank),
            group=groups,
            output_padding=list(attrs.get("output_padding") or (0,) * rank) if transposed else None,
        )

    depthwise = conv

    def dense(self, node: Node) -> str:
        kernel, bias = self.param(node, "kernel"), self.param(node, "bias")
        assert kernel is not None
        rank = len(self.shape(node)) - 1
        if rank == 0:
            return self.add("Gemm", node.inputs[0], kernel, *_given(bias))
        return self.add("Conv", node.inputs[0], kernel.T.reshape(*kernel.T.shape, *(1,) * rank), *_given(bias))

    def pool(self, node: Node) -> str:
        attrs, shape = node.attrs, self.shape(node)
        window = tuple(attrs["window"])
        strides = tuple(attrs.get("strides") or window)
        dilation = tuple(attrs.get("dilation") or (1,) * len(window))
        padding = tuple(attrs.get("padding") or ((0, 0),) * len(window))
        # How far the last window of ceil_mode reaches beyond the padding: as more padding, which no runtime reads
        # differently.
        over = [0] * len(window)
        if attrs.get("ceil_mode", False):
            for i, (size, r, s, (lo, hi), d) in enumerate(zip(shape, window, strides, padding, dilation)):
                out = pool_size(size, r, s, lo, hi, d, True)
                over[i] = max(0, (out - 1) * s + d * (r - 1) + 1 - size - lo - hi)
        wider = [(lo, hi + extra) for (lo, hi), extra in zip(padding, over)]
        options = dict(kernel_shape=list(window), strides=list(strides))
        if attrs["kind"] == "max":
            return self.add("MaxPool", node.inputs[0], pads=_pads(wider), dilations=list(dilation), **options)
        divisor, padded = attrs.get("divisor"), any(map(any, padding))
        if divisor:  # the sum over the window, as window size x an average that counts everything
            y = self.add("AveragePool", node.inputs[0], pads=_pads(wider), count_include_pad=1, **options)
            return self.add("Mul", y, np.array(math.prod(window) / divisor, np.float32))
        if not attrs.get("count_include_pad", True):
            return self.add("AveragePool", node.inputs[0], pads=_pads(wider), count_include_pad=0, **options)
        if padded and any(over):  # the padding counts, what hangs over it does not
            x = self.zeros_around(node.inputs[0], [(0, 0), *padding])
            pads = _pads([(0, extra) for extra in over])
            return self.add("AveragePool", x, pads=pads, count_include_pad=0, **options)
        pads = _pads(wider)
        return self.add("AveragePool", node.inputs[0], pads=pads, count_include_pad=int(padded), **options)

    def adaptive_pool(self, node: Node) -> str:
        *sizes, _ = self.shape(node)
        out = tuple(node.attrs["out"])
        kind = {"max": "Max", "avg": "Average"}[node.attrs["kind"]]
        if out == tuple(sizes):
            return self.names[node.inputs[0]]
        if set(out) == {1}:
            return self.add(f"Global{kind}Pool", node.inputs[0])
        if any(size % p for size, p in zip(sizes, out)):
            raise Unsupported(f"{node.name}: pooling {tuple(sizes)} to {out} pixels has windows of several sizes")
        window = [size // p for size, p in zip(sizes, out)]
        return self.add(f"{kind}Pool", node.inputs[0], kernel_shape=window, strides=window)

    def global_pool(self, node: Node) -> str:
        kind = {"max": "Max", "avg": "Average"}[node.attrs["kind"]]
        y = self.add(f"Global{kind}Pool", node.inputs[0])
        return y if node.attrs.get("keepdims") else self.add("Flatten", y, axis=1)

    def batch_norm(self, node: Node) -> str:
        gamma, beta = self.param(node, "gamma", 1.0), self.param(node, "beta", 0.0)
        mean, var = self.param(node, "mean"), self.param(node, "var")
        return self.add("BatchNormalization", node.inputs[0], gamma, beta, mean, var, epsilon=node.attrs["eps"])

    def layer_norm(self, node: Node) -> str:
        gamma, beta = self.param(node, "gamma", 1.0), self.param(node, "beta", 0.0)
        x = self.channels_last(node.inputs[0], len(self.shape(node)))
        y = self.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=node.attrs["eps"])
        return self.back(y, len(self.shape(node)))

    def lrn(self, node: Node) -> str:
        size, alpha, beta, k = (node.attrs[key] for key in ("size", "alpha", "beta", "k"))
        if size % 2 == 0:
            raise Unsupported(f"{node.name}: a window of {size} channels; ONNX puts an even one elsewhere")
        return self.add("LRN", node.inputs[0], size=size, alpha=float(alpha), beta=float(beta), bias=float(k))

    def softmax(self, node: Node) -> str:
        return self.add("LogSoftmax" if node.attrs.get("log") else "Softmax", node.inputs[0], axis=1)

    def activation(self, node: Node) -> str:
        x, kind = node.inputs[0], node.attrs["kind"]
        a, b = float(node.attrs.get("a", 0.0)), float(node.attrs.get("b", 0.0))
        if kind == "relu" or (kind == "clamp" and (a, b) == (0.0, math.inf)):
            return self.add("Relu", x)
        if kind in ("relu6", "clamp"):
            low, high = (0.0, 6.0) if kind == "relu6" else (a, b)
            return self.add("Clip", x, np.array(low, np.float32), np.array(high, np.float32))
        if kind == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if kind == "softplus":  # log(1 + exp(a x)) / a; above its threshold b PyTorch's differs by less than rounding
            y = self.add("Softplus", self.add("Mul", x, np.array(a, np.float32)))
            return self.add("Div", y, np.array(a, np.float32))
        attrs: dict[str, dict[str, Any]] = {
            "hard_sigmoid": dict(alpha=1 / 6, beta=0.5),
            "elu": dict(alpha=a),
            "leaky_relu": dict(alpha=a),
            "gelu_tanh": dict(approximate="tanh"),
        }
        return self.names[x] if kind == "none" else self.add(_ACTIVATIONS[kind], x, **attrs.get(kind, {}))

    def binary(self, node: Node) -> str:
        rank = len(self.graph.shapes[node.output])
        operands: list[int | str] = []
        for x in node.inputs:
            shape = self.graph.shapes[x]
            missing = (1,) * (rank - len(shape))  # in front, which is behind the channels here
            sizes = np.array([self.n, shape[-1], *missing, *shape[:-1]], np.int64)
            operands.append(self.add("Reshape", x, sizes) if missing else x)
        return self.add(node.attrs["kind"].capitalize(), *operands)

    def concat(self, node: Node) -> str:
        rank = len(self.graph.shapes[node.output])
        axis = node.attrs.get("axis", -1) % rank
        return self.add("Concat", *node.inputs, axis=1 if axis == rank - 1 else axis + 2)

    def pad(self, node: Node) -> str:
        *spatial, channels = node.attrs["padding"]
        mode = node.attrs.get("mode", "constant")
        pads = [(0, 0), channels, *spatial]
        if mode == "constant":
            return self.zeros_around(node.inputs[0], pads[1:], float(node.attrs.get("value", 0.0)))
        if mode == "circular":  # Pad's mode "wrap" is not in OpenVINO
            return self.wrapped(node, pads)
        mode = {"reflect": "reflect", "replicate": "edge"}[mode]
        return self.add("Pad", node.inputs[0], np.array(_pads(pads), np.int64), mode=mode)

    def wrapped(self, node: Node, pads: Pairs) -> str:
        x: int | str = node.inputs[0]
        for axis, ((lo, hi), size) in enumerate(zip(pads, [self.n, *_channels_first(self.shape(node))])):
            if min(lo, hi) < 0:
                raise Unsupported(f"{node.name}: circular padding by {(lo, hi)}, want nothing negative")
            ends = [np.array([end], np.int64) for end in (size - lo, size, 0, hi)]
            before = self.add("Slice", x, ends[0], ends[1], np.array([axis], np.int64)) if lo else None
            after = self.add("Slice", x, ends[2], ends[3], np.array([axis], np.int64)) if hi else None
            if lo or hi:
                x = self.add("Concat", *(part for part in (before, x, after) if part is not None), axis=axis)
        return self.names[x] if isinstance(x, int) else x

    def resize(self, node: Node) -> str:
        attrs = node.attrs
        if attrs.get("scales"):
            raise Unsupported(f"{node.name}: a resize with given scales has no ONNX peer")
        mode, corners = attrs.get("mode", "nearest"), attrs.get("align_corners", False)
        settings: dict[str, Any] = {
            "nearest": dict(coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
            "nearest-exact": dict(coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil"),
        }.get(mode, dict(coordinate_transformation_mode="align_corners" if corners else "half_pixel"))
        if mode == "cubic":
            settings["cubic_coeff_a"] = -0.75
        sizes = np.array([self.n, self.shape(node)[-1], *attrs["out"]], np.int64)
        return self.add("Resize", node.inputs[0], None, None, sizes, mode=mode.partition("-")[0], **settings)

    def reshape(self, node: Node) -> str:
        """The order of elements is ours, channels last: transposed before and after where that makes a difference."""
        before, after = self.shape(node), self.graph.shapes[node.output]
        x: int | str = node.inputs[0]
        if math.prod(before[:-1]) > 1:
            x = self.channels_last(x, len(before))
        if math.prod(after[:-1]) == 1:
            return self.add("Reshape", x, np.array([self.n, *_channels_first(after)], np.int64))
        return self.back(self.add("Reshape", x, np.array([self.n, *after], np.int64)), len(after))

    def transpose(self, node: Node) -> str:
        rank = len(self.shape(node))
        to_first = [0, rank, *range(1, rank)]
        perm = [0, *(axis + 1 for axis in node.attrs["perm"])]  # on channels-last arrays
        from_first = [0, *range(2, rank + 1), 1]
        return self.add("Transpose", node.inputs[0], perm=[from_first[perm[axis]] for axis in to_first])

    def rescale(self, node: Node) -> str:
        rank = len(self.shape(node))
        scale, offset = (
            np.asarray(node.attrs.get(key, default), np.float32).reshape(-1, *(1,) * (rank - 1))
            for key, default in (("scale", 1.0), ("offset", 0.0))
        )
        return self.add("Add", self.add("Mul", node.inputs[0], scale), offset)

    def identity(self, node: Node) -> str:
        return self.names[node.inputs[0]]

    dropout = identity

    # What several of them need

    def channels_last(self, x: int | str, rank: int) -> str:
        return self.add("Transpose", x, perm=[0, *range(2, rank + 1), 1])

    def back(self, x: str, rank: int) -> str:
        return self.add("Transpose", x, perm=[0, rank, *range(1, rank)])

    def zeros_around(self, x: int | str, pads: Pairs, value: float = 0.0) -> str:
        """Constant padding: (lo, hi) of the channels and of each spatial dimension."""
        return self.add("Pad", x, np.array(_pads([(0, 0), *pads]), np.int64), np.array(value, np.float32))


_ACTIVATIONS = {
    "sigmoid": "Sigmoid",
    "hard_swish": "HardSwish",
    "hard_sigmoid": "HardSigmoid",
    "gelu": "Gelu",
    "gelu_tanh": "Gelu",
    "tanh": "Tanh",
    "elu": "Elu",
    "leaky_relu": "LeakyRelu",
    "exp": "Exp",
}


def _pads(pairs: Pairs) -> list[int]:
    """ONNX' order: all the beginnings, then all the ends."""
    return [lo for lo, _ in pairs] + [hi for _, hi in pairs]


def _given(value: np.ndarray | None) -> tuple[np.ndarray, ...]:
    return () if value is None else (value,)
