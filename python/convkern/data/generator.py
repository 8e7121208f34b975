"""ImageDataGenerator: Keras' arguments and transforms, one affine warp an image, and draws that can be repeated.

`flow` reads arrays, `flow_from_directory` a folder of classes; both give iterators (batches.py) whose every batch can
be made again from the seed, the epoch and the index.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, DTypeError, ShapeError, Unsupported
from ..layers.arguments import number
from . import randaugment, transforms
from .images import need_pillow, resized

_EPSILON = 1e-6  # Keras' guard against a deviation of zero
_DTYPES = ("float16", "float32", "float64")


class ImageDataGenerator:
    """Random transforms and normalisation of images, with Keras' names, defaults and order.

    Geometry (multiplied into one map, then sampled once, bilinearly):
        rotation_range: degrees, drawn from -r..r.
        width_shift_range, height_shift_range: a float below 1 is a share of the side, from 1 on pixels; an integer n
            draws whole pixels from -n+1..n-1; a list is drawn from, with a random sign.
        shear_range: an angle in degrees, drawn from -s..s.
        zoom_range: z draws from 1-z..1+z, for each axis its own; or (least, greatest). Above 1 the picture gets
            smaller.
        horizontal_flip, vertical_flip: with a chance of one half.
        random_resized_crop: the least and greatest share of the area of a random part that is shown in place of the
            whole image, as (0.08, 1.0) or True for that; crop_ratio: its least and greatest width over height.
        fill_mode: what stands outside the image: "nearest", "reflect", "wrap" or "constant", which is cval.
        interpolation_order: 1 = bilinear, 0 = the nearest pixel.
    Colours:
        channel_shift_range: a number added to all values, drawn from -c..c, within the image's own range.
        brightness_range: (least, greatest) factor.
        rand_augment: (operations, magnitude), as (2, 9); the magnitude is 0..30. Needs 8-bit images.
    Normalisation, in this order:
        preprocessing_function: called with each image (H,W,C) float32, returns one of the same shape; it is called from
            several threads.
        rescale: a factor, as 1/255.
        mean, std: subtracted from and divided into each channel, in units of the rescaled values.
        samplewise_center, samplewise_std_normalization: by each image's own mean and deviation.
        featurewise_center, featurewise_std_normalization, zca_whitening (zca_epsilon): by those of a data set: call
            fit first.
    Batches:
        mixup, cutmix: the alpha of their Beta distribution; with both, a coin decides for each image. Labels must be
            one-hot.
    validation_split: the share of the data that subset="validation" reads, the first of each class's files, or of the
        array.
    data_format: "channels_last", or "channels_first" for images (C,H,W) in and out.
    dtype: of the batches: "float32", "float16" or "float64"; the arithmetic is float32.

    Each argument has random numbers of its own: turning one on does not change what the others draw.
    Raises: DataError for negative or empty ranges; DTypeError, Unsupported for other values that mean nothing.
    Source: Keras' ImageDataGenerator. Different from it: width_shift_range moves columns and height_shift_range rows;
        images that are not square are turned about their own centre; brightness does not round to 8 bits.

    >>> augment = ImageDataGenerator(rotation_range=40, horizontal_flip=True, rescale=1 / 255)
    >>> batches = augment.flow(np.zeros((10, 8, 8, 3), np.uint8), np.arange(10), batch_size=4, seed=0)
    >>> images, labels = batches[0]
    >>> len(batches), images.shape, images.dtype.name, labels.dtype.name
    (3, (4, 8, 8, 3), 'float32', 'int64')
    """

    def __init__(
        self,
        featurewise_center: bool = False,
        samplewise_center: bool = False,
        featurewise_std_normalization: bool = False,
        samplewise_std_normalization: bool = False,
        zca_whitening: bool = False,
        zca_epsilon: float = 1e-6,
        rotation_range: float = 0,
        width_shift_range: Any = 0.0,
        height_shift_range: Any = 0.0,
        brightness_range: Sequence[float] | None = None,
        shear_range: float = 0.0,
        zoom_range: float | Sequence[float] = 0.0,
        channel_shift_range: float = 0.0,
        fill_mode: str = "nearest",
        cval: float = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        rescale: float | None = None,
        preprocessing_function: Callable[[np.ndarray], np.ndarray] | None = None,
        data_format: str | None = None,
        validation_split: float = 0.0,
        interpolation_order: int = 1,
        dtype: Any = None,
        *,
        random_resized_crop: bool | Sequence[float] | None = None,
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        rand_augment: Sequence[float] | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        mean: Any = None,
        std: Any = None,
    ):
        self.rotation_range = _at_least("rotation_range", rotation_range)
        self.width_shift_range = _shift("width_shift_range", width_shift_range)
        self.height_shift_range = _shift("height_shift_range", height_shift_range)
        self.shear_range = _at_least("shear_range", shear_range)
        self.zoom_range = _zoom(zoom_range)
        self.channel_shift_range = _at_least("channel_shift_range", channel_shift_range)
        self.brightness_range = None if brightness_range is None else _range("brightness_range", brightness_range, 0.0)
        if fill_mode not in transforms.FILL_MODES:
            raise Unsupported(f"fill_mode={fill_mode!r}; want one of {', '.join(transforms.FILL_MODES)}")
        self.fill_mode = fill_mode
        self.cval = number("cval", cval)
        self.horizontal_flip = bool(horizontal_flip)
        self.vertical_flip = bool(vertical_flip)
        self.rescale = None if not rescale else number("rescale", rescale)
        if preprocessing_function is not None and not callable(preprocessing_function):
            raise DTypeError(f"preprocessing_function: got a {type(preprocessing_function).__name__}, want a function")
        self.preprocessing_function = preprocessing_function
        if data_format not in (None, "channels_last", "channels_first"):
            raise Unsupported(f"data_format={data_format!r}; want channels_last or channels_first")
        self.data_format = data_format or "channels_last"
        self.validation_split = number("validation_split", validation_split)
        if self.validation_split and not 0 < self.validation_split < 1:
            raise DataError(f"validation_split={validation_split}, want a share between 0 and 1")
        if interpolation_order not in (0, 1):
            raise Unsupported(f"interpolation_order={interpolation_order!r}; want 0 (nearest) or 1 (bilinear)")
        self.interpolation_order = int(interpolation_order)
        self.dtype = np.dtype(dtype or np.float32)
        if self.dtype.name not in _DTYPES:
            raise DTypeError(f"dtype={self.dtype}; want one of {', '.join(_DTYPES)}")
        if random_resized_crop is True:
            random_resized_crop = (0.08, 1.0)
        self.random_resized_crop = (
            _range("random_resized_crop", random_resized_crop, 0.0, 1.0, open=True) if random_resized_crop else None
        )
        self.crop_ratio = _range("crop_ratio", crop_ratio, 0.0, open=True)
        self.rand_augment = None if rand_augment is None else _rand_augment(rand_augment)
        self.mixup = None if not mixup else _at_least("mixup", mixup)
        self.cutmix = None if not cutmix else _at_least("cutmix", cutmix)
        self._given_mean, self._given_std = _channels("mean", mean), _channels("std", std)
        if self._given_std is not None and not (self._given_std > 0).all():
            raise DataError(f"std={std}, want numbers above 0")

        # A deviation is measured about a mean, so each of these implies the other, as in Keras.
        self.zca_whitening, self.zca_epsilon = bool(zca_whitening), _at_least("zca_epsilon", zca_epsilon)
        if zca_whitening and featurewise_std_normalization:
            raise Unsupported("zca_whitening already divides by deviations: leave featurewise_std_normalization out")
        self.featurewise_std_normalization = bool(featurewise_std_normalization)
        self.featurewise_center = bool(featurewise_center or featurewise_std_normalization or zca_whitening)
        self.samplewise_std_normalization = bool(samplewise_std_normalization)
        self.samplewise_center = bool(samplewise_center or samplewise_std_normalization)
        self.mean: np.ndarray | None = None  # what fit found
        self.std: np.ndarray | None = None
        self.zca_whitening_matrix: np.ndarray | None = None

    # Reading

    def flow(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        shuffle: bool = True,
        sample_weight: Any = None,
        seed: int | None = None,
        save_to_dir: str | os.PathLike[str] | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        ignore_class_split: bool = False,
        subset: str | None = None,
        *,
        workers: int = 2,
        prefetch: int = 2,
    ) -> Any:
        """Batches of transformed images from an array.

        Args:
            x: images, uint8 or float32, not copied. y: labels, any array with one row for each image; None = no labels.
            sample_weight: one number for each image, the third part of each batch.
            seed: None draws one, which `.seed` tells.
            save_to_dir: a folder that gets every image made, as {save_prefix}_{index}_{epoch}.{save_format}.
            subset: "training" or "validation", of a generator with validation_split; the first part of the arrays is
                for validation. ignore_class_split: do not ask that both parts have the same classes.
            workers: threads; 0 makes batches in the caller's thread. prefetch: batches made ahead. Neither changes a
                bit.

        Shapes: x (N,H,W,C); batches are (images, labels, weights) without what was not given; images (B,H,W,C), labels
            as given, integers as int64.
        Raises: ShapeError, DTypeError, DataError with what came and what was wanted.
        """
        from .batches import ArrayBatches

        return ArrayBatches(
            self,
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            save_to=_saving(save_to_dir, save_prefix, save_format),
            ignore_class_split=ignore_class_split,
            subset=subset,
            workers=workers,
            prefetch=prefetch,
        )

    def flow_from_directory(
        self,
        directory: str | os.PathLike[str],
        target_size: tuple[int, int] = (256, 256),
        color_mode: str = "rgb",
        classes: Sequence[str] | None = None,
        class_mode: str | None = "categorical",
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int | None = None,
        save_to_dir: str | os.PathLike[str] | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        follow_links: bool = False,
        subset: str | None = None,
        interpolation: str = "bilinear",
        keep_aspect_ratio: bool = False,
        *,
        on_error: str = "raise",
        workers: int = 2,
        prefetch: int = 2,
    ) -> Any:
        """Batches of transformed images from a folder with one folder for each class.

        Args:
            target_size: (height, width) of the images. color_mode: "rgb", "grayscale" or "rgba"; what is transparent
                lies over white unless "rgba". Photos are turned upright by their EXIF orientation.
            classes: names of the folders, in the order of their labels; None = all, sorted.
            class_mode: labels as one-hot rows of float32 ("categorical"), int64 ("sparse", and "binary", which asks
                for two classes), the images themselves ("input"), or none (None).
            subset: "training" or "validation", of a generator with validation_split; the first files of each class, by
                name, are for validation.
            interpolation: how images are brought to size; "nearest" or, antialiased, "bilinear", "bicubic", "lanczos",
                "box", "hamming". An image that is also warped is sampled once, straight from the file's pixels
                (averaged down first where they are several times finer).
            keep_aspect_ratio: cut the centre of the target's proportions out, instead of squeezing the whole.
            on_error: a file that is no image or broken: "raise" a DataError when it is read, or "skip", which reads
                every file once now, leaves the broken ones out, warns, and lists them in `.skipped`.
            Others as in `flow`. Keras' default interpolation is "nearest".

        Raises: DataError for a folder that is missing or has no images, and for a split that leaves a class empty.
        """
        from .batches import FileBatches
        from .directory import list_classes

        files = list_classes(directory, classes, follow_links, labelled=class_mode not in (None, "input"))
        return FileBatches(
            self,
            files.subset(self.validation_split, subset),
            size=target_size,
            color_mode=color_mode,
            class_mode=class_mode,
            interpolation=interpolation,
            keep_aspect_ratio=keep_aspect_ratio,
            on_error=on_error,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            save_to=_saving(save_to_dir, save_prefix, save_format),
            workers=workers,
            prefetch=prefetch,
        )

    def fit(self, x: Any, augment: bool = False, rounds: int = 1, seed: int | None = None) -> ImageDataGenerator:
        """Measure a data set's mean, deviation and whitening matrix, of rescaled values, for the featurewise options.

        augment: measure `rounds` randomly transformed copies instead. Shapes: x (N,H,W,C), uint8 or float32.
        Returns the generator itself. Raises: ShapeError, DTypeError; DataError for no images.
        """
        images = self.images(x, "fit")
        if not len(images):
            raise DataError("fit: got no images")
        if augment:
            seed = seed_of(seed)
            made = np.empty((rounds * len(images), *images.shape[1:]), np.float32)
            for i, out in enumerate(made):
                image = images[i % len(images)]
                rng = transforms.random_at(seed, i // len(images), i % len(images))
                self.render(image, self.parameters(image.shape, rng), out)
            images = made
        else:
            images = images.astype(np.float32)
        if self.rescale:
            images *= np.float32(self.rescale)
        images = self._normalise(images)
        if self.featurewise_center:
            self.mean = images.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
            images -= self.mean
        if self.featurewise_std_normalization:
            self.std = images.std((0, 1, 2), dtype=np.float64).astype(np.float32)
        if self.zca_whitening:
            flat = images.reshape(len(images), -1)
            u, s, _ = np.linalg.svd(flat.T, full_matrices=False)
            self.zca_whitening_matrix = (u * (math.sqrt(len(flat)) / (s + self.zca_epsilon)) @ u.T).astype(np.float32)
        return self

    # One image

    def get_random_transform(self, img_shape: Sequence[int], seed: int | None = None) -> dict[str, Any]:
        """The parameters of one random transform: theta, tx, ty, shear, zx, zy, flip_horizontal, flip_vertical,
        channel_shift_intensity, brightness, and crop and rand_augment where they are on.

        tx and ty are pixels to the right and down in the source. img_shape: (H,W,C), or (C,H,W) if channels_first.
        """
        shape = tuple(img_shape)
        if len(shape) != 3:
            raise ShapeError(f"get_random_transform: got a shape {shape}, want that of one image")
        if self.data_format == "channels_first":
            shape = (*shape[1:], shape[0])
        return self.parameters(shape, transforms.random_at(seed_of(seed), 0, 0))

    def apply_transform(self, x: Any, transform_parameters: Mapping[str, Any]) -> np.ndarray:
        """An image transformed as the parameters say; those that are missing do nothing.

        Shapes: x (H,W,C), uint8 or float32; returns the same in float32.
        """
        image = self.images(np.asarray(x)[None], "apply_transform")[0]
        out = np.empty(image.shape, np.float32)
        self.render(image, transform_parameters, out)
        return out.transpose(2, 0, 1) if self.data_format == "channels_first" else out

    def random_transform(self, x: Any, seed: int | None = None) -> np.ndarray:
        """An image transformed at random: apply_transform of get_random_transform."""
        return self.apply_transform(x, self.get_random_transform(np.asarray(x).shape, seed))

    def standardize(self, x: Any) -> np.ndarray:
        """An image (H,W,C), or a batch of them, normalised: a new float32 array. Keras' changes its argument."""
        x = np.array(x, np.float32)
        first = self.data_format == "channels_first"
        if first:
            x = np.moveaxis(x, -3, -1)
        if x.ndim == 3:
            x = self._standardised(x)
        else:
            x = np.stack([self._standardised(image) for image in x]) if len(x) else x
        return np.moveaxis(x, -1, -3) if first else x

    # What the iterators use: images (H,W,C)

    @property
    def random(self) -> bool:
        """Whether an image comes out differently from one epoch to the next."""
        return bool(
            self.warps
            or self.horizontal_flip
            or self.vertical_flip
            or self.channel_shift_range
            or self.brightness_range
            or self.random_resized_crop
            or self.rand_augment
        )

    @property
    def warps(self) -> bool:
        return bool(
            self.rotation_range
            or np.any(self.width_shift_range)
            or np.any(self.height_shift_range)
            or self.shear_range
            or self.zoom_range != (1.0, 1.0)
        )

    @property
    def per_image(self) -> bool:
        """Whether images are made one by one; if not, a batch is normalised at once, to the same bits."""
        return bool(
            self.random or self.preprocessing_function or self.samplewise_center or self.samplewise_std_normalization
        )

    def parameters(self, shape: Sequence[int], rng: np.random.Generator, source: Sequence[int] = ()) -> dict[str, Any]:
        """Draw for a result of `shape` from a source of (height, width), which matters for crops alone."""
        u = rng.random(28)  # always as many, each for one thing; crops take what they need behind them
        height, width = shape[:2]
        low, high = self.zoom_range
        found: dict[str, Any] = dict(
            theta=self.rotation_range * (2 * u[0] - 1),
            ty=_drawn_shift(self.height_shift_range, u[1], u[2], height),
            tx=_drawn_shift(self.width_shift_range, u[3], u[4], width),
            shear=self.shear_range * (2 * u[5] - 1),
            zx=low + (high - low) * u[6],
            zy=low + (high - low) * u[7],
            flip_horizontal=bool(self.horizontal_flip and u[8] < 0.5),
            flip_vertical=bool(self.vertical_flip and u[9] < 0.5),
            channel_shift_intensity=None,
            brightness=None,
        )
        if self.channel_shift_range:
            found["channel_shift_intensity"] = self.channel_shift_range * (2 * u[10] - 1)
        if self.brightness_range:
            low, high = self.brightness_range
            found["brightness"] = low + (high - low) * u[11]
        if self.rand_augment:
            count, magnitude = self.rand_augment
            found["rand_augment"] = randaugment.draw(u[12 : 12 + 2 * count].reshape(count, 2), magnitude)
        if self.random_resized_crop:
            rows, columns = (source or shape)[:2]
            found["crop"] = transforms.crop_box(rows, columns, self.random_resized_crop, self.crop_ratio, rng)
        return found

    def render(
        self,
        source: Any,
        parameters: Mapping[str, Any],
        out: np.ndarray,
        interpolation: str = "",
        box: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Write the transformed image into `out` (H,W,C) float32: geometry, then colours.

        source: an array (h,w,C), or an Image of Pillow's, of any size.
        interpolation: how to change the size; box: the part of the source to show, (top, left, height, width).
        """
        get = parameters.get
        height, width = out.shape[:2]
        matrix = transforms.affine_matrix(
            height, width, get("theta", 0), get("tx", 0), get("ty", 0), get("shear", 0), get("zx", 1), get("zy", 1)
        )
        operations = get("rand_augment") or ()
        extra = randaugment.matrices(operations, height, width)
        if extra:
            matrix = matrix @ transforms.about_centre(extra, height, width)
        written = out[:: -1 if get("flip_vertical") else 1, :: -1 if get("flip_horizontal") else 1]
        self._sample(source, matrix, written, interpolation, get("crop") or box)

        shift, brightness = get("channel_shift_intensity"), get("brightness")
        if shift is not None:
            transforms.shift_channels(out, shift)
        if brightness is not None:
            transforms.brighten(out, brightness)
        if randaugment.has_colours(operations):
            pixels = np.rint(np.clip(out, 0, 255)).astype(np.uint8)
            out[...] = randaugment.apply_colours(pixels, operations)

    def _sample(self, source: Any, matrix: np.ndarray, out: np.ndarray, interpolation: str, box: Any) -> None:
        """The only place where pixels are read: a copy, one resizing, or one warp."""
        height, width = out.shape[:2]
        still = (matrix == np.eye(3)).all()
        is_array = isinstance(source, np.ndarray)
        h, w = source.shape[:2] if is_array else source.size[::-1]
        box = box or (0, 0, h, w)
        whole = tuple(box) == (0, 0, height, width) == (0, 0, h, w)
        if still and whole:
            out[...] = source if is_array else np.asarray(source).reshape(out.shape)
            return
        if still and not is_array:
            top, left, rows, columns = box
            # A centred box may leave the image by a rounding error, which Pillow does not forgive.
            edges = (max(left, 0), max(top, 0), min(left + columns, w), min(top + rows, h))
            out[...] = np.asarray(resized(source, height, width, interpolation, edges)).reshape(out.shape)
            return
        order = 0 if interpolation == "nearest" else self.interpolation_order
        if not whole:
            matrix = transforms.box_matrix(box, height, width) @ matrix
        if not is_array:
            if order:
                # A bilinear sample sees two pixels: where the source is finer, whole blocks of it are averaged first.
                by_x, by_y = max(1, int(box[3] / width)), max(1, int(box[2] / height))
                if by_x > 1 or by_y > 1:
                    source = source.reduce((by_x, by_y))
                    scale = np.diag([1 / by_y, 1 / by_x, 1.0])
                    scale[:2, 2] = 0.5 / by_y - 0.5, 0.5 / by_x - 0.5
                    matrix = scale @ matrix
            source = np.asarray(source)
            source = source.reshape(*source.shape[:2], -1)
        transforms.warp(source, matrix, fill_mode=self.fill_mode, cval=self.cval, order=order, out=out)

    def standardize_in_place(self, x: np.ndarray) -> None:
        """Normalise one image, (H,W,C) float32."""
        made = self._standardised(x)
        if made is not x:
            x[...] = made

    def standardize_batch(self, x: np.ndarray) -> np.ndarray:
        """Normalise (N,H,W,C) float32 at once, in place where that is possible; only if not per_image."""
        if self.rescale:
            x *= np.float32(self.rescale)
        return self._featurewise(self._normalise(x))

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        if self.preprocessing_function is not None:
            made = np.asarray(self.preprocessing_function(x))
            if made.shape != x.shape:
                raise ShapeError(f"preprocessing_function: gave shape {made.shape} for an image of shape {x.shape}")
            x = made.astype(np.float32)
        if self.rescale:
            x *= np.float32(self.rescale)
        x = self._normalise(x)
        if self.samplewise_center:
            x -= x.mean(dtype=np.float64).astype(np.float32)
        if self.samplewise_std_normalization:
            x /= np.float32(x.std(dtype=np.float64) + _EPSILON)
        return self._featurewise(x)

    def _normalise(self, x: np.ndarray) -> np.ndarray:
        if self._given_mean is not None:
            x -= self._per_channel("mean", self._given_mean, x)
        if self._given_std is not None:
            x /= self._per_channel("std", self._given_std, x)
        return x

    @staticmethod
    def _per_channel(what: str, values: np.ndarray, x: np.ndarray) -> np.ndarray:
        if values.size not in (1, x.shape[-1]):
            raise ShapeError(f"{what}: got {values.size} numbers for images of {x.shape[-1]} channels")
        return values

    def _featurewise(self, x: np.ndarray) -> np.ndarray:
        """By what fit has found, for an image or a batch."""
        self.check_fitted()
        if self.mean is not None:
            x -= self.mean
        if self.std is not None:
            x /= self.std + np.float32(_EPSILON)
        if self.zca_whitening_matrix is not None:
            size = math.prod(x.shape[-3:])
            if size != len(self.zca_whitening_matrix):
                raise ShapeError(
                    f"zca_whitening: fit saw images of {len(self.zca_whitening_matrix)} values, got {size}"
                )
            white = [image.reshape(-1) @ self.zca_whitening_matrix for image in x.reshape(-1, *x.shape[-3:])]
            x = np.stack(white).reshape(x.shape) if white else x
        return x

    def check_fitted(self) -> None:
        """DataError if an option needs fit, which has not been called."""
        if (self.featurewise_center and self.mean is None) or (
            self.zca_whitening and self.zca_whitening_matrix is None
        ):
            raise DataError(
                "featurewise_center, featurewise_std_normalization and zca_whitening need fit(images) first"
            )

    def images(self, x: Any, what: str) -> np.ndarray:
        """Images as (N,H,W,C), a view."""
        from ..arrays import as_ndarray

        images = as_ndarray(x, what)
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise ShapeError(f"{what}: got images of shape {images.shape}, want (N, height, width, channels)")
        if images.dtype not in (np.uint8, np.float32):
            raise DTypeError(
                f"{what}: got images of {images.dtype}, want uint8 or float32: convert with x.astype('float32')"
            )
        if self.rand_augment and images.dtype != np.uint8:
            raise DTypeError(f"{what}: rand_augment needs images of uint8, got {images.dtype}")
        return images.transpose(0, 2, 3, 1) if self.data_format == "channels_first" else images


# Arguments


def _at_least(what: str, value: Any, least: float = 0.0) -> float:
    value = number(what, value)
    if not (least <= value < math.inf):
        raise DataError(f"{what}={value:g}, want at least {least:g}")
    return value


def _range(what: str, value: Any, least: float, most: float = math.inf, open: bool = False) -> tuple[float, float]:
    """(low, high) within least..most; open: above least."""
    try:
        low, high = value
    except (TypeError, ValueError):
        raise DTypeError(f"{what}={value!r}, want two numbers: the least and the greatest") from None
    low, high = number(what, low), number(what, high)
    if not (least <= low <= high <= most) or (open and low == least) or math.isinf(high):
        raise DataError(f"{what}=({low:g}, {high:g}), want {least:g} {'<' if open else '<='} low <= high <= {most:g}")
    return low, high


def _zoom(value: Any) -> tuple[float, float]:
    if isinstance(value, (Sequence, np.ndarray)):
        return _range("zoom_range", value, 0.0, open=True)
    z = _at_least("zoom_range", value)
    if z >= 1:
        raise DataError(f"zoom_range={z:g}, want a number below 1, or (least, greatest)")
    return 1 - z, 1 + z


def _shift(what: str, value: Any) -> Any:
    """A float, an int, or an array of choices."""
    if isinstance(value, (bool, str)) or value is None:
        raise DTypeError(f"{what}={value!r}, want a number or a list of numbers")
    if isinstance(value, (Sequence, np.ndarray)):
        choices = np.asarray(value, np.float64)
        if choices.ndim != 1 or not choices.size or not np.isfinite(choices).all():
            raise DataError(f"{what}={value!r}, want a number or a list of numbers")
        return choices
    if isinstance(value, (int, np.integer)):
        return int(_at_least(what, value))
    return _at_least(what, value)


def _drawn_shift(given: Any, u: float, sign: float, side: int) -> float:
    """Pixels, of a range in any of its three forms."""
    if isinstance(given, np.ndarray):
        value = float(given[int(u * len(given))]) * (1 if sign < 0.5 else -1)
        return value * side if given.max() < 1 else value
    if isinstance(given, int):
        return float(int(u * given)) * (1 if sign < 0.5 else -1)
    return given * (2 * u - 1) * (side if given < 1 else 1)


def _rand_augment(value: Any) -> tuple[int, float]:
    try:
        count, magnitude = value
    except (TypeError, ValueError):
        raise DTypeError(f"rand_augment={value!r}, want (number of operations, magnitude)") from None
    if not (isinstance(count, (int, np.integer)) and 1 <= count <= 8):
        raise DataError(f"rand_augment: {count!r} operations, want 1 to 8")
    if not 0 <= number("rand_augment", magnitude) <= randaugment.MOST:
        raise DataError(f"rand_augment: magnitude {magnitude}, want 0 to {randaugment.MOST}")
    need_pillow()
    return int(count), float(magnitude)


def _channels(what: str, value: Any) -> np.ndarray | None:
    """A number for all channels or one for each."""
    if value is None:
        return None
    values = np.asarray(value, np.float32)
    if values.ndim > 1 or not np.isfinite(values).all():
        raise ShapeError(f"{what}={value!r}, want a number or one for each channel")
    return values


def seed_of(seed: int | None) -> int:
    """A seed as Philox takes it; None draws one."""
    if seed is None:
        return int.from_bytes(os.urandom(6), "little")
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise DTypeError(f"seed={seed!r}, want an integer")
    if not 0 <= seed < 2**63:
        raise DataError(f"seed={seed}, want 0 to 2**63 - 1")
    return int(seed)


def _saving(folder: Any, prefix: str, kind: str) -> tuple[str, str, str] | None:
    if folder is None:
        return None
    need_pillow()
    if kind not in ("png", "jpeg", "jpg", "bmp", "webp"):
        raise Unsupported(f"save_format={kind!r}; want png, jpeg, bmp or webp")
    if not os.path.isdir(folder):
        raise DataError(f"save_to_dir: {folder} is not a folder")
    return os.fspath(folder), prefix, kind
