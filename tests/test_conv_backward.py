"""Gradients of convolutions: every row that can make one, on every ISA, against sums written out in float64.

Small integers make every order of summation exact, so gradients are compared to the bit, and <conv(x,w),dy> =
<x,dx> = <w,dw> holds exactly. Winograd stays within the bound of tolerance.py.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import tolerance
from convkern import _core, ops
from convkern.bench import backward, shapefile
from convkern.errors import DTypeError, ShapeError, Unsupported
from oracle import Conv, integers, reals

REFERENCES = ("conv_ref", "conv_weight_ref")
LARGE = ("conv_dense", "conv_dense_swapped")  # of these there is a test of its own


def rows(family: str) -> list[tuple[str, str]]:
    """(kernel, ISA); a reference once."""
    return [
        (k["name"], k["isa"])
        for k in _core.kernels()
        if k["family"] == family
        and k["name"] not in LARGE
        and not k["bf16"]  # for inference
        and (k["name"] not in REFERENCES or k["isa"] == _core.isas()[0])
    ]


@pytest.fixture(autouse=True)
def restored() -> Any:
    before = _core.isa()
    yield
    _core.set_isa(before)


def gradients(p: Conv, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dx, dw) as the definition says, tap by tap, in float64."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    g, n = p.groups, len(x)
    big_shape = p.y_shape[:3] if p.transposed else p.x_shape[:3]
    small_shape = p.x_shape[:3] if p.transposed else p.y_shape[:3]
    reach = [max((o - 1) * s + d * (r - 1) + 1, b + lo) for o, s, d, r, b, lo in
             zip(small_shape, p.stride, p.dilation, p.window, big_shape, p.pad_lo)]  # fmt: skip
    place = (slice(None), *(slice(lo, lo + b) for lo, b in zip(p.pad_lo, big_shape)))
    given = np.zeros((n, *reach, (dy if p.transposed else x).shape[-1]))
    given[place] = dy if p.transposed else x
    back = np.zeros((n, *reach, p.c))
    dx = np.zeros_like(x)
    dw = np.zeros((*p.window, g, p.c // g, p.k // g))
    for tap in itertools.product(*map(range, p.window)):
        where = (slice(None), *(slice(i * d, i * d + (o - 1) * s + 1, s) for i, d, o, s in
                                zip(tap, p.dilation, small_shape, p.stride)))  # fmt: skip
        x_tap, dy_tap = (x, given[where]) if p.transposed else (given[where], dy)
        xs = x_tap.reshape(-1, g, p.c // g).transpose(1, 2, 0)
        ys = dy_tap.reshape(-1, g, p.k // g).transpose(1, 0, 2)
        dw[tap] = xs @ ys
        w_tap = w[tap].reshape(p.c // g, g, p.k // g).transpose(1, 2, 0)
        d = (ys @ w_tap).transpose(1, 0, 2).reshape(*x_tap.shape)
        if p.transposed:
            dx += d
        else:
            back[where] += d
    dw = dw.transpose(0, 1, 2, 4, 3, 5).reshape(p.w_shape)
    return (dx if p.transposed else back[place]), dw


def geometry(p: Conv) -> dict[str, Any]:
    return {k: v for k, v in p.geometry.items() if k != "output_padding"}


def data_plan(p: Conv, w: np.ndarray | _core.Parameter, add: bool = False, **options: Any) -> _core.Plan:
    algo = options.pop("algo", "")
    plan = _core.Plan(training=True, **options)
    dy = plan.input(p.y_shape)
    added = plan.input(p.x_shape) if add else -1
    weight = w if isinstance(w, _core.Parameter) else _core.Parameter(w)
    plan.finish([plan.conv_backward_data(dy, weight, p.x_shape, add=added, algo=algo, **geometry(p))])
    return plan


def weight_plan(p: Conv, **options: Any) -> _core.Plan:
    algo = options.pop("algo", "")
    plan = _core.Plan(training=True, **options)
    x, dy = plan.input(p.x_shape), plan.input(p.y_shape)
    plan.finish([plan.conv_backward_weight(x, dy, kernel=p.window, algo=algo, **geometry(p))])
    return plan


@functools.cache
def odd_data(p: Conv, n: int = 2) -> tuple[np.ndarray, ...]:
    """x, w, dy of small integers, and the gradients. Nobody may write to them."""
    rng = np.random.default_rng(zlib.crc32(str(p).encode()))
    x, w, dy = integers(rng, (n, *p.x_shape)), integers(rng, p.w_shape), integers(rng, (n, *p.y_shape))
    return (x, w, dy, *gradients(p, x, w, dy))


# What networks have, small: all geometries of the generator, and padding that crops, strides beyond the window ...
EXTRA = [
    Conv(1, 9, 9, 16, 32, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 7, 8, 33, 47, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 0, 1)),  # SAME at stride 2: uneven padding
    Conv(1, 9, 7, 5, 9, 1, 2, 2, (1, 3, 3)),  # stride beyond the window: pixels nobody reads
    Conv(1, 8, 8, 24, 40, 1, 1, 1, (1, 2, 2)),
    Conv(1, 6, 6, 16, 16, 1, 3, 3, pad_lo=(0, 3, 3), pad_hi=(0, 2, 3)),  # more padding than the window reaches
    Conv(1, 15, 15, 3, 20, 1, 7, 7, (1, 2, 2), (0, 3, 3), (0, 3, 3)),  # a first layer
    Conv(1, 13, 13, 1, 6, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 1, 1, 70, 90),  # Dense
    Conv(1, 1, 1, 64, 32, groups=4),
    Conv(1, 9, 9, 40, 40, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=40),
    Conv(1, 9, 10, 33, 33, 1, 5, 5, (1, 1, 1), (0, 2, 2), (0, 2, 2), groups=33),
    Conv(1, 8, 9, 24, 48, 1, 3, 3, (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=24),  # a multiplier of two
    Conv(1, 7, 7, 64, 64, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), groups=16),
    Conv(1, 7, 7, 64, 64, 1, 3, 3, (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=8),
    Conv(1, 6, 7, 8, 8, 1, 3, 3, (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=4),
    Conv(1, 6, 7, 12, 12, 1, 1, 3, groups=6),
    Conv(1, 5, 6, 6, 6, 1, 5, 5, (1, 2, 1), (0, 2, 2), (0, 2, 2), groups=3),
    Conv(1, 10, 9, 40, 33, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),  # Winograd
    Conv(1, 6, 13, 64, 48, 1, 3, 3),
    Conv(1, 5, 5, 33, 130, 1, 3, 3, pad_lo=(0, 2, 0), pad_hi=(0, 0, 1)),
    Conv(1, 12, 7, 32, 32, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 19, 21, 3, 24, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),  # columns
    Conv(1, 23, 20, 2, 40, 1, 11, 11, (1, 4, 4), (0, 2, 2), (0, 2, 2)),
    Conv(1, 6, 6, 12, 20, 1, 3, 3, (1, 1, 1), (0, 2, 2), (0, 2, 2), (1, 2, 2), groups=2),
    Conv(1, 1, 700, 4, 8, 1, 1, 5, pad_lo=(0, 0, 2), pad_hi=(0, 0, 2)),  # a long row is cut
    Conv(1, 1, 601, 16, 8, 1, 1, 9, (1, 1, 4)),
    Conv(4, 5, 6, 8, 17, 3, 3, 3, (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    Conv(5, 5, 5, 8, 16, 2, 3, 3, (2, 2, 2), (0, 1, 1), (1, 0, 1), (1, 1, 1)),
    Conv(1, 5, 6, 20, 36, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True, output_padding=(0, 1, 0)),
    Conv(1, 5, 6, 20, 36, 1, 4, 4, (1, 1, 1), (0, 1, 1), (0, 1, 1), transposed=True, groups=4),
    Conv(1, 5, 5, 24, 24, 1, 3, 3, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True, groups=24),
    Conv(1, 1, 9, 6, 10, 1, 1, 4, (1, 1, 2), transposed=True),
    Conv(2, 3, 3, 6, 10, 2, 2, 2, (2, 2, 2), transposed=True),
]
PROBLEMS = [*EXTRA, *oracle.CORNER_CONVS, *oracle.NARROW_CONVS, *oracle.odd_convs(100, seed=7)]


@pytest.mark.parametrize("algo,isa", rows("conv"))
def test_data_gradient_is_exact(algo: str, isa: str) -> None:
    _core.set_isa(isa)
    ran = 0
    for p in PROBLEMS:
        _, w, dy, dx, _ = odd_data(p)
        for exact in (True, False):
            try:
                plan = data_plan(p, w, algo=algo, exact=exact)
            except Unsupported:
                continue
            plan.run([np.full_like(dy, np.nan)])
            got = plan.run([dy])[0]
            if exact:
                tolerance.assert_exact(got, dx, (algo, isa, str(p)))
            else:  # Winograd: the convolution of dy with the filters turned round
                lo = tuple(d * (r - 1) - lo for d, r, lo in zip(p.dilation, p.window, p.pad_lo))
                hi = tuple(d * (r - 1) - hi for d, r, hi in zip(p.dilation, p.window, p.pad_hi))
                turned = w[::-1, ::-1, ::-1].swapaxes(3, 4)
                bound = tolerance.winograd_bound(algo, dy, turned, None, None, pad_lo=lo, pad_hi=hi)
                tolerance.assert_within(got, dx, bound, (algo, isa, str(p)))
            ran += 1
            break
    assert ran >= (1 if algo == "conv_winograd5" else 3), f"{algo} accepts hardly anything"


@pytest.mark.parametrize("algo,isa", rows("conv_weight"))
def test_weight_gradient_is_exact(algo: str, isa: str) -> None:
    _core.set_isa(isa)
    ran = 0
    for p in PROBLEMS:
        x, _, dy, _, dw = odd_data(p)
        for exact in (True, False):
            try:
                plan = weight_plan(p, algo=algo, exact=exact)
            except Unsupported:
                continue
            plan.run([np.full_like(x, np.nan), np.full_like(dy, np.nan)])
            got = plan.run([x, dy])[0].reshape(p.w_shape)
            if exact:
                tolerance.assert_exact(got, dw, (algo, isa, str(p)))
            else:
                tolerance.assert_within(got, dw, tolerance.winograd_weight_bound(p, x, dy), (algo, isa, str(p)))
            ran += 1
            break
    assert ran >= 4, f"{algo} accepts hardly anything"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adjoint_identities(dtype: str) -> None:
    """<conv(x,w), dy> = <x, dx> = <w, dw>, in whole numbers, with the rows that are chosen."""
    for p in PROBLEMS[::2] if dtype == "float32" else EXTRA:
        x, w, dy = (a.astype(dtype) for a in odd_data(p)[:3])
        plan = _core.Plan(dtype, exact=True, training=True)
        parameter = _core.Parameter(w)
        a, b = plan.input(p.x_shape), plan.input(p.y_shape)
        y = plan.conv(a, parameter, **p.geometry)
        dx = plan.conv_backward_data(b, parameter, p.x_shape, **geometry(p))
        dw = plan.conv_backward_weight(a, b, kernel=p.window, **geometry(p))
        plan.finish([y, dx, dw])
        y_, dx_, dw_ = (r.astype(np.float64).ravel() for r in plan.run([x, dy]))
        want = y_ @ dy.ravel().astype(np.float64)
        assert want == x.ravel().astype(np.float64) @ dx_ == w.ravel().astype(np.float64) @ dw_, str(p)


def test_layers_of_networks(rng: np.random.Generator) -> None:
    """All channels of the layers of real networks, small images: the rows that are chosen, against the sums."""
    done = set()
    for network in shapefile.names():
        for layer in shapefile.load(network)[::3]:
            (top, bottom), (left, right) = layer.pad
            size = 5 if layer.c * layer.k * layer.r > 1 << 17 else 9
            h = min(layer.h, (size - 1) * layer.stride[0] + layer.r - top)
            w = min(layer.w, (size - 1) * layer.stride[1] + layer.s - left)
            p = Conv(1, h, w, layer.c, layer.k, 1, layer.r, layer.s, (1, *layer.stride), (0, top, left),
                     (0, bottom, right), (1, *layer.dil), layer.groups)  # fmt: skip
            if p in done or min(p.y_shape) < 1:
                continue
            done.add(p)
            a, k, g = integers(rng, (1, *p.x_shape)), integers(rng, p.w_shape), integers(rng, (1, *p.y_shape))
            dx, dw = gradients(p, a, k, g)
            tolerance.assert_exact(data_plan(p, k, exact=True).run([g])[0], dx, str(p))
            tolerance.assert_exact(weight_plan(p, exact=True).run([a, g])[0].reshape(p.w_shape), dw, str(p))
    assert len(done) > 60


@pytest.mark.parametrize("n", [0, 1, 3])
def test_batches(n: int, isa: str, rng: np.random.Generator) -> None:
    """The sum over no images is zero; a batch's gradient is the sum of the images'."""
    for p in EXTRA[:6]:
        x, dy, w = integers(rng, (n, *p.x_shape)), integers(rng, (n, *p.y_shape)), integers(rng, p.w_shape)
        dx, dw = gradients(p, x, w, dy)
        got = weight_plan(p, exact=True).run([x, dy])[0]
        assert got.shape == (*p.window, p.c // p.groups * p.k)
        tolerance.assert_exact(got.reshape(p.w_shape), dw)
        tolerance.assert_exact(data_plan(p, w, exact=True).run([dy])[0], dx)


def test_same_bits_for_any_number_of_threads(isa: str, rng: np.random.Generator) -> None:
    for p in EXTRA:
        x, dy, w = reals(rng, (5, *p.x_shape)), reals(rng, (5, *p.y_shape)), reals(rng, p.w_shape)
        for plan, inputs in ((weight_plan(p), [x, dy]), (data_plan(p, w), [dy])):
            one, two, three = (plan.run(inputs, threads=t)[0] for t in (1, 2, 3))
            assert (one == two).all() and (one == three).all(), str(p)


@pytest.mark.parametrize("place", [(0, 0), (4, 20), (9, 32)])
def test_infinities_stay_in_their_sums(isa: str, place: tuple[int, int]) -> None:
    """An infinite pixel of x makes the gradients of those weights infinite that meet it, and no others."""
    _core.set_isa(isa)
    p = Conv(1, 10, 33, 1, 6, 1, 3, 5)
    x, dy = np.zeros((1, *p.x_shape), "f4"), np.ones((1, *p.y_shape), "f4")
    x[0, 0, place[0], place[1]] = np.inf
    got = weight_plan(p, algo="conv_weight_planes").run([x, dy])[0].reshape(p.w_shape)
    height, width = p.y_shape[1:3]
    meets = [[0 <= place[0] - r < height and 0 <= place[1] - s < width for s in range(5)] for r in range(3)]
    assert np.array_equal(np.isinf(got[0, :, :, 0, 3]), meets) and not np.isnan(got).any()


def test_float_weight_gradients(isa: str, rng: np.random.Generator) -> None:
    for p in EXTRA:
        x, dy = reals(rng, (4, *p.x_shape)), reals(rng, (4, *p.y_shape))
        got = weight_plan(p, exact=True).run([x, dy])[0].reshape(p.w_shape)
        zero = np.zeros(p.w_shape)
        terms = len(x) * np.prod(p.x_shape[:3] if p.transposed else p.y_shape[:3])
        bound = tolerance.sum_bound(float(terms), gradients(p, abs(x), zero, abs(dy))[1])
        tolerance.assert_within(got, gradients(p, x, zero, dy)[1], bound, str(p))


def test_what_is_added(isa: str) -> None:
    for p in [*EXTRA[:3], EXTRA[9], EXTRA[12], EXTRA[19]]:
        x, w, dy, dx, _ = odd_data(p)
        tolerance.assert_exact(data_plan(p, w, add=True, exact=True).run([dy, x])[0], dx + x, str(p))


@pytest.mark.parametrize("n", [1, 2, 9, 17])
def test_large_dense_layers_are_never_packed(n: int, isa: str, rng: np.random.Generator) -> None:
    p = Conv(1, 1, 1, 1037, 1050)
    x, w, dy = integers(rng, (n, *p.x_shape)), integers(rng, p.w_shape), integers(rng, (n, *p.y_shape))
    b = integers(rng, (p.k,))
    plan = _core.Plan(training=True)
    parameter = _core.Parameter(w)
    a, c = plan.input(p.x_shape), plan.input(p.y_shape)
    y = plan.conv(a, parameter, _core.Parameter(b), act="relu")
    plan.finish(
        [y, plan.conv_backward_data(c, parameter, p.x_shape), plan.conv_backward_weight(a, c, kernel=(1, 1, 1))]
    )
    assert [step["kernel"] for step in plan.steps()[:2]] == list(LARGE)
    plan.run([np.full_like(x, np.nan), np.full_like(dy, np.nan)])
    dx, dw = gradients(p, x, w, dy)
    one, two = plan.run([x, dy], threads=1), plan.run([x, dy], threads=2)
    for got, want in zip(one, (np.maximum(oracle.conv(x, w, b), 0), dx, dw.reshape(one[2].shape))):
        tolerance.assert_exact(got, want)
    assert all((u == v).all() for u, v in zip(one, two)) and parameter.packed_bytes == 0
    w *= -1  # seen without touch()
    tolerance.assert_exact(plan.run([x, dy])[1], -dx)


def test_strided_inputs(isa: str) -> None:
    for p in EXTRA:
        x, w, dy, dx, dw = odd_data(p)
        wide = [np.full((*a.shape[:4], a.shape[4] + 3), np.nan, "f4") for a in (x, dy)]
        for a, b in zip(wide, (x, dy)):
            a[..., 1:-2] = b
        tolerance.assert_exact(weight_plan(p, exact=True).run([a[..., 1:-2] for a in wide])[0].reshape(p.w_shape), dw)
        tolerance.assert_exact(data_plan(p, w, exact=True).run([wide[1][..., 1:-2]])[0], dx)


def test_touch_packs_again(isa: str, rng: np.random.Generator) -> None:
    p = EXTRA[0]
    x, w, dy, dx, _ = odd_data(p)
    values = np.array(w)
    parameter, bias = _core.Parameter(values), np.zeros(p.k, "f4")
    plan = _core.Plan(exact=True, training=True)
    a, b = plan.input(p.x_shape), plan.input(p.y_shape)
    y = plan.conv(a, parameter, _core.Parameter(bias), **p.geometry)
    plan.finish([y, plan.conv_backward_data(b, parameter, p.x_shape, **geometry(p))])
    first = plan.run([x, dy])
    tolerance.assert_exact(first[1], dx)
    values *= 2
    bias[:] = 3  # read when the plan runs
    stale = plan.run([x, dy])
    tolerance.assert_exact(stale[1], dx)
    tolerance.assert_exact(stale[0], first[0] + 3)
    parameter.touch()
    fresh = plan.run([x, dy])
    tolerance.assert_exact(fresh[1], 2 * dx)
    tolerance.assert_exact(fresh[0], 2 * first[0] + 3)


def test_trainable_weights_are_packed_on_every_run(isa: str) -> None:
    """Into memory that all layers share: the parameter keeps no packed form, and needs no touch()."""
    plan = _core.Plan(exact=True, training=True)
    arrays, results, wants = [], [], []
    for p in (EXTRA[0], EXTRA[1], EXTRA[9]):
        x, w, dy, dx, _ = odd_data(p)
        values = np.array(w)
        parameter = _core.Parameter(values, trainable=True)
        a, b = plan.input(p.x_shape), plan.input(p.y_shape)
        results += [
            plan.conv(a, parameter, **p.geometry),
            plan.conv_backward_data(b, parameter, p.x_shape, **geometry(p)),
        ]
        arrays += [x, dy]
        wants += [(parameter, values), oracle.conv(x, w, **p.geometry), dx]
    plan.finish(results)
    for factor in (1, -2):
        got = plan.run(arrays)
        for i, y in enumerate(got):
            tolerance.assert_exact(y, factor * wants[i // 2 * 3 + 1 + i % 2])
        for parameter, values in wants[::3]:
            assert parameter.packed_bytes == 0
            values *= -2


def test_errors(rng: np.random.Generator) -> None:
    p = EXTRA[0]
    w = integers(rng, p.w_shape)
    plan = _core.Plan(training=True)
    x, dy = plan.input(p.x_shape), plan.input(p.y_shape)
    with pytest.raises(ShapeError, match="forward result"):
        plan.conv_backward_data(x, _core.Parameter(w), p.x_shape, **geometry(p))
    with pytest.raises(ShapeError, match="groups=3"):
        plan.conv_backward_weight(x, dy, kernel=p.window, groups=3)
    with pytest.raises(Unsupported, match="scale"):
        plan.conv_backward_data(dy, _core.Parameter(w, np.ones(p.k, "f4")), p.x_shape, **geometry(p))
    with pytest.raises(DTypeError):
        plan.conv_backward_data(dy, _core.Parameter(w.astype("f8")), p.x_shape, **geometry(p))
    inference = _core.Plan()
    a, b = inference.input(p.x_shape), inference.input(p.y_shape)
    with pytest.raises(Unsupported, match="training=True"):
        inference.conv_backward_weight(a, b, kernel=p.window, **geometry(p))


# ops.grad


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_as_torch_nn_grad(rank: int, groups: int, stride: int, rng: np.random.Generator) -> None:
    c, k, size = 4, 6, (7, 9, 8)[:rank]
    x = integers(rng, (2, c, *size), dtype="float64")
    w = integers(rng, (k, c // groups, *(3, 2, 3)[:rank]), dtype="float64")
    args = dict(stride=stride, padding=1, dilation=1, groups=groups)
    y = getattr(torch.nn.functional, f"conv{rank}d")(*map(torch.from_numpy, (x, w)), **args)
    dy = integers(rng, tuple(y.shape), dtype="float64")
    want_x = getattr(torch.nn.grad, f"conv{rank}d_input")(x.shape, *map(torch.from_numpy, (w, dy)), **args).numpy()
    want_w = getattr(torch.nn.grad, f"conv{rank}d_weight")(
        torch.from_numpy(x), w.shape, torch.from_numpy(dy), **args
    ).numpy()
    for dtype in ("float32", "float64"):
        a, b, d = (v.astype(dtype) for v in (x, w, dy))
        tolerance.assert_exact(getattr(ops.grad, f"conv{rank}d_input")(a.shape, b, d, **args), want_x)
        tolerance.assert_exact(getattr(ops.grad, f"conv{rank}d_weight")(a, b.shape, d, **args), want_w)
    last = [np.ascontiguousarray(np.moveaxis(v.astype("f4"), 1, -1)) for v in (x, dy)]
    layout = ("NLC", "NHWC", "NDHWC")[rank - 1]
    got = getattr(ops.grad, f"conv{rank}d_input")(last[0].shape, w.astype("f4"), last[1], layout=layout, **args)
    tolerance.assert_exact(np.moveaxis(got, -1, 1), want_x)
    got = getattr(ops.grad, f"conv{rank}d_weight")(last[0], w.shape, last[1], layout=layout, **args)
    tolerance.assert_exact(got, want_w)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_against_autograd(rank: int, groups: int, rng: np.random.Generator) -> None:
    x = integers(rng, (2, 4, *(5, 6, 4)[:rank]), dtype="float64")
    w = integers(rng, (4, 6 // groups, *(3, 2, 3)[:rank]), dtype="float64")
    args = dict(stride=2, padding=1, groups=groups)
    a, b = (torch.from_numpy(v).requires_grad_() for v in (x, w))
    y = getattr(torch.nn.functional, f"conv_transpose{rank}d")(a, b, output_padding=1, **args)
    dy = integers(rng, tuple(y.shape), dtype="float64")
    y.backward(torch.from_numpy(dy))
    got = getattr(ops.grad, f"conv_transpose{rank}d_input")(x.shape, w.astype("f4"), dy.astype("f4"), **args)
    tolerance.assert_exact(got, a.grad.numpy())
    got = getattr(ops.grad, f"conv_transpose{rank}d_weight")(x.astype("f4"), w.shape, dy.astype("f4"), **args)
    tolerance.assert_exact(got, b.grad.numpy())


def test_grad_errors() -> None:
    x, w, dy = np.ones((1, 4, 5, 5), "f4"), np.ones((6, 4, 3, 3), "f4"), np.ones((1, 6, 3, 3), "f4")
    with pytest.raises(ShapeError, match="input_size"):
        ops.grad.conv2d_input((1, 4, 5), w, dy)
    with pytest.raises(ShapeError, match="weight_size"):
        ops.grad.conv2d_weight(x, (5, 4, 3, 3), dy)
    with pytest.raises(DTypeError):
        ops.grad.conv2d_input(x.shape, w.astype("f8"), dy)
    with pytest.raises(ShapeError):
        ops.grad.conv2d_input((1, 4, 6, 6), w, dy)


def test_bench_agrees_with_torch() -> None:
    layer = shapefile.parse_line("conv h=14 w=14 c=32 k=48 r=3 pad=1x0x1x1 x2")
    found = []
    for gradient in backward.GRADIENTS:
        row = backward.run(layer, gradient, 2, 1, seconds=0.01, rounds=2)
        assert row["error"] < backward.TOLERANCE and set(row["peers"]) == {"torch.channels_last", "torch.contiguous"}
        found.append(dict(row, model="test"))
    assert [m["layers"] for m in backward.means(found)] == [1, 1, 1, 1]
    assert "conv" in backward.line(found[0]) and "weight" in backward.summary(found)
