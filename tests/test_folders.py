"""Folders of images: what is found, how it is labelled, split, read and brought to size, and what can be wrong."""

import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convkern.data import ImageDataGenerator, image_dataset_from_directory, load_mnist, transforms
from convkern.data.directory import list_classes
from convkern.data.images import decode
from convkern.errors import DataError, DTypeError, ShapeError, Unsupported

BIRDS = Path("/usr/share/tuxpaint/stamps/animals")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def smooth(height, width, seed=0) -> np.ndarray:
    """A picture without fine detail and without symmetry."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of 6, 5 and 4 images in files of all kinds, one of each lower down, among files that are none."""
    root = tmp_path / "photos"
    for label, (name, count) in enumerate((("cat", 6), ("dog", 5), ("Ewe", 4))):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(smooth(30 + i, 40, 10 * label + i))
            kind = ("png", "jpg", "bmp", "webp", "tiff", "PNG")[i]
            picture.save(root / name / ("deeper" if i == 1 else "") / f"{name}_{i}.{kind}")
        (root / name / "notes.txt").write_text("no image")
        (root / name / ".hidden.png").write_text("no image")
    (root / ".cache").mkdir()
    (root / "loose.png").write_bytes((root / "cat" / "cat_0.png").read_bytes())
    return root


def flow(folder, settings=None, **options):
    options = dict(dict(target_size=(24, 32), batch_size=4, seed=3), **options)
    return ImageDataGenerator(**(settings or {})).flow_from_directory(folder, **options)


# What is found


def test_classes_and_files_are_sorted(folder):
    batches = flow(folder, shuffle=False)
    assert batches.class_indices == {"Ewe": 0, "cat": 1, "dog": 2} and batches.num_classes == 3
    assert batches.n == 15 and len(batches) == 4 and batches.image_shape == (24, 32, 3)
    assert batches.classes.tolist() == [0] * 4 + [1] * 6 + [2] * 5 and batches.classes.dtype == np.int64
    names = [Path(name).name for name in batches.filenames]
    assert names[:4] == ["Ewe_0.png", "Ewe_2.bmp", "Ewe_3.webp", "Ewe_1.jpg"]
    assert all(Path(path).is_file() for path in batches.filepaths) and batches.filepaths == batches.file_paths
    images, labels = batches[0]
    assert images.shape == (4, 24, 32, 3) and images.dtype == np.float32
    assert labels.tolist() == [[1, 0, 0]] * 4 and labels.dtype == np.float32


def test_classes_that_are_named(folder):
    batches = flow(folder, classes=["dog", "cat"], class_mode="sparse", shuffle=False, batch_size=99)
    assert batches.class_indices == {"dog": 0, "cat": 1}
    assert batches[0][1].tolist() == [0] * 5 + [1] * 6


def test_class_modes(folder):
    labels = flow(folder, class_mode="sparse")[0][1]
    assert labels.dtype == np.int64 and labels.shape == (4,)
    assert flow(folder, class_mode="binary", classes=["cat", "dog"])[0][1].dtype == np.int64
    images, targets = flow(folder, class_mode="input")[0]
    assert (images == targets).all() and flow(folder, class_mode="input").n == 16
    whole = flow(folder, class_mode=None, shuffle=False)
    assert isinstance(whole[0], np.ndarray) and whole.n == 16 and "loose.png" in whole.filenames
    with pytest.raises(DataError, match="3 classes, want 2"):
        flow(folder, class_mode="binary")
    with pytest.raises(Unsupported, match="'raw'"):
        flow(folder, class_mode="raw")


def test_links(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(smooth(9, 9)).save(tmp_path / "elsewhere" / "more.png")
    (folder / "cat" / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "round").symlink_to(folder / "cat")
    assert flow(folder).n == 15
    assert flow(folder, follow_links=True).n == 16


# How it is read


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_sizes_as_pillow_makes_them(interpolation, folder):
    batches = flow(folder, shuffle=False, interpolation=interpolation, batch_size=15)
    images, _ = batches[0]
    for image, path in zip(images, batches.filepaths):
        with Image.open(path) as file:
            want = file.resize((32, 24), getattr(Image.Resampling, interpolation.upper()))
        assert (image == np.asarray(want)).all()


def test_unaltered_at_their_own_size(tmp_path):
    (tmp_path / "a").mkdir()
    picture = smooth(24, 32)
    Image.fromarray(picture).save(tmp_path / "a" / "0.png")
    assert (flow(tmp_path)[0][0][0] == picture).all()


def test_proportions_can_be_kept(tmp_path):
    (tmp_path / "a").mkdir()
    wide = smooth(24, 96)
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    assert (flow(tmp_path, keep_aspect_ratio=True)[0][0][0] == wide[:, 32:64]).all()
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "a" / "0.png")
    kept = flow(tmp_path, keep_aspect_ratio=True, target_size=(32, 24))[0][0][0]
    assert (kept == wide.transpose(1, 0, 2)[32:64]).all()


