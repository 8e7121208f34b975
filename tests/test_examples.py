"""The examples, shortened, and fine-tuning from the command line on a folder of pictures made here."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convkern import cli, load_model
from convkern.errors import DataError, ShapeError
from convkern.models import get_model
from convkern.train import transfer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def examples_find_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clothes(tmp_path, rng):
    """Files as Fashion-MNIST's, of pictures whose class is where they are bright."""
    for part, count in (("train", 640), ("t10k", 100)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels):
            image[2 * label + 2 : 2 * label + 8, 4:24] += 150
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return tmp_path


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--augment"],
        ["--augment", "--model", "normed"],
        ["--torch"],
        ["--model", "lenet5", "--validate"],
    ],
)
def test_fashion_mnist(clothes, extra, tmp_path):
    words = ["--data", str(clothes), "--epochs", "4", "--batch-size", "32", *extra]
    if not extra:
        words += ["--curves", str(tmp_path / "curves.png")]
    assert example("fashion_mnist").main(words) > 0.8
    assert extra or (tmp_path / "curves.png").stat().st_size > 1000


def test_validation_leaves_the_test_images_alone(clothes):
    everything, test = example("fashion_mnist").load(clothes, None, validate=False)
    learn, judge = example("fashion_mnist").load(clothes, None, validate=True)
    assert len(learn[0]) == 586 and len(judge[0]) == 54 and len(test[0]) == 100  # 640 * 11 // 12
    assert np.array_equal(np.concatenate([learn[0], judge[0]]), everything[0])


def test_digits():
    assert example("digits").main(["--epochs", "6"]) >= 0.98


def test_lenet_on_digits():
    assert example("digits").main(["--model", "lenet5", "--epochs", "8"]) >= 0.95


