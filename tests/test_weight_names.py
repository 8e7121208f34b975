"""Torch's tensors in our layers: the same names, the same shapes, and the same outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convkern import Input, Model
from convkern.errors import WeightsError
from convkern.layers import (
    BatchNormalization,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    LayerNormalization,
    SeparableConv2D,
)
from convkern.weights import load_state_dict, read_state_dict, state_dict, write_safetensors

# One layer of ours beside torch's: (layer, torch module, image shape).
PAIRS = {
    "conv": (Conv2D(6, (3, 2), torch_name="m"), nn.Conv2d(4, 6, (3, 2)), (7, 8, 4)),
    "grouped": (Conv2D(6, 3, groups=2, torch_name="m"), nn.Conv2d(4, 6, 3, groups=2), (7, 8, 4)),
    "conv1d": (Conv1D(5, 3, torch_name="m"), nn.Conv1d(4, 5, 3), (9, 4)),
    "conv3d": (Conv3D(5, (1, 2, 3), torch_name="m"), nn.Conv3d(4, 5, (1, 2, 3)), (4, 5, 6, 4)),
    "depthwise": (DepthwiseConv2D((3, 2), torch_name="m"), nn.Conv2d(4, 4, (3, 2), groups=4), (7, 8, 4)),
    "multiplied": (DepthwiseConv2D(3, depth_multiplier=3, torch_name="m"), nn.Conv2d(4, 12, 3, groups=4), (7, 8, 4)),
    "transposed": (
        Conv2DTranspose(6, (3, 2), strides=2, torch_name="m"),
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2),
        (5, 4, 4),
    ),
    "dense": (Dense(6, torch_name="m"), nn.Linear(4, 6), (4,)),
    "batch norm": (BatchNormalization(epsilon=1e-5, torch_name="m"), nn.BatchNorm2d(4), (3, 2, 4)),
    "layer norm": (LayerNormalization(epsilon=1e-5, torch_name="m"), nn.LayerNorm(4), (4,)),
}


def torch_tensors(module: nn.Module, prefix: str = "m.") -> dict[str, np.ndarray]:
    return {prefix + name: tensor.numpy() for name, tensor in module.state_dict().items()}


def filled(module: nn.Module, seed: int = 3) -> nn.Module:
    """Running means and variances away from 0 and 1, too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.25)
    return module.eval()


@pytest.mark.parametrize("kind", PAIRS)
def test_layer_gives_what_torch_gives(kind: str, rng: np.random.Generator) -> None:
    layer, module, shape = PAIRS[kind]
    filled(module)
    image = Input(shape)
    model = Model(image, layer(image))
    tensors = torch_tensors(module)
    assert load_state_dict(model, tensors) == []
    x = rng.standard_normal((2, *shape), dtype=np.float32)
    last = x.ndim - 1
    with torch.no_grad():
        wanted = module(torch.from_numpy(x).movedim(last, 1)).movedim(1, last).numpy()
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-5)
    back = state_dict(model)
    assert list(back) == list(tensors)
    for name in tensors:
        np.testing.assert_array_equal(back[name], tensors[name] if "tracked" not in name else 0)
        assert back[name].dtype == tensors[name].dtype


def flat_model() -> Model:
    image = Input((5, 6, 3))
    x = Conv2D(4, 3, activation="relu", torch_name="features.0")(image)
    x = Dense(7, torch_name="classifier", flatten_shape=x.shape)(Flatten()(x))
    return Model(image, x)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.classifier = nn.Linear(3 * 4 * 4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def test_dense_after_flatten_is_permuted(rng: np.random.Generator) -> None:
    module, model = filled(Flat()), flat_model()
    load_state_dict(model, torch_tensors(module, ""))
    x = rng.standard_normal((2, 5, 6, 3), dtype=np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-5)
    for name, tensor in torch_tensors(module, "").items():
        np.testing.assert_array_equal(state_dict(model)[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_converted(dtype: torch.dtype, tmp_path) -> None:
    module = filled(Flat()).to(dtype)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    model = flat_model()
    load_state_dict(model, read_state_dict(tmp_path / "w.pth"))
    assert all(param.value.dtype == np.float32 for param in model.weights)
    wanted = module.float().state_dict()
    for name, array in state_dict(model).items():
        np.testing.assert_array_equal(array, wanted[name].numpy())


def test_prefix_of_data_parallel() -> None:
    model = flat_model()
    tensors = {f"module.{name}": tensor for name, tensor in torch_tensors(filled(Flat()), "").items()}
    assert load_state_dict(model, tensors) == []
    np.testing.assert_array_equal(state_dict(model)["classifier.bias"], tensors["module.classifier.bias"])


def test_what_does_not_fit_is_listed_and_nothing_changes() -> None:
    model, module = flat_model(), filled(Flat())
    before = {name: param.value.copy() for name, param in model.named_params().items()}
    tensors = torch_tensors(module, "")
    tensors["classifier.weight"] = np.zeros((10, 48), "f4")
    tensors["features.0.bias"] = np.zeros(4, "i4")
    tensors["features.9.weight"] = tensors.pop("features.0.weight")
    with pytest.raises(WeightsError) as caught:
        load_state_dict(model, tensors)
    for line in (
        "4 tensors do not fit a model of 4",
        "features.0.weight: missing, want shape (4, 3, 3, 3)",
        "features.9.weight: not in the model, shape (4, 3, 3, 3)",
        "classifier.weight: shape (10, 48), want (7, 48)",
        "features.0.bias: elements of type int32, want float32",
    ):
        assert line in str(caught.value)
    for name, param in model.named_params().items():
        np.testing.assert_array_equal(param.value, before[name])
    assert len(load_state_dict(model, tensors, skip_mismatch=True)) == 4
    np.testing.assert_array_equal(state_dict(model)["classifier.bias"], tensors["classifier.bias"])
    np.testing.assert_array_equal(model.get_layer("dense").params["kernel"].value, before["dense/kernel"])


def test_a_long_list_is_cut() -> None:
    extra = {f"extra.{i}": np.zeros(1, "f4") for i in range(100)}
    with pytest.raises(WeightsError, match="and 84 more"):
        load_state_dict(flat_model(), extra)


def test_layers_without_torch_names_and_nested_models(tmp_path) -> None:
    inner_image = Input((6, 6, 3))
    inner = Model(inner_image, SeparableConv2D(4, 3)(inner_image), name="backbone")
    image = Input((6, 6, 3))
    model = Model(image, Dense(2)(Flatten()(inner(image))))
    tensors = state_dict(model)
    assert tensors.keys() == model.named_params().keys()
    write_safetensors(tmp_path / "w.safetensors", tensors)
    filled_with = {name: np.full_like(tensor, i) for i, (name, tensor) in enumerate(tensors.items())}
    load_state_dict(model, filled_with)
    assert [param.value.flat[0] for param in model.weights] == list(range(len(tensors)))
    load_state_dict(model, read_state_dict(tmp_path / "w.safetensors"))
    for name, tensor in state_dict(model).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_two_layers_of_one_name_are_refused() -> None:
    image = Input((4,))
    model = Model(image, Dense(4, torch_name="fc")(Dense(4, torch_name="fc")(image)))
    with pytest.raises(WeightsError, match=r"'fc\.weight'"):
        state_dict(model)
