"""Steps of a backward pass that are no convolutions, against PyTorch's autograd in float64; sums, dropout, optimizers.

Each test runs on every ISA and on the reference kernels in float64. Whole numbers are compared to the bit where the
result is representable. Every plan runs first on NaNs, then with one and three threads, which must give one result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
from convkern import _core, ops
from convkern.errors import DTypeError, ShapeError, Unsupported
from oracle import integers, reals
from tolerance import FUNCTION_ULPS, U, assert_exact, assert_within, for_dtype, gamma, sum_bound

Ids = Any


@pytest.fixture(params=[*_core.isas(), "float64"])
def row(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set in use, or "float64" for the reference kernels; returns the type the plans compute in."""
    before = _core.isa()
    if request.param != "float64":
        _core.set_isa(request.param)
    yield "float64" if request.param == "float64" else "float32"
    _core.set_isa(before)


def run(
    dtype: str, build: Callable[..., Ids], *arrays: np.ndarray, totals: tuple[np.ndarray, ...] = ()
) -> list[np.ndarray]:
    """Results of the plan that `build(plan, *ids, *ids of totals)` describes."""
    plan = _core.Plan(dtype, training=True)
    ids = [plan.index_input(a.shape[1:]) if a.dtype == np.int64 else plan.input(a.shape[1:]) for a in arrays]
    out = build(plan, *ids, *(plan.total_input(a.shape) for a in totals))
    plan.finish([out] if isinstance(out, int) else [t for t in out if t >= 0])
    inputs = [a if a.dtype == np.int64 else a.astype(dtype) for a in (*arrays, *totals)]
    plan.run([a if a.dtype == np.int64 else np.full_like(a, np.nan) for a in inputs], threads=1)
    one, three = plan.run(inputs, threads=1), plan.run(inputs, threads=3)
    for a, b in zip(one, three):
        assert_exact(a, b, "threads")
    return one


def step(name: str, *args: Any, **options: Any) -> Callable[..., Ids]:
    """The plan that is the one step plan.name(*inputs, ...)."""
    return lambda plan, *ids: getattr(plan, name)(*ids, *args, **options)


def nchw(a: np.ndarray) -> torch.Tensor:
    """(N,D,H,W,C) as torch's (N,C,D,H,W) in float64, a leaf."""
    return torch.from_numpy(np.moveaxis(np.asarray(a, np.float64), -1, 1).copy()).requires_grad_()


def ndhwc(t: torch.Tensor) -> np.ndarray:
    return np.moveaxis(t.detach().numpy(), 1, -1)


def leaf(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(a, np.float64)).requires_grad_()


def close(
    got: np.ndarray, want: np.ndarray, scale: np.ndarray | float, roundings: float, dtype: str, what: Any = ""
) -> None:
    """Within `roundings` roundings of `scale`, the size of the terms that the result is made of."""
    bound = gamma(roundings + 4 * FUNCTION_ULPS) * (np.abs(want) + scale) + 1e-37
    assert_within(got, want, for_dtype(bound, dtype), what)


FAMILIES = {
    "pool_back": "vector", "norm_back": "vector", "sum": "vector", "batch_norm": "vector", "map_back": "vector",
    "dropout": "vector", "update": "vector", "loss": "vector", "move_back": "", "resize_back": "",
}  # fmt: skip


def test_the_rows_are_known() -> None:
    """A new kernel needs a test here; each family has its reference. Forward steps have other files."""
    forward = ("conv", "conv_weight", "pool", "norm", "map", "move", "resize")
    found = {(k["family"], k["name"]) for k in _core.kernels() if k["family"] not in forward}
    assert found == {(f, f"{f}_{kind}") for f, vector in FAMILIES.items() for kind in ("ref", vector) if kind}


# Pooling


@pytest.mark.parametrize("seed", range(3))
def test_pooling(seed: int, row: str, rng: np.random.Generator) -> None:
    for p in oracle.odd_pools(12, seed=40 + seed):
        q = dict(p)
        kind, shape = q.pop("kind"), q.pop("x_shape")
        x = integers(rng, (2, *shape), limit=3)
        dy = integers(rng, (2, *q["out"], shape[-1]))
        forward = _core.Plan(row)
        pooled = forward.pool(forward.input(shape), kind, indices=kind == "max", **q)
        forward.finish(list(pooled) if kind == "max" else [pooled])
        results = forward.run([x.astype(row)])
        geometry = {k: v for k, v in q.items() if k != "out"}
        want = np.zeros(x.shape)
        if kind == "max":
            index = results[1].reshape(2, -1, shape[-1])
            flat = want.reshape(2, -1, shape[-1])
            for n in range(2):
                for c in range(shape[-1]):
                    np.add.at(flat[n, :, c], index[n, :, c], dy.reshape(2, -1, shape[-1])[n, :, c])
            for key in ("count_include_pad", "divisor"):
                geometry.pop(key, None)
            got = run(row, step("max_pool_backward", shape, **geometry), dy, results[1])[0]
            assert_exact(got, want, p)
            continue
        geometry.pop("dilation")
        unit = _core.Plan("float64")  # average pooling is linear: the adjoint from its values on unit images
        y = unit.pool(unit.input(shape), "avg", **q)
        unit.finish([y])
        size = int(np.prod(shape[:3]))
        eye = np.zeros((size, *shape))
        eye.reshape(size, size, -1)[np.arange(size), np.arange(size)] = 1
        matrix = unit.run([eye])[0].reshape(size, -1, shape[-1])[:, :, 0]
        want = np.einsum("io,noc->nic", matrix, dy.reshape(2, -1, shape[-1]).astype(np.float64)).reshape(x.shape)
        got = run(row, step("avg_pool_backward", shape, **geometry), dy)[0]
        scale = np.einsum("io,noc->nic", abs(matrix), abs(dy.reshape(2, -1, shape[-1]))).reshape(x.shape)
        close(got, want, scale, 40, row, p)


