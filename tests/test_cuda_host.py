"""CUDA without a GPU: the portable kernels and the device plan on an emulated "cuda:0" (emulated.py), index arithmetic
beyond 2^31, dispatch, refusals, and the tools of the CUDA build.

What cannot be seen here: races, the memory model, tensor cores, speed. `make gpu-test` runs the same cases on a device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import convkern
import cuda_cases
import emulated
import oracle
import test_kernels_other as other
import tolerance
from convkern import _core, device
from convkern.device import DeviceArray, Runner
from convkern.errors import DeviceError, Unsupported
from cuda_cases import *  # noqa: F403 - the tests
from cuda_cases import back, check_network, check_row
from oracle import Conv

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ["squeezenet1_1", "mobilenet_v2", "resnet18", "densenet121", "efficientnet_b0"]


@pytest.fixture(scope="session")
def emulation() -> Any:
    return emulated.module()


@pytest.fixture
def cuda(emulation: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulated module, in use as convkern's."""
    monkeypatch.setattr(device, "_module", emulation)
    monkeypatch.setattr(device, "current_stream", lambda index=0: 1)
    return emulation


@pytest.fixture(params=cuda_cases.listed("PORTABLE"))
def row(request: pytest.FixtureRequest) -> str:
    """Each portable convolution row."""
    return request.param


