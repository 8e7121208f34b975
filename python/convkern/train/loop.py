"""Training: what Model.compile sets up, and the loops behind fit, evaluate and train_on_batch.

A Trainer belongs to a model. It keeps a compiled Step for each (image shapes, what is trained, weighted or not), the
optimizer, and the counters that a checkpoint holds. Everything random follows from the seed and the number of batches
trained so far.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import initializers
from ..compiler import CompiledPlan
from ..compiler import compile as compile_graph
from ..errors import ModelError, NotFinite, ShapeError, Unsupported
from ..graph import Graph, Shape
from . import callbacks as cb
from . import checkpoint, losses, metrics, optimizers
from .batches import Batch, Source, Stream, source_of
from .diagnose import first_not_finite
from .step import Result, Step, move_statistics

STEPS = 4  # compiled steps that a trainer keeps


class Trainer:
    """The training of a model; see Model.compile for the arguments."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        loss: Any,
        metrics_: Any,
        loss_weights: Any,
        check_finite: bool,
        recompute: int | bool,
        seed: int | None,
    ):
        self.model = model
        self.optimizer = optimizers.get(optimizer)
        self.check_finite, self.recompute = bool(check_finite), recompute
        self.seed = initializers.current_seed() if seed is None else int(seed)
        self.names = _names(model)
        self.losses = self._per_output(loss, "loss", losses.get)
        if not any(self.losses):
            raise Unsupported("compile: no output has a loss")
        weights = self._per_output(loss_weights, "loss_weights", float)
        self.factors = [1.0 if w is None else w for w, loss in zip(weights, self.losses) if loss is not None]
        self.metrics = self._metrics(metrics_)
        self.batches = 0  # trained since compile
        self.place = (0, 0)  # epoch and batch that come next
        self.started = 0  # batches at the beginning of the epoch
        self.totals = [0.0, 0]  # weighted losses of the epoch, images
        self.source: Source | None = None
        self.callbacks: cb.CallbackList | None = None
        self._steps: OrderedDict[Any, Step] = OrderedDict()
        self._evaluations: OrderedDict[Any, Evaluation] = OrderedDict()

    # What compile was given.

    def _per_output(self, given: Any, what: str, convert: Any) -> list[Any]:
        if isinstance(given, Mapping):
            unknown = set(given) - set(self.names)
            if unknown:
                raise ModelError(f"{what}: no output {sorted(unknown)[0]!r}; there are {', '.join(self.names)}")
            given = [given.get(name) for name in self.names]
        elif not isinstance(given, (list, tuple)):
            given = [given] * len(self.names)
        if len(given) != len(self.names):
            raise ModelError(f"{what}: got {len(given)}, want one for each output: {', '.join(self.names)}")
        return [None if value is None else convert(value) for value in given]

    def _metrics(self, given: Any) -> list[tuple[int, str, metrics.Metric]]:
        """(output, reported name, metric) of all metrics."""
        several = len(self.names) > 1
        if given is None:
            rows: Sequence[Any] = [()] * len(self.names)
        elif isinstance(given, Mapping):
            rows = [given.get(name, ()) for name in self.names]
        elif several and all(isinstance(row, (list, tuple)) for row in given):
            rows = list(given)
        else:
            rows = [given] * len(self.names)
        found = []
        for output, row in enumerate(rows):
            loss = self.losses[output]
            binary = isinstance(loss, losses.BinaryCrossentropy)
            logits = binary and self._gives_logits(output)
            for entry in row if isinstance(row, (list, tuple)) else [row]:
                metric = metrics.get(entry, binary, logits)
                found.append((output, f"{self.names[output]}_{metric.name}" if several else metric.name, metric))
        return found

    def _gives_logits(self, output: int) -> bool:
        loss = self.losses[output]
        graph = self.model.graph(self._probe_shapes())
        return loss.logits(graph, graph.outputs[output]) == graph.outputs[output]

    def _probe_shapes(self) -> list[Shape]:
        return [tuple(n or 64 for n in tensor.shape) for tensor in self.model.inputs]

    # Compiled steps.

    def step_for(self, shapes: tuple[Shape, ...], weighted: bool) -> Step:
        trained = self.model.trainable_params()
        if not trained:
            raise ModelError(f"{self.model.name}: nothing is trainable: set layer.trainable = True for some layer")
        frozen = tuple(_frozen(self.model))
        replaced = tuple(param.replaced for param in self.model.weights)
        key = (shapes, weighted, tuple(trained), frozen, replaced, self.model.exact, self.model.memory)
        step = self._steps.get(key)
        if step is None:
            for old in [k for k in self._steps if k[4] != replaced]:
                del self._steps[old]  # it reads arrays that are not the model's any more
            graph = self.model.graph(list(shapes))
            parts = self.recompute
            if parts is True:
                parts = max(2, round(math.sqrt(len(graph.nodes)) / 2))
            step = Step(
                graph,
                self.losses,
                trained,
                factors=self.factors,
                weighted=weighted,
                recompute=int(parts),
                seed=self.seed,
                exact=self.model.exact,
                lean=self.model.memory == "lean",
            )
            # writable() took private copies: the key was made of what is known now
            self._steps[key] = step
            if len(self._steps) > STEPS:
                self._steps.popitem(last=False)
        else:
            self._steps.move_to_end(key)
        return step

    def targets(self, batch: Batch, shapes: Sequence[Shape]) -> list[np.ndarray]:
        made = []
        used = iter(shapes)
        for number, (loss, y) in enumerate(zip(self.losses, batch.y)):
            if loss is not None:
                if y is None:
                    raise ShapeError(f"the output {self.names[number]!r} has a loss but no targets")
                arrays = loss.targets(y, batch.x, next(used))
                if any(len(array) != batch.size for array in arrays):
                    raise ShapeError(f"got {batch.size} images and {len(arrays[0])} targets")
                made += arrays
        return made

    # Training.

    def train(self, batch: Batch) -> Result:
        """One batch: gradients, statistics, the optimizer's step."""
        if batch.size == 0:
            raise ShapeError("got a batch without images")
        step = self.step_for(tuple(x.shape[1:] for x in batch.x), batch.weights is not None)
        targets = self.targets(batch, step.predicted)
        result = step.run(batch.x, targets, batch.weights, self.batches)
        if self.check_finite and not all(np.isfinite(values).all() for values in result.losses):
            raise NotFinite(first_not_finite(self, batch, self.batches + 1))
        move_statistics(result.statistics)
        if isinstance(self.optimizer, optimizers.SAM):
            self.optimizer.ascend(result.gradients)
            self._touch()
            again = step.run(batch.x, targets, batch.weights, self.batches)
            self.optimizer.apply(again.gradients)
            self._touch()
        elif self.optimizer.apply(result.gradients):
            self._touch()
        self.batches += 1
        return result

    def _touch(self) -> None:
        for step in self._steps.values():
            step.touch()

    def count(self, batch: Batch, outputs: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> None:
        """Add a batch to the means of loss and metrics."""
        total = sum(factor * float(v.sum(dtype=np.float64)) for factor, v in zip(self.factors, values))
        self.totals[0] += total
        self.totals[1] += batch.size
        for output, _, metric in self.metrics:
            y = batch.y[output]
            if y is not None:
                metric.update(np.asarray(y), outputs[output])

    def reset(self) -> None:
        self.totals = [0.0, 0]
        for _, _, metric in self.metrics:
            metric.reset()

    def means(self, prefix: str = "") -> dict[str, float]:
        logs = {f"{prefix}loss": self.totals[0] / self.totals[1] if self.totals[1] else 0.0}
        logs.update({f"{prefix}{name}": metric.result() for _, name, metric in self.metrics})
        return logs

    def fit(
        self,
        source: Source,
        validation: Source | None,
        epochs: int,
        initial_epoch: int,
        callbacks: Sequence[cb.Callback],
        bar: cb.Callback | None,
        validation_freq: int,
        resume: Any,
    ) -> cb.History:
        model = self.model
        history = cb.History()
        everything = [history, *callbacks, *([bar] if bar is not None else [])]
        params = {"epochs": epochs, "steps": source.steps}
        hooks = self.callbacks = cb.CallbackList(everything, model, params)
        model.history, model.stop_training = history, False
        self.source, self.place = source, (initial_epoch, 0)
        for callback in callbacks:
            resume = resume if resume is not None else getattr(callback, "resume", None)
        state = None if resume is None else checkpoint.read(model, self, resume)
        hooks.on_train_begin()
        if state is not None:
            checkpoint.restore(model, self, state)
        try:
            while self.place[0] < epochs and not model.stop_training:
                self._epoch(source, validation, validation_freq, hooks)
        except BaseException:
            for callback in hooks.callbacks:
                if isinstance(callback, cb.ProgressBar):
                    callback.on_train_end()  # leaves the terminal as it was
            raise
        finally:
            self.source = None
        hooks.on_train_end()
        return history

    def _epoch(self, source: Source, validation: Source | None, freq: int, hooks: cb.CallbackList) -> None:
        epoch, first = self.place
        if first == 0:
            self.reset()
            self.started = self.batches
        hooks.on_epoch_begin(epoch)
        number = first
        for batch in source.epoch((self.seed, self.started), first):
            hooks.on_train_batch_begin(number)
            result = self.train(batch)
            self.count(batch, result.outputs, result.losses)
            number += 1
            self.place = (epoch, number)
            hooks.on_train_batch_end(number - 1, {**self.means(), "size": batch.size})
            if self.model.stop_training:
                break
        if not self.totals[1]:
            raise ShapeError("the data gave no batch")
        logs = self.means()
        self.place = (epoch + 1, 0)
        if validation is not None and (epoch + 1) % freq == 0:
            logs.update(self.evaluate(validation, "val_"))
        logs["learning_rate"] = self.optimizer.rate
        hooks.on_epoch_end(epoch, logs)

    def forget(self) -> None:
        """Drop what was compiled for arrays that were replaced."""
        self._steps.clear()
        self._evaluations.clear()

    # Evaluation.

    def evaluate(self, source: Source, prefix: str = "", bar: Any = None) -> dict[str, float]:
        """Loss and metrics at inference."""
        kept = self.totals, [metric.state for _, _, metric in self.metrics]
        self.reset()
        for batch in source.epoch((self.seed, 0), 0):
            self.count(batch, *self.judge(batch))
            if bar is not None:
                bar.update()
        logs = self.means(prefix)
        self.totals = kept[0]
        for (_, _, metric), state in zip(self.metrics, kept[1]):
            metric.state = state
        return logs

    def judge(self, batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """A batch's outputs and losses at inference."""
        shapes = tuple(x.shape[1:] for x in batch.x)
        versions = tuple(param.version for param in self.model.weights)
        key = (shapes, versions, self.model.exact, self.model.memory)
        evaluation = self._evaluations.get(key)
        if evaluation is None:
            for old in [k for k in self._evaluations if k[1] != versions]:
                del self._evaluations[old]
            evaluation = self._evaluations[key] = Evaluation(self.model, self.losses, list(shapes))
        targets = self.targets(batch, evaluation.predicted)
        return evaluation.run(batch.x, targets, batch.weights)


class Evaluation:
    """Outputs and losses of a model at inference: the plan of a call that also gives what the losses read, and a plan
    of the losses alone.
    """

    def __init__(self, model: Any, losses_: Sequence[losses.Loss | None], shapes: list[Shape]):
        graph = model.graph(shapes)
        self.count = len(graph.outputs)
        read = [loss.logits(graph, graph.outputs[i]) for i, loss in enumerate(losses_) if loss is not None]
        self.predicted = [graph.shapes[tensor] for tensor in read]
        graph.outputs = [*graph.outputs, *read]
        lean = model.memory == "lean"
        self.plan: CompiledPlan = compile_graph(graph, exact=model.exact, lean=lean, parameters=model._packed)
        alone = Graph()
        alone.outputs = [alone.input(shape) for shape in self.predicted]
        self.losses = Step(alone, [_Bare(loss) for loss in losses_ if loss is not None], {}, evaluation=True)

    def run(
        self, x: Sequence[np.ndarray], targets: Sequence[np.ndarray], weights: np.ndarray | None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        results = self.plan.run(x)
        return results[: self.count], self.losses.run(results[self.count :], targets, weights).losses


class _Bare(losses.Loss):
    """A loss whose output was already cut before its final softmax."""

    def __init__(self, loss: losses.Loss):
        super().__init__(loss.name)
        self.loss = loss

    def target_shapes(self, shape: Shape) -> list[Shape]:
        return self.loss.target_shapes(shape)

    def lower(self, graph: Graph, output: int, targets: list[int]) -> int:
        return self.loss.lower(graph, output, targets)


def _frozen(model: Any) -> Iterator[bool]:
    """For each layer, of inner models too, whether it is frozen: norms and stochastic depth run differently then."""
    for layer in model._inner_layers():
        yield not layer.trainable
        if hasattr(layer, "_inner_layers"):
            yield from _frozen(layer)


def _names(model: Any) -> list[str]:
    if isinstance(model._output_layout, list):
        return list(model._output_layout)
    names = [tensor.name for tensor in model.outputs]
    return names if len(set(names)) == len(names) else [f"{name}_{i}" for i, name in enumerate(names)]


# What the methods of Model do.


def fit(
    model: Any,
    x: Any,
    y: Any,
    batch_size: int | None,
    epochs: int,
    verbose: Any,
    callbacks: Any,
    validation_split: float,
    validation_data: Any,
    shuffle: bool,
    class_weight: Any,
    sample_weight: Any,
    initial_epoch: int,
    steps_per_epoch: int | None,
    validation_steps: int | None,
    validation_batch_size: int | None,
    validation_freq: int,
    resume: Any,
) -> cb.History:
    trainer = of(model)
    if verbose not in ("auto", 0, 1, 2):
        raise Unsupported(f"verbose={verbose!r}; want 0, 1 (a bar), 2 (a line for each epoch) or 'auto'")
    source = source_of(
        model,
        x,
        y,
        sample_weight=sample_weight,
        class_weight=class_weight,
        batch_size=batch_size,
        shuffle=shuffle,
        steps=steps_per_epoch,
    )
    validation = None
    if validation_data is not None:
        validation = _validation(model, validation_data, validation_batch_size or batch_size, validation_steps)
    elif validation_split:
        if isinstance(source, Stream):
            raise Unsupported("validation_split needs arrays: pass validation_data")
        source, validation = source.head(validation_split)  # type: ignore[attr-defined]
        validation.shuffle = False
    given = [callbacks] if isinstance(callbacks, cb.Callback) else list(callbacks or ())
    return trainer.fit(
        source, validation, epochs, initial_epoch, given, _bar(verbose), max(1, int(validation_freq)), resume
    )


def _validation(model: Any, data: Any, batch_size: int | None, steps: int | None) -> Source:
    if isinstance(data, (tuple, list)) and len(data) in (2, 3):
        return source_of(
            model,
            data[0],
            data[1],
            sample_weight=data[2] if len(data) == 3 else None,
            batch_size=batch_size,
            steps=steps,
        )
    return source_of(model, data, steps=steps)


def _bar(verbose: Any) -> cb.Callback | None:
    if verbose == 0:
        return None
    if verbose == "auto":
        try:
            return cb.ProgressBar()
        except Unsupported:
            return cb.ProgressBar(bar=False)
    return cb.ProgressBar(bar=verbose == 1)


def evaluate(
    model: Any,
    x: Any,
    y: Any,
    batch_size: int | None,
    verbose: Any,
    sample_weight: Any,
    steps: int | None,
    return_dict: bool,
) -> Any:
    trainer = of(model)
    source = source_of(model, x, y, sample_weight=sample_weight, batch_size=batch_size, steps=steps)
    bar = None
    if verbose == 1:
        from ..model import progress

        bar = progress(source.steps)
    logs = trainer.evaluate(source, bar=bar)
    if bar is not None:
        bar.close()
    return _report(logs, return_dict)


def one_batch(model: Any, x: Any, y: Any, sample_weight: Any, class_weight: Any, return_dict: bool, train: bool) -> Any:
    trainer = of(model)
    source = source_of(model, x, y, sample_weight=sample_weight, class_weight=class_weight, batch_size=2**31)
    (batch,) = _first(source)
    trainer.reset()
    if train:
        result = trainer.train(batch)
        trainer.count(batch, result.outputs, result.losses)
    else:
        trainer.count(batch, *trainer.judge(batch))
    return _report(trainer.means(), return_dict)


def _first(source: Source) -> Iterator[Batch]:
    return source.epoch((0, 0), 0)


def _report(logs: dict[str, float], as_dict: bool) -> Any:
    if as_dict:
        return logs
    values = list(logs.values())
    return values[0] if len(values) == 1 else values


def of(model: Any) -> Trainer:
    """The trainer of a compiled model."""
    trainer = model._trainer
    if trainer is None:
        raise ModelError(f"{model.name} has no loss yet: call compile(optimizer=..., loss=...) first")
    if trainer.names != _names(model):
        raise ModelError(f"{model.name} has other outputs now: call compile again")
    return trainer
