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


@pytest.mark.parametrize("algo", ["conv_winograd", "conv_winograd_small"])
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
