"""What must hold on a CUDA device, whichever: test_cuda_host.py runs this on the emulated one,
gpu/test_cuda.py on a real one.

Every row of csrc/cuda/kernels.def is forced by name on odd problems, in every precision it accepts. Small integers make
every sum exact in float32, so that a result is the oracle's value rounded once to the element type, to the bit: in
half precision, too, and whatever the order of the sum. The fixture `cuda` has the module in use.
"""

from __future__ import annotations

import ctypes
import functools
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import test_kernels_other as other
import tolerance
from convkern import Model, _core, device, ops
from convkern.device import DeviceArray, Runner
from convkern.errors import DTypeError, ShapeError, Unsupported
from convkern.models import get_model
from oracle import Conv

ROOT = Path(__file__).resolve().parent.parent
TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@functools.cache
def listed(*kinds: str) -> list[str]:
    """Convolution rows of kernels.def of these kinds (PORTABLE, TENSOR, SM90)."""
    text = (ROOT / "csrc/cuda/kernels.def").read_text()
    return re.findall(rf"^CK_(?:{'|'.join(kinds)})\(Conv, (\w+)\)", text, re.M)


# Arrays


def put(a: np.ndarray, dtype: str = "float32") -> DeviceArray:
    """A copy on the device with the same strides, gaps included."""
    if a.flags.c_contiguous or not a.size:
        return device.to_device(a).astype(dtype)
    low = sum((n - 1) * s for n, s in zip(a.shape, a.strides) if s < 0)
    span = sum((n - 1) * abs(s) for n, s in zip(a.shape, a.strides)) + a.itemsize
    memory = np.frombuffer((ctypes.c_char * span).from_address(a.ctypes.data + low), a.dtype)
    block = device.to_device(memory).astype(dtype)
    strides = tuple(s // a.itemsize * block.itemsize for s in a.strides)
    pointer = block.pointer - low // a.itemsize * block.itemsize
    return DeviceArray(block, pointer, a.shape, strides, dtype, 0, block._stream)


def back(y: DeviceArray) -> np.ndarray:
    """On the CPU, half precision as float32."""
    return y.numpy() if y.dtype == "int64" else y.astype("float32").numpy()


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float64 values as a float32 sum that is stored as dtype."""
    return torch.from_numpy(values.astype(np.float32)).to(TORCH_TYPES[dtype]).float().numpy()


# Convolutions

ODD = [*oracle.CORNER_CONVS, *oracle.odd_convs(150, seed=11)]
# What the odd problems do not reach: whole tiles and several of them, long sums, channels in sixteens.
LARGER = [
    Conv(1, 1, 1, 260, 70),
    Conv(1, 1, 1, 1024, 136),
    Conv(1, 12, 12, 64, 64, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 9, 7, 40, 136, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 14, 14, 48, 136),
    Conv(1, 14, 14, 48, 40, stride=(1, 2, 2)),
    Conv(1, 15, 15, 3, 64, 1, 7, 7, (1, 2, 2), (0, 3, 3), (0, 3, 3)),
    Conv(1, 19, 19, 3, 96, 1, 11, 11, (1, 4, 4), (0, 2, 2), (0, 2, 2)),
    Conv(1, 8, 8, 192, 32, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 7, 7, 128, 128, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=32),
    Conv(1, 8, 8, 64, 64, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=8),
    Conv(1, 7, 7, 64, 128, 1, 3, 3, dilation=(1, 2, 2), groups=2),
    *(
        Conv(1, 11, 13, 32, 32, 1, r, r, (1, s, s), (0, r // 2, r // 2), (0, 1, 1), groups=32)
        for r in (3, 5)
        for s in (1, 2)
    ),
    Conv(1, 9, 9, 24, 24, 1, 3, 7, (1, 1, 2), (0, 1, 3), (0, 1, 3), (1, 2, 1), groups=24),
    Conv(1, 6, 5, 16, 24, 1, 4, 4, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True),
]


def seeded(problem: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(problem).encode()))


def conv_runner(
    problem: Conv,
    w: Any,
    bias: np.ndarray | None,
    algo: str,
    precision: str,
    *,
    residual: bool = False,
    act: tuple[str, float, float] = ("none", 0.0, 0.0),
    exact: bool = True,
) -> Runner:
    plan = _core.Plan(exact=exact, record=True)
    x = plan.input(problem.x_shape)
    added = plan.input(problem.y_shape) if residual else -1
    weight = w if isinstance(w, _core.Parameter) else _core.Parameter(w)
    kind, a, b = act
    y = plan.conv(x, weight, bias, added, algo=algo, act=kind, act_a=a, act_b=b, **problem.geometry)
    plan.finish([y])
    return Runner(plan, 0, precision)


def is_exact(algo: str) -> bool:
    return "winograd" not in algo


def check_conv(algo: str, precision: str, problem: Conv, turn: int, least: int = 2) -> bool:
    """One problem on one row; False if the row refuses. `turn` varies batch, bias, residual, strides, activation."""
    n, bias, residual, gaps = 1 + turn % 3, turn % 4 != 1, turn % 2 == 1, turn % 5 == 2
    act = (("none", 0.0, 0.0), ("relu", 0.0, 0.0), ("leaky_relu", 0.125, 0.0), ("relu6", 0.0, 0.0))[turn % 4]
    limit = 4 if precision in ("float32", "fp32x3", "tf32") else 2
    data = oracle.conv_data(problem, seeded(problem), n, bias=bias, residual=residual, exact=True, limit=limit)
    dtype = device.PRECISIONS[precision][1]
    runner = conv_runner(problem, data.w, data.bias, algo, precision, residual=residual, act=act, exact=is_exact(algo))
    inputs = [put(other.strided(data.x) if gaps else data.x, dtype)]
    if residual:
        inputs.append(put(data.residual, dtype))
    try:
        got = back(runner.run(inputs)[0])
    except Unsupported:
        return False
    want = tolerance.activation(act[0], data.want, *act[1:])
    if is_exact(algo):
        tolerance.assert_exact(got, rounded(want, dtype), (algo, precision, str(problem), turn))
    else:
        pads = dict(pad_lo=problem.pad_lo, pad_hi=problem.pad_hi)
        bound = tolerance.winograd_bound(algo, data.x, data.w, data.bias, data.residual, **pads)
        if algo == "conv_winograd2":  # halves and quarters of small integers: exact
            bound = np.zeros_like(bound) + 2.0**-126
        tolerance.assert_within(got, want, bound, (algo, precision, str(problem), turn))
    return True


def check_row(algo: str, precision: str, least: int) -> None:
    ran = 0
    for turn, problem in enumerate([*ODD, *LARGER]):
        ran += check_conv(algo, precision, problem, turn)
    assert ran >= least, f"{algo} was tried in {precision} on {ran} problems only"


def test_every_channel_count(cuda: Any, row: str) -> None:
    """C and K from 1 to 40: every tail of tiles, packing and vectors; 1x1, 3x3, groups."""
    ran = 0
    for c in range(1, 41):
        shapes = [(c, c * 29 % 40 + 1, 1, 3), (c * 37 % 40 + 1, c, 1, 1), (c, c, c, 3)]
        shapes += [(c, c, c // m, 3) for m in (4, 8) if c % m == 0]
        for turn, (c_in, k, groups, r) in enumerate(shapes):
            problem = Conv(1, 3, 5, c_in, k, 1, r, r, pad_lo=(0, r // 2, r // 2), pad_hi=(0, r // 2, 0), groups=groups)
            precision = ("float32", "float16")[c % 2]
            ran += check_conv(row, precision, problem, turn + c)
    assert ran or row not in SMALL_CHANNELS


# Rows that take a 1x1 or 3x3 filter of one stride and any number of channels, or of all multiples of four or eight.
SMALL_CHANNELS = (
    "conv_ref",
    "conv_direct",
    "conv_split",
    "conv_im2col",
    "conv_pointwise",
    "conv_grouped",
    "conv_depthwise",
)


def test_scale_is_an_epilogue_factor(cuda: Any, row: str) -> None:
    ran = 0
    for problem in LARGER:
        data = oracle.conv_data(problem, seeded(problem), 2, limit=2)
        scale = oracle.integers(seeded(problem), (problem.k,), 2)
        runner = conv_runner(problem, _core.Parameter(data.w, scale), data.bias, row, "float32", exact=is_exact(row))
        try:
            got = back(runner.run([put(data.x)])[0])
        except Unsupported:
            continue
        want = oracle.conv(data.x, data.w * scale, data.bias, **problem.geometry)
        pads = dict(pad_lo=problem.pad_lo, pad_hi=problem.pad_hi)
        bound = 0 if is_exact(row) else tolerance.winograd_bound(row, data.x, data.w * scale, data.bias, None, **pads)
        tolerance.assert_within(got, want, bound + np.full(want.shape, 2.0**-126), (row, str(problem)))
        ran += 1
    assert ran, f"{row} takes none of them in float32"


@pytest.mark.parametrize("act", tolerance.ACTIVATIONS)
def test_activations_of_the_epilogue(cuda: Any, act: str) -> None:
    """Each one, on rows with each way of writing results: four values at once, one by one."""
    a, b = {"clamp": (-2.0, 3.0), "elu": (0.75, 0.0), "leaky_relu": (0.125, 0.0), "softplus": (0.5, 6.0)}.get(
        act, (0.0, 0.0)
    )
    for problem in (Conv(1, 4, 4, 8, 12, 1, 3, 3), Conv(1, 4, 4, 5, 7), Conv(1, 5, 5, 16, 16, 1, 3, 3, groups=16)):
        data = oracle.conv_data(problem, seeded(problem), 2, residual=True, limit=1)
        runner = conv_runner(problem, data.w, data.bias, "", "float32", residual=True, act=(act, a, b))
        got = back(runner.run([put(data.x), put(data.residual)])[0])
        want = tolerance.activation(act, data.want, a, b)
        tolerance.assert_within(got, want, tolerance.activation_bound(act, data.want, 0.0, a, b), (act, str(problem)))


def test_real_numbers(cuda: Any, row: str) -> None:
    """Numbers of many magnitudes within the bound of a sum of products in any order."""
    ran = 0
    for problem in [*ODD[::5], *LARGER]:
        data = oracle.conv_data(problem, seeded(problem), 1, exact=False)
        runner = conv_runner(problem, data.w, data.bias, row, "float32", exact=is_exact(row))
        try:
            got = back(runner.run([put(data.x)])[0])
        except Unsupported:
            continue
        pads = dict(pad_lo=problem.pad_lo, pad_hi=problem.pad_hi)
        if row.startswith("conv_winograd"):
            bound = tolerance.winograd_bound(row, data.x, data.w, data.bias, None, **pads)
        else:
            bound = tolerance.conv_bound(data.x, data.w, data.bias, **problem.geometry)
        tolerance.assert_within(got, data.want, bound, (row, str(problem)))
        ran += 1
    assert ran, f"{row} takes none of them in float32"


# The other families: the CPU's tests, run on the device


def run_other(
    dtype: str,
    build: Callable[..., Any],
    *arrays: np.ndarray,
    threads: int = 1,
    precision: str = "float32",
    **options: Any,
) -> list[np.ndarray]:
    """test_kernels_other.run on the device: twice, the second time through a graph."""
    plan = _core.Plan(record=True)
    ids = build(plan, *(plan.input(a.shape[1:]) for a in arrays))
    plan.finish([ids] if isinstance(ids, int) else list(ids))
    runner = Runner(plan, 0, precision, graphs=False)
    inputs = [put(a.astype(np.float32, copy=False), device.PRECISIONS[precision][1]) for a in arrays]
    return [back(y) for y in runner.run(inputs, **options)]


@pytest.fixture
def on_cuda(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has test_kernels_other run on the device; gives the type it computes in."""
    monkeypatch.setattr(other, "run", run_other)
    return "float32"


def test_pools(on_cuda: str, rng: np.random.Generator) -> None:
    other.test_odd_pools(on_cuda, True, rng)
    other.test_odd_pools(on_cuda, False, rng)
    other.test_max_pooling_keeps_nan_and_infinity(on_cuda, rng)
    other.test_average_pooling_spreads_nan_no_further_than_its_windows(on_cuda)
    other.test_global_average_of_real_numbers(on_cuda, rng)
    other.test_pools_write_into_their_channel_slice_alone(on_cuda, rng)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("side,stride", [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_windows(cuda: Any, side: int, stride: int, precision: str, rng: np.random.Generator) -> None:
    """pool_window: odd and even widths, padding on either side, windows that overhang, every divisor; NaN stays."""
    for h, w, lo, hi, c in ((7, 9, 1, 1, 16), (8, 6, 0, 1, 8), (side, side, 0, 0, 24), (11, 5, 1, 0, 8)):
        x = oracle.integers(rng, (3, 1, h, w, c), 8)
        out = [(n + lo + hi - side) // stride + 1 for n in (h, w)]
        options: dict[str, Any] = dict(
            window=(1, side, side),
            stride=(1, stride, stride),
            pad_lo=(0, lo, lo),
            pad_hi=(0, hi, hi),
            out=(1, *out),
        )
        for kind, more in (
            ("max", {}),
            ("avg", dict(count_include_pad=True)),
            ("avg", dict(count_include_pad=False)),
            ("avg", dict(divisor=7)),
        ):
            plan = _core.Plan(record=True)
            plan.finish([other.step("pool", kind, **options, **more)(plan, plan.input(x.shape[1:]))])
            runner = Runner(plan, 0, precision)
            assert runner.steps()[0]["kernel"] == "pool_window"
            for view in (x, other.strided(x)):
                got = back(runner.run([put(view, device.PRECISIONS[precision][1])])[0])
                want = oracle.pool(view, kind, **options, **more)[0]
                tolerance.assert_exact(got, rounded(want.astype(np.float32), precision), (kind, more, x.shape))
            if kind == "max":
                bad = x.copy()
                bad[1, 0, h // 2, w // 2, 3] = np.nan
                got = back(runner.run([put(bad, device.PRECISIONS[precision][1])])[0])
                want = oracle.pool(np.where(np.isnan(bad), 1e4, bad), kind, **options)[0] > 1e3
                assert (np.isnan(got) == want).all()


@pytest.mark.parametrize("size,out", other.ADAPTIVE)
def test_adaptive_pools(on_cuda: str, size: Any, out: Any, rng: np.random.Generator) -> None:
    other.test_adaptive_pooling(on_cuda, size, out, rng)


def test_norms(on_cuda: str, rng: np.random.Generator) -> None:
    other.test_scale_and_shift(on_cuda, rng)
    other.test_layer_norm(on_cuda, rng)
    for arguments in other.LRN:
        other.test_local_response_norm(on_cuda, *arguments, rng)
    for log in (False, True):
        other.test_softmax(on_cuda, log, rng)
    other.test_softmax_of_extremes(on_cuda)


@pytest.mark.parametrize("act", tolerance.ACTIVATIONS)
def test_activations(on_cuda: str, act: str) -> None:
    other.test_activations(on_cuda, act)


@pytest.mark.parametrize("op", other.BINARY)
def test_binary(on_cuda: str, op: str, rng: np.random.Generator) -> None:
    other.test_binary_operators_broadcast(on_cuda, op, rng)
    other.test_binary_operators_on_nan_and_infinity(on_cuda, op)


def test_transposes(on_cuda: str, rng: np.random.Generator) -> None:
    for perm in ((0, 1, 2, 3), (0, 3, 1, 2), (3, 1, 0, 2), (1, 0, 3, 2), (0, 2, 1, 3)):
        other.test_transposes(on_cuda, perm, rng)


@pytest.mark.parametrize("mode", other.NUMPY_MODES)
def test_pads(on_cuda: str, mode: str, rng: np.random.Generator) -> None:
    other.test_pads_and_crops(on_cuda, mode, rng)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_other_families_in_half_precision(cuda: Any, precision: str, rng: np.random.Generator) -> None:
    """Whole numbers: results are exact, or rounded once."""
    run = functools.partial(run_other, "float32", precision=precision)
    for c in (1, 3, 8, 16, 20, 70):
        x = oracle.integers(rng, (2, 1, 6, 6, c))
        for view in (x, other.strided(x)):
            options: dict[str, Any] = dict(window=(1, 3, 3), stride=(1, 2, 2), pad_lo=(0, 1, 1), out=(1, 3, 3))
            for kind in ("max", "avg"):
                want = oracle.pool(x, kind, **options)[0]
                got = run(other.step("pool", kind, **options), view)[0]
                tolerance.assert_exact(got, rounded(want.astype(np.float32), precision), (kind, c))
            want = x.sum((1, 2, 3), keepdims=True) / 36
            got = run(other.step("adaptive_pool", "avg", out=(1, 1, 1)), view)[0]
            tolerance.assert_exact(got, rounded(want, precision), c)
            scale, shift = oracle.integers(rng, (2, c))
            got = run(other.step("scale_shift", scale, shift, "relu"), view)[0]
            tolerance.assert_exact(got, np.maximum(x * scale + shift, 0), c)
            tolerance.assert_exact(run(other.step("binary", "mul"), view, x)[0], x * x, c)
            tolerance.assert_exact(run(other.step("transpose", (0, 3, 1, 2)), view)[0], x.transpose(0, 1, 4, 2, 3), c)
            got = run(other.step("pad", (0, 1, 2, 0), (0, 0, 1, 0), "reflect"), view)[0]
            tolerance.assert_exact(got, np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1), (0, 0)), "reflect"), c)
            got = run(other.step("resize", out=(1, 12, 12)), view)[0]
            tolerance.assert_exact(got, x.repeat(2, 2).repeat(2, 3), c)


def test_layouts_of_a_caller(cuda: Any, rng: np.random.Generator) -> None:
    """NCHW in and out, channels-last windows of larger images, odd addresses."""
    for c in (1, 3, 4, 33, 64):
        for h, w in ((3, 5), (16, 16), (9, 40)):
            x = oracle.integers(rng, (2, c, h, w))
            plan = _core.Plan(record=True)
            plan.finish([plan.activation(plan.input((1, h, w, c)), "relu")])
            runner = Runner(plan, 0, "float32")
            want = np.maximum(x, 0)
            wide = np.full((2, 1, h + 2, w + 3, c), np.nan, np.float32)
            wide[:, :, 1 : h + 1, 1 : w + 1] = x.transpose(0, 2, 3, 1)[:, None]
            last, first = wide[:, :, 1 : h + 1, 1 : w + 1], x.transpose(0, 2, 3, 1)[:, None]
            for view in (first, last, other.strided(first), x[::-1].copy()[::-1].transpose(0, 2, 3, 1)[:, None]):
                got = back(runner.run([put(view)])[0])
                tolerance.assert_exact(got[:, 0].transpose(0, 3, 1, 2), want, (c, h, w))
                got = back(runner.run([put(view)], channels_first=True)[0])
                tolerance.assert_exact(got[:, :, 0], want, (c, h, w))


# Plans


def small_net() -> Model:
    from convkern import Input
    from convkern.layers import (
        Add,
        BatchNormalization,
        Concatenate,
        Conv2D,
        Dense,
        DepthwiseConv2D,
        GlobalAveragePooling2D,
        MaxPool2D,
        ReLU,
    )

    image = Input((13, 11, 3))
    x = Conv2D(16, 3, padding="same", use_bias=False)(image)
    x = ReLU()(BatchNormalization()(x))
    y = Conv2D(16, 3, padding="same", activation="relu")(x)
    x = ReLU()(Add()([x, y]))
    x = MaxPool2D(3, strides=2)(x)
    x = Concatenate()([Conv2D(8, 1)(x), DepthwiseConv2D(3, padding="same")(x), x])
    x = Dense(10, activation="softmax")(GlobalAveragePooling2D()(x))
    return Model(image, x)


def test_runs_one_after_another_and_as_a_graph_agree(cuda: Any, rng: np.random.Generator) -> None:
    """The first call launches steps, the second captures, the third replays; new values in the same memory are seen."""
    model = small_net()
    x = rng.standard_normal((3, 13, 11, 3)).astype("f4")
    plan_on_cpu, other_x = model(x), np.flip(x, 1).copy()
    flipped = model(other_x)
    model.to("cuda:0")
    runner = model.plan()._plan
    array = device.to_device(x)
    n, inputs, outputs = runner._arguments([array[:, None]], False)
    results = []
    for turn in range(5):
        if turn == 3:
            cuda.copy(0, array.pointer, other_x.ctypes.data, other_x.nbytes, array._stream)
        runner._plan.run(n, inputs, [outputs[0].pointer], False, array._stream)
        results.append(back(outputs[0]).reshape(3, 10))
    for got, want in zip(results, [plan_on_cpu] * 3 + [flipped] * 2):
        tolerance.assert_within(got, want, tolerance.network_bound(want), "graph")
    assert all((r == results[0]).all() for r in results[:3]) and (results[3] == results[4]).all()


def test_many_arrays_in_turn(cuda: Any, rng: np.random.Generator) -> None:
    """More pointers than a plan remembers: every result is right, whether launched, captured or replayed."""
    model = small_net()
    xs = rng.standard_normal((40, 1, 13, 11, 3)).astype("f4")
    wants = [model(x) for x in xs]
    model.to("cuda:0")
    arrays = [device.to_device(x) for x in xs]
    kept = []
    for _ in range(3):
        for x, want in zip(arrays, wants):
            kept.append(model(x))
            tolerance.assert_within(back(kept[-1]), want, tolerance.network_bound(want), "pointers")
        kept = kept[-30:]


def test_any_batch(cuda: Any, rng: np.random.Generator) -> None:
    model = small_net()
    x = rng.standard_normal((7, 13, 11, 3)).astype("f4")
    want = model(x)
    model.to("cuda:0")
    for n in (0, 1, 2, 7):
        got = back(model(device.to_device(x[:n])))
        tolerance.assert_within(got, want[:n], tolerance.network_bound(want[:n]) if n else 0, n)
    got = back(model.predict(device.to_device(x), batch_size=3))
    tolerance.assert_within(got, want, tolerance.network_bound(want), "predict")


def test_one_image_that_stands_for_many(cuda: Any, rng: np.random.Generator) -> None:
    """An array expanded along the batch has a stride of 0 there, and is copied before kernels read it."""
    model = small_net()
    x = rng.standard_normal((1, 13, 11, 3)).astype("f4")
    want = np.repeat(model(x), 3, 0)
    model.to("cuda:0")
    runner = model.plan()._plan
    array = device.to_device(x).repeated(3)[:, None]
    got = back(runner.run([array])[0]).reshape(want.shape)
    tolerance.assert_within(got, want, tolerance.network_bound(want), "expanded")
    (pointer, image, *_) = runner._arguments([array], False)[1][0]
    assert pointer == array.pointer and image == 0


def test_weights_changed_after_a_call_are_packed_again(cuda: Any, rng: np.random.Generator) -> None:
    model = small_net()
    x = rng.standard_normal((1, 13, 11, 3)).astype("f4")
    model.to("cuda:0")
    before = back(model(device.to_device(x)))
    model.set_weights([w * 0.5 for w in model.get_weights()])
    after = back(model(device.to_device(x)))
    assert (before != after).any()
    want = model.to("cpu")(x)
    tolerance.assert_within(after, want, tolerance.network_bound(want), "changed")


def test_channels_first_images(cuda: Any, rng: np.random.Generator) -> None:
    model = small_net()
    x = rng.standard_normal((2, 3, 13, 11)).astype("f4")
    want = model(x.transpose(0, 2, 3, 1))
    got = back(model.to("cuda:0")(device.to_device(x).transpose(0, 2, 3, 1)))
    tolerance.assert_within(got, want, tolerance.network_bound(want), "NCHW")


def test_steps_say_what_runs(cuda: Any) -> None:
    steps = small_net().to("cuda:0").plan().steps()
    names = {name for _, name in cuda.kernels()}
    assert steps and all(step["kernel"] in names for step in steps)
    assert {name for step in steps for name, reason in step["refused"]} <= names
    assert any(step["refused"] for step in steps) and all(step["why"] for step in steps)


def test_profile_times_every_step(cuda: Any, rng: np.random.Generator) -> None:
    plan = small_net().to("cuda:0").plan()
    seconds = plan.profile([device.to_device(rng.standard_normal((2, 13, 11, 3)).astype("f4"))], repeat=2)
    assert len(seconds) == len(plan.steps()) and all(0 <= s < 10 for s in seconds)


def check_network(name: str, size: int, precision: str, n: int = 2) -> None:
    """Against float64 on the CPU's reference kernels, relative to the largest logit."""
    from convkern.compiler import compile

    model = get_model(name, input_shape=(size, size, 3))
    x = np.random.default_rng(3).standard_normal((n, size, size, 3)).astype("f4")
    (want,) = compile(model.graph(), dtype="float64").run([x.astype("f8")])
    scale = np.abs(want).max()
    ours = np.abs(model(x) - want).max() / scale
    dtype = device.PRECISIONS[precision][1]
    model.to("cuda:0", precision)
    got = back(model(put(x, dtype)))
    error = np.abs(got - want).max() / scale
    assert np.isfinite(got).all()
    # float32: a few times what the CPU's kernels err by; other precisions: their unit roundoff, grown by the depth.
    limit = {
        "float32": max(8 * ours, 2e-6),
        "tf32": 0.05,
        "fp32x3": max(32 * ours, 1e-5),
        "float16": 0.05,
        "bfloat16": 0.25,
    }
    assert error <= limit[precision], f"{name} in {precision}: {error:.2e}, on the CPU in float32 {ours:.2e}"


# Functions


def op_cases(rng: np.random.Generator) -> dict[str, tuple[Any, list[np.ndarray], dict[str, Any]]]:
    """Functions of convkern.ops with arguments of small whole numbers, in NCHW."""

    def draw(*shape: int) -> np.ndarray:
        return oracle.integers(rng, shape, 2)

    image = draw(2, 8, 6, 7)
    cases: dict[str, tuple[Any, list[np.ndarray], dict[str, Any]]] = {
        "conv1d": (ops.conv1d, [draw(2, 4, 9), draw(6, 4, 3), draw(6)], {}),
        "conv2d": (ops.conv2d, [image, draw(12, 8, 3, 3), draw(12)], dict(stride=2, padding=1)),
        "conv2d grouped": (ops.conv2d, [image, draw(8, 2, 3, 3)], dict(groups=4, dilation=2)),
        "conv2d depthwise": (ops.conv2d, [image, draw(8, 1, 3, 3)], dict(groups=8, padding="same")),
        "conv3d": (ops.conv3d, [draw(1, 3, 4, 5, 6), draw(5, 3, 2, 2, 2)], {}),
        "conv_transpose2d": (ops.conv_transpose2d, [image, draw(8, 5, 3, 3), draw(5)], dict(stride=2, padding=1)),
        "conv_transpose3d": (
            ops.conv_transpose3d,
            [draw(1, 4, 2, 3, 3), draw(4, 3, 2, 2, 2)],
            dict(groups=2, stride=2),
        ),
        "linear": (ops.linear, [draw(3, 5, 20), draw(7, 20), draw(7)], {}),
        "relu": (ops.relu, [image], {}),
        "relu of a transpose": (ops.relu, [image.transpose(0, 3, 1, 2)], {}),
        "add": (ops.add, [image, image], {}),
        "add a vector": (ops.add, [image, draw(8, 1, 1)], {}),
        "mul by a number": (ops.mul, [image, 3], {}),
        "maximum of five axes": (ops.maximum, [draw(2, 3, 1, 2, 4), draw(2, 1, 5, 2, 1)], {}),
        "max_pool2d": (ops.max_pool2d, [image, 2], dict(stride=2)),
        "avg_pool2d": (ops.avg_pool2d, [image, 2], {}),
        "avg_pool2d, negative divisor": (ops.avg_pool2d, [image, 2], dict(divisor_override=-4)),
        "adaptive_max_pool2d": (ops.adaptive_max_pool2d, [image, 3], {}),
        "adaptive_avg_pool2d": (ops.adaptive_avg_pool2d, [draw(2, 8, 4, 8), 2], {}),
        "batch_norm": (ops.batch_norm, [image, draw(8), np.ones(8, "f4"), draw(8), draw(8)], dict(eps=0.0)),
        "cat": (ops.cat, [[image, draw(2, 3, 6, 7)]], dict(dim=1)),
        "cat along the last axis": (ops.cat, [[image, image]], dict(dim=-1)),
        "flatten": (ops.flatten, [image, 1], {}),
        "pad": (ops.pad, [image, (1, 2, 0, 1)], dict(mode="replicate")),
        "interpolate": (ops.interpolate, [image], dict(scale_factor=2)),
        "dropout": (ops.dropout, [image], dict(training=False)),
        "nothing": (ops.relu, [image[:0]], {}),
        "channels last": (ops.conv2d, [image.transpose(0, 2, 3, 1), draw(4, 8, 1, 1)], dict(layout="NHWC")),
        "channels-last memory": (
            ops.conv2d,
            [np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), draw(4, 8, 1, 1)],
            {},
        ),
    }
    return cases


def test_functions_on_device_arrays(cuda: Any, rng: np.random.Generator) -> None:
    for name, (function, arguments, options) in op_cases(rng).items():
        want = function(*arguments, **options)
        for dtype in ("float32", "bfloat16"):

            def moved(a: Any, dtype: str = dtype) -> Any:
                if isinstance(a, list):
                    return [moved(v) for v in a]
                return put(a, dtype) if isinstance(a, np.ndarray) else a

            got = function(*map(moved, arguments), **options)
            assert isinstance(got, DeviceArray) and got.dtype == dtype and got.device == "cuda:0", name
            tolerance.assert_exact(back(got), rounded(want, dtype), (name, dtype))
            assert np.argsort(got.strides).tolist() == np.argsort(want.strides).tolist() or not want.size, name
        placed = function(*arguments, **options, device="cuda:0")
        tolerance.assert_exact(back(placed), want, name)
    values, indices = ops.max_pool2d(put(np.arange(64, dtype="f4").reshape(1, 1, 8, 8)), 2, return_indices=True)
    assert indices.dtype == "int64" and (back(values).astype(int) == back(indices)).all()


def test_functions_that_round(cuda: Any, rng: np.random.Generator) -> None:
    x = oracle.reals(rng, (3, 8, 5, 4))
    for name, got, want, bound in (
        ("softmax", ops.softmax(put(x), 1), ops.softmax(x, 1), 2 * tolerance.softmax_bound(x, 1)),
        (
            "log_softmax",
            ops.log_softmax(put(x), -1),
            ops.log_softmax(x, -1),
            2 * tolerance.softmax_bound(x, -1, log=True),
        ),
        (
            "layer_norm",
            ops.layer_norm(put(x), (5, 4)),
            ops.layer_norm(x, (5, 4)),
            2 * tolerance.layer_norm_bound(x, None, None, 1e-5, (-2, -1)),
        ),
        ("silu", ops.silu(put(x)), ops.silu(x), 2 * tolerance.activation_bound("silu", x)),
    ):
        tolerance.assert_within(back(got), want, bound, name)


def test_functions_do_not_mix_devices(cuda: Any) -> None:
    x, w = np.zeros((1, 3, 4, 4), "f4"), np.zeros((2, 3, 1, 1), "f4")
    with pytest.raises(Unsupported, match="weight is on the CPU, the input on a CUDA device"):
        ops.conv2d(put(x), w)
    with pytest.raises(Unsupported, match="weight is on cuda:0, the input on the CPU"):
        ops.conv2d(x, put(w))
    with pytest.raises(DTypeError, match="weight: got elements of float16, want float32"):
        ops.conv2d(put(x), put(w, "float16"))
    with pytest.raises(DTypeError, match="int64"):
        ops.relu(device.to_device(np.zeros(3, np.int64)))
    with pytest.raises(Unsupported, match="device='gpu'"):
        ops.relu(x, device="gpu")


# Arrays of other libraries


def test_arrays_come_and_go_through_dlpack(cuda: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 5)).astype("f4")
    array = device.to_device(x)
    seen = torch.from_dlpack(array)
    assert seen.data_ptr() == array.pointer and tuple(seen.shape) == array.shape
    assert (seen.cpu().numpy() == x).all()
    turned = torch.from_dlpack(array.transpose(2, 0, 1)[1:, None])
    assert (turned.cpu().numpy() == x.transpose(2, 0, 1)[1:, None]).all()
    half = torch.from_dlpack(array.astype("bfloat16"))
    assert half.dtype is torch.bfloat16 and (half.cpu() == torch.from_numpy(x).bfloat16()).all()
    pointer, shape, strides, dtype, _, number, owner = _core.dlpack_import(seen.permute(1, 0, 2).__dlpack__())
    assert (pointer, shape, dtype, number) == (array.pointer, (3, 2, 5), "float32", 0) and strides == (5, 15, 1)
    del array, seen, owner


