"""GPUs: finding them, arrays on them, and plans that run there.

Nothing here is imported by `import convkern`, and nothing touches a driver before a device is asked for. The kernels
are in the extension module `_cuda`, which a plain build leaves out (build with CONVKERN_CUDA=ON, or `make cuda`).

Arrays of other libraries (PyTorch, CuPy, JAX) are read where they are, through DLPack or `__cuda_array_interface__`;
results are DeviceArrays, which such libraries read in the same way. Work is queued on the caller's stream: the one set
with `stream()`, else PyTorch's or CuPy's current one if they are loaded, else the default stream.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import operator
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _core
from .errors import DeviceError, DTypeError, ShapeError, Unsupported

# precision -> its number in the compiled code, the element type of its tensors
PRECISIONS = {
    "float32": (0, "float32"),  # strict: products and sums in float32
    "tf32": (1, "float32"),  # float32 tensors, products of 10-bit mantissas on tensor cores
    "fp32x3": (2, "float32"),  # float32 tensors, three tf32 products each
    "float16": (3, "float16"),
    "bfloat16": (4, "bfloat16"),
}
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
_ELEMENTS = {"float32": 0, "float16": 1, "bfloat16": 2, "int64": 3}  # the compiled code's numbers

_LEGACY_STREAM = 1  # the default stream, as DLPack numbers it
_UNKNOWN_STREAM = 2**64 - 1  # no stream's handle
_stream_now: contextvars.ContextVar[int | None] = contextvars.ContextVar("convkern_stream", default=None)
_module: _core.DeviceModule | None = None
_process: int | None = None  # the one that uses the driver
_lock = threading.Lock()


def module() -> _core.DeviceModule:
    """The compiled CUDA module, loaded at the first call. Raises Unsupported where the build left it out."""
    global _module
    if _process not in (None, os.getpid()):
        raise DeviceError(
            "CUDA was in use when this process was forked, and does not work in a forked child: "
            'start it with multiprocessing.get_context("spawn"), or stay on the CPU'
        )
    with _lock:
        if _module is None:
            try:
                from . import _cuda
            except ImportError as error:
                raise Unsupported(
                    f"this installation has no CUDA kernels ({error}); build it with CONVKERN_CUDA=ON or `make cuda`"
                ) from None
            _module = _core.DeviceModule(_cuda.table)
        return _module


def count() -> int:
    """How many CUDA devices there are. Raises Unsupported without CUDA kernels, DeviceError without a driver."""
    global _process
    there = module().count()
    _process = os.getpid()
    return there


def is_available() -> bool:
    """Whether models can be moved to "cuda:0" here.

    >>> is_available() in (True, False)
    True
    """
    try:
        return count() > 0
    except (Unsupported, DeviceError):
        return False


def info(device: str = "cuda:0") -> dict[str, Any]:
    """Name, compute capability, multiprocessors and memory of a device."""
    return module().info(index_of(device))


def number(device: str | None) -> int | None:
    """The number of a CUDA device, None for the CPU; whether it is there is not looked at.

    >>> number("cuda:1"), number("cuda"), number("cpu")
    (1, 0, None)
    """
    if device is None or device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if not found:
        raise Unsupported(f"device={device!r}; want 'cpu', 'cuda' or 'cuda:0', 'cuda:1' ...")
    return int(found[1] or 0)


def index_of(device: str) -> int:
    """The number of a device that is there. Raises Unsupported, DeviceError."""
    index = number(device)
    if index is None:
        raise Unsupported(f"device={device!r}; want a CUDA device such as 'cuda:0'")
    there = count()
    if index >= there:
        raise DeviceError(f"device={device!r}: there are {there} CUDA devices")
    return index


def check_precision(precision: str) -> str:
    """The name itself; Unsupported unless it is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise Unsupported(f"precision={precision!r}; want one of {', '.join(PRECISIONS)}")
    return precision


@contextlib.contextmanager
def stream(handle: int) -> Iterator[None]:
    """Queue the work of this block on a CUDA stream of the caller's: its handle as an integer (0, 1: the default one).

    >>> with stream(1):
    ...     pass
    """
    token = _stream_now.set(operator.index(handle) or _LEGACY_STREAM)
    try:
        yield
    finally:
        _stream_now.reset(token)


