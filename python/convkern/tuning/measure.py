"""Measuring what a table says: every kernel that accepts a problem, alternating, at one image and at a batch.

A table has one kernel for all batch sizes, so that bits do not depend on the batch: the best geometric mean of the
gains at both. It must beat the cost model's choice by MARGIN, or that choice stands: a tie is noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _core
from ..bench import harness, shapefile
from ..bench.layers import one_step_plan
from ..errors import Unsupported
from ..graph import Graph

BATCHES = (1, 8)
MARGIN = 1.05
HOPELESS = 6.0  # kernels that the cost model finds so many times slower are not measured


@dataclass(frozen=True)
class Choice:
    """What was measured of one problem: seconds a call by kernel and batch."""

    layer: shapefile.ConvShape
    key: str
    model: str  # the cost model's kernel
    seconds: dict[str, tuple[float, ...]]

    def gain(self, kernel: str) -> float:
        """How many times as fast as the cost model's choice: the geometric mean over the batches."""
        ratios = [theirs / ours for ours, theirs in zip(self.seconds[kernel], self.seconds[self.model])]
        return math.prod(ratios) ** (1 / len(ratios))

    @property
    def best(self) -> str:
        """The kernel for the table.

        >>> layer = shapefile.parse_line("a h=1 w=1 c=1 k=1 r=1")
        >>> Choice(layer, "", "x", {"x": (1.0, 8.0), "y": (0.99, 8.0), "z": (2.0, 1.0)}).best
        'z'
        """
        best = max(self.seconds, key=self.gain)
        return best if self.gain(best) >= MARGIN else self.model

    @property
    def us(self) -> float:
        return self.seconds[self.best][0] * 1e6


def problems(graph: Graph) -> list[shapefile.ConvShape]:
    """The distinct convolutions and dense layers of a network after its passes."""
    dense: dict[shapefile.ConvShape, str] = {}
    for node in graph.nodes:
        if node.op == "dense":
            c, k = node.params["kernel"].shape
            dense.setdefault(shapefile.ConvShape("", 1, 1, c, k, 1, 1), node.name or "dense")
    try:
        convs = shapefile.from_graph(graph)
    except ValueError:  # none
        convs = []
    return [*convs, *(replace(layer, name=name) for layer, name in dense.items())]


def distinct(layers: Iterable[shapefile.ConvShape]) -> list[shapefile.ConvShape]:
    """Each shape once, under its first name."""
    first: dict[shapefile.ConvShape, shapefile.ConvShape] = {}
    for layer in layers:
        first.setdefault(replace(layer, name="", count=1), layer)
    return list(first.values())


def measure(
    layer: shapefile.ConvShape,
    threads: int,
    *,
    bf16: bool = False,
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.05,
    rounds: int = 5,
) -> Choice:
    """Time every kernel that accepts the problem (no reference kernels)."""
    rng = np.random.default_rng(0)
    fan_in = layer.r * layer.s * layer.c // layer.groups
    w = rng.standard_normal(layer.kernel_shape, np.float32) / np.float32(np.sqrt(fan_in))
    b = rng.standard_normal(layer.k, np.float32)
    plans: dict[str, Any] = {}
    for row in _core.kernels():
        if row["family"] == "conv" and row["isa"] == _core.isa() and not row["name"].endswith("_ref"):
            try:
                plans[row["name"]] = one_step_plan(layer, w, b, algo=row["name"], bf16=bf16)
            except Unsupported:
                continue
    costs = {name: plan.steps()[0]["cost_us"] for name, plan in plans.items()}
    model = min(costs, key=lambda name: costs[name])
    plans = {name: plan for name, plan in plans.items() if costs[name] <= HOPELESS * costs[model]}
    key = plans[model].steps()[0]["key"]
    if len(plans) == 1:
        rounds = 1
    choice = Choice(layer, key, model, _time(plans, layer, batches, threads, seconds, rounds))
    if choice.best != model:  # once more, the two alone: a busy moment must not choose
        two = {name: plans[name] for name in (model, choice.best)}
        again = _time(two, layer, batches, threads, seconds, 2 * rounds)
        choice = replace(choice, seconds={**choice.seconds, **again})
        if choice.best not in two:
            choice = replace(choice, seconds=again)
    return choice


def _time(
    plans: dict[str, Any], layer: shapefile.ConvShape, batches: Sequence[int], threads: int, seconds: float, rounds: int
) -> dict[str, tuple[float, ...]]:
    """Seconds a call by kernel and batch: the first quartile, since what else runs on a machine only adds."""
    times: dict[str, list[float]] = {name: [] for name in plans}
    for n in batches:
        x = np.random.default_rng(n).standard_normal((n, 1, layer.h, layer.w, layer.c), np.float32)
        xs = [x, *(x.copy() for _ in range(min(harness.ring_size(x.nbytes), 8) - 1))]
        calls = {name: _call(plan, xs, threads) for name, plan in plans.items()}
        for name, timing in harness.interleave(calls, seconds, rounds).items():
            times[name].append(timing.q1)
    return {name: tuple(values) for name, values in times.items()}


def _call(plan: Any, xs: Sequence[np.ndarray], threads: int) -> Any:
    return lambda i: plan.run([xs[i % len(xs)]], threads=threads)
