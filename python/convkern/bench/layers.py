"""One convolution layer at a time: convolution + bias + ReLU, NHWC in and out, weights packed, beside the peers.

Ours is a plan of one step. The rate counts two operations for each multiply-add of the direct algorithm, whatever the
kernel really does, so a Winograd layer may exceed 100 % of the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core, tuning
from ..errors import ConvkernError
from . import harness, peers
from .shapefile import ConvShape

# Largest difference from a peer, relative to the largest output: a benchmark of wrong numbers is worthless.
TOLERANCE = 1e-4


def one_step_plan(
    layer: ConvShape,
    w: np.ndarray,
    b: np.ndarray,
    *,
    act: str = "relu",
    algo: str = "",
    exact: bool = False,
    bf16: bool = False,
) -> Any:
    """A plan of one convolution, w (R,S,C/G,K); `algo` forces a kernel by its name."""
    (top, bottom), (left, right) = layer.pad
    tuning.ensure_loaded()
    plan = _core.Plan(exact=exact, bf16=bf16)
    x = plan.input((1, layer.h, layer.w, layer.c))
    y = plan.conv(
        x,
        _core.Parameter(w[None]),
        b,
        stride=(1, *layer.stride),
        pad_lo=(0, top, left),
        pad_hi=(0, bottom, right),
        dilation=(1, *layer.dil),
        groups=layer.groups,
        act=act,
        algo=algo,
        label=layer.name,
    )
    plan.finish([y])
    return plan


def run(
    layer: ConvShape,
    n: int,
    threads: int,
    against: Sequence[str] = (),
    seconds: float = 0.2,
    rounds: int = harness.ROUNDS,
    algo: str = "",
    exact: bool = False,
) -> dict[str, Any]:
    """Time one layer on n images; a row of the report.

    against: names of peers, all of them installed. Raises ConvkernError if a peer's result differs from ours.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, layer.h, layer.w, layer.c), np.float32)
    fan_in = layer.r * layer.s * layer.c // layer.groups
    w = rng.standard_normal(layer.kernel_shape, np.float32) / np.float32(np.sqrt(fan_in))
    b = rng.standard_normal(layer.k, np.float32)
    xs = [x, *(x.copy() for _ in range(harness.ring_size(x.nbytes) - 1))]

    plan = one_step_plan(layer, w, b, algo=algo, exact=exact)
    inputs = [x[:, None] for x in xs]

    def call(i: int) -> np.ndarray:
        return plan.run([inputs[i % len(inputs)]], threads=threads)[0]

    ours = peers.Runner("convkern", call, lambda y: y[:, 0])
    runners = [ours, *(runner for peer in against for runner in peers.layer_runners(peer, layer, xs, w, b, threads))]

    want = ours.nhwc(ours.call(0))
    error = 0.0
    for runner in runners[1:]:
        error = max(error, float(np.abs(runner.nhwc(runner.call(0)) - want).max() / (np.abs(want).max() + 1e-30)))
        if not error <= TOLERANCE:
            raise ConvkernError(f"{layer}: {runner.name}'s result differs by {error:.1e} of the largest output")

    timings = harness.interleave({runner.name: runner.call for runner in runners}, seconds, rounds)
    step = plan.steps()[0]
    mine = timings.pop("convkern")
    return dict(
        layer=layer.name,
        n=n,
        shape=str(layer),
        macs=layer.macs,
        kernel=step["kernel"],
        gflops=2e-9 * layer.macs * n / mine.median,
        ours=mine.as_dict(),
        peers={name: dict(timing.as_dict(), ratio=harness.ratio(timing, mine)) for name, timing in timings.items()},
        error=error,
    )
