"""One training step, compiled: outputs, losses, gradients and batch statistics from one call into the plan.

A Step is made for image shapes, a set of trained parameters and losses; the batch size is free. It changes nothing: an
optimizer applies the gradients, and `moved` takes the statistics over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import passes as all_passes
from ..compiler import ParameterCache
from ..graph import Graph, Node, Param, Shape
from ..passes.training import training
from .autodiff import differentiate
from .losses import Loss
from .lowering import TrainingLowering


@dataclass
class Result:
    """What a step gives."""

    outputs: list[np.ndarray]  # the model's, (N, *shape)
    losses: list[np.ndarray]  # for each output the loss of every image, times its weight (N,)
    gradients: list[tuple[str, Param, np.ndarray]]  # of the weighted sum of the losses' means
    statistics: list[tuple[Node, np.ndarray, np.ndarray, int]]  # norm, mean and biased variance, values per channel


class Step:
    """A compiled step of a model's graph.

    graph: before any pass. losses: one for each output, or None. trained: by name; {} compiles an evaluation: inference
    and the losses. weighted: whether images have weights. factors: of each loss in the sum. recompute: see autodiff.
    """

    def __init__(
        self,
        graph: Graph,
        losses: Sequence[Loss | None],
        trained: Mapping[str, Param],
        *,
        factors: Sequence[float] | None = None,
        weighted: bool = False,
        recompute: int = 0,
        seed: int = 0,
        dtype: str = "float32",
        exact: bool = False,
        lean: bool = False,
        cache: ParameterCache | None = None,
        evaluation: bool = False,
    ):
        self.names = {id(param): name for name, param in trained.items()}
        self.input_shapes = [graph.shapes[tensor] for tensor in graph.inputs]
        self.output_count = len(graph.outputs)
        self.dtype = np.dtype(dtype)
        self.losses = [loss for loss in losses if loss is not None]
        self.loss_of = [i for i, loss in enumerate(losses) if loss is not None]
        self.predicted: list[Shape] = []  # the shapes that the losses read
        for i, loss in zip(self.loss_of, self.losses):
            prediction = loss.logits(graph, graph.outputs[i])
            self.predicted.append(graph.shapes[prediction])
            targets = [graph.input(shape) for shape in loss.target_shapes(graph.shapes[prediction])]
            graph.outputs.append(loss.lower(graph, prediction, targets))
        self.loss_shapes = [graph.shapes[tensor] for tensor in graph.outputs[self.output_count :]]
        self.given = [graph.shapes[tensor] for tensor in graph.inputs]  # images and targets
        self.fed: list[tuple[Shape, int, bool]] = []  # shape, number of a loss, whether over the number of pixels
        self.multiplied: set[int] = set()  # losses whose values have their weights already
        self.norms: list[tuple[Node, int]] = []
        self.order: list[Param] = []  # of the gradients
        if evaluation:
            graph = all_passes.run(graph)
        else:
            graph = self._with_gradients(training(graph, list(trained.values())), trained, factors, weighted, recompute)
        lowering = TrainingLowering(graph, dtype, exact, lean, {} if cache is None else cache, trained.values(), seed)
        self.graph, self._plan, self._wants_step = graph, lowering.plan, lowering.step is not None
        self._live = {id(live.param): live for live in lowering.live.values() if live.param in self.order}
        self.live = list(lowering.live.values())

    def _with_gradients(
        self,
        graph: Graph,
        trained: Mapping[str, Param],
        factors: Sequence[float] | None,
        weighted: bool,
        recompute: int,
    ) -> Graph:
        losses = graph.outputs[self.output_count :]
        for node in graph.nodes:
            if node.op == "batch_norm_train":
                shape = graph.shapes[node.output]
                self.norms.append((node, int(np.prod(shape[:-1]))))
                graph.outputs += node.more
        made = differentiate(
            graph, losses, list(trained.values()), factors=factors, weighted=weighted, recompute=recompute
        )
        number_of = {tensor: (number, True) for number, tensor in made.seeds.items()}
        number_of |= {tensor: (number, False) for number, tensor in made.weights.items()}
        for tensor in made.graph.inputs[len(self.given) :]:
            self.fed.append((made.graph.shapes[tensor], *number_of[tensor]))
        self.multiplied = set(made.weights)
        for param, found in made.params.items():
            self.order += [param] * len(found)
        return made.graph

    @property
    def plan(self) -> Any:
        """The compiled core's plan, for its steps and its memory."""
        return self._plan

    def run(
        self,
        images: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        weights: np.ndarray | None = None,
        step: int = 0,
        threads: int = 0,
    ) -> Result:
        """images (N, *shape), the losses' targets one after another, weights (N,): one for each image; step: a number
        that the masks of dropout depend on.
        """
        count = len(images[0])
        arrays = [_core_view(x, self.dtype) for x in (*images, *targets)]
        for shape, _, over_pixels in self.fed:
            fed = np.ones(count, self.dtype) if weights is None else weights.astype(self.dtype)
            pixels = int(np.prod(shape))
            if over_pixels:
                fed = fed / self.dtype.type(count * pixels)
            arrays.append(_core_view(np.repeat(fed, pixels).reshape(count, *shape), self.dtype))
        if self._wants_step:
            arrays.append(np.full((1, 1, 1, 1), step, self.dtype))
        results = self._plan.run(arrays, threads)
        return self._sorted(results, count, weights)

    def _sorted(self, results: list[np.ndarray], count: int, weights: np.ndarray | None) -> Result:
        rest = iter(results)
        shapes = [self.graph.shapes[tensor] for tensor in self.graph.outputs[: self.output_count]]
        outputs = [next(rest).reshape(count, *shape) for shape in shapes]
        losses = []
        for number in range(len(self.losses)):
            values = next(rest).reshape(count, -1).mean(1)
            if weights is not None and number not in self.multiplied:
                values = values * weights
            losses.append(values)
        statistics = [(node, next(rest).ravel(), next(rest).ravel(), count * pixels) for node, pixels in self.norms]
        gradients: dict[int, tuple[str, Param, np.ndarray]] = {}
        for param, gradient in zip(self.order, rest):
            laid = self._live[id(param)].back(gradient)
            if id(param) in gradients:
                gradients[id(param)][2][...] += laid
            else:
                gradients[id(param)] = (self.names[id(param)], param, laid)
        return Result(outputs, losses, list(gradients.values()), statistics)

    def touch(self) -> None:
        """The trained parameters have changed."""
        for live in self.live:
            live.touch()


def move_statistics(statistics: Sequence[tuple[Node, np.ndarray, np.ndarray, int]]) -> None:
    """Move the kept statistics of batch norms towards a batch's: kept = momentum * kept + (1 - momentum) * new."""
    for node, mean, var, count in statistics:
        share = np.float32(1 - node.attrs["momentum"])
        if node.attrs.get("unbiased", False):
            var = var * np.float32(count / max(count - 1, 1))
        for key, new in (("mean", mean), ("var", var)):
            param = node.params[key]
            assert isinstance(param, Param)
            kept = param.writable()
            kept += share * (new - kept)
            param.changed()


def _core_view(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """(N, *shape) as the core's (N, D, H, W, C)."""
    x = np.asarray(x, dtype)
    return x[(slice(None), *(None,) * (5 - x.ndim))]
