"""Weight files: what torch writes is read bit for bit, what a stranger writes is refused and does nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convkern.errors import DTypeError, WeightsError
from convkern.weights import read_state_dict, write_safetensors
from convkern.weights.torch_file import LEGACY_PROTOCOL, MAGIC

FORMATS = {"zip": True, "legacy": False}


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same(read: dict[str, np.ndarray], wanted: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(wanted)
    for name, tensor in wanted.items():
        tensor = tensor.detach()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert read[name].dtype == array.dtype, name
        assert read[name].shape == array.shape, name
        assert bits(read[name]) == bits(array), name


def tensors() -> dict[str, torch.Tensor]:
    """One of each kind that torch.save can meet in a state dict."""
    torch.manual_seed(7)
    base = torch.randn(6, 5, 4)
    made = collections.OrderedDict(
        plain=torch.randn(3, 2),
        parameter=torch.nn.Parameter(torch.randn(4)),
        shared=base,
        shared_slice=base[1:3, ::2],
        transposed=base.transpose(0, 2),
        column=base[:, 3, 1],
        scalar=torch.tensor(3.25),
        count=torch.tensor(12),
        empty=torch.empty(0, 3),
        double=torch.randn(3, dtype=torch.float64),
        half=torch.randn(7).half(),
        bfloat=torch.randn(5, 3).bfloat16(),
        bfloat_slice=torch.randn(5, 3).bfloat16()[:, 1],
        specials=torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        small=torch.arange(-3, 4, dtype=torch.int8),
        byte=torch.arange(250, 256, dtype=torch.uint8),
        short=torch.arange(5, dtype=torch.int16),
        int=torch.arange(5, dtype=torch.int32),
        flags=torch.tensor([True, False, True]),
        odd=torch.randn(3),
    )
    made["layer1.0.conv.weight"] = torch.randn(2, 3, 3, 3)
    return made


def module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2))


@pytest.fixture(params=FORMATS)
def save(request: pytest.FixtureRequest, tmp_path: Path):
    def save(value, name: str = "weights.pth", **options) -> Path:
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=FORMATS[request.param], **options)
        return tmp_path / name

    return save


# --- what torch writes ---


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor(save, protocol: int) -> None:
    assert_same(read_state_dict(save(tensors(), pickle_protocol=protocol)), tensors())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "params"])
def test_a_checkpoint_of_a_run(save, key: str) -> None:
    net = module()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    run = {
        "epoch": 3,
        "best": 0.75,
        "name": "resnet",
        "flags": [True, None, (1, 2)],
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
    }
    run |= {"optimizer": optimizer.state_dict(), key: net.state_dict()}
    assert_same(read_state_dict(save(run)), net.state_dict())


def test_nested_checkpoint(save) -> None:
    assert_same(read_state_dict(save({"model": {"state_dict": tensors(), "arch": "x"}})), tensors())


def test_module_state_dict_with_metadata(save) -> None:
    net = module()
    assert_same(read_state_dict(save(net.state_dict())), net.state_dict())
    assert read_state_dict(save(net.state_dict()))["1.num_batches_tracked"].dtype == np.int64


def test_empty_state_dict(save) -> None:
    assert read_state_dict(save({})) == {}


def test_expanded_tensor(save) -> None:
    """A broadcast view is read as one, unless it claims to be larger than its file."""
    small = {"mean": torch.ones(3, 1).expand(3, 5)}
    assert_same(read_state_dict(save(small)), small)
    with pytest.raises(WeightsError, match="larger than the file"):
        read_state_dict(save({"bomb": torch.ones(1).expand(1 << 20, 1 << 20)}))


def test_without_checksums(save) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tensors())
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_state_dict(path), tensors())


def test_zip_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    array = read_state_dict(tmp_path / "a.pth")["a"]
    assert not array.flags.writeable and not array.flags.owndata and array.flags.aligned
    root = array
    while isinstance(root, np.ndarray):
        root = root.base
    assert isinstance(root, memoryview) and type(root.obj).__name__ == "mmap"


def test_python_2_items(tmp_path: Path) -> None:
    """Python 2 pickled an OrderedDict as a call on a list of pairs, with byte strings for names."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpuK\x02Nt" + b"Q"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00K\x02\x85K\x01\x85tR"
    made = b"\x80\x02ccollections\nOrderedDict\n](](U\x01w" + tensor + b"ee\x85R."
    path = tmp_path / "old.pth"
    path.write_bytes(legacy(made, {"k": np.array([1, 2], "<f4")}))
    assert read_state_dict(path)["w"].tolist() == [1, 2]