@pytest.mark.parametrize("c", [1, 6, 16, 35])
@pytest.mark.parametrize("window,out", [((1, 2, 2), (1, 3, 4)), ((2, 3, 1), (1, 2, 9)), ((1, 2, 3), (3, 3, 2))])
def test_average_windows_side_by_side(window: Any, out: Any, c: int, row: str, rng: np.random.Generator) -> None:
    """Pixels beyond the last window get zeros."""
    shape, dy = (3, 7, 9, c), integers(rng, (2, *out, c))
    want = np.zeros((2, *shape))
    block = dy
    for axis, size in enumerate(window):
        block = np.repeat(block, size, axis + 1)
    want[:, : block.shape[1], : block.shape[2], : block.shape[3]] = block / 2
    got = run(row, step("avg_pool_backward", shape, window=window, stride=window, divisor=2), dy)[0]
    assert_exact(got, want)


@pytest.mark.parametrize(
    "shape,out",
    [((1, 7, 5, 20), (1, 3, 2)), ((1, 4, 4, 3), (1, 1, 1)), ((3, 5, 6, 33), (2, 5, 4)), ((1, 3, 3, 17), (1, 5, 7))],
)
def test_adaptive_pooling(shape: Any, out: Any, row: str, rng: np.random.Generator) -> None:
    x, dy = reals(rng, (2, *shape)), reals(rng, (2, *out, shape[-1]))
    t = nchw(x)
    F.adaptive_avg_pool3d(t, out).backward(nchw(dy).detach())
    got = run(row, lambda plan, d: plan.adaptive_pool_backward(d, shape, "avg"), dy)[0]
    close(got, ndhwc(t.grad), np.abs(dy).max(), 40, row)
    t = nchw(x)
    y, index = F.adaptive_max_pool3d(t, out, return_indices=True)
    y.backward(nchw(dy).detach())
    got = run(row, lambda plan, d, i: plan.adaptive_pool_backward(d, shape, "max", i), dy, ndhwc(index).copy())[0]
    close(got, ndhwc(t.grad), np.abs(dy).max(), 8, row)


# Norms


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 3, 5, 7), (1, 6, 6, 64), (1, 1, 1, 130), (2, 9, 11, 33), (1, 40, 40, 16)]
)
@pytest.mark.parametrize("act", ["none", "relu", "relu6"])
def test_batch_norm(shape: Any, act: str, row: str, rng: np.random.Generator) -> None:
    n, c, eps = 3, shape[-1], 1e-3
    x, dy, residual = reals(rng, (n, *shape)) + 3, reals(rng, (n, *shape)), reals(rng, (n, *shape))
    g, b = reals(rng, (c,)).astype(row), reals(rng, (c,)).astype(row)
    x, dy, residual = (a.astype(row).astype(np.float64) for a in (x, dy, residual))
    function = dict(none=lambda t: t, relu=F.relu, relu6=F.relu6)[act]
    t, tg, tb = nchw(x), leaf(g), leaf(b)
    before = F.batch_norm(t, None, None, tg, tb, True, 0.0, eps)
    y = function(before)
    # Where a rounding decides whether the activation lets a value through, nothing can be said: no gradient there.
    value = ndhwc(before)
    near = np.zeros(value.shape, bool) if act == "none" else (abs(value) < 1e-3) | (abs(value - 6) < 1e-3)
    dy[near] = 0
    y.backward(nchw(dy).detach())

    def build(plan: Any, x_: int, d: int, r: int) -> Any:
        gamma_, beta = _core.Parameter(g), _core.Parameter(b)
        out, mean, var = plan.batch_norm_train(x_, gamma_, beta, eps, act=act)
        added = plan.batch_norm_train(x_, gamma_, beta, eps, residual=r, act=act)[0]
        return out, mean, var, *plan.batch_norm_backward(d, x_, mean, var, gamma_, beta, eps, act=act), added

    got = run(row, build, x, dy, residual)
    axes = (0, 1, 2, 3)
    mean, var = x.mean(axes), x.var(axes)
    count = x[..., 0].size
    spread = abs(x - mean).max() / np.sqrt(var.min() + eps) + 4
    assert_within(got[1].ravel(), mean, for_dtype(gamma(count + 8) * abs(x).mean(axes), row))
    assert_within(
        got[2].ravel(), var, for_dtype(gamma(2 * count + 40) * (var + abs(x).max() * 1e-2 * np.sqrt(var) + 1e-3), row)
    )
    size = (abs(g).max() * (abs(x - mean) + abs(mean)) / np.sqrt(var + eps) + abs(b)) * 4
    close(got[0], ndhwc(y), size, count + 40, row)
    close(got[6], ndhwc(function(before.detach() + nchw(residual).detach())), size + abs(residual), count + 40, row)
    masked = dy * (ndhwc(y) == value)
    size = (abs(masked) + abs(masked).mean(axes) * (1 + spread**2)) * (abs(g) / np.sqrt(var + eps)) * spread
    close(got[3], ndhwc(t.grad), size, count + 60, row)
    close(got[4].ravel(), tg.grad.numpy(), abs(masked).sum(axes) * spread**2, count + 60, row)
    close(got[5].ravel(), tb.grad.numpy(), abs(masked).sum(axes), count + 60, row)


