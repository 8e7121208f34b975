"""The operators of `torch.ops.convkern`: what the modules call, and what torch.compile and torch.export see.

Each has a schema, a kernel for CPU tensors (a plan of one step, see plans.py), a rule for the shape and strides of its
result (so that it can be traced without data) and, if it can be trained through, a derivative, made of operators of
this file again. Tensors are torch's (N,C,...), float32 or float64; a batch of vectors is (N,C). Conventions that all
share:

    padding          2*rank numbers: front, top, left, then back, bottom, right
    channels_last    results lie channels-last in memory, whatever the input does; False: as the input does
    exact            no algorithm that rounds differently from a plain sum (Winograd)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .. import _core
from ..graph import conv_size, conv_transpose_size, pool_size, scale_and_shift
from ..ops.common import triple
from ..ops.convolution import relaid
from . import plans
from .plans import Tensor, array, is_channels_last, made, new_plan, pixels, run, spatial, tensor

Ints = Sequence[int]

LIBRARY = torch.library.Library("convkern", "DEF")


def _operator(schema: str, cpu: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator; its overload, ready to be called."""
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"convkern::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.convkern, name).default


def _empty(x: Tensor, n: int, sizes: Ints, channels: int, channels_last: bool, dtype: Any = None) -> Tensor:
    """A result (N,C,...) without data, with the strides that a plan's has."""
    dtype = dtype or x.dtype
    if channels_last or is_channels_last(x):
        y = x.new_empty((n, *sizes, channels), dtype=dtype)
        return y.permute(0, -1, *range(1, len(sizes) + 1))
    return x.new_empty((n, channels, *sizes), dtype=dtype)


def _result(plan: _core.Plan, x: Tensor, channels_last: bool, *others: Tensor) -> Tensor:
    """Run a plan with one output on x, in the layout the caller wants."""
    first = not (channels_last or is_channels_last(x))
    y = run(plan, pixels(x), *map(pixels, others), channels_first=first)[0]
    return tensor(y, x.dim(), first)


# Convolutions, and the linear layer, which is one without spatial dimensions

_GEOMETRY = (
    "int[] stride, SymInt[] padding, int[] dilation, int groups, bool transposed, SymInt[] output_padding, bool exact"
)


def _halves(padding: Ints) -> tuple[Ints, Ints]:
    rank = len(padding) // 2
    return padding[:rank], padding[rank:]


def _geometry(
    stride: Ints, padding: Ints, dilation: Ints, groups: int, transposed: bool, output_padding: Ints
) -> dict[str, Any]:
    """The arguments of Plan.conv."""
    lo, hi = _halves(padding)
    return dict(
        stride=triple(stride, 1),
        pad_lo=triple(lo, 0),
        pad_hi=triple(hi, 0),
        dilation=triple(dilation, 1),
        groups=groups,
        transposed=transposed,
        output_padding=triple(output_padding, 0),
    )


def conv_sizes(
    sizes: Ints,
    window: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
) -> list[int]:
    """The spatial sizes of the result."""
    lo, hi = _halves(padding)
    if transposed:
        return [conv_transpose_size(*of) for of in zip(sizes, window, stride, lo, hi, dilation, output_padding)]
    return [conv_size(*of) for of in zip(sizes, window, stride, lo, hi, dilation)]


def _parameter(weight: Tensor, groups: int, transposed: bool, scale: np.ndarray | None = None) -> _core.Parameter:
    return _core.Parameter(relaid(array(weight), groups, transposed), scale)


def _conv_cpu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
    exact: bool,
    channels_last: bool,
) -> Tensor:
    packed = made(
        ("conv", groups, transposed), (weight, bias), lambda: _parameter(weight, groups, transposed)
    )

    def build() -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        b = None if bias is None else array(bias)
        geometry = _geometry(stride, padding, dilation, groups, transposed, output_padding)
        plan.finish([plan.conv(plan.input(spatial(input.shape)), packed.value, b, **geometry, label="conv")])
        return plan

    key = (input.shape[1:], exact, *stride, *padding, *dilation, *output_padding)
    return _result(packed.plan(key, build), input, channels_last)


