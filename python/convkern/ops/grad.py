"""Gradients of the functions of convkern.ops, named and called as those of torch.nn.grad.

Each takes the gradient of a result, `grad_output`, and gives that of an input. Arrays, layouts and errors are those of
convkern.ops: NumPy or any other CPU array, (N,C,H,W) or `layout="NHWC"`, channels-last strides read in place. Weights
and their gradients are (K,C/G,R,S), those of transposed convolutions (C,K/G,R,S), in every layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def _plan(dtype: np.dtype) -> _core.Plan:
    return _core.Plan("float32" if dtype.itemsize == 4 else "float64", exact=True, training=True)


def _in_shape(op: str, im: Images, input_size: Sequence[int], rank: int, layout: str) -> tuple[int, int, int, int]:
    """(D,H,W,C) of the input whose gradient is wanted; `im` is grad_output."""
    size = tuple(one_int(v, f"{op}: input_size") for v in input_size)
    if len(size) != rank + (2 if im.batched else 1):
        raise ShapeError(f"{op}: input_size={size} has not as many dimensions as grad_output")
    if im.batched and size[0] != len(im.ndhwc):
        raise ShapeError(f"{op}: input_size={size} has {size[0]} images, grad_output {len(im.ndhwc)}")
    size = size[1:] if im.batched else size
    spatial, channels = (size[:-1], size[-1]) if im.channels_last else (size[1:], size[0])
    if min(size) < 1:
        raise ShapeError(f"{op}: input_size={tuple(input_size)}; only the batch may be empty")
    return (*triple(spatial, 1), channels)


def _geometry(op: str, rank: int, stride: Any, padding: Any, dilation: Any, groups: Any) -> dict[str, Any]:
    pads = triple(ints(padding, rank, f"{op}: padding"), 0)
    return dict(
        stride=triple(ints(stride, rank, f"{op}: stride", 1), 1),
        pad_lo=pads,
        pad_hi=pads,
        dilation=triple(ints(dilation, rank, f"{op}: dilation", 1), 1),
        groups=one_int(groups, f"{op}: groups"),
    )


def _unlaid(dw: np.ndarray, groups: int, transposed: bool, rank: int) -> np.ndarray:
    """The plan's (T,R,S,C/G,K) as torch's (K,C/G,R,S), transposed (C,K/G,R,S)."""
    dw = dw.reshape(dw.shape[3 - rank :])
    window = tuple(range(rank))
    if not transposed:
        return np.ascontiguousarray(dw.transpose(rank + 1, rank, *window))
    cg: int = dw.shape[rank]
    k: int = dw.shape[rank + 1]
    dw = dw.reshape(*dw.shape[:rank], cg, groups, k // groups).transpose(rank + 1, rank, rank + 2, *window)
    return np.ascontiguousarray(dw.reshape(groups * cg, k // groups, *dw.shape[3:]))


def _conv_input(
    rank: int,
    transposed: bool,
    input_size: Any,
    weight: Array,
    grad_output: Array,
    geometry: Any,
    layout: str,
    threads: int,
) -> np.ndarray:
    op = f"conv{'_transpose' if transposed else ''}{rank}d_input"
    dy = asarray(grad_output, "grad_output")
    w = asarray(weight, "weight", dy.dtype)
    im = images(dy, rank, layout, op)
    g = _geometry(op, rank, *geometry)
    if w.ndim != rank + 2 or min(w.shape) < 1 or g["groups"] < 1 or w.shape[0] % g["groups"]:
        raise ShapeError(f"{op}: a weight of shape {w.shape} with groups={g['groups']} is none of a convolution")
    shape = _in_shape(op, im, input_size, rank, layout)
    plan = _plan(dy.dtype)
    source = plan.input(im.ndhwc.shape[1:])
    parameter = _core.Parameter(np.ascontiguousarray(_relaid(w, g["groups"], transposed)))
    dx = plan.conv_backward_data(source, parameter, shape, transposed=transposed, label=op, **g)
    plan.finish([dx])
    return im.restore(plan.run([im.ndhwc], threads, im.channels_first_memory)[0])


def _conv_weight(
    rank: int,
    transposed: bool,
    input: Array,
    weight_size: Any,
    grad_output: Array,
    geometry: Any,
    layout: str,
    threads: int,
) -> np.ndarray:
    op = f"conv{'_transpose' if transposed else ''}{rank}d_weight"
    x = asarray(input)
    dy = asarray(grad_output, "grad_output", x.dtype)
    im, im_dy = images(x, rank, layout, op), images(dy, rank, layout, op)
    g = _geometry(op, rank, *geometry)
    size = tuple(one_int(v, f"{op}: weight_size") for v in weight_size)
    groups = g["groups"]
    want = (
        (im.channels, im_dy.channels // max(groups, 1))
        if transposed
        else (im_dy.channels, im.channels // max(groups, 1))
    )
    if len(size) != rank + 2 or size[:2] != want or min(size) < 1:
        raise ShapeError(
            f"{op}: weight_size={size} does not fit {im.channels} channels, {im_dy.channels} filters, groups={groups}"
        )
    if len(im.ndhwc) != len(im_dy.ndhwc):
        raise ShapeError(f"{op}: the input has {len(im.ndhwc)} images, grad_output {len(im_dy.ndhwc)}")
    plan = _plan(x.dtype)
    a, b = plan.input(im.ndhwc.shape[1:]), plan.input(im_dy.ndhwc.shape[1:])
    dw = plan.conv_backward_weight(a, b, kernel=triple(size[2:], 1), transposed=transposed, label=op, **g)
    plan.finish([dw])
    flat = plan.run([im.ndhwc, im_dy.ndhwc], threads)[0]
    k = im_dy.channels
    return _unlaid(flat.reshape(*flat.shape[:3], -1, k), groups, transposed, rank)


def conv1d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv1d with respect to its input; see conv2d_input.

    Shapes: input_size (N,C,L); weight (K,C/G,S); grad_output (N,K,Q); returns (N,C,L).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv1d_input.

    >>> conv1d_input((1, 1, 4), np.ones((1, 1, 2), "f4"), np.ones((1, 1, 3), "f4"))
    array([[[1., 2., 2., 1.]]], dtype=float32)
    """
    return _conv_input(1, False, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv2d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv2d with respect to its input: each grad_output pixel is spread back through the filters.

    Shapes: input_size (N,C,H,W), in the order of `layout`; weight (K,C/G,R,S); grad_output (N,K,P,Q);
        returns (N,C,H,W).
    Units: stride, padding, dilation in pixels, one integer or (h, w), as of the convolution.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv2d_input.

    >>> conv2d_input((1, 1, 3, 3), np.ones((1, 1, 2, 2), "f4"), np.ones((1, 1, 2, 2), "f4"))[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)
    """
    return _conv_input(2, False, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv3d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv3d with respect to its input; see conv2d_input.

    Shapes: input_size (N,C,D,H,W); weight (K,C/G,T,R,S); grad_output (N,K,Z,P,Q); returns (N,C,D,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv3d_input.

    >>> conv3d_input((1, 2, 4, 5, 6), np.ones((3, 2, 3, 3, 3), "f4"), np.ones((1, 3, 2, 3, 4), "f4")).shape
    (1, 2, 4, 5, 6)
    """
    return _conv_input(3, False, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv1d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv1d with respect to its weight; see conv2d_weight.

    Shapes: input (N,C,L); weight_size (K,C/G,S); grad_output (N,K,Q); returns (K,C/G,S).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv1d_weight.

    >>> conv1d_weight(np.arange(4, dtype="f4").reshape(1, 1, 4), (1, 1, 2), np.ones((1, 1, 3), "f4"))
    array([[[3., 6.]]], dtype=float32)
    """
    return _conv_weight(1, False, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv2d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv2d with respect to its weight, summed over the batch.

    Shapes: input (N,C,H,W); weight_size (K,C/G,R,S); grad_output (N,K,P,Q); returns (K,C/G,R,S).
    Units: stride, padding, dilation in pixels, one integer or (h, w), as of the convolution.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv2d_weight.

    >>> conv2d_weight(np.ones((2, 3, 8, 8), "f4"), (4, 3, 3, 3), np.ones((2, 4, 6, 6), "f4"))[0, 0, 0]
    array([72., 72., 72.], dtype=float32)
    """
    return _conv_weight(2, False, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv3d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv3d with respect to its weight; see conv2d_weight.

    Shapes: input (N,C,D,H,W); weight_size (K,C/G,T,R,S); grad_output (N,K,Z,P,Q); returns (K,C/G,T,R,S).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.grad.conv3d_weight.

    >>> conv3d_weight(np.ones((1, 2, 4, 5, 6), "f4"), (3, 2, 3, 3, 3), np.ones((1, 3, 2, 3, 4), "f4")).shape
    (3, 2, 3, 3, 3)
    """
    return _conv_weight(3, False, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose1d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose1d with respect to its input; see conv_transpose2d_input.

    Shapes: input_size (N,C,L); weight (C,K/G,S); grad_output (N,K,Q); returns (N,C,L).
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose1d.

    >>> conv_transpose1d_input((1, 1, 3), np.ones((1, 1, 2), "f4"), np.ones((1, 1, 6), "f4"), stride=2)
    array([[[2., 2., 2.]]], dtype=float32)
    """
    return _conv_input(1, True, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose2d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose2d with respect to its input: a convolution of grad_output.

    Shapes: input_size (N,C,H,W), in the order of `layout`; weight (C,K/G,R,S); grad_output (N,K,P,Q);
        returns (N,C,H,W). What output_padding added shows in grad_output.
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose2d.

    >>> conv_transpose2d_input((1, 3, 7, 7), np.ones((3, 8, 4, 4), "f4"), np.ones((1, 8, 14, 14), "f4"), 2, 1).shape
    (1, 3, 7, 7)
    """
    return _conv_input(2, True, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose3d_input(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose3d with respect to its input; see conv_transpose2d_input.

    Shapes: input_size (N,C,D,H,W); weight (C,K/G,T,R,S); grad_output (N,K,Z,P,Q); returns (N,C,D,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose3d.

    >>> dy = np.ones((1, 4, 6, 6, 6), "f4")
    >>> conv_transpose3d_input((1, 2, 3, 3, 3), np.ones((2, 4, 2, 2, 2), "f4"), dy, stride=2).shape
    (1, 2, 3, 3, 3)
    """
    return _conv_input(3, True, input_size, weight, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose1d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose1d with respect to its weight; see conv_transpose2d_weight.

    Shapes: input (N,C,L); weight_size (C,K/G,S); grad_output (N,K,Q); returns (C,K/G,S).
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose1d.

    >>> conv_transpose1d_weight(np.ones((1, 1, 3), "f4"), (1, 1, 2), np.ones((1, 1, 6), "f4"), stride=2)
    array([[[3., 3.]]], dtype=float32)
    """
    return _conv_weight(1, True, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose2d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose2d with respect to its weight, summed over the batch.

    Shapes: input (N,C,H,W); weight_size (C,K/G,R,S); grad_output (N,K,P,Q); returns (C,K/G,R,S).
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose2d.

    >>> x, dy = np.ones((1, 3, 7, 7), "f4"), np.ones((1, 8, 14, 14), "f4")
    >>> conv_transpose2d_weight(x, (3, 8, 4, 4), dy, stride=2, padding=1).shape
    (3, 8, 4, 4)
    """
    return _conv_weight(2, True, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


def conv_transpose3d_weight(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of conv_transpose3d with respect to its weight; see conv_transpose2d_weight.

    Shapes: input (N,C,D,H,W); weight_size (C,K/G,T,R,S); grad_output (N,K,Z,P,Q); returns (C,K/G,T,R,S).
    Raises: ShapeError with the shapes; DTypeError.
    Source: the adjoint of torch.nn.functional.conv_transpose3d.

    >>> x, dy = np.ones((1, 2, 3, 3, 3), "f4"), np.ones((1, 4, 6, 6, 6), "f4")
    >>> conv_transpose3d_weight(x, (2, 4, 2, 2, 2), dy, stride=2).shape
    (2, 4, 2, 2, 2)
    """
    return _conv_weight(3, True, input, weight_size, grad_output, (stride, padding, dilation, groups), layout, threads)


# Pooling


def _windows(op: str, rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> dict[str, Any]:
    window = ints(kernel_size, rank, f"{op}: kernel_size", 1)
    pads = triple(ints(padding, rank, f"{op}: padding"), 0)
    return dict(
        window=triple(window, 1),
        stride=triple(window if stride is None or stride == () else ints(stride, rank, f"{op}: stride", 1), 1),
        pad_lo=pads,
        pad_hi=pads,
        dilation=triple(ints(dilation, rank, f"{op}: dilation", 1), 1),
    )


def _positions(
    op: str, indices: Array, rank: int, layout: str, im: Images, size: tuple[int, int, int, int]
) -> np.ndarray:
    """The positions of maxima as the plan's (N,D,H,W,C) of int64."""
    index = as_ndarray(indices, "indices")
    if index.dtype != np.int64:
        raise DTypeError(f"indices: got elements of {index.dtype}, want int64")
    seen = images(index, rank, layout, op).ndhwc
    if seen.shape != im.ndhwc.shape:
        raise ShapeError(f"{op}: indices have the shape {index.shape}, grad_output has another")
    if seen.size and (seen.min() < 0 or seen.max() >= size[0] * size[1] * size[2]):
        raise ShapeError(f"{op}: an index lies outside of the {size[0] * size[1] * size[2]} pixels of an image")
    return np.ascontiguousarray(seen)


def _pool_backward(
    rank: int, op: str, grad_output: Array, input_size: Any, layout: str, threads: int, step: Any, indices: Any = None
) -> np.ndarray:
    """`step` adds the backward step to a plan: (plan, dy, index, in_shape) -> dx."""
    dy = asarray(grad_output, "grad_output")
    im = images(dy, rank, layout, op)
    shape = _in_shape(op, im, input_size, rank, layout)
    plan = _plan(dy.dtype)
    source = plan.input(im.ndhwc.shape[1:])
    arrays, index = [im.ndhwc], -1
    if indices is not None:
        index = plan.index_input(im.ndhwc.shape[1:])
        arrays.append(_positions(op, indices, rank, layout, im, shape))
    plan.finish([step(plan, source, index, shape)])
    return im.restore(plan.run(arrays, threads, im.channels_first_memory)[0])


def _max_pool(
    rank: int, grad_output: Array, indices: Array, input_size: Any, geometry: Any, layout: str, threads: int
) -> np.ndarray:
    op = f"max_pool{rank}d_backward"
    options = _windows(op, rank, *geometry)
    return _pool_backward(
        rank, op, grad_output, input_size, layout, threads,
        lambda plan, dy, index, shape: plan.max_pool_backward(dy, index, shape, label=op, **options), indices,
    )  # fmt: skip


def max_pool1d_backward(
    grad_output: Array,
    indices: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of max_pool1d; see max_pool2d_backward.

    Shapes: grad_output and indices (N,C,Q); input_size (N,C,L); returns (N,C,L).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.max_pool1d.

    >>> max_pool1d_backward(np.ones((1, 1, 2), "f4"), np.array([[[1, 3]]]), (1, 1, 4), 2)
    array([[[0., 1., 0., 1.]]], dtype=float32)
    """
    return _max_pool(1, grad_output, indices, input_size, (kernel_size, stride, padding, dilation), layout, threads)


def max_pool2d_backward(
    grad_output: Array,
    indices: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of max_pool2d: each grad_output value goes to the pixel that was the maximum.

    Shapes: grad_output (N,C,P,Q); indices (N,C,P,Q) of int64, as max_pool2d(..., return_indices=True) gives them; each
        must lie in its window; input_size (N,C,H,W), in the order of `layout`; returns (N,C,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.max_pool2d_with_indices_backward.

    >>> max_pool2d_backward(np.full((1, 1, 1, 1), 5, "f4"), np.array([[[[2]]]]), (1, 1, 2, 2), 2)[0, 0]
    array([[0., 0.],
           [5., 0.]], dtype=float32)
    """
    return _max_pool(2, grad_output, indices, input_size, (kernel_size, stride, padding, dilation), layout, threads)


def max_pool3d_backward(
    grad_output: Array,
    indices: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of max_pool3d; see max_pool2d_backward.

    Shapes: grad_output and indices (N,C,Z,P,Q); input_size (N,C,D,H,W); returns (N,C,D,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.max_pool3d_with_indices_backward.

    >>> max_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), np.full((1, 1, 1, 1, 1), 7), (1, 1, 2, 2, 2), 2).ravel()
    array([0., 0., 0., 0., 0., 0., 0., 1.], dtype=float32)
    """
    return _max_pool(3, grad_output, indices, input_size, (kernel_size, stride, padding, dilation), layout, threads)


def _avg_pool(
    rank: int,
    grad_output: Array,
    input_size: Any,
    geometry: Any,
    count_include_pad: bool,
    divisor_override: int | None,
    layout: str,
    threads: int,
) -> np.ndarray:
    op = f"avg_pool{rank}d_backward"
    options = _windows(op, rank, *geometry)
    divisor = 0 if divisor_override is None else one_int(divisor_override, "divisor_override")
    if divisor_override is not None and divisor == 0:
        raise ShapeError(f"{op}: divisor_override=0, want any other integer")
    options.update(count_include_pad=bool(count_include_pad), divisor=abs(divisor))
    dx = _pool_backward(
        rank, op, grad_output, input_size, layout, threads,
        lambda plan, dy, index, shape: plan.avg_pool_backward(dy, shape, label=op, **options),
    )  # fmt: skip
    return dx if divisor >= 0 else np.negative(dx, out=dx)


def avg_pool1d_backward(
    grad_output: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    count_include_pad: bool = True,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of avg_pool1d; see avg_pool2d_backward.

    Shapes: grad_output (N,C,Q); input_size (N,C,L); returns (N,C,L).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.avg_pool1d.

    >>> avg_pool1d_backward(np.ones((1, 1, 2), "f4"), (1, 1, 4), 2)
    array([[[0.5, 0.5, 0.5, 0.5]]], dtype=float32)
    """
    geometry = (kernel_size, stride, padding)
    return _avg_pool(1, grad_output, input_size, geometry, count_include_pad, None, layout, threads)


def avg_pool2d_backward(
    grad_output: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of avg_pool2d: each grad_output value is shared by the pixels of its window.

    Shapes: grad_output (N,C,P,Q); input_size (N,C,H,W), in the order of `layout`; returns (N,C,H,W). ceil_mode shows in
        the shape of grad_output.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.avg_pool2d_backward.

    >>> avg_pool2d_backward(np.ones((1, 1, 2, 2), "f4"), (1, 1, 4, 4), 2)[0, 0, 0]
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    geometry = (kernel_size, stride, padding)
    return _avg_pool(2, grad_output, input_size, geometry, count_include_pad, divisor_override, layout, threads)


def avg_pool3d_backward(
    grad_output: Array,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The gradient of avg_pool3d; see avg_pool2d_backward.

    Shapes: grad_output (N,C,Z,P,Q); input_size (N,C,D,H,W); returns (N,C,D,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.avg_pool3d_backward.

    >>> avg_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), (1, 1, 2, 2, 2), 2).ravel()[:2]
    array([0.125, 0.125], dtype=float32)
    """
    geometry = (kernel_size, stride, padding)
    return _avg_pool(3, grad_output, input_size, geometry, count_include_pad, divisor_override, layout, threads)


def _adaptive(
    rank: int, kind: str, grad_output: Array, input_size: Any, layout: str, threads: int, indices: Any = None
) -> np.ndarray:
    op = f"adaptive_{kind}_pool{rank}d_backward"
    return _pool_backward(
        rank, op, grad_output, input_size, layout, threads,
        lambda plan, dy, index, shape: plan.adaptive_pool_backward(dy, shape, kind, index, op), indices,
    )  # fmt: skip


def adaptive_avg_pool1d_backward(
    grad_output: Array, input_size: Sequence[int], *, layout: str = "NCL", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_avg_pool1d; see adaptive_avg_pool2d_backward.

    >>> adaptive_avg_pool1d_backward(np.ones((1, 1, 2), "f4"), (1, 1, 4))
    array([[[0.5, 0.5, 0.5, 0.5]]], dtype=float32)
    """
    return _adaptive(1, "avg", grad_output, input_size, layout, threads)


def adaptive_avg_pool2d_backward(
    grad_output: Array, input_size: Sequence[int], *, layout: str = "NCHW", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_avg_pool2d; the output size is that of grad_output.

    Shapes: grad_output (N,C,P,Q); input_size (N,C,H,W), in the order of `layout`; returns (N,C,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.adaptive_avg_pool2d.

    >>> adaptive_avg_pool2d_backward(np.ones((1, 1, 1, 1), "f4"), (1, 1, 2, 2)).ravel()
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    return _adaptive(2, "avg", grad_output, input_size, layout, threads)


def adaptive_avg_pool3d_backward(
    grad_output: Array, input_size: Sequence[int], *, layout: str = "NCDHW", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_avg_pool3d; see adaptive_avg_pool2d_backward.

    >>> adaptive_avg_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), (1, 1, 2, 2, 2)).ravel()[:2]
    array([0.125, 0.125], dtype=float32)
    """
    return _adaptive(3, "avg", grad_output, input_size, layout, threads)


def adaptive_max_pool1d_backward(
    grad_output: Array, indices: Array, input_size: Sequence[int], *, layout: str = "NCL", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_max_pool1d; see adaptive_max_pool2d_backward.

    >>> adaptive_max_pool1d_backward(np.ones((1, 1, 2), "f4"), np.array([[[1, 2]]]), (1, 1, 4))
    array([[[0., 1., 1., 0.]]], dtype=float32)
    """
    return _adaptive(1, "max", grad_output, input_size, layout, threads, indices)


def adaptive_max_pool2d_backward(
    grad_output: Array, indices: Array, input_size: Sequence[int], *, layout: str = "NCHW", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_max_pool2d, from the positions that it gave.

    Shapes: grad_output and indices (N,C,P,Q); input_size (N,C,H,W), in the order of `layout`; returns (N,C,H,W).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.ops.aten.adaptive_max_pool2d_backward.

    >>> adaptive_max_pool2d_backward(np.ones((1, 1, 1, 1), "f4"), np.array([[[[3]]]]), (1, 1, 2, 2)).ravel()
    array([0., 0., 0., 1.], dtype=float32)
    """
    return _adaptive(2, "max", grad_output, input_size, layout, threads, indices)


def adaptive_max_pool3d_backward(
    grad_output: Array, indices: Array, input_size: Sequence[int], *, layout: str = "NCDHW", threads: int = 0
) -> np.ndarray:
    """The gradient of adaptive_max_pool3d; see adaptive_max_pool2d_backward.

    >>> index = np.full((1, 1, 1, 1, 1), 7)
    >>> adaptive_max_pool3d_backward(np.ones((1, 1, 1, 1, 1), "f4"), index, (1, 1, 2, 2, 2)).ravel()[6:]
    array([0., 1.], dtype=float32)
    """
    return _adaptive(3, "max", grad_output, input_size, layout, threads, indices)


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
