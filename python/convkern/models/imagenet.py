"""From a photo to an input of a network, and from its 1000 outputs to class names.

The class names and WordNet numbers are in imagenet_classes.txt, whose first lines name their sources.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data import load_image
from ..errors import DTypeError, ShapeError
from .registry import IMAGENET_MEAN, IMAGENET_STD, model_info


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """The 1000 classes in the order of the outputs: (WordNet number, name).

    >>> imagenet_classes()[285]
    ('n02124075', 'Egyptian cat')
    """
    from importlib.resources import files

    lines = files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    return tuple((number, name) for number, name in rows)


def decode_predictions(y: Any, top: int = 5, from_logits: bool = True) -> list[list[tuple[str, str, float]]]:
    """The likeliest ImageNet classes of each image, best first.

    Shapes: y (N,1000) or (1000,); returns N lists of `top` tuples (WordNet number, name, probability).
    from_logits: apply a softmax first; False takes y as probabilities.
    Raises: ShapeError for another number of classes. Source: keras.applications.imagenet_utils.decode_predictions.

    >>> y = np.zeros(1000, "f4"); y[285] = 20
    >>> [(name, round(p, 3)) for _, name, p in decode_predictions(y, top=1)[0]]
    [('Egyptian cat', 1.0)]
    """
    scores = np.asarray(y)
    if scores.ndim == 1:
        scores = scores[None]
    classes = imagenet_classes()
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ShapeError(f"decode_predictions: got shape {np.shape(y)}, want (N,{len(classes)}) or ({len(classes)},)")
    if not 1 <= top <= len(classes):
        raise ShapeError(f"decode_predictions: top={top}, want 1..{len(classes)}")
    scores = scores.astype(np.float64)
    if from_logits:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [[(*classes[k], float(row[k])) for k in order] for row, order in zip(scores, best)]


def preprocess_input(x: Any, model: str | None = None) -> np.ndarray:
    """Pixels of 0..255 -> what the named model's weights expect: (x/255 - mean) / std per channel.

    Shapes: x (...,H,W,C), uint8 or float32; returns float32 of the same shape, never x itself.
    model: a name of list_models(); None = ImageNet's mean and deviation.
    Raises: ShapeError for another number of channels, DTypeError for another type, Unsupported for an unknown model.

    >>> preprocess_input(np.full((1, 1, 3), 255, np.uint8))[0, 0].round(3).tolist()
    [2.249000072479248, 2.428999900817871, 2.640000104904175]
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if model is None else (model_info(model).mean, model_info(model).std)
    x = np.asarray(x)
    if x.dtype not in (np.uint8, np.float32):
        raise DTypeError(f"preprocess_input: got {x.dtype}, want uint8 or float32 pixels of 0..255")
    if x.ndim < 3 or x.shape[-1] != len(mean):
        raise ShapeError(f"preprocess_input: got shape {x.shape}, want (...,H,W,{len(mean)})")
    y = x.astype(np.float32)
    y -= np.multiply(mean, 255, dtype=np.float32)
    y /= np.multiply(std, 255, dtype=np.float32)
    return y


def load_input(images: Any, model: str, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """Read one image or several as a batch for the named model: resized, centre-cropped and normalised as its weights
    expect.

    images: a path, bytes, an open binary file, or a list of them. size: height and width in pixels, if not the model's
    own.
    Shapes: returns (N,H,W,C) float32. Raises: DataError for a file that cannot be read.
    """
    info = model_info(model)
    single = isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "read")
    sources: Iterable[Any] = [images] if single else images
    resize = info.resize if size is None or size == info.size else None
    pixels = [
        load_image(source, size or info.size, resize, info.interpolation, grey=info.channels == 1) for source in sources
    ]
    height, width = (info.size, info.size) if size is None else (size, size) if isinstance(size, int) else size
    if not pixels:
        return np.empty((0, height, width, info.channels), np.float32)
    return preprocess_input(np.stack(pixels), model)
