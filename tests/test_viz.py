"""Pictures: they show what they are given, they are complete files or none, and wrong input is said."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convkern import Input, Model, atomic, layers, ops, viz
from convkern.errors import DataError, DTypeError, ShapeError, Unsupported


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture - wanted) <= tolerance).all(-1)


# Curves


def test_curves_show_training_and_validation(tmp_path):
    history = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 2.5, 2.4], "accuracy": [0.1, 0.5, 0.9]}
    viz.curves(history, tmp_path / "curves.png", title="run 1")
    both = pixels(tmp_path / "curves.png")
    half = both.shape[1] // 2
    assert near(both, viz.TRAIN)[:, :half].sum() > 100 and near(both, viz.TRAIN)[:, half:].sum() > 100
    assert near(both, viz.VALIDATION)[:, :half].sum() > 100 and near(both, viz.VALIDATION)[:, half:].sum() == 0


def test_a_falling_loss_falls(tmp_path):
    viz.curves(SimpleNamespace(history={"loss": list(range(40, 0, -1))}), tmp_path / "curves.png")
    rows, columns = np.nonzero(near(pixels(tmp_path / "curves.png"), viz.TRAIN))
    assert np.corrcoef(rows, columns)[0, 1] > 0.99  # further right, further down


def test_curves_with_gaps_one_epoch_and_validation_alone(tmp_path):
    for history in ({"loss": [1.0]}, {"loss": [1.0, float("nan"), float("inf"), 2.0]}, {"val_f1": [0.1, 0.2]}):
        viz.curves(history, tmp_path / "curves.png")
        assert (
            near(pixels(tmp_path / "curves.png"), viz.TRAIN) | near(pixels(tmp_path / "curves.png"), viz.VALIDATION)
        ).any()


def test_wrong_histories(tmp_path):
    path = tmp_path / "curves.png"
    for history in ({}, {"loss": []}):
        with pytest.raises(DataError, match="no epochs"):
            viz.curves(history, path)
    with pytest.raises(DTypeError, match="list"):
        viz.curves([1, 2], path)
    with pytest.raises(DTypeError, match="'loss'"):
        viz.curves({"loss": ["low", "lower"]}, path)
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        viz.curves({"loss": [[1, 2]]}, path)
    assert not path.exists()


# Confusion matrices


def test_confusion_matrix_is_dark_where_the_counts_are(tmp_path):
    counts = np.diag([50, 50, 50, 50])
    viz.confusion_matrix(counts, None, tmp_path / "right.png")
    viz.confusion_matrix(counts[:, ::-1], list("abcd"), tmp_path / "wrong.png", title="wrong")
    dark = near(pixels(tmp_path / "right.png"), "#08306b")
    dark[:, int(dark.shape[1] * 0.78) :] = False  # the colour bar
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.9
    dark = near(pixels(tmp_path / "wrong.png"), "#08306b")
    dark[:, int(dark.shape[1] * 0.78) :] = False
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] < -0.9


@pytest.mark.parametrize("n", [1, 31, 120])
def test_confusion_matrices_of_any_size(n, tmp_path, rng):
    viz.confusion_matrix(
        rng.integers(0, 9, (n, n)), [f"class {i}" for i in range(n)], tmp_path / "m.png", normalize=False
    )
    assert pixels(tmp_path / "m.png").shape[0] < 2500
    viz.confusion_matrix(np.zeros((n, n), int), None, tmp_path / "m.png")


def test_wrong_matrices(tmp_path):
    path = tmp_path / "m.png"
    for shape in ((2, 3), (4,), (0, 0)):
        with pytest.raises(ShapeError, match="classes, classes"):
            viz.confusion_matrix(np.ones(shape), None, path)
    with pytest.raises(ShapeError, match="3 labels for 2"):
        viz.confusion_matrix(np.ones((2, 2)), "abc", path)
    with pytest.raises(DataError, match="negative"):
        viz.confusion_matrix([[1, -1], [0, 1]], None, path)
    with pytest.raises(DTypeError):
        viz.confusion_matrix([["a"]], None, path)
    assert not path.exists()


# Convolution arithmetic


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "extra", "transposed"),
    [
        ((5, 5), (3, 3), (1, 1), (0, 0), (1, 1), (0, 0), False),
        ((5, 6), (3, 2), (2, 1), (1, 0), (1, 1), (0, 0), False),
        ((7, 7), (3, 3), (1, 2), (2, 1), (2, 3), (0, 0), False),
        ((6, 6), (3, 3), (2, 2), (1, 1), (1, 1), (0, 0), False),
        ((2, 3), (3, 3), (2, 2), (0, 0), (1, 1), (0, 0), True),
        ((3, 2), (3, 4), (2, 3), (1, 2), (1, 1), (1, 2), True),
        ((4, 4), (2, 2), (1, 1), (1, 1), (1, 1), (0, 0), True),
        ((4, 4), (1, 3), (2, 2), (1, 0), (1, 2), (1, 0), True),
    ],
)
def test_the_window_covers_the_inputs_that_count(size, kernel, stride, padding, dilation, extra, transposed):
    """Drawn is what the operator does: an input is under the window if and only if it changes the output."""
    walk = viz.Walk(size, kernel, stride, padding, dilation, extra, transposed)
    ones = np.ones((1, 1, *kernel), np.float32)
    for at in np.ndindex(*size):
        x = np.zeros((1, 1, *size), np.float32)
        x[(0, 0, *at)] = 1
        if transposed:
            y = ops.conv_transpose2d(x, ones, None, stride, padding, extra, 1, dilation)
        else:
            y = ops.conv2d(x, ones, None, stride, padding, dilation)
        assert y.shape[2:] == walk.out
        for out in np.ndindex(*walk.out):
            sources = [walk.source(*place) for place in walk.window(*out)]
            assert sources.count(at) == y[(0, 0, *out)]
    rows, columns = walk.canvas
    assert sum(walk.source(y, x) is not None for y in rows for x in columns) == size[0] * size[1]


def test_a_panel_for_each_output(tmp_path):
    viz.convolution_arithmetic(tmp_path / "a.png", size=5, kernel=3, stride=2, padding=1)
    picture = pixels(tmp_path / "a.png")
    nine = near(picture, viz.INPUT, 3).sum()
    viz.convolution_arithmetic(tmp_path / "a.png", size=5, kernel=3, stride=2, padding=1, positions=[(1, 1)], title="")
    assert near(pixels(tmp_path / "a.png"), viz.INPUT, 3).sum() * 7 < nine
    assert near(picture, viz.OUTPUT, 3).sum() > 5000


def test_pictures_that_cannot_be_drawn(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ShapeError, match=r"\(0, 0\)"):
        viz.convolution_arithmetic(path, size=2, kernel=3)
    with pytest.raises(ShapeError, match="121 panels"):
        viz.convolution_arithmetic(path, size=13, kernel=3)
    with pytest.raises(ShapeError, match="position"):
        viz.convolution_arithmetic(path, size=5, positions=[(3, 0)])
    with pytest.raises(Unsupported, match="output_padding"):
        viz.convolution_arithmetic(path, output_padding=1)
    with pytest.raises(ShapeError, match="stride"):
        viz.convolution_arithmetic(path, stride=0)
    assert not path.exists()


# Filters and feature maps


def test_filters_in_colour(tmp_path):
    w = np.zeros((2, 2, 3, 4), np.float32)
    for k in range(3):
        w[0, :, k, k] = 1  # red, green and blue above, black below; the last one is flat
    viz.filters(w, tmp_path / "f.png", columns=4)
    picture = pixels(tmp_path / "f.png")
    shares = [near(picture, colour, 3).mean() for colour in ("#ff0000", "#00ff00", "#0000ff")]
    assert min(shares) > 0.05 and max(shares) < 1.1 * min(shares)
    places = [np.nonzero(near(picture, colour, 3))[1].mean() for colour in ("#ff0000", "#00ff00", "#0000ff")]
    assert places == sorted(places)


def test_filters_by_channel_are_signed(tmp_path):
    w = np.zeros((1, 1, 2, 2), np.float32)
    w[0, 0, 0, 0], w[0, 0, 1, 1] = 2, -2
    viz.filters(w, tmp_path / "f.png")
    picture = pixels(tmp_path / "f.png")
    h, width = picture.shape[:2]
    red, blue = near(picture, "#67001f", 3), near(picture, "#053061", 3)
    assert red[: h // 2, : width // 2].sum() == red.sum() > 1000
    assert blue[h // 2 :, width // 2 :].sum() == blue.sum() > 1000


def test_filters_of_a_layer_and_its_maps(tmp_path):
    image = Input((8, 8, 1))
    y = layers.Conv2D(5, 3, name="conv")(image)
    model = Model(image, y)
    viz.filters(model.get_layer("conv"), tmp_path / "f.png", title="conv")
    viz.feature_maps(model(np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype("f4")), tmp_path / "m.png")
    assert pixels(tmp_path / "m.png").std() > 30 and pixels(tmp_path / "f.png").std() > 30


def test_maps_are_stretched_each(tmp_path):
    maps = np.zeros((4, 4, 2), np.float32)
    maps[0, 0] = [1, 1000]
    viz.feature_maps(maps, tmp_path / "m.png", columns=2)
    assert near(pixels(tmp_path / "m.png"), "#fde725", 3).sum() > 2000


def test_tiles_that_cannot_be_drawn(tmp_path):
    path = tmp_path / "f.png"
    with pytest.raises(ShapeError, match=r"\(R, S, C, K\)"):
        viz.filters(np.ones((3, 3)), path)
    with pytest.raises(ShapeError, match="1025 tiles"):
        viz.filters(np.ones((1, 1, 1, 1025)), path)
    with pytest.raises(ShapeError, match="one image"):
        viz.feature_maps(np.ones((2, 3, 3, 4)), path)
    with pytest.raises(DataError, match="NaN"):
        viz.feature_maps(np.full((3, 3, 4), np.nan), path)
    with pytest.raises(DTypeError, match="bool"):
        viz.feature_maps(np.ones((3, 3, 4), bool), path)
    with pytest.raises(ShapeError, match="columns=-1"):
        viz.feature_maps(np.ones((3, 3, 4)), path, columns=-1)
    assert not path.exists()


# Files


def test_a_failure_keeps_the_old_picture_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    viz.curves({"loss": [1, 2]}, path)
    before = path.read_bytes()

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(path, fail)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        viz.curves({"loss": [1]}, tmp_path / "no" / "curves.png")
    with pytest.raises(Unsupported, match=r"\.png"):
        viz.curves({"loss": [1]}, tmp_path / "curves.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        viz.curves({"loss": [1]}, tmp_path / "folder.png")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"convkern\[plot\]"):
        viz.curves({"loss": [1]}, tmp_path / "curves.png")
