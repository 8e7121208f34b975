"""Iterators over batches of images, made by threads, ahead of their use, and always the same.

What a batch holds follows from the seed, the epoch and its index alone: the order of an epoch is a permutation drawn
from (seed, epoch), an image's transform is drawn from (seed, epoch, image). So any batch can be made again, by any
number of threads, and an iterator's state is two numbers.
"""

from __future__ import annotations

import math
import operator
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import DataError, DTypeError, ShapeError, Unsupported
from ..layers.arguments import integer
from . import transforms
from .directory import ImageFiles, broken_files, check_subset
from .generator import ImageDataGenerator, seed_of
from .images import INTERPOLATIONS, decode, need_pillow

CHANNELS = {"rgb": ("RGB", 3), "grayscale": ("L", 1), "rgba": ("RGBA", 4)}
CLASS_MODES = ("categorical", "sparse", "binary", "input", None)

Made = tuple[np.ndarray, list["Future[None]"]]  # the images of a batch, and who is still writing into them


class Batches:
    """A sequence of the batches of one epoch, and an iterator over epochs.

    `b[i]` is batch i of the current epoch, as often as it is asked for; `on_epoch_end()` goes to the next epoch.
    `next(b)` gives one batch after the other for ever, through the epochs, as Keras' iterators do; where `endless` is
    False, `for batch in b` ends with the epoch. `state()` is what `restore` needs to go on with the same bits.
    """

    def __init__(
        self,
        generator: ImageDataGenerator,
        n: int,
        image_shape: tuple[int, int, int],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        save_to: tuple[str, str, str] | None = None,
        workers: int = 2,
        prefetch: int = 2,
        endless: bool = True,
    ):
        self.generator = generator
        self.n = self.samples = n
        self.batch_size = integer("batch_size", batch_size)
        self.shuffle = bool(shuffle)
        self.seed = seed_of(seed)
        self.epoch = 0
        self.batch_index = 0
        self.endless = endless
        self.workers = integer("workers", workers, 0)
        self.prefetch = integer("prefetch", prefetch, 0)
        self._shape = image_shape  # (H,W,C)
        self._save_to = save_to
        self._orders: dict[int, np.ndarray] = {}  # of the last two epochs asked for
        self._ahead: dict[tuple[int, int], Made] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._stop: Any = None
        self._start_lock()

    # The sequence

    @property
    def image_shape(self) -> tuple[int, ...]:
        h, w, c = self._shape
        return (c, h, w) if self.generator.data_format == "channels_first" else (h, w, c)

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        count = len(self)
        position = operator.index(index)
        if not -count <= position < count:
            raise IndexError(f"batch {index} of {count}")
        return self._batch(self.epoch, position % count)

    def __iter__(self) -> Iterator[Any]:
        return self if self.endless else self._one_epoch()

    def __next__(self) -> Any:
        if self.batch_index >= len(self):
            self.on_epoch_end()
        batch = self._batch(self.epoch, self.batch_index)
        self.batch_index += 1
        return batch

    def _one_epoch(self) -> Iterator[Any]:
        if self.batch_index >= len(self):
            self.on_epoch_end()
        while self.batch_index < len(self):
            yield next(self)

    def on_epoch_end(self) -> None:
        """Go to the first batch of the next epoch: another order, other transforms."""
        self.epoch += 1
        self.batch_index = 0

    def reset(self) -> None:
        """Go back to the first batch of this epoch."""
        self.batch_index = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers, for `restore` of an iterator over the same data."""
        return dict(
            seed=self.seed,
            epoch=self.epoch,
            batch=self.batch_index,
            n=self.n,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken, with the same bits. DataError if it was over other data or batches."""
        mine = self.state()
        if set(state) != set(mine):
            raise DataError(f"restore: got {', '.join(sorted(state))}, want {', '.join(sorted(mine))}")
        for name in ("n", "batch_size", "shuffle"):
            if state[name] != mine[name]:
                raise DataError(f"restore: the state has {name}={state[name]}, this iterator {mine[name]}")
        seed, epoch = seed_of(state["seed"]), integer("epoch", state["epoch"], 0)
        batch = integer("batch", state["batch"], 0)
        if batch > len(self):
            raise DataError(f"restore: batch {batch} of {len(self)}")
        with self._lock:
            self._drop_ahead()
            self._orders = {}
            self.seed, self.epoch, self.batch_index = seed, epoch, batch

    def indices(self, epoch: int | None = None) -> np.ndarray:
        """Which images an epoch's batches hold, one after the other; None = the current epoch."""
        epoch = self.epoch if epoch is None else integer("epoch", epoch, 0)
        orders = self._orders
        if epoch not in orders:
            order = np.arange(self.n)
            if self.shuffle:
                order = transforms.random_at(self.seed, epoch, 0, transforms.SHUFFLE).permutation(self.n)
            order.flags.writeable = False
            orders = {**dict(list(orders.items())[-1:]), epoch: order}
            self._orders = orders
        return orders[epoch]

    # Threads

    def close(self) -> None:
        """Stop the threads; the iterator starts new ones if it is used again."""
        with self._lock:
            self._drop_ahead()
            if self._pool is not None:
                self._stop()
                self._pool = None

    def _start_lock(self) -> None:
        self._lock = threading.RLock()
        self._pool = self._stop = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__, _ahead={})
        for name in ("_lock", "_pool", "_process", "_stop"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_lock()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="convkern-data")
            self._stop = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool

    def _drop_ahead(self) -> None:
        for _, parts in self._ahead.values():
            for part in parts:
                part.cancel()
        self._ahead.clear()

    def _batch(self, epoch: int, index: int) -> Any:
        if os.getpid() != self._process:  # a forked child has none of its parent's threads
            self._ahead = {}
            self._start_lock()
        if not self.workers:
            images = np.empty((len(self._of_batch(epoch, index)), *self._shape), np.float32)
            self._make(images, self._of_batch(epoch, index), epoch)
            return self._finish(images, epoch, index)
        with self._lock:
            wanted = [(epoch, index), *self._following(epoch, index)]
            for key in [key for key in self._ahead if key not in wanted]:
                for part in self._ahead.pop(key)[1]:
                    part.cancel()
            for key in wanted:
                if key not in self._ahead:
                    self._ahead[key] = self._begin(*key)
            images, parts = self._ahead.pop((epoch, index))
        for part in parts:
            part.result()
        return self._finish(images, epoch, index)

    def _following(self, epoch: int, index: int) -> list[tuple[int, int]]:
        count = len(self)
        return [(epoch + i // count, i % count) for i in range(index + 1, index + 1 + self.prefetch)]

    def _of_batch(self, epoch: int, index: int) -> np.ndarray:
        return self.indices(epoch)[index * self.batch_size : (index + 1) * self.batch_size]

    def _begin(self, epoch: int, index: int) -> Made:
        """Have the threads make a batch, in a few pieces each, so that all of them end at about the same time."""
        chosen = self._of_batch(epoch, index)
        images = np.empty((len(chosen), *self._shape), np.float32)
        step = max(1, -(-len(chosen) // (4 * self.workers)))
        starts = range(0, len(chosen), step)
        pool = self._threads()
        return images, [pool.submit(self._make, images[i : i + step], chosen[i : i + step], epoch) for i in starts]

    # Making

    def _make(self, out: np.ndarray, chosen: np.ndarray, epoch: int) -> None:
        """Write these images into `out`."""
        for image, index in zip(out, chosen):
            self._make_one(image, int(index), epoch)
            self.generator.standardize_in_place(image)
            if self._save_to is not None:
                self._save(image, int(index), epoch)

    def _make_one(self, out: np.ndarray, index: int, epoch: int) -> None:
        raise NotImplementedError

    def _targets(self, chosen: np.ndarray, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The labels and the weights of these images."""
        raise NotImplementedError

    def _finish(self, images: np.ndarray, epoch: int, index: int) -> Any:
        """A batch as the caller gets it."""
        made = self.generator
        labels, weights = self._targets(self._of_batch(epoch, index), images)
        if made.mixup or made.cutmix:
            images, labels = self._mixed(images, labels, weights, epoch, index)
        if made.dtype != np.float32:
            same = labels is images
            images = images.astype(made.dtype)
            labels = images if same else labels
        if made.data_format == "channels_first":
            images = images.transpose(0, 3, 1, 2)
            if labels is not None and labels.ndim == 4:
                labels = labels.transpose(0, 3, 1, 2)
        parts = tuple(part for part in (images, labels, weights) if part is not None)
        return parts if len(parts) > 1 else images

    def _mixed(self, images: np.ndarray, labels: Any, weights: Any, epoch: int, index: int) -> Any:
        made = self.generator
        rng = transforms.random_at(self.seed, epoch, index, transforms.MIX)
        if not (made.mixup and made.cutmix):
            mix = transforms.mixup if made.mixup else transforms.cutmix
            return mix(images, labels, made.mixup or made.cutmix or 0.0, rng)
        coins = rng.random(len(images)) < 0.5
        x, y = transforms.mixup(images, labels, made.mixup, rng)
        cut_x, cut_y = transforms.cutmix(images, labels, made.cutmix, rng)
        x[coins], y[coins] = cut_x[coins], cut_y[coins]
        return x, y

    def _save(self, image: np.ndarray, index: int, epoch: int) -> None:
        from PIL import Image

        folder, prefix, kind = self._save_to or ("", "", "")
        pixels = transforms.to_pixels(image)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if kind in ("jpg", "jpeg") and picture.mode == "RGBA":
            picture = picture.convert("RGB")
        picture.save(os.path.join(folder, f"{prefix}_{index}_{epoch}.{kind}"))

    def _check_mixing(self, one_hot: bool, weighted: bool) -> None:
        if not (self.generator.mixup or self.generator.cutmix):
            return
        if not one_hot:
            raise DTypeError(
                "mixup and cutmix need one-hot labels of floats: class_mode='categorical', or to_categorical(labels)"
            )
        if weighted:
            raise Unsupported("mixup and cutmix with sample_weight: a mixed image has no weight of its own")


class ArrayBatches(Batches):
    """Batches from arrays: ImageDataGenerator.flow."""

    def __init__(
        self,
        generator: ImageDataGenerator,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        ignore_class_split: bool = False,
        subset: str | None = None,
        **options: Any,
    ):
        images = generator.images(x, "flow")
        labels, weights = _rows("y", y, len(images)), _rows("sample_weight", sample_weight, len(images))
        if weights is not None and (weights.ndim != 1 or weights.dtype.kind not in "iuf"):
            raise ShapeError(
                f"sample_weight: got {weights.dtype} of shape {weights.shape}, want a number for each image"
            )
        check_subset(generator.validation_split, subset)
        if subset is not None:
            cut = int(len(images) * generator.validation_split)
            if cut in (0, len(images)):
                raise DataError(
                    f"validation_split={generator.validation_split:g} of {len(images)} images leaves none for "
                    f"{'training' if cut else 'validation'}"
                )
            if labels is not None and not ignore_class_split and not _same_classes(labels[:cut], labels[cut:]):
                raise DataError(
                    "the validation part, which is the first of the arrays, does not have the classes of the training "
                    "part: shuffle the arrays first, or pass ignore_class_split=True"
                )
            part = slice(None, cut) if subset == "validation" else slice(cut, None)
            images = images[part]
            labels = None if labels is None else labels[part]
            weights = None if weights is None else weights[part]
        if not len(images):
            raise DataError("flow: got no images")
        super().__init__(generator, len(images), images.shape[1:], **options)
        self.x, self.y, self.sample_weight = images, labels, weights
        self._check_mixing(labels is not None and labels.ndim == 2 and labels.dtype.kind == "f", weights is not None)

    def _make(self, out: np.ndarray, chosen: np.ndarray, epoch: int) -> None:
        if self.generator.per_image or self._save_to is not None:
            return super()._make(out, chosen, epoch)
        out[...] = self.x[chosen]
        made = self.generator.standardize_batch(out)
        if made is not out:
            out[...] = made

    def _make_one(self, out: np.ndarray, index: int, epoch: int) -> None:
        made = self.generator
        rng = transforms.random_at(self.seed, epoch, index) if made.random else None
        made.render(self.x[index], {} if rng is None else made.parameters(self._shape, rng), out)

    def _targets(self, chosen: np.ndarray, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        weights = self.sample_weight
        return None if self.y is None else self.y[chosen], None if weights is None else weights[chosen]


class FileBatches(Batches):
    """Batches from files: ImageDataGenerator.flow_from_directory and image_dataset_from_directory.

    `classes` has the label of each image, `class_indices` the label of each class's name, `filenames` and `filepaths`
    the files in the order of the images, `skipped` the broken files that were left out, each with the reason.
    """

    def __init__(
        self,
        generator: ImageDataGenerator,
        files: ImageFiles,
        *,
        size: tuple[int, int],
        color_mode: str = "rgb",
        class_mode: str | None = "categorical",
        interpolation: str = "bilinear",
        keep_aspect_ratio: bool = False,
        on_error: str = "raise",
        column: bool = False,
        **options: Any,
    ):
        need_pillow()
        if color_mode not in CHANNELS:
            raise Unsupported(f"color_mode={color_mode!r}; want one of {', '.join(CHANNELS)}")
        if class_mode not in CLASS_MODES:
            raise Unsupported(f"class_mode={class_mode!r}; want one of {', '.join(map(str, CLASS_MODES))}")
        if interpolation not in INTERPOLATIONS:
            raise Unsupported(f"interpolation={interpolation!r}; want one of {', '.join(INTERPOLATIONS)}")
        if on_error not in ("raise", "skip"):
            raise Unsupported(f"on_error={on_error!r}; want 'raise' or 'skip'")
        if class_mode == "binary" and len(files.classes) != 2:
            raise DataError(f"class_mode='binary' with {len(files.classes)} classes, want 2")
        if isinstance(size, (int, np.integer)) or len(size) != 2:
            raise ShapeError(f"target_size={size!r}, want (height, width)")
        height, width = (integer("target_size", side) for side in size)
        self.skipped: list[tuple[str, str]] = []
        if on_error == "skip":
            files = self._without_broken(files, options.get("workers", 2))
        self._mode, channels = CHANNELS[color_mode]
        super().__init__(generator, len(files), (height, width, channels), **options)
        self._files, self._interpolation, self._keep = files, interpolation, bool(keep_aspect_ratio)
        self._column = column
        self.target_size, self.color_mode, self.class_mode = (height, width), color_mode, class_mode
        self.classes = self.labels = files.labels
        self.class_names = list(files.classes)
        self.num_classes = len(files.classes)
        self.class_indices = {name: i for i, name in enumerate(files.classes)}
        self._check_mixing(class_mode == "categorical", False)
        # How far a crop may zoom into a file, beside that the averaging of a warp wants twice the target's pixels.
        area = generator.random_resized_crop[0] if generator.random_resized_crop else 1.0
        self._least = 0 if interpolation == "nearest" else math.ceil(2 * max(height, width) / math.sqrt(area))

    @property
    def filenames(self) -> list[str]:
        return list(self._files.names)

    @property
    def filepaths(self) -> list[str]:
        return [self._files.path(i) for i in range(len(self._files))]

    file_paths = filepaths

    def _without_broken(self, files: ImageFiles, workers: int) -> ImageFiles:
        broken = broken_files(files, workers)
        if not broken:
            return files
        self.skipped = [(files.path(index), reason) for index, reason in broken]
        out = {index for index, _ in broken}
        kept = files.take(i for i in range(len(files)) if i not in out)
        lost = sorted(set(files.labels) - set(kept.labels))
        if not len(kept) or lost:
            raise DataError(f"{files.directory}: all images of {_classes(files, lost)} are broken: {broken[0][1]}")
        shown = "; ".join(reason for _, reason in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        warnings.warn(f"{len(broken)} of {len(files)} images are broken and left out: {shown}{more}", stacklevel=4)
        return kept

    def _make_one(self, out: np.ndarray, index: int, epoch: int) -> None:
        made = self.generator
        image = decode(self._files.path(index), self._mode, self._least)
        width, height = image.size
        box = None
        if self._keep:
            high, wide = self.target_size
            scale = min(height / high, width / wide)
            box = ((height - high * scale) / 2, (width - wide * scale) / 2, high * scale, wide * scale)
        parameters: dict[str, Any] = {}
        if made.random:
            rng = transforms.random_at(self.seed, epoch, index)
            parameters = made.parameters(self._shape, rng, (height, width))
        made.render(image, parameters, out, self._interpolation, box)

    def _targets(self, chosen: np.ndarray, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self.class_mode is None:
            return None, None
        if self.class_mode == "input":
            return images, None
        labels = self.labels[chosen]
        if self.class_mode == "categorical":
            return transforms.to_categorical(labels, self.num_classes), None
        return labels.astype(np.float32)[:, None] if self._column else labels, None


def _rows(what: str, values: Any, count: int) -> np.ndarray | None:
    """An array with a row for each image; integers as int64."""
    if values is None:
        return None
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise DTypeError(f"{what}: got {array.dtype}, want numbers")
    if array.ndim == 0 or len(array) != count:
        raise ShapeError(f"{what}: got shape {array.shape} for {count} images")
    return array.astype(np.int64) if array.dtype.kind in "iub" else array


def _same_classes(a: np.ndarray, b: np.ndarray) -> bool:
    unique = [np.unique(part, axis=0) for part in (a, b)]
    return unique[0].shape == unique[1].shape and bool((unique[0] == unique[1]).all())


def _classes(files: ImageFiles, labels: Sequence[int]) -> str:
    names = [repr(files.classes[label]) for label in labels if label >= 0]
    return f"the class{'es' if len(names) > 1 else ''} {', '.join(names)}" if names else "the folder"
