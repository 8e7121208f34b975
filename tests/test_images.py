"""Image files: every kind of pixel becomes the same upright RGB, and whatever is wrong inside a file is a DataError."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from convkern.data import load_image
from convkern.data.images import MAX_PIXELS
from convkern.errors import DataError, ShapeError, Unsupported
from convkern.models import load_input, preprocess_input


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def picture(rng) -> np.ndarray:
    """5 x 7 pixels, no two alike and not symmetric."""
    return rng.permutation(256)[:105].reshape(5, 7, 3).astype(np.uint8)


# Where pixels come from


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(kind, picture, tmp_path):
    file = tmp_path / "picture"
    Image.fromarray(picture).save(file, kind)
    for source in (file, str(file), file.read_bytes(), memoryview(file.read_bytes())):
        assert (load_image(source) == picture).all()
    with open(file, "rb") as opened:
        assert (load_image(opened) == picture).all()
        assert not opened.closed


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind):
    smooth = np.add.outer(np.arange(64), np.arange(48))[..., None].repeat(3, 2).astype(np.uint8)
    read = load_image(encoded(Image.fromarray(smooth), kind, quality=95))
    assert np.abs(read.astype(int) - smooth).max() < 8


def test_a_jpeg_with_several_pictures_gives_the_first(picture):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert load_image(file.getvalue())[..., 0].min() > 200


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]).all()


# Kinds of pixels


def test_grey_is_repeated(picture):
    assert (load_image(encoded(Image.fromarray(picture[..., 0]))) == picture[..., :1]).all()


def test_one_bit():
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert (load_image(encoded(bits)) == 255 * np.eye(4, dtype=np.uint8)[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 1, 128, 255]])
    assert (load_image(encoded(Image.fromarray(values), kind)) == expected[..., None]).all()


def test_palette():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert load_image(encoded(image)).tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]


def test_transparent_palette_entry_is_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert load_image(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.new(mode, (3, 1), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    image.putalpha(Image.fromarray(np.array([[0, 51, 255]], np.uint8)))
    assert load_image(encoded(image))[0, :, 0].tolist() == [255, 204, 0]


def test_cmyk():
    read = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert read[..., 0].min() > 200 and read[..., 1].max() < 60


def test_grey_output(picture):
    read = load_image(encoded(Image.fromarray(picture)), grey=True)
    luma = picture @ [0.299, 0.587, 0.114]
    assert read.shape == (5, 7, 1)
    assert np.abs(read[..., 0] - luma).max() <= 1


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        load_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, picture):
    # How a camera held that way stores the picture: the inverse of what makes it upright.
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert (load_image(file) == picture).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_broken_exif_does_not_spoil_a_picture(exif, picture):
    file = encoded(Image.fromarray(picture), "PNG", exif=exif)
    assert (load_image(file) == picture).all()


# Sizes


def test_short_side_and_centre_crop():
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, 150:250] = 255  # the centre square is white
    read = load_image(encoded(Image.fromarray(wide)), size=50, resize=50, interpolation="box")
    assert read.shape == (50, 50, 3)
    assert read.min() == 255


def test_default_crop_is_seven_eighths():
    columns = np.arange(256, dtype=np.uint8)[None, :, None].repeat(256, 0).repeat(3, 2)
    assert (load_image(encoded(Image.fromarray(columns)), size=224) == columns[16:240, 16:240]).all()


def test_without_crop_everything_is_kept():
    half = np.zeros((10, 40, 3), np.uint8)
    half[:, 20:] = 255
    read = load_image(encoded(Image.fromarray(half)), size=(4, 8), crop=False, interpolation="box")
    assert read.shape == (4, 8, 3)
    assert (read[:, :4] == 0).all() and (read[:, 4:] == 255).all()


def test_wrong_sizes_and_names(picture):
    file = encoded(Image.fromarray(picture))
    with pytest.raises(ShapeError, match="resize=32 is less than the size 64x64"):
        load_image(file, size=64, resize=32)
    with pytest.raises(ShapeError, match="size=0"):
        load_image(file, size=0)
    with pytest.raises(Unsupported, match="bicubic"):
        load_image(file, size=4, interpolation="cubic")


# What is wrong with files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(kind, rng):
    noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    file = encoded(noise, kind)
    for length in (0, 1, 10, 60, len(file) // 2):
        with pytest.raises(DataError, match="cannot be read as an image"):
            load_image(file[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns about some of the damage
def test_damaged_files_are_read_or_refused(kind, rng):
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    file = np.frombuffer(encoded(noise, kind), np.uint8)
    for _ in range(60):
        damaged = file.copy()
        places = rng.integers(0, min(len(file), 400), 4)
        damaged[places] = rng.integers(0, 256, 4)
        try:
            pixels = load_image(damaged.tobytes())
        except DataError:
            continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 50_000, 2**31 - 1])
def test_decompression_bombs_are_refused_before_decoding(side):
    assert side * side > MAX_PIXELS
    with pytest.raises(DataError):
        load_image(png(side, side, bytes(1000)))


def test_a_sliver_cannot_be_blown_up():
    with pytest.raises(DataError, match="would become"):
        load_image(png(100_000, 1, bytes(100_001)), size=224)


def test_formats_that_run_programs_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match="UnidentifiedImageError"):
        load_image(postscript)


NOT_IMAGES = [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", np.random.default_rng(0).bytes(2000)]


@pytest.mark.parametrize("content", NOT_IMAGES, ids=len)
def test_what_is_no_image(content, tmp_path):
    file = tmp_path / "no-image.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"no-image\.jpg"):
        load_image(file)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)


# Batches for a model


def test_load_input_is_resized_and_normalised(tmp_path):
    file = tmp_path / "grey.png"
    Image.new("RGB", (300, 400), (124, 116, 104)).save(file)  # ImageNet's mean colour
    one, three = load_input(file, "resnet50"), load_input([file, str(file), file.read_bytes()], "efficientnet_b3")
    assert one.shape == (1, 224, 224, 3) and one.dtype == np.float32
    assert three.shape == (3, 300, 300, 3)
    assert np.abs(one).max() < 0.02
    assert load_input(file, "resnet50", size=(64, 96)).shape == (1, 64, 96, 3)
    assert load_input(file, "lenet5").shape == (1, 32, 32, 1)
    assert load_input([], "resnet50").shape == (0, 224, 224, 3)


def test_preprocess_does_not_change_its_input():
    x = np.full((2, 4, 4, 3), 255, np.float32)
    y = preprocess_input(x, "resnet50")
    assert (x == 255).all()
    assert np.allclose(y[0, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])
    with pytest.raises(ShapeError):
        preprocess_input(x[..., :1], "resnet50")
    with pytest.raises(TypeError, match="float64"):
        preprocess_input(x.astype(np.float64))
