"""What rounding to bfloat16 does to a model: its answers beside those in float32, on the same images; and the speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bench import harness

BATCHES = (1, 8)


def compare(
    full: Any, rounded: Any, inputs: Sequence[np.ndarray], threads: int = 0, seconds: float = 0.4
) -> dict[str, Any]:
    """A report on two models of logits (N,classes) with the same weights.

    inputs: arrays (1,H,W,C), one image each. Errors are differences of logits, absolute; `cosine` is between the two
    vectors of logits; `speed` holds median seconds a call for one image and for eight.

    >>> from convkern.layers import Dense, Input
    >>> from convkern.model import Model
    >>> image = Input((8,))
    >>> model = Model(image, Dense(3)(image))
    >>> compare(model, model, [np.ones((1, 8), "f4")], seconds=0.01)["top1_agree"]
    1
    """
    images = []
    for x in inputs:
        a, b = (np.asarray(model(x, threads=threads)[0], np.float64) for model in (full, rounded))
        order, order_rounded = np.argsort(-a), np.argsort(-b)
        images.append(
            dict(
                top1=int(order[0]),
                top1_bf16=int(order_rounded[0]),
                top5_same=set(order[:5]) == set(order_rounded[:5]),
                max=float(np.abs(a - b).max()),
                rms=float(np.sqrt(np.mean((a - b) ** 2))),
                logits_rms=float(np.sqrt(np.mean(a**2))),
                cosine=float(a @ b / np.sqrt((a @ a) * (b @ b))),
            )
        )
    speed = {}
    for n in BATCHES:
        x = np.concatenate([inputs[i % len(inputs)] for i in range(n)])
        calls = {"float32": _call(full, x, threads), "bf16": _call(rounded, x, threads)}
        timings = harness.interleave(calls, seconds, rounds=5)
        speed[n] = dict(
            {name: timing.median for name, timing in timings.items()},
            ratio=harness.ratio(timings["float32"], timings["bf16"]),
        )
    return dict(
        images=images,
        top1_agree=sum(row["top1"] == row["top1_bf16"] for row in images),
        top5_agree=sum(row["top5_same"] for row in images),
        max=max(row["max"] for row in images),
        rms=float(np.sqrt(np.mean([row["rms"] ** 2 for row in images]))),
        logits_rms=float(np.sqrt(np.mean([row["logits_rms"] ** 2 for row in images]))),
        cosine=min(row["cosine"] for row in images),
        speed=speed,
    )


def _call(model: Any, x: np.ndarray, threads: int) -> Any:
    return lambda i: model(x, threads=threads)
