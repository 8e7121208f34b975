"""A contact sheet: images in a grid, each with a few lines below that say what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, ShapeError
from ..layers.arguments import integer
from . import transforms
from .generator import ImageDataGenerator, seed_of
from .images import decode, need_pillow, resized

GAP = 8
FONT = 12  # pixels
PAPER, INK, FRAME = (255, 255, 255), (40, 40, 40), (200, 200, 200)


def contact_sheet(images: Sequence[Any], labels: Sequence[str] = (), columns: int | None = None) -> np.ndarray:
    """Images side by side as one picture, for instance to write with Pillow's Image.fromarray(sheet).save(path).

    Args:
        images: (H,W,C) each, of 1, 3 or 4 channels and any sizes; uint8, or floats in 0..1 or 0..255; other ranges are
            stretched.
        labels: a text for each image, broken into lines as wide as the images.
        columns: images in a row; None = about as many as rows.

    Shapes: returns (rows * ..., columns * ..., 3), uint8.
    Raises: DataError for no images; ShapeError for labels or images that do not fit; ImportError without Pillow.

    >>> contact_sheet([np.zeros((20, 30, 3), np.uint8)] * 5, columns=3).shape
    (64, 122, 3)
    """
    need_pillow()
    from PIL import Image, ImageDraw, ImageFont

    if not len(images):
        raise DataError("contact_sheet: got no images")
    if labels and len(labels) != len(images):
        raise ShapeError(f"contact_sheet: got {len(labels)} labels for {len(images)} images")
    tiles = [_tile(image) for image in images]
    across = integer("columns", columns) if columns is not None else int(np.ceil(np.sqrt(len(tiles))))
    across = min(across, len(tiles))
    down = -(-len(tiles) // across)
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    font = ImageFont.load_default(FONT)
    texts = [_lines(label, width, font) for label in labels]
    lines = max(map(len, texts), default=0)
    step_x, step_y = width + GAP, height + GAP + (lines * (FONT + 3) + 2 if lines else 0)
    sheet = Image.new("RGB", (across * step_x + GAP, down * step_y + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        x, y = GAP + i % across * step_x, GAP + i // across * step_y
        left, top = x + (width - tile.width) // 2, y + (height - tile.height) // 2
        sheet.paste(tile, (left, top))
        pen.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)
        for k, line in enumerate(texts[i] if texts else ()):
            pen.text((x, y + height + 3 + k * (FONT + 3)), line, fill=INK, font=font)
    return np.asarray(sheet)


def _tile(image: Any) -> Any:
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ShapeError(f"contact_sheet: got an image of shape {pixels.shape}, want (height, width, 1, 3 or 4)")
    pixels = transforms.to_pixels(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A text broken at spaces; a word that is too wide is cut."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            while len(word) > 1 and font.getlength(word) > width:
                word = word.removesuffix("…")[:-1] + "…"
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def augmented(
    generator: ImageDataGenerator, source: Any, count: int, size: tuple[int, int], seed: int = 0, index: int = 0
) -> tuple[np.ndarray, list[tuple[np.ndarray, dict[str, Any]]]]:
    """A file as it is, squeezed to `size`, and `count` transforms of it with what was drawn for each.

    They are those of the first `count` epochs of flow_from_directory for image number `index`, before any
    normalisation.
    Shapes: images (*size, 3), uint8.
    """
    seed = seed_of(seed)
    picture = decode(source, "RGB")
    height, width = size
    original = np.asarray(resized(picture, height, width, "bilinear"))
    made = []
    for epoch in range(count):
        rng = transforms.random_at(seed, epoch, index)
        parameters = generator.parameters((*size, 3), rng, picture.size[::-1])
        out = np.empty((*size, 3), np.float32)
        generator.render(picture, parameters, out, "bilinear")
        made.append((np.rint(np.clip(out, 0, 255)).astype(np.uint8), parameters))
    return original, made


def describe(parameters: Mapping[str, Any]) -> str:
    """What was drawn for an image, in a few words.

    >>> describe(dict(theta=-12.3, tx=5.0, ty=-0.1, zx=1.1, zy=0.9, flip_horizontal=True))
    'rotate -12°, shift 5,0, zoom 1.1x0.9, flip'
    """
    get: Any = parameters.get
    words = []
    if get("crop"):
        words.append(f"crop {get('crop')[2]}x{get('crop')[3]}")
    if get("theta"):
        words.append(f"rotate {_short(get('theta'), 0)}°")
    if get("tx") or get("ty"):
        words.append(f"shift {_short(get('tx', 0.0), 0)},{_short(get('ty', 0.0), 0)}")
    if get("shear"):
        words.append(f"shear {_short(get('shear'), 1)}°")
    if get("zx", 1) != 1 or get("zy", 1) != 1:
        words.append(f"zoom {_short(get('zx', 1.0), 2)}x{_short(get('zy', 1.0), 2)}")
    words += [word for key, word in (("flip_horizontal", "flip"), ("flip_vertical", "upside down")) if get(key)]
    if get("brightness") is not None:
        words.append(f"brightness {_short(get('brightness'), 2)}")
    if get("channel_shift_intensity") is not None:
        words.append(f"colours {_short(get('channel_shift_intensity'), 0)}")
    return ", ".join([*words, *(name for name, _ in get("rand_augment") or ())])


def _short(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:g}"  # no minus before a zero