def test_batch_norm_without_parameters(row: str, rng: np.random.Generator) -> None:
    x, dy = reals(rng, (4, 1, 3, 3, 20)), reals(rng, (4, 1, 3, 3, 20))
    t = nchw(x)
    y = F.batch_norm(t, None, None, None, None, True, 0.0, 1e-5)
    y.backward(nchw(dy).detach())

    def build(plan: Any, x_: int, d: int) -> Any:
        out, mean, var = plan.batch_norm_train(x_, None, None, 1e-5)
        return out, *plan.batch_norm_backward(d, x_, mean, var, None, None, 1e-5)

    got = run(row, build, x, dy)
    close(got[0], ndhwc(y), 10 * abs(x).max(), 80, row)
    close(got[1], ndhwc(t.grad), 100 * abs(dy).max(), 80, row)


def test_batch_norm_large_mean(isa: str, rng: np.random.Generator) -> None:
    """A variance that a sum of squares would lose."""
    x = (1000 + rng.standard_normal((4, 1, 30, 30, 24))).astype("f4")
    got = run("float32", lambda plan, a: plan.batch_norm_train(a, None, None, 1e-5), x)
    assert_within(got[2].ravel(), x.astype("f8").var((0, 1, 2, 3)), 1000 * U + gamma(200))


@pytest.mark.parametrize("c", [1, 5, 16, 40, 129])
def test_layer_norm(c: int, row: str, rng: np.random.Generator) -> None:
    x, dy = reals(rng, (3, 1, 4, 5, c)), reals(rng, (3, 1, 4, 5, c))
    g = reals(rng, (c,)).astype(row)
    t, tg, tb = leaf(x), leaf(g), leaf(np.zeros(c))
    F.layer_norm(t, (c,), tg, tb, 1e-2).backward(torch.from_numpy(dy.astype("f8")))
    got = run(row, lambda plan, d, a: plan.layer_norm_backward(d, a, _core.Parameter(g), 1e-2), dy, x)
    size = abs(dy).max() * abs(g).max() * 10 * (1 + abs(x).max())
    close(got[0], t.grad.numpy(), size * 10, 2 * c + 60, row)
    close(got[1].ravel(), tg.grad.numpy(), 60 * abs(dy).max() * 4 * np.sqrt(c), 2 * c + 60, row)
    close(got[2].ravel(), tb.grad.numpy(), 60 * abs(dy).max(), 80, row)


