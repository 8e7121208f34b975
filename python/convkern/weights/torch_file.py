"""Reads torch checkpoints (.pth, .pt) without torch, and without running anything that the file says.

A checkpoint is a pickle that names tensors, and the raw bytes of their storages:

    zip format (torch >= 1.6)   NAME/data.pkl, NAME/data/0, NAME/data/1, ...: stored uncompressed, so that a tensor is
                                a view of the mapped file
    legacy format               five pickles (magic, protocol, system, the object, the storages' keys), then for each
                                key its number of elements and their bytes

A pickle is a program. A `pickle.Unpickler` that filters names would keep strangers' functions out, but a few bytes can
still make it allocate gigabytes (a memo index, a bytearray's length) or overflow the stack (the hash of a tuple nested
a million deep). So the opcodes are decoded by the standard library (`pickletools.genops`) and interpreted here: only
those that torch.save writes, only on plain containers. No name is ever looked up, imported or called; tensors stay
descriptions until the storages' places are known, and every number in them is checked as a Python int, which cannot
overflow. Memory is bounded by the file's size: what has to be copied (bfloat16, bool, unaligned storages) is counted.

Source: torch/serialization.py and torch/_utils.py of torch 2.13; Lib/pickletools.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_OPCODES = 1 << 22  # about thirty per tensor: 100,000 tensors; each can build one object of some hundred bytes
MAX_DATA_PKL = 64 << 20  # bytes
MAX_DIMS = 32
WRAPPERS = ("state_dict", "model_state_dict", "model", "params")

# torch's storage class -> element type in the file. NumPy has no bfloat16: its 16 bits are widened to float32, exactly.
ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype("<u2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("u1"),
}
DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
BUILDERS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
NAMES = BUILDERS | set(ELEMENTS) | {f"torch.{name}" for name in DTYPES}


class Name(NamedTuple):
    """A global that the pickle mentions; a word, never the object."""

    text: str


class Storage(NamedTuple):
    """A persistent id: `length` elements of a torch storage class, kept under `key`."""

    kind: str
    key: str
    length: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# --- the pickle ---


def unpickle(file: Any, what: str) -> Any:
    """Interpret one pickle from the (binary or mapped) file's position and leave the position behind it.

    Returns None, bool, int, float, str, bytes, list, tuple, dict, `Name`, `Storage` or `Tensor`.
    Raises: WeightsError with the byte's position and what stands there.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # stacks put aside by MARK
    memo: dict[int, Any] = {}
    position, opcode = 0, "PROTO"
    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(file)
    try:
        for count, (code, arg, at) in enumerate(steps):
            position, opcode = at, code.name
            if count == 0 and opcode != "PROTO":
                raise WeightsError(f"starts with {opcode}, not with a protocol of 2 or later")
            if count >= MAX_OPCODES:
                raise WeightsError(f"has more than {MAX_OPCODES} opcodes")
            if opcode == "STOP":
                (value,) = stack
                return value
            elif opcode == "MARK":
                outer.append(stack)
                stack = []
            elif opcode in TO_MARK:
                items, stack = stack, outer.pop()
                TO_MARK[opcode](stack, items)
            elif opcode in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif opcode == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif opcode in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif opcode in PUSHES:
                stack.append(arg)
            elif opcode in STEPS:
                STEPS[opcode](stack, arg)
            elif opcode not in ("PROTO", "FRAME"):
                raise WeightsError(f"uses {opcode}, which no state dict needs")
        raise WeightsError("has no end")
    except WeightsError as error:
        raise WeightsError(f"{what} {error} (byte {position}); nothing was executed") from None
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise WeightsError(
            f"{what} is broken or cut off behind byte {position} ({opcode}: {error}); nothing was executed"
        ) from None


PUSHES = set(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8".split()
)


def _mention(stack: list, text: str) -> None:
    if text not in NAMES:
        if text.startswith("torch.") and text.endswith("Storage"):
            raise WeightsError(f"holds elements of type {_short(text)}, which are not read: {', '.join(DTYPES)} are")
        raise WeightsError(
            f"wants {_short(text)}, but only tensors and plain containers are read: save the model's state_dict() alone"
        )
    stack.append(Name(text))


