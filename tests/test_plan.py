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
