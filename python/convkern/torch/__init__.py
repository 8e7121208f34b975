"""Layers for PyTorch models: nn.Modules with these kernels under them, and replace_layers, which swaps them in.

    import convkern.torch

    convkern.torch.replace_layers(model)               # in place; trains and infers as before
    fast = convkern.torch.replace_layers(model, fuse=True)    # the same with layers fused
    convkern.torch.restore_layers(model)

The layers are subclasses of torch.nn's with the same state dicts. They compute float32 on the CPU (float64 on the
reference kernels, for checks) and leave everything else to their parent classes. Tensors are read in place; the number
of threads is torch's. Their operators are `torch.ops.convkern.*`, which torch.compile and torch.export trace.
Packed weights are kept for the process and follow the tensors they are made of; packed_bytes() and clear().
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as _error:
    raise ImportError("convkern.torch needs PyTorch: pip install 'convkern[torch]'") from _error

from .fuse import FusedModel
from .modules import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Layer,
    Linear,
    MaxPool2d,
    fallback_reason,
)
from .plans import clear, packed_bytes
from .replace import replace_layers, restore_layers

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm2d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "FusedModel",
    "Layer", "Linear", "MaxPool2d", "clear", "fallback_reason", "packed_bytes", "replace_layers", "restore_layers",
]  # fmt: skip
