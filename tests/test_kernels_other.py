"""Every kernel that is not a convolution: pooling, norms, elementwise operators, copies, resizing.

Each test runs on every instruction set this machine has, and on the reference kernels in float64 (the fixture `row`).
Whole numbers are compared to the bit wherever the result is representable, other numbers within the bounds of
tolerance.py. Every plan runs twice, first on NaNs: an element that a kernel forgets to write shows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
import tolerance
from convkern import _core
from oracle import integers, reals
from tolerance import FUNCTION_ULPS, U, assert_exact, assert_within, for_dtype, sum_bound

TAILS = (*range(1, 41), 63, 64, 65, 127, 129, 300)
ROWS = {family: f"{family}_vector" for family in ("pool", "norm", "map", "move", "resize")}


@pytest.fixture(params=[*_core.isas(), "float64"])
def row(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set in use, or "float64" for the reference kernels; returns the type the plans compute in."""
    before = _core.isa()
    if request.param != "float64":
        _core.set_isa(request.param)
    yield "float64" if request.param == "float64" else "float32"
    _core.set_isa(before)


def run(
    dtype: str, build: Callable[..., Any], *arrays: np.ndarray, threads: int = 1, **options: Any
) -> list[np.ndarray]:
    """Results of the plan that `build(plan, *ids)` describes; it returns one id or several. Arrays of any strides."""
    plan = _core.Plan(dtype=dtype)
    ids = build(plan, *(plan.input(a.shape[1:]) for a in arrays))
    plan.finish([ids] if isinstance(ids, int) else list(ids))
    inputs = [
        a if a.dtype == dtype else (np.copy if a.flags.c_contiguous else strided)(a.astype(dtype)) for a in arrays
    ]
    plan.run([np.full_like(a, np.nan) for a in inputs], threads=threads, **options)
    return plan.run(inputs, threads=threads, **options)


def step(name: str, *args: Any, **options: Any) -> Callable[..., Any]:
    """The plan that is the one step plan.name(*inputs, ...)."""
    return lambda plan, *ids: getattr(plan, name)(*ids, *args, **options)


def strided(a: np.ndarray) -> np.ndarray:
    """The same values as a view into a larger array, full of NaNs around them."""
    big = np.full([n + 3 for n in a.shape], np.nan, a.dtype)
    view = big[tuple(slice(1, 1 + n) for n in a.shape)]
    view[...] = a
    return view


def nchw(a: np.ndarray) -> torch.Tensor:
    """(N,D,H,W,C) as torch's (N,C,D,H,W) in float64."""
    return torch.from_numpy(np.moveaxis(np.asarray(a, np.float64), -1, 1).copy())


def ndhwc(t: torch.Tensor) -> np.ndarray:
    return np.moveaxis(t.numpy(), 1, -1)


def overflowed(dtype: str, want: np.ndarray) -> np.ndarray:
    """Infinite where the type ends."""
    return np.where(np.abs(want) > np.finfo(dtype).max, np.copysign(np.inf, want), want)


def exact_quotients(dtype: str, want: np.ndarray) -> np.ndarray:
    """Float64 quotients of small whole numbers, rounded as a division in float32 rounds them."""
    return want.astype(dtype)


def test_the_rows_are_known() -> None:
    """A new kernel needs a test here; each family has its reference. Gradients are in test_train_steps.py, the rows for
    bfloat16 in test_bf16.py.
    """
    found = {(k["family"], k["name"]) for k in _core.kernels() if k["family"] in ROWS and not k["bf16"]}
    assert found == {(f, name) for f, vector in ROWS.items() for name in (vector, f"{f}_ref")}


@pytest.mark.parametrize("family", ROWS)
def test_the_rows_are_chosen(family: str, isa: str) -> None:
    steps: dict[str, Callable[[Any, int], Any]] = {
        "pool": step("adaptive_pool", "avg", out=(1, 1, 1)),
        "norm": step("softmax"),
        "map": step("activation", "relu"),
        "move": step("transpose", (0, 3, 1, 2)),
        "resize": step("resize", out=(1, 4, 4)),
    }
    for dtype, name in (("float32", ROWS[family]), ("float64", f"{family}_ref")):
        plan = _core.Plan(dtype=dtype)
        steps[family](plan, plan.input((1, 3, 5, 7)))
        assert plan.steps()[0]["kernel"] == name


# Pooling


