"""Whole networks: one call on a batch, ours beside PyTorch eager in both memory layouts (torch_graph.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConvkernError, Unsupported
from . import harness
from .peers import Runner

TOLERANCE = 1e-3  # largest difference from a peer, relative to the largest output: random weights amplify rounding


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

    against: () or ("torch",). Raises Unsupported for another peer; ConvkernError if a peer's result differs from ours.
    """
    for peer in against:
        if peer != "torch":
            raise Unsupported(f"{peer} is a peer for layers only; whole models are compared with torch")
    x = np.random.default_rng(0).standard_normal((n, *model.input_shape), np.float32)
    xs = [x, *(x.copy() for _ in range(min(harness.ring_size(x.nbytes), 8) - 1))]

    graph = model.graph()
    runners = [Runner("convkern", lambda i: model(xs[i % len(xs)], threads=threads), lambda y: y)]
    if against:
        runners += _torch_runners(graph, xs, threads)

    want = runners[0].nhwc(runners[0].call(0))
    error = 0.0
    for runner in runners[1:]:
        error = max(error, float(np.abs(runner.nhwc(runner.call(0)) - want).max() / (np.abs(want).max() + 1e-30)))
        if not error <= TOLERANCE:
            raise ConvkernError(f"{name}: {runner.name}'s result differs by {error:.1e} of the largest output")

    timings = harness.interleave({runner.name: runner.call for runner in runners}, seconds, rounds)
    mine = timings.pop("convkern")
    macs = sum(step["macs"] for step in model.plan(x.shape[1:]).steps())
    return dict(
        model=name,
        layer=None,
        n=n,
        shape="x".join(map(str, model.input_shape)),
        macs=macs,
        gflops=2e-9 * macs * n / mine.median,
        ours=mine.as_dict(),
        peers={peer: dict(timing.as_dict(), ratio=harness.ratio(timing, mine)) for peer, timing in timings.items()},
        error=error,
    )


def _torch_runners(graph: Any, xs: Sequence[np.ndarray], threads: int) -> list[Runner]:
    import torch

    from .torch_graph import TorchGraph

    torch.set_num_threads(threads)
    runners = []
    for name, layout in (("torch.channels_last", torch.channels_last), ("torch.contiguous", torch.contiguous_format)):
        network = TorchGraph(graph, layout)
        inputs = [_channels_first(torch.from_numpy(x), layout) for x in xs]

        def call(i: int, network: Any = network, inputs: list[Any] = inputs) -> Any:
            return network(inputs[i % len(inputs)])

        runners.append(Runner(name, call, lambda y: y.movedim(1, -1).numpy()))
    return runners


def _channels_first(x: Any, layout: Any) -> Any:
    x = x.movedim(-1, 1)
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x.contiguous()
