"""Every function of convkern.ops against PyTorch: values, shapes, strides, refusals.

The truth is PyTorch in float64 on the same numbers; the bounds are derived in tolerance.py.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tolerance
from convkern import ops
from convkern.errors import ConvkernError, DTypeError, ShapeError, Unsupported
from oracle import integers, reals
from tolerance import assert_exact, assert_within, for_dtype

DTYPES = ("float32", "float64")
EVERYTHING = sorted(name for name in ops.__all__ if name != "grad")  # a module: test_grad.py


def t64(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.array(array, np.float64))


def absolute(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.abs(np.array(array, np.float64)))


# Convolution


def conv_cases(rank: int, transposed: bool) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    """Shapes of input and weight, and the other arguments."""
    sizes = {1: (9,), 2: (7, 8), 3: (5, 4, 6)}[rank]
    windows = {1: [(1,), (4,)], 2: [(1, 1), (3, 2)], 3: [(1, 2, 1), (2, 3, 2)]}[rank]
    ramp = tuple(range(1, rank + 1))
    for window, stride, padding, dilation, (c, k, g) in itertools.product(
        windows, (1, 2, ramp), (0, 1, ramp), (1, 2), ((3, 5, 1), (4, 6, 2), (3, 6, 3))
    ):
        weight = (c, k // g, *window) if transposed else (k, c // g, *window)
        options: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=g)
        if transposed and stride == 2:
            options["output_padding"] = 1
        yield (2, c, *sizes), weight, options
    if not transposed:
        for window in (*windows, tuple(4 for _ in range(rank))):
            for padding in ("same", "valid"):
                yield (1, 4, *sizes), (6, 2, *window), dict(padding=padding, groups=2, dilation=1 + (padding == "same"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [f"conv{t}{rank}d" for t in ("", "_transpose") for rank in (1, 2, 3)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_conv(name: str, dtype: str, rng: np.random.Generator) -> None:
    ours, theirs = getattr(ops, name), getattr(F, name)
    rank, transposed = int(name[-2]), "transpose" in name
    ran = 0
    for turn, (x_shape, w_shape, options) in enumerate(conv_cases(rank, transposed)):
        x, w = reals(rng, x_shape, dtype), reals(rng, w_shape, dtype)
        k = w_shape[1] * options["groups"] if transposed else w_shape[0]
        b = reals(rng, (k,), dtype) if turn % 2 else None
        if turn % 3 == 0:
            x = x[0]
        try:
            want = theirs(t64(x), t64(w), t64(b), **options).numpy()
        except RuntimeError:
            with pytest.raises(ShapeError):
                ours(x, w, b, **options)
            continue
        terms = np.prod(w_shape) + 2  # at most, whatever the groups
        bound = tolerance.sum_bound(terms, theirs(absolute(x), absolute(w), absolute(b), **options).numpy())
        got = ours(x, w, b, **options)
        what = (x.shape, w_shape, options)
        assert got.dtype == x.dtype
        assert_within(got, want, for_dtype(bound, dtype), what)
        # channels last: the same numbers by other strides
        last = np.ascontiguousarray(np.moveaxis(x, -rank - 1, -1))
        assert_exact(np.moveaxis(ours(last, w, b, **options, layout="NHWC"), -1, -rank - 1), got, what)
        ran += 1
    assert ran > 50


def test_integers_are_exact(rng: np.random.Generator, isa: str) -> None:
    """Sums of small integers do not depend on their order, so they must be equal to the bit."""
    for c, k, g, r, stride in itertools.product((1, 3, 16, 33), (1, 8, 65), (1,), (1, 3, 5), (1, 2)):
        x, w, b = integers(rng, (2, c, 9, 10)), integers(rng, (k, c // g, r, r)), integers(rng, (k,))
        want = F.conv2d(t64(x), t64(w), t64(b), stride, padding=r // 2).numpy()
        assert_exact(ops.conv2d(x, w, b, stride, padding=r // 2), want, (isa, c, k, r, stride))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: str, rng: np.random.Generator) -> None:
    for lead, (c, k) in itertools.product(
        [(), (3,), (2, 3), (2, 1, 4, 3), (2, 1, 3, 1, 2)], [(1, 1), (7, 20), (130, 65)]
    ):
        x, w, b = reals(rng, (*lead, c), dtype), reals(rng, (k, c), dtype), reals(rng, (k,), dtype)
        want = F.linear(t64(x), t64(w), t64(b)).numpy()
        bound = tolerance.sum_bound(c + 2, F.linear(absolute(x), absolute(w), absolute(b)).numpy())
        assert_within(ops.linear(x, w, b), want, for_dtype(bound, dtype), (lead, c, k))
        assert_within(ops.linear(x, w), want - b, for_dtype(bound, dtype), (lead, c, k))
        one = ops.linear(x, w[0], b[0])
        assert one.shape == lead
        assert_within(one, want[..., 0], for_dtype(bound[..., 0], dtype), (lead, c))


# Pooling


def pool_cases(rank: int, kind: str) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    shape = {1: (3, 11), 2: (5, 9, 8), 3: (2, 5, 7, 6)}[rank]
    ramp = tuple(range(1, rank + 1))
    others = (1, 2) if kind == "max" else (True, False)  # dilation, or count_include_pad
    for window, stride, padding, other, ceil in itertools.product(
        (1, 2, 3, ramp), (None, 1, 2, 3), (0, 1), others, (False, True)
    ):
        options: dict[str, Any] = dict(kernel_size=window, stride=stride, padding=padding, ceil_mode=ceil)
        options["dilation" if kind == "max" else "count_include_pad"] = other
        if kind == "avg" and rank > 1 and stride == 2:
            options["divisor_override"] = 3
        yield shape, options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_max_pool(rank: int, dtype: str, rng: np.random.Generator) -> None:
    ours, theirs = getattr(ops, f"max_pool{rank}d"), getattr(F, f"max_pool{rank}d")
    ran = 0
    for shape, options in pool_cases(rank, "max"):
        # few different numbers, so that maxima are often equal and their order counts
        x = integers(rng, (2, *shape), 2, dtype)
        try:
            want, index = theirs(torch.from_numpy(x), **options, return_indices=True)
        except RuntimeError:
            with pytest.raises(ShapeError):
                ours(x, **options)
            continue
        got, got_index = ours(x, **options, return_indices=True)
        assert_exact(got, want, options)
        assert_exact(got_index, index, options)
        assert got_index.dtype == np.int64 and got.dtype == x.dtype
        assert_exact(ours(x[1], **options), want[1], options)
        ran += 1
    assert ran > 60


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_avg_pool(rank: int, dtype: str, rng: np.random.Generator) -> None:
    ours, theirs = getattr(ops, f"avg_pool{rank}d"), getattr(F, f"avg_pool{rank}d")
    ran = 0
    for shape, options in pool_cases(rank, "avg"):
        x = reals(rng, (2, *shape), dtype)
        try:
            want = theirs(t64(x), **options).numpy()
        except RuntimeError:
            with pytest.raises(ShapeError):
                ours(x, **options)
            continue
        bound = tolerance.sum_bound(3**rank + 1, theirs(absolute(x), **options).numpy())
        assert_within(ours(x, **options), want, for_dtype(bound, dtype), options)
        assert_within(ours(x[0], **options), want[0], for_dtype(bound[0], dtype), options)
        ran += 1
    assert ran > 60


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_adaptive_pool(rank: int, dtype: str, rng: np.random.Generator) -> None:
    shape = (2, 5, *(11, 6, 4)[:rank])
    sizes: list[Any] = [1, 2, 3, 7, 0, tuple(range(2, rank + 2))]
    if rank > 1:
        sizes.append((None,) * (rank - 1) + (3,))
    x = integers(rng, shape, 3, dtype)
    for size in sizes:
        want = getattr(F, f"adaptive_avg_pool{rank}d")(t64(x), size).numpy()
        bound = tolerance.sum_bound(np.prod(shape[2:]) + 1, np.full(want.shape, 3.0))
        assert_within(getattr(ops, f"adaptive_avg_pool{rank}d")(x, size), want, for_dtype(bound, dtype), size)
        ours = getattr(ops, f"adaptive_max_pool{rank}d")
        want, index = getattr(F, f"adaptive_max_pool{rank}d")(torch.from_numpy(x), size, return_indices=True)
        got, got_index = ours(x, size, return_indices=True)
        assert_exact(got, want, size)
        assert_exact(got_index, index, size)
        assert_exact(ours(x[1], size), want[1], size)


def test_negative_divisor() -> None:
    x = np.arange(16, dtype="f4").reshape(1, 4, 4)
    want = F.avg_pool2d(torch.from_numpy(x), 2, divisor_override=-2)
    assert_exact(ops.avg_pool2d(x, 2, divisor_override=-2), want)


def test_pooling_of_nan() -> None:
    x = np.zeros((1, 1, 4, 4), "f4")
    x[0, 0, 1, 1] = x[0, 0, 1, 2] = np.nan
    for kernel, stride in ((2, 2), (3, 1), (4, 1)):
        want, index = F.max_pool2d(torch.from_numpy(x), kernel, stride, return_indices=True)
        got, got_index = ops.max_pool2d(x, kernel, stride, return_indices=True)
        assert_exact(got, want)
        assert_exact(got_index, index)
        assert_exact(ops.avg_pool2d(x, kernel, stride), F.avg_pool2d(torch.from_numpy(x), kernel, stride))


# Norms


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm(dtype: str, rng: np.random.Generator) -> None:
    for shape, c in itertools.product(((4,), (4, 5), (2, 3, 5), (1, 2, 3, 2)), (1, 7, 33)):
        x = reals(rng, (shape[0], c, *shape[1:]), dtype)
        mean, weight, bias = (reals(rng, (c,), dtype) for _ in range(3))
        var = np.abs(reals(rng, (c,), dtype))
        for w, b, eps in ((weight, bias, 1e-5), (None, None, 1e-3), (weight, None, 1e-5), (None, bias, 0.1)):
            want = F.batch_norm(t64(x), t64(mean), t64(var), t64(w), t64(b), eps=eps).numpy()
            bound = tolerance.batch_norm_bound(np.moveaxis(x, 1, -1), mean, var, w, b, eps)
            got = ops.batch_norm(x, mean, var, w, b, eps=eps)
            assert_within(got, want, for_dtype(np.moveaxis(bound, -1, 1), dtype), (x.shape, eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: str, rng: np.random.Generator) -> None:
    for shape, axes in (
        ((3, 4), 1),
        ((2, 3, 65), 1),
        ((2, 3, 5), 2),
        ((7,), 1),
        ((2, 1, 3, 4, 5), 3),
        ((1, 2, 1, 2, 1, 9), 2),
    ):
        x = reals(rng, shape, dtype)
        size = shape[-axes:]
        weight, bias = reals(rng, size, dtype), reals(rng, size, dtype)
        for w, b in ((weight, bias), (None, None), (weight, None)):
            want = F.layer_norm(t64(x), size, t64(w), t64(b)).numpy()
            bound = tolerance.layer_norm_bound(x, w, b, 1e-5, tuple(range(-axes, 0)))
            assert_within(ops.layer_norm(x, size, w, b), want, for_dtype(bound, dtype), (shape, size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_local_response_norm(dtype: str, rng: np.random.Generator) -> None:
    for shape, (size, alpha, beta, k) in itertools.product(
        ((2, 1, 3), (2, 7, 5), (1, 33, 3, 4), (1, 5, 2, 3, 2)),
        ((5, 1e-4, 0.75, 2.0), (1, 1.0, 0.5, 1.0), (4, 0.3, 1.0, 1.0), (9, 2.0, 0.75, 0.5)),
    ):
        x = reals(rng, shape, dtype)
        want = F.local_response_norm(t64(x), size, alpha, beta, k).numpy()
        bound = tolerance.lrn_bound(x, want, size, beta, k)
        got = ops.local_response_norm(x, size, alpha, beta, k)
        assert_within(got, want, for_dtype(bound, dtype), (shape, size, alpha, beta, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", (False, True))
def test_softmax(log: bool, dtype: str, rng: np.random.Generator) -> None:
    ours, theirs = (ops.log_softmax, F.log_softmax) if log else (ops.softmax, F.softmax)
    for shape in ((), (1,), (5,), (3, 1000), (2, 3, 4), (2, 17, 3, 4), (2, 3, 2, 2, 5), (1, 2, 1, 3, 2, 2)):
        x = reals(rng, shape, dtype) * 4
        for dim in range(-len(shape) or -1, len(shape) or 1):
            want = theirs(t64(x), dim).numpy()
            bound = tolerance.softmax_bound(x if shape else x[None], dim if shape else 0, log)
            got = ours(x, dim)
            assert_within(got, want, for_dtype(bound if shape else bound[0], dtype), (shape, dim))
            assert got.flags.c_contiguous
    extreme = np.array([[0, 1000, -1000, 3], [-np.inf, 0, 1, 2], [np.nan, 0, 1, 2]], dtype)
    want = theirs(torch.from_numpy(extreme.astype("f8")), 1).numpy()
    bound = tolerance.softmax_bound(np.where(np.isfinite(extreme), extreme, -1e4), 1, log)
    assert_within(ours(extreme, 1), want, for_dtype(bound, dtype))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_softmax_implicit_dim(rng: np.random.Generator) -> None:
    for shape in ((4,), (3, 4), (2, 3, 4), (2, 3, 4, 5)):
        x = reals(rng, shape, "float64")
        assert_within(ops.softmax(x), F.softmax(torch.from_numpy(x)), 1e-12)


# Elementwise

# function, torch's arguments -> the name and parameters that tolerance.py knows
ACTIVATIONS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("relu", {}, ("relu",)),
    ("relu6", {}, ("relu6",)),
    ("silu", {}, ("silu",)),
    ("sigmoid", {}, ("sigmoid",)),
    ("hardswish", {}, ("hard_swish",)),
    ("hardsigmoid", {}, ("hard_sigmoid",)),
    ("gelu", {}, ("gelu",)),
    ("gelu", {"approximate": "tanh"}, ("gelu_tanh",)),
    ("tanh", {}, ("tanh",)),
    ("elu", {}, ("elu", 1.0)),
    ("elu", {"alpha": 0.3}, ("elu", 0.3)),
    ("leaky_relu", {}, ("leaky_relu", 0.01)),
    ("leaky_relu", {"negative_slope": 1.5}, ("leaky_relu", 1.5)),
    ("softplus", {}, ("softplus", 1.0, 20.0)),
    ("softplus", {"beta": 2.5, "threshold": 3.0}, ("softplus", 2.5, 3.0)),
    ("hardtanh", {}, ("clamp", -1.0, 1.0)),
    ("hardtanh", {"min_val": -0.3, "max_val": 2.7}, ("clamp", -0.3, 2.7)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda case: case[0] + "".join(f"-{v}" for v in case[1].values()))
def test_activation(
    case: tuple[str, dict[str, Any], tuple[Any, ...]], dtype: str, rng: np.random.Generator, isa: str
) -> None:
    name, options, known = case
    ours, theirs = getattr(ops, name), getattr(F, name)
    grid = np.concatenate(
        [np.linspace(-20, 20, 4001), [0.0, -0.0, 88.0, -88.0, 110.0, -110.0, 1e30, -1e30], reals(rng, (999,))]
    )
    for x in (
        grid.astype(dtype),
        reals(rng, (2, 3, 5, 7), dtype),
        reals(rng, (), dtype),
        reals(rng, (3, 70, 41), dtype),
    ):
        want = theirs(t64(x), **options).numpy()
        bound = tolerance.activation_bound(known[0], x, 0.0, *known[1:])
        assert_within(ours(x, **options), want, for_dtype(bound, dtype), (x.shape, isa))
    special = np.array([np.nan, np.inf, -np.inf] * 7, dtype)
    assert_within(ours(special, **options), theirs(t64(special), **options), 1e-6, isa)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ("add", "sub", "mul", "div", "maximum", "minimum"))
def test_arithmetic(name: str, dtype: str, rng: np.random.Generator) -> None:
    ours, theirs = getattr(ops, name), getattr(torch, name)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((), ()), ((5,), (5,)), ((3, 4), (4,)), ((2, 3, 4, 5), (1, 3, 1, 1)), ((2, 3, 4, 5), (2, 1, 1, 5)),
        ((5, 1), (5,)), ((2, 1, 4, 1, 3), (1, 3, 1, 2, 3)), ((2, 3, 1, 4, 5), (5,)), ((3, 1, 5), (4, 1)),
        ((40, 60, 3), (40, 60, 3)), ((1, 2, 1, 2, 1, 3), (1, 2, 1, 2, 1, 3)), ((0, 3), (1, 3)),
        ((1, 3, 40, 40), (2, 3, 1, 40)),
    ]  # fmt: skip
    for first, second in shapes:
        for a_shape, b_shape in ((first, second), (second, first)):
            a, b = reals(rng, a_shape, dtype), reals(rng, b_shape, dtype)
            # one rounding, and PyTorch rounds in the same way
            assert_exact(ours(a, b), theirs(torch.from_numpy(a), torch.from_numpy(b)), (a_shape, b_shape))
    a = reals(rng, (3, 4), dtype)
    if name not in ("maximum", "minimum"):
        assert_exact(ours(a, 3), theirs(torch.from_numpy(a), 3))
        assert_exact(ours(a, 0.5), theirs(torch.from_numpy(a), 0.5))
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype)
    a, b = (np.ascontiguousarray(v) for v in np.broadcast_arrays(special[:, None], special))
    assert_exact(ours(a, b), theirs(torch.from_numpy(a), torch.from_numpy(b)))


def test_add_and_sub_alpha(rng: np.random.Generator) -> None:
    a, b = integers(rng, (3, 4)), integers(rng, (4,))
    for name in ("add", "sub"):
        want = getattr(torch, name)(torch.from_numpy(a), torch.from_numpy(b), alpha=2.5)
        assert_exact(getattr(ops, name)(a, b, alpha=2.5), want)
        assert_exact(getattr(ops, name)(a, 2, alpha=3), getattr(torch, name)(torch.from_numpy(a), 2, alpha=3))


def test_dropout_is_identity(rng: np.random.Generator) -> None:
    x = reals(rng, (2, 3))
    y = ops.dropout(x, 0.7, training=False)
    assert_exact(y, x)
    assert not np.shares_memory(x, y)
    assert_exact(ops.dropout(x, 0.0), x)
    with pytest.raises(Unsupported):
        ops.dropout(x)


# Moving data


@pytest.mark.parametrize("dtype", DTYPES)
def test_cat(dtype: str, rng: np.random.Generator) -> None:
    for shape in ((3,), (2, 3), (2, 3, 4), (2, 3, 1, 5), (2, 1, 3, 2, 2), (1, 2, 1, 2, 1, 3)):
        for dim in range(-len(shape), len(shape)):
            parts = []
            for size in (1, 4, 2, 0):
                part = list(shape)
                part[dim] = size
                parts.append(reals(rng, tuple(part), dtype))
            want = torch.cat([torch.from_numpy(p) for p in parts], dim)
            assert_exact(ops.cat(parts, dim), want, (shape, dim))
            assert_exact(ops.concat(tuple(parts[:1]), dim), parts[0], (shape, dim))
    assert_exact(ops.cat([np.zeros((0,), dtype), np.ones((2, 3), dtype)], 1), np.ones((2, 3)))


def test_flatten(rng: np.random.Generator) -> None:
    x = reals(rng, (2, 3, 4, 5))
    for first, last in itertools.combinations_with_replacement(range(4), 2):
        y = ops.flatten(x, first, last)
        assert_exact(y, torch.flatten(torch.from_numpy(x), first, last))
        assert not np.shares_memory(x, y)
    assert ops.flatten(reals(rng, ())).shape == (1,)
    with pytest.raises(ShapeError):
        ops.flatten(x, 2, 1)


PADS: list[tuple[tuple[int, ...], tuple[int, ...], str, float | None]] = [
    ((4,), (1, 2), "constant", None),
    ((3, 4), (1, 2, 3, 0), "constant", 2.5),
    ((2, 3, 4, 5), (1, 2), "constant", -1.0),
    ((2, 3, 4, 5), (1, 2, 3, 4), "constant", None),
    ((2, 3, 4, 5), (-1, 2, 1, -2), "constant", None),
    ((2, 3, 4, 5), (0, 0, 1, 1, 2, 2), "constant", None),
    ((2, 3, 4, 5), (0, 1, 0, 0, 0, 0, 1, 1), "constant", None),
    ((2, 3, 4, 5), (0, 1, 1, 0, 2, 2, 1, 1), "constant", float("inf")),
    ((2, 2, 3, 4, 5), (1, 1, 1, 0, 2, 2), "constant", None),
    ((1, 2, 1, 2, 3, 4), (1, 1, 0, 0, 2, 2), "constant", None),
    ((2, 0, 4), (1, 1), "constant", None),
    ((2, 0, 4), (1, 1, 2, 1), "constant", 7.0),
    *(
        case
        for mode in ("reflect", "replicate", "circular")
        for case in (
            ((2, 5), (2, 1), mode, None),
            ((2, 3, 5), (3, 4), mode, None),
            ((3, 4, 5), (1, 2, 3, 0), mode, None),
            ((2, 3, 4, 5), (4, 1, 0, 3), mode, None),
            ((2, 3, 4, 5), (-1, 2, 2, -1), mode, None),
            ((2, 3, 4, 5), (1, 2, 3, 0, 1, 1), mode, None),
            ((1, 2, 3, 4, 5), (1, 2, 3, 0, 2, 2), mode, None),
        )
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pad(dtype: str, rng: np.random.Generator) -> None:
    for shape, pad, mode, value in PADS:
        x = reals(rng, shape, dtype)
        want = F.pad(torch.from_numpy(x), pad, mode, value)
        assert_exact(ops.pad(x, pad, mode, value), want, (shape, pad, mode, value))


INTERPOLATIONS: list[dict[str, Any]] = [
    dict(size=s, mode=m) for m in ("nearest", "nearest-exact", "area") for s in (1, 4, 5, 7, 10, 23)
] + [
    dict(scale_factor=s, mode=m, recompute_scale_factor=r)
    for m in ("nearest", "nearest-exact")
    for s in (0.3, 0.5, 1.0, 1.7, 2, 3)
    for r in (None, True)
]  # fmt: skip
SMOOTH: list[dict[str, Any]] = [
    dict(size=s, align_corners=a) for s in (1, 4, 5, 7, 10, 23) for a in (None, False, True)
] + [
    dict(scale_factor=s, recompute_scale_factor=r, align_corners=a)
    for s in (0.3, 0.5, 1.0, 1.7, 2)
    for r in (None, True)
    for a in (False, True)
]


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_interpolate_nearest_and_area(rank: int, rng: np.random.Generator) -> None:
    x = reals(rng, (2, 3, *(7, 5, 4)[:rank]))
    for options in INTERPOLATIONS:
        want = F.interpolate(torch.from_numpy(x), **options)
        bound = tolerance.sum_bound(np.prod(x.shape[2:]), np.abs(x).max()) if options["mode"] == "area" else 0.0
        assert_within(ops.interpolate(x, **options), want, np.maximum(bound, 1e-300), options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ("linear", "bilinear", "bicubic", "trilinear"))
@pytest.mark.filterwarnings("ignore:.*align_corners")
def test_interpolate_smooth(mode: str, dtype: str, rng: np.random.Generator) -> None:
    rank = {"linear": 1, "trilinear": 3}.get(mode, 2)
    x = reals(rng, (2, 3, *(7, 5, 4)[:rank]), dtype)
    for options in SMOOTH:
        want = F.interpolate(t64(x), mode=mode, **options).numpy()
        bound = tolerance.resize_bound(x, x.shape[2:], 4 if mode == "bicubic" else 2)
        assert_within(ops.interpolate(x, mode=mode, **options), want, for_dtype(bound, dtype), options)
    sizes = {1: (9,), 2: (9, 3), 3: (2, 9, 3)}[rank]
    want = F.interpolate(t64(x), sizes, mode=mode, align_corners=False).numpy()
    assert_within(ops.interpolate(x, sizes, mode=mode, align_corners=False), want, for_dtype(bound, dtype))


# What all functions share: one call of each on a batch of images


def calls() -> dict[str, Callable[..., Any]]:
    """Each function as a call on x (N,4,6,6); keyword arguments are passed on."""
    rng = np.random.default_rng(7)
    w, vector = reals(rng, (8, 4, 3, 3)), np.abs(reals(rng, (4,)))
    matrix, rows = reals(rng, (5, 6)), reals(rng, (6,))

    def like(x: Any, *arrays: np.ndarray) -> list[np.ndarray]:
        return [a.astype("f8") if "64" in str(x.dtype) else a for a in arrays]

    named: dict[str, Callable[..., Any]] = {
        "conv2d": lambda x, **kw: ops.conv2d(x, *like(x, w), padding=1, **kw),
        "conv2d stride": lambda x, **kw: ops.conv2d(x, *like(x, w), stride=2, **kw),
        "conv2d pointwise": lambda x, **kw: ops.conv2d(x, *like(x, w[:, :, :1, :1]), **kw),
        "conv2d grouped": lambda x, **kw: ops.conv2d(x, *like(x, w[:, :2]), groups=2, **kw),
        "conv2d depthwise": lambda x, **kw: ops.conv2d(x, *like(x, w[:4, :1]), groups=4, **kw),
        "conv_transpose2d": lambda x, **kw: ops.conv_transpose2d(x, *like(x, w.transpose(1, 0, 2, 3)), stride=2, **kw),
        "linear": lambda x, **kw: ops.linear(x, *like(x, matrix), **kw),
        "max_pool2d": lambda x, **kw: ops.max_pool2d(x, 3, 2, 1, **kw),
        "avg_pool2d": lambda x, **kw: ops.avg_pool2d(x, 2, **kw),
        "adaptive_avg_pool2d": lambda x, **kw: ops.adaptive_avg_pool2d(x, (2, 4), **kw),
        "adaptive_max_pool2d": lambda x, **kw: ops.adaptive_max_pool2d(x, (2, 4), **kw),
        "batch_norm": lambda x, **kw: ops.batch_norm(x, *like(x, vector, vector, vector, vector), **kw),
        "layer_norm": lambda x, **kw: ops.layer_norm(x, (6,), *like(x, rows, rows), **kw),
        "local_response_norm": lambda x, **kw: ops.local_response_norm(x, 3, **kw),
        "softmax": lambda x, **kw: ops.softmax(x, 1, **kw),
        "softmax last": lambda x, **kw: ops.softmax(x, 3, **kw),
        "relu": ops.relu,
        "gelu": ops.gelu,
        "add": lambda x, **kw: ops.add(x, *like(x, vector[:, None, None]), **kw),
        "mul": lambda x, **kw: ops.mul(x, x, **kw),
        "cat": lambda x, **kw: ops.cat([x, x], 1, **kw),
        "pad": lambda x, **kw: ops.pad(x, (1, 2, 3, 0), **kw),
        "pad reflect": lambda x, **kw: ops.pad(x, (1, 2, 3, 0), "reflect", **kw),
        "interpolate": lambda x, **kw: ops.interpolate(x, scale_factor=2, mode="bilinear", **kw),
        "interpolate nearest": lambda x, **kw: ops.interpolate(x, (3, 11), **kw),
    }  # fmt: skip
    return named


CALLS = calls()


class Exchange:
    """An object of nobody's library that only speaks DLPack."""

    def __init__(self, array: np.ndarray, device: int = 1):
        self.array, self.device, self.dtype = array, (device, 0), array.dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()