@pytest.mark.parametrize("c,size", [(7, 5), (16, 5), (33, 4), (96, 5), (3, 9)])
def test_lrn(c: int, size: int, row: str, rng: np.random.Generator) -> None:
    x, dy = reals(rng, (2, 1, 3, 4, c)), reals(rng, (2, 1, 3, 4, c))
    t = nchw(x)
    F.local_response_norm(t, size, 1e-1, 0.75, 2.0).backward(nchw(dy).detach()) if size % 2 else None
    if (
        size % 2 == 0
    ):  # written out: torch pads an even window the other way round than x's oracle; ours is the forward step's
        base = torch.zeros_like(t)
        for i in range(-(size // 2), (size - 1) // 2 + 1):
            base = base + F.pad(t**2, (0, 0, 0, 0, 0, 0, size, size))[:, size + i : size + i + c]
        (t / (2.0 + 0.1 / size * base) ** 0.75).backward(nchw(dy).detach())
    got = run(row, lambda plan, d, a: plan.lrn_backward(d, a, size, 1e-1, 0.75, 2.0), dy, x)[0]
    close(got, ndhwc(t.grad), size * abs(dy).max() * (1 + abs(x).max()), 40, row)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("c", [1, 10, 16, 37, 1000])
def test_softmax(log: bool, c: int, row: str, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((5, 1, 1, 2, c)) * 3, reals(rng, (5, 1, 1, 2, c))
    t = leaf(x.astype(row))
    y = (F.log_softmax if log else F.softmax)(t, -1)
    y.backward(torch.from_numpy(dy.astype("f8")))
    got = run(row, lambda plan, d, a: plan.softmax_backward(d, a, log), dy, y.detach().numpy())[0]
    p = np.exp(y.detach().numpy()) if log else y.detach().numpy()
    scale = abs(dy) + (p * 30 if log else 1) * abs(dy).sum(-1, keepdims=True)
    close(got, t.grad.numpy(), scale, c + 8, row)


def test_scale_shift(row: str, rng: np.random.Generator) -> None:
    x, dy, s = integers(rng, (3, 1, 4, 5, 21)), integers(rng, (3, 1, 4, 5, 21)), integers(rng, (21,)).astype(row)
    got = run(row, lambda plan, d, a: plan.scale_shift_backward(d, a, _core.Parameter(s)), dy, x)
    assert_exact(got[0], dy * s)
    assert_exact(got[1].ravel(), (dy * x).sum((0, 1, 2, 3)))
    assert_exact(got[2].ravel(), dy.sum((0, 1, 2, 3)))


# Elementwise

ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = {
    "none": (lambda t: t, 0, 0),
    "relu": (F.relu, 0, 0),
    "relu6": (F.relu6, 0, 0),
    "clamp": (lambda t: F.hardtanh(t, -2.0, 3.0), -2.0, 3.0),
    "silu": (F.silu, 0, 0),
    "sigmoid": (torch.sigmoid, 0, 0),
    "hard_swish": (F.hardswish, 0, 0),
    "hard_sigmoid": (lambda t: (t + 3).clamp(0, 6) / 6, 0, 0),  # torch's own has a sixth in float32
    "gelu": (F.gelu, 0, 0),
    "gelu_tanh": (lambda t: F.gelu(t, approximate="tanh"), 0, 0),
    "tanh": (torch.tanh, 0, 0),
    "elu": (lambda t: F.elu(t, 0.75), 0.75, 0),
    "leaky_relu": (lambda t: F.leaky_relu(t, 0.125), 0.125, 0),
    "softplus": (lambda t: F.softplus(t, 0.5, 6.0), 0.5, 6.0),
    "exp": (torch.exp, 0, 0),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act: str, row: str, rng: np.random.Generator) -> None:
    function, a, b = ACTIVATIONS[act]
    x = np.concatenate([rng.uniform(-9, 9, 900), rng.uniform(-1e-3, 1e-3, 61), [0.0, -30, 30, 2.5]]).astype("f4")
    for shape in ((1, 1, 1, 1, x.size), (5, 1, 1, 193, 1), (193, 1, 1, 1, 5)):
        if np.prod(shape) != x.size:
            continue
        values, dy = x.reshape(shape), reals(rng, shape)
        t = leaf(values)
        y = function(t)
        y.backward(torch.from_numpy(dy.astype("f8")))
        output = _core.slope_from_output(act, a, b)
        assert output == (act in ("none", "relu", "relu6", "clamp", "sigmoid", "tanh", "elu", "leaky_relu", "exp"))
        saved = (y.detach().numpy() if output else values).astype(row)
        got = run(row, lambda plan, d, s: plan.activation_backward(d, s, act, a, b), dy, saved)[0]
        close(got, t.grad.numpy(), abs(dy) * 4, 16, row, act)


def test_kinks_and_special_values(row: str) -> None:
    """As torch: no slope where ReLU and clamps begin and end, NaN passes, 0 where the slope is 0 whatever dy."""
    y = np.array([-1.0, 0.0, 1e-30, 6.0, 7.0, np.nan, np.inf]).reshape(1, 1, 1, 1, 7)
    dy = np.array([np.inf, 1.0, 2, 3, 4, 5, 6]).reshape(1, 1, 1, 1, 7)
    got = run(row, lambda plan, d, s: plan.activation_backward(d, s, "relu"), dy, y)[0]
    assert_exact(got.ravel(), np.array([0, 0, 2, 3, 4, 5, 6.0]))
    got = run(row, lambda plan, d, s: plan.activation_backward(d, s, "relu6"), dy, y)[0]
    assert_exact(got.ravel()[:6], np.array([0, 0, 2, 0, 0, 5.0]))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "max", "min"])
@pytest.mark.parametrize("b_shape", [(1, 3, 4, 20), (1, 1, 1, 20), (1, 3, 4, 1), (1, 1, 1, 1), (1, 1, 4, 1)])
def test_binary(op: str, b_shape: Any, row: str, rng: np.random.Generator) -> None:
    shape = (1, 3, 4, 20)
    x, dy = integers(rng, (3, *shape)), integers(rng, (3, *shape))
    y = np.exp2(integers(rng, (3, *b_shape), limit=2)) if op == "div" else integers(rng, (3, *b_shape))
    function = dict(add=torch.add, sub=torch.sub, mul=torch.mul, div=torch.div, max=torch.maximum, min=torch.minimum)[
        op
    ]
    a, b = leaf(x), leaf(y)
    function(a, b).backward(torch.from_numpy(dy.astype("f8")))
    got = run(row, lambda plan, d, i, j: plan.binary_backward(d, i, j, op), dy, x, y)
    assert_exact(got[0], a.grad.numpy())
    assert_exact(got[1], b.grad.numpy())
    x = np.where(x == 0, 1, x) if op == "div" else x
    got = run(row, lambda plan, d, i, j: plan.binary_backward(d, j, i, op, need_a=False)[1], dy, x, y)[0]
    a, b = leaf(x), leaf(y)
    function(b, a).backward(torch.from_numpy(dy.astype("f8")))
    close(got, a.grad.numpy(), abs(a.grad.numpy()), 4, row)


def test_binary_with_a_total(row: str, rng: np.random.Generator) -> None:
    """An operand of the whole batch, such as a learned scale: its gradient is summed over the images."""
    x, dy, s = integers(rng, (3, 1, 4, 5, 6)), integers(rng, (3, 1, 4, 5, 6)), integers(rng, (6,)).astype(row)

    def build(plan: Any, d: int, a: int) -> Any:
        p = plan.parameter(_core.Parameter(s))
        y = plan.binary(a, p, "mul")
        da, ds = plan.binary_backward(d, a, p, "mul")
        assert plan.is_total(ds) and not plan.is_total(da)
        return y, da, ds, plan.activation(ds, "relu"), plan.binary(ds, ds, "add")

    y, da, ds, positive, twice = run(row, build, dy, x)
    assert_exact(y, x * s)
    assert_exact(da, dy * s)
    want = (dy * x).sum((0, 1, 2, 3)).reshape(1, 1, 1, 6)
    assert_exact(ds, want)
    assert_exact(positive, np.maximum(want, 0))
    assert_exact(twice, 2 * want)


# Sums


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 7, 9, 33), (2, 3, 4, 5), (1, 30, 31, 64), (1, 1, 1, 700)])
@pytest.mark.parametrize("product", [False, True])
def test_sums(shape: Any, product: bool, row: str, rng: np.random.Generator) -> None:
    x, y = integers(rng, (3, *shape)), integers(rng, (3, *shape))
    operands = (x, y) if product else (x,)
    v = np.prod(operands, axis=0, dtype=np.float64)
    d, h, w, c = shape
    for keep in ((1, 1, 1, c), (1, 1, 1, 1), shape, (1, h, w, 1), (d, 1, 1, c)):
        axes = tuple(i + 1 for i in range(4) if keep[i] == 1)
        for total in (False, True):
            want = v.sum((0, *axes) if total else axes, keepdims=True)
            want = want[0] if total else want
            got = run(row, step("sum", shape=keep, total=total, factor=0.5), *operands)[0]
            assert_exact(got, want * 0.5, (keep, total))
            got = run(row, step("sum", shape=keep, total=total, mean=True), *operands)[0]
            count = v.size / want.size
            assert_exact(got, (want / count).astype(row), (keep, total))


