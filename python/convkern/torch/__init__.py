"""Layers for PyTorch models: nn.Modules with these kernels under them, and replace_layers, which swaps them in."""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as _error:
    raise ImportError("convkern.torch needs PyTorch: pip install 'convkern[torch]'") from _error