def pool_step(problem: dict[str, Any], **more: Any) -> Callable[..., Any]:
    return step("pool", **{k: v for k, v in problem.items() if k != "x_shape"}, **more)


def check_pool(row: str, problem: dict[str, Any], x: np.ndarray, exact: bool) -> None:
    options = {k: v for k, v in problem.items() if k != "x_shape"}
    want, index = oracle.pool(x, **options)
    (got,) = run(row, pool_step(problem), x)
    if exact or problem["kind"] == "max":
        assert_exact(got, exact_quotients(row, want), problem)
    else:
        terms = int(np.prod(problem["window"]))
        magnitude = oracle.pool(np.abs(x), **options)[0]
        assert_within(got, want, for_dtype(sum_bound(terms + 1, magnitude), row), problem)
    if problem["kind"] == "max":
        values, indices = run(row, pool_step(problem, indices=True), x)
        assert_exact(values, want.astype(row), problem)
        assert indices.dtype == np.int64
        assert_exact(indices, index, problem)


@pytest.mark.parametrize("exact", [True, False])
def test_odd_pools(row: str, exact: bool, rng: np.random.Generator) -> None:
    for i, problem in enumerate(oracle.odd_pools(60, seed=5)):
        x = (integers if exact else reals)(rng, (2, *problem["x_shape"]))
        check_pool(row, problem, strided(x) if i % 3 == 0 else x, exact)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("window,stride", [(2, 2), (3, 2), (3, 1), (5, 1)])
def test_pooling_of_any_channels(row: str, kind: str, window: int, stride: int, rng: np.random.Generator) -> None:
    pad = window // 2 if stride == 1 else 0
    size = (11 + 2 * pad - window) // stride + 1
    for c in TAILS:
        problem: dict[str, Any] = dict(
            kind=kind, window=(1, window, window), stride=(1, stride, stride), out=(1, size, size)
        )
        problem |= dict(pad_lo=(0, pad, pad), pad_hi=(0, pad, pad))
        x = integers(rng, (1, 1, 11, 11, c))
        want, _ = oracle.pool(x, **problem)
        (got,) = run(row, pool_step(problem), x)
        assert_exact(got, exact_quotients(row, want), (problem, c))


