"""RandAugment: n operations drawn from fourteen, all of one strength (Cubuk et al. 2020, arXiv:1909.13719).

The five geometric ones are matrices and join the image's one warp (transforms.py); the others change colours
afterwards, in the order drawn, with Pillow's ImageEnhance and ImageOps. Strengths are torchvision's: a magnitude of 0
to 30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MOST = 30  # the greatest magnitude
SHIFT = 150 / 331  # of the side, at the greatest magnitude

# name -> strength at a magnitude m in 0..1; the sign of those in SIGNED is drawn
GEOMETRIC: dict[str, Callable[[float], float]] = {
    "shear_x": lambda m: 0.3 * m,
    "shear_y": lambda m: 0.3 * m,
    "translate_x": lambda m: SHIFT * m,
    "translate_y": lambda m: SHIFT * m,
    "rotate": lambda m: 30.0 * m,
}
COLOURS: dict[str, Callable[[float], float]] = {
    "identity": lambda m: 0.0,
    "brightness": lambda m: 0.9 * m,
    "color": lambda m: 0.9 * m,
    "contrast": lambda m: 0.9 * m,
    "sharpness": lambda m: 0.9 * m,
    "posterize": lambda m: 8 - round(4 * m),
    "solarize": lambda m: 255 * (1 - m),
    "autocontrast": lambda m: 0.0,
    "equalize": lambda m: 0.0,
}
SIGNED = {*GEOMETRIC, "brightness", "color", "contrast", "sharpness"}
OPERATIONS = (*GEOMETRIC, *COLOURS)

Operation = tuple[str, float]


def draw(uniform: np.ndarray, magnitude: float) -> list[Operation]:
    """Operations with their signed strengths, from two random numbers in 0..1 for each.

    >>> draw(np.array([[0.0, 0.9], [0.99, 0.1]]), 15)
    [('shear_x', 0.15), ('equalize', 0.0)]
    """
    chosen = []
    for which, sign in uniform:
        name = OPERATIONS[int(which * len(OPERATIONS))]
        strength = (GEOMETRIC.get(name) or COLOURS[name])(magnitude / MOST)
        chosen.append((name, -strength if name in SIGNED and sign < 0.5 else strength))
    return chosen


def matrices(operations: Sequence[Operation], height: int, width: int) -> list[np.ndarray]:
    """The geometric ones among the operations, in (x, y, 1) about the centre, from result to source.

    In the order drawn: the operation that acts on the picture last is met first on the way from the result to the
    source, so it stands rightmost in the product.
    """
    found = []
    for name, value in operations:
        if name not in GEOMETRIC:
            continue
        matrix = np.eye(3)
        if name == "shear_x":
            matrix[0, 1] = value
        elif name == "shear_y":
            matrix[1, 0] = value
        elif name == "translate_x":
            matrix[0, 2] = value * width
        elif name == "translate_y":
            matrix[1, 2] = value * height
        else:
            a = math.radians(value)
            matrix[:2, :2] = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
        found.append(matrix)
    return found


def has_colours(operations: Sequence[Operation]) -> bool:
    return any(name in COLOURS and name != "identity" for name, _ in operations)


def apply_colours(pixels: np.ndarray, operations: Sequence[Operation]) -> np.ndarray:
    """The others among the operations on an 8-bit image (H,W,1), (H,W,3) or (H,W,4), whose alpha is kept; returns a
    new one.

    >>> apply_colours(np.full((1, 1, 3), 200, np.uint8), [("solarize", 128.0)]).ravel()
    array([55, 55, 55], dtype=uint8)
    """
    from PIL import Image, ImageEnhance, ImageOps

    channels = pixels.shape[2]
    image: Any = Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels[..., :3]))
    for name, value in operations:
        if name in ("brightness", "color", "contrast", "sharpness"):
            if name != "color" or channels > 1:
                image = getattr(ImageEnhance, name.capitalize())(image).enhance(1 + value)
        elif name == "posterize":
            image = ImageOps.posterize(image, int(value))
        elif name == "solarize":
            image = ImageOps.solarize(image, value)
        elif name in ("autocontrast", "equalize"):
            image = getattr(ImageOps, name)(image)
    changed = np.asarray(image).reshape(*pixels.shape[:2], -1)
    return np.concatenate([changed, pixels[..., 3:]], 2) if channels > 3 else changed
