"""Norms over channels or rows, and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Images, asarray, images
from ..errors import ShapeError, Unsupported
from ..graph import scale_and_shift
from .common import Array, as_rows, contiguous, empty, finish, ints, moveaxis, one_axis, one_int, per_channel, start


def _along_channels(op: str, x: Any, layout: str) -> Images:
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
        per_channel(value, name, x.dtype, shape)
        for value, name in (
            (running_mean, "running_mean"),
            (running_var, "running_var"),
            (weight, "weight"),
            (bias, "bias"),
        )
    )
    scale, shift = scale_and_shift(mean, var, gamma, beta, eps)
    if not x.size:
        return empty(x.shape, x)
    plan, source = start(im.ndhwc)
    kind = x.dtype if isinstance(x.dtype, np.dtype) else np.float32  # a device takes its constants as float32
    y = plan.scale_shift(source, scale.astype(kind), shift.astype(kind), label="batch_norm")
    return finish(plan, y, im, threads)


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
    shape = tuple(one_int(size, "normalized_shape") for size in normalized_shape)
    if not shape or x.shape[x.ndim - len(shape) :] != shape or x.ndim < len(shape):
        raise ShapeError(f"layer_norm: an input of shape {x.shape} does not end in normalized_shape={shape}")
    gamma, beta = per_channel(weight, "weight", x.dtype, shape), per_channel(bias, "bias", x.dtype, shape)
    if not x.size:
        return empty(x.shape, x)
    rows = x.reshape(-1, 1, 1, 1, math.prod(shape))
    plan, source = start(rows)
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

    >>> local_response_norm(np.ones((1, 3, 1), "f4"), 3, alpha=3.0, beta=1.0, k=2.0)[0, :, 0].round(3)
    array([0.25, 0.2 , 0.25], dtype=float32)
    """
    x = asarray(input)
    if x.ndim < 3:
        raise ShapeError(f"local_response_norm: got an input of shape {x.shape}, want 3 dimensions or more")
    size = ints(size, 1, "local_response_norm: size", 1)[0]
    im = _along_channels("local_response_norm", x, layout)
    if not x.size:
        return empty(x.shape, x)
    plan, source = start(im.ndhwc)
    return finish(plan, plan.lrn(source, size, alpha, beta, k, label="local_response_norm"), im, threads)


def _softmax(input: Array, dim: int | None, dtype: Any, log: bool, threads: int) -> np.ndarray:
    op = "log_softmax" if log else "softmax"
    x = asarray(input)
    if dtype is not None and str(dtype).removeprefix("torch.") != str(x.dtype):
        raise Unsupported(f"{op}: dtype={dtype} of an input of {x.dtype}; convert the input explicitly")
    if dim is None:  # torch's historical choice
        dim = 0 if x.ndim in (0, 1, 3) else 1
    dim = one_axis(op, dim, x.ndim)
    if not x.size:
        return empty(x.shape, x)
    if dim == 1 and 2 < x.ndim <= 5:
        im = images(x, x.ndim - 2, "NCHW", op, batched=True)
        plan, source = start(im.ndhwc)
        return finish(plan, plan.softmax(source, log, label=op), im, threads)
    moved = moveaxis(x, dim, -1) if x.ndim else x.reshape(1)
    rows = as_rows(moved)
    plan, source = start(rows)
    plan.finish([plan.softmax(source, log, label=op)])
    y = plan.run([rows], threads)[0].reshape(moved.shape)
    return contiguous(moveaxis(y, -1, dim)) if x.ndim else y.reshape(())


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
