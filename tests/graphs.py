"""Random graphs for the tests of passes and compiler, and an interpreter of graphs in NumPy and float64.

The interpreter knows the operators and what passes add to them, and nothing of plans: it is to the compiler what
oracle.py is to the kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import oracle
import tolerance
from convkern.graph import Graph, Node, Param, infer_shape, value_of


def _five(x: np.ndarray) -> np.ndarray:
    """(N,*natural) as (N,D,H,W,C)."""
    return x.reshape(x.shape[:1] + (1,) * (5 - x.ndim) + x.shape[1:])


def _triple(values: Any, fill: int) -> tuple[int, int, int]:
    values = tuple(values or ())
    d, h, w = (fill,) * (3 - len(values)) + values
    return d, h, w


def _geometry(node: Node) -> dict[str, Any]:
    a = node.attrs
    padding = a.get("padding") or ()
    return dict(
        stride=_triple(a.get("strides"), 1),
        pad_lo=_triple([lo for lo, _ in padding], 0),
        pad_hi=_triple([hi for _, hi in padding], 0),
        dilation=_triple(a.get("dilation"), 1),
    )


def _kernel(node: Node) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights as oracle.conv wants them, and the remaining arguments."""
    w = value_of(node.params["kernel"]).astype(np.float64)
    if node.op == "dense":
        return w[None, None, None], {}
    if node.op == "depthwise":
        c = w.shape[-2]
        w = w.reshape(*w.shape[:-2], 1, -1)
        return w[(None,) * (5 - w.ndim)], dict(groups=c, **_geometry(node))
    groups = node.attrs.get("groups", 1)
    options = dict(groups=groups, **_geometry(node))
    if node.attrs.get("transposed", False):
        options |= dict(transposed=True, output_padding=_triple(node.attrs.get("output_padding"), 0))
        parts = np.split(w, groups, axis=-1)  # the inputs of each group; its outputs are the next to last axis
        w = np.concatenate([part.swapaxes(-1, -2) for part in parts], axis=-1)
    return w[(None,) * (5 - w.ndim)], options


