"""What happens to one image: a single affine warp, colours, normalisation; and what happens between two (mixup,
cutmix).

Geometry is a 3x3 matrix that takes a pixel (row, column, 1) of the result to a position in the source. Rotation, shift,
shear, zoom, a crop and the change of size are multiplied first, then the image is sampled once, so it is not blurred
once for each of them. Flips are only another order of writing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _core
from ..errors import DataError, DTypeError, ShapeError, Unsupported

FILL_MODES = ("constant", "nearest", "reflect", "wrap")

# What a counter-based generator is asked for: each purpose has its own stream, so that one does not shift another.
GEOMETRY, MIX, SHUFFLE, SPLIT = range(4)


def random_at(seed: int, epoch: int, index: int, purpose: int = GEOMETRY) -> np.random.Generator:
    """The random numbers that belong to one image (or batch) of one epoch, whoever asks and in whatever order.

    Source: the counter-based Philox generator (Salmon et al. 2011, doi:10.1145/2063384.2063405): the key is the seed
    and the purpose, the counter the epoch and the index.

    >>> random_at(7, 0, 3).random() == random_at(7, 0, 3).random() != random_at(7, 1, 3).random()
    True
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, index, epoch]))


# Geometry


def affine_matrix(
    height: int,
    width: int,
    theta: float = 0.0,
    tx: float = 0.0,
    ty: float = 0.0,
    shear: float = 0.0,
    zx: float = 1.0,
    zy: float = 1.0,
) -> np.ndarray:
    """Keras' affine transform of an image about its centre, as the map from result to source.

    In (x, y), with x to the right and y down: rotation @ shift @ shear @ zoom, where

        rotation (cos -sin; sin cos) of theta    shear (1 -sin; 0 cos) of shear    zoom (zx 0; 0 zy)

    As the map goes from result to source, a positive tx moves the picture to the left and zx > 1 makes it smaller.

    Units: theta and shear in degrees, tx and ty in pixels.
    Shapes: returns (3,3), float64, for vectors (row, column, 1).
    Source: Keras' apply_affine_transform. On images that are not square Keras exchanges the two axes of the centre;
        here it is the centre.

    >>> affine_matrix(5, 5, tx=2.0)
    array([[1., 0., 0.],
           [0., 1., 2.],
           [0., 0., 1.]])
    """
    if theta == tx == ty == shear == 0 and zx == zy == 1:
        return np.eye(3)
    a, s = math.radians(theta), math.radians(shear)
    rotation = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    shift = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    slant = np.array([[1, -math.sin(s), 0], [0, math.cos(s), 0], [0, 0, 1]])
    zoom = np.diag([zx, zy, 1.0])
    parts = [
        m for m, used in ((rotation, theta), (shift, tx or ty), (slant, shear), (zoom, zx != 1 or zy != 1)) if used
    ]
    return about_centre(parts, height, width)


