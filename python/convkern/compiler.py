"""From a graph to a plan: one step of the compiled core for each node that is left after the passes.

Natural shapes become the core's (D,H,W,C) by ones in front: (F,) is (1,1,1,F), (H,W,C) is (1,H,W,C). Dense layers
are 1x1 convolutions, depthwise ones are grouped, flatten and reshape are views, and a concat that the passes marked
`in_place` is a buffer whose slices the producers write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _core, tuning
from . import passes as all_passes
from .arrays import asarray
from .errors import DTypeError, ShapeError, Unsupported
from .graph import Graph, Node, Param, Shape, pool_size, scale_and_shift, value_of

# What a model keeps between its plans: (kind of layout, identities of the arrays that went in) -> (their versions, the
# arrays themselves so that an identity stays theirs, the parameter with its packed forms).
ParameterCache = dict[tuple[Any, ...], tuple[tuple[int, ...], tuple[Any, ...], _core.Parameter]]

Triple = tuple[int, int, int]

CPU_PRECISIONS = ("float32", "bf16")


class CompiledPlan:
    """A plan with the natural shapes of its inputs and outputs. Calls may run at the same time."""

    def __init__(self, plan: Any, graph: Graph, dtype: str, parameters: list[_core.Parameter]):
        self.graph = graph  # after the passes
        self.dtype = dtype  # of the arrays
        self.input_shapes = [graph.shapes[tensor] for tensor in graph.inputs]
        self.output_shapes = [graph.shapes[tensor] for tensor in graph.outputs]
        self._plan = plan  # a _core.Plan or a device.Runner
        self._device: int | None = getattr(plan, "device", None)
        self._parameters = parameters

    def run(self, inputs: Sequence[Any], threads: int = 0) -> list[np.ndarray]:
        """Outputs (N,*shape) for inputs (N,*shape), any N; new arrays. On a device they are DeviceArrays, and the call
        returns when the work is queued.

        Raises DTypeError and ShapeError with what came and what was wanted.
        """
        arrays = self._views(inputs)
        results = self._plan.run(arrays, threads)
        return [y.reshape(y.shape[:1] + shape) for y, shape in zip(results, self.output_shapes)]

    def profile(self, inputs: Sequence[Any], threads: int = 0, repeat: int = 1) -> list[float]:
        """Seconds of each step, the best of `repeat` runs."""
        return self._plan.profile(self._views(inputs), threads, repeat)

    def steps(self) -> list[dict[str, Any]]:
        """What each step is, which kernel serves it and why; see `convkern explain`."""
        return self._plan.steps()

    @property
    def arena_bytes(self) -> int:
        """Memory for the tensors between the steps, per image."""
        return self._plan.arena_bytes

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights this plan uses (shared with the other plans of the model)."""
        if self._device is not None:
            return self._plan.packed_bytes
        return sum(parameter.packed_bytes for parameter in self._parameters)

    def _views(self, inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) != len(self.input_shapes):
            raise ShapeError(f"got {len(inputs)} inputs, want {len(self.input_shapes)}")
        if self._device is not None:
            from .device import place
        arrays = []
        for i, (value, shape) in enumerate(zip(inputs, self.input_shapes)):
            x: Any
            if self._device is None:
                x = asarray(value, f"input {i}", np.dtype(self.dtype))
            else:
                x = place(value, f"input {i}", self._device, self.dtype)
            if x.shape[1:] != shape or not x.ndim:
                raise ShapeError(f"input {i}: got shape {x.shape}, want (N, {', '.join(map(str, shape))})")
            arrays.append(x[(slice(None), *(None,) * (4 - len(shape)))])
        return arrays


