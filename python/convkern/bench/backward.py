"""The gradients of one convolution layer at a time: of its input (data) and of its weights, beside PyTorch.

Ours is a plan of one step; the weights count as changed before each call, as they are in training, so that packing
them is timed (PyTorch reorders them in each call, too). PyTorch's is torch.ops.aten.convolution_backward with one
gradient asked for, in both memory layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _core
from ..errors import ConvkernError
from ..terminal import Columns, table
from . import harness
from .shapefile import ConvShape

GRADIENTS = ("data", "weight")
# Largest difference from PyTorch, relative to the largest value: sums over a batch's pixels are long.
TOLERANCE = 1e-4


def plan_of(layer: ConvShape, gradient: str, weight: _core.Parameter, exact: bool = False) -> _core.Plan:
    """A plan of one backward step. Inputs: dy, and for "weight" x before it."""
    (top, bottom), (left, right) = layer.pad
    plan = _core.Plan(training=True, exact=exact)
    geometry: dict[str, Any] = dict(
        stride=(1, *layer.stride),
        pad_lo=(0, top, left),
        pad_hi=(0, bottom, right),
        dilation=(1, *layer.dil),
        groups=layer.groups,
        label=layer.name,
    )
    shape, out = (1, layer.h, layer.w, layer.c), (1, layer.p, layer.q, layer.k)
    if gradient == "data":
        result = plan.conv_backward_data(plan.input(out), weight, shape, **geometry)
    else:
        x = plan.input(shape)
        result = plan.conv_backward_weight(x, plan.input(out), kernel=(1, layer.r, layer.s), **geometry)
    plan.finish([result])
    return plan


def run(
    layer: ConvShape,
    gradient: str,
    n: int,
    threads: int,
    against: bool = True,
    seconds: float = 0.2,
    rounds: int = harness.ROUNDS,
    exact: bool = False,
) -> dict[str, Any]:
    """Time one gradient ("data" or "weight") of one layer on n images; a row of the report.

    Raises ConvkernError if PyTorch's result differs from ours.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, layer.h, layer.w, layer.c), np.float32)
    dy = rng.standard_normal((n, layer.p, layer.q, layer.k), np.float32)
    w = rng.standard_normal(layer.kernel_shape, np.float32)
    copies = harness.ring_size(x.nbytes + dy.nbytes, 4)
    ring = [(x, dy), *((x.copy(), dy.copy()) for _ in range(copies - 1))]

    parameter = _core.Parameter(w[None])
    plan = plan_of(layer, gradient, parameter, exact)
    inputs = [[b[:, None]] if gradient == "data" else [a[:, None], b[:, None]] for a, b in ring]

    def ours(i: int) -> np.ndarray:
        parameter.touch()
        return plan.run(inputs[i % copies], threads=threads)[0]

    contestants: dict[str, Callable[[int], Any]] = {"convkern": ours}
    error = 0.0
    if against:
        want = ours(0).reshape(layer.kernel_shape if gradient == "weight" else x.shape)
        for name, call in _torch(layer, gradient, ring, w, threads).items():
            got = call(0).permute(*((2, 3, 1, 0) if gradient == "weight" else (0, 2, 3, 1))).numpy()
            error = max(error, float(np.abs(got - want).max() / (np.abs(want).max() + 1e-30)))
            if not error <= TOLERANCE:
                raise ConvkernError(
                    f"{layer}: {name}'s {gradient} gradient differs by {error:.1e} of the largest value"
                )
            contestants[name] = call
    timings = harness.interleave(contestants, seconds, rounds)
    mine = timings.pop("convkern")
    return dict(
        layer=layer.name,
        gradient=gradient,
        n=n,
        shape=str(layer),
        count=layer.count,
        macs=layer.macs,
        kernel=plan.steps()[0]["kernel"],
        gflops=2e-9 * layer.macs * n / mine.median,
        ours=mine.as_dict(),
        peers={name: dict(timing.as_dict(), ratio=harness.ratio(timing, mine)) for name, timing in timings.items()},
        error=error,
    )


def _torch(
    layer: ConvShape, gradient: str, ring: Sequence[tuple[np.ndarray, np.ndarray]], w: np.ndarray, threads: int
) -> dict[str, Callable[[int], Any]]:
    import torch

    torch.set_num_threads(threads)
    (top, bottom), (left, right) = layer.pad
    even = top == bottom and left == right
    pads = (top, left) if even else (0, 0)
    mask = (gradient == "data", gradient == "weight", False)
    calls: dict[str, Callable[[int], Any]] = {}
    for name, layout in (("torch.channels_last", torch.channels_last), ("torch.contiguous", torch.contiguous_format)):
        arrays = [
            tuple(torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in pair)
            for pair in ring
        ]
        weight = torch.from_numpy(np.ascontiguousarray(w.transpose(3, 2, 0, 1))).contiguous(memory_format=layout)

        @torch.no_grad()
        def call(i: int, arrays: list[Any] = arrays, weight: Any = weight) -> Any:
            x, dy = arrays[i % len(arrays)]
            if not even:
                x = torch.nn.functional.pad(x, (left, right, top, bottom))
            dx, dw, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, layer.stride, pads, layer.dil, False, (0, 0), layer.groups, mask
            )
            if gradient == "weight":
                return dw
            return dx if even else dx[:, :, top : top + layer.h, left : left + layer.w]

        calls[name] = call
    return calls


def best_ratio(row: dict[str, Any]) -> float:
    """The better of PyTorch's layouts over ours: above 1 we are faster."""
    return min((peer["ratio"] for peer in row["peers"].values()), default=math.nan)


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean of the best ratios, for each gradient, of each network and of all distinct layers.

    >>> rows = [dict(model="m", gradient="data", peers={"torch": {"ratio": r}}) for r in (1.0, 4.0)]
    >>> means(rows)[0]["ratio"]
    2.0
    """
    found = []
    for gradient in GRADIENTS:
        of_gradient = [row for row in rows if row["gradient"] == gradient and row["peers"]]
        for model in [*dict.fromkeys(row["model"] for row in of_gradient), "all"]:
            chosen = [r for r in of_gradient if r["model"] == model or (model == "all" and not r.get("same_as"))]
            ratios = [best_ratio(row) for row in chosen]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                found.append(dict(gradient=gradient, model=model, layers=len(ratios), ratio=mean, lowest=min(ratios)))
    return found


COLUMNS = Columns(
    [("layer", -28), ("gradient", -8), ("n", 3), ("kernel", -22), ("ours, ms", 9), ("GFLOP/s", 8), ("torch, ms", 9)]
    + [("ratio", 6)]
)


def line(row: dict[str, Any]) -> str:
    peer = min((p["median"] for p in row["peers"].values()), default=math.nan)
    times = (
        f"{row['ours']['median'] * 1e3:.3f}",
        f"{row['gflops']:.0f}",
        f"{peer * 1e3:.3f}",
        f"{best_ratio(row):.2f}",
    )
    return COLUMNS.row(row["layer"], row["gradient"], row["n"], row["kernel"], *times)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    lines = [[m["gradient"], m["model"], m["layers"], f"{m['ratio']:.2f}", f"{m['lowest']:.2f}"] for m in means(rows)]
    return table(["gradient", "layers of", "layers", "PyTorch's time / ours", "lowest"], lines, left=2)