@pytest.mark.parametrize("settings", [{}, dict(rotation_range=1e-9)], ids=["resized", "warped"])
def test_photos_are_upright_and_transparency_is_white(settings, tmp_path):
    (tmp_path / "a").mkdir()
    picture = smooth(24, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
    stored.save(tmp_path / "a" / "0.png", exif=exif)
    rgba = np.dstack([picture, np.zeros((24, 32), np.uint8)])
    rgba[:12, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a" / "1.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "a" / "2.png")
    images, _ = flow(tmp_path, settings, shuffle=False)[0]
    assert np.abs(images[0] - picture).max() < 1e-3
    assert np.abs(images[1][:12] - picture[:12]).max() < 1e-3 and (images[1][12:] == 255).all()
    assert np.abs(images[2] - picture[..., :1]).max() < 1e-3
    kept, _ = flow(tmp_path, settings, shuffle=False, color_mode="rgba")[0]
    assert kept.shape == (3, 24, 32, 4) and (kept[1][12:, :, 3] == 0).all() and (kept[0][..., 3] == 255).all()
    grey, _ = flow(tmp_path, settings, shuffle=False, color_mode="grayscale")[0]
    assert grey.shape == (3, 24, 32, 1) and np.abs(grey[2] - picture[..., :1]).max() < 1e-3
    assert np.abs(grey[0][..., 0] - picture @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 9])
def test_one_warp_from_the_files_own_pixels(factor, tmp_path, monkeypatch):
    """Resizing and warping are one sampling, at the right place: as good as resizing first on a smooth picture."""
    (tmp_path / "a").mkdir()
    Image.fromarray(smooth(24 * factor, 32 * factor)).save(tmp_path / "a" / "0.png")
    small = np.asarray(Image.fromarray(smooth(24 * factor, 32 * factor)).resize((32, 24), Image.Resampling.BOX))
    calls, real = [], transforms.warp

    def counted(image, *arguments, **named):
        if threading.current_thread() is threading.main_thread():  # not the batches that another test had made ahead
            calls.append(image.shape)
        return real(image, *arguments, **named)

    monkeypatch.setattr(transforms, "warp", counted)
    generator = ImageDataGenerator(rotation_range=40, zoom_range=0.2, horizontal_flip=True)
    for seed in range(4):
        batches = generator.flow_from_directory(tmp_path, (24, 32), seed=seed, workers=0)
        got = batches[0][0][0]
        parameters = generator.parameters((24, 32, 3), transforms.random_at(seed, 0, 0))
        want = ImageDataGenerator().apply_transform(small, parameters)
        assert np.abs(got - want).mean() < 1.5
        assert np.abs(got[:, ::-1] - want).mean() > 5
    assert len(calls) == 8 and set(calls[::2]) == {(24, 32, 3)}


def test_noise_is_averaged_not_picked(tmp_path, rng):
    """A file five times as fine as needed: a bilinear sample alone would keep all of its noise."""
    (tmp_path / "a").mkdir()
    noise = rng.integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "0.png")
    settings = dict(rotation_range=20, fill_mode="reflect")
    assert flow(tmp_path, settings)[0][0].std() < 0.3 * noise.std()
    assert flow(tmp_path, settings, interpolation="nearest")[0][0].std() > 0.9 * noise.std()


