"""Gradients of the functions of convkern.ops, named and called as those of torch.nn.grad.

Each takes the gradient of a result, `grad_output`, and gives that of an input. Arrays, layouts and errors are those of
convkern.ops: NumPy or any other CPU array, (N,C,H,W) or `layout="NHWC"`, channels-last strides read in place. Weights
and their gradients are (K,C/G,R,S), those of transposed convolutions (C,K/G,R,S), in every layout.

What exists for sequences, images and volumes is written once, as a function of an _Op, and made into three.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import numpy as np

from .. import _core
from ..arrays import Images, as_ndarray, asarray, images
from ..errors import DTypeError, ShapeError
from .common import Array, Ints, ints, one_int, per_channel, triple
from .convolution import _relaid

__all__ = [
    "adaptive_avg_pool1d_backward", "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d_backward", "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward",
    "avg_pool1d_backward", "avg_pool2d_backward", "avg_pool3d_backward", "batch_norm_backward", "batch_norm_train",
    "conv1d_input", "conv1d_weight", "conv2d_input", "conv2d_weight", "conv3d_input", "conv3d_weight",
    "conv_transpose1d_input", "conv_transpose1d_weight", "conv_transpose2d_input", "conv_transpose2d_weight",
    "conv_transpose3d_input", "conv_transpose3d_weight", "layer_norm_backward", "max_pool1d_backward",
    "max_pool2d_backward", "max_pool3d_backward",
]  # fmt: skip

P = ParamSpec("P")


@dataclass(frozen=True)
class _Op:
    """A public function of this module: its name, and the number of spatial dimensions."""

    name: str
    rank: int
    transposed: bool = False

    @property
    def layout(self) -> str:
        return ("NCL", "NCHW", "NCDHW")[self.rank - 1]

    @property
    def forward(self) -> str:
        """The function whose gradient it is."""
        return self.name.rsplit("_", 1)[0]


# How docstrings write sizes: of the input, of a window, of the output.
_SIZES = (("L", "S", "Q"), ("H,W", "R,S", "P,Q"), ("D,H,W", "T,R,S", "Z,P,Q"))


def _public(op: _Op, body: Callable[Concatenate[_Op, P], np.ndarray], *example: str) -> Callable[P, np.ndarray]:
    """`body` for one op, with a signature and a docstring of its own: the body's, and the lines of an example."""

    def function(*args: P.args, **kwargs: P.kwargs) -> np.ndarray:
        kwargs.setdefault("layout", op.layout)
        return body(op, *args, **kwargs)

    signature = inspect.signature(body)
    parameters = [
        parameter.replace(default=op.layout) if parameter.name == "layout" else parameter
        for parameter in list(signature.parameters.values())[1:]
    ]
    text = inspect.cleandoc(body.__doc__ or "")
    weight = "(C,K/G,<window>)" if op.transposed else "(K,C/G,<window>)"
    for mark, word in zip(
        ("<weight>", "<in>", "<window>", "<out>", "<op>"), (weight, *_SIZES[op.rank - 1], op.forward)
    ):
        text = text.replace(mark, word)
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = "\n".join((text, "", *example))
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


def _plan(dtype: np.dtype) -> _core.Plan:
    return _core.Plan("float32" if dtype.itemsize == 4 else "float64", exact=True, training=True)


def _in_shape(op: _Op, im: Images, input_size: Sequence[int]) -> tuple[int, int, int, int]:
    """(D,H,W,C) of the input whose gradient is wanted; `im` is grad_output."""
    size = tuple(one_int(v, f"{op.name}: input_size") for v in input_size)
    if len(size) != op.rank + (2 if im.batched else 1):
        raise ShapeError(f"{op.name}: input_size={size} has not as many dimensions as grad_output")
    if im.batched and size[0] != len(im.ndhwc):
        raise ShapeError(f"{op.name}: input_size={size} has {size[0]} images, grad_output {len(im.ndhwc)}")
    size = size[1:] if im.batched else size
    spatial, channels = (size[:-1], size[-1]) if im.channels_last else (size[1:], size[0])
    if min(size) < 1:
        raise ShapeError(f"{op.name}: input_size={tuple(input_size)}; only the batch may be empty")
    return (*triple(spatial, 1), channels)


