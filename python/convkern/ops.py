"""Functions on arrays, with the names, arguments, defaults and results of torch.nn.functional.

Arrays: NumPy, or any CPU object with `__dlpack__` or `__array_interface__` (PyTorch CPU tensors), read without a copy,
read-only or strided as they come; results are new ndarrays. float32 computes in float32; float64 runs on the reference
kernels, for checks; any other element type is a DTypeError. Axes are (N,C,H,W), or (C,H,W) without a batch, as in
PyTorch; `layout="NHWC"` takes and gives (N,H,W,C). Weights are (K,C/G,R,S) in both. NHWC memory seen as (N,C,H,W)
(PyTorch's channels_last) is read in place, and the result is laid out in the same way.

Sizes are in pixels. `threads` limits one call (0 = convkern.set_num_threads). All functions raise ShapeError or
DTypeError, with the values, for what PyTorch refuses, and Unsupported for what is not served here.

A call builds a plan of one step and runs it; for whole networks use convkern.layers, which keep their plan and packed
weights.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from . import _core
from .arrays import Images, as_ndarray, asarray, images
from .errors import DTypeError, ShapeError, Unsupported
from .graph import conv_size, conv_transpose_size, pool_size

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "add", "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm", "cat", "concat", "conv1d",
    "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "div", "dropout", "elu",
    "flatten", "gelu", "hardsigmoid", "hardswish", "hardtanh", "interpolate", "layer_norm", "leaky_relu", "linear",
    "local_response_norm", "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d", "maximum", "minimum", "mul",
    "pad", "relu", "relu6", "sigmoid", "silu", "softmax", "softplus", "sub", "tanh",
]  # fmt: skip

Array = Any  # an ndarray or any other CPU array
Ints = int | Sequence[int]
Triple = tuple[int, int, int]

_MAX_SIZE = 2**40  # of one dimension, stride or padding: products with it stay inside int64
_MAX_ELEMENTS = 2**60


# Arguments


def _int(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: got {value!r}, want an integer") from None
    if abs(number) > _MAX_SIZE:
        raise ShapeError(f"{name}={number} overflows")
    return number


def _ints(value: Any, count: int, name: str, least: int = 0) -> tuple[int, ...]:
    """`count` integers >= least, from one integer, a sequence of one, or a sequence of `count`."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = tuple(_int(v, name) for v in value)
        if len(numbers) == 1:
            numbers *= count
    else:
        numbers = (_int(value, name),) * count
    if len(numbers) != count:
        raise ShapeError(f"{name}={numbers} has {len(numbers)} entries, want 1 or {count}")
    if min(numbers) < least:
        raise ShapeError(f"{name}={numbers}, want every entry to be at least {least}")
    return numbers


def _triple(values: Sequence[int], fill: int) -> Triple:
    """Spatial values of 1, 2 or 3 dimensions as (d, h, w)."""
    d, h, w = (fill,) * (3 - len(values)) + tuple(values)
    return d, h, w


def _no_inplace(inplace: bool) -> None:
    if inplace:
        raise Unsupported("inplace=True: results are always new arrays")


def _nonempty(op: str, im: Images) -> None:
    if min(im.ndhwc.shape[1:]) < 1:
        raise ShapeError(
            f"{op}: got an image of {im.spatial} pixels and {im.channels} channels; only the batch may be empty"
        )


def _check_output(op: str, n: int, spatial: Sequence[int], channels: int) -> None:
    if min(spatial) < 1:
        raise ShapeError(f"{op}: the output would have {tuple(spatial)} pixels; every size must be at least 1")
    if max(n, 1) * math.prod(spatial) * channels > _MAX_ELEMENTS:
        raise ShapeError(f"{op}: an output of {n} x {tuple(spatial)} x {channels} values overflows")


def _per_channel(value: Array | None, name: str, like: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    array = asarray(value, name, like)
    if array.shape != shape:
        raise ShapeError(f"{name}: got shape {array.shape}, want {shape}")
    return array


# Plans of one step


def _start(x: np.ndarray) -> tuple[_core.Plan, int]:
    """A plan with one input of the shape of x (N,D,H,W,C)."""
    plan = _core.Plan(x.dtype.name)
    return plan, plan.input(x.shape[1:])


def _finish(plan: _core.Plan, tensor: int, im: Images, threads: int) -> np.ndarray:
    plan.finish([tensor])
    return im.restore(plan.run([im.ndhwc], threads, im.channels_first_memory)[0])


# Convolution


def _conv(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    layout: str,
    threads: int,
    output_padding: Any = None,
) -> np.ndarray:
    """All convolutions; output_padding is None but for the transposed ones."""
    transposed = output_padding is not None
    op = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    x = asarray(input)
    w = asarray(weight, "weight", x.dtype)
    im = images(x, rank, layout, op)
    if w.ndim != rank + 2:
        raise ShapeError(f"{op}: got a weight of shape {w.shape}, want {rank + 2} dimensions")
    if min(w.shape) < 1:
        raise ShapeError(f"{op}: got a weight of shape {w.shape}; every size must be at least 1")
    strides, dilations = _ints(stride, rank, "stride", 1), _ints(dilation, rank, "dilation", 1)
    groups = _int(groups, "groups")
    window = w.shape[2:]
    if groups < 1 or w.shape[0] % groups:
        raise ShapeError(
            f"{op}: groups={groups} does not divide the {w.shape[0]} filters of a weight of shape {w.shape}"
        )
    c = w.shape[0] if transposed else w.shape[1] * groups
    k = w.shape[1] * groups if transposed else w.shape[0]
    if im.channels != c:
        raise ShapeError(
            f"{op}: a weight of shape {w.shape} with groups={groups} wants {c} channels, "
            f"the input {x.shape} has {im.channels}"
        )
    b = _per_channel(bias, "bias", x.dtype, (k,))
    extra: tuple[int, ...] = (0,) * rank
    if isinstance(padding, str) and not transposed:
        lo, hi = _named_padding(op, padding, window, strides, dilations)
    else:
        lo = hi = _ints(padding, rank, "padding")
    if transposed:
        extra = _ints(output_padding, rank, "output_padding")
        if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations)):
            raise ShapeError(
                f"{op}: output_padding={extra}, want less than the stride {strides} or the dilation {dilations}"
            )
        out = [
            conv_transpose_size(n, *sizes) for n, *sizes in zip(im.spatial, window, strides, lo, hi, dilations, extra)
        ]
    else:
        out = [conv_size(n, *sizes) for n, *sizes in zip(im.spatial, window, strides, lo, hi, dilations)]
        if any(n + a + b < d * (r - 1) + 1 for n, a, b, d, r in zip(im.spatial, lo, hi, dilations, window)):
            raise ShapeError(
                f"{op}: a kernel of {window} (dilation {dilations}) is larger than the input {im.spatial} "
                f"padded by {lo}, {hi}"
            )
    _nonempty(op, im)
    _check_output(op, len(im.ndhwc), out, k)
    plan, source = _start(im.ndhwc)
    y = plan.conv(
        source,
        _core.Parameter(_relaid(w, groups, transposed)),
        b,
        stride=_triple(strides, 1),
        pad_lo=_triple(lo, 0),
        pad_hi=_triple(hi, 0),
        dilation=_triple(dilations, 1),
        groups=groups,
        transposed=transposed,
        output_padding=_triple(extra, 0),
        label=op,
    )
    return _finish(plan, y, im, threads)