def compile(
    graph: Graph,
    *,
    dtype: str = "float32",
    exact: bool = False,
    lean: bool = False,
    device: str | None = None,
    precision: str = "float32",
    parameters: ParameterCache | None = None,
    passes: tuple[all_passes.Pass, ...] = all_passes.ALL,
) -> CompiledPlan:
    """Choose kernels, pack weights and lay out memory for a graph.

    dtype: "float32", or "float64" on the reference kernels, for checks. exact: no algorithm that rounds differently
    from a plain sum (Winograd). lean: no enlarged weights. device: "cuda:0" ... and precision, one of
    device.PRECISIONS: run there; parameters stay float32 and are rounded when they are packed. On the CPU precision
    "bf16" lets convolutions and dense layers multiply in bfloat16 with float32 sums. parameters: the packed weights the
    caller's plans share.
    Raises DTypeError for parameters of another type and Unsupported for what no kernel serves, and for "bf16" on a CPU
    without it.

    >>> g = Graph()
    >>> x = g.input((4, 4, 2))
    >>> y = g.add("conv", (x,), params=dict(kernel=np.ones((3, 3, 2, 5), "f4")))
    >>> g.outputs.append(g.add("activation", (y,), dict(kind="relu")))
    >>> plan = compile(g)
    >>> [step["op"] for step in plan.steps()], plan.run([np.ones((1, 4, 4, 2), "f4")])[0].shape
    (['conv'], (1, 2, 2, 5))
    """
    graph = all_passes.run(graph, passes)
    cache = {} if parameters is None else parameters
    if device is None or device == "cpu":
        if precision not in CPU_PRECISIONS:
            raise Unsupported(f"precision={precision!r} on the CPU; want one of {', '.join(CPU_PRECISIONS)}")
        tuning.ensure_loaded()
        lowering = Lowering(graph, dtype, exact, lean, cache, bf16=precision == "bf16")
        return CompiledPlan(lowering.plan, graph, dtype, lowering.used)
    from . import device as devices

    if dtype != "float32":
        raise Unsupported(f"dtype={dtype!r} on {device}: precision= says what a device computes in")
    index = devices.index_of(device)
    lowering = Lowering(graph, dtype, exact, lean, cache, record=True)
    runner = devices.Runner(lowering.plan, index, precision)
    return CompiledPlan(runner, graph, runner.dtype, lowering.used)


def four(shape: Shape) -> tuple[int, int, int, int]:
    d, h, w, c = (1,) * (4 - len(shape)) + tuple(shape)
    return d, h, w, c


def _triple(values: Sequence[int] | None, fill: int) -> Triple:
    values = tuple(values or ())
    d, h, w = (fill,) * (3 - len(values)) + values
    return d, h, w


def _pads(node: Node) -> dict[str, Any]:
    padding = node.attrs.get("padding") or ()
    return {"pad_lo": _triple([lo for lo, _ in padding], 0), "pad_hi": _triple([hi for _, hi in padding], 0)}


def pad_arguments(node: Node, rank: int) -> tuple[list[int], list[int]]:
    """The padding of a pad node before and after each of the core's dimensions."""
    padding = ((0, 0),) * (4 - rank) + tuple(node.attrs["padding"])
    return [lo for lo, _ in padding], [hi for _, hi in padding]


def act_arguments(node: Node) -> dict[str, Any]:
    kind, a, b = node.attrs.get("activation", ("none", 0.0, 0.0))
    return {"act": kind, "act_a": a, "act_b": b}


