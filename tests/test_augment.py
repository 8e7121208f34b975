"""ImageDataGenerator: each argument does what Keras' does, geometry is sampled once, and wrong arguments are said."""

import math
import threading

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

import tolerance
from convkern.data import ImageDataGenerator, contact_sheet, cutmix, mixup, randaugment, to_categorical, transforms
from convkern.data.sheet import describe
from convkern.errors import DataError, DTypeError, ShapeError, Unsupported


def keras_affine(x, theta=0, tx=0, ty=0, shear=0, zx=1, zy=1, fill="nearest", cval=0.0):
    """What Keras makes of an image with SciPy: (x, y) matrices, about the centre, sampled channel by channel."""
    t, s = np.deg2rad(theta), np.deg2rad(shear)
    m = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    m = m @ [[1, 0, tx], [0, 1, ty], [0, 0, 1]]
    m = m @ [[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]]
    m = m @ np.diag([zx, zy, 1])
    cx, cy = x.shape[1] / 2 - 0.5, x.shape[0] / 2 - 0.5
    m = np.array([[1, 0, cx], [0, 1, cy], [0, 0, 1]]) @ m @ [[1, 0, -cx], [0, 1, -cy], [0, 0, 1]]
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    m = swap @ m @ swap
    channels = [
        ndimage.affine_transform(x[..., k].astype(float), m[:2, :2], m[:2, 2], order=1, mode=fill, cval=cval)
        for k in range(x.shape[2])
    ]
    return np.stack(channels, -1)


LECTURE = dict(
    rotation_range=40,
    width_shift_range=0.2,
    height_shift_range=0.2,
    shear_range=0.2,
    zoom_range=0.2,
    horizontal_flip=True,
    fill_mode="nearest",
)
GEOMETRY = ("theta", "tx", "ty", "shear", "zx", "zy")


# Geometry


@pytest.mark.parametrize("fill", transforms.FILL_MODES)
@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_geometry_is_that_of_keras(fill, size, rng):
    settings = dict(LECTURE, shear_range=20, fill_mode=fill, cval=50.0, vertical_flip=True)
    generator = ImageDataGenerator(**settings)
    flips = set()
    for seed in range(12):
        x = rng.integers(0, 256, (*size, 3), np.uint8)
        p = generator.get_random_transform(x.shape, seed=seed)
        want = keras_affine(x, *(p[name] for name in GEOMETRY), fill=fill, cval=50.0)
        want = want[:, ::-1] if p["flip_horizontal"] else want
        want = want[::-1] if p["flip_vertical"] else want
        flips.add((p["flip_horizontal"], p["flip_vertical"]))
        got = generator.apply_transform(x, p)
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= tolerance.bilinear(255)
        assert (generator.random_transform(x, seed=seed) == got).all()
    assert len(flips) == 4


@pytest.mark.parametrize("name", GEOMETRY)
def test_each_part_alone(name, rng):
    x = rng.integers(0, 256, (15, 20, 1), np.uint8)
    p = {name: {"theta": 21.0, "tx": 2.5, "ty": -3.25, "shear": 12.0, "zx": 1.3, "zy": 0.7}[name]}
    got = ImageDataGenerator().apply_transform(x, p)
    assert np.abs(got - keras_affine(x, **p)).max() <= tolerance.bilinear(255)
    assert (got != x).mean() > 0.5


def test_directions():
    """What a reader of the arguments' names expects: width moves columns, zoom above 1 shrinks."""
    dot = np.zeros((9, 9, 1), np.uint8)
    dot[4, 4] = 255
    show = ImageDataGenerator(fill_mode="constant").apply_transform
    assert np.argwhere(show(dot, {"tx": 2})[..., 0]).tolist() == [[4, 2]]
    assert np.argwhere(show(dot, {"ty": 2})[..., 0]).tolist() == [[2, 4]]
    bar = np.zeros((9, 9, 1), np.uint8)
    bar[4] = 255
    assert (show(bar, {"zx": 2})[4, :, 0] > 0).sum() == 5
    assert show(bar, {"theta": 90})[:, 4, 0].min() > 254
    corner = np.zeros((9, 9, 1), np.uint8)
    corner[4, 8] = 255
    turned = show(corner, {"theta": 90})  # as the map goes from result to source, the picture turns to the left
    assert np.unravel_index(turned.argmax(), (9, 9)) == (0, 4)