# --- other formats ---


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors().items() if tensor.dtype != torch.bfloat16}


def test_safetensors_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, arrays(), metadata={"model": "x"})
    read = read_state_dict(path)
    assert set(read) == set(arrays())
    for name, array in arrays().items():
        assert read[name].shape == array.shape and read[name].dtype == array.dtype and bits(read[name]) == bits(array)


def test_safetensors_whose_header_length_looks_like_a_pickle(tmp_path: Path) -> None:
    first = set()
    for padding in range(0, 256, 8):
        path = tmp_path / "a.safetensors"
        write_safetensors(path, {"w": np.ones(3, "f4")}, metadata={"note": "x" * padding})
        first.add(path.read_bytes()[0])
        assert read_state_dict(path)["w"].tolist() == [1, 1, 1]
    assert 0x80 in first


def test_safetensors_of_torch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    wanted = {name: tensor.detach().clone().contiguous() for name, tensor in sorted(tensors().items())}
    save_file(wanted, tmp_path / "w.safetensors")
    read = read_state_dict(tmp_path / "w.safetensors")
    assert_same({name: read[name] for name in wanted}, wanted)
    save_file({"x": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="'x'.*F8_E4M3"):
        read_state_dict(tmp_path / "w.safetensors")


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save_npz) -> None:
    made = {
        **arrays(),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
    }
    save_npz(tmp_path / "w.npz", **made)
    read = read_state_dict(tmp_path / "w.npz")
    assert list(read) == list(made)
    for name, array in made.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.isnative


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.zeros(3, "f4")})
    before = path.read_bytes()
    with pytest.raises(DTypeError, match="'b'.*complex"):
        write_safetensors(path, {"b": np.zeros(3, complex)})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightsError, match="no space left"):
        write_safetensors(path, {"b": np.zeros(3, "f4")})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    with pytest.raises(WeightsError, match="cannot be written"):
        write_safetensors(tmp_path / "missing" / "w.safetensors", {"b": np.zeros(3, "f4")})


def test_writing_keeps_a_link_and_the_usual_rights(tmp_path: Path) -> None:
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_bytes(b"")
    link.symlink_to(real)
    write_safetensors(link, {"a": np.ones((2, 3), "f4").T})
    assert link.is_symlink() and read_state_dict(real)["a"].shape == (3, 2)
    (tmp_path / "plain").write_bytes(b"")
    assert real.stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- what a stranger writes ---


def zip_checkpoint(
    path: Path, program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED, **entries: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"a/data/{key}", data)
        for name, data in entries.items():
            archive.writestr(f"a/{name}", data)
    return path