@pytest.mark.parametrize("name, side", [("convnet", 28), ("lenet5", 28), ("lenet5", 32)])
def test_the_twins_of_the_examples_are_twins(name, side, rng):
    """The same weights give the same logits."""
    model = get_model(name, input_shape=(side, side, 1))
    twin = example("beside_torch").twin_of(name, model)
    x = rng.standard_normal((5, side, side, 1)).astype("f4")
    theirs = twin(torch.from_numpy(x).movedim(-1, 1)).detach().numpy()
    assert np.allclose(model(x), theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def pictures(folder, count=8, size=40):
    """Two classes of the same colours: horizontal and vertical stripes."""
    rng = np.random.default_rng(0)
    for name in ("across", "upright"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            stripes = (np.arange(size) // 4 % 2 * 200).astype(np.uint8)
            image = np.tile(stripes, (size, 1)) + rng.integers(0, 40, (size, size)).astype(np.uint8)
            image = np.stack([image if name == "upright" else image.T] * 3, -1)
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def test_finetune_from_the_command_line(tmp_path, capsys):
    folder = pictures(tmp_path / "images")
    weights = tmp_path / "w.safetensors"
    get_model("squeezenet1_1").save_weights(weights)
    words = [
        "finetune",
        str(folder),
        "--model",
        "squeezenet1_1",
        "--weights",
        str(weights),
        "--out",
        str(tmp_path / "o"),
    ]
    words += ["--epochs", "2", "--size", "64", "--batch", "4", "--json", str(tmp_path / "r.json")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "12 images to learn from, 4 to judge by, 2 classes" in out and "fine-tuned:" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["linear"] == 1.0 and report["baseline"] < 1.0  # stripes differ in direction, not in colour
    assert np.array(report["confusion"]).sum() == 4 and set(report["recall"]) == {"across", "upright"}
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == ["confusion.png", "curves.png", "model.ckn", "report.json"]
    model = load_model(tmp_path / "o" / "model.ckn")
    p = model(np.zeros((1, 64, 64, 3), "f4"))
    assert p.shape == (1, 2) and p.sum() == pytest.approx(1, rel=1e-5)


def test_finetune_refuses(tmp_path, capsys):
    folder = pictures(tmp_path / "images", count=2)
    out = tmp_path / "out"
    out.mkdir()
    kept = {out / name: name.encode() for name in ("model.ckn", "report.json", "confusion.png", "curves.png")}
    for path, content in kept.items():
        path.write_bytes(content)  # of an earlier run
    (folder / "upright" / "0.png").unlink()
    assert cli.main(["finetune", str(folder), "--model", "squeezenet1_1", "--weights", "none.pth"]) == 2
    assert "none.pth" in capsys.readouterr().err
    with pytest.raises(DataError, match="'upright' has 1 image"):
        transfer.finetune(folder, "squeezenet1_1", None, out, size=64, verbose=0)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images"):
        transfer.finetune(folder, "squeezenet1_1", None, out, size=64, verbose=0)
    (folder / "empty" / "broken.png").write_bytes(b"no picture")
    shutil.copy(folder / "across" / "0.png", folder / "empty" / "whole.png")
    shutil.copy(folder / "across" / "0.png", folder / "upright" / "0.png")
    with pytest.raises(DataError, match=r"broken\.png"):
        transfer.finetune(folder, "squeezenet1_1", None, out, size=64, verbose=0)
    assert {path: path.read_bytes() for path in out.iterdir()} == kept


def test_finetuning_goes_part_of_the_way(tmp_path):
    """way: from the linear classifier on the network as it was to what the training made of both."""
    folder = pictures(tmp_path / "images", count=4)
    weights = tmp_path / "w.safetensors"
    get_model("squeezenet1_1").save_weights(weights)

    def tuned(**options):
        options = dict(size=64, batch_size=4, verbose=0, say=str, deepest=1.0, **options)
        model = transfer.finetune(folder, "squeezenet1_1", weights, **options)["model"]
        return [param.value for param in model.weights]

    start, half, end = tuned(epochs=0), tuned(epochs=1, way=0.5), tuned(epochs=1, way=1.0)
    moved = sum(not np.array_equal(a, c) for a, c in zip(start, end))
    assert moved > len(start) * 0.9  # the network too
    for a, b, c in zip(start, half, end):
        assert np.allclose(b, (a + c) / 2, rtol=1e-5, atol=1e-7)
    with pytest.raises(ShapeError, match="way=0"):
        tuned(way=0.0)


def test_only_the_deepest_layers_are_tuned(tmp_path):
    """What comes before them, and every norm, stays as it was published."""
    folder = pictures(tmp_path / "images", count=4)
    weights = tmp_path / "w.safetensors"
    get_model("resnet18").save_weights(weights)
    options = dict(size=64, batch_size=4, verbose=0, say=str, epochs=1)
    before = get_model("resnet18", weights=weights, include_top=False).named_params()
    moved = {}
    for share in (0.1, 0.5, 1.0):
        model = transfer.finetune(folder, "resnet18", weights, deepest=share, **options)["model"]
        (backbone,) = (layer for layer in model.layers if layer.name == "resnet18")
        after = backbone.named_params()
        moved[share] = {name for name in before if not np.array_equal(before[name].value, after[name].value)}
    assert moved[0.1] == {"layer4_1_conv1/kernel", "layer4_1_conv2/kernel"}  # of 20 convolutions
    assert moved[0.1] < moved[0.5] < moved[1.0] and len(moved[0.5]) == 10 and len(moved[1.0]) == 20
    with pytest.raises(ShapeError, match="deepest=1.5"):
        transfer.finetune(folder, "resnet18", weights, deepest=1.5, **options)


def test_features_of_arrays_and_batches(tmp_path):
    from convkern.data import image_dataset_from_directory
    from convkern.weights import read_state_dict

    folder = pictures(tmp_path / "images", count=5)
    batches = image_dataset_from_directory(folder, image_size=(64, 64), batch_size=4, shuffle=False)
    model = get_model("squeezenet1_1", include_top=False, pooling="avg", input_shape=(64, 64, 3))
    features, labels = transfer.extract_features(model, batches, path=tmp_path / "f.safetensors", verbose=0)
    assert labels.tolist() == [0] * 5 + [1] * 5
    images = np.concatenate([batches[i][0] for i in range(len(batches))])
    again, none = transfer.extract_features(model, images, batch_size=3, verbose=0)
    assert np.array_equal(features, again) and none is None
    stored = read_state_dict(tmp_path / "f.safetensors")
    assert np.array_equal(stored["features"], features) and np.array_equal(stored["labels"], labels)


def test_bench_training(capsys):
    assert cli.main(["bench", "training", "squeezenet1_1", "--batch", "1", "--seconds", "0.01", "--rounds", "1"]) == 0
    assert "squeezenet1_1, N=1:" in capsys.readouterr().out