def _stack_global(stack: list, arg: Any) -> None:
    name, module = stack.pop(), stack.pop()
    _mention(stack, f"{_is(module, str)}.{_is(name, str)}")


def _persistent_id(stack: list, arg: Any) -> None:
    """('storage', class, key, location, elements); the legacy format adds a sixth entry, None since torch 0.4."""
    pid = stack.pop()
    if not (type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage" and (len(pid) == 5 or pid[5] is None)):
        raise WeightsError("has a persistent id of odd form; ('storage', type, key, location, elements) was wanted")
    kind, key, count = _is(pid[1], Name).text, _is(pid[2], str), _natural(pid[4])
    if kind not in ELEMENTS:
        raise WeightsError(f"has a storage of type {kind!r}")
    stack.append(Storage(kind, key, count))


def _reduce(stack: list, arg: Any) -> None:
    args, builder = _is(stack.pop(), tuple), stack.pop()
    name = builder.text if type(builder) is Name else _short(builder)
    if name == "collections.OrderedDict" and len(args) <= 1:  # Python 2 wrote the items as one list of pairs
        made: dict = {}
        _set_items([made], [entry for pair in args[:1] for key_value in pair for entry in _pair(key_value)])
        stack.append(made)
    elif name == "torch.Size" and len(args) == 1:
        stack.append(_naturals(args[0]))
    elif (name, len(args)) in (
        ("torch._utils._rebuild_tensor", 4),
        ("torch._utils._rebuild_tensor_v2", 6),
        ("torch._utils._rebuild_tensor_v2", 7),
    ):
        if len(args) == 7 and args[6]:
            raise WeightsError(
                f"has a tensor with metadata {_short(args[6])}: conjugated or negated views are not read"
            )
        stack.append(Tensor(_is(args[0], Storage), _natural(args[1]), _naturals(args[2]), _naturals(args[3])))
    elif name == "torch._utils._rebuild_parameter" and len(args) == 3:
        stack.append(_is(args[0], Tensor))
    else:
        raise WeightsError(f"calls {name!r} with {len(args)} arguments")


def _build(stack: list, arg: Any) -> None:
    """Attributes of an OrderedDict (torch puts `_metadata`, the modules' versions, there): dropped."""
    _is(stack.pop(), dict)
    _is(stack[-1], dict)


def _set_items(stack: list, items: list) -> None:
    target = _is(stack[-1], dict)
    if len(items) % 2:
        raise WeightsError(f"sets a dict from {len(items)} keys and values")
    for key, value in zip(items[::2], items[1::2]):
        # Small ints and str alone: the hashes of other keys can be made to collide, or to recurse.
        if not (type(key) is str or (type(key) in (int, bool) and abs(key) < 1 << 32)):
            raise WeightsError(f"has a dict key {_short(key)}, where str or a small int was wanted")
        target[key] = value


def _set_item(stack: list, arg: Any) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _append(stack: list, arg: Any) -> None:
    value = stack.pop()
    _is(stack[-1], list).append(value)


def _tuple(size: int) -> Callable[[list, Any], None]:
    def step(stack: list, arg: Any) -> None:
        if len(stack) < size:
            raise IndexError("the stack is too short")
        stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]

    return step


