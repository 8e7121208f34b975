"""Fast convolutional networks: hand-written kernels under a thin Python layer API.

    convkern.ops       functions on arrays, as torch.nn.functional
    convkern.layers    Keras-style layers; Input, Model, Sequential
    convkern.models    architectures and their published weights: get_model, list_models
    convkern.train     losses, optimizers, callbacks, fine-tuning
    convkern.weights   weight files;  convkern.data  images;  convkern.viz  pictures
    convkern.device    GPUs: arrays on them, Model.to("cuda:0")
    convkern.torch     the same kernels as layers of PyTorch models

Everything is imported when it is first used, so `import convkern` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ConvkernError,
    DataError,
    DeviceError,
    DTypeError,
    ModelError,
    NotFinite,
    ShapeError,
    Unsupported,
    WeightsError,
)

if TYPE_CHECKING:
    from . import data, device, layers, models, ops, train, viz, weights
    from .initializers import set_seed
    from .layers import Input
    from .model import Model, Sequential, from_json, load_model
    from .models import get_model, list_models

# name -> the module it lives in
_LAZY = {
    "Input": "layers",
    "Model": "model",
    "Sequential": "model",
    "from_json": "model",
    "load_model": "model",
    "get_model": "models",
    "list_models": "models",
    "set_seed": "initializers",
}
_MODULES = ("data", "device", "errors", "initializers", "layers", "models", "ops", "torch", "train", "viz", "weights")

__all__ = [
    "CheckpointError",
    "ConvkernError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "Input",
    "Model",
    "ModelError",
    "NotFinite",
    "Sequential",
    "ShapeError",
    "Unsupported",
    "WeightsError",
    "__version__",
    "data",
    "device",
    "from_json",
    "get_model",
    "get_num_threads",
    "layers",
    "list_models",
    "load_model",
    "models",
    "ops",
    "set_num_threads",
    "set_seed",
    "train",
    "viz",
    "weights",
]


def get_num_threads() -> int:
    """How many threads calls use that do not say it themselves.

    >>> get_num_threads() >= 1
    True
    """
    from . import _core

    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """How many threads calls use that do not say it themselves (threads=); results do not depend on it.

    At the start it is CONVKERN_NUM_THREADS or the number of cores. Errors: DTypeError, ShapeError unless an integer of
    at least 1.

    >>> set_num_threads(get_num_threads())
    """
    from . import _core
    from .layers.arguments import integer

    _core.set_num_threads(integer("threads", threads))


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    elif name in _MODULES:
        return import_module(f".{name}", __name__)
    elif name == "__version__":
        value = import_module("._core", __name__).version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