def about_centre(parts: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The product of matrices for (x, y, 1), with the origin at the centre of an image, as one for (row, column, 1)."""
    x, y = width / 2 - 0.5, height / 2 - 0.5
    product = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    for matrix in parts:
        product = product @ matrix
    product = product @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    return product[[1, 0, 2]][:, [1, 0, 2]]


def box_matrix(box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """The map that shows `box` (top, left, height, width in source pixels) as a result of height x width.

    Pixels are squares: the outer edges of the box fall on those of the result.

    >>> box_matrix((0, 0, 8, 8), 8, 8).tolist() == np.eye(3).tolist()
    True
    """
    top, left, h, w = box
    sy, sx = h / height, w / width
    return np.array([[sy, 0, top + sy / 2 - 0.5], [0, sx, left + sx / 2 - 0.5], [0, 0, 1]])


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int] | None = None,
    *,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    order: int = 1,
    out: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Sample an image once, along an affine map.

    Args:
        image: (H,W,C), uint8 or float32.
        matrix: (3,3) or (2,3): a result pixel (row, column, 1) -> a position in the image.
        size: height and width of the result; None = those of the image.
        fill_mode: what lies outside: "nearest" (the edge pixel), "reflect", "wrap" or "constant" (cval).
        order: 1 = bilinear, 0 = the nearest pixel.
        out: (height,width,C), float32, to write into (also a flipped view); it must not overlap the image.

    Shapes: returns (height,width,C), float32.
    Raises: ShapeError, DTypeError, Unsupported with what came and what was wanted.
    Source: scipy.ndimage.affine_transform on each channel, to rounding.

    >>> x = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    >>> warp(x, affine_matrix(3, 4, tx=1))[0, :, 0]
    array([1., 2., 3., 3.], dtype=float32)
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape not in ((3, 3), (2, 3)):
        raise ShapeError(f"warp: got a matrix of shape {matrix.shape}, want (3, 3) or (2, 3)")
    if image.ndim != 3:
        raise ShapeError(f"warp: got an image of shape {image.shape}, want (height, width, channels)")
    if out is None:
        out = np.empty((*(size or image.shape[:2]), image.shape[2]), np.float32)
    elif size is not None and out.shape[:2] != tuple(size):
        raise ShapeError(f"warp: got out of shape {out.shape}, want size {size}")
    if np.may_share_memory(image, out):
        raise Unsupported("warp: out overlaps the image")
    _core.warp(image, matrix[:2].ravel().tolist(), out, fill_mode, cval, order, threads)
    return out


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random part of an image: (top, left, height, width) with an area and a proportion (width over height) at
    random.

    scale: least and greatest share of the area. ratio: least and greatest width over height, drawn on a log scale.
    After ten boxes that do not fit, the largest centred one of a permitted proportion.
    Source: torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv:1409.4842, sec. 6).
    """
    for area, shape, y, x in rng.random((10, 4)):
        wanted = height * width * (scale[0] + area * (scale[1] - scale[0]))
        proportion = ratio[0] * (ratio[1] / ratio[0]) ** shape
        w, h = round(math.sqrt(wanted * proportion)), round(math.sqrt(wanted / proportion))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    proportion = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * proportion)))
    h = min(height, max(1, round(width / proportion)))
    return (height - h) // 2, (width - w) // 2, h, w


# Colours, in place on float32 (H,W,C)


def shift_channels(x: np.ndarray, intensity: float) -> None:
    """Add a number to every value, within the range that the image had."""
    low, high = x.min(), x.max()
    x += np.float32(intensity)
    np.clip(x, low, high, out=x)


def brighten(x: np.ndarray, factor: float) -> None:
    """Multiply the brightness, black staying black, within 0..255, or within the image's own range if it exceeds that.

    Keras goes through 8-bit pixels here; this does not round.
    """
    low, high = min(float(x.min()), 0.0), float(x.max())
    high = 255.0 if low == 0 and high <= 255 else high
    x -= np.float32(low)
    x *= np.float32(factor)
    np.clip(x, 0, np.float32(high - low), out=x)
    x += np.float32(low)


def to_pixels(x: np.ndarray) -> np.ndarray:
    """Any image as uint8, to be looked at: values within 0..1 times 255, within 0..255 as they are, else stretched.

    >>> to_pixels(np.array([[[0.0], [1.0]]], np.float32)).ravel()
    array([  0, 255], dtype=uint8)
    """
    if x.dtype == np.uint8:
        return x
    x = np.asarray(x, np.float32)
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not math.isfinite(low + high):
        raise DataError("an image with NaN or infinite values cannot be shown")
    if low < 0 or high > 255:
        x = (x - low) * (255 / (high - low))
    elif high <= 1:
        x = x * 255
    return np.rint(x).astype(np.uint8)


# Between images