def _named_padding(
    op: str, padding: str, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """padding="valid" or "same"; the odd pixel of "same" goes to the high side."""
    if padding == "valid":
        zeros = (0,) * len(window)
        return zeros, zeros
    if padding != "same":
        raise ShapeError(f"{op}: padding={padding!r}; want integers, 'same' or 'valid'")
    if max(strides) > 1:
        raise ShapeError(f"{op}: padding='same' needs a stride of 1, got {tuple(strides)}")
    total = [d * (r - 1) for d, r in zip(dilations, window)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _relaid(w: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    """torch's (K,C/G,R,S), transposed (C,K/G,R,S), as the plan's (T,R,S,C/G,K)."""
    rank = w.ndim - 2
    if not transposed:
        w = w.transpose(*range(2, rank + 2), 1, 0)
    elif groups == 1:
        w = w.transpose(*range(2, rank + 2), 0, 1)
    else:
        c, kg, *window = w.shape
        w = w.reshape(groups, c // groups, kg, *window).transpose(*range(3, rank + 3), 1, 0, 2)
        w = w.reshape(*window, c // groups, groups * kg)
    return np.ascontiguousarray(w[(None,) * (3 - rank)])


def conv1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """Cross-correlate sequences with a filter bank.

    Shapes: input (N,C,L) or (C,L); weight (K,C/G,S); bias (K,); returns (N,K,Q),
        Q = (L + 2*padding - dilation*(S-1) - 1)//stride + 1.
    Units: stride, padding, dilation in samples; padding also "valid" (0) or "same" (Q = L, stride 1 only).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv1d.

    >>> conv1d(np.ones((1, 4, 10), "f4"), np.ones((8, 4, 3), "f4"), padding="same").shape
    (1, 8, 10)
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, layout, threads)


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """Cross-correlate images with a filter bank.

    Shapes: input (N,C,H,W) or (C,H,W); weight (K,C/G,R,S); bias (K,); returns (N,K,P,Q),
        P = (H + 2*padding - dilation*(R-1) - 1)//stride + 1, Q likewise.
    Units: stride, padding, dilation in pixels, one integer or (h, w); padding also "valid" or "same".
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv2d.

    >>> conv2d(np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 2, 2), "f4"))[0, 0]
    array([[4., 4.],
           [4., 4.]], dtype=float32)
    >>> conv2d(np.ones((2, 9, 9, 3), "f4"), np.ones((8, 3, 3, 3), "f4"), stride=2, layout="NHWC").shape
    (2, 4, 4, 8)
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, layout, threads)


def conv3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """Cross-correlate volumes (or video) with a filter bank.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); weight (K,C/G,T,R,S); bias (K,); returns (N,K,Z,P,Q),
        Z = (D + 2*padding - dilation*(T-1) - 1)//stride + 1, P and Q likewise.
    Units: stride, padding, dilation in pixels, one integer or (d, h, w); padding also "valid" or "same".
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv3d.

    >>> conv3d(np.ones((1, 2, 4, 5, 6), "f4"), np.ones((3, 2, 3, 3, 3), "f4")).shape
    (1, 3, 2, 3, 4)
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, layout, threads)


def conv_transpose1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """Transposed convolution of sequences: each sample is spread over the output through the filters.

    Shapes: input (N,C,L) or (C,L); weight (C,K/G,S); bias (K,); returns (N,K,Q),
        Q = (L-1)*stride - 2*padding + dilation*(S-1) + output_padding + 1.
    Units: samples of the output; output_padding must be smaller than the stride or the dilation.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv_transpose1d.

    >>> conv_transpose1d(np.ones((1, 1, 3), "f4"), np.ones((1, 1, 2), "f4"), stride=2)
    array([[[1., 1., 1., 1., 1., 1.]]], dtype=float32)
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, layout, threads, output_padding)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """Transposed convolution of images (the gradient of conv2d with respect to its input).

    Shapes: input (N,C,H,W) or (C,H,W); weight (C,K/G,R,S); bias (K,); returns (N,K,P,Q),
        P = (H-1)*stride - 2*padding + dilation*(R-1) + output_padding + 1, Q likewise.
    Units: pixels of the output; output_padding must be smaller than the stride or the dilation.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv_transpose2d.

    >>> conv_transpose2d(np.ones((1, 3, 7, 7), "f4"), np.ones((3, 8, 4, 4), "f4"), stride=2, padding=1).shape
    (1, 8, 14, 14)
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, layout, threads, output_padding)


def conv_transpose3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """Transposed convolution of volumes.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); weight (C,K/G,T,R,S); bias (K,); returns (N,K,Z,P,Q),
        Z = (D-1)*stride - 2*padding + dilation*(T-1) + output_padding + 1, P and Q likewise.
    Units: pixels of the output; output_padding must be smaller than the stride or the dilation.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.conv_transpose3d.

    >>> conv_transpose3d(np.ones((1, 2, 3, 3, 3), "f4"), np.ones((2, 4, 2, 2, 2), "f4"), stride=2).shape
    (1, 4, 6, 6, 6)
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, layout, threads, output_padding)


def linear(input: Array, weight: Array, bias: Array | None = None, *, threads: int = 0) -> np.ndarray:
    """Multiply the last axis by a matrix: y = x @ weight.T + bias.

    Shapes: input (...,C); weight (K,C) or (C,); bias (K,) or (); returns (...,K), or (...) for a weight (C,).
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.linear.

    >>> linear(np.ones((2, 3), "f4"), np.eye(4, 3, dtype="f4"), np.arange(4, dtype="f4"))
    array([[1., 2., 3., 3.],
           [1., 2., 3., 3.]], dtype=float32)
    """
    x = asarray(input)
    w = asarray(weight, "weight", x.dtype)
    if w.ndim not in (1, 2) or x.ndim < 1 or x.shape[-1] != w.shape[-1] or min(w.shape) < 1:
        raise ShapeError(
            f"linear: an input of shape {x.shape} does not fit a weight of shape {w.shape}; want (...,C) and (K,C)"
        )
    b = _per_channel(bias, "bias", x.dtype, w.shape[:-1])
    out_shape = x.shape[:-1] + w.shape[:-1]
    if not x.size:
        return np.empty(out_shape, x.dtype)
    rows = _as_rows(x)
    plan, source = _start(rows)
    matrix = np.ascontiguousarray(w.reshape(-1, w.shape[-1]).T)[None, None, None]
    y = plan.conv(source, _core.Parameter(matrix), None if b is None else b.reshape(-1), label="linear")
    plan.finish([y])
    return plan.run([rows], threads)[0].reshape(out_shape)


