"""replace_layers and restore_layers: a live model's layers become ours, and torch's again.

A layer is swapped by giving the very module another class. So its parameters, buffers, hooks, parametrizations, and all
that refers to the module (an optimizer, a shared layer) stay what they are, and going back is the same step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import Unsupported
from .fuse import FusedModel
from .modules import LAYERS, Layer

_TORCHS = {ours: theirs for theirs, ours in LAYERS.items()}


def replace_layers(
    model: nn.Module,
    *,
    fuse: bool = False,
    exact: bool = False,
    memory_format: torch.memory_format = torch.channels_last,
) -> nn.Module:
    """Let these kernels compute a model's layers.

    In place: modules whose class is exactly torch.nn's Conv1d, Conv2d, Conv3d, ConvTranspose2d, Linear, BatchNorm2d,
    MaxPool2d, AvgPool2d or AdaptiveAvgPool2d become convkern.torch's of the same name, and train and infer as before;
    all other modules stay. Returns the model; restore_layers undoes it.

    Arguments: fuse: returns a FusedModel around the model, which computes convolution, batch norm, residual add and
        activation as one step, in training as two, where torch.fx finds them next to each other.
        exact: no algorithm that rounds differently from a plain sum (Winograd).
        memory_format: torch.channels_last: outputs are laid out channels-last whatever the input's layout.
        torch.preserve_format: as the input is, for models that call `.view` on activations (slower).
    Errors: Unsupported if fuse is asked for and torch.fx cannot trace the model, with its reason, or for another
        memory_format.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> replace_layers(model) is model
    True
    >>> model[0]
    convkern.Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    >>> restore_layers(model)[0]
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    if memory_format not in (torch.channels_last, torch.preserve_format):
        raise Unsupported(f"memory_format={memory_format}; want torch.channels_last or torch.preserve_format")
    if isinstance(model, FusedModel):
        model = model.original
    for module in model.modules():
        _change_class(module, LAYERS)
        if isinstance(module, Layer):
            module.exact, module.channels_last = exact, memory_format == torch.channels_last
    return FusedModel(model) if fuse else model


def restore_layers(model: nn.Module) -> nn.Module:
    """Give a model torch's own layers back, in place, with their current parameters; returns it.

    Of a FusedModel it returns the model that was fused.

    >>> model = replace_layers(nn.Sequential(nn.Linear(2, 2)), fuse=True)
    >>> type(restore_layers(model)[0])
    <class 'torch.nn.modules.linear.Linear'>
    """
    if isinstance(model, FusedModel):
        model = model.original
    for module in model.modules():
        if isinstance(module, Layer):
            for name in ("exact", "channels_last"):
                module.__dict__.pop(name, None)
            _change_class(module, _TORCHS)
    return model


def _change_class(module: nn.Module, classes: dict[Any, Any]) -> None:
    cls = type(module)
    if cls in classes:
        module.__class__ = classes[cls]
    elif parametrize.is_parametrized(module) and cls.__base__ in classes:
        # torch gives each parametrized module a class of its own, derived from the layer's: so do we.
        own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, (classes[cls.__base__],), own)