# Losses


@pytest.mark.parametrize("c", [2, 10, 37])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mean", [False, True])
def test_cross_entropy(c: int, smoothing: float, mean: bool, row: str, rng: np.random.Generator) -> None:
    n, shape = 3, (1, 2, 4)
    x, weight = rng.standard_normal((n, *shape, c)) * 3, rng.uniform(0, 2, (n, *shape, 1))
    labels = rng.integers(0, c, (n, *shape, 1))
    labels[0, 0, 0, 0] = -1
    dense = rng.dirichlet(np.ones(c), (n, *shape))
    pixels = n * 8
    for kind, target in (("softmax_sparse", labels), ("softmax_dense", dense)):
        t = leaf(x)
        flat = t.reshape(-1, c)
        ids = torch.from_numpy(labels.ravel())
        goal = torch.from_numpy(dense.reshape(-1, c)) if kind == "softmax_dense" else ids
        each = F.cross_entropy(
            flat, goal, reduction="none", label_smoothing=smoothing, **({} if goal is not ids else {"ignore_index": -1})
        )
        loss = each * torch.from_numpy(weight.ravel())
        (loss.sum() * 2 / (pixels if mean else 1)).backward()
        got = run(
            row,
            lambda plan, a, b, w, k=kind: plan.loss(a, b, k, w, smoothing=smoothing, mean=mean, scale=2.0),
            x,
            target.astype("f8"),
            weight,
        )
        close(got[0].ravel(), loss.detach().numpy(), 40, c + 20, row)
        close(got[1], t.grad.numpy(), 8, c + 20, row)
    assert not got[1][0, 0, 0, 0].any() or kind == "softmax_dense"