def test_one_warp_however_many_transforms(monkeypatch, rng):
    warps, real = [], transforms.warp

    def counted(*arguments, **named):
        if threading.current_thread() is threading.main_thread():  # not the batches that another test had made ahead
            warps.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(transforms, "warp", counted)
    generator = ImageDataGenerator(
        **LECTURE, random_resized_crop=True, rand_augment=(8, 9), brightness_range=(0.5, 1.5)
    )
    x = rng.integers(0, 256, (24, 24, 3), np.uint8)
    for seed in range(5):
        warps.clear()
        generator.random_transform(x, seed=seed)
        assert len(warps) == 1
    warps.clear()
    ImageDataGenerator(horizontal_flip=True, vertical_flip=True, channel_shift_range=9).random_transform(x, seed=0)
    assert not warps


def test_flips_are_exact(rng):
    x = rng.normal(size=(5, 6, 2)).astype(np.float32)
    show = ImageDataGenerator().apply_transform
    assert (show(x, {"flip_horizontal": True}) == x[:, ::-1]).all()
    assert (show(x, {"flip_vertical": True}) == x[::-1]).all()
    assert (show(x, {"flip_vertical": True, "flip_horizontal": True}) == x[::-1, ::-1]).all()


def test_nearest_pixels(rng):
    x = rng.integers(0, 256, (12, 12, 3), np.uint8)
    got = ImageDataGenerator(interpolation_order=0).apply_transform(x, {"theta": 30, "zx": 1.4})
    assert set(got.ravel().astype(int)) <= set(x.ravel().tolist()) and (got == got.astype(int)).all()


def test_crops_show_a_part(rng):
    x = rng.integers(0, 256, (16, 16, 3), np.uint8)
    got = ImageDataGenerator().apply_transform(x, {"crop": (4, 8, 8, 8)})
    assert got.shape == x.shape
    inner = ndimage.map_coordinates(
        x[..., 0].astype(float), np.mgrid[0:16, 0:16] / 2 - 0.25 + [[[4]], [[8]]], order=1, mode="nearest"
    )
    assert np.abs(got[..., 0] - inner).max() <= tolerance.bilinear(255)


def test_crop_boxes():
    boxes = []
    for seed in range(400):
        top, left, h, w = transforms.crop_box(60, 90, (0.2, 0.5), (0.5, 2.0), np.random.default_rng(seed))
        assert 0 <= top and 0 <= left and top + h <= 60 and left + w <= 90
        assert 0.19 < h * w / 5400 < 0.52 and 0.48 < w / h < 2.1
        boxes.append((top, left, h, w))
    tops, lefts = [b[0] / max(1, 60 - b[2]) for b in boxes], [b[1] / max(1, 90 - b[3]) for b in boxes]
    for places in (tops, lefts):
        assert abs(np.mean(places) - 0.5) < 0.06 and min(places) < 0.05 and max(places) > 0.95
    assert transforms.crop_box(1, 1000, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0)) == (0, 499, 1, 1)


# What is drawn


def drawn(n=400, shape=(10, 20, 3), **arguments):
    generator = ImageDataGenerator(**arguments)
    return [generator.get_random_transform(shape, seed=seed) for seed in range(n)]


@pytest.mark.parametrize(
    ("arguments", "name", "low", "high"),
    [
        (dict(rotation_range=40), "theta", -40, 40),
        (dict(shear_range=0.3), "shear", -0.3, 0.3),
        (dict(width_shift_range=0.2), "tx", -4, 4),
        (dict(height_shift_range=0.2), "ty", -2, 2),
        (dict(width_shift_range=3.0), "tx", -3, 3),
        (dict(zoom_range=0.2), "zx", 0.8, 1.2),
        (dict(zoom_range=[0.5, 2.0]), "zy", 0.5, 2.0),
        (dict(channel_shift_range=30), "channel_shift_intensity", -30, 30),
        (dict(brightness_range=(0.5, 1.5)), "brightness", 0.5, 1.5),
    ],
)
def test_ranges_are_uniform(arguments, name, low, high):
    shares = (np.array([p[name] for p in drawn(**arguments)]) - low) / (high - low)
    assert shares.min() >= 0 and shares.max() <= 1
    counts = np.histogram(shares, 4, (0, 1))[0]
    assert (np.abs(counts - 100) < 45).all()  # five standard deviations


