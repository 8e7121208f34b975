"""Training steps of whole networks: forward, cross-entropy, backward, SGD with momentum; ours beside PyTorch's (eager,
in both memory layouts) on the same graph, weights and data, interleaved. Dropout drops in both.

Peak memory is that of a process of its own for each contestant: the resident set's peak over three steps, less what
the process held with the libraries imported and the weights made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ConvkernError
from . import harness
from .facts import forget_peak, resident

MODELS = ("vgg16", "resnet50", "mobilenet_v2")  # what `convkern bench training` times without being told
CONTESTANTS = ("convkern", "torch.contiguous", "torch.channels_last")
RATE, MOMENTUM = 1e-4, 0.9
TOLERANCE = 1e-3  # between the losses of the first step


def contestant(kind: str, model: Any, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], threads: int) -> Any:
    """A function of a running number that takes one step on a buffer and returns its loss."""
    if kind == "convkern":
        return _ours(model, xs, ys, threads)
    import torch
    import torch.nn.functional as F

    from .torch_training import TorchTraining

    torch.set_num_threads(threads)
    layout = torch.channels_last if kind.endswith("last") else torch.contiguous_format
    peer = TorchTraining(model.graph(), list(model.trainable_params().values()), layout)
    optimizer = torch.optim.SGD(peer.parameters, RATE, momentum=MOMENTUM)
    inputs = [torch.from_numpy(x).movedim(-1, 1).contiguous(memory_format=layout) for x in xs]
    labels = [torch.from_numpy(y) for y in ys]

    def step(i: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(peer(inputs[i % len(inputs)]), labels[i % len(labels)])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _ours(model: Any, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], threads: int) -> Callable[[int], float]:
    from .. import set_num_threads
    from ..train import SGD

    set_num_threads(threads)
    model.compile(SGD(RATE, momentum=MOMENTUM), "sparse_categorical_crossentropy")
    return lambda i: model.train_on_batch(xs[i % len(xs)], ys[i % len(ys)])


def data(model: Any, n: int, buffers: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    shape, classes = model.input_shape, model.output_shape[-1]
    xs = [rng.standard_normal((n, *shape), np.float32) for _ in range(buffers)]
    return xs, [rng.integers(0, classes, n) for _ in range(buffers)]


def run(name: str, n: int, threads: int, against: bool = True, seconds: float = 2.0, rounds: int = 5) -> dict[str, Any]:
    """Time the steps of a model on batches of n; a row of the report. The losses of the first step must agree."""
    from ..models import get_model

    model = get_model(name)
    xs, ys = data(model, n)
    kinds = CONTESTANTS if against else CONTESTANTS[:1]
    # PyTorch's copies of the weights first: our steps change the model's.
    steps = {kind: contestant(kind, model, xs, ys, threads) for kind in reversed(kinds)}
    losses = {kind: step(0) for kind, step in steps.items()}
    drops = any(node.op == "dropout" and node.attrs["rate"] for node in model.graph().nodes)
    for kind, loss in losses.items():
        if not drops and not abs(loss - losses["convkern"]) <= TOLERANCE * abs(loss):
            raise ConvkernError(f"{name}: the first loss of {kind} is {loss}, ours {losses['convkern']}")
    timings = harness.interleave({kind: steps[kind] for kind in kinds}, seconds, rounds)
    mine = timings.pop("convkern")
    peers = {kind: dict(t.as_dict(), ratio=harness.ratio(t, mine)) for kind, t in timings.items()}
    return dict(model=name, n=n, ours=mine.as_dict(), peers=peers, losses=losses)


def peak_memory(name: str, n: int, threads: int, kind: str) -> int:
    """Bytes that three steps need beyond what the process held before the first; measured in a fresh process."""
    words = [sys.executable, "-m", __name__, name, str(n), str(threads), kind]
    return int(json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["bytes"])


def _measure(name: str, n: int, threads: int, kind: str) -> dict[str, int]:
    from ..models import get_model

    model = get_model(name)
    for param in model.weights:
        _ = param.value
    xs, ys = data(model, n, 1)
    step = contestant(kind, model, xs, ys, threads)
    forget_peak()
    before = resident("VmRSS")
    for i in range(3):
        step(i)
    return {"bytes": resident("VmHWM") - before}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
