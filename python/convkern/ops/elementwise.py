"""Activations, and arithmetic with broadcasting. Results keep the order of the axes in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import asarray
from ..errors import ShapeError, Unsupported
from .common import MAX_ELEMENTS, Array, back, contiguous, copied, dense_order, empty, flat, new_plan, no_inplace, start


def _elementwise(op: str, input: Array, threads: int, a: float = 0.0, b: float = 0.0) -> np.ndarray:
    x = asarray(input)
    if not x.size:
        return empty(x.shape, x)
    order = dense_order(x)
    moved = contiguous(x.transpose(order))
    rows = flat(moved)
    plan, source = start(rows)
    plan.finish([plan.activation(source, op, a, b, label=op)])
    return back(plan.run([rows], threads)[0].reshape(x.transpose(order).shape), order)


def relu(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """max(x, 0), any shape. Source: torch.nn.functional.relu.

    >>> relu(np.array([-1, 2], "f4"))
    array([0., 2.], dtype=float32)
    """
    no_inplace(inplace)
    return _elementwise("relu", input, threads)


def relu6(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """min(max(x, 0), 6), any shape. Source: torch.nn.functional.relu6.

    >>> relu6(np.array([-1, 2, 8], "f4"))
    array([0., 2., 6.], dtype=float32)
    """
    no_inplace(inplace)
    return _elementwise("relu6", input, threads)


def hardtanh(
    input: Array, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False, *, threads: int = 0
) -> np.ndarray:
    """min(max(x, min_val), max_val), any shape; ShapeError if min_val > max_val. Source: torch.nn.functional.hardtanh.

    >>> hardtanh(np.array([-3, 0.5], "f4"))
    array([-1. ,  0.5], dtype=float32)
    """
    no_inplace(inplace)
    if min_val > max_val:
        raise ShapeError(f"hardtanh: min_val={min_val} is larger than max_val={max_val}")
    return _elementwise("clamp", input, threads, min_val, max_val)


def silu(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x * sigmoid(x), any shape (also called swish). Source: torch.nn.functional.silu.

    >>> silu(np.array([0, 30], "f4"))
    array([ 0., 30.], dtype=float32)
    """
    no_inplace(inplace)
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
    no_inplace(inplace)
    return _elementwise("hard_swish", input, threads)


def hardsigmoid(input: Array, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """min(max(x + 3, 0), 6) / 6, any shape. Source: torch.nn.functional.hardsigmoid.

    >>> hardsigmoid(np.array([-4, 0, 3], "f4"))
    array([0. , 0.5, 1. ], dtype=float32)
    """
    no_inplace(inplace)
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
    no_inplace(inplace)
    return _elementwise("elu", input, threads, alpha)


def leaky_relu(input: Array, negative_slope: float = 0.01, inplace: bool = False, *, threads: int = 0) -> np.ndarray:
    """x if x > 0, otherwise negative_slope * x, any shape. Source: torch.nn.functional.leaky_relu.

    >>> leaky_relu(np.array([-2, 2], "f4"), 0.5)
    array([-1.,  2.], dtype=float32)
    """
    no_inplace(inplace)
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
    no_inplace(inplace)
    if not 0 <= p <= 1:
        raise ShapeError(f"dropout: p={p}, want a probability between 0 and 1")
    x = asarray(input)
    if training and p > 0:
        raise Unsupported("dropout: training=True; only inference is served here, pass training=False")
    return x.copy(order="K") if type(x) is np.ndarray else copied(x)


def _operand(value: Any, name: str, like: Any) -> Any:
    """An array, or a Python number as an array of no dimensions."""
    if isinstance(value, (int, float)):
        if isinstance(like, np.ndarray):
            return np.asarray(value, like.dtype)
        from ..device import to_device

        return to_device(np.asarray(value, np.float32), like.device, like.dtype)
    return asarray(value, name, like.dtype)


def _binary(op: str, kind: str, input: Array, other: Any, threads: int) -> np.ndarray:
    a = asarray(input)
    b = _operand(other, "other", a)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ShapeError(f"{op}: the shapes {a.shape} and {b.shape} do not broadcast together") from None
    if 0 in shape:
        return empty(shape, a)
    if math.prod(shape) > MAX_ELEMENTS:
        raise ShapeError(f"{op}: a result of shape {shape} overflows")
    plan = new_plan(a)
    order = dense_order(a)
    if a.shape == b.shape and order == dense_order(b):
        a5, b5 = (flat(contiguous(v.transpose(order))) for v in (a, b))
    else:
        full = a if a.shape == shape else b
        order = dense_order(full) if full.shape == shape else tuple(range(len(shape)))
        a5, b5 = _broadcastable(op, a, shape, order), _broadcastable(op, b, shape, order)
    y = plan.binary(plan.input(a5.shape[1:]), plan.input(b5.shape[1:]), kind, label=op)
    plan.finish([y])
    return back(plan.run([a5, b5], threads)[0].reshape([shape[i] for i in order]), order)


def _broadcastable(op: str, x: Any, shape: tuple[int, ...], order: tuple[int, ...]) -> Any:
    """x as (N,D,H,W,C); the kernel broadcasts sizes of 1, except along N, where a stride of 0 does it."""
    if len(shape) > 5:
        raise Unsupported(f"{op}: broadcasting to {len(shape)} dimensions {shape}; at most 5 are served")
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape).transpose(order)
    x = x[(None,) * (5 - x.ndim)]
    batch = shape[order[0]] if len(shape) == 5 else 1
    return np.broadcast_to(x, (batch, *x.shape[1:])) if type(x) is np.ndarray else x.repeated(batch)


def add(input: Array, other: Any, *, alpha: float = 1, threads: int = 0) -> np.ndarray:
    """input + alpha * other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.add.

    >>> add(np.ones((2, 2), "f4"), np.array([1, 2], "f4"))
    array([[2., 3.],
           [2., 3.]], dtype=float32)
    """
    return _binary("add", "add", input, _times(other, alpha, threads), threads)


def _times(other: Any, alpha: float, threads: int) -> Any:
    if alpha == 1:
        return other
    return other * alpha if isinstance(other, (int, float)) else _binary("mul", "mul", other, alpha, threads)


def sub(input: Array, other: Any, *, alpha: float = 1, threads: int = 0) -> np.ndarray:
    """input - alpha * other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.sub.

    >>> sub(np.ones(2, "f4"), 3)
    array([-2., -2.], dtype=float32)
    """
    return _binary("sub", "sub", input, _times(other, alpha, threads), threads)


def mul(input: Array, other: Any, *, threads: int = 0) -> np.ndarray:
    """input * other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError. Source: torch.mul.

    >>> mul(np.ones((1, 2, 1, 1), "f4"), np.full((1, 2, 3, 3), 2, "f4")).shape
    (1, 2, 3, 3)
    """
    return _binary("mul", "mul", input, other, threads)


def div(input: Array, other: Any, *, rounding_mode: str | None = None, threads: int = 0) -> np.ndarray:
    """input / other, with broadcasting; other may be a number.

    Raises: ShapeError if the shapes do not broadcast; DTypeError; Unsupported for a rounding_mode. Source: torch.div.

    >>> div(np.ones(2, "f4"), 4)
    array([0.25, 0.25], dtype=float32)
    """
    if rounding_mode is not None:
        raise Unsupported(f"div: rounding_mode={rounding_mode!r}; only true division is served")
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
