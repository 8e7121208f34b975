"""The convolution kernels: every row of kernels.def on every ISA, forced by name, against the float64 oracle.

A row that accepts a plan with exact=True must give, on small integers, the oracle's values to the bit. The others
(Winograd) must stay within the bound derived in tolerance.py. A new row is tested by being listed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import multiprocessing
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import oracle
import tolerance
from convkern import _core
from convkern.bench import shapefile
from convkern.errors import DTypeError, ShapeError, Unsupported
from oracle import ONE, Conv

Row = tuple[str, str]  # kernel, ISA
# A reference is compiled once: it is the same on every ISA. conv_dense is for training plans (test_conv_backward.py),
# rows in bfloat16 have their own tests (test_bf16.py).
ROWS: list[Row] = [
    (k["name"], k["isa"])
    for k in _core.kernels()
    if k["family"] == "conv"
    and not k["bf16"]
    and not k["name"].startswith("conv_dense")
    and (not k["name"].endswith("_ref") or k["isa"] == _core.isas()[0])
]
ACTIVATIONS = dict.fromkeys(tolerance.ACTIVATIONS, (0.0, 0.0)) | {
    "clamp": (-2.0, 3.0),
    "elu": (0.75, 0.0),
    "leaky_relu": (0.125, 0.0),
    "softplus": (0.5, 6.0),
}
EXACT_ACTIVATIONS = ("none", "relu", "relu6", "clamp", "leaky_relu")


@pytest.fixture(autouse=True)
def one_thread(threads: int) -> None:
    """Tests that mean more threads say so."""
    _core.set_num_threads(1)


@pytest.fixture(params=ROWS, ids="-".join)
def row(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a kernel, its ISA in use."""
    with using(request.param[1]):
        yield request.param[0]


@contextlib.contextmanager
def using(isa: str) -> Iterator[None]:
    before = _core.isa()
    _core.set_isa(isa)
    try:
        yield
    finally:
        _core.set_isa(before)


# Plans of one convolution


def make(
    problem: Conv,
    w: np.ndarray | _core.Parameter,
    bias: np.ndarray | None = None,
    algo: str = "",
    *,
    residual: bool = False,
    act: str = "none",
    **options: Any,
) -> _core.Plan:
    """A plan of one convolution; its inputs are x and, if asked for, the residual. Unsupported if the row refuses."""
    plan = _core.Plan(**options)
    x = plan.input(problem.x_shape)
    added = plan.input(problem.y_shape) if residual else -1
    weight = w if isinstance(w, _core.Parameter) else _core.Parameter(w)
    a, b = ACTIVATIONS[act]
    y = plan.conv(x, weight, bias, added, algo=algo, act=act, act_a=a, act_b=b, **problem.geometry)
    plan.finish([y])
    return plan


def accepted(algo: str, problem: Conv, *args: Any, **options: Any) -> tuple[_core.Plan, bool] | None:
    """A plan with this row and whether it promises exact sums; None if it refuses the problem."""
    for exact in (True, False):
        try:
            return make(problem, *args, algo=algo, exact=exact, **options), exact
        except Unsupported:
            pass
    return None


def one(algo: str, problem: Conv, *args: Any, **options: Any) -> tuple[_core.Plan, bool]:
    """The same for a row that is known to accept."""
    plan_exact = accepted(algo, problem, *args, **options)
    assert plan_exact, f"{algo} refuses {problem}"
    return plan_exact


def check(
    algo: str, got: np.ndarray, data: oracle.ConvData, problem: Conv, exact: bool, act: str = "none", what: Any = ""
) -> None:
    """Bits for exact rows and piecewise linear activations, else the bound of what was done in float32."""
    want = tolerance.activation(act, data.want, *ACTIVATIONS[act])
    assert got.dtype == np.float32
    if exact and act in EXACT_ACTIVATIONS:
        return tolerance.assert_exact(got, want, what)
    off = 0.0 if exact else winograd_bound(algo, problem, data)
    tolerance.assert_within(got, want, tolerance.activation_bound(act, data.want, off, *ACTIVATIONS[act]), what)


def winograd_bound(algo: str, problem: Conv, data: oracle.ConvData) -> np.ndarray:
    pads = dict(pad_lo=problem.pad_lo, pad_hi=problem.pad_hi)
    return tolerance.winograd_bound(algo, data.x, data.w, data.bias, data.residual, **pads)


def seeded(problem: Conv) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(problem).encode()))


@functools.cache
def odd_data(
    problem: Conv, n: int = 2, bias: bool = True, residual: bool = False, exact: bool = True, limit: int = 4
) -> oracle.ConvData:
    """The arrays of a small problem, computed once for all rows. Nobody may write to them."""
    data = oracle.conv_data(problem, seeded(problem), n, bias=bias, residual=residual, exact=exact, limit=limit)
    for a in (data.x, data.w, data.bias, data.residual, data.want):
        if a is not None:
            a.flags.writeable = False
    return data