def mixup(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each image of a batch, and its label, with another one: lam * a + (1 - lam) * b, lam ~ Beta(alpha, alpha).

    Shapes: images (N,...) float; labels (N,classes), one-hot or probabilities; returns both, new arrays.
    Raises: ShapeError, DTypeError for labels that are not one-hot; DataError for alpha <= 0.
    Source: Zhang et al. 2018, arXiv:1710.09412.

    >>> x, y = np.ones((4, 2, 2, 1), np.float32), np.eye(4, dtype=np.float32)
    >>> bool(np.allclose(mixup(x, y, 0.2, np.random.default_rng(0))[1].sum(1), 1))
    True
    """
    _check_mix("mixup", images, labels, alpha)
    partner = rng.permutation(len(images))
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    return _blend(images, images[partner], share), _blend(labels, labels[partner], share)


def cutmix(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste into each image of a batch a rectangle of another one; labels are mixed by the shares of the area.

    Shapes: images (N,H,W,C) float; labels (N,classes), one-hot or probabilities; returns both, new arrays.
    Raises: ShapeError, DTypeError for labels that are not one-hot; DataError for alpha <= 0.
    Source: Yun et al. 2019, arXiv:1905.04899: the area is 1 - lam, lam ~ Beta(alpha, alpha), the centre uniform.

    >>> x, y = np.ones((4, 8, 8, 1), np.float32), np.eye(4, dtype=np.float32)
    >>> cutmix(x, y, 1.0, np.random.default_rng(0))[0].shape
    (4, 8, 8, 1)
    """
    _check_mix("cutmix", images, labels, alpha)
    if images.ndim != 4:
        raise ShapeError(f"cutmix: got images of shape {images.shape}, want (N, height, width, channels)")
    count, height, width = images.shape[:3]
    partner = rng.permutation(count)
    half = 0.5 * np.sqrt(1 - rng.beta(alpha, alpha, count))
    centre = rng.random((count, 2)) * [height, width]
    mixed, kept = images.copy(), np.ones(count, np.float32)
    for i in range(count):
        reach = half[i] * np.array([height, width])
        (top, left), (bottom, right) = (
            np.clip(np.rint(edge), 0, [height, width]).astype(int) for edge in (centre[i] - reach, centre[i] + reach)
        )
        mixed[i, top:bottom, left:right] = images[partner[i], top:bottom, left:right]
        kept[i] = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, _blend(labels, labels[partner], kept)


def _blend(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    share = share.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype)
    return share * a + (1 - share) * b


def _check_mix(what: str, images: np.ndarray, labels: np.ndarray, alpha: float) -> None:
    if not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"{what}: alpha={alpha}, want a number above 0")
    if labels.ndim != 2 or labels.dtype.kind != "f":
        raise DTypeError(
            f"{what}: got labels of {labels.dtype} and shape {labels.shape}, want one-hot rows of floats: "
            f"class_mode='categorical', or to_categorical(labels)"
        )
    if len(labels) != len(images):
        raise ShapeError(f"{what}: got {len(images)} images and {len(labels)} labels")


def to_categorical(labels: Any, num_classes: int | None = None) -> np.ndarray:
    """Integer labels as one-hot rows.

    Shapes: labels (...,) integers; returns (..., num_classes), float32. num_classes: None = the greatest label + 1.
    Raises: DTypeError for labels that are not integers; DataError for labels out of range.
    Source: Keras' to_categorical.

    >>> to_categorical([0, 2])
    array([[1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    y = np.asarray(labels)
    if y.dtype.kind not in "iu":
        raise DTypeError(f"to_categorical: got labels of {y.dtype}, want integers")
    classes = (int(y.max()) + 1 if y.size else 0) if num_classes is None else num_classes
    if y.size and (y.min() < 0 or y.max() >= classes):
        raise DataError(f"to_categorical: got labels {y.min()}..{y.max()}, want 0..{classes - 1}")
    return np.eye(classes, dtype=np.float32)[y.astype(np.int64)]