def _as_rows(x: np.ndarray) -> np.ndarray:
    """(..., C) as (N,D,H,W,C): a view for up to five dimensions."""
    if x.ndim > 5:
        return x.reshape(-1, 1, 1, 1, x.shape[-1])
    if x.ndim == 1:
        return x[None, None, None, None]
    return x[(slice(None), *(None,) * (5 - x.ndim))]


# Pooling


def _pool(
    rank: int,
    kind: str,
    input: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    layout: str,
    threads: int,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    return_indices: bool = False,
) -> Any:
    op = f"{kind}_pool{rank}d"
    x = asarray(input)
    im = images(x, rank, layout, op)
    _nonempty(op, im)
    window = _ints(kernel_size, rank, "kernel_size", 1)
    strides = window if stride is None or stride == () else _ints(stride, rank, "stride", 1)
    pads, dilations = _ints(padding, rank, "padding"), _ints(dilation, rank, "dilation", 1)
    divisor = 0 if divisor_override is None else _int(divisor_override, "divisor_override")
    if divisor_override is not None and divisor < 1:
        raise ShapeError(f"{op}: divisor_override={divisor}, want at least 1")
    if any(2 * p > r for p, r in zip(pads, window)):
        raise ShapeError(f"{op}: padding={pads}, want at most half of the kernel {window}")
    out = [
        pool_size(n, r, s, p, p, d, bool(ceil_mode))
        for n, r, s, p, d in zip(im.spatial, window, strides, pads, dilations)
    ]
    _check_output(op, len(im.ndhwc), out, im.channels)
    plan, source = _start(im.ndhwc)
    y = plan.pool(
        source,
        kind,
        window=_triple(window, 1),
        stride=_triple(strides, 1),
        pad_lo=_triple(pads, 0),
        pad_hi=_triple(pads, 0),
        dilation=_triple(dilations, 1),
        out=_triple(out, 1),
        count_include_pad=bool(count_include_pad),
        divisor=divisor,
        indices=bool(return_indices),
        label=op,
    )
    return _pooled(plan, y, im, threads)


def _pooled(plan: _core.Plan, tensors: Any, im: Images, threads: int) -> Any:
    """The result of a pooling, or the pair of result and indices."""
    if not isinstance(tensors, tuple):
        return _finish(plan, tensors, im, threads)
    plan.finish(list(tensors))
    y, index = plan.run([im.ndhwc], threads, im.channels_first_memory)
    return im.restore(y), im.restore(index)


def max_pool1d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> Any:
    """The largest value of each window of sequences.

    Shapes: input (N,C,L) or (C,L); returns (N,C,Q), and with return_indices also the int64 positions of the maxima,
        Q = (L + 2*padding - dilation*(kernel_size-1) - 1)//stride + 1 (ceil_mode rounds up).
    Units: samples; stride defaults to kernel_size; padding (of -inf) at most half of the kernel.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.max_pool1d.

    >>> max_pool1d(np.array([[1, 5, 2, 4]], "f4"), 2, return_indices=True)
    (array([[5., 4.]], dtype=float32), array([[1, 3]]))
    """
    return _pool(
        1,
        "max",
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        layout,
        threads,
        return_indices=return_indices,
    )


def max_pool2d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> Any:
    """The largest value of each window of images.

    Shapes: input (N,C,H,W) or (C,H,W); returns (N,C,P,Q), and with return_indices also the int64 positions of the
        maxima within H*W, P = (H + 2*padding - dilation*(kernel_size-1) - 1)//stride + 1 (ceil_mode rounds up).
    Units: pixels; stride defaults to kernel_size; padding (of -inf) at most half of the kernel.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.max_pool2d.

    >>> max_pool2d(np.arange(16, dtype="f4").reshape(1, 4, 4), 2)
    array([[[ 5.,  7.],
            [13., 15.]]], dtype=float32)
    """
    return _pool(
        2,
        "max",
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        layout,
        threads,
        return_indices=return_indices,
    )


def max_pool3d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> Any:
    """The largest value of each window of volumes.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); returns (N,C,Z,P,Q), and with return_indices also the int64 positions of the
        maxima within D*H*W; sizes as in max_pool2d.
    Units: pixels; stride defaults to kernel_size; padding (of -inf) at most half of the kernel.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.max_pool3d.

    >>> max_pool3d(np.ones((1, 2, 4, 4, 4), "f4"), 2).shape
    (1, 2, 2, 2, 2)
    """
    return _pool(
        3,
        "max",
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        layout,
        threads,
        return_indices=return_indices,
    )


def avg_pool1d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    layout: str = "NCL",
    threads: int = 0,
) -> np.ndarray:
    """The mean of each window of sequences.

    Shapes: input (N,C,L) or (C,L); returns (N,C,Q),
        Q = (L + 2*padding - kernel_size)//stride + 1 (ceil_mode rounds up).
    Units: samples; stride defaults to kernel_size; padding (zeros, which count if count_include_pad) <= kernel/2.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.avg_pool1d.

    >>> avg_pool1d(np.array([[1, 5, 2, 4]], "f4"), 2)
    array([[3., 3.]], dtype=float32)
    """
    return _pool(1, "avg", input, kernel_size, stride, padding, 1, ceil_mode, layout, threads, count_include_pad)


def avg_pool2d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """The mean of each window of images.

    Shapes: input (N,C,H,W) or (C,H,W); returns (N,C,P,Q), Q likewise,
        P = (H + 2*padding - kernel_size)//stride + 1 (ceil_mode rounds up).
    Units: pixels; stride defaults to kernel_size; padding (zeros, which count if count_include_pad) <= kernel/2;
        divisor_override replaces the number of pixels that the sum is divided by.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.avg_pool2d.

    >>> avg_pool2d(np.arange(16, dtype="f4").reshape(1, 4, 4), 2)
    array([[[ 2.5,  4.5],
            [10.5, 12.5]]], dtype=float32)
    """
    return _pool(
        2,
        "avg",
        input,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        layout,
        threads,
        count_include_pad,
        divisor_override,
    )


