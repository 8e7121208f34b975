"""Where a loss that is not finite came from: looked up once, when it has happened."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..passes.training import with_statistics
from .batches import Batch
from .lowering import TrainingLowering

_IMAGES = 8  # as many are run again, with every tensor kept


def first_not_finite(trainer: Any, batch: Batch, number: int) -> str:
    """A sentence: which training step, and the first thing from the images to the loss that is not finite."""
    epoch, step = trainer.place
    where = f"step {number} (epoch {epoch + 1}, batch {step + 1}): the loss is not finite"
    stay = "the parameters are those before this step; compile(check_finite=False) goes on"
    return f"{where}; {_cause(trainer, batch)}; {stay}"


def _cause(trainer: Any, batch: Batch) -> str:
    model = trainer.model
    for tensor, array in zip(model.inputs, batch.x):
        if not np.isfinite(array).all():
            image = int(np.argwhere(~np.isfinite(array))[0][0])
            return f"the input {tensor.name!r} is not (image {image} of the batch)"
    for number, target in enumerate(batch.y):
        if target is not None and np.asarray(target).dtype.kind == "f" and not np.isfinite(target).all():
            return f"the targets of {trainer.names[number]!r} are not"
    for name, param in model.named_params().items():
        if not np.isfinite(param.value).all():
            return f"the parameter {name!r} is not: the step before changed it so (is the learning rate too high?)"
    found = _first_layer(model, batch)
    if found is None:
        return "every layer's output is: it is the loss itself, or it needs the whole batch"
    return f"the first layer whose output is not is {found!r}"


def _first_layer(model: Any, batch: Batch) -> str | None:
    graph = with_statistics(model.graph([x.shape[1:] for x in batch.x]))
    nodes = list(graph.nodes)
    graph.outputs = [node.output for node in nodes]
    lowering = TrainingLowering(graph, "float32", model.exact, True, {}, model.weights)
    inputs: list[np.ndarray] = [x[:_IMAGES][(slice(None), *(None,) * (5 - x.ndim))] for x in batch.x]
    if lowering.step is not None:
        inputs.append(np.zeros((1, 1, 1, 1), np.float32))
    for node, value in zip(nodes, lowering.plan.run(inputs)):
        if not np.isfinite(value).all():
            return node.name.partition("/")[0] or node.op
    return None
