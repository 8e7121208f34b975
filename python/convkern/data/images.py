"""Read image files into arrays the way networks were trained on them: upright, RGB, resized by the short side,
centre-cropped.

Files come from users and from the net, so everything that can go wrong inside one is a DataError, formats that start
other programs (EPS) are not opened, and the size is checked before a pixel is decoded. Decoding and resizing are
Pillow's (extra: convkern[image]).
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError, ShapeError, Unsupported

MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB of RGB
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

# EXIF orientation -> the transposition that turns the image upright
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    interpolation: str = "bicubic",
    crop: bool = True,
    grey: bool = False,
) -> np.ndarray:
    """One image file as an array of pixels.

    The first frame, turned upright by its EXIF orientation, transparent parts over white, palettes, grey, CMYK and
    16-bit files as 8-bit RGB.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        size: height and width of the result; None = as in the file.
        resize: length of the short side before the crop; None = 8/7 of the size (256 for 224).
        interpolation: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos"; all but the first are
            antialiased.
        crop: False squeezes the whole image into `size` instead of keeping its proportions and cropping the centre.
        grey: one channel (luma) instead of three.

    Shapes: returns (H,W,3), or (H,W,1) if grey; uint8. Units: size and resize in pixels.
    Raises: DataError for a file that is broken, hostile, too large or of an unknown format; OSError if it cannot be
        opened; ShapeError for sizes that do not fit; ImportError without Pillow.
    Source: torchvision's ImageClassification preset; the long side is rounded to the nearest pixel, an odd margin
        cropped one pixel less at the top and left.

    >>> from PIL import Image
    >>> file = io.BytesIO(); Image.new("L", (40, 30), 200).save(file, "PNG")
    >>> pixels = load_image(file.getvalue(), size=16)
    >>> pixels.shape, int(pixels.min())
    ((16, 16, 3), 200)
    """
    if interpolation not in INTERPOLATIONS:
        raise Unsupported(f"load_image: interpolation={interpolation!r}; want one of {', '.join(INTERPOLATIONS)}")
    image = decode(source, "L" if grey else "RGB")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ShapeError(f"load_image: size={size}, want 1 or more")
        image = (
            _fit(image, height, width, resize, interpolation) if crop else resized(image, height, width, interpolation)
        )
    pixels = np.asarray(image)
    return pixels[..., None] if grey else pixels


def need_pillow() -> None:
    """ImportError that names the extra, without Pillow."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'convkern[image]'") from error


def decode(source: Any, mode: str, least: int = 0) -> Any:
    """The upright picture in `mode` ("RGB", "L" or "RGBA"), as an Image.

    least: if not 0, a JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as both sides keep `least` pixels: its
        decoder then averages, at a fraction of the time.
    """
    need_pillow()
    from PIL import Image

    name = str(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "the given bytes")
    with _opened(source) as file:
        # Decoders meet broken files with a dozen kinds of exceptions (struct.error, EOFError, SyntaxError,
        # OverflowError, ...).
        try:
            Image.init()
            with Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{name}: {image.width}x{image.height} pixels, want at most {MAX_PIXELS:,}")
                if least:
                    image.draft(None, (least, least))
                image.load()
                orientation = _orientation(image)
                upright = _converted(image, mode)
                return (
                    upright.transpose(getattr(Image.Transpose, _UPRIGHT[orientation]))
                    if orientation in _UPRIGHT
                    else upright
                )
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{name}: cannot be read as an image ({type(error).__name__}: {error})") from error


def _opened(source: Any) -> Any:
    if isinstance(source, (str, os.PathLike)):
        return open(source, "rb")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    import contextlib

    return contextlib.nullcontext(source)  # the caller's file stays open


def _orientation(image: Any) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF data is no reason to refuse a good picture
        return 1


def _converted(image: Any, mode: str) -> Any:
    """Any of Pillow's modes -> 8 bits, transparent parts over white unless `mode` can show them."""
    from PIL import Image

    if image.mode == "F":
        raise DataError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # 16 bits (older Pillows give 32 with the same values)
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"pixels of {values.min()}..{values.max()}, want 0..65535")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode == "RGBA":
            return image
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def resized(image: Any, height: int, width: int, interpolation: str, box: Any = None) -> Any:
    """An Image at another size; `box` (left, top, right, bottom) is the part of it to show."""
    from PIL import Image

    return image.resize((width, height), getattr(Image.Resampling, interpolation.upper()), box=box)


def _fit(image: Any, height: int, width: int, resize: int | None, interpolation: str) -> Any:
    """Keep the proportions: the short side becomes `resize`, then the centre is cut out."""
    short = round(max(height, width) * 8 / 7) if resize is None else resize
    if short < max(height, width):
        raise ShapeError(f"load_image: resize={short} is less than the size {height}x{width}")
    scale = short / min(image.width, image.height)
    full_width, full_height = round(image.width * scale), round(image.height * scale)
    if full_width * full_height > MAX_PIXELS:
        raise DataError(f"a picture of {image.width}x{image.height} would become {full_width}x{full_height} pixels")
    image = resized(image, full_height, full_width, interpolation)
    left, top = (full_width - width) // 2, (full_height - height) // 2
    return image.crop((left, top, left + width, top + height))
