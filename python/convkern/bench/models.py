"""Whole networks: one call on a batch, ours beside the peers (peers.py) on the same graph and the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConvkernError
from . import harness
from .peers import Runner, model_runners

# What `convkern bench peers` times without being told: the classes of work there are, and the models people run.
MODELS = (
    "alexnet",
    "vgg16",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "inception_v3",
    "mobilenet_v2",
    "efficientnet_b0",
)
# Largest difference from a peer, relative to the largest output: random weights amplify rounding.
TOLERANCE = {"float32": 1e-3, "bf16": 0.25}


def run(
    name: str,
    model: Any,
    n: int,
    threads: int,
    against: Sequence[str] = (),
    seconds: float = 1.0,
    rounds: int = harness.ROUNDS,
) -> dict[str, Any]:
    """Time a model of one input on n images; a row of the report.

    against: names of peers, all of them installed; they compute in the model's precision. Raises Unsupported for an
    operator that a peer does not have; ConvkernError if a peer's result differs from ours.
    """
    x = np.random.default_rng(0).standard_normal((n, *model.input_shape), np.float32)
    xs = [x, *(x.copy() for _ in range(min(harness.ring_size(x.nbytes), 8) - 1))]

    ours = Runner("convkern", lambda i: model(xs[i % len(xs)], threads=threads), lambda y: y)
    runners = [ours, *model_runners(against, model.graph(), xs, threads, model.precision)]

    want = runners[0].nhwc(runners[0].call(0))
    error = 0.0
    for runner in runners[1:]:
        error = max(error, float(np.abs(runner.nhwc(runner.call(0)) - want).max() / (np.abs(want).max() + 1e-30)))
        if not error <= TOLERANCE[model.precision]:
            raise ConvkernError(f"{name}: {runner.name}'s result differs by {error:.1e} of the largest output")

    timings = harness.interleave({runner.name: runner.call for runner in runners}, seconds, rounds)
    mine = timings.pop("convkern")
    macs = sum(step["macs"] for step in model.plan(x.shape[1:]).steps())
    return dict(
        model=name,
        precision=model.precision,
        layer=None,
        n=n,
        shape="x".join(map(str, model.input_shape)),
        macs=macs,
        gflops=2e-9 * macs * n / mine.median,
        ours=mine.as_dict(),
        peers={peer: dict(timing.as_dict(), ratio=harness.ratio(timing, mine)) for peer, timing in timings.items()},
        error=error,
    )
