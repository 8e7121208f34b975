"""Convolutions, transposed ones, and the linear layer, which is a convolution of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from ..arrays import asarray, images
from ..errors import ShapeError
from ..graph import conv_size, conv_transpose_size
from .common import Array, Ints, as_rows, check_output, finish, ints, nonempty, one_int, per_channel, start, triple


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
    strides, dilations = ints(stride, rank, f"{op}: stride", 1), ints(dilation, rank, f"{op}: dilation", 1)
    groups = one_int(groups, "groups")
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
    b = per_channel(bias, "bias", x.dtype, (k,))
    extra: tuple[int, ...] = (0,) * rank
    if isinstance(padding, str) and not transposed:
        lo, hi = _named_padding(op, padding, window, strides, dilations)
    else:
        lo = hi = ints(padding, rank, f"{op}: padding")
    if transposed:
        extra = ints(output_padding, rank, f"{op}: output_padding")
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
    nonempty(op, im)
    check_output(op, len(im.ndhwc), out, k)
    plan, source = start(im.ndhwc)
    y = plan.conv(
        source,
        _core.Parameter(_relaid(w, groups, transposed)),
        b,
        stride=triple(strides, 1),
        pad_lo=triple(lo, 0),
        pad_hi=triple(hi, 0),
        dilation=triple(dilations, 1),
        groups=groups,
        transposed=transposed,
        output_padding=triple(extra, 0),
        label=op,
    )
    return finish(plan, y, im, threads)


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
        w = _filters_last(w)
    elif groups == 1:
        w = w.transpose(*range(2, rank + 2), 0, 1)
    else:
        c, kg, *window = w.shape
        w = w.reshape(groups, c // groups, kg, *window).transpose(*range(3, rank + 3), 1, 0, 2)
        w = w.reshape(*window, c // groups, groups * kg)
    return np.ascontiguousarray(w[(None,) * (3 - rank)])


def _filters_last(w: np.ndarray) -> np.ndarray:
    """(K,C,R,S) as a new (R,S,C,K), (K,C) as (C,K): 16 filters at a time, so that whole cache lines are written."""
    axes = (*range(2, w.ndim), 1, 0)
    out = np.empty([w.shape[axis] for axis in axes], w.dtype)
    for k in range(0, len(w), 16):
        out[..., k : k + 16] = w[k : k + 16].transpose(axes)
    return out


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
    b = per_channel(bias, "bias", x.dtype, w.shape[:-1])
    out_shape = x.shape[:-1] + w.shape[:-1]
    if not x.size:
        return np.empty(out_shape, x.dtype)
    rows = as_rows(x)
    plan, source = start(rows)
    matrix = _filters_last(w.reshape(-1, w.shape[-1]))[None, None, None]
    y = plan.conv(source, _core.Parameter(matrix), None if b is None else b.reshape(-1), label="linear")
    plan.finish([y])
    return plan.run([rows], threads)[0].reshape(out_shape)