# How many of the problems a row must take: fewer means that it refuses what it should serve.
LEAST = {"conv_ref": 150, "conv_direct": 130, "conv_im2col": 50, "conv_split": 50, "conv_transposed": 10}
FLOAT_ONLY = ("conv_winograd2", "conv_winograd4")


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_exact_sums(cuda: Any, row: str, precision: str) -> None:
    """Tails, asymmetric padding, strides, dilation, groups, multipliers, 1-D to 3-D, transposed; to the bit."""
    check_row(row, precision, 0 if row in FLOAT_ONLY and precision != "float32" else LEAST.get(row, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(cuda: Any, name: str) -> None:
    check_network(name, 32, "float32")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_network_in_half_precision(cuda: Any, precision: str) -> None:
    check_network("resnet18", 32, precision)


# Sizes beyond 31 bits


@pytest.fixture(params=[1, 200])
def few_items(cuda: Any, request: pytest.FixtureRequest) -> Iterator[int]:
    """Makes kernels believe that so many items are too many for 32-bit indices and for one launch."""
    library = ctypes.CDLL(str(emulated.build()))
    library.ck_emulated_items(ctypes.c_int64(request.param))
    yield request.param
    library.ck_emulated_items(ctypes.c_int64(2**31))


def test_kernels_with_64_bit_indices(few_items: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """What tensors of more than 2^31 elements take: 64-bit indices, batches cut into several launches."""
    monkeypatch.setattr(other, "run", cuda_cases.run_other)
    other.test_odd_pools("float32", True, rng)
    other.test_scale_and_shift("float32", rng)
    other.test_binary_operators_broadcast("float32", "add", rng)
    other.test_transposes("float32", (3, 1, 0, 2), rng)
    other.test_pads_and_crops("float32", "reflect", rng)
    cuda_cases.test_layouts_of_a_caller(None, rng)
    ran = dict.fromkeys(cuda_cases.listed("PORTABLE"), 0)
    for algo in ran:
        for turn, problem in enumerate([*cuda_cases.ODD[::6], *cuda_cases.LARGER]):
            ran[algo] += cuda_cases.check_conv(algo, "float32", problem, turn)
    if few_items == 200:  # with 1 every image is too large for the rows that count pixels in 31 bits
        assert min(ran.values()) >= 1, ran
    assert ran["conv_ref"] > 20


def far_apart(x: np.ndarray) -> DeviceArray:
    """The values with images more than 2^31 elements apart, in memory that exists only where it is touched."""
    image = 2**31 + 64
    memory = mmap.mmap(
        -1, 4 * (image * (len(x) - 1) + x[0].size + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    )
    flat = np.frombuffer(memory, np.float32)
    for i, values in enumerate(x):
        flat[i * image : i * image + values.size] = values.ravel()
    strides = (image * 4, *device.dense_strides(x.shape[1:], 4))
    return DeviceArray((memory, flat), flat.ctypes.data, x.shape, strides, "float32", 0, 1)


@pytest.mark.skipif(sys.maxsize < 2**33, reason="needs 64-bit addresses")
def test_offsets_beyond_2_31_elements(cuda: Any, rng: np.random.Generator) -> None:
    """Every row of every family reads its second image 2^31 elements behind the first."""
    convs = [Conv(1, 6, 6, 32, 32, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=g) for g in (1, 8, 32)]
    convs += [Conv(1, 1, 1, 128, 32), Conv(1, 4, 4, 8, 8, 1, 2, 2, (1, 2, 2), transposed=True)]
    seen = set()
    for problem in convs:
        data = oracle.conv_data(problem, rng, 2)
        for algo in cuda_cases.listed("PORTABLE"):
            exact = cuda_cases.is_exact(algo)
            runner = cuda_cases.conv_runner(problem, data.w, data.bias, algo, "float32", exact=exact)
            try:
                got = runner.run([far_apart(data.x)])[0].numpy()
            except Unsupported:
                continue
            seen.add(algo)
            bound = np.full(data.want.shape, 2.0**-126)
            if algo == "conv_winograd4":
                bound = tolerance.winograd_bound(algo, data.x, data.w, data.bias, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
            tolerance.assert_within(got, data.want, bound, (algo, str(problem)))
    assert seen == {*cuda_cases.listed("PORTABLE")} - {
        "conv_pointwise"
    }  # it wants the pixels of all images in one list
    x = oracle.integers(rng, (2, 1, 4, 4, 8))
    for c in (8, 7):
        steps: dict[Any, Any] = {
            other.step("pool", "max", window=(1, 2, 2), stride=(1, 2, 2), out=(1, 2, 2)): x.reshape(
                2, 1, 2, 2, 2, 2, 8
            ).max((3, 5)),
            other.step("adaptive_pool", "avg", out=(1, 1, 1)): x.mean((1, 2, 3), keepdims=True),
            other.step("activation", "relu"): np.maximum(x, 0),
            other.step("transpose", (0, 3, 1, 2)): x.transpose(0, 1, 4, 2, 3),
            other.step("resize", out=(1, 8, 8)): x.repeat(2, 2).repeat(2, 3),
        }
        for build, want in steps.items():
            plan = _core.Plan(record=True)
            plan.finish([build(plan, plan.input((1, 4, 4, c)))])
            got = Runner(plan, 0, "float32").run([far_apart(x)[..., :c]])[0].numpy()
            want = want[:, :, :c] if want.shape[2] == 8 and want.shape[-1] == 4 else want[..., :c]
            tolerance.assert_exact(got, want, c)


# Dispatch


def test_kernels_that_a_large_device_takes(cuda: Any) -> None:
    """On 132 multiprocessors: sums are cut for one image, not for many; each kind of layer gets its kernel."""
    library = ctypes.CDLL(str(emulated.build()))
    library.ck_emulated_device(90, 132)
    try:

        def chosen(problem: Conv, n: int, precision: str = "float32", **options: Any) -> str:
            runner = cuda_cases.conv_runner(problem, np.zeros(problem.w_shape, "f4"), None, "", precision, **options)
            return runner.steps(n)[0]["kernel"]

        pads: dict[str, Any] = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
        square = Conv(1, 28, 28, 128, 128, 1, 3, 3, **pads)
        assert chosen(square, 1) == "conv_split" and chosen(square, 256) == "conv_direct"
        assert (
            chosen(square, 256, exact=False) == "conv_winograd4"
            and chosen(square, 256, "float16", exact=False) == "conv_direct"
        )
        assert chosen(Conv(1, 1, 1, 4096, 4096), 1) == "conv_dense"
        assert chosen(Conv(1, 56, 56, 64, 256), 64) == "conv_pointwise"
        assert chosen(Conv(1, 28, 28, 96, 96, 1, 3, 3, groups=96, **pads), 8) == "conv_depthwise"
        assert chosen(Conv(1, 56, 56, 128, 128, 1, 3, 3, groups=32, **pads), 64) == "conv_grouped"
        assert chosen(Conv(1, 28, 28, 64, 32, 1, 4, 4, (1, 2, 2), transposed=True), 8) == "conv_transposed"
        assert chosen(Conv(2, 2, 2, 3, 5, 2, 2, 2), 1) != "conv_ref"
        model = cuda_cases.small_net().to("cuda:0")
        assert {"pool_global", "pool_vector"} & {step["kernel"] for step in model.plan()._plan.steps(64)}
    finally:
        library.ck_emulated_device(75, 4)


def test_how_channels_first_images_are_turned(cuda: Any) -> None:
    """A photo's three channels would leave a tile of 32 channels empty; wide maps go by tiles."""
    library = ctypes.CDLL(str(emulated.build()))
    library.ck_emulated_turn.restype = ctypes.c_char_p
    for c, kernel in ((3, b"move_any"), (8, b"move_any"), (64, b"move_tile"), (1000, b"move_tile")):
        assert library.ck_emulated_turn(ctypes.c_int64(8), ctypes.c_int64(224), ctypes.c_int64(c)) == kernel, c


def test_a_workspace_is_bounded(cuda: Any) -> None:
    """No row asks for more than a gigabyte, whatever the batch."""
    for problem in (*cuda_cases.LARGER, Conv(1, 112, 112, 64, 64, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))):
        for algo in cuda_cases.listed("PORTABLE"):
            exact = cuda_cases.is_exact(algo)
            runner = cuda_cases.conv_runner(
                problem, np.zeros(problem.w_shape, "f4"), None, algo, "float32", exact=exact
            )
            for n in (1, 300, 5000):
                try:
                    (step,) = runner.steps(n)
                except Unsupported:
                    continue
                assert 0 <= step["workspace_bytes"] <= 2**30, (algo, str(problem), n)


# Without CUDA


def test_the_plain_package_has_no_cuda() -> None:
    """Importing and running models loads neither the CUDA module nor a driver; asking for a device says what to do."""
    code = (
        "import sys, numpy as np\n"
        "from convkern import Input, Model\n"
        "from convkern.layers import Dense\n"
        "image = Input((3,))\n"
        "model = Model(image, Dense(2)(image))\n"
        "model(np.zeros((1, 3), 'f4'))\n"
        "assert not {'convkern._cuda', 'convkern.device'} & {*sys.modules}, 'loaded'\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libcuda' not in maps and 'libcudart' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_no_kernels_were_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_module", None)
    monkeypatch.setitem(sys.modules, "convkern._cuda", None)
    monkeypatch.delattr(convkern, "_cuda", raising=False)  # where it was built and a test has loaded it
    assert not device.is_available()
    model = cuda_cases.small_net()
    with pytest.raises(Unsupported, match="CONVKERN_CUDA=ON"):
        model.to("cuda:0")
    assert model.device == "cpu" and model(np.zeros((1, 13, 11, 3), "f4")).shape == (1, 10)
    with pytest.raises(Unsupported, match="device='gpu'"):
        model.to("gpu")
    with pytest.raises(Unsupported, match="precision='float16' on the CPU"):
        model.to("cpu", "float16")


def test_a_device_that_is_not_there(cuda: Any) -> None:
    with pytest.raises(DeviceError, match=r"cuda:3.*there are 1"):
        cuda_cases.small_net().to("cuda:3")


@pytest.fixture
def counts(cuda: Any) -> Any:
    """Blocks of device memory that there are, that have ever been, and how often the whole device was waited for."""
    library = ctypes.CDLL(str(emulated.build()))
    library.ck_emulated_count.restype = ctypes.c_int64
    return lambda: tuple(library.ck_emulated_count(what) for what in range(3))


def test_memory_that_other_streams_use_waits_for_all_of_them(cuda: Any, counts: Any) -> None:
    """Given back in the order of its own stream, except where another one reads it: then the device is waited for."""
    for wait in (False, True):
        array = device.empty((4,), "float32", 0)
        if wait:
            array[1:].wait(5)  # a view is the same memory
        alive, _, waits = counts()
        del array
        assert counts()[0] == alive - 1 and counts()[2] == waits + wait
    array = device.empty((4,), "float32", 0)
    array.__dlpack__(stream=-1)  # a consumer that says nothing about its streams
    waits = counts()[2]
    del array
    assert counts()[2] == waits + 1


def test_a_model_on_another_stream_keeps_its_input(cuda: Any, counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cuda_cases.small_net().to("cuda:0")
    x = device.to_device(np.zeros((1, 13, 11, 3), "f4"))
    monkeypatch.setattr(device, "current_stream", lambda index=0: 9)
    model(x)
    waits = counts()[2]
    del x
    assert counts()[2] == waits + 1


def test_memory_dropped_in_a_capture_is_freed_after_it(cuda: Any, counts: Any) -> None:
    """A graph may give back its own memory alone."""
    library = ctypes.CDLL(str(emulated.build()))
    before, first = device.empty((4,), "float32", 0), counts()[0]
    library.ck_emulated_capture(1)
    try:
        inside = device.empty((4,), "float32", 0)
        del inside  # a node of the graph
        assert counts()[0] == first
        del before  # waits
        assert counts()[0] == first
        also = device.empty((4,), "float32", 0)
        assert counts()[0] == first + 1
    finally:
        library.ck_emulated_capture(0)
    del also
    last = device.empty((4,), "float32", 0)
    assert counts()[0] == first  # `before` is gone, `last` is there
    del last
    assert counts()[0] == first - 1


def test_graphs_keep_a_bounded_share_of_the_memory(cuda: Any, counts: Any, rng: np.random.Generator) -> None:
    """Each graph has an arena of its own: where the next one would be too much, its call is launched step by step."""
    library = ctypes.CDLL(str(emulated.build()))
    model = cuda_cases.small_net()
    xs = rng.standard_normal((2, 4, 13, 11, 3)).astype("f4")
    wants = [model(x) for x in xs]
    needed = sum(cuda_cases.small_net().to("cuda:0").plan()._plan._plan.memory(4))  # arena and workspace
    library.ck_emulated_memory(ctypes.c_int64(12 * needed))  # an eighth of it: one and a half
    try:
        runner = model.to("cuda:0").plan()._plan
        alive = []
        for array, want in zip([device.to_device(x)[:, None] for x in xs], wants):
            n, inputs, outputs = runner._arguments([array], False)
            for _ in range(4):
                runner._plan.run(n, inputs, [outputs[0].pointer], False, 1)
                alive.append(counts()[0])
                tolerance.assert_within(back(outputs[0]).reshape(want.shape), want, tolerance.network_bound(want), "")
        assert alive[1] == alive[0] + 1 and len({*alive[1:4]}) == 1, "the first call has a graph"
        assert len({*alive[4:]}) == 1, "the second has none"
    finally:
        library.ck_emulated_memory(ctypes.c_int64(2**36))


def test_a_layer_that_needs_no_memory_takes_none(cuda: Any, counts: Any, rng: np.random.Generator) -> None:
    """What writes its output in place has no arena: nothing is allocated for a run, nor kept for a graph."""
    problem = Conv(1, 6, 6, 8, 8, 1, 3, 3)
    data = oracle.conv_data(problem, rng, 2)
    runner = cuda_cases.conv_runner(problem, data.w, data.bias, "conv_direct", "float32")
    array = device.to_device(data.x)
    n, inputs, outputs = runner._arguments([array], False)
    runner._plan.run(n, inputs, [outputs[0].pointer], False, 1)  # packs the weights
    ever = counts()[1]
    for _ in range(3):  # launched, captured, replayed
        runner._plan.run(n, inputs, [outputs[0].pointer], False, 1)
    assert counts()[1] == ever and runner.arena_bytes == 0
    tolerance.assert_exact(outputs[0].numpy(), data.want)


def test_a_table_of_another_version_is_refused(emulation: Any) -> None:
    library = ctypes.CDLL(str(emulated.build()))
    library.ck_device_table.restype = ctypes.POINTER(ctypes.c_uint32 * 8)
    changed = (ctypes.c_uint32 * 8)(*library.ck_device_table().contents)
    changed[0] += 1
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    name = ctypes.c_char_p(b"convkern.device.table")
    with pytest.raises(Unsupported, match="another version"):
        _core.DeviceModule(new(ctypes.addressof(changed), name, None))


def test_streams_of_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's: set by hand, else PyTorch's, else CuPy's, else the default one."""

    class Torch:
        class cuda:
            is_initialized = staticmethod(lambda: True)
            current_stream = staticmethod(lambda index: type("Stream", (), {"cuda_stream": 1000 + index}))

    class Cupy:
        class cuda:
            get_current_stream = staticmethod(lambda: type("Stream", (), {"ptr": 77}))

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert device.current_stream() == 1
    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    assert device.current_stream() == 77
    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert device.current_stream(2) == 1002
    with device.stream(5):
        assert device.current_stream() == 5
    assert device.current_stream(0) == 1000


def test_a_tensor_of_another_device_is_taken_with_that_device(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses to export a tensor of cuda:1 while cuda:0 is its current device."""
    x, now = torch.arange(3.0), [0]

    class Tensor:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

        def __dlpack__(self) -> Any:
            assert now == [1]
            return x.__dlpack__()

    @contextlib.contextmanager
    def on(index: int) -> Iterator[None]:
        now[0] = index
        yield
        now[0] = 0

    other_torch = ModuleType("torch")
    other_torch.Tensor = Tensor  # type: ignore[attr-defined]
    other_torch.cuda = type("cuda", (), dict(device=on, is_initialized=lambda: True))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", other_torch)
    array = device.from_object(Tensor(), "x")
    assert array.pointer == x.data_ptr() and now == [0]


def test_arrays_of_the_cuda_array_interface(cuda: Any) -> None:
    x = np.arange(24, dtype="f4").reshape(2, 3, 4)

    class Foreign:
        __cuda_array_interface__ = dict(
            shape=(2, 2, 4),
            typestr="<f4",
            data=(x[:, 1:].ctypes.data, False),
            strides=(48, 16, 4),
            version=3,
            stream=None,
        )

    assert device.on_device(Foreign())
    array = device.from_object(Foreign(), "x")
    tolerance.assert_exact(array.numpy(), x[:, 1:])
    again = array.transpose(2, 0, 1).__cuda_array_interface__
    assert again["shape"] == (4, 2, 2) and again["strides"] == (4, 48, 16) and again["data"][0] == array.pointer
    model = cuda_cases.small_net()
    image = np.random.default_rng(0).standard_normal((1, 13, 11, 3)).astype("f4")
    want = model(image)

    class Image:
        __cuda_array_interface__ = dict(shape=image.shape, typestr="<f4", data=(image.ctypes.data, False), version=2)

    tolerance.assert_within(model.to("cuda:0")(Image()).numpy(), want, tolerance.network_bound(want))


@pytest.mark.parametrize("more", [dict(typestr=">f4"), dict(mask=np.ones(4, bool))])
def test_foreign_arrays_that_are_not_plain(cuda: Any, more: dict[str, Any]) -> None:
    x = np.arange(4, dtype="f4")

    class Foreign:
        __cuda_array_interface__ = dict(shape=(4,), typestr="<f4", data=(x.ctypes.data, False), version=3) | more

    with pytest.raises(Unsupported, match="masked elements, or elements in another byte order"):
        device.from_object(Foreign(), "x")


def test_a_forked_child_is_told_so(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU goes on working there; a device says what is wrong instead of the driver's "initialization error"."""
    monkeypatch.setattr(device, "_process", None)
    assert device.count() == 1
    child = os.fork()
    if not child:
        model, x = cuda_cases.small_net(), np.zeros((1, 13, 11, 3), "f4")
        try:
            model.to("cuda:0")
        except DeviceError as error:
            os._exit(0 if "forked" in str(error) and model(x).shape == (1, 10) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class HostClock:
    """What bench.gpu.Cuda does, without a device."""

    name = "cpu"

    def capture(self, call: Any, calls: int) -> Any:
        return lambda: [call(i) for i in range(calls)]

    def seconds(self, queue: Any) -> float:
        begin = time.perf_counter()
        queue()
        return time.perf_counter() - begin

    def ring(self, bytes_: int) -> int:
        return 2

    def array(self, x: Any) -> DeviceArray:
        strides = tuple(s * x.element_size() for s in x.stride())
        return DeviceArray(x, x.data_ptr(), tuple(x.shape), strides, str(x.dtype).removeprefix("torch."), 0, 1)

    def read(self, y: DeviceArray) -> Any:
        return torch.from_dlpack(y)


def test_the_benchmark_of_a_device(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer and a network, contestants and report, with a clock of the CPU."""
    from convkern.bench import gpu, shapefile

    monkeypatch.setattr(gpu, "race", functools.partial(gpu.race, rounds=2))
    shape = shapefile.parse_line("conv h=9 w=8 c=8 k=16 r=3 pad=1 stride=2")
    rows = [gpu.layer(HostClock(), shape, 2, precision) for precision in ("float32", "float16")]
    rows.append(gpu.network(HostClock(), "squeezenet1_1", 1, "float32", compiled=False, size=32))
    for row in rows:
        assert row["error"] < 1e-2 and row["ours"]["median"] > 0 and row["peers"]["torch"]["ratio"] > 0
        assert "TFLOP/s" in gpu.line(row)
    for shape in gpu.POOLS:
        row = gpu.pool(HostClock(), shape._replace(size=9, c=8), 2, "float16")
        assert (
            row["error"] == 0 and row["of_copy"] > 0 and row["kernel"] == "pool_window" and "of copy" in gpu.line(row)
        )
        rows.append(row)
    assert len(gpu.summary(rows)) == 4
    called = gpu.first_call(HostClock(), "squeezenet1_1", 1, "float32", size=32)
    assert 0 < called["seconds"] < 60 and "first call" in gpu.line(called)
    json.dumps([*rows, called])


def test_the_numbers_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Every group has rows, every number is computed from its own, and the table says which are met."""
    from convkern.bench import gpu

    made: list[Any] = []
    for group in gpu.GROUPS:
        for job in gpu.jobs_of(None, group):
            function, (_, thing, *rest) = job.func.__name__, job.args
            n, precision = rest[:2]
            row = dict(group=group, n=n, precision=precision)
            if function == "first_call":
                made.append(row | dict(call=thing, seconds=0.5))
                continue
            ratio = {"layer": 2.0, "pool": 3.5, "network": 1.25}[function]
            row["peers"] = {"torch": dict(ratio=ratio), "torch.compile": dict(ratio=ratio + 1)}
            name = {"layer": "layer", "pool": "pool", "network": "model"}[function]
            shape = thing if function == "network" else str(thing)
            made.append(row | {name: getattr(thing, "name", thing), "shape": shape, "of_copy": 0.9})
    made.append(dict(made[-1], n=3))  # of no number
    table = gpu.table_of(made)
    assert [t["what"] for t in table] == [number.what for number in gpu.NUMBERS]
    met = {(t["what"], t["n"]): t["met"] for t in table}
    assert not met.pop(("VGG-16 float16", 256)) and not met.pop(("AlexNet float16", 256))
    assert not met.pop(("first layers with packing, float16", 64)) and not met.pop(
        ("first layers with packing, bfloat16", 64)
    )
    assert all(met.values()), met
    rows = {t["what"]: t["rows"] for t in table}
    assert rows["first layers with packing, float16"] == 3 and rows["pooling, float16"] == 3
    assert rows["layers of C >= 64, float16"] == rows["layers of C >= 64, float32 or 3xTF32"] > 30
    low = [dict(row, peers={"torch": dict(ratio=0.8)}) if row is made[2] else row for row in made]
    (half,) = (t for t in gpu.table_of(low) if t["what"] == "layers of C >= 64, float16")
    assert half["got"] > 1.15 and half["least"] == 0.8 and not half["met"]  # no layer below 0.9
    text = gpu.numbers_text(table)
    assert text.count("NOT MET") == 4 and len(text.splitlines()) == 1 + len(gpu.NUMBERS)

    def fails() -> dict[str, Any]:
        raise Unsupported("nothing takes it")

    assert list(gpu.done([fails, lambda: made[0]])) == made[:1] and "nothing takes it" in capsys.readouterr().err
    assert list(gpu.done([lambda: made[0]], until=0.0)) == [] and "time is up" in capsys.readouterr().err


# The tools


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_architectures_of_a_machine() -> None:
    archs = tool("native_archs").archs
    assert archs("9.0\n9.0\n") == "90a" and archs("8.6\n7.5\n") == "75;86" and archs("12.0\n") == "120"


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN2ck4cuda4gemmIfLi64EEEvT_' for 'sm_80'
ptxas info    : Function properties for _ZN2ck4cuda4gemmIfLi64EEEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8192 bytes smem, 712 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN2ck4cuda4poolEv' for 'sm_90a'
ptxas info    : Function properties for _ZN2ck4cuda4poolEv
    {stack} bytes stack frame, {spill} bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""


@pytest.mark.parametrize(
    "stack,spill,more,wrong",
    [
        (0, 0, "", ""),
        (8, 16, "", "spills"),
        (64, 0, "", "stack"),
        (
            0,
            0,
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n",
            "C7510",
        ),
        (0, 0, "ptxas warning : (C7508) something\n", "C7508"),
    ],
)
def test_reports_of_the_compiler(tmp_path: Path, stack: int, spill: int, more: str, wrong: str) -> None:
    text = REPORT.format(stack=stack, spill=spill).replace("8 bytes spill loads", f"{spill} bytes spill loads")
    (tmp_path / "pool.cu.o.ptxas").write_text(text + more)
    check = tool("check_cuda")
    rows, problems = check.read(tmp_path)
    assert [(r.kernel, r.arch, r.registers, r.shared) for r in rows] == [
        ("ck::cuda::gemm<float, 64>", "sm_80", 128, 8192),
        ("ck::cuda::pool", "sm_90a", 40, 0),
    ]
    assert bool(problems) == bool(wrong) and all(wrong in p for p in problems)
    assert check.read(tmp_path / "nothing")[1]  # no report is a failure, too


def test_the_size_of_the_module(tmp_path: Path) -> None:
    check = tool("check_cuda")
    assert "no module" in check.too_large(tmp_path, 100)[0]
    (tmp_path / "_cuda.cpython-312-x86_64-linux-gnu.so").write_bytes(np.random.default_rng(0).bytes(1000))
    assert check.too_large(tmp_path, 2000) == [] and "want 500" in check.too_large(tmp_path, 500)[0]