def legacy(program: bytes, storages: dict[str, np.ndarray]) -> bytes:
    header = pickle.dumps(MAGIC, 2) + pickle.dumps(LEGACY_PROTOCOL, 2) + pickle.dumps({"little_endian": True}, 2)
    tail = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return header + program + pickle.dumps(list(storages), 2) + tail


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor_program(
    shape=(2,),
    strides=(1,),
    offset: int = 0,
    count: int = 4,
    kind: bytes = b"FloatStorage",
    key: bytes = b"X\1\0\0\0k",
    pid: bytes | None = None,
) -> bytes:
    """A state dict {"w": tensor} with every number chosen freely."""
    pid = (
        b"(X\7\0\0\0storagectorch\n" + kind + b"\n" + key + b"X\3\0\0\0cpu" + number(count) + b"t"
        if pid is None
        else pid
    )
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + b"Q"
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89)tR"
    )
    return b"\x80\2}X\1\0\0\0w" + call + b"s."


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(WeightsError, match=match) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["whole", "value", "beside"])
def test_a_command_is_not_run(tmp_path: Path, protocol: int, place: str) -> None:
    marker = tmp_path / "ran"
    bomb = Bomb(marker)
    made = {"whole": bomb, "value": {"w": bomb}, "beside": {"state_dict": {}, "args": bomb}}[place]
    program = pickle.dumps(made, protocol)
    pickle.loads(pickle.dumps(made))  # the bomb is a real one ...
    assert marker.exists()
    marker.unlink()
    refused(zip_checkpoint(tmp_path / "a.pth", program, {}))
    (tmp_path / "b.pth").write_bytes(legacy(program, {}))
    refused(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(program)
    refused(tmp_path / "c.pth")
    assert not marker.exists()  # ... and did not go off


@pytest.mark.parametrize(
    "name",
    [b"os\nsystem", b"builtins\neval", b"torch\nload", b"torch.nn.modules.linear\nLinear", b"collections\nCounter",
     b"numpy.core.multiarray\n_reconstruct",
     b"torch._utils\n_rebuild_sparse_tensor", b"torch.hub\nload_state_dict_from_url", b"torch._utils\n__builtins__"],
)  # fmt: skip
def test_other_names_are_refused(tmp_path: Path, name: bytes) -> None:
    refused(zip_checkpoint(tmp_path / "a.pth", b"\x80\2c" + name + b"\n)R.", {}), "nothing was executed")
    module, attribute = (bytes([0x8C, len(part)]) + part for part in name.split(b"\n"))
    refused(zip_checkpoint(tmp_path / "a.pth", b"\x80\4" + module + attribute + b"\x93)R.", {}), "nothing was executed")


def test_whole_modules_and_torchscript_say_what_they_are(tmp_path: Path) -> None:
    torch.save(module(), tmp_path / "module.pth")
    refused(tmp_path / "module.pth", r"torch.nn.modules.container.Sequential.*state_dict\(\)")
    path = zip_checkpoint(
        tmp_path / "script.pt", tensor_program(), {"k": bytes(16)}, **{"constants.pkl": b"\x80\2).", "code/a.py": b""}
    )
    refused(path, "TorchScript")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(shape=(5,)), "reaches element 4"),
        (dict(offset=3), "reaches element 4"),
        (dict(shape=(2, 2), strides=(2, 2)), "reaches element 4"),
        (dict(shape=(2,), strides=(-1,)), "-1 where"),
        (dict(shape=(-2,)), "-2 where"),
        (dict(offset=-1), "-1 where"),
        (dict(count=-4), "-4 where"),
        (dict(shape=(2,), strides=(1, 1)), "as many strides"),
        (dict(shape=(1 << 62, 4), strides=(0, 0)), "larger than the file"),
        (dict(shape=(1 << 32, 1 << 32), strides=(0, 0)), "larger than the file"),
        (dict(shape=(1 << 33, 1 << 31), strides=(1 << 31, 1)), "larger than the file"),
        (dict(shape=(0, 1 << 62, 1 << 62), strides=(1, 1, 1)), "larger than the file"),
        (dict(shape=(2,), strides=((1 << 63) - 1,)), "reaches element"),
        (dict(offset=1 << 64), "where a count"),
        (dict(shape=(1 << 5000,)), "where a count"),
        (dict(shape=(1,) * 33, strides=(1,) * 33), "at most 32"),
        (dict(count=5), "needs 20 bytes"),
        (dict(count=1 << 61), "needs"),
        (dict(kind=b"DoubleStorage"), "needs 32 bytes"),
        (dict(kind=b"ComplexFloatStorage"), "ComplexFloatStorage"),
        (dict(kind=b"float32"), "storage of type"),
        (dict(kind=b"Size"), "storage of type"),
        (dict(key=b"X\1\0\0\0j"), "missing"),
        (dict(key=b"K\1"), "where a str was wanted"),
        (dict(key=b"X\5\0\0\0../.."), "missing"),
        (dict(pid=b"X\1\0\0\0k"), "persistent id"),
        (dict(pid=b"(X\6\0\0\0moduleNNNNt"), "persistent id"),
        (dict(pid=b")"), "persistent id"),
        (dict(pid=b"(X\7\0\0\0storageX\1\0\0\0fX\1\0\0\0kX\1\0\0\0kK\4t"), "where a Name was wanted"),
    ],
)  # fmt: skip
def test_numbers_that_lie(tmp_path: Path, options: dict, match: str) -> None:
    path = zip_checkpoint(tmp_path / "a.pth", tensor_program(), {"k": np.arange(4, dtype="<f4").tobytes()})
    assert read_state_dict(path)["w"].tolist() == [0, 1]
    refused(zip_checkpoint(tmp_path / "a.pth", tensor_program(**options), {"k": bytes(16)}), match)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"", "broken or cut off"),
        (b"\x80\2", "broken or cut off"),
        (b"N.", "not with a protocol"),
        (b"\x80\2.", "broken or cut off"),
        (b"\x80\2NN.", "broken or cut off"),
        (b"\x80\2}}Ns.", "dict key"),
        (b"\x80\2}(NN)u.", "broken|dict"),
        (b"\x80\2}(NNNu.", "3 keys and values"),
        (b"\x80\2}K\1\x85\x85K\1s.", "dict key"),
        (b"\x80\2}G" + bytes(8) + b"K\1s.", "dict key"),
        (b"\x80\2}\x8a\x09" + bytes(8) + b"\1K\1s.", "dict key"),
        (b"\x80\2Nb.", "dict was wanted"),
        (b"\x80\2NNb.", "dict was wanted"),
        (b"\x80\2NNs.", "broken"),
        (b"\x80\2NNa.", "list was wanted"),
        (b"\x80\2(NNe.", "broken"),
        (b"\x80\2u.", "broken"),
        (b"\x80\2h\0.", "broken"),
        (b"\x80\2\x86.", "broken"),
        (b"\x80\2NR.", "tuple was wanted"),
        (b"\x80\2X\2\0\0\0os)R.", "calls"),
        (b"\x80\2ctorch\nSize\n)R.", "calls"),
        (b"\x80\2ctorch\nFloatStorage\n)R.", "calls"),
        (b"\x80\2ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "Tensor was wanted"),
        (b"\x80\2ccollections\nOrderedDict\n]K\1a\x85R.", "pair"),
        (b"\x80\2ccollections\nOrderedDict\nK\1\x85R.", "broken|list"),
        (b"\x80\2ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\2(ios\nsystem\n.", "INST"),
        (b"\x80\2\x82\1.", "EXT1"),
        (b"\x80\5\x97.", "NEXT_BUFFER"),
        (b"\x80\2}.", ""),
        (b"\x80\2].", "a list, where a dict"),
        (b"\x80\2}X\1\0\0\0wK\1s.", "no dict of tensors"),
        (b"\x80\2}K\1}s.", "no dict of tensors"),
        (b"\x80\2}q\0X\5\0\0\0modelh\0s.", "no dict of tensors"),  # holds itself
    ],
)  # fmt: skip
def test_programs_that_are_none(tmp_path: Path, program: bytes, match: str) -> None:
    path = zip_checkpoint(tmp_path / "a.pth", program, {})
    if program == b"\x80\2}.":
        assert read_state_dict(path) == {}
    else:
        refused(path, match)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\2Nr\xff\xff\xff\xff.",  # a memo index of 4e9
        b"\x80\5\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of 1 TiB
        b"\x80\4\x8d" + struct.pack("<Q", 1 << 40) + b".",  # a string of 1 TiB
        b"\x80\2\x8b\xff\xff\xff\x7f.",  # an int of 2 GiB
        b"\x80\2)" + b"\x85" * 2_000_000 + b"K\1\x86R.",  # a tuple nested too deep to hash or print
        b"\x80\2})" + b"\x85" * 2_000_000 + b"K\1s.",
        b"\x80\2})q\0" + b"h\0\x86q\0" * 200 + b"K\1s.",  # doubled 200 times: endless to walk
        b"\x80\2" + b"(" * 5_000_000 + b".",  # more marks than any file needs
        b"\x80\2" + b"}" * 5_000_000 + b".",
    ],
)  # fmt: skip
def test_small_files_that_would_grow(tmp_path: Path, program: bytes) -> None:
    import resource

    path = zip_checkpoint(tmp_path / "a.pth", program, {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10  # KiB


def test_zip_bombs(tmp_path: Path) -> None:
    path = zip_checkpoint(
        tmp_path / "a.pth", tensor_program(count=1 << 24), {"k": bytes(1 << 26)}, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 17
    refused(path, "compressed")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 26))
    refused(tmp_path / "b.npz", "more than 64 times")


def test_overlapping_storages(tmp_path: Path) -> None:
    """Many entries that share their bytes would be widened to more memory than the file has."""
    program = b"\x80\2}("
    for key in range(64):
        name = b"X\2\0\0\0%02d" % key
        one = tensor_program(kind=b"BFloat16Storage", key=name, count=5000)
        program += name + one[one.index(b"ctorch._utils") : -2]
    path = zip_checkpoint(
        tmp_path / "a.pth", program + b"u.", {f"{key:02d}": bytes(10000 if key == 0 else 0) for key in range(64)}
    )
    refused(path, "needs 10000 bytes")
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start, first = archive.start_dir, archive.getinfo("a/data/00").header_offset
    at = start
    while raw[at : at + 4] == b"PK\1\2":  # point every entry at the first one's bytes
        name = raw[at + 46 : at + 46 + int.from_bytes(raw[at + 28 : at + 30], "little")]
        if name.startswith(b"a/data/"):
            raw[at + 20 : at + 28] = struct.pack("<II", 10000, 10000)
            raw[at + 42 : at + 46] = struct.pack("<I", first)
        at += 46 + len(name) + int.from_bytes(raw[at + 30 : at + 32], "little")
    path.write_bytes(raw)
    refused(path, "overlap")


def test_entries_outside_the_file(tmp_path: Path) -> None:
    path = zip_checkpoint(tmp_path / "a.pth", tensor_program(), {"k": bytes(16)})
    raw = path.read_bytes()
    at = raw.rindex(b"PK\1\2")
    for offset in (len(raw) - 8, 1 << 20, 0xFFFFFFF0):
        path.write_bytes(raw[: at + 42] + struct.pack("<I", offset) + raw[at + 46 :])
        refused(path)
    path.write_bytes(raw[: at + 20] + struct.pack("<II", 1 << 30, 1 << 30) + raw[at + 28 :])
    refused(path, "outside")


def test_legacy_storages_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    program = tensor_program(count=4)
    good = legacy(program, {"k": np.arange(4, dtype="<f4")})
    path.write_bytes(good)
    assert read_state_dict(path)["w"].tolist() == [0, 1]
    for storages, match in [
        ({"k": np.zeros(3, "<f4")}, "4 were announced"),
        ({"j": np.zeros(4, "<f4")}, "belongs to no tensor"),
        ({}, "missing"),
    ]:
        path.write_bytes(legacy(program, storages))
        refused(path, match)
    path.write_bytes(legacy(tensor_program(count=1 << 62), {})[:-1] + b"]U\1ka." + struct.pack("<q", 1 << 62))
    refused(path)
    path.write_bytes(good.replace(pickle.dumps(LEGACY_PROTOCOL, 2), pickle.dumps(1002, 2)))
    refused(path, "protocol")
    path.write_bytes(good.replace(b"little_endian", b"mittle_endian"))
    refused(path, "big-endian")
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    refused(path, "magic number")


def small(tmp_path: Path, kind: str) -> Path:
    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16(), "n": torch.tensor(5)}
    path = tmp_path / f"small.{kind}"
    if kind == "safetensors":
        write_safetensors(path, {"conv.weight": np.ones((2, 3), "f4"), "n": np.array(5)})
    elif kind == "npz":
        np.savez_compressed(path, w=np.arange(6.0).reshape(2, 3), n=np.array(5))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=FORMATS[kind])
    return path


