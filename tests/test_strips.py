"""Fusion across steps: a chain run strip by strip gives the bits of its steps one by one (csrc/plan/strips.cpp)."""

import numpy as np
import pytest

from convkern import _core


def chain(strips, h, w, c, wide, k, window, stride, pad, *, residual=False, first=1, pool=False, dtype="float32"):
    """first x first conv to `wide` channels -> depthwise (or max pooling) -> 1x1 to k channels, as one plan."""
    rng = np.random.default_rng(0)
    plan = _core.Plan(dtype, strips=strips)
    x = plan.input((1, h, w, c))
    edge = (0, first // 2, first // 2)
    weights = [rng.standard_normal((1, first, first, c, wide), np.float32)]
    y = plan.conv(x, _core.Parameter(weights[0]), pad_lo=edge, pad_hi=edge, act="relu6", label="wide")
    p, q = ((n + 2 * pad - window) // stride + 1 for n in (h, w))
    if pool:
        size = dict(window=(1, window, window), stride=(1, stride, stride))
        y = plan.pool(y, "max", pad_lo=(0, pad, pad), pad_hi=(0, pad, pad), out=(1, p, q), label="pool", **size)
    else:
        weights.append(rng.standard_normal((1, window, window, 1, wide), np.float32))
        geometry = dict(stride=(1, stride, stride), pad_lo=(0, pad, pad), pad_hi=(0, pad, pad), groups=wide)
        y = plan.conv(y, _core.Parameter(weights[1]), act="silu", label="depthwise", **geometry)
    weights.append(rng.standard_normal((1, 1, 1, wide, k), np.float32))
    bias = rng.standard_normal(k, np.float32)
    y = plan.conv(y, _core.Parameter(weights[-1]), bias, x if residual else -1, label="narrow")
    plan.finish([y])
    return plan, weights


CASES = [
    dict(h=57, w=61, c=16, wide=48, k=24, window=3, stride=1, pad=1),
    dict(h=57, w=61, c=24, wide=48, k=24, window=3, stride=1, pad=1, residual=True),
    dict(h=64, w=50, c=16, wide=96, k=24, window=3, stride=2, pad=1),
    dict(h=40, w=70, c=32, wide=80, k=7, window=5, stride=1, pad=2),
    dict(h=41, w=70, c=32, wide=80, k=33, window=5, stride=2, pad=2),
    dict(h=60, w=50, c=17, wide=70, k=33, window=7, stride=3, pad=0),
    dict(h=90, w=90, c=3, wide=32, k=16, window=3, stride=1, pad=1, first=3),
    dict(h=112, w=112, c=3, wide=64, k=16, window=3, stride=2, pad=1, first=7, pool=True),
    dict(h=75, w=40, c=20, wide=65, k=9, window=2, stride=2, pad=0, pool=True),
    dict(h=3000, w=1, c=16, wide=48, k=24, window=1, stride=1, pad=0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case.values())))
def test_the_same_bits_as_step_by_step(case, isa):
    fused, _ = chain(True, **case)
    single, _ = chain(False, **case)
    assert [" > " in step["kernel"] for step in fused.steps()].count(True) == 1
    assert len(single.steps()) == 3 > len(fused.steps())
    assert sum(step["macs"] for step in fused.steps()) == sum(step["macs"] for step in single.steps())
    assert fused.arena_bytes < single.arena_bytes
    x = np.random.default_rng(1).standard_normal((3, 1, case["h"], case["w"], case["c"]), np.float32)
    want = single.run([x], threads=1)[0]
    for threads in (1, 2, 3, 7):
        assert np.array_equal(fused.run([x], threads=threads)[0], want)
    for n in range(3):
        assert np.array_equal(fused.run([x[n : n + 1]])[0], want[n : n + 1])
    assert np.array_equal(fused.run([x], channels_first=True)[0], np.moveaxis(want, 4, 1))


def test_a_result_with_two_readers_is_not_fused():
    plan = _core.Plan()
    x = plan.input((1, 64, 64, 16))
    wide = plan.conv(x, _core.Parameter(np.ones((1, 1, 1, 16, 64), np.float32)))
    deep = plan.conv(
        wide, _core.Parameter(np.ones((1, 3, 3, 1, 64), np.float32)), pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=64
    )
    plan.finish([plan.binary(wide, deep, "add")])
    assert [step["kernel"] for step in plan.steps()] == ["conv_direct", "conv_depthwise", "map_vector"]


def test_an_output_is_not_fused_away():
    plan = _core.Plan()
    x = plan.input((1, 64, 64, 16))
    wide = plan.conv(x, _core.Parameter(np.ones((1, 1, 1, 16, 64), np.float32)))
    deep = plan.conv(wide, _core.Parameter(np.ones((1, 3, 3, 1, 64), np.float32)), groups=64)
    plan.finish([wide, deep])
    assert len(plan.steps()) == 2
    first, second = plan.run([np.ones((1, 1, 64, 64, 16), np.float32)])
    assert (first == 16).all() and (second == 144).all()


def excited(strips, h, w, c, wide, window, stride, act, *, residual=False, adaptive=True, swapped=False, keep=False):
    """1x1 -> depthwise -> squeeze and excitation -> 1x1: an inverted residual block of EfficientNet, as one plan."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return _core.Parameter(rng.integers(-2, 3, shape).astype(np.float32) / 4)

    plan = _core.Plan(strips=strips)
    x = plan.input((1, h, w, c))
    pad = (0, window // 2, window // 2)
    y = plan.conv(x, weight(1, 1, 1, c, wide), act=act, label="wide")
    geometry = dict(stride=(1, stride, stride), pad_lo=pad, pad_hi=pad, groups=wide)
    y = plan.conv(
        y, weight(1, window, window, 1, wide), rng.standard_normal(wide, np.float32), act=act, label="deep", **geometry
    )
    p, q = ((n - 1) // stride + 1 for n in (h, w))
    if adaptive:
        s = plan.adaptive_pool(y, "avg", out=(1, 1, 1), label="pool")
    else:
        s = plan.pool(y, "avg", window=(1, p, q), stride=(1, 1, 1), out=(1, 1, 1), label="pool")
    s = plan.conv(s, weight(1, 1, 1, wide, 5), act="silu", label="squeeze")
    s = plan.conv(s, weight(1, 1, 1, 5, wide), act="sigmoid", label="excite")
    z = plan.binary(s, y, "mul") if swapped else plan.binary(y, s, "mul", label="gate")
    z = plan.conv(
        z, weight(1, 1, 1, wide, c), rng.standard_normal(c, np.float32), x if residual else -1, label="narrow"
    )
    plan.finish([z, y] if keep else [z])
    return plan


EXCITED = [
    dict(h=57, w=41, c=16, wide=48, window=3, stride=1, act="silu", residual=True),
    dict(h=40, w=40, c=24, wide=70, window=5, stride=1, act="relu6", adaptive=False),
    dict(h=57, w=59, c=16, wide=96, window=3, stride=2, act="silu"),
    dict(h=28, w=28, c=40, wide=240, window=5, stride=1, act="silu", residual=True, keep=True),
    dict(h=14, w=14, c=80, wide=256, window=3, stride=1, act="silu", residual=True),
    dict(h=56, w=30, c=3, wide=33, window=3, stride=1, act="none"),
]


@pytest.mark.parametrize("case", EXCITED, ids=lambda case: "x".join(map(str, case.values())))
def test_squeeze_and_excitation(case, isa):
    fused, single = excited(True, **case), excited(False, **case)
    assert len(single.steps()) == 7
    assert [step["label"] for step in fused.steps()] == [
        "wide > deep > pool rows", "pool", "squeeze", "excite", "gate > narrow"
    ]  # fmt: skip
    assert sum(step["macs"] for step in fused.steps()) == sum(step["macs"] for step in single.steps())
    x = np.random.default_rng(1).standard_normal((3, 1, case["h"], case["w"], case["c"]), np.float32)
    want = single.run([x], threads=1)
    assert all(np.isfinite(y).all() and y.any() for y in want)
    for threads in (1, 2, 3, 7):
        for got, expected in zip(fused.run([x], threads=threads), want, strict=True):
            assert np.array_equal(got, expected)
    for n in range(3):
        assert np.array_equal(fused.run([x[n : n + 1]])[0], want[0][n : n + 1])


def test_what_is_not_a_gate_is_a_step_of_its_own():
    case = dict(h=28, w=28, c=16, wide=80, window=3, stride=1, act="relu")
    fused, single = excited(True, swapped=True, **case), excited(False, swapped=True, **case)
    assert [step["op"] for step in fused.steps()][-2:] == ["mul", "conv"]
    x = np.random.default_rng(1).standard_normal((2, 1, 28, 28, 16), np.float32)
    assert np.array_equal(fused.run([x])[0], single.run([x])[0])


def test_a_mean_alone_keeps_no_image():
    def pooled(strips):
        plan = _core.Plan(strips=strips)
        y = plan.input((1, 60, 60, 8))
        y = plan.conv(y, _core.Parameter(np.full((1, 1, 1, 8, 40), 0.25, np.float32)), label="conv")
        y = plan.adaptive_pool(y, "avg", out=(1, 1, 1), label="mean")
        plan.finish([y])
        return plan

    fused, single = pooled(True), pooled(False)
    assert [step["label"] for step in fused.steps()] == ["conv > mean rows", "mean"]
    assert fused.arena_bytes < 60 * 60 * 40 * 4 <= single.arena_bytes
    x = np.random.default_rng(0).integers(-3, 4, (2, 1, 60, 60, 8)).astype(np.float32)
    got = fused.run([x])[0]
    assert np.array_equal(got, single.run([x])[0])
    total = x.sum((1, 2, 3, 4), dtype=np.float64) / 4  # exact in float32 as well
    assert np.array_equal(got[:, 0, 0, 0, 7], (total / 3600).astype(np.float32))


def test_windows_that_overlap_much_are_not_cut():
    """Of 14 rows two threads would make 4 twice under 5x5: separate steps."""

    def deep(window):
        plan = _core.Plan()
        x = plan.input((1, 14, 14, 64))
        y = plan.conv(x, _core.Parameter(np.ones((1, 1, 1, 64, 256), np.float32)))
        pad = (0, window // 2, window // 2)
        weight = _core.Parameter(np.ones((1, window, window, 1, 256), np.float32))
        plan.finish([plan.conv(y, weight, groups=256, pad_lo=pad, pad_hi=pad)])
        return len(plan.steps())

    assert deep(3) == 1 and deep(5) == 2
