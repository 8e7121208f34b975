"""A network as plain operators: what layers are lowered to, what passes rewrite, what the compiler turns into a plan.

A Graph is a list of nodes in the order they run. Tensors are integers; their shapes are per image (no batch axis) and
natural: (H,W,C) images, (L,C) sequences, (D,H,W,C) volumes, (F,) feature vectors, channels always last. Nodes know
nothing of layers, so that files of other formats can be read into the same graph.

`infer_shape` is the only place where output shapes are computed. The operators (keys of `_RULES`), all with one input
except binary and loss (2) and concat (any), their attributes (spatial tuples have one entry per spatial dimension) and
parameters (? = may be missing):

    conv           strides, padding ((lo,hi),...), dilation, groups,     kernel (R,S,C/G,K), transposed: (R,S,K/G,C)
                   transposed, output_padding                            bias?
    depthwise      strides, padding, dilation                            kernel (R,S,C,m), bias?
    dense          (over the last axis)                                  kernel (in,out), bias?
    pool           kind "max"|"avg", window, strides, padding, dilation,
                   count_include_pad, ceil_mode, divisor
    adaptive_pool  kind, out
    global_pool    kind, keepdims
    batch_norm     eps; momentum, unbiased, frozen (for training)        gamma?, beta?, mean, var
    layer_norm     eps                                                   gamma?, beta?
    lrn            size, alpha, beta, k
    softmax        log
    activation     kind, a, b
    binary         kind "add"|"sub"|"mul"|"div"|"max"|"min" (NumPy broadcasting)
    concat         axis
    pad            padding ((lo,hi) per dimension, channels included; negative crops), mode, value
    resize         out, mode, align_corners, scales?
    reshape        shape (one entry may be -1)
    transpose      perm
    rescale        scale, offset (numbers or one per channel)
    dropout        rate, seed, per_image (nothing but in training)
    loss           kind, smoothing: one number for each row of channels of (prediction, target)
    identity

What the passes add: `activation` (kind, a, b) on conv, depthwise, dense, binary and batch_norm; `residual=True` (the
last input is added before the activation) and params `scale` (a folded batch norm) on conv, depthwise and dense;
`in_place` on concat.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import DTypeError, ShapeError, Unsupported

Shape = tuple[int, ...]

MAX_RANK = 4  # per-image dimensions: depth, height, width, channels
_MAX_ELEMENTS = 2**60  # times eight bytes stays inside int64


class Param:
    """A named array that belongs to a layer: kernel, bias, running mean.

    The array is read-only; `assign` replaces it and bumps `version`, which is how plans learn that their packed copies
    are out of date.
    `value` may be a function of no arguments (then `shape` is needed): it is called when the array is first read, so
    that a large model can be described, or filled from a file, without drawing its random numbers first.

    >>> p = Param("kernel", np.zeros((2, 3), "f4"))
    >>> p.assign(np.ones((2, 3), "f4"))
    >>> p.version, float(p.value.sum())
    (1, 6.0)
    >>> Param("kernel", lambda: np.full((2, 3), 7, "f4"), shape=(2, 3)).value[0, 0].item()
    7.0
    """

    __slots__ = ("_make", "_owned", "_value", "dtype", "name", "replaced", "shape", "trainable", "version")

    def __init__(
        self,
        name: str,
        value: np.ndarray | Callable[[], np.ndarray],
        trainable: bool = True,
        *,
        shape: Shape | None = None,
    ):
        self.name = name
        self.trainable = trainable
        self.version = 0
        self.replaced = 0  # how many times `assign` put another array in place
        self._owned = False  # whether `writable` may hand the array out
        self._make: Callable[[], np.ndarray] | None = None
        self._value: np.ndarray | None = None
        if callable(value):
            if shape is None:
                raise ShapeError(f"{name}: a parameter that is filled later needs its shape")
            self.shape, self.dtype, self._make = tuple(shape), np.dtype(np.float32), value
        else:
            self._value = _frozen(np.ascontiguousarray(value))
            self.shape, self.dtype = self._value.shape, self._value.dtype

    @property
    def value(self) -> np.ndarray:
        if self._value is None:
            with _filling:
                if self._value is None:
                    assert self._make is not None
                    made = np.ascontiguousarray(self._make(), dtype=self.dtype)
                    if made.shape != self.shape:
                        raise ShapeError(
                            f"{self.name}: the initializer made an array of shape {made.shape}, want {self.shape}"
                        )
                    self._value, self._make = _frozen(made), None
        assert self._value is not None
        return _frozen(self._value) if self._owned else self._value

    def assign(self, value: Any, copy: bool = True) -> None:
        """Replace the value by an array of the same shape; nothing is rounded: a float32 parameter refuses float64.

        With copy=False an array that already has the right type and order is kept, not copied (a mapped weight file).
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ShapeError(f"{self.name}: got an array of shape {array.shape}, want {self.shape}")
        if not np.can_cast(array.dtype, self.dtype, "safe"):
            raise DTypeError(f"{self.name}: got {array.dtype}, want {self.dtype} (convert it explicitly)")
        array = _frozen((np.array if copy else np.asarray)(array, dtype=self.dtype, order="C"))
        with _filling:
            self._value, self._make, self._owned = array, None, False
            self.version += 1
            self.replaced += 1

    def writable(self) -> np.ndarray:
        """The values, to be changed in place by training: the array that `value` shows. Call `changed` after it.

        The first call makes a private copy, so that arrays which others hold (a mapped file, what was assigned with
        copy=False) stay as they are.
        """
        with _filling:
            if not self._owned:
                self._value, self._owned = np.array(self.value), True
            assert self._value is not None
            return self._value

    def changed(self) -> None:
        """Tell plans that the values were changed in place."""
        self.version += 1

    def __repr__(self) -> str:
        return f"Param({self.name!r}, shape={self.shape}, version={self.version})"