SMALL = Conv(1, 5, 5, 8, 8, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
ODD = [*oracle.CORNER_CONVS, *oracle.NARROW_CONVS, *oracle.odd_convs(300)]
ODD += [*oracle.odd_convs(60, kinds=("spread",)), *oracle.odd_convs(100, kinds=("cardinal",))]


@functools.cache
def few(algo: str, isa: str) -> list[Conv]:
    """Some odd problems that a row accepts: reading, writing and the epilogue do not need all of them."""
    mixed = [*oracle.CORNER_CONVS[3:], *oracle.NARROW_CONVS[1:], *oracle.odd_convs(175, seed=1)]
    mixed += [*oracle.odd_convs(20, 1, kinds=("spread",)), *oracle.odd_convs(40, 1, kinds=("cardinal",))]
    found = [p for p in mixed if accepted(algo, p, np.zeros(p.w_shape, "f4"))][:20]
    assert len(found) >= 4, f"{algo} accepts hardly anything"
    return found


# Values


def cropped(layer: shapefile.ConvShape) -> Conv:
    """All channels of a layer, but at most 16x16 outputs, and fewer where that takes long."""
    (top, bottom), (left, right) = layer.pad
    stride, dilation = (1, *layer.stride), (1, *layer.dil)
    lo, hi = (0, top, left), (0, bottom, right)
    small = Conv(1, layer.h, layer.w, layer.c, layer.k, 1, layer.r, layer.s, stride, lo, hi, dilation, layer.groups)
    for side in (16, 13, 9, 7, 5):
        need = [(side - 1) * stride[i] + dilation[i] * (small.window[i] - 1) + 1 - lo[i] - hi[i] for i in (1, 2)]
        small = replace(small, h=min(small.h, need[0]), w=min(small.w, need[1]))
        if np.prod(small.y_shape) * small.terms < 8e6:
            break
    return small


@functools.cache
def network_layers() -> dict[str, list[Conv]]:
    """The distinct layers of the shape files, each under the first network that has it."""
    first: dict[Conv, str] = {}
    for network in shapefile.names():
        for layer in shapefile.load(network):
            first.setdefault(cropped(layer), network)
    return {network: [p for p in first if first[p] == network] for network in shapefile.names()}


@pytest.mark.parametrize("network", shapefile.names())
def test_layers_of_networks(network: str) -> None:
    for problem in network_layers()[network]:
        data = oracle.conv_data(problem, seeded(problem), n=1)
        weight = _core.Parameter(data.w)
        ran = 0
        for algo, isa in ROWS:
            if algo == "conv_ref" and data.want.size * problem.terms > 2e6:
                continue  # as slow as it is simple
            with using(isa):
                if (plan_exact := accepted(algo, problem, weight, data.bias, act="relu")) is None:
                    continue
            plan, exact = plan_exact
            check(algo, plan.run([data.x])[0], data, problem, exact, "relu", (algo, isa, str(problem)))
            ran += 1
        assert ran >= len(_core.isas()), f"{problem}: {ran} rows"


def test_odd_problems(row: str) -> None:
    """Tails, asymmetric padding, strides beyond the window, dilation, groups, multipliers, 1-D to 3-D, transposed."""
    ran = 0
    acts = itertools.cycle(("none", "relu", "none", "relu6", "leaky_relu"))
    variants = itertools.product((1, 3, 2), (True, False), (True, False))  # batch, bias, residual
    for problem, act, (n, bias, residual) in zip(ODD, acts, itertools.cycle(variants)):
        data = odd_data(problem, n, bias, residual)
        plan_exact = accepted(row, problem, data.w, data.bias, residual=residual, act=act)
        if plan_exact is None:
            continue
        plan, exact = plan_exact
        inputs = [data.x, data.residual] if residual else [data.x]
        check(row, plan.run(inputs)[0], data, problem, exact, act, (str(problem), n, act, bias, residual))
        ran += 1
    assert ran >= 10, f"{row} was tried on {ran} problems only"


def test_every_count_of_channels(row: str) -> None:
    """C and K from 1 to 70: every tail of every vector and panel."""
    ran = 0
    for c in range(1, 71):
        shapes = [(c, (c * 29) % 70 + 1, 1, 3), ((c * 37) % 70 + 1, c, 1, 3), (c, 71 - c, 1, 5)]
        shapes += [(c // 8 % 4 + 1, c % 8 + 1, 1, 3)]
        shapes += [(c, c * m, c, 3) for m in (1, 2, 3)] + [(c, c, c // m, 3) for m in (2, 4, 8) if c % m == 0]
        pads = dict(pad_lo=(0, 2, 1), pad_hi=(0, 1, 2))
        problems = [Conv(1, 3, 5, c_in, k, 1, r, r, groups=groups, **pads) for c_in, k, groups, r in shapes]
        for k, groups in ((c, c), (c % 4 + 1, 1)):
            problems.append(Conv(1, 3, 4, c, k, 1, 3, 3, (1, 2, 2), groups=groups, transposed=True, **pads))
        for problem in problems:
            data = odd_data(problem, 2)
            if (plan_exact := accepted(row, problem, data.w, data.bias)) is None:
                continue
            plan, exact = plan_exact
            check(row, plan.run([data.x])[0], data, problem, exact, what=str(problem))
            ran += 1
    assert ran >= 24, ran


@pytest.mark.parametrize("window", [3, 5, 7])
def test_depthwise_rows_of_every_length(isa: str, window: int) -> None:
    """Which columns of a step lie outside is known at compile time for some rows and paddings, not for all."""
    ran, half = 0, window // 2
    for stride, w, (lo, hi) in itertools.product((1, 2), range(1, 31), ((half, half), (half - 1, half), (0, half))):
        if w + lo + hi < window:
            continue
        pads = dict(pad_lo=(0, half, lo), pad_hi=(0, half, hi))
        problem = Conv(1, 3, w, 19, 19, 1, window, window, (1, stride, stride), groups=19, **pads)
        residual = bool(w % 2)
        data = odd_data(problem, 1, bool(w % 3), residual)
        plan, exact = one("conv_depthwise", problem, data.w, data.bias, residual=residual, act="relu6")
        inputs = [data.x, data.residual] if residual else [data.x]
        check("conv_depthwise", plan.run(inputs)[0], data, problem, exact, "relu6", str(problem))
        ran += 1
    assert ran > 100


def test_pixels_that_lie_evenly(isa: str, rng: np.random.Generator) -> None:
    """1x1 over maps of every size: exact, and the same bits as through a table of pointers (rows with gaps)."""
    for w in range(5, 36):
        c, k = (w * 7) % 23 + 1, (w * 29) % 100 + 1
        problem = Conv(1, 3, w, c, k, 1, 1, 1)
        data = odd_data(problem, 2, True, True)
        plan, exact = one("conv_direct", problem, data.w, data.bias, residual=True)
        check("conv_direct", plan.run([data.x, data.residual])[0], data, problem, exact, what=str(problem))
        x = rng.standard_normal(data.x.shape, np.float32)
        plan, _ = one("conv_direct", problem, rng.standard_normal(problem.w_shape, np.float32), data.bias, act="silu")
        assert np.array_equal(plan.run([x])[0], plan.run([with_long_rows(x)])[0]), str(problem)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(row: str, act: str) -> None:
    """Each one, with and without bias and residual, on values around its bends."""
    for index, problem in enumerate(few(row, _core.isa())):
        bias, residual = bool(index % 2), bool(index % 3)
        data = odd_data(problem, 1, bias, residual, limit=1)
        plan, exact = one(row, problem, data.w, data.bias, residual=residual, act=act)
        inputs = [data.x, data.residual] if residual else [data.x]
        check(row, plan.run(inputs)[0], data, problem, exact, act, (str(problem), bias, residual))


def test_scale(row: str) -> None:
    """A Parameter's scale is multiplied into the filters when they are packed."""
    for problem in few(row, _core.isa()):
        data = odd_data(problem)
        scale = oracle.integers(seeded(problem), (problem.k,), 2)
        plan, exact = one(row, problem, _core.Parameter(data.w, scale), data.bias)
        scaled = replace(
            data, w=data.w * scale, want=oracle.conv(data.x, data.w * scale, data.bias, **problem.geometry)
        )
        check(row, plan.run([data.x])[0], scaled, problem, exact, what=str(problem))


def test_no_images(row: str) -> None:
    for problem in few(row, _core.isa()):
        data = odd_data(problem)
        assert one(row, problem, data.w)[0].run([data.x[:0]])[0].shape == (0, *problem.y_shape)


def test_float64() -> None:
    """The reference in float64, to the bit on integers and to float64's own rounding on real numbers."""
    for problem in ODD[::4]:
        data = odd_data(problem)
        plan = make(problem, data.w.astype("f8"), data.bias.astype("f8"), dtype="float64")
        assert plan.steps()[0]["kernel"] == "conv_ref64"
        tolerance.assert_exact(plan.run([data.x.astype("f8")])[0], data.want, problem)
        x, w = (oracle.reals(seeded(problem), a.shape, "f8") for a in (data.x, data.w))
        want = oracle.conv(x, w, **problem.geometry)
        bound = tolerance.for_dtype(tolerance.conv_bound(x, w, **problem.geometry), "float64")
        tolerance.assert_within(make(problem, w, dtype="float64").run([x])[0], want, bound, problem)


def test_real_numbers(row: str) -> None:
    """Numbers of many magnitudes: the bound of a sum of products in any order."""
    for problem in few(row, _core.isa()):
        data = odd_data(problem, exact=False)
        plan, exact = one(row, problem, data.w, data.bias)
        bound = conv_bound(problem) if exact else winograd_bound(row, problem, data)
        tolerance.assert_within(plan.run([data.x])[0], data.want, bound, problem)


@functools.cache
def conv_bound(problem: Conv) -> np.ndarray:
    data = odd_data(problem, exact=False)
    return tolerance.conv_bound(data.x, data.w, data.bias, **problem.geometry)


@pytest.mark.parametrize("c", [32, 64, 160, 512])
@pytest.mark.parametrize(
    "winograd, r",
    [
        ("conv_winograd", 3),
        ("conv_winograd2", 3),
        ("conv_winograd5", 5),
        ("conv_winograd_small", 3),
        ("conv_winograd_mixed", 3),
    ],
)
def test_winograd_errs_little_more_than_direct(
    isa: str, winograd: str, r: int, c: int, rng: np.random.Generator
) -> None:
    """Root mean square against float64, both kernels on the same normal numbers."""
    problem = Conv(1, 16, 16, c, 48, 1, r, r, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    x = rng.standard_normal((2, *problem.x_shape)).astype("f4")
    w = rng.standard_normal(problem.w_shape).astype("f4")
    want = oracle.conv(x, w, **problem.geometry)
    error = {}
    for algo in (winograd, "conv_direct"):
        error[algo] = np.sqrt(np.mean((make(problem, w, algo=algo).run([x])[0] - want) ** 2))
    assert 0 < error[winograd] <= tolerance.winograd_rms_ratio(winograd, c) * error["conv_direct"]


def test_not_a_number_and_infinity(row: str) -> None:
    """They reach the outputs whose windows see them, and no others. Winograd's tiles spread them further."""
    for problem in few(row, _core.isa()):
        data = odd_data(problem)
        rng = seeded(problem)
        x = data.x.copy()
        flat = x.reshape(-1)
        for value in (np.nan, np.inf, -np.inf):
            flat[rng.integers(flat.size)] = value
        plan, exact = one(row, problem, data.w, data.bias, act="relu")
        if not exact:
            continue
        with np.errstate(invalid="ignore"):
            want = tolerance.activation("relu", oracle.conv(x, data.w, data.bias, **problem.geometry))
        tolerance.assert_exact(plan.run([x])[0], want, problem)


# Memory


def with_gaps(x: np.ndarray) -> np.ndarray:
    """Rows and pixels apart, NaN between them."""
    n, d, h, w, c = x.shape
    wide = np.full((n, d + 1, h + 2, w + 3, c + 5), np.nan, x.dtype)
    wide[:, :d, :h, :w, 2 : c + 2] = x
    return wide[:, :d, :h, :w, 2 : c + 2]


def with_long_rows(x: np.ndarray) -> np.ndarray:
    """Dense pixels, NaN at the end of each row: an image cropped on the right."""
    wide = np.full((*x.shape[:3], x.shape[3] + 3, x.shape[4]), np.nan, x.dtype)
    wide[..., : x.shape[3], :] = x
    return wide[..., : x.shape[3], :]


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def misaligned(x: np.ndarray) -> np.ndarray:
    """Four bytes past a multiple of 64."""
    memory = np.empty(x.size + 32, x.dtype)
    first = (-memory.ctypes.data // 4) % 16 + 1
    copy = memory[first : first + x.size].reshape(x.shape)
    copy[...] = x
    assert copy.ctypes.data % 64 == 4
    return copy


def channels_first(x: np.ndarray) -> np.ndarray:
    """A view of NCDHW memory."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)).transpose(0, 2, 3, 4, 1)


def mirrored(x: np.ndarray) -> np.ndarray:
    """Negative strides everywhere but along the channels."""
    return x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1]


def every_other(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, axis=-1)[..., ::2]


LAYOUTS = (with_gaps, with_long_rows, read_only, misaligned, channels_first, mirrored, every_other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_inputs_of_any_layout(row: str, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    """Also as a residual. The caller's array is not written to."""
    for index, problem in enumerate(few(row, _core.isa())):
        residual = bool(index % 2)
        data = odd_data(problem, 2, True, residual)
        plan, exact = one(row, problem, data.w, data.bias, residual=residual)
        inputs = [layout(a) for a in (data.x, data.residual) if a is not None]
        check(row, plan.run(inputs)[0], data, problem, exact, what=(str(problem), residual))
        for a, original in zip(inputs, (data.x, data.residual)):
            assert np.array_equal(a, original)


def test_results_as_nchw(row: str) -> None:
    for problem in few(row, _core.isa()):
        data = odd_data(problem)
        plan, exact = one(row, problem, data.w, data.bias)
        got = plan.run([data.x], channels_first=True)[0]
        assert got.flags.c_contiguous
        check(row, np.moveaxis(got, 1, -1), data, problem, exact, what=str(problem))


def test_results_in_place(row: str) -> None:
    """A result written into a slice of a wider tensor leaves the channels on both sides as they were."""
    for index, problem in enumerate(few(row, _core.isa())):
        residual, act = bool(index % 2), ("none", "relu", "silu")[index % 3]
        before, after = ((0, 1), (1, 0), (3, 5), (16, 16))[index % 4]
        data = odd_data(problem, 2, True, residual)
        exact = one(row, problem, data.w)[1]
        plan = _core.Plan()
        x, values = plan.input(problem.x_shape), plan.input((*problem.y_shape[:3], before + problem.k + after))
        added = plan.input(problem.y_shape) if residual else -1
        wide = plan.buffer(plan.shape(values))
        plan.pool(values, "max", target=wide, window=ONE, stride=ONE, out=problem.y_shape[:3])  # a copy
        into = plan.channel_slice(wide, before, problem.k)
        plan.conv(x, _core.Parameter(data.w), data.bias, added, algo=row, act=act, out=into, **problem.geometry)
        plan.finish([wide])
        poison = oracle.reals(seeded(problem), (2, *plan.shape(wide)))
        got = plan.run([data.x, poison, *([data.residual] if residual else [])])[0]
        check(row, got[..., before : before + problem.k], data, problem, exact, act, str(problem))
        for beside in (slice(before), slice(before + problem.k, None)):
            assert np.array_equal(got[..., beside], poison[..., beside]), problem


# The same image, the same bits

SAME_BITS = (
    Conv(1, 1, 1, 600, 600),
    Conv(1, 1, 1, 600, 35, groups=5),
    Conv(1, 1, 1, 96, 80, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 2, 2, 96, 80, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 3, 3, 65, 120, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 3, 2, 40, 170, 1, 3, 3, pad_lo=(0, 2, 0), pad_hi=(0, 0, 2)),
    Conv(1, 5, 7, 33, 49, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 2, 2, 64, 48, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 7, 6, 33, 49, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 14, 14, 40, 70, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 14, 14, 512, 48),  # pixels 2 KB apart
    Conv(1, 29, 29, 3, 40, 1, 7, 7, (1, 2, 2), (0, 3, 3), (0, 3, 3)),
    Conv(1, 12, 11, 30, 50, 1, 3, 5, (1, 2, 1), (0, 1, 3), (0, 0, 1), (1, 2, 1)),
    Conv(1, 30, 30, 70, 70, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=70),
    Conv(1, 3, 3, 300, 300, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2), groups=300),
    Conv(1, 15, 15, 40, 120, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=40),
    Conv(1, 14, 14, 132, 132, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=33),
    Conv(1, 2, 2, 264, 264, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=33),
    Conv(1, 11, 29, 64, 64, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=16),
    Conv(1, 7, 14, 40, 40, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=5),
    Conv(1, 14, 14, 96, 96, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=3),
    Conv(1, 9, 20, 48, 48, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=3),
    Conv(1, 9, 9, 20, 30, 1, 4, 4, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True),
    Conv(4, 6, 5, 9, 40, 3, 3, 3, (1, 1, 2), ONE, ONE),
    Conv(1, 9, 9, 40, 40, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=40, transposed=True),
    Conv(1, 9, 9, 20, 3, 1, 4, 4, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True),
    Conv(1, 19, 150, 3, 7, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
)


def test_same_image_same_bits(row: str) -> None:
    """Whatever the batch and the number of threads. Of a plan with two steps, 13 images take two blocks."""
    ran = 0
    for problem in SAME_BITS:
        rng = seeded(problem)
        x, added = oracle.reals(rng, (13, *problem.x_shape)), oracle.reals(rng, (13, *problem.y_shape))
        w, bias = oracle.reals(rng, problem.w_shape), oracle.reals(rng, (problem.k,))
        weight = _core.Parameter(w)
        want = None
        for steps in (1, 2):
            plan = _core.Plan()
            ids = plan.input(problem.x_shape), plan.input(problem.y_shape)
            try:
                y = plan.conv(ids[0], weight, bias, ids[1], algo=row, act="silu", **problem.geometry)
            except Unsupported:
                break
            plan.finish([plan.activation(y, "none") if steps == 2 else y])
            if want is None:
                want = bits(plan.run([x, added], threads=1)[0])
            for threads, first, last in (
                (1, 0, 1),
                (1, 12, 13),
                (2, 3, 4),
                (1, 5, 13),
                (3, 0, 8),
                (2, 0, 13),
                (3, 0, 13),
            ):
                got = bits(plan.run([x[first:last], added[first:last]], threads=threads)[0])
                assert np.array_equal(got, want[first:last]), (str(problem), steps, threads, first, last)
            ran += 1
    assert ran >= 2 or row == "conv_grouped", ran  # of groups, base vectors hold two channels only


def bits(a: np.ndarray) -> np.ndarray:
    return a.view(np.uint32)


def test_same_bits_from_plan_to_plan(isa: str) -> None:
    """The choice of the kernel and the packing of the weights included, on any number of threads."""
    for problem in SAME_BITS:
        data = odd_data(problem, 2, exact=False)
        results = []
        for threads in (1, 3, 2):
            _core.set_num_threads(threads)
            results.append(bits(make(problem, data.w, data.bias).run([data.x])[0]))
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2]), problem


# The choice

VGG_LAYER = Conv(1, 28, 28, 256, 256, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))


def test_every_refusal_has_a_reason(isa: str) -> None:
    """A row is refused with the same words that forcing it gives; all other rows can be forced."""
    names = {k["name"] for k in _core.kernels() if k["family"] == "conv" and k["isa"] == isa and not k["bf16"]}
    for problem, options in itertools.product(ODD[:50], ({}, dict(exact=True), dict(lean=True))):
        w = np.zeros(problem.w_shape, "f4")
        step = make(problem, w, **options).steps()[0]
        refused = dict(step["refused"])
        assert step["kernel"] in names and step["kernel"] not in refused and step["why"], step
        for name in names:
            if name not in refused:
                forced = make(problem, w, algo=name, **options).steps()[0]
                assert forced["kernel"] == name and forced["why"] == "forced"
                continue
            assert refused[name]
            with pytest.raises(Unsupported) as error:
                make(problem, w, algo=name, **options)
            assert name in str(error.value) and refused[name] in str(error.value)


def test_winograd_only_where_allowed(isa: str) -> None:
    layers = [p for network in network_layers().values() for p in network if p.window in ((1, 3, 3), (1, 5, 5))]
    for problem in [VGG_LAYER, *layers[::3]]:
        weight = _core.Parameter(np.zeros(problem.w_shape, "f4"))
        for option in ("exact", "lean"):
            step = make(problem, weight, **{option: True}).steps()[0]
            # These two enlarge no weights.
            allowed = {"conv_winograd_small", "conv_winograd_mixed"} if option == "lean" else set()
            assert not step["kernel"].startswith("conv_winograd") or step["kernel"] in allowed
            refused = {name: reason for name, reason in step["refused"] if name.startswith("conv_winograd")}
            assert len(refused.keys() - allowed) == 5 - len(allowed)
            assert all(reason.startswith(option) for name, reason in refused.items() if name not in allowed)
    assert make(VGG_LAYER, np.zeros(VGG_LAYER.w_shape, "f4")).steps()[0]["kernel"] == "conv_winograd"


@pytest.mark.parametrize("width", (4, 8, 16, 32))
@pytest.mark.parametrize("stride", (1, 2))
def test_kernels_of_groups(isa: str, width: int, stride: int) -> None:
    """ResNeXt's 3x3 layers, by whether a group fills a vector, and one of four lanes is not worth it."""
    pads = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    problem = Conv(1, 28, 28, 32 * width, 32 * width, 1, 3, 3, (1, stride, stride), groups=32, **pads)
    step = make(problem, np.zeros(problem.w_shape, "f4")).steps()[0]
    lanes = dict(avx512=16, avx2=8, base=4)[isa]
    wide = "conv_direct" if width == lanes == 4 else "conv_grouped_wide"
    assert step["kernel"] == ("conv_grouped" if width < lanes else wide)


def test_lean_weights_are_not_enlarged(isa: str) -> None:
    """Beyond the filters that fill the last vector."""
    problem = replace(VGG_LAYER, d=1, k=64)
    data = np.zeros(problem.w_shape, "f4")
    assert make(problem, data, lean=True).steps()[0]["packed_bytes"] == data.nbytes
    assert make(problem, data).steps()[0]["packed_bytes"] > data.nbytes


def test_lean_reads_large_dense_weights_where_they_lie(isa: str, rng: np.random.Generator) -> None:
    problem = replace(VGG_LAYER, d=1, h=1, w=1, c=1030, k=1027, r=1, s=1, pad_lo=(0, 0, 0), pad_hi=(0, 0, 0))
    data = oracle.conv_data(problem, rng, 5)
    weight = _core.Parameter(data.w)
    plan = make(problem, weight, lean=True, bias=data.bias)
    (step,) = plan.steps()
    assert (step["kernel"], step["packed_bytes"], weight.packed_bytes) == ("conv_dense", 0, 0)
    got = plan.run([data.x], threads=2)[0]
    tolerance.assert_exact(got, data.want)
    tolerance.assert_exact(plan.run([data.x[2:3]], threads=1)[0], got[2:3])
    # A folded scale goes into weights when they are packed.
    scale = np.full(problem.k, 2, np.float32)
    scaled = make(problem, _core.Parameter(data.w, scale), lean=True, bias=data.bias)
    assert scaled.steps()[0]["packed_bytes"] >= data.w.nbytes
    tolerance.assert_exact(scaled.run([data.x])[0], 2 * data.want - data.bias)


def test_unknown_kernel() -> None:
    with pytest.raises(Unsupported, match="conv_magic"):
        make(VGG_LAYER, np.zeros(VGG_LAYER.w_shape, "f4"), algo="conv_magic")
    with pytest.raises(Unsupported, match="swash"):
        _core.Plan().conv(0, _core.Parameter(np.zeros((1, 1, 1, 1, 1), "f4")), act="swash")


# Errors


def convolve(
    x_shape: tuple[int, ...] = (1, 5, 5, 4), w_shape: tuple[int, ...] = (1, 3, 3, 4, 6), **options: Any
) -> Any:
    plan = _core.Plan()
    ids = {"x": plan.input(x_shape), "weight": _core.Parameter(np.zeros(w_shape, "f4"))}
    for name in ("residual", "out"):
        if name in options:
            options[name] = plan.buffer(options[name]) if isinstance(options[name], tuple) else options[name]
    return plan.conv(**(ids | options))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(w_shape=(1, 3, 3, 5, 6)), ["5", "4"]),
        (dict(w_shape=(1, 3, 3, 4, 6), groups=2), ["4", "2"]),
        (dict(w_shape=(1, 3, 3, 1, 6), groups=4), ["groups=4", "6"]),
        (dict(w_shape=(1, 3, 3, 1, 6), groups=3), ["groups=3", "4"]),
        (dict(groups=0), ["groups=0"]),
        (dict(w_shape=(1, 6, 3, 4, 6)), ["6", "5", "height"]),
        (dict(dilation=(1, 1, 3)), ["7", "5", "width"]),
        (dict(stride=(1, 0, 1)), ["stride"]),
        (dict(dilation=(1, 1, -1)), ["dilation"]),
        (dict(w_shape=(1, 0, 3, 4, 6)), ["filter"]),
        (dict(w_shape=(1, 3, 3, 4, 0)), ["filter"]),
        (dict(bias=np.zeros(5, "f4")), ["6"]),
        (dict(bias=np.zeros((6, 1), "f4")), ["bias", "2"]),
        (dict(bias=np.zeros(0, "f4")), ["bias", "no values"]),
        (dict(residual=(1, 3, 3, 5)), ["(1, 3, 3, 5)", "(1, 3, 3, 6)"]),
        (dict(out=(1, 3, 2, 6)), ["(1, 3, 2, 6)", "(1, 3, 3, 6)"]),
        (dict(residual=77), ["77"]),
        (dict(out=77), ["77"]),
        (dict(x=77), ["77"]),
        (dict(transposed=True, pad_lo=(0, 4, 4), pad_hi=(0, 4, 4)), ["height", "-1"]),
        (dict(pad_lo=(0, 2**60, 0), pad_hi=(0, 2**60, 0)), ["overflow"]),
        (dict(stride=(1, 2**62, 1), transposed=True), ["overflow"]),
    ],
    ids=lambda v: "-".join(f"{k}" for k in v) if isinstance(v, dict) else "",
)
def test_shape_errors(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ShapeError) as error:
        convolve(**options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_shape_errors_of_arrays() -> None:
    problem, data = SMALL, odd_data(SMALL)
    plan = make(problem, data.w)
    for bad in (data.x[0], data.x[:, :, 1:], data.x[..., 1:], np.concatenate([data.x, data.x], -1)):
        with pytest.raises(ShapeError, match=r"\(N,\) \+ \(1, 5, 5, 8\)"):
            plan.run([bad])
    for inputs in ([], [data.x, data.x]):
        with pytest.raises(ShapeError, match="wanted 1"):
            plan.run(inputs)
    plan = make(problem, data.w, residual=True)
    with pytest.raises(ShapeError, match="images"):
        plan.run([data.x, np.zeros((3, *problem.y_shape), "f4")])
    for bad in (data.w[0], data.w[..., ::2], data.w.swapaxes(1, 2)[:, :, :, ::-1]):
        with pytest.raises(ShapeError):
            _core.Parameter(bad)
    with pytest.raises(ShapeError, match=f"{problem.k}"):
        _core.Parameter(data.w, np.ones(problem.k + 1, "f4"))
    with pytest.raises(ShapeError, match="-1"):
        plan.run([data.x, np.zeros((2, *problem.y_shape), "f4")], threads=-1)


def test_dtype_errors() -> None:
    problem, data = SMALL, odd_data(SMALL)
    plan = make(problem, data.w)
    for dtype in ("f8", "f2", "i4", "u1", ">f4", "c8"):
        with pytest.raises(DTypeError, match="float32"):
            plan.run([data.x.astype(dtype)])
    with pytest.raises(DTypeError):
        plan.run([data.x.tolist()])
    for dtype in ("f2", "i4", ">f4"):
        with pytest.raises(DTypeError, match="float"):
            _core.Parameter(data.w.astype(dtype))
    for w, bias, dtype in (
        ("f8", "f4", "float32"),
        ("f4", "f8", "float32"),
        ("f4", "f8", "float64"),
        ("f8", "f4", "float64"),
    ):
        with pytest.raises(DTypeError):
            make(problem, data.w.astype(w), data.bias.astype(bias), dtype=dtype)
    with pytest.raises(DTypeError):
        _core.Parameter(data.w, np.ones(problem.k, "f8"))
    with pytest.raises(DTypeError, match="int8"):
        _core.Plan("int8")


# Plans over time


def three_steps(rng: np.random.Generator, size: int = 20) -> tuple[_core.Plan, _core.Parameter]:
    """3x3, depthwise and 1x1 with a residual: three kernels, an arena with reuse."""
    plan = _core.Plan()
    x = plan.input((1, size, size, 32))
    first = _core.Parameter(oracle.integers(rng, (1, 3, 3, 32, 48)))
    pads = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    y = plan.conv(x, first, act="relu", **pads)
    y = plan.conv(y, _core.Parameter(oracle.integers(rng, (1, 3, 3, 1, 48))), groups=48, act="relu6", **pads)
    y = plan.conv(y, _core.Parameter(oracle.integers(rng, (1, 1, 1, 48, 32))), oracle.integers(rng, (32,)), x)
    plan.finish([y])
    return plan, first


def test_concurrent_runs_of_one_plan(rng: np.random.Generator) -> None:
    plan, _ = three_steps(rng)
    batches = [oracle.integers(rng, (n, 1, 20, 20, 32)) for n in (1, 3, 9, 2, 13, 1, 5, 8)]
    want = [plan.run([x], threads=1)[0] for x in batches]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (i, pool.submit(plan.run, [batches[i]], threads=1 + turn % 2))
            for turn in range(6)
            for i in range(len(batches))
        ]
        for i, job in jobs:
            assert np.array_equal(bits(job.result()[0]), bits(want[i])), i


def test_plans_outlive_their_arrays(rng: np.random.Generator) -> None:
    problem, data = SMALL, odd_data(SMALL)
    w, bias = data.w.copy(), data.bias.copy()
    alive = weakref.ref(w)
    weight = _core.Parameter(w)
    plan = make(problem, weight, bias)
    w_again = w[:]
    del w
    gc.collect()
    assert alive() is not None  # the Parameter holds it
    bias.fill(np.nan)  # was copied
    del bias, weight, w_again
    gc.collect()
    garbage = [np.full(data.w.shape, np.nan, "f4") for _ in range(8)]
    x = data.x.copy()
    tolerance.assert_exact(plan.run([x])[0], data.want)
    x.fill(np.nan)
    del x, garbage
    gc.collect()
    assert alive() is None, "packed weights need the original no more"
    tolerance.assert_exact(plan.run([data.x])[0], data.want)


def test_results_never_share_memory(rng: np.random.Generator) -> None:
    """Large results live in recycled memory, and only after the last array that shows it is gone."""
    problem = Conv(1, 32, 32, 4, 24)
    data = oracle.conv_data(problem, rng, 3)
    plan = make(problem, data.w, data.bias)
    inputs = [data.x * sign for sign in (1, -1, 2)]
    want = [oracle.conv(x, data.w, data.bias) for x in inputs]
    assert want[0].size * 4 > 1 << 16
    alive: list[tuple[np.ndarray, np.ndarray]] = []
    for turn in range(60):
        i = turn % 3
        y = plan.run([inputs[i]])[0]
        assert y.flags.writeable and y.flags.c_contiguous
        if turn % 4 == 0:
            alive.append((y, want[i]))
        elif turn % 4 == 1:
            alive.append((y[1, 0, ::2].T, want[i][1, 0, ::2].T))  # a view keeps the memory
        elif len(alive) > 8:
            del alive[int(rng.integers(len(alive)))]
        del y
        for (a, _), (b, _) in itertools.combinations(alive, 2):
            assert not np.shares_memory(a, b)
        for a, a_want in alive:
            tolerance.assert_exact(a, a_want, turn)


def test_results_do_not_share_memory_with_inputs(rng: np.random.Generator) -> None:
    problem = Conv(1, 32, 32, 24, 24)
    data = oracle.conv_data(problem, rng, 3, bias=False)
    plan = make(problem, data.w)
    x = data.x
    for _ in range(4):
        y = plan.run([x])[0]
        assert not np.shares_memory(x, y)
        want = oracle.conv(x, data.w)
        tolerance.assert_exact(y, want)
        x = np.clip(y, -4, 4, out=y)


def test_weights_are_packed_once(isa: str, rng: np.random.Generator) -> None:
    """One packed copy for any number of plans and input sizes that use the same kernel."""
    for problem in (VGG_LAYER, SAME_BITS[12], SAME_BITS[13], SAME_BITS[16], Conv(1, 9, 9, 30, 33)):
        weight = _core.Parameter(np.zeros(problem.w_shape, "f4"))
        assert weight.packed_bytes == 0
        assert weight.shape == problem.w_shape
        algo = make(problem, weight).steps()[0]["kernel"]
        once = weight.packed_bytes
        assert once >= 4 * np.prod(problem.w_shape)
        for size in (12, 17, 40):
            step = make(replace(problem, h=size, w=size + 1), weight, algo=algo).steps()[0]
            assert step["packed_bytes"] == once
        assert weight.packed_bytes == once
        other = make(problem, weight, algo="conv_ref").steps()[0]
        assert weight.packed_bytes == once + other["packed_bytes"]


def _run_in_child(plan: _core.Plan, x: np.ndarray, want: np.ndarray) -> None:
    for threads in (3, 1):
        assert np.array_equal(bits(plan.run([x], threads=threads)[0]), bits(want))
    grandchild, _ = three_steps(np.random.default_rng(0))
    grandchild.run([x], threads=2)


def test_fork_after_a_parallel_run(rng: np.random.Generator) -> None:
    """OpenMP's threads do not exist in the child, which must not wait for them."""
    plan, _ = three_steps(rng)
    x = oracle.integers(rng, (9, 1, 20, 20, 32))
    want = plan.run([x], threads=3)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads: the point here
        child = multiprocessing.get_context("fork").Process(target=_run_in_child, args=(plan, x, want))
        child.start()
    child.join(60)
    stuck = child.is_alive()
    if stuck:
        child.kill()
    assert not stuck and child.exitcode == 0
    assert np.array_equal(bits(plan.run([x], threads=3)[0]), bits(want))


def test_isa_of_a_plan_stays(rng: np.random.Generator) -> None:
    """A plan made before set_isa() runs as it was made."""
    problem = SAME_BITS[9]
    data = odd_data(problem)
    plan = make(problem, data.w, data.bias, "conv_direct")
    for isa in _core.isas():
        with using(isa):
            tolerance.assert_exact(plan.run([data.x])[0], data.want)
            assert _core.isa() == isa
    with pytest.raises(Unsupported, match="sse17"):
        _core.set_isa("sse17")