@pytest.mark.parametrize("kind", ["sigmoid", "squared", "absolute"])
def test_regression_losses(kind: str, row: str, rng: np.random.Generator) -> None:
    x, target = rng.standard_normal((4, 1, 2, 3, 5)) * 4, rng.uniform(0, 1, (4, 1, 2, 3, 5))
    function = dict(sigmoid=F.binary_cross_entropy_with_logits, squared=F.mse_loss, absolute=F.l1_loss)[kind]
    t = leaf(x)
    each = function(t, torch.from_numpy(target), reduction="none").mean(-1)
    each.mean().backward()

    def build(plan: Any, a: int, b: int) -> Any:
        loss, dx = plan.loss(a, b, kind)
        return loss, dx, plan.sum(loss, shape=(1, 1, 1, 1), mean=True)

    got = run(row, build, x, target)
    close(got[0][..., 0], each.detach().numpy(), 40, 30, row)
    close(got[1], t.grad.numpy(), 1, 30, row)
    close(got[2].ravel(), np.array([each.mean().item()]), 10, 60, row)


# Dropout


def test_dropout(row: str) -> None:
    shape = (1, 7, 9, 33)
    x = np.arange(4 * 7 * 9 * 33, dtype="f8").reshape(4, *shape) % 97 + 1
    count = np.full((1, 1, 1, 1), 5.0)
    one = run(row, lambda plan, a, s: plan.dropout(a, s, rate=0.25, seed=7), x, totals=(count,))[0]
    kept = one != 0
    assert_exact(one[kept], (x.astype(row) * np.array(1 / 0.75, row))[kept])
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.1875 / x.size)
    again, other_step, other_seed = (
        run(row, step("dropout", rate=0.25, seed=seed), x, totals=(np.full_like(count, k),))[0]
        for seed, k in ((7, 5), (7, 6), (8, 5))
    )
    assert_exact(one, again)
    assert 0.3 < ((other_step != 0) != kept).mean() < 0.45 and 0.3 < ((other_seed != 0) != kept).mean() < 0.45
    # An element's number does not depend on the views; a part of the batch keeps its mask.
    few = run(row, lambda plan, a, s: plan.dropout(a, s, rate=0.25, seed=7), x[:2], totals=(count,))[0]
    assert_exact(few, one[:2])
    for rate, want in ((0.0, x.astype(row)), (1.0, 0 * x)):
        assert_exact(run(row, step("dropout", rate=rate), x)[0], want)
    nan = np.full((1, 1, 1, 1, 500), np.nan)
    assert 0.2 < (run(row, lambda plan, a: plan.dropout(a, rate=0.5), nan)[0] == 0).mean() < 0.8


def test_dropout_masks_are_the_same_everywhere() -> None:
    x = np.ones((3, 1, 5, 6, 17))
    masks = []
    before = _core.isa()
    for isa in _core.isas():
        _core.set_isa(isa)
        masks.append(run("float32", lambda plan, a: plan.dropout(a, rate=0.5, seed=3), x)[0] != 0)
    _core.set_isa(before)
    masks.append(run("float64", lambda plan, a: plan.dropout(a, rate=0.5, seed=3), x)[0] != 0)
    assert all((m == masks[0]).all() for m in masks)


def test_stochastic_depth(row: str) -> None:
    x = np.ones((300, 1, 2, 2, 5))
    y = run(row, lambda plan, a: plan.dropout(a, rate=0.2, seed=1, per_image=True), x)[0].reshape(300, -1)
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] != 0).mean() - 0.8) < 0.12
    assert_exact(np.unique(y), np.array([0, 1.25], row))


# Moves


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad(mode: str, row: str, rng: np.random.Generator) -> None:
    shape, lo, hi = (1, 5, 6, 7), (0, 2, 1, 0), (0, 1, 3, 0)
    x = integers(rng, (2, *shape))
    t = nchw(x)
    y = F.pad(t, (lo[2], hi[2], lo[1], hi[1], 0, 0), mode)
    dy = integers(rng, ndhwc(y).shape)
    y.backward(nchw(dy).detach())
    got = run(row, lambda plan, d: plan.pad_backward(d, shape, lo, hi, mode), dy)[0]
    assert_exact(got, ndhwc(t.grad))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "cubic"])
@pytest.mark.parametrize("size", [(7, 9), (3, 4), (11, 2)])
@pytest.mark.parametrize("align", [False, True])
def test_resize(mode: str, size: Any, align: bool, row: str, rng: np.random.Generator) -> None:
    if align and mode.startswith("nearest"):
        return
    shape = (1, 5, 6, 9)
    x, dy = reals(rng, (2, *shape)), reals(rng, (2, 1, *size, 9))
    t = nchw(x)[:, :, 0].detach().requires_grad_()
    torch_mode = dict(linear="bilinear", cubic="bicubic").get(mode, mode)
    y = F.interpolate(t, size, mode=torch_mode, **({} if mode.startswith("nearest") else dict(align_corners=align)))
    y.backward(nchw(dy)[:, :, 0].detach())
    got = run(row, lambda plan, d: plan.resize_backward(d, shape, mode, align), dy)[0]
    close(got[:, 0], ndhwc(t.grad), 60 * abs(dy).max(), 400, row)