def test_large_jpegs_are_decoded_small(tmp_path):
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(smooth(480, 640))
    picture.save(tmp_path / "a" / "0.jpg", quality=95)
    assert decode(tmp_path / "a" / "0.jpg", "RGB", least=100).size == (160, 120)
    want = np.asarray(picture.resize((32, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(flow(tmp_path)[0][0][0] - want).max() < 6
    turned = flow(tmp_path, dict(rotation_range=1e-6))[0][0][0]
    assert np.abs(turned - want).max() < 8


def test_random_crops_of_files(folder):
    settings = dict(random_resized_crop=(0.1, 0.4))
    batches = flow(folder, settings)
    images, _ = batches[0]
    assert images.shape == (4, 24, 32, 3) and (images == flow(folder, settings, workers=0)[0][0]).all()
    index = batches.indices()[0]
    with Image.open(batches.filepaths[index]) as file:
        height, width = file.size[::-1]
    p = batches.generator.parameters((24, 32, 3), transforms.random_at(3, 0, index), (height, width))
    top, left, h, w = p["crop"]
    with Image.open(batches.filepaths[index]) as file:
        want = file.resize((32, 24), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
    assert (images[0] == np.asarray(want)).all()


def test_the_same_for_any_number_of_threads(folder):
    settings = dict(rotation_range=40, zoom_range=0.2, horizontal_flip=True, rand_augment=(2, 9), rescale=1 / 255)
    plain = flow(folder, settings, workers=0)
    for workers in (1, 4):
        batches = flow(folder, settings, workers=workers)
        for i in range(6):
            a, b = next(batches), plain[i % 4]
            assert (a[0] == b[0]).all() and (a[1] == b[1]).all()
            if i == 3:
                plain.on_epoch_end()
        plain.restore(dict(plain.state(), epoch=0))


# Parts


def test_validation_takes_the_first_files_of_each_class(folder):
    settings = dict(validation_split=0.3)
    training, validation = (flow(folder, settings, subset=part) for part in ("training", "validation"))
    assert validation.classes.tolist() == [0, 1, 2] and training.n == 12
    assert not set(training.filenames) & set(validation.filenames)
    assert sorted(training.filenames + validation.filenames) == sorted(flow(folder).filenames)
    assert [Path(name).name for name in validation.filenames] == ["Ewe_0.png", "cat_0.png", "dog_0.png"]


def test_a_class_with_one_image_cannot_be_split(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "0.png").write_bytes((folder / "loose.png").read_bytes())
    assert flow(folder).num_classes == 4
    for part in ("training", "validation"):
        with pytest.raises(DataError, match=r"1 image\(s\) of 'fox' leaves none for validation"):
            flow(folder, dict(validation_split=0.3), subset=part)
    with pytest.raises(DataError, match="needs a validation_split"):
        flow(folder, subset="training")


# What is wrong with folders and files


def test_folders_that_are_missing_or_empty(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        flow(tmp_path / "missing")
    with pytest.raises(DataError, match="no such folder"):
        flow(folder / "loose.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folders of classes"):
        flow(tmp_path / "empty")
    with pytest.raises(DataError, match="no images in this folder"):
        flow(tmp_path / "empty", class_mode=None)
    (folder / "bat").mkdir()
    with pytest.raises(DataError, match="bat: no images for this class"):
        flow(folder)
    with pytest.raises(DataError, match="'cow'"):
        flow(folder, classes=["cat", "cow"])
    with pytest.raises(DataError, match="twice"):
        flow(folder, classes=["cat", "cat"])


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def damaged(folder) -> dict[str, Path]:
    jpeg = (folder / "cat" / "deeper" / "cat_1.jpg").read_bytes()
    content = dict(truncated=jpeg[: len(jpeg) // 2], empty=b"", text=b"not an image at all", bomb=bomb())
    files = {}
    for name, data in content.items():
        files[name] = folder / "cat" / f"{name}.jpg"
        files[name].write_bytes(data)
    return files


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_named(folder, damaged):
    batches = flow(folder, shuffle=False, batch_size=1)
    assert batches.n == 19
    for path in damaged.values():
        index = batches.filepaths.index(str(path))
        with pytest.raises(DataError, match=path.name):
            batches[index]
    assert batches[0][0].shape == (1, 24, 32, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_can_be_skipped(folder, damaged):
    with pytest.warns(UserWarning, match="4 of 19 images are broken and left out: .*bomb.jpg.* and 1 more"):
        batches = flow(folder, on_error="skip", shuffle=False)
    assert batches.n == 15 and len(batches) == 4
    assert sorted(Path(path).name for path, _ in batches.skipped) == [
        "bomb.jpg",
        "empty.jpg",
        "text.jpg",
        "truncated.jpg",
    ]
    assert all(reason for _, reason in batches.skipped)
    assert batches.filenames == [name for name in flow(folder).filenames if Path(name).stem not in damaged]
    assert sum(len(batches[i][0]) for i in range(4)) == 15
    assert flow(folder, classes=["dog", "Ewe"], on_error="skip").skipped == []


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_class_of_broken_files(folder, damaged):
    (folder / "yak").mkdir()
    (folder / "yak" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="all images of the class 'yak' are broken"):
        flow(folder, on_error="skip")
    with pytest.raises(Unsupported, match="'ignore'"):
        flow(folder, on_error="ignore")


def test_a_file_that_vanished(folder):
    batches = flow(folder, shuffle=False)
    os.unlink(batches.filepaths[0])
    with pytest.raises(FileNotFoundError, match="Ewe_0"):
        batches[0]


def test_wrong_arguments(folder):
    for size in (24, (24,), (24, 32, 3)):
        with pytest.raises(ShapeError, match="target_size"):
            flow(folder, target_size=size)
    with pytest.raises(ShapeError, match="target_size"):
        flow(folder, target_size=(0, 32))
    with pytest.raises(Unsupported, match="grayscale"):
        flow(folder, color_mode="grey")
    with pytest.raises(Unsupported, match="bicubic"):
        flow(folder, interpolation="cubic")
    with pytest.raises(DTypeError, match="one-hot"):
        flow(folder, dict(mixup=0.2), class_mode="sparse")
    assert flow(folder, dict(mixup=0.2))[0][1].sum() == pytest.approx(4)


# image_dataset_from_directory


def dataset(folder, **options):
    return image_dataset_from_directory(folder, **dict(dict(image_size=(24, 32), batch_size=4, seed=3), **options))


def test_a_dataset_is_one_epoch(folder):
    data = dataset(folder)
    batches = list(data)
    assert len(batches) == len(data) == 4 and sum(len(x) for x, _ in batches) == 15
    assert data.class_names == ["Ewe", "cat", "dog"]
    again = list(data)
    assert len(again) == 4 and data.epoch == 1
    orders = [np.concatenate([y for _, y in part]) for part in (batches, again)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(data.labels) and (orders[0] != orders[1]).any()
    assert batches[0][0].max() > 1 and batches[0][1].dtype == np.int64


def test_label_modes(folder):
    assert dataset(folder, label_mode="categorical")[0][1].shape == (4, 3)
    binary = dataset(folder, label_mode="binary", class_names=["cat", "dog"])[0][1]
    assert binary.shape == (4, 1) and binary.dtype == np.float32
    assert dataset(folder, label_mode=None).n == 16 and isinstance(dataset(folder, labels=None)[0], np.ndarray)
    with pytest.raises(Unsupported, match="label_mode"):
        dataset(folder, label_mode="sparse")


def test_labels_that_are_given(folder):
    labels = list(range(16))
    data = dataset(folder, labels=labels, shuffle=False, batch_size=16)
    assert data[0][1].tolist() == labels and data.num_classes == 16
    with pytest.raises(ShapeError, match="each of 16 images"):
        dataset(folder, labels=[0, 1])
    with pytest.raises(ShapeError, match="float64"):
        dataset(folder, labels=[0.5] * 16)
    with pytest.raises(DataError, match="-1"):
        dataset(folder, labels=[-1] * 16)
    with pytest.raises(Unsupported, match="'folders'"):
        dataset(folder, labels="folders")


def test_datasets_are_split_by_the_seed(folder):
    both = dataset(folder, validation_split=0.2, subset="both")
    training, validation = (dataset(folder, validation_split=0.2, subset=part) for part in ("training", "validation"))
    assert [part.filenames for part in both] == [training.filenames, validation.filenames]
    assert len(validation.filenames) == 3 and not set(training.filenames) & set(validation.filenames)
    other = dataset(folder, validation_split=0.2, subset="validation", seed=4)
    assert set(other.filenames) != set(validation.filenames)
    last = dataset(folder, validation_split=0.2, subset="validation", shuffle=False, seed=None)
    assert last.filenames == list(list_classes(folder).names[-3:])


def test_splits_that_make_no_sense(folder):
    with pytest.raises(DataError, match="needs a seed"):
        dataset(folder, validation_split=0.2, subset="training", seed=None)
    with pytest.raises(DataError, match="training without 'dog'"):
        dataset(folder, validation_split=0.4, subset="both", shuffle=False)
    with pytest.raises(DataError, match="without images"):
        dataset(folder, validation_split=0.01, subset="both")
    with pytest.raises(Unsupported, match="subset"):
        dataset(folder, validation_split=0.2)
    with pytest.raises(DataError, match="between 0 and 1"):
        dataset(folder, subset="training")


# The real thing


@pytest.mark.skipif(not BIRDS.is_dir(), reason="Debian's tuxpaint-stamps-default is not installed")
def test_stamps():
    batches = ImageDataGenerator(rotation_range=40, zoom_range=0.2, rescale=1 / 255).flow_from_directory(
        BIRDS, (64, 64), classes=["birds", "mammals", "fish"], batch_size=16, seed=0
    )
    assert batches.n > 30
    images, labels = batches[0]
    assert np.isfinite(images).all() and 0.3 < images.mean() < 1 and labels.sum() == 16


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    (x, y), (x_test, y_test) = load_mnist(FASHION)
    assert x.shape == (60000, 28, 28) and x_test.shape == (10000, 28, 28)
    assert (np.bincount(y) == 6000).all() and (np.bincount(y_test) == 1000).all() and y.dtype == np.int64
