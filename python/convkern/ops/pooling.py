"""Maxima and means over windows, and over a given number of parts of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Images, asarray, images
from ..errors import ShapeError
from ..graph import pool_size
from .common import Array, Ints, check_output, empty, finish, ints, negative, nonempty, one_int, start, triple


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
    nonempty(op, im)
    window = ints(kernel_size, rank, f"{op}: kernel_size", 1)
    strides = window if stride is None or stride == () else ints(stride, rank, f"{op}: stride", 1)
    pads, dilations = ints(padding, rank, f"{op}: padding"), ints(dilation, rank, f"{op}: dilation", 1)
    divisor = 0 if divisor_override is None else one_int(divisor_override, "divisor_override")
    if divisor_override is not None and divisor == 0:
        raise ShapeError(f"{op}: divisor_override=0, want any other integer")
    if any(2 * p > r for p, r in zip(pads, window)):
        raise ShapeError(f"{op}: padding={pads}, want at most half of the kernel {window}")
    out = [
        pool_size(n, r, s, p, p, d, bool(ceil_mode))
        for n, r, s, p, d in zip(im.spatial, window, strides, pads, dilations)
    ]
    check_output(op, len(im.ndhwc), out, im.channels)
    plan, source = start(im.ndhwc)
    y = plan.pool(
        source,
        kind,
        window=triple(window, 1),
        stride=triple(strides, 1),
        pad_lo=triple(pads, 0),
        pad_hi=triple(pads, 0),
        dilation=triple(dilations, 1),
        out=triple(out, 1),
        count_include_pad=bool(count_include_pad),
        divisor=abs(divisor),
        indices=bool(return_indices),
        label=op,
    )
    pooled = _pooled(plan, y, im, threads)
    return pooled if divisor >= 0 else negative(pooled)


def _pooled(plan: Any, tensors: Any, im: Images, threads: int) -> Any:
    """The result of a pooling, or the pair of result and indices."""
    if not isinstance(tensors, tuple):
        return finish(plan, tensors, im, threads)
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
    nonempty(op, im)
    if isinstance(output_size, Sequence):
        if len(output_size) == rank:
            output_size = [n if size is None else size for n, size in zip(im.spatial, output_size)]
    elif output_size is None:
        raise ShapeError(f"{op}: output_size=None, want an integer or {rank} integers or None")
    out = ints(output_size, rank, f"{op}: output_size")
    if min(out) < 1:  # as torch: nothing to compute
        axes = (len(im.ndhwc), *out, im.channels)
        y = empty(axes if im.channels_last else (axes[0], axes[-1], *axes[1:-1]), x)
        y = y if im.batched else y[0]
        return (y, y if isinstance(y.dtype, str) else y.astype(np.int64)) if return_indices else y
    check_output(op, len(im.ndhwc), out, im.channels)
    plan, source = start(im.ndhwc)
    y = plan.adaptive_pool(source, kind, out=triple(out, 1), indices=bool(return_indices), label=op)
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
