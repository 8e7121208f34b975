"""Folders of images: one folder for each class, listed in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError, ShapeError, Unsupported
from . import transforms
from .images import decode

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".webp")


@dataclass(frozen=True)
class ImageFiles:
    """Paths below a folder and the class of each; -1 if they have none."""

    directory: str
    names: tuple[str, ...]  # relative to the directory
    labels: np.ndarray  # int64
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        return os.path.join(self.directory, self.names[index])

    def take(self, indices: Iterable[int]) -> ImageFiles:
        chosen = list(indices)
        return replace(self, names=tuple(self.names[i] for i in chosen), labels=self.labels[chosen])

    def subset(self, share: float, subset: str | None) -> ImageFiles:
        """The part for "training" or "validation": the first `share` of each class, rounded down, is for validation.

        DataError if one of the two parts would have no image of a class.
        """
        check_subset(share, subset)
        if subset is None:
            return self
        chosen: list[int] = []
        for label in np.unique(self.labels):
            found = np.flatnonzero(self.labels == label)
            cut = int(share * len(found))
            if cut == 0 or cut == len(found):
                name = self.classes[label] if label >= 0 else self.directory
                raise DataError(
                    f"validation_split={share:g} of the {len(found)} image(s) of {name!r} leaves none for "
                    f"{'training' if cut else 'validation'}"
                )
            chosen.extend(found[:cut] if subset == "validation" else found[cut:])
        return self.take(chosen)


def check_subset(share: float, subset: str | None) -> None:
    if subset is None:
        return
    if subset not in ("training", "validation"):
        raise Unsupported(f"subset={subset!r}; want 'training', 'validation' or None")
    if not share:
        raise DataError(f"subset={subset!r} needs a validation_split")


def list_classes(
    directory: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
    labelled: bool = True,
) -> ImageFiles:
    """The images below each class's folder, sorted by path.

    classes: the folders, in the order of their labels; None = all, sorted by name.
    labelled: False takes every image below the directory, with or without folders of classes.
    Raises: DataError for folders that are missing or without images.
    """
    root = os.fspath(directory)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    if not labelled:
        folders: Sequence[str] = [""] if classes is None else list(classes)
    elif classes is None:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise DataError(f"{root}: no folders of classes in it")
    else:
        folders = list(classes)
        if len(set(folders)) != len(folders):
            raise DataError(f"classes: a name stands twice in {', '.join(folders)}")
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        if not os.path.isdir(os.path.join(root, folder)):
            raise DataError(f"{root}: no folder for the class {folder!r}")
        found = _images_below(root, folder, follow_links)
        if not found and labelled:
            raise DataError(f"{os.path.join(root, folder)}: no images for this class ({' '.join(EXTENSIONS)})")
        names += found
        labels += [label if labelled else -1] * len(found)
    if not names:
        raise DataError(f"{root}: no images in this folder ({' '.join(EXTENSIONS)})")
    return ImageFiles(root, tuple(names), np.array(labels, np.int64), tuple(folders) if labelled else ())


def _images_below(root: str, folder: str, follow_links: bool) -> list[str]:
    found = []
    seen = set()  # links can go round in circles
    for place, folders, files in os.walk(os.path.join(root, folder), followlinks=follow_links):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(place, name), root))
    return found


def broken_files(files: ImageFiles, workers: int) -> list[tuple[int, str]]:
    """Read every file; the indices of those that cannot be decoded, and why."""

    def check(index: int) -> str:
        try:
            decode(files.path(index), "L", least=32)
        except (DataError, OSError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return [(index, reason) for index, reason in enumerate(pool.map(check, range(len(files)))) if reason]


def image_dataset_from_directory(
    directory: str | os.PathLike[str],
    labels: Any = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int = 32,
    image_size: tuple[int, int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    follow_links: bool = False,
    crop_to_aspect_ratio: bool = False,
    *,
    on_error: str = "raise",
    workers: int = 2,
    prefetch: int = 2,
) -> Any:
    """Batches of images from a folder with one folder for each class, as they are: float32, 0..255.

    Iterating gives one epoch, the next time the next one. The labels' names are in `.class_names`.

    Args:
        labels: "inferred" from the folders; one integer for each image, in the order of the sorted paths; or None.
        label_mode: "int" (int64), "categorical" (one-hot float32), "binary" (float32 0 or 1, shape (B,1)) or None.
        class_names: the folders in the order of their labels; None = all, sorted.
        validation_split, subset: the share of the images that "validation" reads; "training" the others; "both" gives
            the two. Images are shuffled by the seed before they are split, unless shuffle=False.
        Others as in ImageDataGenerator.flow_from_directory.

    Raises: DataError for folders that are missing or empty, a split without a seed, one that leaves training without
        images of a class, and labels that do not fit.
    Source: Keras' image_dataset_from_directory; labels are int64 here, int32 there.
    """
    from .batches import FileBatches
    from .generator import ImageDataGenerator

    modes = {"int": "sparse", "categorical": "categorical", "binary": "binary", None: None}
    if label_mode not in modes:
        raise Unsupported(f"label_mode={label_mode!r}; want int, categorical, binary or None")
    given = labels is not None and not isinstance(labels, str)
    if isinstance(labels, str) and labels != "inferred":
        raise Unsupported(f"labels={labels!r}; want 'inferred', a list of integers or None")
    labelled = labels is not None and label_mode is not None
    files = list_classes(directory, class_names, follow_links, labelled=labelled and not given)
    if given and labelled:
        values = np.asarray(labels)
        if values.dtype.kind not in "iu" or values.shape != (len(files),):
            raise ShapeError(
                f"labels: got {values.dtype} of shape {values.shape}, want an integer for each of {len(files)} images"
            )
        if values.min() < 0:
            raise DataError(f"labels: got {values.min()}, want 0 or more")
        count = int(values.max()) + 1
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(count)))
        if len(names) < count:
            raise DataError(f"labels: got {count - 1} for {len(names)} class_names")
        files = replace(files, labels=values.astype(np.int64), classes=names)
    parts = _split(files, validation_split or 0.0, subset, shuffle, seed)
    made = [
        FileBatches(
            ImageDataGenerator(),
            part,
            size=image_size,
            color_mode=color_mode,
            class_mode=modes[label_mode] if labelled else None,
            interpolation=interpolation,
            keep_aspect_ratio=crop_to_aspect_ratio,
            on_error=on_error,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            workers=workers,
            prefetch=prefetch,
            endless=False,
            column=label_mode == "binary",
        )
        for part in parts
    ]
    return tuple(made) if subset == "both" else made[0]


def _split(files: ImageFiles, share: float, subset: str | None, shuffle: bool, seed: int | None) -> list[ImageFiles]:
    if subset is None and not share:
        return [files]
    if subset not in ("training", "validation", "both"):
        raise Unsupported(f"subset={subset!r}; want 'training', 'validation' or 'both' with validation_split")
    if not 0 < share < 1:
        raise DataError(f"validation_split={share:g}, want a share between 0 and 1 with subset={subset!r}")
    order = np.arange(len(files))
    if shuffle:
        if seed is None:
            raise DataError("validation_split with shuffle needs a seed: without one, the two parts would overlap")
        order = transforms.random_at(seed, 0, 0, transforms.SPLIT).permutation(len(files))
    count = int(share * len(files))
    training, validation = files.take(order[: len(files) - count]), files.take(order[len(files) - count :])
    if not len(validation) or set(training.labels) != set(files.labels):
        missing = set(files.labels) - set(training.labels)
        lacking = "validation without images" if not len(validation) else f"training without {_named(files, missing)}"
        raise DataError(f"validation_split={share:g} of {len(files)} images leaves {lacking}")
    return {"training": [training], "validation": [validation], "both": [training, validation]}[subset]


def _named(files: ImageFiles, labels: set[Any]) -> str:
    return ", ".join(repr(files.classes[label]) for label in sorted(labels))