def test_views(row: str, rng: np.random.Generator) -> None:
    """The gradients of concat, slice, reshape and transpose are views and moves."""
    x, y = integers(rng, (2, 1, 3, 4, 5)), integers(rng, (2, 1, 3, 4, 7))
    dy = integers(rng, (2, 1, 3, 4, 12))

    def build(plan: Any, d: int) -> Any:
        first, second = plan.channel_slice(d, 0, 5), plan.channel_slice(d, 5, 7)
        back = plan.pad(first, (0, 0, 0, 2), (0, 0, 0, 1))
        return (
            plan.activation(first, "relu"),
            plan.reshape(second, (1, 1, 12, 7)),
            back,
            plan.sum(second, shape=(1, 1, 1, 7)),
        )

    got = run(row, build, dy)
    assert_exact(got[0], np.maximum(dy[..., :5], 0))
    assert_exact(got[1], dy[..., 5:].reshape(2, 1, 1, 12, 7))
    assert_exact(got[2], np.pad(dy[..., :5], [(0, 0)] * 4 + [(2, 1)]))
    assert_exact(got[3].ravel(), dy[..., 5:].sum((0, 1, 2, 3)))
    assert x.shape[-1] + y.shape[-1] == dy.shape[-1]


# Optimizers


@pytest.mark.parametrize("size", [1, 100, 40000])
@pytest.mark.parametrize("case", [
    ("SGD", dict(lr=0.1)), ("SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
    ("SGD", dict(lr=0.1, momentum=0.9, nesterov=True)), ("SGD", dict(lr=0.1, momentum=0.8, dampening=0.3)),
    ("Adam", dict(lr=0.01)), ("Adam", dict(lr=0.01, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.1)),
    ("AdamW", dict(lr=0.01, weight_decay=0.1)),
    ("RMSprop", dict(lr=0.01)), ("RMSprop", dict(lr=0.01, alpha=0.9, momentum=0.5, weight_decay=0.1)),
], ids=lambda c: c[0] + "-" + "-".join(c[1]))  # fmt: skip
def test_optimizers(case: tuple[str, dict[str, Any]], size: int, row: str, rng: np.random.Generator) -> None:
    name, options = case
    start = [reals(rng, (size,)), reals(rng, (2, 3))]
    want = [leaf(a) for a in start]
    optimizer = getattr(torch.optim, name)(want, **options)
    w = [a.astype(row) for a in start]
    m, v = ([np.zeros_like(a) for a in w] for _ in range(2))
    o = dict(options)
    common = dict(rate=o.pop("lr"), decay=o.pop("weight_decay", 0.0))
    for step in range(1, 5):
        grads = [reals(rng, a.shape) for a in w]
        for p, g in zip(want, grads):
            p.grad = torch.from_numpy(g.astype("f8"))
        optimizer.step()
        g = [a.astype(row) for a in grads]
        if name == "SGD":
            _core.sgd_step(w, g, m if "momentum" in o else [], first=step == 1, **o, **common)
        elif name == "RMSprop":
            _core.rmsprop_step(w, g, v, m if "momentum" in o else [], **o, **common)
        else:
            b1, b2 = o.get("betas", (0.9, 0.999))
            _core.adam_step(
                w, g, m, v, step=step, beta1=b1, beta2=b2, eps=o.get("eps", 1e-8), decoupled=name == "AdamW", **common
            )
    for a, b in zip(w, want):
        close(a, b.detach().numpy(), 40, 60, row)


def test_optimizer_errors() -> None:
    w = [np.ones(3, "f4")]
    with pytest.raises(ShapeError, match="3 values"):
        _core.sgd_step(w, [np.ones(4, "f4")], rate=0.1)
    with pytest.raises(DTypeError):
        _core.sgd_step(w, [np.ones(3, "f8")], rate=0.1)
    with pytest.raises(ShapeError, match="as many"):
        _core.sgd_step(w, [], rate=0.1)
    with pytest.raises(ShapeError, match="count from 1"):
        _core.adam_step(w, w, w, w, step=0, rate=0.1)
    frozen = np.ones(3, "f4")
    frozen.flags.writeable = False
    with pytest.raises(Unsupported, match="read-only"):
        _core.sgd_step([frozen], w, rate=0.1)


# The plan


def test_one_block_and_totals(rng: np.random.Generator) -> None:
    """More images than inference runs at a time; results that are the caller's, kept, and strided inputs."""
    x = integers(rng, (19, 1, 4, 4, 6))
    wide = np.zeros((19, 1, 4, 4, 9), "f4")
    wide[..., 2:8] = x
    plan = _core.Plan(training=True)
    a = plan.input((1, 4, 4, 6))
    s = plan.sum(a, shape=(1, 1, 1, 6))
    y = plan.binary(a, s, "sub")
    plan.finish([s, y, plan.sum(y, shape=(1, 1, 1, 1))])
    for array in (x, wide[..., 2:8]):
        s_, y_, z_ = plan.run([array])
        want = x.sum((0, 1, 2, 3)).reshape(1, 1, 1, 6)
        assert_exact(s_, want)
        assert_exact(y_, x - want)
        assert z_.shape == (1, 1, 1, 1) and z_[0, 0, 0, 0] == (x - want).sum()
    assert plan.total_bytes > 0 and plan.steps()[0]["op"] == "sum"
    assert_exact(plan.run([x], channels_first=True)[0], want)


def test_plan_errors() -> None:
    plan = _core.Plan(training=True)
    a, b = plan.input((1, 2, 2, 3)), plan.input((1, 2, 2, 4))
    index = plan.index_input((1, 1, 1, 3))
    with pytest.raises(ShapeError, match="gamma needs 3"):
        plan.batch_norm_train(a, _core.Parameter(np.ones(4, "f4")), None, 1e-5)
    with pytest.raises(Unsupported, match="clamps"):
        plan.batch_norm_train(a, None, None, 1e-5, act="gelu")
    with pytest.raises(ShapeError):
        plan.activation_backward(a, b, "relu")
    with pytest.raises(ShapeError, match="positions"):
        plan.max_pool_backward(a, b, (1, 4, 4, 3), window=(1, 2, 2), stride=(1, 2, 2))
    with pytest.raises(ShapeError, match="between 0 and 1"):
        plan.dropout(a, rate=1.5)
    with pytest.raises(Unsupported, match="no loss"):
        plan.loss(a, a, "hinge")
    with pytest.raises(DTypeError):
        plan.parameter(_core.Parameter(np.ones(3)))
    with pytest.raises(Unsupported, match="training=True"):
        _core.Plan().parameter(_core.Parameter(np.ones(3, "f4")))
    plan.finish([plan.activation(a, "relu")])
    with pytest.raises(DTypeError, match="int64"):
        plan.run([np.zeros((1, 1, 2, 2, 3), "f4"), np.zeros((1, 1, 2, 2, 4), "f4"), np.zeros((1, 1, 1, 1, 3), "f4")])
    assert index >= 0


# ops.grad


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ops_pooling(rank: int, rng: np.random.Generator) -> None:
    x = rng.permutation(2 * 3 * 8**rank).reshape(2, 3, *(8,) * rank).astype("f4")
    t = torch.from_numpy(x.astype("f8")).requires_grad_()
    y, index = getattr(F, f"max_pool{rank}d")(t, 3, 2, 1, return_indices=True)
    dy = integers(rng, tuple(y.shape))
    y.backward(torch.from_numpy(dy.astype("f8")))
    got = getattr(ops.grad, f"max_pool{rank}d_backward")(dy, index.numpy(), x.shape, 3, 2, 1)
    assert_exact(got, t.grad.numpy())
    t.grad = None
    y = getattr(F, f"avg_pool{rank}d")(t, 2)
    dy = integers(rng, tuple(y.shape))
    y.backward(torch.from_numpy(dy.astype("f8")))
    assert_exact(getattr(ops.grad, f"avg_pool{rank}d_backward")(dy, x.shape, 2), t.grad.numpy())
    t.grad = None
    y = getattr(F, f"adaptive_avg_pool{rank}d")(t, 4)
    y.backward(torch.from_numpy(dy.astype("f8")))
    assert_exact(getattr(ops.grad, f"adaptive_avg_pool{rank}d_backward")(dy, x.shape), t.grad.numpy())
    t.grad = None
    y, index = getattr(F, f"adaptive_max_pool{rank}d")(t, 4, return_indices=True)
    y.backward(torch.from_numpy(dy.astype("f8")))
    got = getattr(ops.grad, f"adaptive_max_pool{rank}d_backward")(dy, index.numpy(), x.shape)
    assert_exact(got, t.grad.numpy())
    with pytest.raises(ShapeError, match="outside"):
        getattr(ops.grad, f"max_pool{rank}d_backward")(dy, index.numpy() + 8**rank, x.shape, 2)
    with pytest.raises(DTypeError, match="int64"):
        getattr(ops.grad, f"max_pool{rank}d_backward")(dy, index.numpy().astype("i4"), x.shape, 2)


def test_ops_norms(rng: np.random.Generator) -> None:
    x, dy, g = reals(rng, (3, 8, 5, 6)), reals(rng, (3, 8, 5, 6)), reals(rng, (8,))
    t, tg = leaf(x), leaf(g)
    y = F.batch_norm(t, None, None, tg, None, True)
    y.backward(torch.from_numpy(dy.astype("f8")))
    got, mean, var = ops.grad.batch_norm_train(x, g)
    close(got, y.detach().numpy(), 10 * abs(x).max() * abs(g).max(), 150, "float32")
    last = [np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) for a in (dy, x)]  # channels-last strides
    for a, b in ((dy, x), last):
        dx, dg, _ = ops.grad.batch_norm_backward(a, b, g, mean, var)
        close(dx, t.grad.numpy(), 200 * abs(dy).max() * abs(g).max(), 200, "float32")
        close(dg, tg.grad.numpy(), 200 * abs(dy).max(), 200, "float32")
    assert sum_bound(1, np.ones(1)) > 0
