"""Files of tensors: one function that reads every format by its content, one that writes safetensors.

A file from a stranger can do nothing here but be refused: whatever is wrong with it, the caller gets a `WeightsError`
that says what and where.
"""

from __future__ import annotations

import io
import mmap
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ConvkernError, DTypeError, WeightsError

# What people pass by mistake, by its first bytes.
STRANGERS = {
    b"\x89HDF": "an HDF5 file (Keras): not read here",
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"BZh": "a bzip2 file: unpack it first",
    b"\x93NUMPY": "a single .npy array: a .npz archive of named arrays was wanted",
    b"version https://git-lfs": "a Git LFS pointer: the weights themselves were not downloaded (git lfs pull)",
    b"<!DOCTYPE": "a web page, not the file behind it",
    b"<html": "a web page, not the file behind it",
}
NPZ_KINDS = "fiub"  # of numpy.dtype.kind: floats, ints, unsigned ints, bools
NPZ_RATIO = 64  # a compressed .npz may grow by this: real weights hardly shrink, a zip bomb grows by 1,000
SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BOOL": "b1"}  # its names of types, NumPy's
SAFETENSORS |= {f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named tensors from torch's .pth / .pt (zip or legacy format), .safetensors or .npz, told apart by content.

    No torch is needed and nothing in the file is executed: see `weights/torch_file.py`. A torch checkpoint may be the
    state dict itself or hold it under "state_dict", "model_state_dict", "model" or "params".

    Shapes: as stored; types: float64, float32, float16, ints and bool as stored, bfloat16 widened to float32 (exactly).
    Arrays of torch files are read-only views of the mapped file where alignment allows it: replace such a file, do not
    overwrite it in place.
    Raises: WeightsError saying what is wrong with the file, and where.

    >>> import numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
    >>> write_safetensors(path, {"conv1.weight": np.zeros((64, 3, 7, 7), "f4")})
    >>> {name: array.shape for name, array in read_state_dict(path).items()}
    {'conv1.weight': (64, 3, 7, 7)}
    """
    try:
        return _read(Path(path))
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from error.__cause__
    except OSError as error:
        raise WeightsError(f"{os.fspath(path)}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # Broken bytes trip zipfile, NumPy or safetensors in undocumented ways: the caller still gets one class.
        raise WeightsError(f"{os.fspath(path)}: broken ({type(error).__name__}: {error})") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size == 0:
            raise WeightsError("the file is empty")
        file = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)  # lives as long as an array that views it
        start = file[:32]
        for prefix, what in STRANGERS.items():
            if start.startswith(prefix):
                raise WeightsError(what)
        if start.startswith(b"PK"):
            import zipfile

            with zipfile.ZipFile(handle) as archive:
                if any(name.endswith(".npy") for name in archive.namelist()):
                    return _read_npz(archive, size)
                from .torch_file import read_zip

                return read_zip(file, archive)
    if start[8:9] == b"{":  # before the next: the length of its header may begin with any byte
        return _read_safetensors(path)
    if start.startswith(b"\x80"):
        from .torch_file import read_legacy

        return read_legacy(file)
    raise WeightsError(f"neither a torch checkpoint nor .safetensors nor .npz: it starts with {start[:12]!r}")


def _read_npz(archive, size: int) -> dict[str, np.ndarray]:
    """Arrays of a .npz file. np.load would allocate what a header promises; here the bytes come before the array."""
    total = sum(info.file_size for info in archive.infolist())
    if total > NPZ_RATIO * size + (1 << 20):
        raise WeightsError(f"would unpack to {total} bytes from {size}: more than {NPZ_RATIO} times as many")
    tensors = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        data = io.BytesIO(archive.read(info))
        version = np.lib.format.read_magic(data)
        if version not in ((1, 0), (2, 0)):
            raise WeightsError(f"array {name!r} is of .npy version {version}; (1, 0) or (2, 0) was wanted")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(data)
        if dtype.kind not in NPZ_KINDS:
            raise WeightsError(f"array {name!r} has elements of type {dtype}, where numbers or bools were wanted")
        array = np.frombuffer(data.getbuffer(), dtype, offset=data.tell())
        tensors[name] = array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), copy=False)
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            tensors = {name: file.get_tensor(name) for name, kind in kinds.items() if kind in SAFETENSORS}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"no sound safetensors file: {error}") from error
    others = {name: kind for name, kind in kinds.items() if name not in tensors}
    for name, kind in others.items():
        if kind != "BF16":
            raise WeightsError(f"tensor {name!r} has elements of type {kind}; read are BF16 {' '.join(SAFETENSORS)}")
    if others:  # NumPy has no bfloat16: the package gives its bytes
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            if name in others:
                bits = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << np.uint32(16)
                tensors[name] = bits.view(np.float32).reshape(tensor["shape"])
    return {name: tensors[name] for name in kinds}


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a .safetensors file, whole or not at all.

    The bytes go to a temporary file in the same folder, to the disk, and then take the name: a crash leaves the old
    file or the new one.

    Shapes: any; types: float64/32/16, ints of 8 to 64 bits, bool. Non-contiguous arrays are copied.
    Raises: DTypeError naming the tensor; WeightsError if the file cannot be written.

    >>> import numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "w.safetensors")
    >>> write_safetensors(path, {"fc.bias": np.ones(10, "f4")}, metadata={"model": "lenet5"})
    >>> read_state_dict(path)["fc.bias"].sum()
    np.float32(10.0)
    """
    from safetensors.numpy import save_file

    ready = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor, order="C")
        if array.dtype.str[1:] not in SAFETENSORS.values():
            raise DTypeError(
                f"tensor {name!r} has elements of type {array.dtype}; floats, ints and bools can be written"
            )
        ready[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    target = Path(os.path.realpath(path))  # through a symbolic link, not over it
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode  # what this user's new files get; the package makes private ones
            save_file(ready, temporary, metadata=dict(metadata) if metadata else None)
            temporary.chmod(mode)
            _flush(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _flush(target.parent)
    except ConvkernError:
        raise
    except Exception as error:
        raise WeightsError(f"{os.fspath(path)}: cannot be written ({error})") from error


def _flush(path: Path) -> None:
    """Have the kernel write a file (or a folder's names) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