class Interface:
    """An object that only has NumPy's array interface."""

    def __init__(self, array: np.ndarray):
        self.dtype, self.__array_interface__ = array.dtype, array.__array_interface__
        self.owner = array


def same_values(x: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The numbers of x (N,C,H,W) in every kind of object and memory."""
    yield "torch", torch.from_numpy(x.copy())
    yield "torch that requires a gradient", torch.from_numpy(x.copy()).requires_grad_()
    yield "torch channels_last", torch.from_numpy(x.copy()).contiguous(memory_format=torch.channels_last)
    yield "DLPack", Exchange(x)
    yield "array interface", Interface(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    yield "memory map-like", np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)
    yield "channels last", np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    yield "Fortran", np.asfortranarray(x)
    yield "reversed", np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]
    large = np.full([2 * n + 3 for n in x.shape], np.nan, x.dtype)
    inside = large[tuple(slice(1, 1 + 2 * n, 2) for n in x.shape)]
    inside[...] = x
    yield "strided", inside
    crop = np.full([n + 2 for n in x.transpose(0, 2, 3, 1).shape], np.nan, x.dtype)[1:-1, 1:-1, 1:-1, 1:-1].transpose(
        0, 3, 1, 2
    )
    crop[...] = x
    yield "cropped channels last", crop
    odd = np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    assert not odd.flags.aligned
    yield "misaligned", odd
    packed = np.zeros(x.shape, [("pad", "u1"), ("value", x.dtype)])
    packed["value"] = x
    yield "field of packed records", packed["value"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_memory_of_the_input(name: str, dtype: str, rng: np.random.Generator) -> None:
    x = reals(rng, (3, 4, 6, 6), dtype)
    kept = x.copy()
    want = CALLS[name](x)
    assert want.flags.c_contiguous and want.flags.writeable and not np.shares_memory(want, x)
    for kind, value in same_values(x):
        if isinstance(value, (Exchange, Interface)) and name in ("cat", "mul"):
            continue  # they are also read by the call itself
        assert_exact(CALLS[name](value), want, kind)
    assert_exact(x, kept, "the input was written to")


@pytest.mark.parametrize("name", CALLS)
def test_broadcast_views(name: str, rng: np.random.Generator) -> None:
    """Strides of zero are read as they are."""
    for shape in ((1, 1, 1, 1), (1, 4, 6, 6), (3, 1, 6, 6), (3, 4, 1, 6), (3, 4, 6, 1)):
        x = np.broadcast_to(reals(rng, shape), (3, 4, 6, 6))
        assert_exact(CALLS[name](x), CALLS[name](x.copy()), shape)


ON_ROWS = ("linear", "layer_norm", "softmax last")  # not on images: their results are always contiguous


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ON_ROWS])
def test_channels_last_stays(name: str, rng: np.random.Generator) -> None:
    """NHWC memory seen as NCHW gives such a result again, as with PyTorch."""
    last = np.ascontiguousarray(reals(rng, (3, 6, 6, 4)))
    y = CALLS[name](last.transpose(0, 3, 1, 2))
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous, y.strides
    one = CALLS[name](np.ascontiguousarray(last.transpose(0, 3, 1, 2)))
    assert one.flags.c_contiguous


@pytest.mark.parametrize("name", CALLS)
def test_batches(name: str, rng: np.random.Generator) -> None:
    """No images, one image, and the same bits for an image whatever the batch and the number of threads."""
    x = reals(rng, (13, 4, 6, 6))
    whole = CALLS[name](x)
    assert CALLS[name](x[:0]).shape == (0, *whole.shape[1:])
    for n in (1, 8):
        assert_exact(CALLS[name](x[:n]), whole[:n], n)
    for threads in (1, 2):
        assert_exact(CALLS[name](x, threads=threads), whole, threads)


@pytest.mark.parametrize(
    "name", [n for n in CALLS if "layout" in inspect.signature(getattr(ops, n.split()[0])).parameters]
)
def test_nhwc_layout(name: str, rng: np.random.Generator) -> None:
    x = reals(rng, (3, 4, 6, 6))
    want = CALLS[name](x)
    got = CALLS[name](np.ascontiguousarray(x.transpose(0, 2, 3, 1)), layout="NHWC")
    assert got.flags.c_contiguous
    assert_exact(got.transpose(0, 3, 1, 2), want)
    strided = x.transpose(0, 2, 3, 1)  # NCHW memory seen as NHWC
    assert_exact(CALLS[name](strided, layout="NHWC").transpose(0, 3, 1, 2), want)
    with pytest.raises(Unsupported, match="CHWN"):
        CALLS[name](x, layout="CHWN")


@pytest.mark.parametrize("name", CALLS)
def test_types_are_never_converted(name: str) -> None:
    x = np.zeros((1, 4, 6, 6))
    for wrong in ("int32", "int64", "uint8", "float16", "complex64", "bool", ">f4"):
        with pytest.raises(DTypeError, match=re.escape(str(np.dtype(wrong)))):
            CALLS[name](x.astype(wrong))
    with pytest.raises(DTypeError, match="bfloat16"):
        CALLS[name](torch.zeros(1, 4, 6, 6, dtype=torch.bfloat16))
    if name not in ("cat", "mul"):
        with pytest.raises(Unsupported, match="CUDA"):
            CALLS[name](Exchange(x, device=2))


def test_what_is_not_an_array() -> None:
    for wrong in ([[1.0]], 1.0, None, "x", object()):
        with pytest.raises(DTypeError, match=type(wrong).__name__):
            ops.relu(wrong)
    with pytest.raises(DTypeError, match="mask"):
        ops.relu(np.ma.zeros(3, "f4"))
    with pytest.raises(DTypeError):
        ops.relu(torch.zeros(3).to_sparse())
    with pytest.raises(Unsupported, match="meta|device"):
        ops.relu(torch.zeros(3, device="meta"))
    with pytest.raises(DTypeError, match="float64"):
        ops.conv2d(np.zeros((1, 1, 3, 3), "f4"), np.zeros((1, 1, 1, 1), "f8"))
    with pytest.raises(DTypeError, match="float32"):
        ops.add(np.zeros(3, "f8"), np.zeros(3, "f4"))


def test_nan_and_infinity_spread_as_in_torch(rng: np.random.Generator) -> None:
    x, w = reals(rng, (1, 5, 6, 6)), reals(rng, (7, 5, 3, 3))
    x[0, 2, 3, 3], x[0, 1, 0, 0] = np.nan, np.inf
    want = F.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()
    assert_exact(np.isnan(ops.conv2d(x, w, padding=1)), np.isnan(want))
    assert_exact(np.isinf(ops.conv2d(x, w, padding=1)), np.isinf(want))


def test_calls_at_the_same_time(rng: np.random.Generator) -> None:
    x, w = reals(rng, (4, 16, 20, 20)), reals(rng, (16, 16, 3, 3))
    want = ops.conv2d(x, w)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda i: ops.conv2d(x, w, threads=1 + i % 2), range(100)):
            assert_exact(got, want)


# Refusals: each case is refused by PyTorch too


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, "f4")


X, W = zeros(1, 4, 5, 5), zeros(6, 4, 3, 3)
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (X, zeros(6, 3, 3, 3)), {}, r"wants 3 channels, the input \(1, 4, 5, 5\) has 4"),
    ("conv2d", (zeros(4, 5), W), {}, r"\(4, 5\)"),
    ("conv2d", (zeros(1, 1, 4, 5, 5), W), {}, r"\(1, 1, 4, 5, 5\)"),
    ("conv2d", (X, zeros(6, 4, 3)), {}, r"\(6, 4, 3\), want 4 dimensions"),
    ("conv2d", (X, W, zeros(5)), {}, r"bias: got shape \(5,\), want \(6,\)"),
    ("conv2d", (X, W, zeros(1, 6)), {}, r"bias: got shape \(1, 6\), want \(6,\)"),
    ("conv2d", (X, W), dict(stride=0), "stride=.*0"),
    ("conv2d", (X, W), dict(stride=(1, -1)), "stride=.*-1"),
    ("conv2d", (X, W), dict(stride=(1, 1, 1)), "stride=.*3 entries"),
    ("conv2d", (X, W), dict(padding=-1), "padding=.*-1"),
    ("conv2d", (X, W), dict(dilation=0), "dilation=.*0"),
    ("conv2d", (X, W), dict(dilation=3), r"larger than the input \(5, 5\)"),
    ("conv2d", (X, zeros(6, 4, 6, 1)), {}, r"\(6, 1\).*larger than the input"),
    ("conv2d", (X, W), dict(groups=0), "groups=0"),
    ("conv2d", (X, W), dict(groups=-1), "groups=-1"),
    ("conv2d", (X, zeros(6, 1, 3, 3)), dict(groups=4), "groups=4"),
    ("conv2d", (X, W), dict(padding="full"), "full"),
    ("conv2d", (X, W), dict(padding="same", stride=2), "stride of 1"),
    ("conv2d", (X, zeros(0, 4, 3, 3)), {}, r"\(0, 4, 3, 3\)"),
    ("conv1d", (zeros(4, 5, 5, 5), zeros(6, 4, 3)), {}, r"\(4, 5, 5, 5\)"),
    ("conv3d", (X[None], zeros(6, 4, 3, 3, 3)), {}, "channels"),
    ("conv_transpose2d", (X, zeros(3, 4, 3, 3)), {}, "wants 3 channels"),
    ("conv_transpose2d", (X, zeros(4, 6, 3, 3)), dict(output_padding=1), "output_padding=.*1"),
    ("conv_transpose2d", (X, zeros(4, 6, 3, 3)), dict(padding=4), "output would have"),
    ("conv_transpose2d", (X, zeros(4, 6, 3, 3)), dict(stride=2, output_padding=-1), "output_padding=.*-1"),
    ("conv_transpose2d", (X, zeros(4, 6, 3, 3)), dict(groups=3), "groups=3"),
    ("conv_transpose2d", (X, zeros(4, 6, 3, 3), zeros(5)), {}, "bias"),
    ("linear", (zeros(2, 3), zeros(5, 4)), {}, r"\(2, 3\).*\(5, 4\)"),
    ("linear", (zeros(2, 3), zeros(5, 3), zeros(4)), {}, r"bias: got shape \(4,\)"),
    ("max_pool2d", (X, 0), {}, "kernel_size=.*0"),
    ("max_pool2d", (X, 2, 0), {}, "stride=.*0"),
    ("max_pool2d", (X, 2, 1, 2), {}, "half of the kernel"),
    ("max_pool2d", (X, 2, 1, -1), {}, "padding=.*-1"),
    ("max_pool2d", (X, 6), {}, "output would have"),
    ("max_pool2d", (X, 2, 1, 0, 0), {}, "dilation=.*0"),
    ("max_pool2d", (zeros(5, 5), 2), {}, r"\(5, 5\)"),
    ("max_pool2d", (zeros(1, 0, 5, 5), 2), {}, "0 channels"),
    ("max_pool1d", (zeros(1, 2, 3), 4), {}, "output would have"),
    ("max_pool3d", (X, (2, 2)), {}, "kernel_size=.*2 entries"),
    ("avg_pool2d", (X, 3, 1, 2), {}, "half of the kernel"),
    ("avg_pool2d", (X, 2), dict(divisor_override=0), "divisor_override=0"),
    ("avg_pool3d", (X, 2, 1, 2), {}, "half of the kernel"),
    ("adaptive_avg_pool2d", (X, -1), {}, "output_size=.*-1"),
    ("adaptive_avg_pool2d", (X, (1, 2, 3)), {}, "output_size=.*3 entries"),
    ("adaptive_max_pool2d", (zeros(1, 4, 0, 5), 2), {}, "0, 5"),
    ("batch_norm", (X, zeros(3), zeros(3)), {}, r"running_mean: got shape \(3,\), want \(4,\)"),
    ("batch_norm", (X, None, None), {}, "running_mean"),
    ("batch_norm", (X, zeros(4), zeros(4), zeros(5)), {}, r"weight: got shape \(5,\)"),
    ("layer_norm", (X, (4,)), {}, r"\(4,\)"),
    ("layer_norm", (X, (5,), zeros(4)), {}, r"weight: got shape \(4,\)"),
    ("local_response_norm", (zeros(4, 5), 3), {}, r"\(4, 5\)"),
    ("softmax", (X, 4), {}, "dim=4"),
    ("log_softmax", (X, -5), {}, "dim=-5"),
    ("hardtanh", (X, 1.0, -1.0), {}, "1.0"),
    ("cat", ([],), {}, "no arrays"),
    ("cat", ([X, zeros(1, 4, 5, 6)], 1), {}, r"\(1, 4, 5, 6\)"),
    ("cat", ([X, X], 4), {}, "dim=4"),
    ("cat", ([zeros(2), zeros(2, 1)],), {}, r"\(2, 1\)"),
    ("pad", (X, (1,)), {}, r"pad=\(1,\)"),
    ("pad", (X, (1,) * 10), {}, "at most 4"),
    ("pad", (X, (-3, -3)), {}, r"-3"),
    ("pad", (X, (5, 0), "reflect"), {}, "pad=|want"),
    ("pad", (X, (5, 0, 0, 0), "reflect"), {}, "too large"),
    ("pad", (X, (6, 0, 0, 0), "circular"), {}, "too large"),
    ("interpolate", (X,), {}, "want one of them"),
    ("interpolate", (X, 3, 2.0), {}, "want one of them"),
    ("interpolate", (X, (1, 2, 3)), {}, "3 entries"),
    ("interpolate", (X, 0), {}, "output would have"),
    ("interpolate", (X, 3), dict(align_corners=True), "align_corners=True"),
    ("interpolate", (X, 3), dict(recompute_scale_factor=True), "recompute_scale_factor"),
    ("interpolate", (zeros(4, 5), 3), {}, r"\(4, 5\)"),
    ("interpolate", (X[0], 3), dict(mode="bilinear"), "bilinear"),
    ("interpolate", (X, 3), dict(mode="bicupic"), "bicupic"),
    ("dropout", (X, 1.5), {}, "p=1.5"),
    ("gelu", (X,), dict(approximate="erf"), "erf"),
    ("flatten", (X, 2, 1), {}, "start_dim=2"),
    ("add", (zeros(2, 3), zeros(2, 4)), {}, r"\(2, 3\) and \(2, 4\)"),
]  # fmt: skip


def as_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [as_torch(v) for v in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[3][:20]}")
@pytest.mark.filterwarnings("ignore")
def test_refused_as_by_torch(case: tuple[str, tuple[Any, ...], dict[str, Any], str]) -> None:
    name, args, options, message = case
    theirs = getattr(F, name, None) or getattr(torch, name)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError, IndexError, TypeError, AssertionError)):
        theirs(*(as_torch(a) for a in args), **options)
    with pytest.raises(ConvkernError, match=message):
        getattr(ops, name)(*args, **options)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("conv2d", (X, W), dict(padding=2**62)),
        ("conv2d", (X, W), dict(padding=2**39)),
        ("conv2d", (X, W), dict(dilation=2**70)),
        ("conv_transpose2d", (X, zeros(4, 6, 3, 3)), dict(stride=2**35)),
        ("adaptive_avg_pool2d", (X, 2**40), {}),
        ("interpolate", (X, 2**33), {}),
        ("interpolate", (X,), dict(scale_factor=1e18)),
        ("pad", (X, (2**39, 2**39, 2**39, 2**39)), {}),
        ("max_pool2d", (X, 2**63), {}),
    ],
)
def test_sizes_that_overflow(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        getattr(ops, name)(*args, **options)


def test_what_is_unsupported_says_so() -> None:
    with pytest.raises(Unsupported, match="antialias"):
        ops.interpolate(X, 3, mode="bilinear", antialias=True)
    with pytest.raises(Unsupported, match="training"):
        ops.batch_norm(X, zeros(4), zeros(4), training=True)
    with pytest.raises(Unsupported, match="inplace"):
        ops.relu(X, inplace=True)
    with pytest.raises(Unsupported, match="dtype"):
        ops.softmax(X, 1, dtype="float64")
    with pytest.raises(DTypeError, match=r"1\.5"):
        ops.conv2d(X, W, stride=1.5)  # type: ignore[arg-type]


# The interface itself


def torch_signature(name: str) -> list[tuple[str, Any]] | None:
    """Names and defaults of torch's arguments, from the function or from the first line of its documentation."""
    function = getattr(F, name, None) or getattr(torch, name)
    documented = re.match(rf"\s*{name}\(([^)]*(?:\([^)]*\)[^)]*)*)\)", function.__doc__ or "")
    if not documented:
        return None
    pairs = []
    for part in re.split(r",\s*(?![^(]*\))", documented.group(1).replace("*, ", "").replace(", out=None", "")):
        key, _, default = part.partition("=")
        try:
            pairs.append((key.strip(), eval(default) if default else inspect.Parameter.empty))
        except NameError:
            pairs.append((key.strip(), default.strip("'\"")))
    return pairs


@pytest.mark.parametrize("name", EVERYTHING)
def test_names_arguments_and_defaults_are_torchs(name: str) -> None:
    function = getattr(ops, name)
    assert function.__doc__ and ">>>" in function.__doc__ and "Source: torch." in function.__doc__
    theirs = torch_signature(name) if name not in ("concat", "pad") else None
    if theirs is None:
        return
    ours = inspect.signature(function).parameters
    for key, default in theirs:
        if key.startswith("_"):
            continue
        assert key in ours, f"{name} lacks {key}"
        got = ours[key].default
        # torch documents its defaults loosely: None for "what makes sense", False for True in one place
        if default is not inspect.Parameter.empty and got != default:
            real = inspect.signature(getattr(F, name)).parameters if inspect.isfunction(getattr(F, name, None)) else {}
            assert key in real and real[key].default == got, f"{name}: {key}={got!r}, torch has {default!r}"
