"""Subclasses of torch.nn's layers: same arguments, attributes, state dicts and isinstance checks, these kernels inside.

What the kernels do not serve goes to the parent class, so a model never stops working because of a layer: other devices
and element types, autocast, subclasses of Tensor, tracing by proxies, transforms of torch.func, forward-mode
derivatives. `fallback_reason` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import operators

_TYPES = (torch.float32, torch.float64)
NO_ACTIVATION = ("none", 0.0, 0.0)  # as Plan.conv takes it


def fallback_reason(input: Any, *parameters: Tensor | None, casts: bool = False) -> str | None:
    """Why torch's own kernels compute a layer on this input, or None: ours do. casts: an operator autocast changes.

    >>> fallback_reason(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16))
    'elements of torch.bfloat16; want float32 or float64'
    """
    compiling = torch.compiler.is_compiling()
    if not (compiling or type(input) is Tensor or type(input) is nn.Parameter):
        return f"the input is a {type(input).__name__}; want a plain Tensor"
    dtype = input.dtype
    if dtype not in _TYPES:
        return f"elements of {dtype}; want float32 or float64"
    if not input.is_cpu or input.layout != torch.strided:
        return f"memory on {input.device} of layout {input.layout}; want a strided tensor of the CPU"
    for t in parameters:
        if t is not None and not (t.dtype == dtype and t.is_cpu and t.layout == torch.strided):
            return f"a parameter of {t.dtype} on {t.device}; want {dtype} on the CPU as the input"
    if casts and torch.is_autocast_enabled("cpu"):
        return "autocast"
    if compiling:
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "a transform of torch.func or a forward-mode derivative"
    return None


class Layer(nn.Module):
    """What the layers of this module have in common, beside what torch documents of theirs.

    Two attributes that may be set on a module, or by replace_layers:
        channels_last: True (the default): outputs lie channels-last in memory whatever the input does, so that layers
            hand them on without a transposition. False: outputs lie as the input does, for models that call `.view` on
            them.
        exact: True for no algorithm that rounds differently from a plain sum (Winograd).
    """

    channels_last: bool = True
    exact: bool = False

    def _get_name(self) -> str:
        return f"convkern.{super()._get_name()}"


def _numbers(value: Any, rank: int = 2) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank


class _Conv(Layer):
    """The forward of Conv1d, Conv2d and Conv3d."""

    def geometry(self: Any) -> tuple[Any, ...]:
        """The arguments of operators.conv from stride to exact."""
        padding, window = self.padding, self.kernel_size
        rank = len(window)
        if padding == "valid" or self.padding_mode != "zeros":  # other modes pad before
            padding = (0,) * (2 * rank)
        elif padding == "same":
            both = [d * (r - 1) for d, r in zip(self.dilation, window)]
            padding = (*(n // 2 for n in both), *(n - n // 2 for n in both))
        else:
            padding = (*padding, *padding)
        return self.stride, padding, self.dilation, self.groups, False, (0,) * rank, self.exact

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = weight.dim() - 2
        if fallback_reason(input, weight, bias, casts=True) or not rank + 1 <= input.dim() <= rank + 2:
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        if input.dim() == rank + 1:
            return self._conv_forward(input.unsqueeze(0), weight, bias).squeeze(0)
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return operators.conv(input, weight, bias, *self.geometry(), self.channels_last)


class Conv1d(_Conv, nn.Conv1d):
    """torch.nn.Conv1d.

    >>> Conv1d(4, 8, 3, padding="same")(torch.ones(2, 4, 10)).shape
    torch.Size([2, 8, 10])
    """


class Conv2d(_Conv, nn.Conv2d):
    """torch.nn.Conv2d: every padding, padding_mode, stride, dilation and number of groups.

    >>> layer = Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
    >>> isinstance(layer, nn.Conv2d), layer(torch.ones(1, 3, 9, 9)).shape
    (True, torch.Size([1, 8, 5, 5]))
    """


class Conv3d(_Conv, nn.Conv3d):
    """torch.nn.Conv3d.

    >>> Conv3d(2, 4, 3)(torch.ones(1, 2, 5, 6, 7)).shape
    torch.Size([1, 4, 3, 4, 5])
    """


class ConvTranspose2d(Layer, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, with output_size.

    >>> ConvTranspose2d(4, 2, 3, stride=2, padding=1)(torch.ones(1, 4, 5, 5), output_size=(10, 10)).shape
    torch.Size([1, 2, 10, 10])
    """

    def geometry(self: Any, extra: Sequence[int] | None = None) -> tuple[Any, ...]:
        """The arguments of operators.conv from stride to exact."""
        padding = (*self.padding, *self.padding)
        return self.stride, padding, self.dilation, self.groups, True, extra or self.output_padding, self.exact

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if fallback_reason(input, self.weight, self.bias, casts=True) or not 3 <= input.dim() <= 4:
            return super().forward(input, output_size)
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0), output_size and output_size[-2:]).squeeze(0)
        return operators.conv(input, self.weight, self.bias, *self.geometry(extra), self.channels_last)


