"""Pictures: they show what they are given, they are complete files or none, and wrong input is said."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convkern import atomic, viz
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