def avg_pool3d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCDHW",
    threads: int = 0,
) -> np.ndarray:
    """The mean of each window of volumes.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); returns (N,C,Z,P,Q); sizes as in avg_pool2d.
    Units: pixels; stride defaults to kernel_size; padding (zeros, which count if count_include_pad) <= kernel/2;
        divisor_override replaces the number of pixels that the sum is divided by.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.avg_pool3d.

    >>> avg_pool3d(np.ones((1, 2, 4, 4, 4), "f4"), 2, divisor_override=2)[0, 0, 0, 0, 0].item()
    4.0
    """
    return _pool(
        3,
        "avg",
        input,
        kernel_size,
        stride,
        padding,
        1,
        ceil_mode,
        layout,
        threads,
        count_include_pad,
        divisor_override,
    )


def _adaptive_pool(
    rank: int, kind: str, input: Array, output_size: Any, layout: str, threads: int, return_indices: bool = False
) -> Any:
    op = f"adaptive_{kind}_pool{rank}d"
    x = asarray(input)
    im = images(x, rank, layout, op)
    _nonempty(op, im)
    if isinstance(output_size, Sequence):
        if len(output_size) == rank:
            output_size = [n if size is None else size for n, size in zip(im.spatial, output_size)]
    elif output_size is None:
        raise ShapeError(f"{op}: output_size=None, want an integer or {rank} integers or None")
    out = _ints(output_size, rank, "output_size")
    if min(out) < 1:  # as torch: nothing to compute
        axes = (len(im.ndhwc), *out, im.channels)
        y = np.empty(axes if im.channels_last else (axes[0], axes[-1], *axes[1:-1]), x.dtype)
        y = y if im.batched else y[0]
        return (y, y.astype(np.int64)) if return_indices else y
    _check_output(op, len(im.ndhwc), out, im.channels)
    plan, source = _start(im.ndhwc)
    y = plan.adaptive_pool(source, kind, out=_triple(out, 1), indices=bool(return_indices), label=op)
    return _pooled(plan, y, im, threads)


def adaptive_avg_pool1d(input: Array, output_size: Ints, *, layout: str = "NCL", threads: int = 0) -> np.ndarray:
    """The mean of `output_size` equal, possibly overlapping parts of sequences.

    Shapes: input (N,C,L) or (C,L); returns (N,C,Q), Q = output_size. Output q averages samples
        floor(q*L/Q) to ceil((q+1)*L/Q).
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_avg_pool1d.

    >>> adaptive_avg_pool1d(np.array([[1, 5, 2]], "f4"), 2)
    array([[3. , 3.5]], dtype=float32)
    """
    return _adaptive_pool(1, "avg", input, output_size, layout, threads)


def adaptive_avg_pool2d(input: Array, output_size: Any, *, layout: str = "NCHW", threads: int = 0) -> np.ndarray:
    """The mean of equal, possibly overlapping parts of images, as many as the output has pixels.

    Shapes: input (N,C,H,W) or (C,H,W); output_size an integer or (P,Q), None = as the input; returns (N,C,P,Q).
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_avg_pool2d.

    >>> adaptive_avg_pool2d(np.ones((2, 3, 7, 9), "f4"), (1, None)).shape
    (2, 3, 1, 9)
    """
    return _adaptive_pool(2, "avg", input, output_size, layout, threads)


def adaptive_avg_pool3d(input: Array, output_size: Any, *, layout: str = "NCDHW", threads: int = 0) -> np.ndarray:
    """The mean of equal, possibly overlapping parts of volumes.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); output_size an integer or (Z,P,Q), None = as the input; returns (N,C,Z,P,Q).
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_avg_pool3d.

    >>> adaptive_avg_pool3d(np.ones((1, 3, 4, 5, 6), "f4"), 2).shape
    (1, 3, 2, 2, 2)
    """
    return _adaptive_pool(3, "avg", input, output_size, layout, threads)


def adaptive_max_pool1d(
    input: Array, output_size: Ints, return_indices: bool = False, *, layout: str = "NCL", threads: int = 0
) -> Any:
    """The largest value of `output_size` equal, possibly overlapping parts of sequences.

    Shapes: input (N,C,L) or (C,L); returns (N,C,output_size), and with return_indices also the int64 positions.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_max_pool1d.

    >>> adaptive_max_pool1d(np.array([[1, 5, 2]], "f4"), 2)
    array([[5., 5.]], dtype=float32)
    """
    return _adaptive_pool(1, "max", input, output_size, layout, threads, return_indices)


def adaptive_max_pool2d(
    input: Array, output_size: Any, return_indices: bool = False, *, layout: str = "NCHW", threads: int = 0
) -> Any:
    """The largest value of equal, possibly overlapping parts of images.

    Shapes: input (N,C,H,W) or (C,H,W); output_size an integer or (P,Q), None = as the input; returns (N,C,P,Q), and
        with return_indices also the int64 positions within H*W.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_max_pool2d.

    >>> adaptive_max_pool2d(np.arange(16, dtype="f4").reshape(1, 4, 4), 1, return_indices=True)
    (array([[[15.]]], dtype=float32), array([[[15]]]))
    """
    return _adaptive_pool(2, "max", input, output_size, layout, threads, return_indices)


def adaptive_max_pool3d(
    input: Array, output_size: Any, return_indices: bool = False, *, layout: str = "NCDHW", threads: int = 0
) -> Any:
    """The largest value of equal, possibly overlapping parts of volumes.

    Shapes: input (N,C,D,H,W) or (C,D,H,W); output_size an integer or (Z,P,Q), None = as the input; returns (N,C,Z,P,Q),
        and with return_indices also the int64 positions within D*H*W.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.adaptive_max_pool3d.

    >>> adaptive_max_pool3d(np.ones((1, 3, 4, 5, 6), "f4"), (1, 2, 3)).shape
    (1, 3, 1, 2, 3)
    """
    return _adaptive_pool(3, "max", input, output_size, layout, threads, return_indices)


# Normalisation