def _conv_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
    exact: bool,
    channels_last: bool,
) -> Tensor:
    window = weight.shape[2:]
    sizes = conv_sizes(input.shape[2:], window, stride, padding, dilation, transposed, output_padding)
    channels = weight.size(1) * groups if transposed else weight.size(0)
    return _empty(input, input.size(0), sizes, channels, channels_last)


conv = _operator(
    f"conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, bool channels_last) -> Tensor", _conv_cpu, _conv_fake
)


# Convolution, batch norm, residual add and activation in one step, for inference


def _conv_fused_cpu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: list[Tensor],
    eps: float,
    residual: Tensor | None,
    activation: str,
    a: float,
    b: float,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
    exact: bool,
) -> Tensor:
    def make() -> tuple[_core.Parameter, np.ndarray | None]:
        shift = None if bias is None else array(bias)
        if not norm:
            return _parameter(weight, groups, transposed), shift
        mean, var, gamma, beta = map(array, norm)
        scale, offset = scale_and_shift(mean, var, gamma, beta, eps)
        offset = offset if shift is None else offset + scale * shift
        return _parameter(weight, groups, transposed, scale.astype(mean.dtype)), offset.astype(mean.dtype)

    packed = made(("conv_fused", groups, transposed, eps), (weight, bias, *norm), make)

    def build() -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        x = plan.input(spatial(input.shape))
        added = -1 if residual is None else plan.input(spatial(residual.shape))
        geometry = _geometry(stride, padding, dilation, groups, transposed, output_padding)
        weights, shift = packed.value
        y = plan.conv(x, weights, shift, added, **geometry, act=activation, act_a=a, act_b=b, label="conv")
        plan.finish([y])
        return plan

    key = (input.shape[1:], exact, residual is None, activation, a, b, *stride, *padding, *dilation, *output_padding)
    return _result(packed.plan(key, build), input, True, *(() if residual is None else (residual,)))


def _conv_fused_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: list[Tensor],
    eps: float,
    residual: Tensor | None,
    activation: str,
    a: float,
    b: float,
    *geometry: Any,
) -> Tensor:
    return _conv_fake(input, weight, bias, *geometry, channels_last=True)


conv_fused = _operator(
    "conv_fused(Tensor input, Tensor weight, Tensor? bias, Tensor[] norm, float eps, Tensor? residual, "
    f"str activation, float a, float b, {_GEOMETRY}) -> Tensor",
    _conv_fused_cpu,
    _conv_fused_fake,
)


# Batch norm


def _batch_norm_cpu(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    channels_last: bool,
) -> Tensor:
    def make() -> tuple[np.ndarray, ...]:
        of = [None if t is None else array(t) for t in (mean, var, weight, bias)]
        return tuple(v.astype(of[0].dtype) for v in scale_and_shift(*of, eps))

    folded = made(("batch_norm", eps), (mean, var, weight, bias), make)

    def build() -> _core.Plan:
        plan = new_plan(input.dtype)
        plan.finish([plan.scale_shift(plan.input(spatial(input.shape)), *folded.value, label="batch_norm")])
        return plan

    return _result(folded.plan(input.shape[1:], build), input, channels_last)


def _like(input: Tensor, *arguments: Any) -> Tensor:
    """The rule for results of the input's shape; channels_last is the last argument."""
    return _empty(input, input.size(0), input.shape[2:], input.size(1), arguments[-1])


batch_norm = _operator(
    "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps, bool channels_last) "
    "-> Tensor",
    _batch_norm_cpu,
    _like,
)


# Pooling