def test_shifts_of_whole_pixels_and_of_choices():
    assert {p["tx"] for p in drawn(width_shift_range=3)} == {-2, -1, 0, 1, 2}
    assert {p["ty"] for p in drawn(height_shift_range=[1, 5])} == {-5, -1, 1, 5}
    assert {p["tx"] for p in drawn(width_shift_range=[0.1, 0.5])} == {-10, -2, 2, 10}
    assert {p["tx"] for p in drawn(width_shift_range=1)} == {0}


def test_half_of_the_images_are_flipped():
    flips = np.array(
        [(p["flip_horizontal"], p["flip_vertical"]) for p in drawn(horizontal_flip=True, vertical_flip=True)]
    )
    assert (np.abs(flips.mean(0) - 0.5) < 0.12).all() and abs(np.corrcoef(flips.T)[0, 1]) < 0.25


def test_one_argument_does_not_shift_another():
    every = dict(
        LECTURE, brightness_range=(0.5, 1.5), channel_shift_range=20, rand_augment=(3, 9), random_resized_crop=True
    )
    together = drawn(20, **every)
    for name, key in (("rotation_range", "theta"), ("zoom_range", "zy"), ("brightness_range", "brightness")):
        assert [p[key] for p in drawn(20, **{name: every[name]})] == [p[key] for p in together]
    assert [p["crop"] for p in drawn(20, random_resized_crop=True)] == [p["crop"] for p in together]
    assert [p["rand_augment"] for p in drawn(20, rand_augment=(3, 9))] == [p["rand_augment"] for p in together]


def test_nothing_asked_for_does_nothing(rng):
    x = rng.integers(0, 256, (6, 7, 3), np.uint8)
    generator = ImageDataGenerator()
    assert not generator.random and not generator.per_image
    assert (generator.random_transform(x, seed=3) == x).all()


# Colours


def test_channel_shift_stays_in_the_images_range(rng):
    x = rng.uniform(20, 200, (6, 6, 3)).astype(np.float32)
    got = ImageDataGenerator().apply_transform(x, {"channel_shift_intensity": 15.5})
    assert (got == np.clip(x + np.float32(15.5), x.min(), x.max())).all()


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_brightness_is_pillows_but_for_rounding(factor, rng):
    x = rng.integers(0, 256, (8, 8, 3), np.uint8)
    want = np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(factor))
    got = ImageDataGenerator().apply_transform(x, {"brightness": factor})
    assert (np.abs(got - want) <= 1).all()


def test_brightness_of_other_ranges(rng):
    x = rng.uniform(-3, 5, (8, 8, 3)).astype(np.float32)
    got = ImageDataGenerator().apply_transform(x, {"brightness": 0.5})
    assert np.allclose(got, x.min() + (x - x.min()) / 2, atol=1e-5)


# RandAugment


def test_rand_augment_draws_every_operation():
    names = [name for p in drawn(500, rand_augment=(2, 9)) for name, _ in p["rand_augment"]]
    counts = [names.count(name) for name in randaugment.OPERATIONS]
    assert len(randaugment.OPERATIONS) == 14 and sum(counts) == 1000 and min(counts) > 35 and max(counts) < 115


def test_rand_augment_strengths():
    strong = {name: value for p in drawn(300, rand_augment=(2, 30)) for name, value in p["rand_augment"]}
    assert abs(strong["rotate"]) == 30 and abs(strong["shear_x"]) == 0.3 and strong["solarize"] == 0
    assert strong["posterize"] == 4 and abs(strong["color"]) == 0.9
    none = {name: value for p in drawn(300, rand_augment=(2, 0)) for name, value in p["rand_augment"]}
    assert none["rotate"] == 0 and none["solarize"] == 255 and none["posterize"] == 8


