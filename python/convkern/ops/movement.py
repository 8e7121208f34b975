"""Joining, flattening, padding and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import asarray, images
from ..errors import DTypeError, ShapeError, Unsupported
from .common import (
    MAX_ELEMENTS,
    Array,
    back,
    check_output,
    copied,
    dense_order,
    dtype_of,
    empty,
    filled,
    finish,
    new_plan,
    nonempty,
    one_axis,
    one_int,
    start,
    triple,
)


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
    like = dtype_of(tensors[0])
    arrays = [asarray(t, f"tensors[{i}]", like) for i, t in enumerate(tensors)]
    if any(a.ndim == 0 for a in arrays):
        raise ShapeError("cat: got an array of no dimensions")
    arrays = [a for a in arrays if a.shape != (0,)] or arrays[:1]
    first = arrays[0].shape
    dim = one_axis("cat", dim, len(first))
    for a in arrays:
        if a.ndim != len(first) or a.shape[:dim] != first[:dim] or a.shape[dim + 1 :] != first[dim + 1 :]:
            raise ShapeError(f"cat: the shapes {first} and {a.shape} differ outside of dim={dim}")
    shape = (*first[:dim], sum(a.shape[dim] for a in arrays), *first[dim + 1 :])
    if not math.prod(shape):
        return empty(shape, arrays[0])
    arrays = [a for a in arrays if a.size]
    orders = {dense_order(a) for a in arrays}
    order = orders.pop() if len(orders) == 1 else tuple(range(len(first)))
    at = order.index(dim)
    plan = new_plan(arrays[0])
    parts = []
    for a in arrays:
        a = a.transpose(order)
        parts.append(a.reshape(math.prod(a.shape[:at]), 1, 1, a.shape[at], math.prod(a.shape[at + 1 :])))
    axis = 2 if parts[0].shape[-1] > 1 else 3
    if axis == 3:
        parts = [p.swapaxes(3, 4) for p in parts]
    plan.finish([plan.concat([plan.input(p.shape[1:]) for p in parts], axis, label="cat")])
    return back(plan.run(parts, threads)[0].reshape([shape[i] for i in order]), order)


concat = cat


def flatten(input: Array, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    """Merge the axes start_dim to end_dim into one, in the order of the axes; the result is a new array.

    Raises: ShapeError if start_dim comes after end_dim. Source: torch.flatten.

    >>> flatten(np.zeros((2, 3, 4, 5), "f4"), 1).shape
    (2, 60)
    """
    x = asarray(input)
    first, last = one_axis("flatten", start_dim, x.ndim), one_axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ShapeError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in {x.ndim} dimensions")
    merged = math.prod(x.shape[first : last + 1])
    return copied(x).reshape(*x.shape[:first], merged, *x.shape[last + 1 :])


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
    numbers = [one_int(n, "pad") for n in pad]
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
    if math.prod(shape) > MAX_ELEMENTS:
        raise ShapeError(f"pad: a result of shape {shape} overflows")
    if 0 in shape:
        return empty(shape, x)
    fill = 0.0 if value is None else float(value)
    if not x.size:
        if mode != "constant":
            raise ShapeError(f"pad: mode {mode!r} of an empty input of shape {x.shape}")
        return filled(shape, fill, x)
    if mode == "circular":  # what is cropped does not come round again
        x = x[tuple(slice(max(-lo, 0), n + min(hi, 0)) for n, (lo, hi) in zip(x.shape, pairs))]
        pairs = [(max(lo, 0), max(hi, 0)) for lo, hi in pairs]
    order = dense_order(x)
    moved, moved_pairs = x.transpose(order), [pairs[i] for i in order]
    padded = [i for i, p in enumerate(moved_pairs) if any(p)]
    if len(padded) > 4:
        raise Unsupported(f"pad: pad={tuple(numbers)} pads {len(padded)} axes at once; at most 4 are served")
    # runs of axes that are not padded become one, the first run the batch: five axes in all, or fewer
    sizes, spans = [1], [(0, 0)]
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
    plan, source = start(fives)
    y = plan.pad(source, [lo for lo, _ in spans], [hi for _, hi in spans], mode, fill, label="pad")
    plan.finish([y])
    return back(plan.run([fives], threads)[0].reshape([shape[i] for i in order]), order)


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
    nonempty("interpolate", im)
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
    out = tuple(one_int(n, "size") for n in out)
    check_output("interpolate", len(im.ndhwc), out, im.channels)
    plan, source = start(im.ndhwc)
    if mode == "area":
        return finish(plan, plan.adaptive_pool(source, "avg", out=triple(out, 1), label="interpolate"), im, threads)
    if mode not in _RESIZE_MODES:
        raise Unsupported(f"interpolate: mode={mode!r}; want one of {', '.join([*_RESIZE_MODES, 'area'])}")
    want, kind = _RESIZE_MODES[mode]
    if want not in (None, rank):
        raise Unsupported(f"interpolate: mode {mode!r} wants an input of {want + 2} axes, got {x.shape}")
    d, h, w = (0.0,) * (3 - rank) + scales
    y = plan.resize(source, triple(out, 1), kind, bool(align_corners), (d, h, w), label="interpolate")
    return finish(plan, y, im, threads)


def _exactly(value: Any, count: int, name: str) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count:
        raise ShapeError(f"{name}={values} has {len(values)} entries, want {count}")
    return values
