"""From tensors to plans: packed weights that follow their tensors, plans kept for the last shapes.

A tensor's memory is read in place, whatever its strides, and results are made in memory the package recycles; neither
is copied. What is made of parameters (packed filters, folded norms, and the plans that use them) is kept once for the
whole process, by the tensors' memory, and goes when that memory goes. It is current while each tensor has the same
version (`tensor._version`) and the same fingerprint: `tensor.data` changes memory without counting, so values are
compared as well: all of them if they are few or float64 (gradcheck changes one at a time) or of an inference tensor,
which counts nothing, else a sample. Values that changed are packed again, and plans stay. Filters are packed in
passing, into memory that all layers share, until a plan runs twice with the same values: in training it never does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _core

SHAPES = 8  # plans that are kept for a set of parameters, one for each image shape and geometry
_SAMPLES = 256  # 8-byte words of a tensor of more than _FEW bytes that are looked at before each call
_FEW = 16 << 10


# Tensors as plans take them


def array(x: Tensor) -> np.ndarray:
    """The memory of a tensor as an ndarray of its shape."""
    return (x.detach() if x.requires_grad else x).numpy()


def spatial(shape: Sequence[int]) -> tuple[int, ...]:
    """The plan's (D,H,W,C) of an image in a batch of the shape (N,C,...)."""
    return (*(1,) * (5 - len(shape)), *shape[2:], shape[1])


def is_channels_last(x: Tensor) -> bool:
    """Whether channels are what lies next to each other: the layout that plans compute in."""
    return x.size(1) > 1 and x.stride(1) == 1 and not x.is_contiguous()


def new_plan(dtype: torch.dtype, exact: bool = True) -> _core.Plan:
    """A plan that may have gradients, and vectors (biases, scales) that it reads when it runs."""
    return _core.Plan("float64" if dtype == torch.float64 else "float32", exact, training=True)


@lru_cache(maxsize=512)
def planned(build: Callable[..., Sequence[int]], dtype: torch.dtype, exact: bool, *key: Any) -> _core.Plan:
    """The plan whose results `build(plan, *key)` gives."""
    plan = new_plan(dtype, exact)
    plan.finish(build(plan, *key))
    return plan


def run(plan: _core.Plan, inputs: Sequence[Tensor | None], channels_last: bool = True) -> list[Tensor]:
    """The results of a plan for the tensors that are there: (N,C,...), and vectors for totals.

    Inputs are read in place whatever their strides. Results lie channels-last, or as the first input does. torch's
    number of threads works at them.
    """
    x: Any = inputs[0]
    first = not (channels_last or is_channels_last(x))
    arrays = [array(t if t.dim() > 1 else t.contiguous()) for t in inputs if t is not None]
    return [torch.from_numpy(y) for y in plan.run(arrays, torch.get_num_threads(), first, x.dim())]


# What is made of parameters


class Made:
    """The contents made of some tensors, what the tensors were like then, and the plans that use the contents.

    contents.load(*tensors) makes them anew from the tensors' values, in the same memory.
    """

    __slots__ = ("contents", "followed", "layouts", "loads", "plans", "refs", "state", "storages")

    def __init__(self, contents: Any, tensors: Sequence[Tensor | None], forget: Callable[[Any], None]):
        self.contents = contents
        self.refs = [None if t is None else weakref.ref(t) for t in tensors]
        self.layouts = [_layout(t) for t in tensors]
        self.followed = all(map(_dense, tensors))
        self.storages = [weakref.ref(t.untyped_storage(), forget) for t in tensors if t is not None]
        self.state: list[Any] | None = None
        self.loads = 0  # how often the values changed
        self.plans: dict[Hashable, list[Any]] = {}

    def is_of(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these tensors, which lie where ours did, are laid out as ours were."""
        return all(
            t is None or ref() is t or _layout(t) == layout  # type: ignore[misc]
            for t, ref, layout in zip(tensors, self.refs, self.layouts)
        )

    def plan(self, key: Hashable, build: Callable[[bool], _core.Plan], stays: bool = False) -> _core.Plan:
        """The plan of this key, if need be built by `build(stays)`.

        stays: whether what is packed is kept; it pays from a plan's second run with the same values on.
        """
        known = self.plans.get(key)
        if known is None:
            with _lock:
                while len(self.plans) >= SHAPES:
                    del self.plans[next(iter(self.plans))]
                known = self.plans[key] = [None, None, -1]  # a plan that packs in passing, one that keeps, the last run
        stays = stays or known[2] == self.loads
        known[2] = self.loads
        if known[stays] is None:
            known[stays] = build(stays)
        return known[stays]


_lock = threading.RLock()
_made: dict[Hashable, Made] = {}


def _layout(t: Tensor | None) -> Any:
    return None if t is None else (t.untyped_storage()._cdata, t.stride(), t.dtype)


def _dense(t: Tensor | None) -> bool:
    """Whether the values are all that lies between the first and the last: what fingerprints read."""
    return t is None or t.is_contiguous() or (not t.storage_offset() and t.untyped_storage().nbytes() == t.nbytes)


def _state(t: Tensor) -> tuple[int, int]:
    """What changes when the values of a tensor change."""
    size = t.nbytes
    if t.is_inference():
        return -1, _core.fingerprint(t.data_ptr(), size)
    samples = 0 if size <= _FEW or t.dtype == torch.float64 else _SAMPLES
    return t._version, _core.fingerprint(t.data_ptr(), size, samples)


def made(kind: Hashable, tensors: tuple[Tensor | None, ...], make: Callable[[], Any]) -> Made:
    """What `make()`, and then its load(), make of the tensors; from the last call if they have not changed since."""
    key = (kind, *[None if t is None else (t.data_ptr(), t.shape) for t in tensors])
    state = [None if t is None else _state(t) for t in tensors]
    known = _made.get(key)
    if known is not None and known.state == state and known.followed and known.is_of(tensors):
        return known
    with _lock:
        known = _made.get(key)
        if known is None or not known.is_of(tensors):

            def forget(_: Any) -> None:
                _made.pop(key, None)

            known = _made[key] = Made(make(), tensors, forget)
        if known.state != state or not known.followed:
            known.contents.load(*tensors)
            known.state = state
            known.loads += 1
    return known


def packed_bytes() -> int:
    """Memory of all packed weights that are kept for tensors at the moment.

    >>> packed_bytes() >= 0
    True
    """
    return sum(getattr(m.contents, "packed_bytes", 0) for m in list(_made.values()))


def clear() -> None:
    """Forget all packed weights and plans; the next calls make them anew.

    >>> clear()
    >>> packed_bytes()
    0
    """
    _made.clear()
