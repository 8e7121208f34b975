"""Plans at run time: blocks of images and the arena they share."""

import numpy as np
import pytest

from convkern import _core


def network(seed):
    """Chains and diamonds, some with inner tensors among the outputs."""
    rng = np.random.default_rng(seed)
    plan = _core.Plan()

    def conv(x, k, stride=1, residual=-1):
        c = plan.shape(x)[3]
        weight = rng.standard_normal((1, 3, 3, c, k), np.float32) / np.float32(3 * np.sqrt(c))
        geometry = dict(stride=(1, stride, stride), pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
        return plan.conv(x, _core.Parameter(weight), None, residual, act="relu", **geometry)

    y = conv(plan.input((1, 96, 96, 16)), 48)
    outputs = []
    for k in (64, 96):
        for _ in range(int(rng.integers(3, 6))):
            y = conv(y, plan.shape(y)[3]) if rng.random() < 0.7 else conv(conv(y, 40), plan.shape(y)[3], residual=y)
        y = conv(y, k, stride=2)
        if rng.random() < 0.3:
            outputs.append(y)
    outputs.append(plan.adaptive_pool(y, "avg", out=(1, 1, 1)))
    plan.finish(outputs)
    return plan


@pytest.mark.parametrize("seed", range(4))
def test_an_image_is_the_same_alone_and_in_any_batch(seed):
    plan = network(seed)
    x = np.random.default_rng(9).standard_normal((13, 1, 96, 96, 16), np.float32)
    alone = [plan.run([x[n : n + 1]], threads=1) for n in range(13)]
    for n, threads in ((2, 1), (8, 1), (13, 1), (13, 2)):
        for i, batch in enumerate(plan.run([x[:n]], threads=threads)):
            for image in range(n):
                assert np.array_equal(batch[image], alone[image][i][0]), (n, threads, i, image)


def wide(**kind):
    """Maps of 256 and 512 channels, read by convolutions and pooling; small integers, so that every sum is exact."""
    rng = np.random.default_rng(3)
    plan = _core.Plan(**kind)

    def conv(x, k, window=1, residual=-1, groups=1):
        c, pad = plan.shape(x)[3] // groups, (0, window // 2, window // 2)
        weight = rng.integers(-1, 2, (1, window, window, c, k)).astype(np.float32)
        clamp = dict(act="clamp", act_a=-4, act_b=4)
        return plan.conv(x, _core.Parameter(weight), None, residual, pad_lo=pad, pad_hi=pad, groups=groups, **clamp)

    x = plan.input((1, 9, 11, 16))
    a = conv(x, 256)
    b = conv(a, 256, 3, groups=256)
    c = conv(plan.pool(b, "max", window=(1, 3, 3), stride=(1, 2, 2), out=(1, 4, 5)), 512)
    d = conv(c, 512, 3, residual=c)
    plan.finish([conv(d, 32), a])
    return plan


def test_pixels_of_many_channels_lie_apart_and_nothing_else_changes():
    x = np.random.default_rng(4).integers(-3, 4, (3, 1, 9, 11, 16)).astype(np.float32)
    spread, dense = wide(exact=True), wide(exact=True, lean=True)
    for one, other in zip(spread.run([x]), dense.run([x]), strict=True):
        assert one.any() and np.array_equal(one, other)
    # A line (64 bytes) for each pixel of what lives at once: the first result is asked for, so it stays as it is.
    assert dense.arena_bytes < spread.arena_bytes <= dense.arena_bytes * 272 // 256


@pytest.mark.parametrize("algo", ["conv_winograd", "conv_winograd_small", "conv_winograd_mixed"])
def test_winograd_of_many_small_images_keeps_to_its_scratch(algo):
    """Blocks and groups of panels grow with the number of images: the bits of an image alone, whatever the batch."""
    rng = np.random.default_rng(5)
    plan = _core.Plan()
    weight = _core.Parameter(rng.standard_normal((1, 3, 3, 256, 128), np.float32))
    pad = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    plan.finish([plan.conv(plan.input((1, 4, 4, 256)), weight, None, algo=algo, **pad)])
    x = rng.standard_normal((700, 1, 4, 4, 256), np.float32)
    (batch,) = plan.run([x], threads=2)
    for n in (0, 55, 56, 350, 699):
        assert np.array_equal(batch[n], plan.run([x[n : n + 1]], threads=1)[0][0]), n


def skips(algo, keep, window=3, x_too=False, later=False):
    """Three blocks whose last convolution, of row `algo`, adds the block's input; `keep`: which is asked for, too."""
    rng = np.random.default_rng(6)
    plan = _core.Plan()

    def conv(x, k, window=1, residual=-1, algo=""):
        pad = (0, window // 2, window // 2)
        weight = rng.standard_normal((1, window, window, plan.shape(x)[3], k), np.float32) / np.float32(8 * window)
        return plan.conv(x, _core.Parameter(weight), None, residual, pad_lo=pad, pad_hi=pad, act="relu", algo=algo)

    y = first = conv(plan.input((1, 19, 17, 5)), 64)
    added = []
    for _ in range(3):
        added.append(y)
        y = conv(y if x_too else conv(y, 40), 64, window, residual=y, algo=algo)
    if later:
        y = conv(conv(y, 8), 64, residual=first)
    plan.finish([conv(y, 24), *(added if keep else [])])
    return plan


IN_PLACE = [("conv_direct", 3), ("conv_direct", 1), ("conv_winograd", 3), ("conv_winograd2", 3), ("conv_winograd5", 5)]
IN_PLACE += [("conv_winograd_mixed", 3)]


@pytest.mark.parametrize(("algo", "window"), IN_PLACE)
def test_a_result_takes_the_place_of_the_residual(algo, window):
    x = np.random.default_rng(7).standard_normal((3, 1, 19, 17, 5), np.float32)
    plan, kept = skips(algo, False, window), skips(algo, True, window)
    (one,), other = plan.run([x]), kept.run([x])
    assert one.any() and np.array_equal(one, other[0])
    wide, narrow = (19 * 17 * k * 4 for k in (64, 40))
    # One wide map, where each step alone would need two.
    assert wide + narrow <= plan.arena_bytes < wide + narrow + wide // 2


@pytest.mark.parametrize("case", [dict(x_too=True), dict(later=True)])
def test_a_residual_that_is_read_for_something_else_stays(case):
    x = np.random.default_rng(8).standard_normal((3, 1, 19, 17, 5), np.float32)
    (one,), other = skips("conv_direct", False, **case).run([x]), skips("conv_direct", True, **case).run([x])
    assert one.any() and np.array_equal(one, other[0])


def test_small_maps_in_the_place_of_their_residual():
    rng = np.random.default_rng(9)
    geometry = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), algo="conv_winograd_small")
    weights = [rng.standard_normal((1, 1, 1, 16, 64), np.float32)]
    weights += list(rng.standard_normal((2, 1, 3, 3, 64, 64), np.float32) / 24)
    results = []
    for keep in (False, True):
        plan = _core.Plan()
        first = plan.conv(plan.input((1, 7, 7, 16)), _core.Parameter(weights[0]), None)
        inner = plan.conv(first, _core.Parameter(weights[1]), None, **geometry)
        y = plan.conv(inner, _core.Parameter(weights[2]), None, first, **geometry)
        plan.finish([plan.adaptive_pool(y, "avg", out=(1, 1, 1)), *([first] if keep else [])])
        results.append(plan.run([np.random.default_rng(1).standard_normal((5, 1, 7, 7, 16), np.float32)])[0])
    assert results[0].any() and np.array_equal(*results)


