"""What `fit` and `evaluate` read: arrays, or anything that gives batches, as batches of one form.

Arrays are shuffled by a permutation that depends on the seed and on how many batches were trained before the epoch, and
on nothing else: a resumed run finds its place without any state. Sources that give batches themselves (a generator, a
data set from convkern.data, a Keras-like sequence) are used as they are; one that has get_state and set_state is
continued from its own state, any other by passing over the batches that were used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import as_ndarray
from ..errors import DataError, DTypeError, ShapeError, Unsupported


class Batch(NamedTuple):
    """One batch: the model's inputs, targets as the caller has them (one for each output), weights (N,) or None."""

    x: list[np.ndarray]
    y: list[Any]
    weights: np.ndarray | None

    @property
    def size(self) -> int:
        return len(self.x[0])


class Source:
    """Batches, epoch by epoch."""

    steps: int | None  # batches in an epoch, where known

    def epoch(self, key: tuple[int, int], first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on; key: what the order depends on."""
        raise NotImplementedError

    def get_state(self) -> Any:
        return None

    def set_state(self, state: Any) -> bool:
        """Take a state back; False if there is none, and batches must be passed over."""
        return False


class Arrays(Source):
    """Arrays of images, in their order or shuffled."""

    def __init__(
        self,
        model: Any,
        x: Any,
        y: Any,
        sample_weight: Any,
        class_weight: Mapping[int, float] | None,
        batch_size: int,
        shuffle: bool,
        steps: int | None = None,
    ):
        self.x = model._checked(model._arranged(x))
        self.y = arranged_targets(model, y)
        self.count = len(self.x[0])
        if not self.count:
            raise DataError("got no images (an array of length 0)")
        for target in self.y:
            if target is not None and len(target) != self.count:
                raise ShapeError(f"got {self.count} images and {len(target)} targets")
        self.weights = batch_weights(sample_weight, class_weight, self.y, self.count)
        self.batch_size, self.shuffle = batch_size, shuffle
        whole = -(-self.count // batch_size)
        self.steps: int = whole if steps is None else min(steps, whole)

    def epoch(self, key: tuple[int, int], first: int) -> Iterator[Batch]:
        order = np.random.default_rng((*key, 0x0EDE)).permutation(self.count) if self.shuffle else None
        for step in range(first, self.steps):
            part: Any = slice(step * self.batch_size, (step + 1) * self.batch_size)
            if order is not None:
                part = order[part]
            weights = None if self.weights is None else self.weights[part]
            yield Batch([a[part] for a in self.x], [None if t is None else t[part] for t in self.y], weights)

    def head(self, share: float) -> tuple[Arrays, Arrays]:
        """These images without the last `share` of them, and those."""
        count = int(self.count * (1 - share))
        if not 0 < count < self.count:
            raise ShapeError(f"validation_split={share} leaves {count} of {self.count} images for training")
        return self._part(slice(0, count)), self._part(slice(count, None))

    def _part(self, part: slice) -> Arrays:
        other = object.__new__(Arrays)
        other.x = [a[part] for a in self.x]
        other.y = [None if t is None else t[part] for t in self.y]
        other.weights = None if self.weights is None else self.weights[part]
        other.batch_size, other.shuffle = self.batch_size, self.shuffle
        other.count = len(other.x[0])
        other.steps = -(-other.count // other.batch_size)
        return other


class Stream(Source):
    """An object that gives (x, y) or (x, y, sample_weight): a sequence by number, an iterable, or an iterator.

    An iterator goes on from epoch to epoch and needs steps_per_epoch; anything else starts again.
    """

    def __init__(self, model: Any, source: Any, class_weight: Mapping[int, float] | None, steps: int | None):
        self.model, self.source, self.class_weight = model, source, class_weight
        self.endless = isinstance(source, Iterator) and not hasattr(source, "__len__")
        length = len(source) if hasattr(source, "__len__") else None
        self.steps = length if steps is None else steps
        if self.endless and steps is None:
            raise Unsupported("an iterator does not say how long an epoch is: pass steps_per_epoch")
        if self.steps == 0:
            raise DataError("the data has no batches")
        self._resumed = False

    def epoch(self, key: tuple[int, int], first: int) -> Iterator[Batch]:
        skip = 0 if self._resumed else first
        self._resumed = False
        left = None if self.steps is None else self.steps - first
        if left == 0:
            return
        given = 0
        for number, item in enumerate(self._items()):
            if number < skip:
                continue
            yield self._batch(item)
            given += 1
            if given == left:
                break
        else:
            if left is not None and self.endless:
                raise DataError(
                    f"the data ended after {given} batches of this epoch, {left} were wanted (steps_per_epoch)"
                )
        if not isinstance(self.source, Iterator) and hasattr(self.source, "on_epoch_end"):
            self.source.on_epoch_end()
        if not given and not first:
            raise DataError("the data gave no batch")

    def _items(self) -> Iterator[Any]:
        if isinstance(self.source, Iterator) or hasattr(self.source, "__iter__"):
            return iter(self.source)
        return (self.source[i] for i in range(len(self.source)))

    def _batch(self, item: Any) -> Batch:
        if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
            kind = f"{len(item)} things" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DTypeError(f"the data gave {kind}, want (x, y) or (x, y, sample_weight)")
        x = self.model._checked(self.model._arranged(item[0]))
        y = arranged_targets(self.model, item[1])
        weights = batch_weights(item[2] if len(item) > 2 else None, self.class_weight, y, len(x[0]))
        return Batch(x, y, weights)

    def get_state(self) -> Any:
        return self.source.state() if hasattr(self.source, "state") else None

    def set_state(self, state: Any) -> bool:
        if state is None or not hasattr(self.source, "restore"):
            return False
        self.source.restore(state)
        self._resumed = True
        return True


def source_of(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    steps: int | None = None,
) -> Source:
    """The batches that the arguments of fit or evaluate stand for."""
    if steps is not None and steps < 1:
        raise ShapeError(f"steps: got {steps}, want at least 1")
    if y is None and _gives_batches(x):
        if sample_weight is not None or batch_size is not None:
            raise Unsupported("data that comes in batches brings its own batch size and sample weights")
        return Stream(model, x, class_weight, steps)
    if y is None:
        raise ShapeError("got inputs but no targets (y)")
    size = 32 if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ShapeError(f"batch_size: got {batch_size!r}, want an integer of at least 1")
    return Arrays(model, x, y, sample_weight, class_weight, int(size), shuffle, steps)


def _gives_batches(x: Any) -> bool:
    if isinstance(x, (np.ndarray, list, tuple, Mapping)) or hasattr(x, "__dlpack__"):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def arranged_targets(model: Any, y: Any) -> list[Any]:
    """Targets in the order of the model's outputs."""
    layout = model._output_layout
    if layout is None:
        return [_array(y)]
    if isinstance(y, Mapping):
        names = layout if isinstance(layout, list) else [t.name for t in model.outputs]
        if set(y) - set(names):
            raise ShapeError(f"got targets named {', '.join(map(str, y))}, want {', '.join(names)}")
        return [None if name not in y else _array(y[name]) for name in names]
    if not isinstance(y, (list, tuple)) or len(y) != len(model.outputs):
        raise ShapeError(f"got one target, want a list of {len(model.outputs)}: one for each output")
    return [None if t is None else _array(t) for t in y]


def _array(y: Any) -> np.ndarray:
    return np.asarray(y) if isinstance(y, (list, tuple)) else as_ndarray(y, "y")


def batch_weights(
    sample_weight: Any, class_weight: Mapping[int, float] | None, y: Sequence[Any], count: int
) -> np.ndarray | None:
    """One weight for each image, float32, or None."""
    weights = None
    if sample_weight is not None:
        weights = np.asarray(sample_weight, np.float32)
        if weights.shape != (count,):
            raise ShapeError(f"sample_weight: got shape {weights.shape}, want ({count},)")
        if not (weights >= 0).all():
            raise DataError("sample_weight: got negative numbers or NaN, want 0 or more")
    if class_weight is not None:
        if len(y) != 1 or y[0] is None:
            raise Unsupported("class_weight needs a model of one output")
        labels = y[0]
        labels = (
            labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(len(labels), -1)[:, 0]
        )
        table = {int(key): float(value) for key, value in class_weight.items()}
        by_class = np.array([table.get(int(label), 1.0) for label in labels], np.float32)
        weights = by_class if weights is None else weights * by_class
    return weights