KINDS = ["zip", "legacy", "safetensors", "npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    path = small(tmp_path, kind)
    raw = path.read_bytes()
    read_state_dict(path)
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(WeightsError):
            read_state_dict(path)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(tmp_path: Path, kind: str) -> None:
    """A changed byte ends in a WeightsError or in sound arrays; where a checksum guards them, of the same shapes."""
    path = small(tmp_path, kind)
    raw = path.read_bytes()
    shapes = {name: array.shape for name, array in read_state_dict(path).items()}
    rng = np.random.default_rng(20)
    kept = 0
    for _ in range(2000):
        broken = bytearray(raw)
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            broken[at] ^= 1 << int(rng.integers(0, 8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
        path.write_bytes(broken)
        try:
            read = read_state_dict(path)
        except WeightsError:
            continue
        kept += 1
        for array in read.values():
            assert isinstance(array, np.ndarray) and array.nbytes <= 64 * len(raw)
            bits(array)  # every element can be touched
        if kind in ("zip", "npz"):
            assert all(array.shape == shapes.get(name) for name, array in read.items())
    assert 0 < kept < 2000


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_flipped_bytes_of_the_pickle(tmp_path: Path, kind: str) -> None:
    """As above, but where the checksum is mended, so that the pickle itself takes the blow."""
    path = small(tmp_path, kind)
    rng = np.random.default_rng(21)
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            program = archive.read("small/data.pkl")
            storages = {
                name.removeprefix("small/data/"): archive.read(name) for name in archive.namelist() if "/data/" in name
            }
    else:
        raw = path.read_bytes()
        start, end = raw.index(b"\x80\2}X") if b"\x80\2}X" in raw else 100, len(raw) - 100
        program = raw[start:end]
    for _ in range(1000):
        broken = bytearray(program)
        for at in rng.integers(0, len(program), rng.integers(1, 4)):
            broken[at] = int(rng.integers(0, 256))
        if kind == "zip":
            zip_checkpoint(path, bytes(broken), storages)
        else:
            path.write_bytes(raw[:start] + broken + raw[end:])
        try:
            for array in read_state_dict(path).values():
                bits(array)
        except WeightsError:
            pass


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"hello", "neither"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"PK\3\4", "broken"),
        (b"\x80", "broken"),
        (struct.pack("<Q", 1 << 60) + b"{}", "safetensors"),
        (struct.pack("<Q", 2) + b"{]", "safetensors"),
    ],
)  # fmt: skip
def test_wrong_kinds_of_files(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refused(path, match)


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "missing.pth", "No such file")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
    refused(tmp_path / "photos.zip", "not a torch checkpoint")


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    "array",
    [
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps([1])),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", bytes(6)),
        npy("{'descr': '<U8', 'fortran_order': False, 'shape': (1,), }\n", bytes(32)),
        npy("__import__('os').system('true')\n"),
        npy("(" * 5000 + "\n"),
        npy("{}", version=(3, 0)),
        b"",
    ],
)  # fmt: skip
def test_npz_arrays_that_lie(tmp_path: Path, array: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", array)
    refused(tmp_path / "w.npz")


def test_objects_in_npz(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    np.savez(tmp_path / "w.npz", a=np.array([Bomb(marker)], object))
    refused(tmp_path / "w.npz", "'a'.*object")
    assert not marker.exists()


def test_no_torch_is_imported() -> None:
    import subprocess
    import sys

    code = "import sys, convkern.weights.files, convkern.weights.torch_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reads_from_memory_that_lives_on(tmp_path: Path) -> None:
    """Arrays stay good after the file's name is gone."""
    torch.save({"a": torch.arange(5.0)}, tmp_path / "a.pth")
    array = read_state_dict(tmp_path / "a.pth")["a"]
    (tmp_path / "a.pth").unlink()
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert io.BytesIO(array).read() == bits(array)