@pytest.mark.parametrize(("c", "k", "window", "stride"), [(528, 272, 1, 1), (512, 272, 1, 1), (130, 121, 3, 2)])
def test_heavy_weights_that_the_first_tiles_share(c, k, window, stride, isa):
    """More than 512 KB of weights, one case staged (pixels 2 KB apart); every sum of small integers is exact."""
    rng = np.random.default_rng(10)
    x = rng.integers(-2, 3, (3, 1, 19, 13, c)).astype(np.float32)
    weight = rng.integers(-2, 3, (1, window, window, c, k)).astype(np.float32)
    assert weight.nbytes > 512 << 10
    pad = (0, window // 2, window // 2)
    results = {}
    for algo in ("conv_direct", "conv_ref"):
        plan = _core.Plan()
        y = plan.conv(
            plan.input((1, 19, 13, c)),
            _core.Parameter(weight),
            None,
            stride=(1, stride, stride),
            pad_lo=pad,
            pad_hi=pad,
            algo=algo,
        )
        plan.finish([y])
        results[algo] = {(n, t): plan.run([x[:n]], threads=t)[0] for n, t in ((1, 1), (1, 2), (3, 1), (3, 2), (3, 5))}
    for key, want in results["conv_ref"].items():
        assert want.any() and np.array_equal(results["conv_direct"][key], want), key