def test_max_pooling_keeps_nan_and_infinity(row: str, rng: np.random.Generator) -> None:
    for problem in oracle.odd_pools(60, seed=6):
        if problem["kind"] == "max":
            x = integers(rng, (2, *problem["x_shape"]))
            for value in (np.nan, np.nan, np.inf, -np.inf, -np.inf):
                x.ravel()[rng.integers(0, x.size, 1 + x.size // 8)] = value
            check_pool(row, problem, x, True)


def test_average_pooling_spreads_nan_no_further_than_its_windows(row: str) -> None:
    x = np.ones((1, 1, 6, 6, 20), "float32")
    x[0, 0, 2, 3, 7] = np.nan
    problem = dict(kind="avg", window=(1, 2, 2), stride=(1, 2, 2), out=(1, 3, 3))
    (got,) = run(row, pool_step(problem), x)
    where = np.argwhere(np.isnan(got))
    assert where.tolist() == [[0, 0, 1, 1, 7]]
    assert (got[~np.isnan(got)] == 1).all()


def adaptive_average(x: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
    """Output i averages the inputs [floor(i*n/m), ceil((i+1)*n/m)); torch's rounds once per dimension."""
    y = np.empty((len(x), *out, x.shape[-1]))
    for at in np.ndindex(*out):
        window = tuple(slice(i * n // m, -((i + 1) * n // -m)) for i, n, m in zip(at, x.shape[1:4], out))
        inside = x[(slice(None), *window)].astype(np.float64).reshape(len(x), -1, x.shape[-1])
        y[(slice(None), *at)] = inside.sum(1) / inside.shape[1]
    return y


ADAPTIVE = [
    ((1, 7, 7), (1, 1, 1)),
    ((1, 7, 5), (1, 3, 4)),
    ((1, 4, 4), (1, 6, 7)),
    ((1, 1, 9), (1, 1, 4)),
    ((3, 5, 7), (2, 2, 3)),
    ((2, 6, 6), (1, 1, 1)),
    ((1, 13, 13), (1, 6, 6)),
]


@pytest.mark.parametrize("size,out", ADAPTIVE)
def test_adaptive_pooling(row: str, size: tuple[int, ...], out: tuple[int, ...], rng: np.random.Generator) -> None:
    for c in (1, 3, 16, 20, 70, 300):
        x = integers(rng, (2, *size, c))
        (got,) = run(row, step("adaptive_pool", "avg", out=out), strided(x))
        assert_exact(got, exact_quotients(row, adaptive_average(x, out)), (size, out, c))
        x.ravel()[rng.integers(0, x.size, 3)] = np.nan
        values, indices = run(row, step("adaptive_pool", "max", out=out, indices=True), x)
        want, index = F.adaptive_max_pool3d(nchw(x), out, return_indices=True)
        assert_exact(values, ndhwc(want).astype(row))
        assert_exact(indices, ndhwc(index))
        (values,) = run(row, step("adaptive_pool", "max", out=out), x)
        assert_exact(values, ndhwc(want).astype(row))


def test_global_average_of_real_numbers(row: str, rng: np.random.Generator) -> None:
    for shape in ((1, 7, 7, 300), (1, 40, 40, 5), (1, 1, 200, 33), (3, 9, 9, 64), (1, 1, 1, 10)):
        x = reals(rng, (2, *shape))
        (got,) = run(row, step("adaptive_pool", "avg", out=(1, 1, 1)), x)
        x64 = x.astype(np.float64)
        mean, magnitude = (a.mean((1, 2, 3), keepdims=True) for a in (x64, np.abs(x64)))
        assert_within(got, mean, for_dtype(sum_bound(np.prod(shape[:3]) + 1, magnitude), row), shape)


def test_pools_write_into_their_channel_slice_alone(row: str, rng: np.random.Generator) -> None:
    for c in (1, 3, 5, 16, 17, 33, 70):
        x = integers(rng, (2, 1, 6, 6, c))

        def build(plan: Any, x: int, c: int = c) -> int:
            buffer = plan.buffer((1, 3, 3, 3 * c))
            slices = [plan.channel_slice(buffer, i * c, c) for i in range(3)]
            plan.pool(x, "max", window=(1, 2, 2), stride=(1, 2, 2), out=(1, 3, 3), target=slices[0])
            plan.adaptive_pool(x, "max", out=(1, 3, 3), target=slices[2])
            plan.pool(x, "avg", window=(1, 2, 2), stride=(1, 2, 2), out=(1, 3, 3), target=slices[1])
            return buffer

        (got,) = run(row, build, x)
        options: dict[str, Any] = dict(window=(1, 2, 2), stride=(1, 2, 2), out=(1, 3, 3))
        largest, mean = (oracle.pool(x, kind, **options)[0] for kind in ("max", "avg"))
        assert_exact(got, np.concatenate([largest, mean, largest], -1).astype(row), c)


# Operators over channels

PIXELS = [(1, 1, 1), (1, 3, 5), (2, 4, 3)]


def test_scale_and_shift(row: str, rng: np.random.Generator) -> None:
    for i, c in enumerate(TAILS):
        x, scale, shift = integers(rng, (2, *PIXELS[i % 3], c)), *integers(rng, (2, c))
        for act, lo, hi in (("none", -np.inf, np.inf), ("relu", 0, np.inf), ("clamp", -3, 2)):
            want = np.clip(x * scale + shift, lo, hi)
            for view in (x, strided(x)):
                (got,) = run(row, step("scale_shift", scale.astype(row), shift.astype(row), act, -3, 2), view)
                assert_exact(got, want.astype(row), (c, act))


@pytest.mark.parametrize("act", tolerance.ACTIVATIONS)
def test_scale_and_shift_with_an_activation(row: str, act: str, rng: np.random.Generator) -> None:
    a, b = {"softplus": (2.0, 5.0), "clamp": (-0.5, 1.5)}.get(act, (0.25, 0.0))
    for c in (1, 3, 20, 64, 70):
        x, scale, shift = reals(rng, (2, 1, 5, 4, c)), *reals(rng, (2, c))
        v = x.astype(np.float64) * scale + shift
        dv = sum_bound(2, np.abs(x.astype(np.float64) * scale) + np.abs(shift))
        (got,) = run(row, step("scale_shift", scale.astype(row), shift.astype(row), act, a, b), x)
        bound = tolerance.activation_bound(act, v, dv, a, b)
        assert_within(got, overflowed(row, tolerance.activation(act, v, a, b)), for_dtype(bound, row), (act, c))


def test_layer_norm(row: str, rng: np.random.Generator) -> None:
    for i, c in enumerate(TAILS):
        x, gamma, beta = reals(rng, (2, *PIXELS[i % 3], c)) + 1, *reals(rng, (2, c))
        for weight, bias in ((gamma, beta), (None, None), (gamma, None)):
            want = F.layer_norm(
                torch.from_numpy(x.astype(np.float64)),
                (c,),
                *(None if p is None else torch.from_numpy(p.astype(np.float64)) for p in (weight, bias)),
                eps=1e-2,
            )
            parameters = [None if p is None else p.astype(row) for p in (weight, bias)]
            (got,) = run(row, step("layer_norm", *parameters, 1e-2), strided(x) if i % 2 else x)
            bound = tolerance.layer_norm_bound(x, weight, bias, 1e-2)
            assert_within(got, want.numpy(), for_dtype(bound, row), c)


LRN = [
    (5, 1e-4, 0.75, 2.0),
    (3, 0.5, 0.5, 1.0),
    (1, 1.0, 1.0, 0.5),
    (8, 2.0, 0.75, 1.0),
    (4, -1e-3, 0.75, 1.0),  # the vectorised kernel refuses: the power of a possibly negative number
]


@pytest.mark.parametrize("size,alpha,beta,k", LRN)
def test_local_response_norm(
    row: str, size: int, alpha: float, beta: float, k: float, rng: np.random.Generator
) -> None:
    for c in (1, 2, 4, 7, 15, 16, 17, 33, 96, 100):
        x = np.clip(reals(rng, (2, 1, 4, 3, c)), -20, 20)
        want = ndhwc(F.local_response_norm(nchw(x), size, alpha, beta, k))
        (got,) = run(row, step("lrn", size, alpha, beta, k), x)
        assert_within(got, want, for_dtype(tolerance.lrn_bound(x, want, size, beta, k), row), c)


@pytest.mark.parametrize("log", [False, True])
def test_softmax(row: str, log: bool, rng: np.random.Generator) -> None:
    for i, c in enumerate((*TAILS, 1000)):
        x = reals(rng, (2, *PIXELS[i % 3], c)) * 3
        t = torch.from_numpy(x.astype(np.float64))
        want = (F.log_softmax(t, -1) if log else F.softmax(t, -1)).numpy()
        (got,) = run(row, step("softmax", log=log), strided(x) if i % 2 else x)
        assert_within(got, want, for_dtype(tolerance.softmax_bound(x, log=log), row), c)


def test_softmax_of_extremes(row: str) -> None:
    x = np.zeros((1, 1, 1, 5, 20), "float32")
    x[..., 0, :] = -np.inf  # no winner
    x[..., 1, ::2] = -np.inf  # masked channels
    x[..., 2, 3] = np.inf
    x[..., 3, 19] = np.nan
    x[..., 4, :] = np.linspace(-3e38, 3e38, 20)
    for log in (False, True):
        t = torch.from_numpy(x.astype(row))
        want = (F.log_softmax(t, -1) if log else F.softmax(t, -1)).numpy()
        (got,) = run(row, step("softmax", log=log), x)
        finite = np.isfinite(want)
        assert_exact(np.where(finite, 0, got), np.where(finite, 0, want))
        np.testing.assert_allclose(got[finite], want[finite], rtol=FUNCTION_ULPS * U)


# Elementwise operators


@pytest.mark.parametrize("act", tolerance.ACTIVATIONS)
def test_activations(row: str, act: str) -> None:
    a, b = {"softplus": (2.0, 5.0), "clamp": (-0.5, 1.5)}.get(act, (0.25, 0.0))
    v = np.concatenate([np.linspace(-30, 30, 1500), np.linspace(-104, 89, 2000)])
    v = (
        np.concatenate(
            [v, np.geomspace(1e-30, 1e30, 300), -np.geomspace(1e-30, 1e30, 300), [0.0, -0.0, np.inf, -np.inf, np.nan]]
        )
        .astype("float32")
        .reshape(1, 1, 1, -1, 1)
    )
    with np.errstate(all="ignore"):
        want, bound = tolerance.activation(act, v, a, b), tolerance.activation_bound(act, v, 0.0, a, b)
    (got,) = run(row, step("activation", act, a, b), v)
    bound = np.nan_to_num(bound, nan=FUNCTION_ULPS * U)  # 0 * inf in the bound of a finite value
    assert_within(got, overflowed(row, want), for_dtype(bound, row), act)


def test_activations_of_any_shape(row: str, rng: np.random.Generator) -> None:
    for i, c in enumerate(TAILS):
        x = integers(rng, (2, *PIXELS[i % 3], c))
        (got,) = run(row, step("activation", "relu6"), strided(x) if i % 2 else x)
        assert_exact(got, np.clip(x, 0, 6), c)


BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}
BROADCAST = [
    ((2, 3, 5), (2, 3, 5)),
    ((1, 3, 5), (1, 1, 1)),
    ((1, 1, 1), (1, 3, 5)),
    ((1, 3, 1), (1, 1, 5)),
    ((2, 3, 5), (1, 3, 5)),
    ((1, 3, 5), (2, 1, 5)),
    ((2, 1, 1), (1, 4, 3)),
]


@pytest.mark.parametrize("op", BINARY)
def test_binary_operators_broadcast(row: str, op: str, rng: np.random.Generator) -> None:
    channel_pairs = [(1, 1), (3, 3), (3, 1), (1, 20), (64, 64), (70, 70), (70, 1), (1, 70)]
    for i, (sizes, channels) in enumerate(itertools.product(BROADCAST, channel_pairs)):
        a, b = (integers(rng, (2, *size, c)) for size, c in zip(sizes, channels))
        if op == "div":
            b[b == 0] = 3
        want = BINARY[op](a.astype(row), b.astype(row))
        views = (strided(a) if i % 3 == 1 else a, strided(b) if i % 3 == 2 else b)
        (got,) = run(row, step("binary", op), *views)
        assert_exact(got, want, (op, sizes, channels))
        (got,) = run(row, step("binary", op, "relu"), *views)
        assert_exact(got, np.maximum(want, 0), (op, sizes, channels))


@pytest.mark.parametrize("op", BINARY)
def test_binary_operators_on_nan_and_infinity(row: str, op: str) -> None:
    special = np.array([1, -1, 0, np.inf, -np.inf, np.nan], "float32")
    a, b = (m.reshape(1, 1, 1, 1, -1).copy() for m in np.meshgrid(special, special))
    with np.errstate(all="ignore"):
        want = BINARY[op](a, b)
    (got,) = run(row, step("binary", op), a, b)
    assert_exact(got, want, op)
    (got,) = run(row, step("binary", op, "relu"), a, b)
    assert_exact(got, np.where(np.isnan(want), np.nan, np.maximum(want, 0)), op)


def test_binary_operator_with_an_activation(row: str, rng: np.random.Generator) -> None:
    a, b = reals(rng, (2, 2, 1, 5, 4, 37))
    b = b[:, :, :1, :1]
    v = a.astype(np.float64) * b
    (got,) = run(row, step("binary", "mul", "silu"), a, b)
    bound = tolerance.activation_bound("silu", v, sum_bound(1, np.abs(v)))
    assert_within(got, tolerance.activation("silu", v), for_dtype(bound, row))


# Copies


@pytest.mark.parametrize("perm", list(itertools.permutations(range(4))))
def test_transposes(row: str, perm: tuple[int, ...], rng: np.random.Generator) -> None:
    for shape in ((1, 5, 7, 3), (2, 3, 5, 7), (1, 9, 11, 40), (3, 17, 4, 2), (1, 20, 33, 64), (4, 1, 1, 130)):
        x = reals(rng, (2, *shape))
        want = x.transpose(0, *(1 + i for i in perm)).astype(row)
        for view in (x, strided(x)):
            assert_exact(run(row, step("transpose", perm), view)[0], want, shape)


NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_pads_and_crops(row: str, mode: str, rng: np.random.Generator) -> None:
    for turn in range(80):
        shape = tuple(int(n) for n in (*rng.integers(1, 7, 3), rng.choice([1, 2, 3, 5, 16, 17, 40, 70])))
        reach = [n - 1 if mode == "reflect" else n if mode == "circular" else 4 for n in shape]
        lo, hi = (tuple(int(rng.integers(0, min(r, 4) + 1)) * int(rng.integers(2)) for r in reach) for _ in range(2))
        x = reals(rng, (2, *shape))
        options: dict[str, Any] = dict(constant_values=1.5) if mode == "constant" else {}
        want = np.pad(x, ((0, 0), *zip(lo, hi)), NUMPY_MODES[mode], **options)
        if turn % 4 == 0:  # crop one side of one dimension
            i = int(rng.integers(4))
            if shape[i] > 1:
                lo = tuple(-1 if j == i else n for j, n in enumerate(lo))
                inside = np.take(x, range(1, shape[i]), i + 1)
                if mode == "constant":
                    want = np.pad(inside, ((0, 0), *((max(l, 0), h) for l, h in zip(lo, hi))), "constant", **options)
                else:
                    want = np.take(want, range(1 + (want.shape[i + 1] - shape[i] - hi[i]), want.shape[i + 1]), i + 1)
        view = strided(x) if turn % 3 == 1 else x[:, :, ::-1].copy()[:, :, ::-1] if turn % 3 == 2 else x
        (got,) = run(row, step("pad", lo, hi, mode, 1.5), view)
        assert_exact(got, want.astype(row), (shape, lo, hi, mode))


@pytest.mark.parametrize("axis", range(4))
def test_concatenation(row: str, axis: int, rng: np.random.Generator) -> None:
    for shape in ((1, 4, 5, 3), (2, 3, 4, 17), (1, 6, 7, 64)):
        parts = [reals(rng, (2, *(n + i if j == axis else n for j, n in enumerate(shape)))) for i in range(3)]
        (got,) = run(row, lambda plan, *ids: plan.concat(list(ids), axis), *parts)
        assert_exact(got, np.concatenate(parts, axis + 1).astype(row), shape)


@pytest.mark.parametrize("c", [1, 2, 3, 4, 5, 7, 15, 16, 17, 33, 64, 100])
def test_channels_first_in_and_out(row: str, c: int, rng: np.random.Generator) -> None:
    for size in ((1, 1, 1), (1, 5, 7), (2, 4, 4), (1, 33, 17), (1, 64, 64)):
        x = reals(rng, (2, c, *size), row)
        views = [x, x[:, :, :, ::-1], strided(x), x[:, ::-1]]
        for view in views:
            last = np.moveaxis(view, 1, -1)
            for first in (False, True):
                (got,) = run(row, step("activation", "none"), last, channels_first=first)
                assert_exact(got, view if first else last, (c, size))


# Resizing

RESIZE = [
    ((1, 5, 7), (1, 10, 14)),
    ((1, 8, 8), (1, 5, 3)),
    ((1, 6, 4), (1, 13, 4)),
    ((1, 1, 9), (1, 1, 20)),
    ((3, 4, 5), (5, 7, 3)),
    ((1, 1, 1), (1, 4, 6)),
    ((1, 9, 5), (1, 1, 1)),
    ((1, 32, 32), (1, 45, 45)),
]
TORCH_MODES = {1: {"linear": "linear"}, 2: {"linear": "bilinear", "cubic": "bicubic"}, 3: {"linear": "trilinear"}}


def torch_resize(x: np.ndarray, rank: int, out: tuple[int, ...], mode: str, **options: Any) -> np.ndarray:
    """torch.nn.functional.interpolate in float64 over the last `rank` dimensions of (N,D,H,W,C)."""
    t = nchw(x)
    t = t.reshape(*t.shape[:2], *t.shape[5 - rank :])
    y = F.interpolate(t, size=out[3 - rank :], mode=mode, **options)
    return ndhwc(y.reshape(*y.shape[:2], *out))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_resize_to_the_nearest_pixel(row: str, mode: str, rng: np.random.Generator) -> None:
    for size, out in RESIZE:
        for c in (1, 3, 16, 21, 70):
            x = reals(rng, (2, *size, c))
            want = torch_resize(x, 3, out, mode)
            for view in (x, strided(x)):
                (got,) = run(row, step("resize", out=out, mode=mode), view)
                assert_exact(got, want.astype(row), (size, out, c))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_pixels_are_those_of_torch_for_any_ratio(row: str, mode: str) -> None:
    for n, m in itertools.product((*range(1, 24), 100, 224), (*range(1, 40), 82, 299)):
        x = np.arange(n, dtype=row).reshape(1, 1, n, 1, 1)
        want = F.interpolate(torch.arange(n, dtype=torch.float32).reshape(1, 1, n, 1), size=(m, 1), mode=mode)
        (got,) = run(row, step("resize", out=(1, m, 1), mode=mode), x)
        assert_exact(got.ravel(), want.numpy().ravel(), (n, m))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_by_interpolation(row: str, mode: str, align_corners: bool, rng: np.random.Generator) -> None:
    for size, out in RESIZE:
        rank = 3 if size[0] > 1 or out[0] > 1 else 2
        if mode not in TORCH_MODES[rank]:
            continue
        for c in (1, 3, 16, 21, 70):
            x = reals(rng, (2, *size, c))
            want = torch_resize(x, rank, out, TORCH_MODES[rank][mode], align_corners=align_corners)
            bound = for_dtype(tolerance.resize_bound(x, size, {"linear": 2, "cubic": 4}[mode]), row)
            for view in (x, strided(x)):
                (got,) = run(row, step("resize", out=out, mode=mode, align_corners=align_corners), view)
                assert_within(got, want, bound, (size, out, c))


def test_resize_by_a_given_scale(row: str, rng: np.random.Generator) -> None:
    for scale, (mode, torch_mode) in itertools.product(
        (0.4, 1.7, 2.3), (("nearest", "nearest"), *TORCH_MODES[2].items())
    ):
        x = integers(rng, (1, 1, 9, 11, 5))
        t = nchw(x)[:, :, 0].float() if mode == "nearest" else nchw(x)[:, :, 0]
        want = np.moveaxis(F.interpolate(t, scale_factor=scale, mode=torch_mode).numpy(), 1, -1)[:, None]
        out = want.shape[1:4]
        (got,) = run(row, step("resize", out=out, mode=mode, scales=(0, 1 / scale, 1 / scale)), x)
        assert_within(got, want, for_dtype(tolerance.resize_bound(x, (1, 9, 11), 4), row), (scale, mode))


# The promises

STEPS: dict[str, Callable[[Any, int], Any]] = {
    "max pool": step("pool", "max", window=(1, 3, 3), stride=(1, 2, 2), out=(1, 19, 14)),
    "average pool": lambda plan, x: plan.pool(
        x, "avg", window=(1, 5, 5), stride=(1, 1, 1), pad_lo=(0, 2, 2), pad_hi=(0, 2, 2), out=(1, 40, 30)
    ),
    "global average": step("adaptive_pool", "avg", out=(1, 1, 1)),
    "adaptive average": step("adaptive_pool", "avg", out=(1, 7, 3)),
    "indices": step("pool", "max", window=(1, 2, 2), stride=(1, 2, 2), out=(1, 20, 15), indices=True),
    "layer norm": step("layer_norm", None, None, 1e-5),
    "lrn": step("lrn", 5, 1e-2, 0.75, 2.0),
    "softmax": step("softmax"),
    "scale": step("scale_shift", np.full(300, 0.3, "f4"), np.full(300, 0.1, "f4"), "silu"),
    "gelu": step("activation", "gelu"),
    "binary": lambda plan, x: plan.binary(x, plan.adaptive_pool(x, "avg", out=(1, 1, 1)), "mul"),
    "transpose": step("transpose", (0, 3, 1, 2)),
    "pad": step("pad", (0, 1, 2, 0), (0, 3, 1, 0), "reflect"),
    "linear": step("resize", out=(1, 53, 61), mode="linear"),
    "cubic": step("resize", out=(1, 53, 17), mode="cubic"),
}


@pytest.mark.parametrize("name", STEPS)
def test_same_bits_for_any_batch_and_threads(isa: str, name: str, rng: np.random.Generator) -> None:
    x = reals(rng, (5, 1, 40, 30, 300))
    want = run("float32", STEPS[name], x)
    for threads in (2, 3, 7):
        for got, w in zip(run("float32", STEPS[name], x, threads=threads), want):
            assert_exact(got, w, (name, threads))
    for i in (0, 4):
        for got, w in zip(run("float32", STEPS[name], x[i : i + 1]), want):
            assert_exact(got, w[i : i + 1], (name, i))


def test_tensors_without_elements(row: str) -> None:
    for name in ("gelu", "softmax", "layer norm", "transpose"):
        shape = (2, 1, 0, 3, 4)
        (got,) = run(row, STEPS[name], np.zeros(shape, row))
        assert got.size == 0
    (got,) = run(row, step("pad", (0, 0, 0, 0), (0, -3, 0, 0)), np.zeros((2, 1, 3, 3, 4), row))
    assert got.shape == (2, 1, 0, 3, 4)
    (got,) = run(row, STEPS["gelu"], np.zeros((0, 1, 2, 3, 4), row))
    assert got.shape == (0, 1, 2, 3, 4)
