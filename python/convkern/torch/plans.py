"""From tensors to plans: views of memory, packed weights that follow their tensors, plans kept for the last shapes.

A tensor's memory is read in place, whatever its strides, and results are made in memory the package recycles; neither
is copied. What is made of parameters (packed filters, folded norms, and the plans that use them) is kept once for the
whole process, by the tensors' memory, and goes when that memory goes. It is current while each tensor has the same
version (`tensor._version`), and the same fingerprint: `tensor.data` changes memory without counting, so a sample of the
values is compared as well, and inference tensors, which count nothing, are compared as a whole.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from .. import _core

SHAPES = 8  # plans that are kept for a set of parameters, one for each image shape and geometry
_SAMPLES = 32  # 8-byte words of a tensor that are looked at before each call

Tensor = torch.Tensor


# Views of tensors

# Axes of (N,C,...) in memory order (N,...,C), and back, by the number of axes.
_LAST = {2: (0, 1), 3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_FIRST = {2: (0, 1), 3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}
_ONES = {2: (slice(None), None, None, None), 3: (slice(None), None, None), 4: (slice(None), None), 5: ()}


def array(x: Tensor) -> np.ndarray:
    """The memory of a tensor as an ndarray of its shape."""
    return (x.detach() if x.requires_grad else x).numpy()


def pixels(x: Tensor) -> np.ndarray:
    """(N,C), (N,C,L), (N,C,H,W) or (N,C,D,H,W) seen as a plan's (N,D,H,W,C)."""
    return array(x).transpose(_LAST[x.dim()])[_ONES[x.dim()]]


def tensor(y: np.ndarray, axes: int, channels_first: bool = False) -> Tensor:
    """A plan's result, (N,D,H,W,C) or as run with channels_first, as (N,C,...) of so many axes; no copy."""
    if channels_first:
        return torch.from_numpy(y.reshape(y.shape[:2] + y.shape[7 - axes :]))
    return torch.from_numpy(y.reshape(y.shape[:1] + y.shape[6 - axes :]).transpose(_FIRST[axes]))


def spatial(shape: Sequence[int]) -> tuple[int, ...]:
    """The plan's (D,H,W,C) of an image in a batch of the shape (N,C,...)."""
    return (*(1,) * (5 - len(shape)), *shape[2:], shape[1])


def is_channels_last(x: Tensor) -> bool:
    """Whether channels are what lies next to each other: the layout that plans compute in."""
    return x.size(1) > 1 and x.stride(1) == 1 and not x.is_contiguous()


def run(plan: _core.Plan, *arrays: np.ndarray, channels_first: bool = False) -> list[np.ndarray]:
    """Run a plan on the threads that torch would use."""
    return plan.run(list(arrays), torch.get_num_threads(), channels_first)


def new_plan(dtype: torch.dtype, exact: bool = True) -> _core.Plan:
    return _core.Plan("float64" if dtype == torch.float64 else "float32", exact)


# What is made of parameters

_lock = threading.Lock()
_made: dict[Hashable, Made] = {}


class Made:
    """What `make` made of some tensors, and the plans that use it."""

    __slots__ = ("plans", "refs", "state", "value")

    def __init__(self, state: tuple[Any, ...], value: Any, refs: list[Any]):
        self.state, self.value, self.refs = state, value, refs
        self.plans: dict[Hashable, _core.Plan] = {}

    def plan(self, key: Hashable, build: Callable[[], _core.Plan]) -> _core.Plan:
        """The plan of this key, built if it is not there."""
        plan = self.plans.get(key)
        if plan is None:
            plan = build()
            with _lock:
                while len(self.plans) >= SHAPES:
                    del self.plans[next(iter(self.plans))]
                self.plans[key] = plan
        return plan


def _state(t: Tensor | None) -> tuple[Any, ...] | None:
    """What changes when the values of a tensor change; None for memory with gaps, whose values are not followed."""
    if t is None:
        return ()
    storage = t.untyped_storage()
    if not t.is_contiguous() and (t.storage_offset() or storage.nbytes() != t.nbytes):
        return None
    version, samples = (-1, 0) if t.is_inference() else (t._version, _SAMPLES)
    return storage._cdata, version, _core.fingerprint(t.data_ptr(), t.nbytes, samples)


def _place(t: Tensor | None) -> Any:
    return None if t is None else (t.data_ptr(), t.shape, t.stride(), t.dtype)


def made(kind: Hashable, tensors: tuple[Tensor | None, ...], make: Callable[[], Any]) -> Made:
    """What `make()` makes of the tensors, from the last call if they have not changed since."""
    key = (kind, *map(_place, tensors))
    state = tuple(map(_state, tensors))
    known = _made.get(key)
    if known is not None and known.state == state:
        return known
    fresh = Made(state, make(), [])
    if None not in state:

        def forget(_: object) -> None:
            _made.pop(key, None)

        fresh.refs = [weakref.ref(t.untyped_storage(), forget) for t in tensors if t is not None]
        _made[key] = fresh
    return fresh


def packed_bytes() -> int:
    """Memory of all packed weights that are kept for tensors at the moment.

    >>> packed_bytes() >= 0
    True
    """
    return sum(m.value.packed_bytes for m in list(_made.values()) if isinstance(m.value, _core.Parameter))


def clear() -> None:
    """Forget all packed weights and plans; the next calls make them anew.

    >>> clear()
    >>> packed_bytes()
    0
    """
    _made.clear()