_filling = threading.RLock()  # a first read in one thread must not overwrite what another thread assigns


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def value_of(param: Param | np.ndarray) -> np.ndarray:
    """The array of a node's parameter, whether it belongs to a layer or is a constant."""
    return param.value if isinstance(param, Param) else param


def scale_and_shift(mean: Any, var: Any, gamma: Any, beta: Any, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """The batch norm (x - mean) / sqrt(var + eps) * gamma + beta as x * scale + shift, in float64.

    >>> scale_and_shift([1.0], [4.0], None, None, 0.0)
    (array([0.5]), array([-0.5]))
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / np.sqrt(np.asarray(var, np.float64) + eps)
        if gamma is not None:
            scale = scale * np.asarray(gamma, np.float64)
        shift = -np.asarray(mean, np.float64) * scale
    if beta is not None:
        shift = shift + np.asarray(beta, np.float64)
    return scale, shift


@dataclass(frozen=True)
class Node:
    """One operator: reads tensors `inputs`, writes tensor `output`."""

    op: str
    inputs: tuple[int, ...]
    output: int
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Param | np.ndarray] = field(default_factory=dict)
    name: str = ""
    more: tuple[int, ...] = ()  # further results, in training only: statistics, indices, gradients of parameters

    def replace(self, **changes: Any) -> Node:
        return replace(self, **changes)

    def with_attrs(self, **attrs: Any) -> Node:
        return replace(self, attrs={**self.attrs, **attrs})


class Graph:
    """Nodes in the order they run, the tensors that come in and go out, and the shape of every tensor.

    >>> g = Graph()
    >>> x = g.input((8, 8, 3))
    >>> y = g.add("conv", (x,), dict(padding=((1, 1), (1, 1))), dict(kernel=np.zeros((3, 3, 3, 16), "f4")))
    >>> g.outputs.append(g.add("global_pool", (y,), dict(kind="avg")))
    >>> g.shapes[y], g.shapes[g.outputs[0]]
    ((8, 8, 16), (16,))
    """

    def __init__(self) -> None:
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.nodes: list[Node] = []
        self.shapes: dict[int, Shape] = {}

    def input(self, shape: Iterable[int]) -> int:
        shape = _checked("input", tuple(operator.index(size) for size in shape))
        tensor = self._new_tensor(shape)
        self.inputs.append(tensor)
        return tensor

    def add(
        self,
        op: str,
        inputs: Sequence[int],
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, Param | np.ndarray] | None = None,
        name: str = "",
    ) -> int:
        """Append a node and return its output tensor; ShapeError, with the values, if it does not fit its inputs."""
        attrs, params, inputs = dict(attrs or {}), dict(params or {}), tuple(inputs)
        params = {key: p for key, p in params.items() if p is not None}
        try:
            shape = infer_shape(op, [self.shapes[i] for i in inputs], attrs, params)
        except (ShapeError, Unsupported) as error:
            if not name:
                raise
            raise type(error)(f"{name}: {error}") from None
        tensor = self._new_tensor(shape)
        self.nodes.append(Node(op, inputs, tensor, attrs, params, name))
        return tensor

    def rewritten(self, nodes: Iterable[Node], outputs: Iterable[int] | None = None) -> Graph:
        """The same tensors under other nodes: what a pass returns."""
        graph = Graph()
        graph.inputs = list(self.inputs)
        graph.outputs = list(self.outputs if outputs is None else outputs)
        graph.nodes = list(nodes)
        graph.shapes = dict(self.shapes)
        return graph

    def producers(self) -> dict[int, Node]:
        """The node that writes each tensor (inputs have none)."""
        return {node.output: node for node in self.nodes}

    def uses(self) -> dict[int, int]:
        """How many times each tensor is read, by nodes and as an output of the graph."""
        counts = dict.fromkeys(self.shapes, 0)
        for node in self.nodes:
            for tensor in node.inputs:
                counts[tensor] += 1
        for tensor in self.outputs:
            counts[tensor] += 1
        return counts

    def derived(self, shape: Shape) -> int:
        """A tensor of a shape that follows from other tensors' (a gradient, a statistic): to be written by a node that
        a pass makes.
        """
        return self._new_tensor(shape)

    def _new_tensor(self, shape: Shape) -> int:
        tensor = len(self.shapes)
        self.shapes[tensor] = shape
        return tensor


# Size formulas, shared with ops. All sizes in pixels; dilation 1 = dense.


def conv_size(size: int, window: int, stride: int, lo: int, hi: int, dilation: int) -> int:
    """Output size of a convolution along one dimension; zero or less where the window does not fit."""
    return (size + lo + hi - dilation * (window - 1) - 1) // stride + 1


def conv_transpose_size(
    size: int, window: int, stride: int, lo: int, hi: int, dilation: int, output_padding: int
) -> int:
    """Output size of a transposed convolution along one dimension."""
    return (size - 1) * stride - lo - hi + dilation * (window - 1) + output_padding + 1


def pool_size(size: int, window: int, stride: int, lo: int, hi: int, dilation: int, ceil_mode: bool) -> int:
    """Output size of a pooling along one dimension; with ceil_mode the last window may hang over but starts inside."""
    out = (size + lo + hi - dilation * (window - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + lo:
        out -= 1
    return out


def infer_shape(op: str, in_shapes: Sequence[Shape], attrs: Mapping[str, Any], params: Mapping[str, Any]) -> Shape:
    """The shape of an operator's output, per image.

    in_shapes: the inputs' shapes; attrs and params: as in the table at the top of this file.
    Raises ShapeError with the values where they do not fit together; Unsupported for an operator that does not exist.

    >>> infer_shape("pool", [(7, 7, 64)], dict(kind="max", window=(3, 3), strides=(2, 2)), {})
    (3, 3, 64)
    """
    rule = _RULES.get(op)
    if rule is None:
        raise Unsupported(f"no operator {op!r}; there are {', '.join(_RULES)}")
    shapes = [tuple(shape) for shape in in_shapes]
    if op == "concat":
        if not shapes:
            raise ShapeError("concat: got no inputs, want at least one")
        return _checked(op, rule(shapes, attrs, {}))
    residual = shapes.pop() if attrs.get("residual", False) else None
    want = 2 if op in ("binary", "loss") else 1
    if len(shapes) != want:
        raise ShapeError(f"{op}: got {len(shapes)} inputs, want {want}")
    out = _checked(op, rule(shapes, attrs, {key: p for key, p in params.items() if p is not None}))
    if residual not in (None, out):
        raise ShapeError(f"{op}: the residual has shape {residual}, want {out}")
    return out


def _checked(op: str, shape: Shape) -> Shape:
    """A shape whose sizes are at least one and whose bytes fit 64 bits."""
    if not 1 <= len(shape) <= MAX_RANK:
        raise Unsupported(f"{op}: a shape of {len(shape)} dimensions {shape}; want 1 to {MAX_RANK} (per image)")
    if any(size < 1 for size in shape):
        raise ShapeError(f"{op}: the shape would be {shape}; every size must be at least 1")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ShapeError(f"{op}: the shape would be {shape}, which overflows 64-bit sizes")
    return shape


def _spatial(
    op: str, shape: Shape, attrs: Mapping[str, Any], key: str, default: int | None, least: int
) -> tuple[int, ...]:
    """A spatial attribute: one integer >= least for each spatial dimension of `shape`."""
    rank = len(shape) - 1
    value = attrs.get(key)
    if value is None:
        if default is None:
            raise ShapeError(f"{op}: {key} is missing")
        return (default,) * rank
    value = tuple(operator.index(v) for v in value)
    if len(value) != rank:
        raise ShapeError(f"{op}: {key}={value} has {len(value)} entries, want {rank} for an input of shape {shape}")
    if any(v < least for v in value):
        raise ShapeError(f"{op}: {key}={value}, want every entry to be at least {least}")
    return value


def _padding(op: str, shape: Shape, attrs: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    rank = len(shape) - 1
    padding = attrs.get("padding")
    if padding is None:
        return ((0, 0),) * rank
    padding = tuple((operator.index(lo), operator.index(hi)) for lo, hi in padding)
    if len(padding) != rank:
        raise ShapeError(f"{op}: padding={padding} has {len(padding)} pairs, want {rank} for an input of shape {shape}")
    if any(lo < 0 or hi < 0 for lo, hi in padding):
        raise ShapeError(f"{op}: padding={padding}, want nothing negative")
    return padding


def _need_spatial(op: str, shape: Shape) -> None:
    if len(shape) < 2:
        raise ShapeError(
            f"{op}: got an input of shape {shape}, want at least one spatial dimension before the channels"
        )


def _kernel(op: str, params: Mapping[str, np.ndarray], ndim: int) -> Shape:
    if "kernel" not in params:
        raise ShapeError(f"{op}: the kernel is missing")
    kernel = tuple(params["kernel"].shape)
    if len(kernel) != ndim:
        raise ShapeError(f"{op}: got a kernel of shape {kernel}, want {ndim} dimensions")
    if any(size < 1 for size in kernel):
        raise ShapeError(f"{op}: got a kernel of shape {kernel}; every size must be at least 1")
    return kernel


def _check_bias(op: str, params: Mapping[str, np.ndarray], channels: int) -> None:
    if "bias" in params and tuple(params["bias"].shape) != (channels,):
        raise ShapeError(f"{op}: got a bias of shape {tuple(params['bias'].shape)}, want {(channels,)}")


def _window_sizes(op: str, shape: Shape, attrs: Mapping[str, Any], window: Shape) -> Shape:
    strides = _spatial(op, shape, attrs, "strides", 1, 1)
    dilation = _spatial(op, shape, attrs, "dilation", 1, 1)
    padding = _padding(op, shape, attrs)
    for size, n, (lo, hi), dil in zip(shape, window, padding, dilation):
        if size + lo + hi < dil * (n - 1) + 1:
            raise ShapeError(
                f"{op}: a window of {window} (dilation {dilation}) is larger than the input {shape[:-1]} "
                f"padded by {padding}"
            )
    return tuple(
        conv_size(n, r, s, lo, hi, d) for n, r, s, (lo, hi), d in zip(shape, window, strides, padding, dilation)
    )


def _conv(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("conv", shape)
    kernel = _kernel("conv", params, len(shape) + 1)
    window, groups, c = kernel[:-2], operator.index(attrs.get("groups", 1)), shape[-1]
    if groups < 1:
        raise ShapeError(f"conv: groups={groups}, want at least 1")
    if c % groups:
        raise ShapeError(f"conv: groups={groups} does not divide the {c} channels of the input {shape}")
    if attrs.get("transposed", False):
        if kernel[-1] != c:
            raise ShapeError(
                f"conv: a transposed kernel of shape {kernel} wants {kernel[-1]} input channels, got {c} in {shape}"
            )
        k = kernel[-2] * groups
        strides = _spatial("conv", shape, attrs, "strides", 1, 1)
        dilation = _spatial("conv", shape, attrs, "dilation", 1, 1)
        extra = _spatial("conv", shape, attrs, "output_padding", 0, 0)
        for e, s, d in zip(extra, strides, dilation):
            if e >= max(s, d):
                raise ShapeError(
                    f"conv: output_padding={extra}, want less than the stride {strides} or the dilation {dilation}"
                )
        pads = _padding("conv", shape, attrs)
        out = tuple(
            conv_transpose_size(n, r, s, lo, hi, d, e)
            for n, r, s, (lo, hi), d, e in zip(shape, window, strides, pads, dilation, extra)
        )
    else:
        k = kernel[-1]
        if kernel[-2] * groups != c:
            raise ShapeError(
                f"conv: a kernel of shape {kernel} with groups={groups} wants {kernel[-2] * groups} channels, "
                f"got {c} in {shape}"
            )
        if k % groups:
            raise ShapeError(f"conv: groups={groups} does not divide the {k} output channels of the kernel {kernel}")
        out = _window_sizes("conv", shape, attrs, window)
    _check_bias("conv", params, k)
    return (*out, k)


def _depthwise(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("depthwise", shape)
    kernel = _kernel("depthwise", params, len(shape) + 1)
    if kernel[-2] != shape[-1]:
        raise ShapeError(
            f"depthwise: a kernel of shape {kernel} wants {kernel[-2]} channels, got {shape[-1]} in {shape}"
        )
    k = kernel[-2] * kernel[-1]
    _check_bias("depthwise", params, k)
    return (*_window_sizes("depthwise", shape, attrs, kernel[:-2]), k)


def _dense(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    kernel = _kernel("dense", params, 2)
    if kernel[0] != shape[-1]:
        raise ShapeError(f"dense: a kernel of shape {kernel} wants {kernel[0]} features, got {shape[-1]} in {shape}")
    _check_bias("dense", params, kernel[-1])
    return (*shape[:-1], kernel[-1])


def _check_kind(op: str, attrs: Mapping[str, Any], key: str, kinds: Sequence[str]) -> str:
    kind = str(attrs.get(key))
    if kind not in kinds:
        raise Unsupported(f"{op}: {key}={kind!r}; want one of {', '.join(kinds)}")
    return kind


def _pool(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("pool", shape)
    kind = _check_kind("pool", attrs, "kind", ("max", "avg"))
    window = _spatial("pool", shape, attrs, "window", None, 1)
    strides = window if attrs.get("strides") is None else _spatial("pool", shape, attrs, "strides", 1, 1)
    dilation = _spatial("pool", shape, attrs, "dilation", 1, 1)
    padding = _padding("pool", shape, attrs)
    ceil_mode = bool(attrs.get("ceil_mode", False))
    if kind == "avg" and any(d > 1 for d in dilation):
        raise Unsupported(f"pool: dilation={dilation} with average pooling; only maxima are dilated")
    for r, (lo, hi), d in zip(window, padding, dilation):
        # otherwise a window could lie in the padding alone
        if max(lo, hi) > d * (r - 1):
            raise ShapeError(f"pool: padding={padding} must be smaller than the window {window} (dilation {dilation})")
    out = tuple(
        pool_size(n, r, s, lo, hi, d, ceil_mode)
        for n, r, s, (lo, hi), d in zip(shape, window, strides, padding, dilation)
    )
    if any(size < 1 for size in out):
        raise ShapeError(
            f"pool: a window of {window} (dilation {dilation}) is larger than the input {shape[:-1]} "
            f"padded by {padding}"
        )
    return (*out, shape[-1])


def _adaptive_pool(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("adaptive_pool", shape)
    _check_kind("adaptive_pool", attrs, "kind", ("max", "avg"))
    return (*_spatial("adaptive_pool", shape, attrs, "out", None, 1), shape[-1])


def _global_pool(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("global_pool", shape)
    _check_kind("global_pool", attrs, "kind", ("max", "avg"))
    return (*(1,) * (len(shape) - 1), shape[-1]) if attrs.get("keepdims", False) else shape[-1:]


def _per_channel(*required: str) -> Callable[[list[Shape], Mapping[str, Any], Mapping[str, np.ndarray]], Shape]:
    """A rule that keeps the shape; every parameter has one number per channel, and the named ones must be there."""

    def rule(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
        (shape,) = shapes
        for name in required:
            if name not in params:
                raise ShapeError(f"{name} is missing")
        for name, value in params.items():
            if tuple(value.shape) != shape[-1:]:
                raise ShapeError(
                    f"{name} has shape {tuple(value.shape)}, want {shape[-1:]} for an input of shape {shape}"
                )
        return shape

    return rule


def _lrn(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    if operator.index(attrs.get("size", 0)) < 1:
        raise ShapeError(f"lrn: size={attrs.get('size')}, want at least 1 channel")
    return shapes[0]


def _same(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    return shapes[0]


ACTIVATIONS = (
    "none relu relu6 clamp silu sigmoid hard_swish hard_sigmoid gelu gelu_tanh tanh elu leaky_relu softplus exp".split()
)  # the names of the compiled module


def _activation(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    _check_kind("activation", attrs, "kind", ACTIVATIONS)
    return shapes[0]


def _binary(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    _check_kind("binary", attrs, "kind", ("add", "sub", "mul", "div", "max", "min"))
    try:
        return tuple(int(size) for size in np.broadcast_shapes(*shapes))
    except ValueError:
        raise ShapeError(f"{attrs['kind']}: the shapes {shapes[0]} and {shapes[1]} do not broadcast together") from None


def _axis(op: str, axis: Any, rank: int) -> int:
    axis = operator.index(axis)
    if not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis={axis} is outside of {rank} dimensions")
    return axis % rank


def _concat(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    first = shapes[0]
    axis = _axis("concat", attrs.get("axis", -1), len(first))
    for shape in shapes[1:]:
        if len(shape) != len(first) or shape[:axis] != first[:axis] or shape[axis + 1 :] != first[axis + 1 :]:
            raise ShapeError(f"concat: the shapes {first} and {shape} differ outside of axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _pad(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    padding = tuple((operator.index(lo), operator.index(hi)) for lo, hi in attrs["padding"])
    mode = attrs.get("mode", "constant")
    if len(padding) != len(shape):
        raise ShapeError(
            f"pad: padding={padding} has {len(padding)} pairs, want {len(shape)} for an input of shape {shape}"
        )
    _check_kind("pad", {"mode": mode}, "mode", ("constant", "reflect", "replicate", "circular"))
    limit = {"reflect": -1, "circular": 0}.get(mode)
    if limit is not None and any(max(lo, hi) > size + limit for size, (lo, hi) in zip(shape, padding)):
        raise ShapeError(f"pad: padding={padding} is too large for mode {mode!r} on an input of shape {shape}")
    return tuple(size + lo + hi for size, (lo, hi) in zip(shape, padding))


def _resize(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    _need_spatial("resize", shape)
    _check_kind(
        "resize", {"mode": attrs.get("mode", "nearest")}, "mode", ("nearest", "nearest-exact", "linear", "cubic")
    )
    return (*_spatial("resize", shape, attrs, "out", None, 1), shape[-1])


def _reshape(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    out = [operator.index(size) for size in attrs["shape"]]
    if out.count(-1) > 1:
        raise ShapeError(f"reshape: {tuple(out)} has more than one -1")
    if -1 in out:
        rest = -math.prod(out)
        if rest < 1 or math.prod(shape) % rest:
            raise ShapeError(f"reshape: {shape} does not fit {tuple(out)}")
        out[out.index(-1)] = math.prod(shape) // rest
    if math.prod(out) != math.prod(shape):
        raise ShapeError(f"reshape: {shape} has {math.prod(shape)} values, {tuple(out)} has {math.prod(out)}")
    return tuple(out)


def _transpose(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    perm = tuple(attrs["perm"])
    if sorted(perm) != list(range(len(shape))):
        raise ShapeError(f"transpose: perm={perm} is not an order of the {len(shape)} dimensions of {shape}")
    return tuple(shape[i] for i in perm)


def _rescale(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    (shape,) = shapes
    for key in ("scale", "offset"):
        got = np.shape(attrs.get(key, 0.0))
        if got not in ((), (1,), shape[-1:]):
            raise ShapeError(f"rescale: {key} has shape {got}, want a number or {shape[-1]} of them")
    return shape


LOSSES = ("sparse", "dense", "sigmoid", "squared", "absolute")


def _loss(shapes: list[Shape], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> Shape:
    kind = _check_kind("loss", attrs, "kind", LOSSES)
    prediction, target = shapes
    want = (*prediction[:-1], 1) if kind == "sparse" else prediction
    if target != want:
        raise ShapeError(f"loss: got a target of shape {target} for a prediction of shape {prediction}, want {want}")
    return (*prediction[:-1], 1)


_RULES: dict[str, Callable[[list[Shape], Mapping[str, Any], Mapping[str, np.ndarray]], Shape]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "dense": _dense,
    "pool": _pool,
    "adaptive_pool": _adaptive_pool,
    "global_pool": _global_pool,
    "batch_norm": _per_channel("mean", "var"),
    "layer_norm": _per_channel(),
    "lrn": _lrn,
    "softmax": _same,
    "activation": _activation,
    "binary": _binary,
    "concat": _concat,
    "pad": _pad,
    "resize": _resize,
    "reshape": _reshape,
    "transpose": _transpose,
    "rescale": _rescale,
    "dropout": _same,
    "loss": _loss,
    "identity": _same,
}