def _geometry(op: _Op, stride: Any, padding: Any, dilation: Any, groups: Any) -> dict[str, Any]:
    pads = triple(ints(padding, op.rank, f"{op.name}: padding"), 0)
    return dict(
        stride=triple(ints(stride, op.rank, f"{op.name}: stride", 1), 1),
        pad_lo=pads,
        pad_hi=pads,
        dilation=triple(ints(dilation, op.rank, f"{op.name}: dilation", 1), 1),
        groups=one_int(groups, f"{op.name}: groups"),
    )


def _unlaid(op: _Op, dw: np.ndarray, groups: int) -> np.ndarray:
    """The plan's (T,R,S,C/G,K) as torch's (K,C/G,R,S), transposed (C,K/G,R,S)."""
    rank = op.rank
    dw = dw.reshape(dw.shape[3 - rank :])
    window = tuple(range(rank))
    if not op.transposed:
        return np.ascontiguousarray(dw.transpose(rank + 1, rank, *window))
    cg: int = dw.shape[rank]
    k: int = dw.shape[rank + 1]
    dw = dw.reshape(*dw.shape[:rank], cg, groups, k // groups).transpose(rank + 1, rank, rank + 2, *window)
    return np.ascontiguousarray(dw.reshape(groups * cg, k // groups, *dw.shape[3:]))


def _conv_input(
    op: _Op,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of <op> with respect to its input.

    Shapes: input_size (N,C,<in>), in the order of `layout`; weight <weight>; grad_output (N,K,<out>);
        returns (N,C,<in>). What an output_padding added shows in grad_output.
    Units: stride, padding, dilation in pixels, one integer or one for each dimension, as of the convolution.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad; of a transposed convolution its adjoint, a convolution of grad_output.
    """
    dy = asarray(grad_output, "grad_output")
    w = asarray(weight, "weight", dy.dtype)
    im = images(dy, op.rank, layout, op.name)
    g = _geometry(op, stride, padding, dilation, groups)
    if w.ndim != op.rank + 2 or min(w.shape) < 1 or g["groups"] < 1 or w.shape[0] % g["groups"]:
        raise ShapeError(f"{op.name}: a weight of shape {w.shape} with groups={g['groups']} is none of a convolution")
    shape = _in_shape(op, im, input_size)
    plan = _plan(dy.dtype)
    source = plan.input(im.ndhwc.shape[1:])
    parameter = _core.Parameter(np.ascontiguousarray(_relaid(w, g["groups"], op.transposed)))
    dx = plan.conv_backward_data(source, parameter, shape, transposed=op.transposed, label=op.name, **g)
    plan.finish([dx])
    return im.restore(plan.run([im.ndhwc], threads, im.channels_first_memory)[0])


def _conv_weight(
    op: _Op,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of <op> with respect to its weight, summed over the batch.

    Shapes: input (N,C,<in>); weight_size <weight>; grad_output (N,K,<out>); returns <weight>.
    Units: stride, padding, dilation in pixels, one integer or one for each dimension, as of the convolution.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad; of a transposed convolution its adjoint.
    """
    x = asarray(input)
    dy = asarray(grad_output, "grad_output", x.dtype)
    im, im_dy = images(x, op.rank, layout, op.name), images(dy, op.rank, layout, op.name)
    g = _geometry(op, stride, padding, dilation, groups)
    size = tuple(one_int(v, f"{op.name}: weight_size") for v in weight_size)
    first, second = (im, im_dy) if op.transposed else (im_dy, im)
    want = (first.channels, second.channels // max(g["groups"], 1))
    if len(size) != op.rank + 2 or size[:2] != want or min(size) < 1:
        raise ShapeError(
            f"{op.name}: weight_size={size} does not fit {im.channels} channels, {im_dy.channels} filters, "
            f"groups={g['groups']}"
        )
    if len(im.ndhwc) != len(im_dy.ndhwc):
        raise ShapeError(f"{op.name}: the input has {len(im.ndhwc)} images, grad_output {len(im_dy.ndhwc)}")
    plan = _plan(x.dtype)
    a, b = plan.input(im.ndhwc.shape[1:]), plan.input(im_dy.ndhwc.shape[1:])
    window = triple(size[2:], 1)
    dw = plan.conv_backward_weight(a, b, kernel=window, transposed=op.transposed, label=op.name, **g)
    plan.finish([dw])
    flat = plan.run([im.ndhwc, im_dy.ndhwc], threads)[0]
    return _unlaid(op, flat.reshape(*flat.shape[:3], -1, im_dy.channels), g["groups"])


conv1d_input = _public(
    _Op("conv1d_input", 1),
    _conv_input,
    '>>> conv1d_input((1, 1, 4), np.ones((1, 1, 2), "f4"), np.ones((1, 1, 3), "f4"))',
    "array([[[1., 2., 2., 1.]]], dtype=float32)",
)
conv2d_input = _public(
    _Op("conv2d_input", 2),
    _conv_input,
    '>>> conv2d_input((1, 1, 3, 3), np.ones((1, 1, 2, 2), "f4"), np.ones((1, 1, 2, 2), "f4"))[0, 0]',
    "array([[1., 2., 1.],",
    "       [2., 4., 2.],",
    "       [1., 2., 1.]], dtype=float32)",
)
conv3d_input = _public(
    _Op("conv3d_input", 3),
    _conv_input,
    '>>> conv3d_input((1, 2, 4, 5, 6), np.ones((3, 2, 3, 3, 3), "f4"), np.ones((1, 3, 2, 3, 4), "f4")).shape',
    "(1, 2, 4, 5, 6)",
)
conv1d_weight = _public(
    _Op("conv1d_weight", 1),
    _conv_weight,
    '>>> conv1d_weight(np.arange(4, dtype="f4").reshape(1, 1, 4), (1, 1, 2), np.ones((1, 1, 3), "f4"))',
    "array([[[3., 6.]]], dtype=float32)",
)
conv2d_weight = _public(
    _Op("conv2d_weight", 2),
    _conv_weight,
    '>>> conv2d_weight(np.ones((2, 3, 8, 8), "f4"), (4, 3, 3, 3), np.ones((2, 4, 6, 6), "f4"))[0, 0, 0]',
    "array([72., 72., 72.], dtype=float32)",
)
conv3d_weight = _public(
    _Op("conv3d_weight", 3),
    _conv_weight,
    '>>> conv3d_weight(np.ones((1, 2, 4, 5, 6), "f4"), (3, 2, 3, 3, 3), np.ones((1, 3, 2, 3, 4), "f4")).shape',
    "(3, 2, 3, 3, 3)",
)
conv_transpose1d_input = _public(
    _Op("conv_transpose1d_input", 1, True),
    _conv_input,
    '>>> conv_transpose1d_input((1, 1, 3), np.ones((1, 1, 2), "f4"), np.ones((1, 1, 6), "f4"), stride=2)',
    "array([[[2., 2., 2.]]], dtype=float32)",
)
conv_transpose2d_input = _public(
    _Op("conv_transpose2d_input", 2, True),
    _conv_input,
    '>>> w, dy = np.ones((3, 8, 4, 4), "f4"), np.ones((1, 8, 14, 14), "f4")',
    ">>> conv_transpose2d_input((1, 3, 7, 7), w, dy, stride=2, padding=1).shape",
    "(1, 3, 7, 7)",
)
conv_transpose3d_input = _public(
    _Op("conv_transpose3d_input", 3, True),
    _conv_input,
    '>>> w, dy = np.ones((2, 4, 2, 2, 2), "f4"), np.ones((1, 4, 6, 6, 6), "f4")',
    ">>> conv_transpose3d_input((1, 2, 3, 3, 3), w, dy, stride=2).shape",
    "(1, 2, 3, 3, 3)",
)
conv_transpose1d_weight = _public(
    _Op("conv_transpose1d_weight", 1, True),
    _conv_weight,
    '>>> conv_transpose1d_weight(np.ones((1, 1, 3), "f4"), (1, 1, 2), np.ones((1, 1, 6), "f4"), stride=2)',
    "array([[[3., 3.]]], dtype=float32)",
)
conv_transpose2d_weight = _public(
    _Op("conv_transpose2d_weight", 2, True),
    _conv_weight,
    '>>> x, dy = np.ones((1, 3, 7, 7), "f4"), np.ones((1, 8, 14, 14), "f4")',
    ">>> conv_transpose2d_weight(x, (3, 8, 4, 4), dy, stride=2, padding=1).shape",
    "(3, 8, 4, 4)",
)
conv_transpose3d_weight = _public(
    _Op("conv_transpose3d_weight", 3, True),
    _conv_weight,
    '>>> x, dy = np.ones((1, 2, 3, 3, 3), "f4"), np.ones((1, 4, 6, 6, 6), "f4")',
    ">>> conv_transpose3d_weight(x, (2, 4, 2, 2, 2), dy, stride=2).shape",
    "(2, 4, 2, 2, 2)",
)


# Pooling


def _windows(op: _Op, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> dict[str, Any]:
    window = ints(kernel_size, op.rank, f"{op.name}: kernel_size", 1)
    pads = triple(ints(padding, op.rank, f"{op.name}: padding"), 0)
    return dict(
        window=triple(window, 1),
        stride=triple(window if stride is None or stride == () else ints(stride, op.rank, f"{op.name}: stride", 1), 1),
        pad_lo=pads,
        pad_hi=pads,
        dilation=triple(ints(dilation, op.rank, f"{op.name}: dilation", 1), 1),
    )


def _positions(op: _Op, indices: Array, layout: str, im: Images, size: tuple[int, int, int, int]) -> np.ndarray:
    """The positions of maxima as the plan's (N,D,H,W,C) of int64."""
    index = as_ndarray(indices, "indices")
    if index.dtype != np.int64:
        raise DTypeError(f"indices: got elements of {index.dtype}, want int64")
    seen = images(index, op.rank, layout, op.name).ndhwc
    if seen.shape != im.ndhwc.shape:
        raise ShapeError(f"{op.name}: indices have the shape {index.shape}, grad_output has another")
    if seen.size and (seen.min() < 0 or seen.max() >= size[0] * size[1] * size[2]):
        raise ShapeError(f"{op.name}: an index lies outside of the {size[0] * size[1] * size[2]} pixels of an image")
    return np.ascontiguousarray(seen)


def _pooled(
    op: _Op, grad_output: Array, input_size: Sequence[int], layout: str, threads: int, step: Any, indices: Any = None
) -> np.ndarray:
    """`step` adds the backward step to a plan: (plan, dy, index, in_shape) -> dx."""
    dy = asarray(grad_output, "grad_output")
    im = images(dy, op.rank, layout, op.name)
    shape = _in_shape(op, im, input_size)
    plan = _plan(dy.dtype)
    source = plan.input(im.ndhwc.shape[1:])
    arrays, index = [im.ndhwc], -1
    if indices is not None:
        index = plan.index_input(im.ndhwc.shape[1:])
        arrays.append(_positions(op, indices, layout, im, shape))
    plan.finish([step(plan, source, index, shape)])
    return im.restore(plan.run(arrays, threads, im.channels_first_memory)[0])


def _max_pool(
    op: _Op,
    grad_output: Array,
    indices: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    layout: str = "",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of <op>: each grad_output value goes to the pixel that was the maximum.

    Shapes: grad_output (N,C,<out>); indices (N,C,<out>) of int64, as <op>(..., return_indices=True) gives them;
        each must lie in its window; input_size (N,C,<in>), in the order of `layout`; returns (N,C,<in>).
    Units: kernel_size, stride, padding, dilation in pixels, one integer or one for each dimension.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.<op>_with_indices_backward.
    """
    options = _windows(op, kernel_size, stride, padding, dilation)

    def step(plan: Any, dy: int, index: int, shape: Any) -> int:
        return int(plan.max_pool_backward(dy, index, shape, label=op.name, **options))

    return _pooled(op, grad_output, input_size, layout, threads, step, indices)


def _avg_pool(
    op: _Op,
    grad_output: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of <op>: each grad_output value is shared by the pixels of its window.

    Shapes: grad_output (N,C,<out>); input_size (N,C,<in>), in the order of `layout`; returns (N,C,<in>). ceil_mode
        shows in the shape of grad_output.
    Units: kernel_size, stride, padding in pixels, one integer or one for each dimension.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.<op>_backward.
    """
    options = _windows(op, kernel_size, stride, padding)
    divisor = 0 if divisor_override is None else one_int(divisor_override, "divisor_override")
    if divisor_override is not None and divisor == 0:
        raise ShapeError(f"{op.name}: divisor_override=0, want any other integer")
    options.update(count_include_pad=bool(count_include_pad), divisor=abs(divisor))

    def step(plan: Any, dy: int, index: int, shape: Any) -> int:
        return int(plan.avg_pool_backward(dy, shape, label=op.name, **options))

    dx = _pooled(op, grad_output, input_size, layout, threads, step)
    return dx if divisor >= 0 else np.negative(dx, out=dx)


def _adaptive_avg_pool(
    op: _Op, grad_output: Array, input_size: Sequence[int], *, layout: str = "", threads: int = 0
) -> np.ndarray:
    """The gradient of <op>; the output size is that of grad_output.

    Shapes: grad_output (N,C,<out>); input_size (N,C,<in>), in the order of `layout`; returns (N,C,<in>).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.<op>.
    """

    def step(plan: Any, dy: int, index: int, shape: Any) -> int:
        return int(plan.adaptive_pool_backward(dy, shape, "avg", index, op.name))

    return _pooled(op, grad_output, input_size, layout, threads, step)


def _adaptive_max_pool(
    op: _Op, grad_output: Array, indices: Array, input_size: Sequence[int], *, layout: str = "", threads: int = 0
) -> np.ndarray:
    """The gradient of <op>, from the positions that it gave.

    Shapes: grad_output and indices (N,C,<out>); input_size (N,C,<in>), in the order of `layout`; returns (N,C,<in>).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.<op>_backward.
    """

    def step(plan: Any, dy: int, index: int, shape: Any) -> int:
        return int(plan.adaptive_pool_backward(dy, shape, "max", index, op.name))

    return _pooled(op, grad_output, input_size, layout, threads, step, indices)


max_pool1d_backward = _public(
    _Op("max_pool1d_backward", 1),
    _max_pool,
    '>>> max_pool1d_backward(np.ones((1, 1, 2), "f4"), np.array([[[1, 3]]]), (1, 1, 4), 2)',
    "array([[[0., 1., 0., 1.]]], dtype=float32)",
)
max_pool2d_backward = _public(
    _Op("max_pool2d_backward", 2),
    _max_pool,
    '>>> max_pool2d_backward(np.full((1, 1, 1, 1), 5, "f4"), np.array([[[[2]]]]), (1, 1, 2, 2), 2)[0, 0]',
    "array([[0., 0.],",
    "       [5., 0.]], dtype=float32)",
)
max_pool3d_backward = _public(
    _Op("max_pool3d_backward", 3),
    _max_pool,
    ">>> index = np.full((1, 1, 1, 1, 1), 7)",
    '>>> max_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), index, (1, 1, 2, 2, 2), 2).ravel()',
    "array([0., 0., 0., 0., 0., 0., 0., 1.], dtype=float32)",
)
avg_pool1d_backward = _public(
    _Op("avg_pool1d_backward", 1),
    _avg_pool,
    '>>> avg_pool1d_backward(np.ones((1, 1, 2), "f4"), (1, 1, 4), 2)',
    "array([[[0.5, 0.5, 0.5, 0.5]]], dtype=float32)",
)
avg_pool2d_backward = _public(
    _Op("avg_pool2d_backward", 2),
    _avg_pool,
    '>>> avg_pool2d_backward(np.ones((1, 1, 2, 2), "f4"), (1, 1, 4, 4), 2)[0, 0, 0]',
    "array([0.25, 0.25, 0.25, 0.25], dtype=float32)",
)
avg_pool3d_backward = _public(
    _Op("avg_pool3d_backward", 3),
    _avg_pool,
    '>>> avg_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), (1, 1, 2, 2, 2), 2).ravel()[:2]',
    "array([0.125, 0.125], dtype=float32)",
)
adaptive_avg_pool1d_backward = _public(
    _Op("adaptive_avg_pool1d_backward", 1),
    _adaptive_avg_pool,
    '>>> adaptive_avg_pool1d_backward(np.ones((1, 1, 2), "f4"), (1, 1, 4))',
    "array([[[0.5, 0.5, 0.5, 0.5]]], dtype=float32)",
)
adaptive_avg_pool2d_backward = _public(
    _Op("adaptive_avg_pool2d_backward", 2),
    _adaptive_avg_pool,
    '>>> adaptive_avg_pool2d_backward(np.ones((1, 1, 1, 1), "f4"), (1, 1, 2, 2)).ravel()',
    "array([0.25, 0.25, 0.25, 0.25], dtype=float32)",
)
adaptive_avg_pool3d_backward = _public(
    _Op("adaptive_avg_pool3d_backward", 3),
    _adaptive_avg_pool,
    '>>> adaptive_avg_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), (1, 1, 2, 2, 2)).ravel()[:2]',
    "array([0.125, 0.125], dtype=float32)",
)
adaptive_max_pool1d_backward = _public(
    _Op("adaptive_max_pool1d_backward", 1),
    _adaptive_max_pool,
    '>>> adaptive_max_pool1d_backward(np.ones((1, 1, 2), "f4"), np.array([[[1, 2]]]), (1, 1, 4))',
    "array([[[0., 1., 1., 0.]]], dtype=float32)",
)
adaptive_max_pool2d_backward = _public(
    _Op("adaptive_max_pool2d_backward", 2),
    _adaptive_max_pool,
    '>>> adaptive_max_pool2d_backward(np.ones((1, 1, 1, 1), "f4"), np.array([[[[3]]]]), (1, 1, 2, 2)).ravel()',
    "array([0., 0., 0., 1.], dtype=float32)",
)
adaptive_max_pool3d_backward = _public(
    _Op("adaptive_max_pool3d_backward", 3),
    _adaptive_max_pool,
    ">>> index = np.full((1, 1, 1, 1, 1), 7)",
    '>>> adaptive_max_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), index, (1, 1, 2, 2, 2)).ravel()[6:]',
    "array([0., 1.], dtype=float32)",
)


# Norms


def _channels(op: str, x: np.ndarray, layout: str, channels: int | None = None) -> Images:
    if not 2 <= x.ndim <= 5:
        raise ShapeError(f"{op}: got an array of shape {x.shape}, want (N,C) and up to three more dimensions")
    return images(x, x.ndim - 2, layout, op, batched=True)


def batch_norm_train(
    input: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalise each channel by the statistics of the batch; returns the result, the means and the biased variances.

    Shapes: input (N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W); weight, bias (C,); returns the input's shape, (C,), (C,).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.batch_norm(training=True); Ioffe and Szegedy 2015, arXiv:1502.03167.

    >>> y, mean, var = batch_norm_train(np.array([[1.0], [3.0]], "f4"), eps=0)
    >>> y.ravel(), mean, var
    (array([-1.,  1.], dtype=float32), array([2.], dtype=float32), array([1.], dtype=float32))
    """
    x = asarray(input)
    im = _channels("batch_norm_train", x, layout)
    gamma = per_channel(weight, "weight", x.dtype, (im.channels,))
    beta = per_channel(bias, "bias", x.dtype, (im.channels,))
    plan = _plan(x.dtype)
    y, mean, var = plan.batch_norm_train(plan.input(im.ndhwc.shape[1:]), _vector(gamma), _vector(beta), eps)
    plan.finish([y, mean, var])
    results = plan.run([im.ndhwc], threads, im.channels_first_memory)
    return im.restore(results[0]), results[1].reshape(-1), results[2].reshape(-1)


def batch_norm_backward(
    grad_output: Array,
    input: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of batch norm with the statistics of the batch: of its input, weight and bias.

    Shapes: grad_output, input (N,C,...); weight (C,) or None; mean, var (biased) (C,) of the input;
        returns (N,C,...), (C,), (C,).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.native_batch_norm_backward; Ioffe and Szegedy 2015, arXiv:1502.03167.

    >>> x = np.array([[1.0], [3.0]], "f4")
    >>> one = np.ones(1, "f4")
    >>> batch_norm_backward(np.array([[1.0], [0.0]], "f4"), x, None, 2 * one, one, eps=0)[1:]
    (array([-1.], dtype=float32), array([1.], dtype=float32))
    """
    dy = asarray(grad_output, "grad_output")
    x = asarray(input, "input", dy.dtype)
    if x.shape != dy.shape:
        raise ShapeError(f"batch_norm_backward: grad_output {dy.shape} and input {x.shape} differ in shape")
    im, im_x = _channels("batch_norm_backward", dy, layout), _channels("batch_norm_backward", x, layout)
    shape = (im.channels,)
    gamma, m, v = (
        per_channel(value, name, dy.dtype, shape) for value, name in ((weight, "weight"), (mean, "mean"), (var, "var"))
    )
    if m is None or v is None:
        raise ShapeError("batch_norm_backward: mean and var are needed")
    plan = _plan(dy.dtype)
    sizes = im.ndhwc.shape[1:]
    a, b = plan.input(sizes), plan.input(sizes)
    mean_id, var_id = (plan.parameter(_core.Parameter(np.ascontiguousarray(value))) for value in (m, v))
    plan.finish(list(plan.batch_norm_backward(a, b, mean_id, var_id, _vector(gamma), None, eps)))
    results = plan.run([im.ndhwc, im_x.ndhwc], threads, im.channels_first_memory)
    return im.restore(results[0]), results[1].reshape(-1), results[2].reshape(-1)


def layer_norm_backward(
    grad_output: Array,
    input: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    *,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of layer_norm over the last dimension: of its input, weight and bias.

    Shapes: grad_output, input (...,C); weight (C,) or None; returns (...,C), (C,), (C,).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.native_layer_norm_backward; Ba et al. 2016, arXiv:1607.06450.

    >>> x = np.array([[1.0, 3.0]], "f4")
    >>> layer_norm_backward(np.ones((1, 2), "f4"), x, eps=0)[1:]
    (array([-1.,  1.], dtype=float32), array([1., 1.], dtype=float32))
    """
    dy = asarray(grad_output, "grad_output")
    x = asarray(input, "input", dy.dtype)
    if x.shape != dy.shape or not x.ndim or x.shape[-1] < 1:
        raise ShapeError(f"layer_norm_backward: grad_output {dy.shape} and input {x.shape}, want equal shapes (...,C)")
    c = x.shape[-1]
    gamma = per_channel(weight, "weight", dy.dtype, (c,))
    plan = _plan(dy.dtype)
    a, b = plan.input((1, 1, 1, c)), plan.input((1, 1, 1, c))
    plan.finish(list(plan.layer_norm_backward(a, b, _vector(gamma), eps)))
    results = plan.run([v.reshape(-1, 1, 1, 1, c) for v in (dy, x)], threads)
    return results[0].reshape(x.shape), results[1].reshape(-1), results[2].reshape(-1)


def _vector(value: np.ndarray | None) -> _core.Parameter | None:
    return None if value is None else _core.Parameter(np.ascontiguousarray(value))
