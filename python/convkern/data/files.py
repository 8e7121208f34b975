"""Data sets in files: IDX, the format of the MNIST family, plain or gzipped, and NumPy's .npz.

Sizes in a header are believed only as far as there are bytes: a file that is cut short, has bytes left over, or
unpacks to more than it says is a DataError, and nothing larger than the file's own data is allocated.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

# The third byte of an IDX file
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24

Split = tuple[np.ndarray, np.ndarray]


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """An array from an IDX file, plain or gzipped, whatever its name.

    Raises: DataError for a file that is no IDX, cut short, or longer than its header says; OSError if it cannot be
        opened.
    Source: the description of the format on the MNIST page (LeCun, Cortes, Burges).

    >>> _ = Path("labels.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    >>> read_idx("labels.idx")
    array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            return _idx(file, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip data ({error})") from None


def _idx(file: Any, path: Path) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        raise DataError(f"{path}: not an IDX file (it begins with {head.hex(' ')})")
    dtype, rank = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: cut short in its header")
    shape = struct.unpack(f">{rank}I", sizes)
    wanted = math.prod(shape) * dtype.itemsize
    parts, found = [], 0
    while found <= wanted:
        part = file.read(min(_CHUNK, wanted + 1 - found))
        if not part:
            break
        parts.append(part)
        found += len(part)
    if found != wanted:
        raise DataError(
            f"{path}: {'cut short: ' if found < wanted else ''}{found if found < wanted else 'more'} bytes of data, "
            f"the header says {'x'.join(map(str, shape))} = {wanted:,}"
        )
    return np.frombuffer(b"".join(parts), dtype).reshape(shape).astype(dtype.newbyteorder("="))


def load_mnist(source: str | os.PathLike[str]) -> tuple[Split, Split]:
    """A data set of the MNIST family: MNIST, Fashion-MNIST, KMNIST, EMNIST ...

    source: a folder with the four IDX files under their usual names (train-images-idx3-ubyte, t10k-labels-idx1-ubyte;
        plain or .gz, with any prefix), or an .npz with x_train, y_train, x_test, y_test.

    Shapes: returns (x_train, y_train), (x_test, y_test); x (N,H,W) as in the file, y (N,) int64.
    Raises: DataError for files that are missing, ambiguous, broken, or do not fit one another.
    Source: Keras' mnist.load_data, with files of one's own.
    """
    path = Path(source)
    if path.is_dir():
        parts = {
            f"{letter}_{part}": read_idx(_member(path, names, kind))
            for part, names in (("train", "train"), ("test", "t10k|test"))
            for letter, kind in (("x", "images"), ("y", "labels"))
        }
    else:
        parts = load_npz(path)
        missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in parts]
        if missing:
            raise DataError(f"{path}: no {', '.join(missing)} in it, but {', '.join(parts)}")
    for part in ("train", "test"):
        x, y = parts[f"x_{part}"], parts[f"y_{part}"]
        if y.ndim != 1 or y.dtype.kind not in "iu" or x.ndim < 3 or len(x) != len(y):
            raise DataError(
                f"{path}: {part} images {x.shape} with labels {y.shape} of {y.dtype}, want (N,H,W) and N integers"
            )
    return tuple((parts[f"x_{p}"], parts[f"y_{p}"].astype(np.int64)) for p in ("train", "test"))  # type: ignore[return-value]


def _member(folder: Path, names: str, kind: str) -> Path:
    """The one file of a part: `train` or `t10k`, `images` or `labels`; a plain file before its .gz."""
    pattern = re.compile(rf"(?:.*[-_.])?(?:{names})-{kind}[-.]idx\d-ubyte(\.gz)?", re.IGNORECASE)
    found = sorted(
        (p for p in folder.iterdir() if pattern.fullmatch(p.name)), key=lambda p: (p.suffix == ".gz", p.name)
    )
    if not found:
        raise DataError(
            f"{folder}: no file like {names.split('|')[0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte(.gz)"
        )
    if len({p.name.removesuffix(".gz") for p in found}) > 1:
        raise DataError(f"{folder}: several data sets: {', '.join(p.name for p in found)}")
    return found[0]


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name. Pickled objects in it are refused: unpickling runs code.

    Raises: DataError for a file that is no .npz, broken, or has objects in it; OSError if it cannot be opened.

    >>> np.savez("data.npz", x=np.arange(3))
    >>> load_npz("data.npz")["x"]
    array([0, 1, 2])
    """
    with open(path, "rb") as raw:
        try:
            loaded = np.load(raw, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise DataError(f"{path}: one array (.npy), want an .npz")
            with loaded as file:
                return {name: file[name] for name in file.files}
        except DataError:
            raise
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be read as an .npz ({error})") from None