_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def pool_sizes(
    sizes: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> list[int]:
    """The spatial sizes of the result."""
    return [pool_size(n, r, s, p, p, d, ceil_mode) for n, r, s, p, d in zip(sizes, kernel_size, stride, padding, dilation)]


@lru_cache(maxsize=256)
def _pool_plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kind: str,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    indices: bool = False,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> _core.Plan:
    plan = new_plan(dtype)
    sizes = pool_sizes(shape[1:], kernel_size, stride, padding, dilation, ceil_mode)
    y = plan.pool(
        plan.input((*(1,) * (4 - len(shape)), *shape[1:], shape[0])),
        kind,
        window=triple(kernel_size, 1),
        stride=triple(stride, 1),
        pad_lo=triple(padding, 0),
        pad_hi=triple(padding, 0),
        dilation=triple(dilation, 1),
        out=triple(sizes, 1),
        indices=indices,
        count_include_pad=count_include_pad,
        divisor=divisor,
        label=f"{kind}_pool",
    )
    plan.finish(list(y) if indices else [y])
    return plan


def _max_pool_cpu(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    window = (tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    return _result(_pool_plan(input.dtype, input.shape[1:], "max", *window, ceil_mode), input, channels_last)


def _max_pool_fake(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    sizes = pool_sizes(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    return _empty(input, input.size(0), sizes, input.size(1), channels_last)


def _max_pool_with_indices_cpu(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    window = (tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    plan = _pool_plan(input.dtype, input.shape[1:], "max", *window, ceil_mode, indices=True)
    first = not (channels_last or is_channels_last(input))
    y, index = (tensor(t, input.dim(), first) for t in run(plan, pixels(input), channels_first=first))
    return y, index


def _max_pool_with_indices_fake(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    sizes = pool_sizes(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    y, index = (
        _empty(input, input.size(0), sizes, input.size(1), channels_last, dtype) for dtype in (None, torch.int64)
    )
    return y, index


max_pool = _operator(
    f"max_pool(Tensor input, {_WINDOW}, bool channels_last) -> Tensor", _max_pool_cpu, _max_pool_fake
)
max_pool_with_indices = _operator(
    f"max_pool_with_indices(Tensor input, {_WINDOW}, bool channels_last) -> (Tensor, Tensor)",
    _max_pool_with_indices_cpu,
    _max_pool_with_indices_fake,
)


def _avg_pool_cpu(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
    channels_last: bool,
) -> Tensor:
    window = (tuple(kernel_size), tuple(stride), tuple(padding), (1,) * len(kernel_size))
    plan = _pool_plan(
        input.dtype, input.shape[1:], "avg", *window, ceil_mode, False, count_include_pad, divisor
    )
    return _result(plan, input, channels_last)


def _avg_pool_fake(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
    channels_last: bool,
) -> Tensor:
    return _max_pool_fake(input, kernel_size, stride, padding, (1,) * len(kernel_size), ceil_mode, channels_last)


_AVERAGE = "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, int divisor"

avg_pool = _operator(
    f"avg_pool(Tensor input, {_AVERAGE}, bool channels_last) -> Tensor", _avg_pool_cpu, _avg_pool_fake
)


@lru_cache(maxsize=256)
def _adaptive_plan(dtype: torch.dtype, shape: tuple[int, ...], out: tuple[int, ...]) -> _core.Plan:
    plan = new_plan(dtype)
    x = plan.input((*(1,) * (4 - len(shape)), *shape[1:], shape[0]))
    plan.finish([plan.adaptive_pool(x, "avg", out=triple(out, 1), label="adaptive_avg_pool")])
    return plan


def _adaptive_avg_pool_cpu(input: Tensor, output_size: Ints, channels_last: bool) -> Tensor:
    return _result(_adaptive_plan(input.dtype, input.shape[1:], tuple(output_size)), input, channels_last)


def _adaptive_avg_pool_fake(input: Tensor, output_size: Ints, channels_last: bool) -> Tensor:
    return _empty(input, input.size(0), output_size, input.size(1), channels_last)


adaptive_avg_pool = _operator(
    "adaptive_avg_pool(Tensor input, SymInt[] output_size, bool channels_last) -> Tensor",
    _adaptive_avg_pool_cpu,
    _adaptive_avg_pool_fake,
)