@pytest.mark.parametrize(
    ("operation", "want"),
    [
        (("solarize", 128.0), lambda im: ImageOps.solarize(im, 128)),
        (("posterize", 4), lambda im: ImageOps.posterize(im, 4)),
        (("autocontrast", 0.0), ImageOps.autocontrast),
        (("equalize", 0.0), ImageOps.equalize),
        (("color", 0.5), lambda im: ImageEnhance.Color(im).enhance(1.5)),
        (("contrast", -0.3), lambda im: ImageEnhance.Contrast(im).enhance(0.7)),
        (("sharpness", 0.9), lambda im: ImageEnhance.Sharpness(im).enhance(1.9)),
        (("brightness", -0.5), lambda im: ImageEnhance.Brightness(im).enhance(0.5)),
        (("identity", 0.0), lambda im: im),
    ],
)
def test_rand_augments_colours(operation, want, rng):
    x = rng.integers(30, 200, (9, 9, 3), np.uint8)
    show = ImageDataGenerator(rand_augment=(1, 9)).apply_transform
    assert (show(x, {"rand_augment": [operation]}) == np.asarray(want(Image.fromarray(x)))).all()
    grey = show(x[..., :1], {"rand_augment": [operation]})
    if operation[0] != "color":
        assert (grey[..., 0] == np.asarray(want(Image.fromarray(x[..., 0])))).all()
    alpha = np.concatenate([x, x[..., :1]], 2)
    assert (show(alpha, {"rand_augment": [operation]})[..., 3] == x[..., 0]).all()


def test_rand_augments_geometry():
    dot = np.zeros((11, 11, 1), np.uint8)
    dot[5, 8] = 255
    show = ImageDataGenerator(rand_augment=(1, 9), fill_mode="constant").apply_transform

    def place(*operations):
        return np.unravel_index(show(dot, {"rand_augment": operations}).argmax(), (11, 11))

    assert place(("translate_x", 2 / 11)) == (5, 6) and place(("translate_y", 1 / 11)) == (4, 8)
    assert place(("rotate", 90.0)) == (2, 5) and place(("shear_y", 1.0)) == (2, 8)
    assert place(("translate_x", 3 / 11), ("rotate", 90.0)) == (5, 5)  # first to the centre, then turned about it
    assert place(("rotate", 90.0), ("translate_x", 3 / 11)) == (2, 2)


def test_rand_augment_comes_after_kerass_geometry():
    dot = np.zeros((11, 11, 1), np.uint8)
    dot[5, 8] = 255
    show = ImageDataGenerator(rand_augment=(1, 9), fill_mode="constant").apply_transform
    made = show(dot, {"tx": 3, "rand_augment": [("rotate", 90.0)]})  # to the centre, then turned about it
    assert np.unravel_index(made.argmax(), (11, 11)) == (5, 5)