def convolution(node: Node, shape: Shape) -> tuple[str, Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """How a conv, depthwise or dense node runs: a name for the layout of its kernel, the function from the layer's
    kernel to the plan's (T,R,S,C/G,K), and the arguments of Plan.conv. shape: of the node's input.
    """
    attrs = node.attrs
    kind = attrs.get("of", node.op)  # a gradient's node says whose it is
    if kind == "dense":
        return "dense", lambda w: w[None, None, None], {}
    strides, dilation = _triple(attrs.get("strides"), 1), _triple(attrs.get("dilation"), 1)
    geometry = {"stride": strides, **_pads(node), "dilation": dilation}
    if kind == "depthwise":

        def channelwise(w: np.ndarray) -> np.ndarray:  # (R,S,C,m) -> (R,S,1,C*m)
            w = w.reshape(*w.shape[:-2], 1, -1)
            return w[(None,) * (5 - w.ndim)]

        return "depthwise", channelwise, {**geometry, "groups": shape[-1]}
    groups, transposed = attrs.get("groups", 1), bool(attrs.get("transposed", False))

    def relay(w: np.ndarray) -> np.ndarray:
        if transposed:  # (R,S,K/G,C) -> (R,S,C/G,K): channel c of group g gives outputs g*K/G ...
            *window, kg, c = w.shape
            w = w.reshape(*window, kg, groups, c // groups)
            rank = len(window)
            w = w.transpose(*range(rank), rank + 2, rank + 1, rank).reshape(*window, c // groups, groups * kg)
        return w[(None,) * (5 - w.ndim)]

    if transposed:
        geometry["output_padding"] = _triple(attrs.get("output_padding"), 0)
    geometry.update(groups=groups, transposed=transposed)
    return f"transposed in {groups}" if transposed else "conv", relay, geometry


def _windows(node: Node) -> tuple[Shape, Shape, tuple[tuple[int, int], ...], Shape]:
    """Window, strides, padding and dilation of a pool node, one entry per spatial dimension."""
    attrs, window = node.attrs, tuple(node.attrs["window"])
    rank = len(window)
    strides, dilation = tuple(attrs.get("strides") or window), tuple(attrs.get("dilation") or (1,) * rank)
    return window, strides, tuple(attrs.get("padding") or ((0, 0),) * rank), dilation


def pooling(node: Node) -> dict[str, Any]:
    """The geometry of a pool node, as the arguments of Plan.pool."""
    window, strides, _, dilation = _windows(node)
    return {
        "window": _triple(window, 1),
        "stride": _triple(strides, 1),
        **_pads(node),
        "dilation": _triple(dilation, 1),
    }


class Lowering:
    """Walks the nodes once and appends their steps to a plan."""

    def __init__(
        self,
        graph: Graph,
        dtype: str,
        exact: bool,
        lean: bool,
        cache: ParameterCache,
        record: bool = False,
        bf16: bool = False,
    ):
        self.graph, self.dtype, self.cache = graph, np.dtype(dtype), cache
        self.plan = self.make_plan(dtype, exact, lean, record=record, bf16=bf16)
        self.used: list[_core.Parameter] = []
        self.ids = {tensor: self.plan.input(four(graph.shapes[tensor])) for tensor in graph.inputs}
        self.homes: dict[int, tuple[int, int]] = {}  # tensor -> the concat whose slice it is, and its first channel
        self.buffers: dict[int, int] = {}  # concat -> its buffer in the plan
        for node in graph.nodes:
            if node.attrs.get("in_place", False):
                first = 0
                for tensor in node.inputs:
                    self.homes[tensor] = (node.output, first)
                    first += graph.shapes[tensor][-1]
        for node in graph.nodes:
            lower: Callable[[Node], int | tuple[int, ...]] | None = getattr(self, node.op, None)
            if lower is None:
                raise Unsupported(f"{node.name or node.op}: the compiler has no operator {node.op!r}")
            made = lower(node)
            self.ids.update(zip((node.output, *node.more), made if isinstance(made, tuple) else (made,)))
        self.plan.finish([self.ids[tensor] for tensor in graph.outputs])

    def make_plan(self, dtype: str, exact: bool, lean: bool, **kind: bool) -> _core.Plan:
        return _core.Plan(dtype, exact, lean, **kind)

    # Helpers

    def x(self, node: Node) -> int:
        return self.ids[node.inputs[0]]

    def shape(self, node: Node) -> Shape:
        """The input's natural shape."""
        return self.graph.shapes[node.inputs[0]]

    def slot(self, tensor: int) -> int:
        """Where a step must write: its slice of a concat's buffer, or -1 for memory of its own."""
        if tensor not in self.homes:
            return -1
        home, first = self.homes[tensor]
        while home in self.homes:  # a slice of a slice
            home, offset = self.homes[home]
            first += offset
        return self.plan.channel_slice(self.buffer(home), first, self.graph.shapes[tensor][-1])

    def buffer(self, concat: int) -> int:
        if concat not in self.buffers:
            self.buffers[concat] = self.plan.buffer(four(self.graph.shapes[concat]))
        return self.buffers[concat]

    def vector(self, values: Any) -> np.ndarray | None:
        """A constant of one number per channel, in the type of the plan."""
        return None if values is None else np.ascontiguousarray(value_of(values), self.dtype)

    def vector_of(self, node: Node, key: str) -> Any:
        """A parameter of one number per channel, or None."""
        return self.vector(node.params.get(key))

    def typed(self, value: np.ndarray, what: str) -> np.ndarray:
        if value.dtype == self.dtype or (value.dtype == np.float32 and self.dtype == np.float64):
            return np.ascontiguousarray(value, self.dtype)
        raise DTypeError(f"{what}: got elements of {value.dtype}, want {self.dtype}")

    def parameter(self, node: Node, layout: str, relay: Callable[[np.ndarray], np.ndarray]) -> _core.Parameter:
        """The node's kernel as the plan's (T,R,S,C/G,K), with a folded scale; from the model's cache if up to date."""
        kernel = node.params["kernel"]
        sources = (kernel, *node.attrs.get("folded", ()))
        names = tuple(source if isinstance(source, (int, float)) else id(source) for source in sources)
        versions = tuple(source.version if isinstance(source, Param) else 0 for source in sources)
        key = (layout, self.dtype.name, *names)
        known = self.cache.get(key)
        if known is None or known[0] != versions:
            array = np.ascontiguousarray(relay(self.typed(value_of(kernel), node.name or node.op)))
            known = (versions, sources, _core.Parameter(array, self.vector(node.params.get("scale"))))
            self.cache[key] = known
        self.used.append(known[2])
        return known[2]

    # Operators, by their names in graph.py

    def conv(self, node: Node) -> int:
        layout, relay, geometry = convolution(node, self.shape(node))
        weight = self.parameter(node, layout, relay)
        residual = self.ids[node.inputs[1]] if node.attrs.get("residual", False) else -1
        bias = self.vector_of(node, "bias")
        return self.plan.conv(
            self.x(node),
            weight,
            bias,
            residual,
            **geometry,
            **act_arguments(node),
            out=self.slot(node.output),
            label=node.name,
        )

    depthwise = dense = conv

    def pool(self, node: Node) -> Any:
        attrs, shape = node.attrs, self.shape(node)
        ceil_mode = bool(attrs.get("ceil_mode", False))
        sizes = zip(shape, *_windows(node))
        out = [pool_size(n, r, s, lo, hi, d, ceil_mode) for n, r, s, (lo, hi), d in sizes]
        return self.plan.pool(
            self.x(node),
            attrs["kind"],
            **pooling(node),
            out=_triple(out, 1),
            count_include_pad=bool(attrs.get("count_include_pad", True)),
            divisor=attrs.get("divisor") or 0,
            indices=bool(node.more),
            target=self.slot(node.output),
            label=node.name,
        )

    def adaptive_pool(self, node: Node) -> Any:
        out, kind = _triple(node.attrs.get("out", ()), 1), node.attrs["kind"]
        target, indices = self.slot(node.output), bool(node.more)
        return self.plan.adaptive_pool(self.x(node), kind, out=out, indices=indices, target=target, label=node.name)

    global_pool = adaptive_pool

    def batch_norm(self, node: Node) -> int:
        p = {name: value_of(param) for name, param in node.params.items()}
        scale, shift = scale_and_shift(p["mean"], p["var"], p.get("gamma"), p.get("beta"), node.attrs["eps"])
        return self.plan.scale_shift(
            self.x(node), self.vector(scale), self.vector(shift), **act_arguments(node), label=node.name
        )

    def rescale(self, node: Node) -> int:
        channels = self.shape(node)[-1:]
        scale, offset = (
            np.broadcast_to(np.asarray(node.attrs.get(key, default), np.float64), channels)
            for key, default in (("scale", 1.0), ("offset", 0.0))
        )
        return self.plan.scale_shift(self.x(node), self.vector(scale), self.vector(offset), label=node.name)

    def layer_norm(self, node: Node) -> int:
        gamma, beta = self.vector_of(node, "gamma"), self.vector_of(node, "beta")
        return self.plan.layer_norm(self.x(node), gamma, beta, node.attrs["eps"], label=node.name)

    def lrn(self, node: Node) -> int:
        a = node.attrs
        return self.plan.lrn(self.x(node), a["size"], a["alpha"], a["beta"], a["k"], label=node.name)

    def softmax(self, node: Node) -> int:
        return self.plan.softmax(self.x(node), bool(node.attrs.get("log", False)), label=node.name)

    def activation(self, node: Node) -> int:
        a = node.attrs
        return self.plan.activation(self.x(node), a["kind"], a.get("a", 0.0), a.get("b", 0.0), label=node.name)

    def binary(self, node: Node) -> int:
        a, b = (self.ids[tensor] for tensor in node.inputs)
        return self.plan.binary(a, b, node.attrs["kind"], **act_arguments(node), label=node.name)

    def concat(self, node: Node) -> int:
        if node.attrs.get("in_place", False):  # its producers have written it
            return self.slot(node.output) if node.output in self.homes else self.buffer(node.output)
        rank = len(self.shape(node))
        axis = node.attrs.get("axis", -1) % rank + 4 - rank
        return self.plan.concat([self.ids[tensor] for tensor in node.inputs], axis, label=node.name)

    def pad(self, node: Node) -> int:
        lo, hi = pad_arguments(node, len(self.shape(node)))
        mode, value = node.attrs.get("mode", "constant"), float(node.attrs.get("value", 0.0))
        return self.plan.pad(self.x(node), lo, hi, mode, value, label=node.name)

    def resize(self, node: Node) -> int:
        a = node.attrs
        scales = tuple(a.get("scales") or ())
        d, h, w = (0.0,) * (3 - len(scales)) + scales
        return self.plan.resize(
            self.x(node),
            _triple(a["out"], 1),
            a.get("mode", "nearest"),
            bool(a.get("align_corners", False)),
            (d, h, w),
            label=node.name,
        )

    def reshape(self, node: Node) -> int:
        return self.plan.reshape(self.x(node), four(self.graph.shapes[node.output]))

    def transpose(self, node: Node) -> int:
        lead = 4 - len(self.shape(node))
        perm = [*range(lead), *(lead + axis for axis in node.attrs["perm"])]
        return self.plan.transpose(self.x(node), perm, label=node.name)

    def identity(self, node: Node) -> int:
        return self.x(node)

    dropout = identity
