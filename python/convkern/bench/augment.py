"""Images a second of the lecture's augmentation, beside Keras' way of doing it.

Keras samples each channel of an image with scipy.ndimage.affine_transform (order 1) and normalises in place; here that
runs on as many threads as ours (SciPy releases Python's lock while it samples), with the very transforms that our
generator draws, so the results are compared before anything is timed. Batches are made when they are asked for, not
ahead: otherwise one contestant's threads would work through the other's blocks. Files are 320x240 JPEGs, as decoded and
resized by Pillow.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..data import ImageDataGenerator, affine_matrix, transforms
from ..data.images import need_pillow
from ..errors import ConvkernError
from . import harness

LECTURE: dict[str, Any] = dict(
    rotation_range=40,
    width_shift_range=0.2,
    height_shift_range=0.2,
    shear_range=0.2,
    zoom_range=0.2,
    horizontal_flip=True,
    fill_mode="nearest",
    rescale=1 / 255,
)
BATCH = 32
IMAGES = 128
LEVELS = 1e-5  # how far the two may be apart, for pixels in 0..1: bilinear weights in float32 and in float64


def run(size: int, workers: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of facts: where the images come from, ours and Keras' images a second (None without SciPy), the ratio."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    made = ImageDataGenerator(**LECTURE)
    options: dict[str, Any] = dict(batch_size=BATCH, shuffle=False, seed=0, workers=workers, prefetch=0)
    need_pillow()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max(workers, 1)) as pool:
        _write_photos(Path(folder), rng)
        files = made.flow_from_directory(folder, (size, size), class_mode=None, **options)
        return [
            _compare("arrays", made.flow(arrays, **options), lambda i: arrays[i], pool, seconds, rounds),
            _compare("files", files, lambda i: _read(files.filepaths[i], size), pool, seconds, rounds),
        ]


def _compare(
    source: str, batches: Any, read: Callable[[int], np.ndarray], pool: ThreadPoolExecutor, seconds: float, rounds: int
) -> dict[str, Any]:
    count = len(batches)

    def ours(turn: int) -> np.ndarray:
        return batches[turn % count]

    def keras(turn: int) -> np.ndarray:
        chosen = batches.indices()[turn % count * BATCH : (turn % count + 1) * BATCH]
        out = np.empty((len(chosen), *batches.image_shape), np.float32)

        def make(at: int) -> None:
            out[at] = _as_keras(read(chosen[at]), batches.generator, batches.seed, batches.epoch, int(chosen[at]))

        list(pool.map(make, range(len(chosen))))
        return out

    contestants = {"convkern": ours}
    if importlib.util.find_spec("scipy") is not None:
        contestants["scipy"] = keras
        error = float(np.abs(ours(0) - keras(0)).max())
        if source == "arrays" and error > LEVELS:  # files are sampled differently: once, not twice
            raise ConvkernError(f"our augmented images differ from SciPy's by {error:.3g}")
    times = harness.interleave(contestants, seconds, rounds)
    batches.close()
    row: dict[str, Any] = dict(source=source, ours=BATCH / times["convkern"].median, keras=None, ratio=None)
    if "scipy" in times:
        row.update(keras=BATCH / times["scipy"].median, ratio=harness.ratio(times["scipy"], times["convkern"]))
    return row


def _as_keras(image: np.ndarray, made: ImageDataGenerator, seed: int, epoch: int, index: int) -> np.ndarray:
    from scipy import ndimage

    p = made.parameters(image.shape, transforms.random_at(seed, epoch, index))
    height, width = image.shape[:2]
    m = affine_matrix(height, width, p["theta"], p["tx"], p["ty"], p["shear"], p["zx"], p["zy"])
    x = image.astype(np.float32)
    channels = [
        ndimage.affine_transform(x[..., c], m[:2, :2], m[:2, 2], order=1, mode=made.fill_mode) for c in range(3)
    ]
    x = np.stack(channels, -1)
    if p["flip_horizontal"]:
        x = x[:, ::-1]
    x *= np.float32(made.rescale or 1)
    return x


def _write_photos(folder: Path, rng: np.random.Generator) -> None:
    """Files with about as much detail as photos have: a coarse pattern, and a little noise."""
    from PIL import Image

    for i in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (320, 240), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 6, (240, 320, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:03}.jpg", quality=90)


def _read(path: str, size: int) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
