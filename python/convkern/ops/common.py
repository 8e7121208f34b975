"""What the functions on arrays share: reading arguments, plans of one step, and the order of axes in memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core, tuning
from ..arrays import Images, as_ndarray, asarray
from ..errors import DTypeError, ShapeError, Unsupported

Array = Any  # an ndarray or any other array of the CPU or a CUDA device
Ints = int | Sequence[int]
Triple = tuple[int, int, int]

MAX_SIZE = 2**40  # of one dimension, stride or padding: products with it stay inside int64
MAX_ELEMENTS = 2**60


def one_int(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: got {value!r}, want an integer") from None
    if abs(number) > MAX_SIZE:
        raise ShapeError(f"{name}={number} overflows")
    return number


def ints(value: Any, count: int, name: str, least: int = 0) -> tuple[int, ...]:
    """`count` integers >= least, from one integer, a sequence of one, or a sequence of `count`."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = tuple(one_int(v, name) for v in value)
        if len(numbers) == 1:
            numbers *= count
    else:
        numbers = (one_int(value, name),) * count
    if len(numbers) != count:
        raise ShapeError(f"{name}={numbers} has {len(numbers)} entries, want 1 or {count}")
    if min(numbers) < least:
        raise ShapeError(f"{name}={numbers}, want every entry to be at least {least}")
    return numbers


def triple(values: Sequence[int], fill: int) -> Triple:
    """Spatial values of 1, 2 or 3 dimensions as (d, h, w)."""
    d, h, w = (fill,) * (3 - len(values)) + tuple(values)
    return d, h, w


def no_inplace(inplace: bool) -> None:
    if inplace:
        raise Unsupported("inplace=True: results are always new arrays")


def nonempty(op: str, im: Images) -> None:
    if min(im.ndhwc.shape[1:]) < 1:
        raise ShapeError(
            f"{op}: got an image of {im.spatial} pixels and {im.channels} channels; only the batch may be empty"
        )


def check_output(op: str, n: int, spatial: Sequence[int], channels: int) -> None:
    if min(spatial) < 1:
        raise ShapeError(f"{op}: the output would have {tuple(spatial)} pixels; every size must be at least 1")
    if max(n, 1) * math.prod(spatial) * channels > MAX_ELEMENTS:
        raise ShapeError(f"{op}: an output of {n} x {tuple(spatial)} x {channels} values overflows")


def per_channel(value: Array | None, name: str, like: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    array = asarray(value, name, like)
    if array.shape != shape:
        raise ShapeError(f"{name}: got shape {array.shape}, want {shape}")
    return array.astype("float32").numpy() if isinstance(like, str) else array  # plans take constants from the CPU


def one_axis(op: str, dim: Any, rank: int) -> int:
    dim, rank = one_int(dim, "dim"), max(rank, 1)  # torch lets numbers have one axis
    if not -rank <= dim < rank:
        raise ShapeError(f"{op}: dim={dim} is outside of {rank} dimensions")
    return dim % rank


# Plans of one step


class _DevicePlan:
    """A plan that is recorded and run on the device of its arrays; made like a _core.Plan."""

    def __init__(self, device: int, precision: str):
        self._device, self._precision = device, precision
        self._plan = _core.Plan(exact=True, record=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def run(self, arrays: Sequence[Any], threads: int = 0, channels_first: bool = False) -> list[Any]:
        from ..device import Runner

        return Runner(self._plan, self._device, self._precision, graphs=False).run(arrays, threads, channels_first)


def new_plan(x: Any) -> Any:
    """A plan for arrays like x that rounds as plain sums do: the weights of a single call are not worth a Winograd
    transform.
    """
    if type(x) is not np.ndarray:
        return _DevicePlan(x.device_number, x.dtype)
    tuning.ensure_loaded()
    return _core.Plan(
        "float32" if x.dtype.itemsize == 4 else "float64", exact=True
    )  # dtype.name takes longer than all this


def start(x: Any) -> tuple[Any, int]:
    """A plan with one input of the shape of x (N,D,H,W,C)."""
    plan = new_plan(x)
    return plan, plan.input(x.shape[1:])


def empty(shape: Sequence[int], like: Any) -> Any:
    """An array of this shape where `like` is and with its elements."""
    if type(like) is np.ndarray:
        return np.empty(shape, like.dtype)
    from ..device import empty

    return empty(shape, like.dtype, like.device_number)


def contiguous(x: Any) -> Any:
    return np.ascontiguousarray(x) if type(x) is np.ndarray else x.contiguous()


def parameter(w: Any) -> _core.Parameter:
    """A weight (T,R,S,C/G,K) for a plan, wherever it is."""
    if type(w) is np.ndarray:
        return _core.Parameter(np.ascontiguousarray(w))
    from ..device import weight

    return weight(w)


def dtype_of(obj: Any) -> Any:
    """The elements of an argument that no other has been compared with yet, as asarray's `like`."""
    if type(obj) is not np.ndarray:
        from ..device import on_device, place

        if on_device(obj):
            return place(obj, "input", None, None).dtype
    return as_ndarray(obj).dtype


def copied(x: Any) -> Any:
    """A new array with the same values, in C order."""
    if type(x) is np.ndarray:
        return np.array(x, order="C")
    from ..device import concatenate

    return concatenate([x[None]])[0]


def filled(shape: Sequence[int], value: float, like: Any) -> Any:
    if type(like) is np.ndarray:
        return np.full(shape, value, like.dtype)
    from ..device import to_device

    return to_device(np.full(shape, value, np.float32), like.device, like.dtype)


def negative(x: Any) -> Any:
    """-x, in place where x is an ndarray."""
    if type(x) is np.ndarray:
        return np.negative(x, out=x)
    from .elementwise import mul

    return mul(x, -1.0)


def moveaxis(x: Any, source: int, destination: int) -> Any:
    order = [axis for axis in range(x.ndim) if axis != source % x.ndim]
    order.insert(destination % x.ndim, source % x.ndim)
    return x.transpose(order)


def finish(plan: Any, tensor: int, im: Images, threads: int) -> Any:
    plan.finish([tensor])
    return im.restore(plan.run([im.ndhwc], threads, im.channels_first_memory)[0])


def as_rows(x: Any) -> Any:
    """(..., C) as (N,D,H,W,C): a view for up to five dimensions."""
    if x.ndim > 5:
        return x.reshape(-1, 1, 1, 1, x.shape[-1])
    if x.ndim == 1:
        return x[None, None, None, None]
    return x[(slice(None), *(None,) * (5 - x.ndim))]


# Order in memory


def dense_order(x: Any) -> tuple[int, ...]:
    """The order of the axes in memory, outermost first: what elementwise results keep."""
    if x.flags.c_contiguous or 0 in x.strides:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def back(y: Any, order: tuple[int, ...]) -> Any:
    return y.transpose(np.argsort(order)) if y.ndim > 1 else y


def flat(x: Any) -> Any:
    """A C-contiguous array as a plan's (N,1,1,1,C): rows of a few thousand values, so that threads can share them."""
    columns = 1
    for size in reversed(x.shape):
        columns *= size
        if columns >= 1024:
            break
    return x.reshape(-1, 1, 1, 1, columns)
