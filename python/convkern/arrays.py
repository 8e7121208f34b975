"""Arrays in and out: any CPU array becomes an ndarray without a copy, and image batches become (N,D,H,W,C) views.

Nothing is converted: an element type that the kernels do not have is an error that names it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .errors import DTypeError, ShapeError, Unsupported

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# DLPack device types whose memory the CPU can read: CPU, and host memory pinned for CUDA or ROCm.
_HOST_DEVICES = {1, 3, 11}
_DEVICE_NAMES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}


def as_ndarray(obj: Any, what: str = "input") -> np.ndarray:
    """View any CPU array as an ndarray, whatever its element type; no copy, and read-only arrays stay read-only.

    Accepts NumPy arrays and objects with `__dlpack__` or `__array_interface__`, PyTorch CPU tensors among them (those
    that require a gradient are detached).
    Raises DTypeError for anything else (lists, numbers) and Unsupported for the memory of another device.

    >>> as_ndarray(np.float32(2)).shape
    ()
    """
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise DTypeError(f"{what}: got a masked array, want a plain one (its mask would be lost)")
        return obj if type(obj) is np.ndarray else obj.view(np.ndarray)
    if getattr(obj, "requires_grad", False):
        obj = obj.detach()
    if getattr(getattr(obj, "device", None), "type", None) == "cpu" and hasattr(obj, "numpy"):
        try:  # a PyTorch tensor: its own view costs a fifth of an exchange through DLPack
            return obj.numpy()
        except (RuntimeError, TypeError) as error:
            raise DTypeError(f"{what}: got a {_kind(obj)} of {obj.dtype}, which cannot be read ({error})") from None
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        device = _device(obj)
        if device not in _HOST_DEVICES:
            name = _DEVICE_NAMES.get(device, str(getattr(obj, "device", device)))
            raise Unsupported(f"{what}: got a {_kind(obj)} on device {name}; only CPU arrays are read, move it first")
        try:
            return np.from_dlpack(obj)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            dtype = f" of {obj.dtype}" if hasattr(obj, "dtype") else ""
            raise DTypeError(f"{what}: got a {_kind(obj)}{dtype}, which cannot be read as an array ({error})") from None
    if hasattr(obj, "__array_interface__"):
        return np.asarray(obj)
    if hasattr(obj, "__cuda_array_interface__"):
        raise Unsupported(f"{what}: got a {_kind(obj)} on device CUDA; only CPU arrays are read, move it first")
    raise DTypeError(
        f"{what}: got a {_kind(obj)}, want an array (NumPy, or an object with __dlpack__ or __array_interface__)"
    )


def _device(obj: Any) -> int:
    """DLPack's number of the device; -1 for one that DLPack does not know."""
    try:
        return int(obj.__dlpack_device__()[0])
    except (BufferError, RuntimeError, ValueError):
        return -1


def asarray(obj: Any, what: str = "input", like: Any = None) -> Any:
    """View any CPU array of float32 or float64 as an ndarray that kernels can read.

    like: the element type that is wanted (that of another argument); otherwise both are accepted.
    Memory at odd addresses (a field of packed records) is the one thing that is copied. An array of a CUDA device
    becomes a DeviceArray (`like` is then a name such as "float16"); mixing devices is an error.

    >>> asarray(np.zeros(3, "f4")).dtype
    dtype('float32')
    >>> asarray(np.zeros(3, "i4"), "weight")
    Traceback (most recent call last):
        ...
    convkern.errors.DTypeError: weight: got elements of int32, want float32 or float64
    """
    if type(obj) is not np.ndarray:
        from .device import on_device, place

        if on_device(obj):
            if isinstance(like, np.dtype):
                where = getattr(obj, "device", "a CUDA device")
                raise Unsupported(f"{what} is on {where}, the input on the CPU: devices are not mixed")
            placed = place(obj, what, None, like)
            if placed.dtype == "int64":
                raise DTypeError(f"{what}: got elements of int64 on a device, want float32, float16 or bfloat16")
            return placed
    if isinstance(like, str):
        raise Unsupported(
            f"{what} is on the CPU, the input on a CUDA device: devices are not mixed; "
            f"move it with convkern.device.to_device"
        )
    array = as_ndarray(obj, what)
    if like is not None and array.dtype != like:
        raise DTypeError(f"{what}: got elements of {array.dtype}, want {like} as the input has")
    if array.dtype != FLOAT32 and array.dtype != FLOAT64:
        raise DTypeError(f"{what}: got elements of {array.dtype}, want float32 or float64")
    return array if array.flags.aligned else array.copy()


def _kind(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")


class Images(NamedTuple):
    """A batch as the plans read it, and how their results go back to the caller's layout."""

    ndhwc: Any  # (N,D,H,W,C), always a view: an ndarray or a DeviceArray
    rank: int  # spatial dimensions of the caller's array
    batched: bool
    channels_last: bool  # the caller's axes are (N,...,C)
    channels_first_memory: bool  # results are laid out as (N,C,...)

    @property
    def channels(self) -> int:
        return self.ndhwc.shape[-1]

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.ndhwc.shape[4 - self.rank : 4]

    def restore(self, y: Any) -> Any:
        """A result of Plan.run with channels_first=self.channels_first_memory, as the caller's axes."""
        if self.channels_first_memory:
            y = y.reshape(y.shape[:2] + y.shape[5 - self.rank :])
        else:
            y = y.reshape(y.shape[:1] + y.shape[4 - self.rank :])
            if not self.channels_last:
                y = y.transpose(0, -1, *range(1, self.rank + 1))
        return y if self.batched else y[0]


_CHANNELS_LAST = {"NCHW": False, "NCL": False, "NCDHW": False, "NHWC": True, "NLC": True, "NDHWC": True}


def images(x: Any, rank: int, layout: str, what: str, *, batched: bool | None = None) -> Images:
    """View `x`, with `rank` spatial dimensions, as (N,D,H,W,C).

    batched: None accepts both (N,C,...) and (C,...). NHWC memory seen as NCHW is recognised by its strides, and results
    then have such strides too.
    """
    try:
        channels_last = _CHANNELS_LAST[layout]
    except (KeyError, TypeError):
        raise Unsupported(f"layout={layout!r}; want one of {', '.join(_CHANNELS_LAST)}") from None
    if batched is None:
        batched = x.ndim != rank + 1
    if x.ndim != rank + (2 if batched else 1):
        raise ShapeError(f"{what}: got an input of shape {x.shape}, want {_dims_wanted(rank, channels_last)}")
    if not batched:
        x = x[None]
    first_memory = not channels_last
    if not channels_last:
        if x.shape[1] > 1 and x.strides[1] == x.itemsize and not x.flags.c_contiguous:
            first_memory = False
        x = x.transpose(0, *range(2, rank + 2), 1)
    if rank < 3:
        x = x[(slice(None), *(None,) * (3 - rank))]
    return Images(x, rank, batched, channels_last, first_memory)


def _dims_wanted(rank: int, channels_last: bool) -> str:
    names = "DHW"[3 - rank :] if rank > 1 else "L"
    inner = ",".join([*names, "C"] if channels_last else ["C", *names])
    return f"({inner}) or (N,{inner})"
