"""The layers' common arguments: sizes, strides, paddings and activations, checked once and brought to one form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from ..errors import DTypeError, ShapeError, Unsupported
from ..graph import Graph

Pairs = tuple[tuple[int, int], ...]

_INFINITY = float("inf")

# Keras' names -> the operator's kind and its two numbers (Keras' defaults: a leaky slope of 0.2 in activations, 0.3 in
# the LeakyReLU layer).
ACTIVATIONS: dict[str, tuple[str, float, float]] = {
    "linear": ("none", 0.0, 0.0),
    "relu": ("relu", 0.0, 0.0),
    "relu6": ("relu6", 0.0, 0.0),
    "silu": ("silu", 0.0, 0.0),
    "swish": ("silu", 0.0, 0.0),
    "sigmoid": ("sigmoid", 0.0, 0.0),
    "hard_swish": ("hard_swish", 0.0, 0.0),
    "hard_silu": ("hard_swish", 0.0, 0.0),
    "hard_sigmoid": ("hard_sigmoid", 0.0, 0.0),
    "gelu": ("gelu", 0.0, 0.0),
    "gelu_tanh": ("gelu_tanh", 0.0, 0.0),
    "tanh": ("tanh", 0.0, 0.0),
    "elu": ("elu", 1.0, 0.0),
    "leaky_relu": ("leaky_relu", 0.2, 0.0),
    "softplus": ("softplus", 1.0, 20.0),
    "exponential": ("exp", 0.0, 0.0),
    "exp": ("exp", 0.0, 0.0),
}
_ROWWISE = ("softmax", "log_softmax")  # not elementwise: an operator of their own


def check_activation(name: Any) -> str | None:
    """An activation's name, or None; Unsupported, with the names there are, for anything else."""
    if name is None or (isinstance(name, str) and (name in ACTIVATIONS or name in _ROWWISE)):
        return name
    raise Unsupported(f"activation={name!r}; want None or one of {', '.join((*ACTIVATIONS, *_ROWWISE))}")


def activate(graph: Graph, x: int, name: str | None, suffix: bool = True) -> int:
    """Add the operator of a named activation."""
    if name is None or name == "linear":
        return x
    label = name if suffix else ""
    if name in _ROWWISE:
        return graph.add("softmax", [x], {"log": name == "log_softmax"}, name=label)
    kind, a, b = ACTIVATIONS[name]
    return graph.add("activation", [x], {"kind": kind, "a": a, "b": b}, name=label)


def integer(what: str, value: Any, least: int = 1) -> int:
    """An integer that is at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise DTypeError(f"{what}: got {value!r}, want an integer")
    if number < least:
        raise ShapeError(f"{what}: got {value}, want at least {least}")
    return number


def number(what: str, value: Any) -> float:
    """A real number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{what}: got {value!r}, want a number") from None


def per_axis(what: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """One integer for each spatial axis; a single one stands for all.

    >>> per_axis("strides", 2, 2)
    (2, 2)
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != rank:
            raise ShapeError(f"{what}: got {value!r}, want an integer or {rank} of them")
        return tuple(integer(what, v, least) for v in value)
    return (integer(what, value, least),) * rank


def pairs(what: str, value: Any, rank: int) -> Pairs:
    """Amounts before and after each spatial axis: from one integer, one per axis, or a pair per axis.

    >>> pairs("padding", (1, 2), 2), pairs("padding", ((0, 1), (2, 3)), 2), pairs("padding", (1, 2), 1)
    (((1, 1), (2, 2)), ((0, 1), (2, 3)), ((1, 2),))
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        n = integer(what, value, 0)
        return ((n, n),) * rank
    if rank == 1 and len(value) == 2:
        value = (value,)
    if len(value) != rank:
        raise ShapeError(f"{what}: got {value!r}, want an integer, {rank} integers or {rank} pairs")
    result = []
    for v in value:
        if isinstance(v, Sequence) and not isinstance(v, str):
            if len(v) != 2:
                raise ShapeError(f"{what}: got {value!r}, want pairs (before, after)")
            result.append((integer(what, v[0], 0), integer(what, v[1], 0)))
        else:
            result.append((integer(what, v, 0),) * 2)
    return tuple(result)


def check_padding(value: Any, rank: int, words: Sequence[str] = ("valid", "same")) -> str | Pairs:
    """Keras' word, or explicit amounts as torch takes them."""
    if isinstance(value, str):
        if value.lower() not in words:
            raise Unsupported(
                f"padding={value!r}; want one of {', '.join(words)}, an integer, {rank} integers or {rank} pairs"
            )
        return value.lower()
    return pairs("padding", value, rank)


def resolve_padding(
    padding: str | Pairs, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Pairs:
    """Padding in pixels. "same" gives ceil(size / stride) outputs and puts the odd pixel after (Keras, TensorFlow);
    "causal" pads before only.
    """
    if not isinstance(padding, str):
        return padding
    result = []
    for n, r, s, d in zip(sizes, window, strides, dilation):
        extent = d * (r - 1) + 1
        if padding == "same":
            total = max((-(-n // s) - 1) * s + extent - n, 0)
            result.append((total // 2, total - total // 2))
        else:
            result.append((extent - 1 if padding == "causal" else 0, 0))
    return tuple(result)


def check_data_format(value: Any) -> str | None:
    """None or "channels_last"; layers know no other layout."""
    if value not in (None, "channels_last"):
        raise Unsupported(
            f"data_format={value!r}; layers are channels_last: pass x.transpose(0, 2, 3, 1) (no copy is made), "
            f"or use convkern.ops"
        )
    return value
