"""IDX and npz files: every element type, damaged and hostile headers, and data sets put together."""

import gzip
import struct

import numpy as np
import pytest

from convkern.data import files, load_mnist, load_npz, read_idx
from convkern.errors import DataError

CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_type(kind, packed, tmp_path, rng):
    for shape in ((), (5,), (3, 4), (2, 3, 4), (0, 28, 28)):
        array = rng.integers(-100, 100, shape).astype(kind)
        data = idx(array)
        (tmp_path / "data").write_bytes(gzip.compress(data) if packed else data)
        read = read_idx(tmp_path / "data")
        assert read.dtype == array.dtype and read.dtype.isnative and read.shape == shape and (read == array).all()


def test_damaged_files(tmp_path, rng):
    data = idx(rng.integers(0, 256, (10, 4, 4), np.uint8))
    path = tmp_path / "data"
    for content, words in (
        (b"", "not an IDX file"),
        (b"\0\0", "not an IDX file"),
        (b"\x89PNG" + data, "not an IDX file"),
        (b"\0\0\x07\1" + data[4:], "not an IDX file"),
        (data[:10], "in its header"),
        (data[:-1], "159 bytes of data, the header says 10x4x4 = 160"),
        (data + b"\0", "more bytes"),
        (gzip.compress(data)[:-12], "damaged gzip"),
        (gzip.compress(data)[:40] + b"\xff" * 8 + gzip.compress(data)[48:], "damaged gzip"),
        (b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"\1" * 9, "9 bytes of data"),
        (b"\0\0\x08\xff" + b"\xff" * 4 * 255, "0 bytes of data"),
        (gzip.compress(data[:16] + bytes(50_000_000)), "more bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_idx(path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "missing")


def test_data_is_read_in_pieces(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(files, "_CHUNK", 16)
    array = rng.integers(0, 256, (8, 4), np.uint8)
    path = tmp_path / "data"
    path.write_bytes(idx(array))
    assert (read_idx(path) == array).all()
    for content, words in ((idx(array) + b"\0", "more bytes"), (idx(array)[:-16], "16 bytes of data")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_idx(path)


@pytest.fixture
def parts(rng):
    x, y = rng.integers(0, 256, (6, 5, 5), np.uint8), rng.integers(0, 10, 6).astype(np.uint8)
    return dict(x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])


NAMES = dict(
    x_train="train-images-idx3", y_train="train-labels-idx1", x_test="t10k-images-idx3", y_test="t10k-labels-idx1"
)


def same(loaded, parts) -> bool:
    (x, y), (x_test, y_test) = loaded
    assert y.dtype == y_test.dtype == np.int64 and x.dtype == np.uint8
    pairs = zip((x, y, x_test, y_test), (parts[k] for k in ("x_train", "y_train", "x_test", "y_test")))
    return all(a.shape == b.shape and (a == b).all() for a, b in pairs)


@pytest.mark.parametrize("form", ["{}-ubyte", "{}-ubyte.gz", "emnist-letters-{}-ubyte.gz"])
def test_the_mnist_family(form, tmp_path, parts):
    for key, name in NAMES.items():
        data = idx(parts[key])
        name = name.replace("t10k", "test") if "emnist" in form else name
        (tmp_path / form.format(name)).write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    (tmp_path / "README").write_text("train-images")
    assert same(load_mnist(tmp_path), parts)


def test_the_names_with_a_dot_and_both_forms(tmp_path, parts):
    for key, name in NAMES.items():
        (tmp_path / f"{name}-ubyte".replace("-idx", ".idx")).write_bytes(idx(parts[key]))
        (tmp_path / f"{name}-ubyte.gz".replace("-idx", ".idx")).write_bytes(b"not read, as the plain file is there")
    assert same(load_mnist(tmp_path), parts)


def test_mnist_from_npz(tmp_path, parts):
    np.savez_compressed(tmp_path / "mnist.npz", **parts)
    assert same(load_mnist(tmp_path / "mnist.npz"), parts)
    np.savez(tmp_path / "part.npz", x_train=parts["x_train"])
    with pytest.raises(DataError, match="no y_train, x_test, y_test in it, but x_train"):
        load_mnist(tmp_path / "part.npz")


def test_data_sets_that_do_not_fit(tmp_path, parts):
    for key, name in NAMES.items():
        (tmp_path / f"{name}-ubyte").write_bytes(idx(parts[key]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(parts["y_train"][:5]))
    with pytest.raises(DataError, match=r"train images \(6, 5, 5\) with labels \(5,\)"):
        load_mnist(tmp_path)
    (tmp_path / "kmnist-train-labels-idx1-ubyte").write_bytes(idx(parts["y_train"]))
    with pytest.raises(DataError, match="several data sets"):
        load_mnist(tmp_path)
    for file in tmp_path.glob("*t10k-images*"):
        file.unlink()
    for file in tmp_path.glob("kmnist*"):
        file.unlink()
    with pytest.raises(DataError, match="no file like t10k-images-idx3"):
        load_mnist(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_npz_files_that_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], dtype=object))
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("nothing")
    good = tmp_path / "good.npz"
    np.savez(good, x=np.arange(1000))
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:500])
    flipped = bytearray(good.read_bytes())
    flipped[700] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("evil.npz", "one.npy", "text.npz", "cut.npz", "flipped.npz"):
        with pytest.raises(DataError, match=name):
            load_npz(tmp_path / name)
    assert capsys.readouterr().out == ""
    assert list(load_npz(good)) == ["x"]