TO_MARK: dict[str, Callable[[list, list], None]] = {
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "APPENDS": lambda stack, items: _is(stack[-1], list).extend(items),
    "SETITEMS": _set_items,
}
STEPS: dict[str, Callable[[list, Any], None]] = {
    "NONE": lambda stack, arg: stack.append(None),
    "NEWTRUE": lambda stack, arg: stack.append(True),
    "NEWFALSE": lambda stack, arg: stack.append(False),
    "EMPTY_LIST": lambda stack, arg: stack.append([]),
    "EMPTY_DICT": lambda stack, arg: stack.append({}),
    "EMPTY_TUPLE": lambda stack, arg: stack.append(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "SETITEM": _set_item,
    "GLOBAL": lambda stack, arg: _mention(stack, arg.replace(" ", ".")),
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _persistent_id,
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _short(value: Any) -> str:
    """A few words on a value of the pickle: `repr` of a hostile one could be endless."""
    if type(value) in (str, bytes):
        return repr(value[:80])
    if type(value) is int and abs(value) < 1 << 64:
        return repr(value)
    return value.text if type(value) is Name else f"a {type(value).__name__}"


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise WeightsError(f"has {_short(value)} where a {kind.__name__} was wanted")
    return value


def _pair(value: Any) -> Any:
    if type(value) not in (list, tuple) or len(value) != 2:
        raise WeightsError(f"has {_short(value)} where a pair was wanted")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise WeightsError(f"has {_short(value)} where a count, an offset, a size or a stride (0 to 2^63) was wanted")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > MAX_DIMS:
        raise WeightsError(f"has {_short(values)} where at most {MAX_DIMS} sizes or strides were wanted")
    return tuple(_natural(value) for value in values)


# --- the file ---


class _Arrays:
    """Makes arrays of tensors; `locate(storage)` gives a storage's first byte and number of bytes in the file."""

    def __init__(self, file: mmap.mmap, locate: Callable[[Storage], tuple[int, int]]):
        self.bytes = np.frombuffer(file, np.uint8)
        self.locate = locate
        self.elements: dict[Storage, np.ndarray] = {}
        self.copied = 0

    def storage(self, storage: Storage) -> np.ndarray:
        """The storage's elements, read-only: a view of the file where type and alignment allow it."""
        if storage in self.elements:
            return self.elements[storage]
        dtype = ELEMENTS[storage.kind]
        first, room = self.locate(storage)
        size = storage.length * dtype.itemsize
        if size > room or first + size > self.bytes.size:
            raise WeightsError(
                f"storage {_short(storage.key)} needs {size} bytes ({storage.length} {storage.kind}), there are {room}"
            )
        raw = self.bytes[first : first + size]
        if storage.kind in ("torch.BFloat16Storage", "torch.BoolStorage") or first % dtype.itemsize:
            self.copied += size
            if self.copied > self.bytes.size:
                raise WeightsError(f"its storages overlap: together they exceed the file's {self.bytes.size} bytes")
            raw = raw.copy()
        elements = raw.view(dtype)
        if storage.kind == "torch.BFloat16Storage":
            elements = (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif storage.kind == "torch.BoolStorage":
            elements = elements != 0
        elements.flags.writeable = False
        self.elements[storage] = elements
        return elements

    def tensor(self, name: str, tensor: Tensor) -> np.ndarray:
        storage, offset, shape, strides = tensor
        elements = self.storage(storage)
        what = f"tensor {_short(name)} of shape {list(shape)}, strides {list(strides)}, offset {offset}"
        if len(shape) != len(strides):
            raise WeightsError(f"{what}: as many strides as sizes were wanted")
        # No tensor is larger than the file (an expanded one could be); an empty one still needs sizes fit for NumPy.
        limit = max(self.bytes.size, 1) if 0 not in shape else 1 << 62
        if math.prod(max(size, 1) for size in shape) * ELEMENTS[storage.kind].itemsize > limit:
            raise WeightsError(f"{what}: larger than the file, {self.bytes.size} bytes")
        if 0 in shape:
            return np.empty(shape, elements.dtype)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        if last >= storage.length:
            raise WeightsError(f"{what}: reaches element {last} of a storage of {storage.length}")
        step = elements.itemsize
        byte_strides = [stride * step if size > 1 else step for size, stride in zip(shape, strides)]
        return np.ndarray(shape, elements.dtype, buffer=elements, offset=offset * step, strides=byte_strides)


def read_zip(file: mmap.mmap, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint of torch's zip format."""
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise WeightsError("a zip file, but not a torch checkpoint: one NAME/data.pkl was wanted in it")
    root = roots[0]
    if f"{root}constants.pkl" in entries or any(name.startswith(f"{root}code/") for name in entries):
        raise WeightsError("a TorchScript archive, which is a program: save the module's state_dict() with torch.save")

    def place(name: str) -> tuple[int, int]:
        """First byte and length of an entry, behind its local header (30 bytes, the name, the extra field)."""
        info = entries.get(root + name)
        if info is None:
            raise WeightsError(f"entry {name!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise WeightsError(f"entry {name!r} is compressed or encrypted: torch stores entries as they are")
        header = file[info.header_offset : info.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise WeightsError(f"entry {name!r} has no local header at byte {info.header_offset}")
        first = info.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        if first + info.file_size > archive.start_dir:
            raise WeightsError(
                f"entry {name!r}, byte {first} to {first + info.file_size}, outside the {archive.start_dir} of data"
            )
        return first, info.file_size

    if root + "byteorder" in entries:
        first, size = place("byteorder")
        if file[first : first + min(size, 16)] != b"little":
            raise WeightsError("written on a big-endian machine: only little-endian files are read")
    first, size = place("data.pkl")
    if size > MAX_DATA_PKL:
        raise WeightsError(f"data.pkl has {size} bytes; at most {MAX_DATA_PKL} are read")
    program = file[first : first + size]
    crc = entries[root + "data.pkl"].CRC
    # 0: torch was told not to compute it. The tensors' sums are not checked, nor by torch: that would read them all.
    if crc not in (0, zlib.crc32(program)):
        raise WeightsError("data.pkl does not match its checksum")
    made = unpickle(io.BytesIO(program), "data.pkl")
    return _state_dict(made, _Arrays(file, lambda storage: place(f"data/{storage.key}")))


def read_legacy(file: mmap.mmap) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint of torch's legacy format (its only one before 1.6)."""
    file.seek(0)
    if unpickle(file, "the magic number") != MAGIC:
        raise WeightsError("a pickle, but not a torch checkpoint: the magic number is another")
    protocol = unpickle(file, "the protocol number")
    if protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"legacy protocol {_short(protocol)}; {LEGACY_PROTOCOL} was wanted")
    if _is(unpickle(file, "the system's description"), dict).get("little_endian") is not True:
        raise WeightsError("written on a big-endian machine: only little-endian files are read")
    made = unpickle(file, "the object")
    keys = unpickle(file, "the list of storages")
    kinds = {storage.key: storage for storage in _storages(made)}
    places: dict[str, tuple[int, int]] = {}
    at = file.tell()
    for key in _is(keys, list):
        storage = kinds.get(_is(key, str))
        if storage is None:
            raise WeightsError(f"storage {_short(key)} belongs to no tensor, so its length is unknown")
        count = int.from_bytes(file[at : at + 8], "little")
        if count != storage.length:
            raise WeightsError(
                f"storage {_short(key)} has {count} elements at byte {at}, {storage.length} were announced"
            )
        size = count * ELEMENTS[storage.kind].itemsize
        if at + 8 + size > len(file):
            raise WeightsError(f"cut off: storage {_short(key)} ends at byte {at + 8 + size}, the file at {len(file)}")
        places[key] = at + 8, size
        at += 8 + size

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise WeightsError(f"storage {_short(storage.key)} is missing")
        return places[storage.key]

    return _state_dict(made, _Arrays(file, locate))


def _storages(made: Any) -> list[Storage]:
    """All storages in what a pickle made, found without recursion and each container once."""
    found, todo, seen = [], [made], set()
    while todo:
        value = todo.pop()
        if type(value) in (Tensor, Storage):
            found.append(value.storage if type(value) is Tensor else value)
        elif type(value) in (dict, list, tuple) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if type(value) is dict else value)
    return found


def _state_dict(made: Any, arrays: _Arrays) -> dict[str, np.ndarray]:
    """The mapping of names to tensors in what the pickle made: itself, or what stands under one of the usual keys."""
    for _ in WRAPPERS:
        if type(made) is not dict:
            raise WeightsError(f"holds {_short(made)}, where a dict of tensors was wanted")
        inner = next((made[key] for key in WRAPPERS if type(made.get(key)) is dict), None)
        if inner is None:
            break
        made = inner
    odd = [str(key) for key, value in made.items() if type(key) is not str or type(value) is not Tensor]
    if odd:
        raise WeightsError(
            f"holds no dict of tensors, neither itself nor under {', '.join(WRAPPERS)}: {len(odd)} of its {len(made)} "
            f"entries are no tensors ({', '.join(name[:80] for name in odd[:8])})"
        )
    return {name: arrays.tensor(name, tensor) for name, tensor in made.items()}