def _along_channels(op: str, x: np.ndarray, layout: str) -> Images:
    """(N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W) as a batch; the same with channels last for an NHWC layout."""
    if not 2 <= x.ndim <= 5:
        raise ShapeError(f"{op}: got an input of shape {x.shape}, want (N,C) and up to three more dimensions")
    return images(x, x.ndim - 2, layout, op, batched=True)


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """Normalise each channel by given statistics: (x - mean) / sqrt(var + eps) * weight + bias.

    Shapes: input (N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W); the others (C,); returns the input's shape.
    Raises: ShapeError with the shapes; DTypeError; Unsupported for training=True (statistics of the batch).
    Source: torch.nn.functional.batch_norm; Ioffe and Szegedy 2015, arXiv:1502.03167.

    >>> batch_norm(np.full((1, 1, 2), 3, "f4"), np.array([1], "f4"), np.array([4], "f4"), eps=0)
    array([[[1., 1.]]], dtype=float32)
    """
    if training:
        raise Unsupported("batch_norm: training=True (statistics of the batch); only inference is served here")
    if running_mean is None or running_var is None:
        raise ShapeError("batch_norm: running_mean and running_var are needed when training=False")
    x = asarray(input)
    im = _along_channels("batch_norm", x, layout)
    shape = (im.channels,)
    mean, var, gamma, beta = (
        _per_channel(value, name, x.dtype, shape)
        for value, name in (
            (running_mean, "running_mean"),
            (running_var, "running_var"),
            (weight, "weight"),
            (bias, "bias"),
        )
    )
    scale, shift = scale_and_shift(mean, var, gamma, beta, eps)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    plan, source = _start(im.ndhwc)
    y = plan.scale_shift(source, scale.astype(x.dtype), shift.astype(x.dtype), label="batch_norm")
    return _finish(plan, y, im, threads)


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


def layer_norm(
    input: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    threads: int = 0,
) -> np.ndarray:
    """Normalise each row of the last dimensions: (x - mean) / sqrt(var + eps) * weight + bias, var being biased.

    Shapes: input (...,*normalized_shape); weight and bias normalized_shape; returns the input's shape.
    Raises: ShapeError with the shapes; DTypeError.
    Source: torch.nn.functional.layer_norm; Ba et al. 2016, arXiv:1607.06450.

    >>> layer_norm(np.array([[1, 3]], "f4"), (2,), eps=0)
    array([[-1.,  1.]], dtype=float32)
    """
    x = asarray(input)
    shape = tuple(_int(size, "normalized_shape") for size in normalized_shape)
    if not shape or x.shape[x.ndim - len(shape) :] != shape or x.ndim < len(shape):
        raise ShapeError(f"layer_norm: an input of shape {x.shape} does not end in normalized_shape={shape}")
    gamma, beta = _per_channel(weight, "weight", x.dtype, shape), _per_channel(bias, "bias", x.dtype, shape)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    rows = x.reshape(-1, 1, 1, 1, math.prod(shape))
    plan, source = _start(rows)
    y = plan.layer_norm(
        source,
        None if gamma is None else gamma.reshape(-1),
        None if beta is None else beta.reshape(-1),
        eps,
        label="layer_norm",
    )
    plan.finish([y])
    return plan.run([rows], threads)[0].reshape(x.shape)


def local_response_norm(
    input: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """Divide each value by (k + alpha * mean of the squares of `size` neighbouring channels) ** beta.

    Shapes: input (N,C,L), (N,C,H,W) or (N,C,D,H,W); returns the same. Channels outside of the image count as zeros.
    Raises: ShapeError with the values; DTypeError.
    Source: torch.nn.functional.local_response_norm; Krizhevsky et al. 2012, sec. 3.3 (alpha there is
        not divided by size).

    >>> local_response_norm(np.ones((1, 3, 1), "f4"), 3, alpha=3.0, beta=1.0, k=1.0)[0, :, 0]
    array([0.33333334, 0.25      , 0.33333334], dtype=float32)
    """
    x = asarray(input)
    if x.ndim < 3:
        raise ShapeError(f"local_response_norm: got an input of shape {x.shape}, want 3 dimensions or more")
    size = _ints(size, 1, "size", 1)[0]
    im = _along_channels("local_response_norm", x, layout)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    plan, source = _start(im.ndhwc)
    return _finish(plan, plan.lrn(source, size, alpha, beta, k, label="local_response_norm"), im, threads)


def _softmax(input: Array, dim: int | None, dtype: Any, log: bool, threads: int) -> np.ndarray:
    op = "log_softmax" if log else "softmax"
    x = asarray(input)
    if dtype is not None and str(dtype).removeprefix("torch.") != x.dtype.name:
        raise Unsupported(f"{op}: dtype={dtype} of an input of {x.dtype}; convert the input explicitly")
    if dim is None:  # torch's historical choice
        dim = 0 if x.ndim in (0, 1, 3) else 1
    dim = _axis(op, dim, x.ndim)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    if dim == 1 and 2 < x.ndim <= 5:
        im = images(x, x.ndim - 2, "NCHW", op, batched=True)
        plan, source = _start(im.ndhwc)
        return _finish(plan, plan.softmax(source, log, label=op), im, threads)
    moved = np.moveaxis(x, dim, -1) if x.ndim else x.reshape(1)
    rows = _as_rows(moved)
    plan, source = _start(rows)
    plan.finish([plan.softmax(source, log, label=op)])
    y = plan.run([rows], threads)[0].reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(y, -1, dim)) if x.ndim else y.reshape(())


def _axis(op: str, dim: Any, rank: int) -> int:
    dim, rank = _int(dim, "dim"), max(rank, 1)  # torch lets numbers have one axis
    if not -rank <= dim < rank:
        raise ShapeError(f"{op}: dim={dim} is outside of {rank} dimensions")
    return dim % rank


def softmax(input: Array, dim: int | None = None, dtype: Any = None, *, threads: int = 0) -> np.ndarray:
    """exp(x) divided by its sum along an axis.

    Shapes: any; dim defaults to torch's implicit choice (0 for one or three dimensions, otherwise 1).
    Raises: ShapeError; DTypeError; Unsupported for a dtype other than the input's.
    Source: torch.nn.functional.softmax.

    >>> softmax(np.zeros((1, 4), "f4"), dim=1)
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    return _softmax(input, dim, dtype, False, threads)


def log_softmax(input: Array, dim: int | None = None, dtype: Any = None, *, threads: int = 0) -> np.ndarray:
    """The logarithm of softmax, without its loss of precision.

    Shapes: any; dim defaults to torch's implicit choice (0 for one or three dimensions, otherwise 1).
    Raises: ShapeError; DTypeError; Unsupported for a dtype other than the input's.
    Source: torch.nn.functional.log_softmax.

    >>> log_softmax(np.zeros((1, 1), "f4"), dim=1)
    array([[0.]], dtype=float32)
    """
    return _softmax(input, dim, dtype, True, threads)


# Elementwise


def _dense_order(x: np.ndarray) -> tuple[int, ...]:
    """The order of the axes in memory, outermost first: what elementwise results keep."""
    if x.flags.c_contiguous or 0 in x.strides:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def _flat(x: np.ndarray) -> np.ndarray:
    """A C-contiguous array as a plan's (N,1,1,1,C): rows of a few thousand values, so that threads can share them."""
    columns = 1
    for size in reversed(x.shape):
        columns *= size
        if columns >= 1024:
            break
    return x.reshape(-1, 1, 1, 1, columns)