def test_every_purpose_has_numbers_of_its_own():
    purposes = (transforms.GEOMETRY, transforms.MIX, transforms.SHUFFLE, transforms.SPLIT)
    streams = [
        transforms.random_at(5, *at, purpose).random(4) for purpose in purposes for at in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({number for stream in streams for number in stream}) == 48


# Normalisation


def test_standardize_in_keras_order(rng):
    x = rng.uniform(0, 255, (4, 5, 3)).astype(np.float32)
    before = x.copy()
    generator = ImageDataGenerator(
        preprocessing_function=lambda image: image[..., ::-1],
        rescale=1 / 255,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
        samplewise_std_normalization=True,
    )
    got = generator.standardize(x)
    want = (x[..., ::-1].astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    want = (want - want.mean()) / (want.std() + 1e-6)
    assert np.abs(got - want).max() < 1e-5 and (x == before).all() and got.dtype == np.float32
    assert abs(got.mean()) < 1e-5 and abs(got.std() - 1) < 1e-5
    batch = generator.standardize(np.stack([x, x / 2]))
    assert (batch[0] == got).all() and batch.shape == (2, 4, 5, 3)


def test_featurewise(rng):
    x = rng.integers(0, 256, (40, 6, 6, 3), np.uint8)
    generator = ImageDataGenerator(featurewise_std_normalization=True, rescale=1 / 255)
    with pytest.raises(DataError, match="need fit"):
        generator.standardize(x)
    assert generator.fit(x) is generator
    values = x / 255
    assert np.allclose(generator.mean, values.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(generator.std, values.std((0, 1, 2)), atol=1e-6)
    made = generator.standardize(x)
    assert np.abs(made.mean((0, 1, 2))).max() < 1e-5 and np.abs(made.std((0, 1, 2)) - 1).max() < 1e-4


def test_zca_whitening_takes_correlations_away(rng):
    x = rng.normal(size=(300, 3, 3, 2)).astype(np.float32)
    x[..., 1] += x[..., 0]
    generator = ImageDataGenerator(zca_whitening=True).fit(x)
    flat = generator.standardize(x).reshape(300, -1)
    assert np.abs(np.cov(x.reshape(300, -1).T) - np.eye(18)).max() > 0.5
    assert np.abs(flat.T @ flat / 300 - np.eye(18)).max() < 1e-3
    batch = generator.flow(x, batch_size=300, shuffle=False, workers=0)[0]
    assert (batch.reshape(300, -1) == flat).all()
    with pytest.raises(ShapeError, match="18"):
        generator.standardize(x[:, :2])


def test_fit_on_augmented_images(rng):
    x = rng.integers(0, 256, (10, 8, 8, 1), np.uint8)
    fitted = [
        ImageDataGenerator(featurewise_center=True, brightness_range=(0.5, 0.5))
        .fit(x, augment=True, rounds=2, seed=s)
        .mean
        for s in (0, 0)
    ]
    assert fitted[0] == fitted[1] and np.allclose(fitted[0], x.mean() / 2, rtol=1e-5)
    with pytest.raises(DataError, match="no images"):
        ImageDataGenerator(featurewise_center=True).fit(x[:0])


def test_channels_first_is_the_same_transposed(rng):
    x = rng.integers(0, 256, (6, 8, 9, 3), np.uint8)
    options = dict(LECTURE, rescale=1 / 255, featurewise_center=True)
    last = ImageDataGenerator(**options).fit(x)
    first = ImageDataGenerator(**options, data_format="channels_first").fit(x.transpose(0, 3, 1, 2))
    a = last.flow(x, seed=5, batch_size=6)
    b = first.flow(x.transpose(0, 3, 1, 2), seed=5, batch_size=6)
    assert a.image_shape == (8, 9, 3) and b.image_shape == (3, 8, 9)
    assert (a[0] == b[0].transpose(0, 2, 3, 1)).all()
    assert (last.standardize(x[0]) == first.standardize(x[0].transpose(2, 0, 1)).transpose(1, 2, 0)).all()
    p = last.get_random_transform((8, 9, 3), seed=1)
    assert p == first.get_random_transform((3, 8, 9), seed=1)
    assert (last.apply_transform(x[0], p) == first.apply_transform(x[0].transpose(2, 0, 1), p).transpose(1, 2, 0)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype(dtype, rng):
    x = rng.integers(0, 256, (4, 5, 5, 1), np.uint8)
    batch = ImageDataGenerator(rescale=1 / 255, dtype=dtype).flow(x, shuffle=False)[0]
    assert batch.dtype == dtype and (batch == (x * np.float32(1 / 255)).astype(dtype)).all()


# Batches


def test_mixup_mixes_images_as_labels(rng):
    y = to_categorical(np.arange(6))
    x = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) * np.ones((1, 4, 4, 2), np.float32)
    made, labels = mixup(x, y, 0.4, rng)
    assert np.allclose(made, (labels @ np.arange(6)).reshape(6, 1, 1, 1), atol=1e-5) and np.allclose(labels.sum(1), 1)
    assert ((labels > 0).sum(1) == 2).sum() >= 3 and made.dtype == labels.dtype == np.float32
    assert (x[3] == 3).all()


def test_cutmix_labels_are_the_shares_of_the_area(rng):
    y = to_categorical(np.arange(8))
    x = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((1, 16, 12, 1), np.float32)
    made, labels = cutmix(x, y, 1.0, rng)
    for image, label in zip(made, labels):
        assert np.allclose([(image == k).mean() for k in range(8)], label, atol=1e-6)
    assert ((labels > 0).sum(1) == 2).sum() >= 4 and (x[3] == 3).all()
    own = labels[np.arange(8), np.arange(8)]
    assert 0 < own.min() < own.max() < 1 or (own == 1).any()


def test_mixing_needs_one_hot_labels(rng):
    x = rng.normal(size=(4, 3, 3, 1)).astype(np.float32)
    for mix in (mixup, cutmix):
        for labels in (np.arange(4), np.eye(4, dtype=int)):
            with pytest.raises(DTypeError, match="one-hot"):
                mix(x, labels, 1.0, rng)
        with pytest.raises(ShapeError, match="4 images and 3"):
            mix(x, np.eye(3), 1.0, rng)
        for alpha in (0, -1, math.nan):
            with pytest.raises(DataError, match="alpha"):
                mix(x, np.eye(4), alpha, rng)
    for name in ("mixup", "cutmix"):
        generator = ImageDataGenerator(**{name: 0.2})
        with pytest.raises(DTypeError, match="one-hot"):
            generator.flow(x, np.arange(4))
        with pytest.raises(DTypeError, match="one-hot"):
            generator.flow(x)
        with pytest.raises(Unsupported, match="sample_weight"):
            generator.flow(x, np.eye(4), sample_weight=np.ones(4))


def test_to_categorical():
    assert (to_categorical([1, 0, 3], 5) == np.eye(5)[[1, 0, 3]]).all()
    assert to_categorical(np.zeros((2, 3), np.uint8)).shape == (2, 3, 1) and to_categorical([0]).dtype == np.float32
    for labels in ([-1, 0], [3]):
        with pytest.raises(DataError, match=r"want 0\.\.2"):
            to_categorical(labels, 3)
    with pytest.raises(DTypeError, match="float64"):
        to_categorical([0.5])


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(rotation_range=-1), DataError, "rotation_range=-1"),
        (dict(rotation_range=math.nan), DataError, "rotation_range"),
        (dict(width_shift_range=-0.1), DataError, "width_shift_range"),
        (dict(width_shift_range="wide"), DTypeError, "width_shift_range"),
        (dict(height_shift_range=[]), DataError, "height_shift_range"),
        (dict(height_shift_range=True), DTypeError, "height_shift_range"),
        (dict(shear_range="much"), DTypeError, "shear_range"),
        (dict(zoom_range=1.0), DataError, "below 1"),
        (dict(zoom_range=(0.0, 1.0)), DataError, "zoom_range"),
        (dict(zoom_range=(1.2, 0.8)), DataError, r"zoom_range=\(1.2, 0.8\)"),
        (dict(zoom_range=(1, 2, 3)), DTypeError, "two numbers"),
        (dict(channel_shift_range=-3), DataError, "channel_shift_range"),
        (dict(brightness_range=0.5), DTypeError, "two numbers"),
        (dict(brightness_range=(-1, 1)), DataError, "brightness_range"),
        (dict(fill_mode="mirror"), Unsupported, "nearest"),
        (dict(data_format="NCHW"), Unsupported, "channels_last"),
        (dict(validation_split=1.0), DataError, "validation_split"),
        (dict(interpolation_order=3), Unsupported, "interpolation_order"),
        (dict(dtype="int8"), DTypeError, "int8"),
        (dict(random_resized_crop=(0, 1)), DataError, "random_resized_crop"),
        (dict(random_resized_crop=(0.5, 1.5)), DataError, "random_resized_crop"),
        (dict(crop_ratio=(0, 1)), DataError, "crop_ratio"),
        (dict(rand_augment=9), DTypeError, "rand_augment"),
        (dict(rand_augment=(0, 9)), DataError, "1 to 8"),
        (dict(rand_augment=(2, 31)), DataError, "0 to 30"),
        (dict(mixup=-1), DataError, "mixup"),
        (dict(mean=[[1]]), ShapeError, "mean"),
        (dict(std=[1, 0, 1]), DataError, "std"),
        (dict(zca_whitening=True, featurewise_std_normalization=True), Unsupported, "zca"),
        (dict(preprocessing_function=3), DTypeError, "function"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        ImageDataGenerator(**arguments)


def test_wrong_images(rng):
    generator = ImageDataGenerator()
    for shape in ((4, 4, 3), (2, 4, 4), (2, 0, 4, 3), (2, 4, 4, 3, 1)):
        with pytest.raises(ShapeError, match="want"):
            generator.flow(np.zeros(shape, np.float32))
    for dtype in (np.float64, np.int32, bool):
        with pytest.raises(DTypeError, match=np.dtype(dtype).name):
            generator.flow(np.zeros((2, 4, 4, 3), dtype))
    with pytest.raises(DTypeError, match="list"):
        generator.flow([[1, 2]])
    with pytest.raises(DTypeError, match="uint8"):
        ImageDataGenerator(rand_augment=(2, 9)).flow(np.zeros((2, 4, 4, 3), np.float32))
    x = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ShapeError, match="2 numbers for images of 3"):
        ImageDataGenerator(mean=(1, 2)).flow(x, workers=0)[0]
    with pytest.raises(ShapeError, match="preprocessing_function"):
        ImageDataGenerator(preprocessing_function=lambda image: image[:2]).flow(x)[0]
    with pytest.raises(ShapeError, match="one image"):
        generator.get_random_transform((4, 4))
    for seed in (-1, 2**63):
        with pytest.raises(DataError, match="seed"):
            generator.flow(x, seed=seed)
    with pytest.raises(DTypeError, match="seed"):
        generator.flow(x, seed=1.5)


# Looking at it


def test_to_pixels():
    x = np.array([[[0.0], [0.5], [1.0]]], np.float32)
    assert transforms.to_pixels(x).ravel().tolist() == [0, 128, 255]
    assert transforms.to_pixels(x * 200).ravel().tolist() == [0, 100, 200]
    assert transforms.to_pixels(x * 4 - 2).ravel().tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="NaN"):
        transforms.to_pixels(x * np.nan)


def test_contact_sheet_shows_every_image_in_order(rng):
    colours = rng.integers(0, 200, (5, 3), np.uint8)
    images = [np.full((20 + k, 30, 3), colour, np.uint8) for k, colour in enumerate(colours)]
    sheet = contact_sheet(images, [f"image {k}, which has a long name" for k in range(5)], columns=2)
    centres = [
        sheet[8 + 12 + row * ((sheet.shape[0] - 8) // 3), 8 + 15 + column * 38]
        for row in range(3)
        for column in range(2)
    ]
    assert (np.array(centres[:5]) == colours).all() and (centres[5] == 255).all()
    without = contact_sheet(images, columns=2)
    assert without.shape[1] == sheet.shape[1] and without.shape[0] < sheet.shape[0]


def test_contact_sheets_of_other_images(rng):
    transparent = np.zeros((8, 8, 4), np.uint8)
    sheet = contact_sheet([np.ones((8, 8, 1), np.float32), transparent])
    assert sheet.shape == (24, 40, 3) and (sheet[9:15, 9:15] == 255).all() and (sheet[9:15, 26:30] == 255).all()
    with pytest.raises(DataError, match="no images"):
        contact_sheet([])
    with pytest.raises(ShapeError, match="1 labels for 2"):
        contact_sheet([transparent] * 2, ["a"])
    with pytest.raises(ShapeError, match=r"\(8, 8\)"):
        contact_sheet([transparent[..., 0]])


def test_descriptions_name_what_was_drawn():
    every = drawn(
        1, **LECTURE, vertical_flip=True, brightness_range=(0.5, 1.5), channel_shift_range=9, rand_augment=(2, 9)
    )
    text = describe(every[0])
    for word in ("rotate", "shift", "shear", "zoom", "brightness", "colours", every[0]["rand_augment"][0][0]):
        assert word in text
    assert describe({}) == ""