class Linear(Layer, nn.Linear):
    """torch.nn.Linear.

    >>> Linear(3, 5)(torch.ones(2, 7, 3)).shape
    torch.Size([2, 7, 5])
    """

    def geometry(self) -> tuple[Any, ...]:
        """The arguments of operators.conv from stride to exact: no spatial dimensions."""
        return (), (), (), 1, False, (), self.exact

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if fallback_reason(input, weight, bias, casts=True) or not input.dim():
            return super().forward(input)
        if input.dim() == 2:
            return operators.conv(input, weight, bias, *self.geometry(), True)
        y = operators.conv(input.reshape(-1, input.shape[-1]), weight, bias, *self.geometry(), True)
        return y.reshape(*input.shape[:-1], weight.shape[0])


class BatchNorm2d(Layer, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d; running variances are unbiased, as there.

    >>> BatchNorm2d(3).eval()(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        self._check_input_dim(input)
        if fallback_reason(input, self.weight, self.bias, mean, var) or (mean is None) != (var is None):
            return super().forward(input)
        if not self.training and mean is not None:
            return operators.batch_norm(input, self.weight, self.bias, mean, var, self.eps, self.channels_last)
        if input.numel() < 2 * input.shape[1]:  # torch's error says what is wrong
            return super().forward(input)
        return self.with_batch_statistics(input)

    def with_batch_statistics(
        self, input: Tensor, residual: Tensor | None = None, activation: tuple[str, float, float] = NO_ACTIVATION
    ) -> Tensor:
        """activation(norm(input) + residual); updates the running statistics. The activation is none or a clamp."""
        options = (self.eps, *activation, self.channels_last)
        if residual is None:
            y, mean, var = operators.batch_norm_train(input, self.weight, self.bias, *options)
        else:
            y, mean, var = operators.batch_norm_add_train(input, self.weight, self.bias, residual, *options)
        if self.training and self.track_running_stats:
            self._follow(mean, var, input.numel() // input.shape[1])
        return y

    def _follow(self, batch_mean: Tensor, batch_var: Tensor, count: int) -> None:
        mean, var, momentum = self.running_mean, self.running_var, self.momentum
        if mean is None or var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean of all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        momentum = momentum or 0.0
        with torch.no_grad():
            mean.mul_(1 - momentum).add_(batch_mean, alpha=momentum)
            var.mul_(1 - momentum).add_(batch_var, alpha=momentum * count / (count - 1))


class MaxPool2d(Layer, nn.MaxPool2d):
    """torch.nn.MaxPool2d, with return_indices.

    >>> MaxPool2d(3, 2, 1)(torch.ones(1, 4, 9, 9)).shape
    torch.Size([1, 4, 5, 5])
    """

    def forward(self, input: Tensor) -> Any:
        if fallback_reason(input) or not 3 <= input.dim() <= 4:
            return super().forward(input)
        window = [_numbers(v) for v in (self.kernel_size, self.stride, self.padding, self.dilation)]
        x = input if input.dim() == 4 else input.unsqueeze(0)
        if not self.return_indices and not (torch.is_grad_enabled() and input.requires_grad):
            y = operators.max_pool(x, *window, self.ceil_mode, self.channels_last)
            return y if input.dim() == 4 else y.squeeze(0)
        y, index = operators.max_pool_with_indices(x, *window, self.ceil_mode, self.channels_last)
        if input.dim() == 3:
            y, index = y.squeeze(0), index.squeeze(0)
        return (y, index) if self.return_indices else y


class AvgPool2d(Layer, nn.AvgPool2d):
    """torch.nn.AvgPool2d.

    >>> AvgPool2d(2)(torch.arange(16.0).reshape(1, 1, 4, 4))
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """

    def forward(self, input: Tensor) -> Tensor:
        divisor = self.divisor_override
        if fallback_reason(input) or not 3 <= input.dim() <= 4 or not (divisor is None or divisor > 0):
            return super().forward(input)
        window = [_numbers(v) for v in (self.kernel_size, self.stride, self.padding)]
        options = (self.ceil_mode, self.count_include_pad, divisor or 0, self.channels_last)
        if input.dim() == 4:
            return operators.avg_pool(input, *window, *options)
        return operators.avg_pool(input.unsqueeze(0), *window, *options).squeeze(0)


class AdaptiveAvgPool2d(Layer, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d.

    >>> AdaptiveAvgPool2d((1, None))(torch.ones(2, 3, 7, 9)).shape
    torch.Size([2, 3, 1, 9])
    """

    def forward(self, input: Tensor) -> Tensor:
        if fallback_reason(input) or not 3 <= input.dim() <= 4:
            return super().forward(input)
        sizes = [n if size is None else size for n, size in zip(input.shape[-2:], _numbers(self.output_size))]
        if input.dim() == 4:
            return operators.adaptive_avg_pool(input, sizes, self.channels_last)
        return operators.adaptive_avg_pool(input.unsqueeze(0), sizes, self.channels_last).squeeze(0)


# torch's class -> ours
LAYERS: dict[type[nn.Module], type[Layer]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.Linear: Linear,
    nn.BatchNorm2d: BatchNorm2d,
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
}