def _convolve(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    w, options = _kernel(node)
    if "scale" in node.params:
        w = w * value_of(node.params["scale"])
    bias = node.params.get("bias")
    residual = _five(inputs[1]) if node.attrs.get("residual", False) else None
    return oracle.conv(_five(inputs[0]), w, None if bias is None else value_of(bias), residual, **options)


def _pool(node: Node, x: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
    a = node.attrs
    window = tuple(a["window"])
    geometry = _geometry(node) | dict(stride=_triple(a.get("strides") or window, 1))
    options = dict(count_include_pad=a.get("count_include_pad", True), divisor=a.get("divisor") or 0)
    return oracle.pool(_five(x), a["kind"], window=_triple(window, 1), out=_triple(out[:-1], 1), **geometry, **options)[
        0
    ]


def _adaptive(x: np.ndarray, kind: str, out: tuple[int, ...]) -> np.ndarray:
    """Axis by axis: the part of an output is a box, so its mean is the mean of means."""
    for axis, size in enumerate(out, 1):
        n = x.shape[axis]
        parts = [slice(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        cut = [x[(slice(None),) * axis + (part,)] for part in parts]
        x = np.stack([c.max(axis) if kind == "max" else c.mean(axis) for c in cut], axis)
    return x


def apply(node: Node, inputs: list[np.ndarray], out: tuple[int, ...]) -> np.ndarray:
    """One operator on (N,*shape) arrays in float64; out = the shape of its result per image."""
    a, x = node.attrs, inputs[0]
    p = {key: value_of(value).astype(np.float64) for key, value in node.params.items()}
    match node.op:
        case "conv" | "depthwise" | "dense":
            y = _convolve(node, inputs)
        case "pool":
            y = _pool(node, x, out)
        case "adaptive_pool":
            y = _adaptive(x, a["kind"], tuple(a["out"]))
        case "global_pool":
            axes = tuple(range(1, x.ndim - 1))
            y = x.max(axes) if a["kind"] == "max" else x.mean(axes)
        case "batch_norm":
            y = (x - p["mean"]) / np.sqrt(p["var"] + a["eps"]) * p.get("gamma", 1.0) + p.get("beta", 0.0)
        case "layer_norm":
            centred = x - x.mean(-1, keepdims=True)
            y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + a["eps"]) * p.get("gamma", 1) + p.get(
                "beta", 0
            )
        case "lrn":
            before, after = a["size"] // 2, (a["size"] - 1) // 2
            squares = np.pad(x**2, [(0, 0)] * (x.ndim - 1) + [(before, after)])
            sums = sum(squares[..., i : i + x.shape[-1]] for i in range(a["size"]))
            y = x * (a["k"] + a["alpha"] / a["size"] * sums) ** -a["beta"]
        case "softmax":
            e = np.exp(x - x.max(-1, keepdims=True))
            y = e / e.sum(-1, keepdims=True)
            y = np.log(y) if a.get("log", False) else y
        case "activation":
            y = tolerance.activation(a["kind"], x, a.get("a", 0.0), a.get("b", 0.0))
        case "binary":
            functions = dict(
                add=np.add, sub=np.subtract, mul=np.multiply, div=np.divide, max=np.maximum, min=np.minimum
            )
            first, second = (v.reshape(v.shape[:1] + (1,) * (len(out) - v.ndim + 1) + v.shape[1:]) for v in inputs[:2])
            y = functions[a["kind"]](first, second)
        case "concat":
            y = np.concatenate(inputs, a.get("axis", -1) % len(out) + 1)
        case "pad":
            modes = dict(constant="constant", reflect="reflect", replicate="edge", circular="wrap")
            mode = a.get("mode", "constant")
            options = dict(constant_values=a.get("value", 0.0)) if mode == "constant" else {}
            y = np.pad(x, [(0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in a["padding"])], modes[mode], **options)
            crop = (slice(max(-lo, 0), n + min(hi, 0)) for n, (lo, hi) in zip(y.shape[1:], a["padding"]))
            y = y[(slice(None), *crop)]
        case "resize":
            y = x
            for axis, size in enumerate(a["out"], 1):
                y = np.take(y, np.arange(size) * x.shape[axis] // size, axis)
        case "transpose":
            y = x.transpose(0, *(axis + 1 for axis in a["perm"]))
        case "rescale":
            y = x * np.asarray(a.get("scale", 1.0), np.float64) + np.asarray(a.get("offset", 0.0), np.float64)
        case "reshape" | "identity":
            y = x
        case _:
            raise AssertionError(f"the interpreter has no operator {node.op!r}")
    if "activation" in a:
        y = tolerance.activation(a["activation"][0], y, *a["activation"][1:])
    return y.reshape(x.shape[:1] + out)


def interpret(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph, before or after passes."""
    values = {tensor: np.asarray(x, np.float64) for tensor, x in zip(graph.inputs, inputs)}
    for node in graph.nodes:
        shape = infer_shape(node.op, [graph.shapes[t] for t in node.inputs], node.attrs, node.params)
        assert shape == graph.shapes[node.output], (node, shape)
        values[node.output] = apply(node, [values[t] for t in node.inputs], graph.shapes[node.output])
    return [values[tensor] for tensor in graph.outputs]


class Builder:
    """Grows a random graph of images; values stay of the order of one, so that errors do too."""

    def __init__(self, seed: int, size: tuple[int, int] = (6, 7)):
        self.rng = np.random.default_rng(seed)
        self.graph = Graph()
        self.tensors = [self.graph.input((*size, 5))]
        if self.flip():
            self.tensors.append(self.graph.input((*size, 3)))

    def flip(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def param(self, *shape: int, positive: bool = False, gain: float = 1.0) -> Param:
        values = self.rng.standard_normal(shape) * gain
        return Param("p", (np.abs(values) + 0.1 if positive else values).astype("f4"))

    def add(self, op: str, inputs: Any, attrs: Any = None, params: Any = None) -> int:
        tensor = self.graph.add(op, inputs, attrs, params, f"{op}{len(self.graph.nodes)}")
        self.tensors.append(tensor)
        return tensor

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self.graph.shapes[tensor]

    def image(self) -> int:
        """A recent tensor that is an image of some size."""
        images = [t for t in self.tensors[-6:] if len(self.shape(t)) == 3 and min(self.shape(t)[:2]) >= 3]
        return self.pick(images) if images else self.tensors[0]

    def conv(self, x: int, k: int | None = None) -> int:
        c = self.shape(x)[-1]
        r, s = self.pick((1, 3)), self.pick((1, 2, 3))
        k = k or self.pick((3, 4, 8))
        groups = self.pick([g for g in (1, 1, 2, 4) if c % g == 0 and k % g == 0])
        attrs: dict[str, Any] = dict(strides=(self.pick((1, 1, 2)), 1), groups=groups)
        attrs["padding"] = ((r // 2, self.pick((r // 2, 0))), (s // 2, s - 1 - s // 2))
        gain = (r * s * c / groups) ** -0.5
        params = dict(kernel=self.param(r, s, c // groups, k, gain=gain), bias=self.param(k) if self.flip() else None)
        return self.add("conv", (x,), attrs, params)

    def norm(self, x: int) -> int:
        c = self.shape(x)[-1]
        params = dict(mean=self.param(c), var=self.param(c, positive=True))
        params |= dict(gamma=self.param(c)) if self.flip(0.8) else {}
        params |= dict(beta=self.param(c)) if self.flip(0.8) else {}
        return self.add("batch_norm", (x,), dict(eps=1e-3), params)

    def act(self, x: int) -> int:
        kind = self.pick(("relu", "relu6", "silu", "sigmoid", "hard_swish", "gelu", "leaky_relu", "none", "tanh"))
        return self.add("activation", (x,), dict(kind=kind, a=0.1))

    def conv_block(self, x: int, k: int | None = None) -> int:
        """conv, perhaps a norm, perhaps an activation: what folding and fusion are for."""
        y = self.conv(x, k)
        y = self.norm(y) if self.flip() else y
        return self.act(y) if self.flip(0.7) else y

    def step(self) -> None:
        x = self.image()
        h, w, c = self.shape(x)
        frequent = "block block block residual residual concat concat dense-block"
        kind = self.pick(f"{frequent} depthwise pad pool dense gate transposed odd".split())
        if kind == "block":
            self.conv_block(x)
        elif kind == "residual":
            kernel = self.param(3, 3, c, c, gain=(9 * c) ** -0.5)
            y = self.add("conv", (x,), dict(padding=((1, 1), (1, 1))), dict(kernel=kernel))
            y = self.norm(y) if self.flip() else y
            other = x
            if self.flip():  # a projected shortcut, as at the head of a stage
                other = self.add("conv", (x,), {}, dict(kernel=self.param(1, 1, c, c, gain=c**-0.5)))
            if self.flip(0.2):
                y = self.act(y)  # then nothing may be fused into the addition
            y = self.add("binary", (y, other) if self.flip() else (other, y), dict(kind="add"))
            if self.flip(0.8):
                self.act(y)
        elif kind == "concat":
            parts = []
            for k in (3, 4):
                kernel = self.param(1, 1, c, k, gain=c**-0.5)
                y = self.add("conv", (x,), {}, dict(kernel=kernel, bias=self.param(k)))
                parts.append(self.act(y) if self.flip() else y)
            if self.flip(0.3):
                parts.append(x)
            if self.flip(0.3):
                window = dict(window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
                parts.append(self.add("pool", (x,), dict(kind="max", **window)))
            y = self.add("concat", parts, dict(axis=self.pick((-1, 2))))
            if self.flip(0.3):
                self.add("concat", (y, parts[0]))
        elif kind == "dense-block":
            features = [self.conv_block(x, 4)]
            for _ in range(3):
                joined = self.add("concat", features, {}) if len(features) > 1 else features[0]
                y = self.act(self.norm(joined))
                cy = self.shape(y)[-1]
                kernel = self.param(3, 3, cy, 3, gain=(9 * cy) ** -0.5)
                features.append(self.add("conv", (y,), dict(padding=((1, 1), (1, 1))), dict(kernel=kernel)))
            self.add("concat", features, {})
        elif kind == "depthwise":
            m = self.pick((1, 1, 2))
            attrs = dict(padding=((1, 1), (1, 0)), strides=(1, self.pick((1, 2))))
            y = self.add("depthwise", (x,), attrs, dict(kernel=self.param(3, 3, c, m, gain=1 / 3)))
            y = self.norm(y) if self.flip() else y
            self.act(y)
        elif kind == "transposed":
            groups = self.pick([g for g in (1, 2, 4) if c % g == 0])
            attrs = dict(
                transposed=True, strides=(2, 1), padding=((1, 0), (1, 1)), output_padding=(1, 0), groups=groups
            )
            y = self.add("conv", (x,), attrs, dict(kernel=self.param(3, 3, 2, c, gain=(3 * c) ** -0.5)))
            self.norm(y) if self.flip() else None
        elif kind == "pad":
            y = self.add("activation", (x,), dict(kind="relu")) if self.flip() else x
            mode = self.pick(("constant", "constant", "constant", "reflect"))
            value = self.pick((0.0, 0.0, 0.0, 1.0))
            y = self.add("pad", (y,), dict(padding=((1, 1), (1, 0), (0, 0)), mode=mode, value=value))
            if self.flip():
                self.conv_block(y)
            else:
                attrs = dict(kind=self.pick(("max", "avg")), window=(3, 3), strides=(2, 2), ceil_mode=self.flip())
                self.add("pool", (y,), attrs | dict(padding=((1, 1), (0, 1)), count_include_pad=self.flip()))
        elif kind == "pool":
            padding = ((self.pick((0, 1)), 0), (0, 1))
            attrs = dict(kind=self.pick(("max", "avg")), window=(2, 3), strides=(self.pick((1, 2)), 2), padding=padding)
            self.add("pool", (x,), attrs | dict(ceil_mode=self.flip(), count_include_pad=self.flip()))
        elif kind == "dense":
            y = self.add("dense", (x,), {}, dict(kernel=self.param(c, 6, gain=c**-0.5), bias=self.param(6)))
            y = self.norm(y) if self.flip() else y
            self.act(y)
        elif kind == "gate":
            y = self.add("global_pool", (x,), dict(kind="avg", keepdims=self.flip()))
            y = self.add("dense", (y,), {}, dict(kernel=self.param(c, c, gain=c**-0.5)))
            y = self.add("activation", (y,), dict(kind="sigmoid"))
            self.add("binary", (x, y), dict(kind=self.pick(("mul", "add"))))
        else:
            op = self.pick(
                ("lrn", "softmax", "layer_norm", "rescale", "identity", "resize", "transpose", "crop", "flat")
            )
            if op == "crop":
                self.add("pad", (x,), dict(padding=((-1, 0), (0, 0), (0, 0))))
            elif op == "flat":
                self.add("reshape", (self.add("reshape", (x,), dict(shape=(-1,))),), dict(shape=(h, w, c)))
            else:
                attrs: dict[str, dict[str, Any]] = dict(
                    lrn=dict(size=3, alpha=0.1, beta=0.75, k=1.0),
                    layer_norm=dict(eps=1e-2),
                    rescale=self.pick((dict(), dict(scale=0.5, offset=(0.1,) * c))),
                    resize=dict(out=(5, 8)),
                    transpose=dict(perm=self.pick(((1, 0, 2), (0, 1, 2)))),
                )
                self.add(op, (x,), attrs.get(op, {}))


def random_graph(seed: int, steps: int = 8) -> Graph:
    """A graph of one or two inputs and one to three outputs, with all that passes look for, and dead ends."""
    builder = Builder(seed)
    for _ in range(steps):
        builder.step()
    graph = builder.graph
    outputs = {builder.tensors[-1]} | {builder.pick(builder.tensors) for _ in range(int(builder.rng.integers(3)))}
    graph.outputs.extend(sorted(outputs))
    return graph


def random_inputs(graph: Graph, seed: int, n: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed + 10**6)
    return [rng.standard_normal((n, *graph.shapes[tensor])).astype("f4") for tensor in graph.inputs]