def _elementwise(op: str, input: Array, threads: int, a: float = 0.0, b: float = 0.0) -> np.ndarray:
    x = asarray(input)
    if not x.size:
        return np.empty(x.shape, x.dtype)
    order = _dense_order(x)
    moved = np.ascontiguousarray(x.transpose(order))
    rows = _flat(moved)
    plan, source = _start(rows)
    plan.finish([plan.activation(source, op, a, b, label=op)])
    return _back(plan.run([rows], threads)[0].reshape(x.transpose(order).shape), order)


def _back(y: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    return y.transpose(np.argsort(order)) if y.ndim > 1 else y


def relu(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """max(x, 0), any shape. Source: torch.nn.functional.relu.

    >>> relu(np.array([-1, 2], "f4"))
    array([0., 2.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("relu", input, threads)


def relu6(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """min(max(x, 0), 6), any shape. Source: torch.nn.functional.relu6.

    >>> relu6(np.array([-1, 2, 8], "f4"))
    array([0., 2., 6.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("relu6", input, threads)


def hardtanh(
    input: Array, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, *, threads: int = 0
) -> np.ndarray:
    """min(max(x, min_val), max_val), any shape; ShapeError if min_val > max_val. Source: torch.nn.functional.hardtanh.

    >>> hardtanh(np.array([-3, 0.5], "f4"))
    array([-1. ,  0.5], dtype=float32)
    """
    _no_inplace(inplace)
    if min_val > max_val:
        raise ShapeError(f"hardtanh: min_val={min_val} is larger than max_val={max_val}")
    return _elementwise("clamp", input, threads, min_val, max_val)


def silu(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x * sigmoid(x), any shape (also called swish). Source: torch.nn.functional.silu.

    >>> silu(np.array([0, 30], "f4"))
    array([ 0., 30.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("silu", input, threads)


def sigmoid(input: Array, *, threads: int = 0) -> np.ndarray:
    """1 / (1 + exp(-x)), any shape. Source: torch.nn.functional.sigmoid.

    >>> sigmoid(np.array([0, 100], "f4"))
    array([0.5, 1. ], dtype=float32)
    """
    return _elementwise("sigmoid", input, threads)


def hardswish(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x * min(max(x + 3, 0), 6) / 6, any shape.

    Source: torch.nn.functional.hardswish; Howard et al. 2019, arXiv:1905.02244.

    >>> hardswish(np.array([-4, 0, 3], "f4"))
    array([-0.,  0.,  3.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("hard_swish", input, threads)


def hardsigmoid(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """min(max(x + 3, 0), 6) / 6, any shape. Source: torch.nn.functional.hardsigmoid.

    >>> hardsigmoid(np.array([-4, 0, 3], "f4"))
    array([0. , 0.5, 1. ], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("hard_sigmoid", input, threads)


def gelu(input: Array, approximate: str = "none", *, threads: int = 0) -> np.ndarray:
    """x * Phi(x), Phi the normal distribution, any shape; approximate="tanh" takes the tanh formula.

    Raises: Unsupported for another `approximate`.
    Source: torch.nn.functional.gelu; Hendrycks and Gimpel 2016, arXiv:1606.08415.

    >>> gelu(np.array([0, 10], "f4"))
    array([ 0., 10.], dtype=float32)
    """
    if approximate not in ("none", "tanh"):
        raise Unsupported(f"gelu: approximate={approximate!r}; want 'none' or 'tanh'")
    return _elementwise("gelu_tanh" if approximate == "tanh" else "gelu", input, threads)


def tanh(input: Array, *, threads: int = 0) -> np.ndarray:
    """The hyperbolic tangent, any shape. Source: torch.nn.functional.tanh.

    >>> tanh(np.array([0, 20], "f4"))
    array([0., 1.], dtype=float32)
    """
    return _elementwise("tanh", input, threads)


def elu(input: Array, alpha: float = 1.0, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x if x > 0, otherwise alpha * (exp(x) - 1), any shape. Source: torch.nn.functional.elu.

    >>> elu(np.array([-100, 2], "f4"))
    array([-1.,  2.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("elu", input, threads, alpha)


def leaky_relu(input: Array, negative_slope: float = 0.01, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x if x > 0, otherwise negative_slope * x, any shape. Source: torch.nn.functional.leaky_relu.

    >>> leaky_relu(np.array([-2, 2], "f4"), 0.5)
    array([-1.,  2.], dtype=float32)
    """
    _no_inplace(inplace)
    return _elementwise("leaky_relu", input, threads, negative_slope)


def softplus(input: Array, beta: float = 1, threshold: float = 20, *, threads: int = 0) -> np.ndarray:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold, any shape.

    Source: torch.nn.functional.softplus.

    >>> softplus(np.array([30], "f4"))
    array([30.], dtype=float32)
    """
    return _elementwise("softplus", input, threads, beta, threshold)


def dropout(input: Array, p: float = 0.5, training: bool = True, inplace: bool = False) -> np.ndarray:
    """Nothing, at inference (training=False): a copy of the input.

    Raises: Unsupported for training=True, which is the default as in torch; ShapeError for p outside of [0, 1].
    Source: torch.nn.functional.dropout.

    >>> dropout(np.ones(2, "f4"), training=False)
    array([1., 1.], dtype=float32)
    """
    _no_inplace(inplace)
    if not 0 <= p <= 1:
        raise ShapeError(f"dropout: p={p}, want a probability between 0 and 1")
    x = asarray(input)
    if training and p > 0:
        raise Unsupported("dropout: training=True; only inference is served here, pass training=False")
    return x.copy(order="K")


def _operand(value: Any, name: str, like: np.dtype) -> np.ndarray:
    """An array, or a Python number as an array of no dimensions."""
    if isinstance(value, (int, float)):
        return np.asarray(value, like)
    return asarray(value, name, like)


def _binary(op: str, kind: str, input: Array, other: Any, threads: int) -> np.ndarray:
    a = asarray(input)
    b = _operand(other, "other", a.dtype)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ShapeError(f"{op}: the shapes {a.shape} and {b.shape} do not broadcast together") from None
    if 0 in shape:
        return np.empty(shape, a.dtype)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ShapeError(f"{op}: a result of shape {shape} overflows")
    plan = _core.Plan(a.dtype.name)
    order = _dense_order(a)
    if a.shape == b.shape and order == _dense_order(b):
        a5, b5 = (_flat(np.ascontiguousarray(v.transpose(order))) for v in (a, b))
    else:
        order = _dense_order(a if a.shape == shape else b)
        a5, b5 = _broadcastable(op, a, shape, order), _broadcastable(op, b, shape, order)
    y = plan.binary(plan.input(a5.shape[1:]), plan.input(b5.shape[1:]), kind, label=op)
    plan.finish([y])
    return _back(plan.run([a5, b5], threads)[0].reshape([shape[i] for i in order]), order)


def _broadcastable(op: str, x: np.ndarray, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """x as (N,D,H,W,C); the kernel broadcasts sizes of 1, except along N, where a stride of 0 does it."""
    if len(shape) > 5:
        raise Unsupported(f"{op}: broadcasting to {len(shape)} dimensions {shape}; at most 5 are served")
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    if len(order) == len(shape):
        x = x.transpose(order)
    x = x[(None,) * (5 - x.ndim)]
    batch = shape[order[0]] if len(shape) == 5 else 1
    return np.broadcast_to(x, (batch, *x.shape[1:]))


def add(input: Array, other: Any, *, alpha: float = 1, threads: int = 0) -> np.ndarray:
    """input + alpha * other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.add.

    >>> add(np.ones((2, 2), "f4"), np.array([1, 2], "f4"))
    array([[2., 3.],
           [2., 3.]], dtype=float32)
    """
    if alpha != 1:
        other = _binary("add", "mul", other, alpha, threads) if not isinstance(other, (int, float)) else other * alpha
    return _binary("add", "add", input, other, threads)


def sub(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """input - other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.sub.

    >>> sub(np.ones(2, "f4"), 3)
    array([-2., -2.], dtype=float32)
    """
    return _binary("sub", "sub", input, other, threads)


def mul(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """input * other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.mul.

    >>> mul(np.ones((1, 2, 1, 1), "f4"), np.full((1, 2, 3, 3), 2, "f4")).shape
    (1, 2, 3, 3)
    """
    return _binary("mul", "mul", input, other, threads)


def div(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """input / other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.div.

    >>> div(np.ones(2, "f4"), 4)
    array([0.25, 0.25], dtype=float32)
    """
    return _binary("div", "div", input, other, threads)


def maximum(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """The larger of two values, with broadcasting; NaN if either is. Source: torch.maximum.

    >>> maximum(np.array([1, 5], "f4"), np.array([3, 3], "f4"))
    array([3., 5.], dtype=float32)
    """
    return _binary("maximum", "max", input, other, threads)


def minimum(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """The smaller of two values, with broadcasting; NaN if either is. Source: torch.minimum.

    >>> minimum(np.array([1, 5], "f4"), np.array([3, 3], "f4"))
    array([1., 3.], dtype=float32)
    """
    return _binary("minimum", "min", input, other, threads)


# Moving data


def cat(tensors: Sequence[Array], dim: int = 0, *, threads: int = 0) -> np.ndarray:
    """Join arrays along an axis.

    Shapes: equal but for `dim`; empty arrays of one dimension are skipped, as in torch.
    Raises: ShapeError with the shapes; DTypeError if the element types differ.
    Source: torch.cat.

    >>> cat([np.zeros((1, 2), "f4"), np.ones((1, 1), "f4")], dim=1)
    array([[0., 0., 1.]], dtype=float32)
    """
    if not isinstance(tensors, (list, tuple)):
        raise DTypeError(f"cat: got a {type(tensors).__name__}, want a list or tuple of arrays")
    if not tensors:
        raise ShapeError("cat: got no arrays, want at least one")
    like = as_ndarray(tensors[0]).dtype
    arrays = [asarray(t, f"tensors[{i}]", like) for i, t in enumerate(tensors)]
    if any(a.ndim == 0 for a in arrays):
        raise ShapeError("cat: got an array of no dimensions")
    arrays = [a for a in arrays if a.shape != (0,)] or arrays[:1]
    first = arrays[0].shape
    dim = _axis("cat", dim, len(first))
    for a in arrays:
        if a.ndim != len(first) or a.shape[:dim] != first[:dim] or a.shape[dim + 1 :] != first[dim + 1 :]:
            raise ShapeError(f"cat: the shapes {first} and {a.shape} differ outside of dim={dim}")
    shape = (*first[:dim], sum(a.shape[dim] for a in arrays), *first[dim + 1 :])
    if not math.prod(shape):
        return np.empty(shape, like)
    arrays = [a for a in arrays if a.size]
    orders = {_dense_order(a) for a in arrays}
    order = orders.pop() if len(orders) == 1 else tuple(range(len(first)))
    at = order.index(dim)
    plan = _core.Plan(like.name)
    parts = []
    for a in arrays:
        a = a.transpose(order)
        parts.append(a.reshape(math.prod(a.shape[:at]), 1, 1, a.shape[at], math.prod(a.shape[at + 1 :])))
    axis = 2 if parts[0].shape[-1] > 1 else 3
    if axis == 3:
        parts = [p.swapaxes(3, 4) for p in parts]
    plan.finish([plan.concat([plan.input(p.shape[1:]) for p in parts], axis, label="cat")])
    return _back(plan.run(parts, threads)[0].reshape([shape[i] for i in order]), order)


concat = cat


def flatten(input: Array, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    """Merge the axes start_dim to end_dim into one, in the order of the axes; the result is a new array.

    Raises: ShapeError if start_dim comes after end_dim. Source: torch.flatten.

    >>> flatten(np.zeros((2, 3, 4, 5), "f4"), 1).shape
    (2, 60)
    """
    x = asarray(input)
    first, last = _axis("flatten", start_dim, x.ndim), _axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ShapeError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in {x.ndim} dimensions")
    merged = math.prod(x.shape[first : last + 1])
    return np.array(x, order="C").reshape(*x.shape[:first], merged, *x.shape[last + 1 :])


def pad(
    input: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None, *, threads: int = 0
) -> np.ndarray:
    """Extend (or, with negative numbers, crop) the last axes.

    Shapes: pad = (lo, hi) of the last axis, then (lo, hi) of the one before, ...; any axes for mode "constant" (filled
        with `value`, 0 by default); the last one, two or three for "reflect", "replicate" and "circular", after one or
        two others.
    Raises: ShapeError with the values; DTypeError; Unsupported for constant padding of more than four axes at once.
    Source: torch.nn.functional.pad.

    >>> pad(np.array([[1, 2, 3]], "f4"), (2, 1), mode="reflect")
    array([[3., 2., 1., 2., 3., 2.]], dtype=float32)
    """
    x = asarray(input)
    numbers = [_int(n, "pad") for n in pad]
    axes = len(numbers) // 2
    if len(numbers) % 2 or axes > x.ndim:
        raise ShapeError(f"pad: pad={tuple(numbers)} wants pairs, at most {x.ndim} for an input of shape {x.shape}")
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise Unsupported(f"pad: mode={mode!r}; want constant, reflect, replicate or circular")
    if mode != "constant":
        if value:
            raise ShapeError(f"pad: value={value} has no meaning in mode {mode!r}")
        if not 1 <= axes <= 3 or x.ndim not in (axes + 1, axes + 2):
            raise Unsupported(f"pad: mode {mode!r} with pad={tuple(numbers)} on an input of shape {x.shape}")
    pairs = [(0, 0)] * (x.ndim - axes) + [(numbers[2 * i], numbers[2 * i + 1]) for i in reversed(range(axes))]
    shape = tuple(n + lo + hi for n, (lo, hi) in zip(x.shape, pairs))
    if any(n < 0 or (n == 0 and lo + hi < 0 and mode != "constant") for n, (lo, hi) in zip(shape, pairs)):
        raise ShapeError(f"pad: pad={tuple(numbers)} crops an input of shape {x.shape} to {shape}")
    limit = {"reflect": -1, "circular": 0}.get(mode)
    if limit is not None and any(max(p) > n + limit for n, p in zip(x.shape, pairs) if any(p)):
        raise ShapeError(f"pad: pad={tuple(numbers)} is too large for mode {mode!r} on an input of shape {x.shape}")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ShapeError(f"pad: a result of shape {shape} overflows")
    if 0 in shape:
        return np.empty(shape, x.dtype)
    fill = 0.0 if value is None else float(value)
    if not x.size:
        if mode != "constant":
            raise ShapeError(f"pad: mode {mode!r} of an empty input of shape {x.shape}")
        return np.full(shape, fill, x.dtype)
    order = _dense_order(x)
    moved, moved_pairs = x.transpose(order), [pairs[i] for i in order]
    padded = [i for i, p in enumerate(moved_pairs) if any(p)]
    if len(padded) > 4:
        raise Unsupported(f"pad: pad={tuple(numbers)} pads {len(padded)} axes at once; at most 4 are served")
    # runs of axes that are not padded become one, the first run the batch: five axes in all, or fewer
    sizes, spans, batch = [1], [(0, 0)], 0
    for n, p in zip(moved.shape, moved_pairs):
        if any(p) or any(spans[-1]):
            sizes.append(n)
            spans.append(p)
        else:
            sizes[-1] *= n
    if len(sizes) > 5:
        raise Unsupported(f"pad: pad={tuple(numbers)} on an input of shape {x.shape}: too many separate axes")
    fives = moved.reshape([sizes[0], *[1] * (5 - len(sizes)), *sizes[1:]])
    spans = [(0, 0)] * (5 - len(sizes)) + spans[1:]
    plan, source = _start(fives)
    y = plan.pad(source, [lo for lo, _ in spans], [hi for _, hi in spans], mode, fill, label="pad")
    plan.finish([y])
    return _back(plan.run([fives], threads)[0].reshape([shape[i] for i in order]), order)


_RESIZE_MODES = {  # torch's mode -> (spatial dimensions or None for any, the plan's mode)
    "nearest": (None, "nearest"),
    "nearest-exact": (None, "nearest-exact"),
    "linear": (1, "linear"),
    "bilinear": (2, "linear"),
    "trilinear": (3, "linear"),
    "bicubic": (2, "cubic"),
}


def interpolate(
    input: Array,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    layout: str = "NCHW",
    threads: int = 0,
) -> np.ndarray:
    """Resize sequences, images or volumes.

    Shapes: input (N,C,L), (N,C,H,W) or (N,C,D,H,W); returns the same with `size` (one integer or one per dimension) or
        floor(input size * scale_factor) pixels. Modes: nearest, nearest-exact, area; linear (3 axes), bilinear and
        bicubic (4), trilinear (5). With scale_factor, pixels are 1/scale_factor apart unless recompute_scale_factor.
    Raises: ShapeError with the values; DTypeError; Unsupported for antialias and for a mode that does not fit the axes.
    Source: torch.nn.functional.interpolate; cubic coefficient -0.75.

    >>> interpolate(np.array([[[1, 3]]], "f4"), scale_factor=2, mode="linear")
    array([[[1. , 1.5, 2.5, 3. ]]], dtype=float32)
    """
    x = asarray(input)
    if not 3 <= x.ndim <= 5:
        raise ShapeError(f"interpolate: got an input of shape {x.shape}, want 3, 4 or 5 dimensions")
    if antialias:
        raise Unsupported("interpolate: antialias=True; resize without it, or reduce by an average pooling first")
    if align_corners is not None and mode in ("nearest", "nearest-exact", "area"):
        raise ShapeError(f"interpolate: align_corners={align_corners} has no meaning in mode {mode!r}")
    rank = x.ndim - 2
    im = images(x, rank, layout, "interpolate", batched=True)
    _nonempty("interpolate", im)
    if (size is None) == (scale_factor is None):
        raise ShapeError(f"interpolate: size={size} and scale_factor={scale_factor}; want one of them")
    scales = (0.0,) * rank
    if size is not None:
        if recompute_scale_factor:
            raise ShapeError("interpolate: recompute_scale_factor=True needs scale_factor, not size")
        out = _exactly(size, rank, "size")
    else:
        factors = _exactly(scale_factor, rank, "scale_factor")
        if not all(math.isfinite(f) and f > 0 for f in factors):
            raise ShapeError(f"interpolate: scale_factor={factors}, want positive numbers")
        out = tuple(math.floor(n * f) for n, f in zip(im.spatial, factors))
        if not recompute_scale_factor:
            scales = tuple(1 / f for f in factors)
    out = tuple(_int(n, "size") for n in out)
    _check_output("interpolate", len(im.ndhwc), out, im.channels)
    plan, source = _start(im.ndhwc)
    if mode == "area":
        return _finish(plan, plan.adaptive_pool(source, "avg", out=_triple(out, 1), label="interpolate"), im, threads)
    if mode not in _RESIZE_MODES:
        raise Unsupported(f"interpolate: mode={mode!r}; want one of {', '.join([*_RESIZE_MODES, 'area'])}")
    want, kind = _RESIZE_MODES[mode]
    if want not in (None, rank):
        raise Unsupported(f"interpolate: mode {mode!r} wants an input of {want + 2} axes, got {x.shape}")
    d, h, w = (0.0,) * (3 - rank) + scales
    y = plan.resize(source, _triple(out, 1), kind, bool(align_corners), (d, h, w), label="interpolate")
    return _finish(plan, y, im, threads)


def _exactly(value: Any, count: int, name: str) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count:
        raise ShapeError(f"{name}={values} has {len(values)} entries, want {count}")
    return values