def test_views_and_copies_of_arrays(cuda: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 5)).astype("f4")
    a = device.to_device(x)
    same = {
        "slice": (a[1:3], x[1:3]),
        "step": (a[::2, :, 1::3], x[::2, :, 1::3]),
        "integer": (a[2, -1], x[2, -1]),
        "ellipsis": (a[..., None, 2], x[..., None, 2]),
        "transpose": (a.transpose(1, 2, 0), x.transpose(1, 2, 0)),
        "reshape": (a.reshape(2, -1), x.reshape(2, -1)),
        "reshape of a view": (a.transpose(2, 1, 0).reshape(15, 4), x.transpose(2, 1, 0).reshape(15, 4)),
        "nothing": (a[:0], x[:0]),
        "half": (a.astype("float16"), x.astype("f2")),
    }
    for what, (got, want) in same.items():
        tolerance.assert_exact(got.numpy(), want, what)
        assert got.shape == want.shape and got.nbytes == want.nbytes and len(got) == len(want)
    assert a.contiguous() is a and not a.transpose(2, 1, 0).flags.c_contiguous
    integers = rng.integers(-(2**40), 2**40, (3, 7))
    tolerance.assert_exact(device.to_device(integers).transpose(1, 0).numpy(), integers.T, "int64")


def test_errors_say_what_came(cuda: Any) -> None:
    model = small_net().to("cuda:0")
    x = np.zeros((1, 13, 11, 3), "f4")
    with pytest.raises(Unsupported, match=r"input 0 is on the CPU, the rest on cuda:0.*to_device"):
        model(x)
    with pytest.raises(DTypeError, match=r"float16.*want float32"):
        model(device.to_device(x).astype("float16"))
    with pytest.raises(ShapeError, match=r"\(1, 12, 11, 3\)"):
        model(device.to_device(x)[:, 1:])
    with pytest.raises(DTypeError, match="want float32"):
        device.to_device(np.zeros(3, "f8"))
    with pytest.raises(DTypeError, match="bfloat16"):
        device.to_device(x).astype("bfloat16").numpy()
    with pytest.raises(Unsupported, match=r"cuda:0.*numpy\(\)"):
        np.asarray(device.to_device(x))
    with pytest.raises(Unsupported, match=r"no CUDA kernel is called 'nothing'"):
        conv_runner(LARGER[0], np.zeros(LARGER[0].w_shape, "f4"), None, "nothing", "float32").run(
            [device.to_device(np.zeros((1, *LARGER[0].x_shape), "f4"))]
        )
    with pytest.raises(Unsupported, match=r"conv_depthwise: not depthwise"):
        conv_runner(LARGER[0], np.zeros(LARGER[0].w_shape, "f4"), None, "conv_depthwise", "float32").steps()
    with pytest.raises(Unsupported, match="precision='float8'"):
        model.to("cuda:0", "float8")
    model.to("cpu")
    with pytest.raises(Unsupported, match=r"on cuda:0.*the model on the CPU"):
        model(device.to_device(x))