def current_stream(index: int = 0) -> int:
    """The stream that work is queued on now."""
    chosen = _stream_now.get()
    if chosen is not None:
        return chosen
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "cuda", None) is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_stream(index).cuda_stream) or _LEGACY_STREAM
    cupy = sys.modules.get("cupy")
    if cupy is not None and hasattr(cupy, "cuda"):
        return int(cupy.cuda.get_current_stream().ptr) or _LEGACY_STREAM
    return _LEGACY_STREAM


def synchronize(device: str = "cuda:0") -> None:
    """Wait for what has been queued on the current stream."""
    index = index_of(device)
    module().synchronize(index, current_stream(index))


class _Flags(NamedTuple):
    c_contiguous: bool
    aligned: bool = True


class DeviceArray:
    """An array on a device: memory, shape and strides, and nothing that computes.

    It is an exporter of DLPack and `__cuda_array_interface__`: torch.from_dlpack(y), cupy.from_dlpack(y) and
    jax.dlpack.from_dlpack(y) read it without a copy. `numpy()` copies it to the CPU.
    dtype: "float32", "float16", "bfloat16" or "int64". strides: in bytes, as NumPy's.
    """

    __slots__ = ("_offset", "_owner", "_stream", "device_number", "dtype", "shape", "strides")

    def __init__(
        self,
        owner: Any,
        pointer: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: str,
        device: int,
        stream: int,
    ):
        self._owner = owner  # keeps the memory
        self._offset = pointer
        self._stream = stream  # where the values are made
        self.shape = shape
        self.strides = strides
        self.dtype = dtype
        self.device_number = device

    @property
    def device(self) -> str:
        return f"cuda:{self.device_number}"

    @property
    def pointer(self) -> int:
        """The address of the first element."""
        return self._offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def flags(self) -> _Flags:
        dense = dense_strides(self.shape, self.itemsize)
        return _Flags(self.size == 0 or all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, dense)))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype!r}, device={self.device!r})"

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise Unsupported(f"an array on {self.device} is not read by NumPy; copy it with .numpy()")

    # Views.

    def _view(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> DeviceArray:
        return DeviceArray(
            self._owner,
            self._offset + offset,
            tuple(shape),
            tuple(strides),
            self.dtype,
            self.device_number,
            self._stream,
        )

    def transpose(self, *axes: Any) -> DeviceArray:
        """The same memory with its axes in another order, as NumPy's."""
        order = axes if len(axes) != 1 or isinstance(axes[0], int) else tuple(axes[0])
        order = order or tuple(reversed(range(self.ndim)))
        order = tuple(operator.index(a) % max(self.ndim, 1) for a in order)
        if sorted(order) != list(range(self.ndim)):
            raise ShapeError(f"transpose: {axes} is not an order of the {self.ndim} dimensions of {self.shape}")
        return self._view([self.shape[a] for a in order], [self.strides[a] for a in order])

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        """The same memory with two axes exchanged."""
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.transpose(order)

    def repeated(self, count: int) -> DeviceArray:
        """The same memory with its first axis, of one element, repeated; the array itself if it has `count` already."""
        if self.shape[0] == count:
            return self
        if self.shape[0] != 1:
            raise ShapeError(f"an axis of {self.shape[0]} elements cannot be repeated {count} times")
        return self._view((count, *self.shape[1:]), (0, *self.strides[1:]))

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same values in another shape: the same memory where it is contiguous, a copy elsewhere."""
        sizes = [operator.index(n) for n in (shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape)]
        if sizes.count(-1) == 1:
            known = -math.prod(sizes)
            sizes[sizes.index(-1)] = self.size // known if known else 0
        if math.prod(sizes) != self.size or min(sizes, default=0) < 0:
            raise ShapeError(f"reshape: {self.shape} does not fit {tuple(sizes)}")
        base = self if self.flags.c_contiguous else self.contiguous()
        return base._view(sizes, dense_strides(sizes, self.itemsize))

    def __getitem__(self, key: Any) -> DeviceArray:
        """Slices, integers, None and Ellipsis, as NumPy's; always a view."""
        keys = key if isinstance(key, tuple) else (key,)
        taken = sum(1 for k in keys if k is not None and k is not Ellipsis)
        if taken > self.ndim or keys.count(Ellipsis) > 1:
            raise IndexError(f"too many indices for an array of shape {self.shape}: {key!r}")
        rest = (slice(None),) * (self.ndim - taken)
        at = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
        keys = (*keys[:at], *rest, *keys[at + 1 :])
        shape: list[int] = []
        strides: list[int] = []
        offset, axis = 0, 0
        for k in keys:
            if k is None:
                shape.append(1)
                strides.append(0)
                continue
            n, step = self.shape[axis], self.strides[axis]
            if isinstance(k, slice):
                start, stop, jump = k.indices(n)
                if jump < 0:
                    raise Unsupported(f"a slice with a negative step: {k}")
                shape.append(max(0, -(-(stop - start) // jump)))
                strides.append(step * jump)
                offset += start * step if shape[-1] else 0
            else:
                i = operator.index(k)
                if not -n <= i < n:
                    raise IndexError(f"index {i} is outside of a dimension of {n}")
                offset += i % n * step
            axis += 1
        return self._view(shape, strides, offset)

    # Copies.

    def contiguous(self) -> DeviceArray:
        """A copy in C order; the array itself if it is so already."""
        return self if self.flags.c_contiguous else self._relaid(self.dtype)

    def astype(self, dtype: str) -> DeviceArray:
        """A copy with other elements ("float32", "float16", "bfloat16"), rounded to nearest."""
        if dtype not in _ITEMSIZE or (dtype == "int64") != (self.dtype == "int64"):
            raise DTypeError(f"an array of {self.dtype} cannot become {dtype!r}")
        return self if dtype == self.dtype else self._relaid(dtype)

    def _relaid(self, dtype: str) -> DeviceArray:
        out = empty(self.shape, dtype, self.device_number)
        self.wait(out._stream)
        if self.size:
            step = [s // self.itemsize for s in self.strides]
            args = (out.pointer, dtype, self.pointer, self.dtype, list(self.shape), step, out._stream)
            module().relay(self.device_number, *args)
        return out

    def numpy(self) -> np.ndarray:
        """A copy on the CPU. Raises DTypeError for bfloat16, which NumPy does not have: .astype("float32") first."""
        if self.dtype == "bfloat16":
            raise DTypeError('NumPy has no bfloat16; use .astype("float32").numpy()')
        dense = self.contiguous()
        out = np.empty(self.shape, self.dtype)
        if out.size:
            module().copy(self.device_number, out.ctypes.data, dense.pointer, out.nbytes, dense._stream)
            module().synchronize(self.device_number, dense._stream)
        return out

    def wait(self, stream: int) -> None:
        """Have a stream wait for the values. The memory is then given back when all streams are done with it."""
        if stream != self._stream:
            module().order(self.device_number, self._stream, stream)
            self._share(stream)

    def _share(self, stream: int) -> None:
        if isinstance(self._owner, _core.DeviceMemory):
            self._owner.share(stream)

    # Exports.

    def __dlpack_device__(self) -> tuple[int, int]:
        return module().dlpack_type, self.device_number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """stream: the consumer's, which will wait for the values; -1: no waiting; None: the default stream.

        max_version is not looked at: the capsule has the form that every consumer reads.
        """
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"the array is on {self.device}, which is not DLPack's device {dl_device}")
        if copy:
            return concatenate([self[None]])[0].__dlpack__(stream=stream)
        consumer = _LEGACY_STREAM if stream is None or stream == 0 else stream
        if consumer == -1:
            self._share(_UNKNOWN_STREAM)
        else:
            self.wait(consumer)
        step = [s // self.itemsize for s in self.strides]
        return _core.dlpack_export(
            self.pointer, list(self.shape), step, self.dtype, module().dlpack_type, self.device_number, self._owner
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16; use DLPack")
        return {
            "shape": self.shape,
            "strides": None if self.flags.c_contiguous else self.strides,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": self._stream,
        }


def dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of an array in C order."""
    strides = []
    for n in reversed(shape):
        strides.append(itemsize)
        itemsize *= n
    return tuple(reversed(strides))


def empty(shape: Sequence[int], dtype: str, index: int) -> DeviceArray:
    """New memory on a device, in the order of the current stream."""
    shape = tuple(shape)
    queue = current_stream(index)
    memory = module().allocate(index, math.prod(shape) * _ITEMSIZE[dtype], queue)
    return DeviceArray(memory, memory.pointer, shape, dense_strides(shape, _ITEMSIZE[dtype]), dtype, index, queue)


def to_device(x: Any, device: str = "cuda:0", dtype: str | None = None) -> DeviceArray:
    """Copy an array of the CPU to a device.

    x: float32, float16 or int64, any strides. dtype: "float16" or "bfloat16" converts float32 on the device.
    An array that is on the device already is not copied.
    Errors: DeviceError if the device is not there; DTypeError for other elements.

    >>> to_device(np.ones((2, 3), "f4"), "cuda:0").shape  # doctest: +SKIP
    (2, 3)
    """
    from .arrays import as_ndarray

    index = index_of(device)
    if on_device(x):
        array = from_object(x, "input")
        if array.device_number != index:
            raise Unsupported(f"the array is on {array.device}; copies between devices go through .numpy()")
    else:
        host = np.ascontiguousarray(as_ndarray(x, "input")).reshape(np.shape(x))
        if host.dtype.name not in ("float32", "float16", "int64"):
            raise DTypeError(f"input: got elements of {host.dtype}, want float32, float16 or int64")
        array = empty(host.shape, host.dtype.name, index)
        if host.size:
            module().copy(index, array.pointer, host.ctypes.data, host.nbytes, array._stream)
            module().synchronize(index, array._stream)  # the caller may change x now
    return array if dtype is None else array.astype(dtype)


def concatenate(arrays: Sequence[DeviceArray]) -> DeviceArray:
    """Arrays one after another along their first axis, in new memory."""
    first = arrays[0]
    shape = (sum(len(a) for a in arrays), *first.shape[1:])
    out = empty(shape, first.dtype, first.device_number)
    at = out.pointer
    for a in arrays:
        dense = a.contiguous()
        dense.wait(out._stream)
        module().copy(out.device_number, at, dense.pointer, dense.nbytes, out._stream)
        at += dense.nbytes
    return out


_DLPACK_CUDA = (2, 13)  # CUDA, CUDA managed


def on_device(obj: Any) -> bool:
    """Whether an object holds the memory of a CUDA device; decided without loading the CUDA module.

    >>> on_device(np.zeros(3))
    False
    """
    if isinstance(obj, np.ndarray):
        return False
    if isinstance(obj, DeviceArray):
        return True
    if hasattr(obj, "__dlpack_device__"):
        try:
            return int(obj.__dlpack_device__()[0]) in _DLPACK_CUDA
        except (BufferError, RuntimeError, TypeError, ValueError):
            return False
    return hasattr(obj, "__cuda_array_interface__")


def is_array(obj: Any) -> bool:
    """Whether an argument holds elements in memory, on whatever device (numbers and lists do not)."""
    return (
        isinstance(obj, np.ndarray)
        or on_device(obj)
        or hasattr(obj, "__dlpack__")
        or hasattr(obj, "__array_interface__")
    )


def _torch_device(obj: Any, index: int) -> contextlib.AbstractContextManager[Any]:
    """PyTorch gives away a tensor only while the tensor's device is its current one."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(obj, torch.Tensor) or not torch.cuda.is_initialized():
        return contextlib.nullcontext()
    return torch.cuda.device(index)


def from_object(obj: Any, what: str) -> DeviceArray:
    """View a CUDA array of any library as a DeviceArray; no copy. The current stream waits for its values."""
    if isinstance(obj, DeviceArray):
        obj.wait(current_stream(obj.device_number))
        return obj
    if getattr(obj, "requires_grad", False):
        obj = obj.detach()
    if hasattr(obj, "__dlpack__"):
        index = int(obj.__dlpack_device__()[1])
        queue = current_stream(index)
        with _torch_device(obj, index):
            capsule = obj.__dlpack__() if module().emulated else obj.__dlpack__(stream=queue)
        pointer, shape, steps, dtype, kind, index, owner = _core.dlpack_import(capsule)
        if kind not in (*_DLPACK_CUDA, module().dlpack_type):
            raise Unsupported(f"{what}: got memory of DLPack's device type {kind}, want CUDA (2)")
    else:
        interface = obj.__cuda_array_interface__
        if interface.get("mask") is not None or not np.dtype(interface["typestr"]).isnative:
            raise Unsupported(f"{what}: masked elements, or elements in another byte order, on a device")
        dtype = np.dtype(interface["typestr"]).name
        pointer, shape, owner = interface["data"][0], tuple(interface["shape"]), obj
        item = np.dtype(dtype).itemsize
        strides = interface.get("strides") or dense_strides(shape, item)
        if any(s % item for s in strides):
            raise Unsupported(f"{what}: strides {tuple(strides)} are no multiple of its elements of {item} bytes")
        steps = tuple(s // item for s in strides)
        index = int(getattr(getattr(obj, "device", 0), "id", 0))
        queue = current_stream(index)
        producer = interface.get("stream")
        if producer is not None and producer != queue:
            module().order(index, producer, queue)
    if dtype not in _ITEMSIZE:
        raise DTypeError(f"{what}: got elements of {dtype} on a device, want {', '.join(_ITEMSIZE)}")
    return DeviceArray(owner, pointer, shape, tuple(s * _ITEMSIZE[dtype] for s in steps), dtype, index, queue)


def place(obj: Any, what: str, device: int | None, dtype: str | None) -> DeviceArray:
    """An argument as an array on the wanted device with the wanted elements; mixing devices or types is an error."""
    wanted = f"cuda:{device}"
    if not on_device(obj):
        raise Unsupported(
            f"{what} is on the CPU, the rest on {wanted}: devices are not mixed; "
            f'move it with convkern.device.to_device(x, "{wanted}")'
        )
    array = from_object(obj, what)
    if device is not None and array.device_number != device:
        raise Unsupported(f"{what} is on {array.device}, the rest on {wanted}: devices are not mixed")
    if dtype is not None and array.dtype != dtype:
        raise DTypeError(f"{what}: got elements of {array.dtype}, want {dtype}: convert with .astype({dtype!r})")
    return array


class Runner:
    """A finished, recorded plan on a device, with the methods of _core.Plan that run one.

    graphs: keep the launches of arrays that come a second time, and play them back at once (CUDA graphs).
    forced: step -> the kernel it must take.
    """

    def __init__(
        self,
        plan: _core.Plan,
        device: int,
        precision: str,
        graphs: bool = True,
        forced: dict[int, str] | None = None,
    ):
        self.device = device
        self.precision = check_precision(precision)
        code, self.dtype = PRECISIONS[precision]
        self._plan = _core.DevicePlan(module(), plan, device, code, graphs, forced or {})

    def _arguments(self, arrays: Sequence[DeviceArray], channels_first: bool) -> tuple[Any, ...]:
        n = len(arrays[0])
        inputs = []
        for i, x in enumerate(arrays):
            if len(x) != n:
                raise ShapeError(f"input {i} has {len(x)} images, input 0 has {n}")
            dense = dense_strides(x.shape, x.itemsize)
            # A dimension of one element is never stepped over: its stride may be anything.
            strides = (d if size <= 1 else s for size, s, d in zip(x.shape, x.strides, dense))
            inputs.append([x.pointer, *(s // x.itemsize for s in strides)])
        outputs = []
        for (d, h, w, c), is_index in self._plan.outputs:
            shape = (n, c, d, h, w) if channels_first else (n, d, h, w, c)
            outputs.append(empty(shape, "int64" if is_index else self.dtype, self.device))
        return n, inputs, outputs

    def run(self, arrays: Sequence[DeviceArray], threads: int = 0, channels_first: bool = False) -> list[DeviceArray]:
        """Queue a run on the current stream; arrays are (N,D,H,W,C). `threads` has no meaning on a device."""
        n, inputs, outputs = self._arguments(arrays, channels_first)
        self._plan.run(n, inputs, [y.pointer for y in outputs], channels_first, current_stream(self.device))
        return outputs

    def profile(self, arrays: Sequence[DeviceArray], threads: int = 0, repeat: int = 1) -> list[float]:
        """Seconds of each step on the device, the best of `repeat` runs."""
        n, inputs, outputs = self._arguments(arrays, False)
        queue = current_stream(self.device)
        return self._plan.profile(n, inputs, [y.pointer for y in outputs], repeat, queue)

    def steps(self, n: int = 1) -> list[dict[str, Any]]:
        """Each step with its kernel for n images."""
        return self._plan.steps(n)

    @property
    def arena_bytes(self) -> int:
        """Memory for the tensors between the steps, per image."""
        return self._plan.memory(1)[0]

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights, for one image's kernels."""
        return sum(step["packed_bytes"] for step in self.steps())


def weight(array: DeviceArray) -> _core.Parameter:
    """A weight that is on a device already, (T,R,S,C/G,K) with any strides, for recorded plans."""
    steps = [s // array.itemsize for s in array.strides]
    return _core.Parameter.from_device(array.pointer, array.shape, steps, _ELEMENTS[array.dtype], array)
