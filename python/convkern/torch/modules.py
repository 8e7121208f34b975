"""Subclasses of torch.nn's layers: same arguments, attributes, state dicts and isinstance checks, these kernels inside.

What the kernels do not serve goes to the parent class, so a model never stops working because of a layer: other
devices and element types, autocast, tensors that are subclasses or traced by proxies, transforms of torch.func, forward
-mode derivatives. `memory_format` and `exact` are attributes of a module, with the class's as defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import operators

Tensor = torch.Tensor

_TYPES = (torch.float32, torch.float64)


def served(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors; the first one is the input."""
    dtype = getattr(tensors[0], "dtype", None)
    if dtype not in _TYPES:
        return False
    compiling = torch.compiler.is_compiling()
    for t in tensors:
        if t is None:
            continue
        if not (compiling or type(t) is Tensor or type(t) is nn.Parameter):
            return False
        if not t.is_cpu or t.dtype != dtype or t.layout != torch.strided:
            return False
    if compiling:
        return True
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


class Layer:
    """What the modules of this file have in common.

    memory_format: torch.channels_last (the default): outputs lie channels-last in memory, whatever the input does, so
        that the layers of a network pass them on without a transposition. torch.preserve_format: outputs lie as the
        input does, for models that call `.view` on them; each layer then transposes.
    exact: no algorithm that rounds differently from a plain sum (Winograd).
    """

    memory_format: torch.memory_format = torch.channels_last
    exact: bool = False

    @property
    def _last(self) -> bool:
        return self.memory_format != torch.preserve_format


def _pair(value: Any, rank: int = 2) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank


class _Conv(Layer):
    """The forward of Conv1d, Conv2d and Conv3d."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = weight.dim() - 2
        batched = isinstance(input, Tensor) and input.dim() == rank + 2
        if not served(input, weight, bias) or input.dim() not in (rank + 1, rank + 2) or _autocast():
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * (2 * rank)
        elif self.padding == "same":
            total = [d * (r - 1) for d, r in zip(self.dilation, weight.shape[2:])]
            padding = (*(t // 2 for t in total), *(t - t // 2 for t in total))
        elif self.padding == "valid":
            padding = (0,) * (2 * rank)
        else:
            padding = (*self.padding, *self.padding)
        y = operators.conv(
            input if batched else input.unsqueeze(0),
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            False,
            (0,) * rank,
            self.exact,
            self._last,
        )
        return y if batched else y.squeeze(0)


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


class Conv1d(_Conv, nn.Conv1d):
    pass


class Conv2d(_Conv, nn.Conv2d):
    pass


class Conv3d(_Conv, nn.Conv3d):
    pass


class BatchNorm2d(Layer, nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None or not served(
            input, self.weight, self.bias, self.running_mean, self.running_var
        ):
            return super().forward(input)
        self._check_input_dim(input)
        return operators.batch_norm(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self._last
        )


class MaxPool2d(Layer, nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:
        if not served(input) or input.dim() != 4:
            return super().forward(input)
        op = operators.max_pool_with_indices if self.return_indices else operators.max_pool
        return op(
            input, _pair(self.kernel_size), _pair(self.stride), _pair(self.padding), _pair(self.dilation), self.ceil_mode,
            self._last,
        )


class AdaptiveAvgPool2d(Layer, nn.AdaptiveAvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        if not served(input) or input.dim() != 4:
            return super().forward(input)
        return operators.adaptive_avg_pool(input, _pair(self.output_size), self._last)


class Linear(Layer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not served(input, self.weight, self.bias) or _autocast():
            return super().forward(input)
        y = operators.conv(input.reshape(-1, input.shape[-1]), self.weight, self.bias, (), (), (), 1, False, (), self.exact, True)
        return y.reshape(*input.shape[:-1], self.weight.size(0))
