"""The operators of `torch.ops.convkern`: what the modules call, and what torch.compile and torch.export see.

Each has a schema, a kernel for CPU tensors (a plan of one step, see plans.py), a rule for the shape and strides of its
result, so that it can be traced without data, and a derivative made of operators again. Tensors are torch's (N,C,...)
of float32, or of float64 on the reference kernels; a batch of vectors is (N,C). What all share:

    padding          2*rank numbers: front, top, left, then back, bottom, right
    exact            no algorithm that rounds differently from a plain sum (Winograd)
    channels_last    results lie channels-last in memory, whatever the input does; False: as the input does

Convolutions and poolings can be derived any number of times, batch norm with the statistics of the batch once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _core
from ..errors import ShapeError, Unsupported
from ..graph import conv_size, conv_transpose_size, pool_size, scale_and_shift
from ..ops.common import triple
from ..ops.convolution import _relaid
from .plans import Made, array, is_channels_last, made, new_plan, pixels, spatial, tensor, total

Ints = Sequence[int]

LIBRARY = torch.library.Library("convkern", "DEF")


def _operator(
    schema: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define an operator; returns what calls it.

    Where nothing but the kernel could come of a call (no gradient, trace, profile or mode) the kernel is called at
    once: at small images the way through torch's dispatcher would cost as much as the kernel.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"convkern::{name}", fake, lib=LIBRARY)
    if backward is None:
        backward = _no_derivative(name)
    torch.library.register_autograd(f"convkern::{name}", backward, setup_context=setup, lib=LIBRARY)
    overload = getattr(torch.ops.convkern, name).default

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or _observed():
            return overload(*arguments)
        return cpu(*arguments)

    return call


def _observed() -> bool:
    c = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._get_tracing_state()
        or c._autograd._profiler_enabled()
    )


def _no_derivative(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise Unsupported(f"convkern::{name} has no derivative of its own; torch's layers have (restore_layers)")

    return backward


def _empty(x: Tensor, n: int, sizes: Ints, channels: int, channels_last: bool, dtype: Any = None) -> Tensor:
    """A result (N,C,...) without data, with the strides that a plan's has."""
    dtype = dtype or x.dtype
    if channels_last or is_channels_last(x):
        y = x.new_empty((n, *sizes, channels), dtype=dtype)
        return y.permute(0, -1, *range(1, len(sizes) + 1))
    return x.new_empty((n, channels, *sizes), dtype=dtype)


def _run(plan: _core.Plan, x: Tensor, channels_last: bool, *others: np.ndarray) -> list[np.ndarray]:
    """The results of a plan whose first input is x, as tensors of x's rank; totals as arrays."""
    first = not (channels_last or is_channels_last(x))
    axes = x.dim()
    results = plan.run([pixels(x), *others], torch.get_num_threads(), first)
    return [tensor(y, axes, first) if y.ndim == 5 else y for y in results]


# Convolutions, and the linear layer, which is one without spatial dimensions

_GEOMETRY = (
    "int[] stride, SymInt[] padding, int[] dilation, int groups, bool transposed, SymInt[] output_padding, bool exact"
)


def _halves(padding: Ints) -> tuple[Ints, Ints]:
    rank = len(padding) // 2
    return padding[:rank], padding[rank:]


def _geometry(stride: Ints, padding: Ints, dilation: Ints, groups: int, transposed: bool) -> dict[str, Any]:
    """The arguments of Plan.conv, but output_padding."""
    lo, hi = _halves(padding)
    return dict(
        stride=triple(stride, 1),
        pad_lo=triple(lo, 0),
        pad_hi=triple(hi, 0),
        dilation=triple(dilation, 1),
        groups=groups,
        transposed=transposed,
    )


class _Filters:
    """A weight as plans take it, (T,R,S,C/G,K), as it was when it was loaded."""

    def __init__(self, groups: int, transposed: bool):
        self.groups, self.transposed = groups, transposed
        self.array: np.ndarray | None = None

    def load(self, weight: Tensor, *others: Any) -> None:
        filters = array(weight)
        if self.transposed or self.array is None or not filters.flags.c_contiguous:
            self._store(_relaid(filters, self.groups, self.transposed))
        else:
            source = filters.reshape(*filters.shape[:2], -1)
            _core.reorder_filters(source, self.array.reshape(*source.shape[::-1]), threads=torch.get_num_threads())
            self.parameter.touch()

    def _store(self, filters: np.ndarray) -> None:
        if self.array is None:
            # A copy, where torch's memory happens to be in that order already: it is not held here.
            self.array = filters if filters.flags.owndata else filters.copy()
            self.parameter = _core.Parameter(self.array)
        else:
            np.copyto(self.array, filters)
            self.parameter.touch()

    @property
    def packed_bytes(self) -> int:
        return self.parameter.packed_bytes


def _filters(weight: Tensor, groups: int, transposed: bool) -> Made:
    return made((groups, transposed), (weight,), lambda: _Filters(groups, transposed))


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
    filters = _filters(weight, groups, transposed)

    def build() -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        x = plan.input(spatial(input.shape))
        b = None if bias is None else plan.total_input((1, 1, 1, bias.numel()))
        geometry = _geometry(stride, padding, dilation, groups, transposed)
        extra = triple(output_padding, 0)
        y = plan.conv(x, filters.contents.parameter, b, **geometry, output_padding=extra, label="conv")
        plan.finish([y])
        return plan

    key = ("conv", input.shape[1:], bias is None, exact, *stride, *padding, *dilation, *output_padding)
    plan = filters.plan(key, build)
    return _run(plan, input, channels_last, *(() if bias is None else (total(array(bias)),)))[0]


def conv_shape(
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
) -> tuple[int, ...]:
    """The shape of the result, (N,K,...)."""
    geometry = (input.shape[2:], weight.shape[2:], stride, *_halves(padding), dilation)
    if transposed:
        sizes = [conv_transpose_size(*of) for of in zip(*geometry, output_padding)]
    else:
        sizes = [conv_size(*of) for of in zip(*geometry)]
    return input.shape[0], weight.shape[1] * groups if transposed else weight.shape[0], *sizes


def _conv_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    *geometry, _, channels_last = options
    n, channels, *sizes = conv_shape(input, weight, *geometry)
    return _empty(input, n, sizes, channels, channels_last)


def _conv_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    input, weight, _bias, *ctx.geometry, _ = inputs
    ctx.save_for_backward(input, weight)


def _conv_backward(ctx: Any, grad: Tensor) -> Any:
    input, weight = ctx.saved_tensors
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = conv_input(grad, weight, input.shape, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        dw = conv_weight(grad, input, weight.shape, *ctx.geometry)
    if ctx.needs_input_grad[2]:
        db = grad.sum([0, *range(2, grad.dim())])
    return dx, dw, db, *(None,) * 8


conv = _operator(
    f"conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}, bool channels_last) -> Tensor",
    _conv_cpu,
    _conv_fake,
    _conv_setup,
    _conv_backward,
)


# The two gradients of a convolution; each is linear in both of its arguments, and their derivatives are the three
# operators again.


def _conv_input_cpu(
    grad: Tensor,
    weight: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
    exact: bool,
) -> Tensor:
    filters = _filters(weight, groups, transposed)

    def build() -> _core.Plan:
        plan = new_plan(grad.dtype, exact)
        dy = plan.input(spatial(grad.shape))
        geometry = _geometry(stride, padding, dilation, groups, transposed)
        dx = plan.conv_backward_data(dy, filters.contents.parameter, spatial(input_size), **geometry)
        plan.finish([dx])
        return plan

    key = ("input", grad.shape[1:], tuple(input_size[1:]), exact, *stride, *padding, *dilation)
    return _run(filters.plan(key, build), grad, True)[0]


def _conv_input_fake(grad: Tensor, weight: Tensor, input_size: Ints, *geometry: Any) -> Tensor:
    return _empty(grad, input_size[0], input_size[2:], input_size[1], True)


def _conv_input_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    grad, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad, weight)


def _conv_input_backward(ctx: Any, dx: Tensor) -> Any:
    grad, weight = ctx.saved_tensors
    dgrad = conv(dx, weight, None, *ctx.geometry, True) if ctx.needs_input_grad[0] else None
    dw = conv_weight(grad, dx, weight.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None
    return dgrad, dw, *(None,) * 8


conv_input = _operator(
    f"conv_input(Tensor grad, Tensor weight, SymInt[] input_size, {_GEOMETRY}) -> Tensor",
    _conv_input_cpu,
    _conv_input_fake,
    _conv_input_setup,
    _conv_input_backward,
)


@lru_cache(maxsize=256)
def _conv_weight_plan(
    dtype: torch.dtype, x: tuple[int, ...], dy: tuple[int, ...], window: tuple[int, ...], geometry: tuple[Any, ...]
) -> _core.Plan:
    *geometry, exact = geometry  # type: ignore[assignment]
    plan = new_plan(dtype, exact)
    dw = plan.conv_backward_weight(plan.input(x), plan.input(dy), kernel=triple(window, 1), **_geometry(*geometry))
    plan.finish([dw])
    return plan


def _conv_weight_cpu(
    grad: Tensor,
    input: Tensor,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    transposed: bool,
    output_padding: Ints,
    exact: bool,
) -> Tensor:
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups, transposed, exact)
    window = tuple(weight_size[2:])
    plan = _conv_weight_plan(input.dtype, spatial(input.shape), spatial(grad.shape), window, geometry)
    (dw,) = plan.run([pixels(input), pixels(grad)], torch.get_num_threads())
    k = grad.size(1)  # dw is (T,R,S,C/G*K)
    if not transposed:
        y = torch.empty(*weight_size, dtype=grad.dtype)
        source = dw.reshape(-1, weight_size[1], k)
        _core.reorder_filters(source, y.numpy().reshape(*source.shape[::-1]), True, torch.get_num_threads())
        return y
    rank = len(window)
    by_group = torch.from_numpy(dw.reshape(*window, -1, groups, k // groups))
    return by_group.permute(rank + 1, rank, rank + 2, *range(rank)).reshape(*weight_size)


def _conv_weight_fake(grad: Tensor, input: Tensor, weight_size: Ints, *geometry: Any) -> Tensor:
    return input.new_empty(weight_size)


def _conv_weight_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    grad, input, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad, input)


def _conv_weight_backward(ctx: Any, dw: Tensor) -> Any:
    grad, input = ctx.saved_tensors
    dgrad = conv(input, dw, None, *ctx.geometry, True) if ctx.needs_input_grad[0] else None
    dx = conv_input(grad, dw, input.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None
    return dgrad, dx, *(None,) * 8


conv_weight = _operator(
    f"conv_weight(Tensor grad, Tensor input, SymInt[] weight_size, {_GEOMETRY}) -> Tensor",
    _conv_weight_cpu,
    _conv_weight_fake,
    _conv_weight_setup,
    _conv_weight_backward,
)


# Convolution, batch norm, residual add and activation in one step, for inference


class _FoldedFilters(_Filters):
    """A weight and a bias with a batch norm folded in."""

    def __init__(self, groups: int, transposed: bool, eps: float):
        super().__init__(groups, transposed)
        self.eps = eps
        self.shift: np.ndarray | None = None

    def load(self, weight: Tensor, *others: Any) -> None:
        bias, *norm = others
        filters = _relaid(array(weight), self.groups, self.transposed)
        shift = None if bias is None else array(bias).copy()
        if norm:
            mean, var, gamma, beta = map(array, norm)
            scale, offset = scale_and_shift(mean, var, gamma, beta, self.eps)
            shift = (offset if shift is None else offset + scale * shift).astype(filters.dtype)
            filters = (filters * scale).astype(filters.dtype)
        self._store(filters)
        self.shift = None if shift is None else total(shift)


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
    folded = made((groups, transposed, eps), (weight, bias, *norm), lambda: _FoldedFilters(groups, transposed, eps))
    shift = folded.contents.shift

    def build() -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        x = plan.input(spatial(input.shape))
        offset = None if shift is None else plan.total_input(shift.shape)
        added = -1 if residual is None else plan.input(spatial(residual.shape))
        geometry = _geometry(stride, padding, dilation, groups, transposed)
        extra = triple(output_padding, 0)
        act: Any = dict(act=activation, act_a=a, act_b=b)
        y = plan.conv(
            x, folded.contents.parameter, offset, added, **geometry, output_padding=extra, **act, label="conv"
        )
        plan.finish([y])
        return plan

    key = (input.shape[1:], exact, residual is None, activation, a, b, *stride, *padding, *dilation, *output_padding)
    plan = folded.plan(key, build)
    others = () if shift is None else (shift,)
    return _run(plan, input, True, *others, *(() if residual is None else (pixels(residual),)))[0]


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
    return _conv_fake(input, weight, bias, *geometry, True)


conv_fused = _operator(
    "conv_fused(Tensor input, Tensor weight, Tensor? bias, Tensor[] norm, float eps, Tensor? residual, "
    f"str activation, float a, float b, {_GEOMETRY}) -> Tensor",
    _conv_fused_cpu,
    _conv_fused_fake,
)


# Batch norm with given statistics


class _ScaleShift:
    """A batch norm as scale and shift."""

    def __init__(self, eps: float):
        self.eps = eps

    def load(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        gamma, beta = (None if t is None else array(t) for t in (weight, bias))
        scale, shift = scale_and_shift(array(mean), array(var), gamma, beta, self.eps)
        dtype = array(mean).dtype
        self.scale, self.shift = total(scale.astype(dtype)), total(shift.astype(dtype))


@lru_cache(maxsize=256)
def _scale_shift_plan(dtype: torch.dtype, dims: tuple[int, ...]) -> _core.Plan:
    plan = new_plan(dtype)
    x, vector = plan.input(dims), (1, 1, 1, dims[-1])
    y = plan.scale_shift(x, plan.total_input(vector), plan.total_input(vector), label="batch_norm")
    plan.finish([y])
    return plan


def _batch_norm_cpu(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    channels_last: bool,
) -> Tensor:
    if input.size(1) != mean.numel():
        raise ShapeError(f"batch_norm: got {input.size(1)} channels, want the {mean.numel()} of the statistics")
    norm = made(eps, (mean, var, weight, bias), lambda: _ScaleShift(eps)).contents
    plan = _scale_shift_plan(input.dtype, spatial(input.shape))
    return _run(plan, input, channels_last, norm.scale, norm.shift)[0]


def _batch_norm_fake(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    channels_last: bool,
) -> Tensor:
    return _empty(input, input.size(0), input.shape[2:], input.size(1), channels_last)


def _batch_norm_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    input, weight, _, mean, var, ctx.eps, _ = inputs
    ctx.save_for_backward(input, weight, mean, var)


def _batch_norm_backward(ctx: Any, grad: Tensor) -> Any:
    input, weight, mean, var = ctx.saved_tensors
    if any(ctx.needs_input_grad[3:5]):
        raise Unsupported("batch_norm: the statistics have no gradient here; torch's layers have it (restore_layers)")
    along = (1, -1, *(1,) * (input.dim() - 2))
    sums = [0, *range(2, input.dim())]
    rstd = (var + ctx.eps).rsqrt()
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        dx = grad * (rstd if weight is None else rstd * weight).reshape(along)
    if ctx.needs_input_grad[1]:
        dweight = (grad * ((input - mean.reshape(along)) * rstd.reshape(along))).sum(sums)
    if ctx.needs_input_grad[2]:
        dbias = grad.sum(sums)
    return dx, dweight, dbias, None, None, None, None


batch_norm = _operator(
    "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps, bool channels_last) "
    "-> Tensor",
    _batch_norm_cpu,
    _batch_norm_fake,
    _batch_norm_setup,
    _batch_norm_backward,
)


# Batch norm with the statistics of the batch: (result, means, biased variances)


@lru_cache(maxsize=256)
def _train_plan(dtype: torch.dtype, dims: tuple[int, ...], affine: tuple[bool, bool], eps: float) -> _core.Plan:
    plan = new_plan(dtype)
    x, vector = plan.input(dims), (1, 1, 1, dims[-1])
    gamma, beta = (plan.total_input(vector) if given else None for given in affine)
    plan.finish(list(plan.batch_norm_train(x, gamma, beta, eps, label="batch_norm")))
    return plan


def _batch_norm_train_cpu(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _train_plan(input.dtype, spatial(input.shape), (weight is not None, bias is not None), eps)
    vectors = (total(array(t)) for t in (weight, bias) if t is not None)
    y, mean, var = _run(plan, input, channels_last, *vectors)
    return y, torch.from_numpy(mean.reshape(-1)), torch.from_numpy(var.reshape(-1))


def _batch_norm_train_fake(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    c = input.size(1)
    return _empty(input, input.size(0), input.shape[2:], c, channels_last), input.new_empty(c), input.new_empty(c)


def _batch_norm_train_setup(ctx: Any, inputs: Any, output: Any) -> None:
    input, weight, _bias, ctx.eps, _ = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(input, weight, mean, var)


def _batch_norm_train_backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    input, weight, mean, var = ctx.saved_tensors
    dx, dweight, dbias = batch_norm_backward(grad, input, weight, mean, var, ctx.eps)
    needs = ctx.needs_input_grad
    return dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None, None, None


batch_norm_train = _operator(
    "batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, float eps, bool channels_last) "
    "-> (Tensor, Tensor, Tensor)",
    _batch_norm_train_cpu,
    _batch_norm_train_fake,
    _batch_norm_train_setup,
    _batch_norm_train_backward,
)


@lru_cache(maxsize=256)
def _train_backward_plan(dtype: torch.dtype, dims: tuple[int, ...], scaled: bool, eps: float) -> _core.Plan:
    plan = new_plan(dtype)
    dy, x, vector = plan.input(dims), plan.input(dims), (1, 1, 1, dims[-1])
    mean, var, gamma = plan.total_input(vector), plan.total_input(vector), plan.total_input(vector) if scaled else None
    plan.finish(list(plan.batch_norm_backward(dy, x, mean, var, gamma, None, eps, label="batch_norm")))
    return plan


def _batch_norm_backward_cpu(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _train_backward_plan(input.dtype, spatial(input.shape), weight is not None, eps)
    vectors = (total(array(t)) for t in (mean, var, weight) if t is not None)
    dx, dweight, dbias = _run(plan, grad, True, pixels(input), *vectors)
    return dx, torch.from_numpy(dweight.reshape(-1)), torch.from_numpy(dbias.reshape(-1))


def _batch_norm_backward_fake(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    c = input.size(1)
    return _empty(grad, grad.size(0), grad.shape[2:], c, True), input.new_empty(c), input.new_empty(c)


batch_norm_backward = _operator(
    "batch_norm_backward(Tensor grad, Tensor input, Tensor? weight, Tensor mean, Tensor var, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _batch_norm_backward_cpu,
    _batch_norm_backward_fake,
)


# Pooling

_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def _window(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> dict[str, Any]:
    """The arguments of Plan.pool."""
    return dict(
        window=triple(kernel_size, 1),
        stride=triple(stride, 1),
        pad_lo=triple(padding, 0),
        pad_hi=triple(padding, 0),
        dilation=triple(dilation, 1),
    )


def _pool_sizes(
    sizes: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> list[int]:
    dims = zip(sizes, kernel_size, stride, padding, dilation)
    return [pool_size(n, r, s, p, p, d, ceil_mode) for n, r, s, p, d in dims]


@lru_cache(maxsize=256)
def _pool_plan(
    dtype: torch.dtype, dims: tuple[int, ...], kind: str, window: tuple[tuple[int, ...], ...], **options: Any
) -> _core.Plan:
    kernel_size, _, padding, _ = window
    if any(2 * p > r for p, r in zip(padding, kernel_size)):
        raise ShapeError(f"{kind}_pool: padding={padding}, want at most half of the kernel {kernel_size}")
    ceil_mode = options.pop("ceil_mode")
    sizes = _pool_sizes(dims[3 - len(kernel_size) : 3], *window, ceil_mode)  # type: ignore[call-arg, arg-type]
    plan = new_plan(dtype)
    y = plan.pool(plan.input(dims), kind, **_window(*window), out=triple(sizes, 1), **options, label=f"{kind}_pool")
    plan.finish(list(y) if options.get("indices") else [y])
    return plan


def _tuples(*windows: Ints) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, windows))


def _max_pool_cpu(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    window = _tuples(kernel_size, stride, padding, dilation)
    plan = _pool_plan(input.dtype, spatial(input.shape), "max", window, ceil_mode=ceil_mode)
    return _run(plan, input, channels_last)[0]


def _max_pool_fake(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    sizes = _pool_sizes(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    return _empty(input, input.size(0), sizes, input.size(1), channels_last)


def _max_pool_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    input, *ctx.window, _ = inputs
    ctx.save_for_backward(input)


def _max_pool_backward(ctx: Any, grad: Tensor) -> Any:
    (input,) = ctx.saved_tensors
    _, index = max_pool_with_indices(input.detach(), *ctx.window, True)
    return max_pool_backward(grad, index, input.shape, *ctx.window), *(None,) * 6


max_pool = _operator(
    f"max_pool(Tensor input, {_WINDOW}, bool channels_last) -> Tensor",
    _max_pool_cpu,
    _max_pool_fake,
    _max_pool_setup,
    _max_pool_backward,
)


def _max_pool_with_indices_cpu(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    window = _tuples(kernel_size, stride, padding, dilation)
    plan = _pool_plan(input.dtype, spatial(input.shape), "max", window, ceil_mode=ceil_mode, indices=True)
    y, index = _run(plan, input, channels_last)
    return y, index


def _max_pool_with_indices_fake(input: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    y = _max_pool_fake(input, *window)
    return y, torch.empty_like(y, dtype=torch.int64)


def _max_pool_with_indices_setup(ctx: Any, inputs: Any, output: Any) -> None:
    input, *ctx.window, _ = inputs
    _, index = output
    ctx.shape = input.shape
    ctx.mark_non_differentiable(index)
    ctx.save_for_backward(index)


def _max_pool_with_indices_backward(ctx: Any, grad: Tensor, _: Any) -> Any:
    (index,) = ctx.saved_tensors
    return max_pool_backward(grad, index, ctx.shape, *ctx.window), *(None,) * 6


max_pool_with_indices = _operator(
    f"max_pool_with_indices(Tensor input, {_WINDOW}, bool channels_last) -> (Tensor, Tensor)",
    _max_pool_with_indices_cpu,
    _max_pool_with_indices_fake,
    _max_pool_with_indices_setup,
    _max_pool_with_indices_backward,
)


@lru_cache(maxsize=256)
def _max_pool_backward_plan(
    dtype: torch.dtype, dims: tuple[int, ...], out: tuple[int, ...], window: tuple[tuple[int, ...], ...]
) -> _core.Plan:
    plan = new_plan(dtype)
    dx = plan.max_pool_backward(plan.input(out), plan.index_input(out), dims, **_window(*window), label="max_pool")
    plan.finish([dx])
    return plan


def _max_pool_backward_cpu(
    grad: Tensor,
    index: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
) -> Tensor:
    window = _tuples(kernel_size, stride, padding, dilation)
    plan = _max_pool_backward_plan(grad.dtype, spatial(input_size), spatial(grad.shape), window)
    return _run(plan, grad, True, np.ascontiguousarray(pixels(index)))[0]


def _max_pool_backward_fake(grad: Tensor, index: Tensor, input_size: Ints, *window: Any) -> Tensor:
    return _empty(grad, input_size[0], input_size[2:], input_size[1], True)


def _max_pool_backward_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _max_pool_backward_backward(ctx: Any, dx: Tensor) -> Any:
    (index,) = ctx.saved_tensors
    return dx.flatten(2).gather(2, index.flatten(2)).reshape(index.shape), *(None,) * 7


max_pool_backward = _operator(
    f"max_pool_backward(Tensor grad, Tensor index, SymInt[] input_size, {_WINDOW}) -> Tensor",
    _max_pool_backward_cpu,
    _max_pool_backward_fake,
    _max_pool_backward_setup,
    _max_pool_backward_backward,
)


_AVERAGE = "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, int divisor"


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
    plan = _pool_plan(
        input.dtype,
        spatial(input.shape),
        "avg",
        _tuples(kernel_size, stride, padding, (1,) * len(kernel_size)),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor=divisor,
    )
    return _run(plan, input, channels_last)[0]


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


def _avg_pool_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    input, *ctx.average, _ = inputs
    ctx.shape = input.shape


def _avg_pool_backward(ctx: Any, grad: Tensor) -> Any:
    return avg_pool_backward(grad, ctx.shape, *ctx.average), *(None,) * 7


avg_pool = _operator(
    f"avg_pool(Tensor input, {_AVERAGE}, bool channels_last) -> Tensor",
    _avg_pool_cpu,
    _avg_pool_fake,
    _avg_pool_setup,
    _avg_pool_backward,
)


@lru_cache(maxsize=256)
def _avg_pool_backward_plan(
    dtype: torch.dtype,
    dims: tuple[int, ...],
    out: tuple[int, ...],
    window: tuple[tuple[int, ...], ...],
    count_include_pad: bool,
    divisor: int,
) -> _core.Plan:
    plan = new_plan(dtype)
    counting: Any = dict(count_include_pad=count_include_pad, divisor=divisor)
    plan.finish([plan.avg_pool_backward(plan.input(out), dims, **_window(*window), **counting, label="avg_pool")])
    return plan


def _avg_pool_backward_cpu(
    grad: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
) -> Tensor:
    window = _tuples(kernel_size, stride, padding, (1,) * len(kernel_size))
    dims, out = spatial(input_size), spatial(grad.shape)
    return _run(_avg_pool_backward_plan(grad.dtype, dims, out, window, count_include_pad, divisor), grad, True)[0]


def _avg_pool_backward_fake(grad: Tensor, input_size: Ints, *average: Any) -> Tensor:
    return _empty(grad, input_size[0], input_size[2:], input_size[1], True)


def _avg_pool_backward_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    _, _, *ctx.average = inputs


def _avg_pool_backward_backward(ctx: Any, dx: Tensor) -> Any:
    return avg_pool(dx, *ctx.average, True), *(None,) * 7


avg_pool_backward = _operator(
    f"avg_pool_backward(Tensor grad, SymInt[] input_size, {_AVERAGE}) -> Tensor",
    _avg_pool_backward_cpu,
    _avg_pool_backward_fake,
    _avg_pool_backward_setup,
    _avg_pool_backward_backward,
)


@lru_cache(maxsize=256)
def _adaptive_plan(dtype: torch.dtype, dims: tuple[int, ...], out: tuple[int, ...]) -> _core.Plan:
    plan = new_plan(dtype)
    plan.finish([plan.adaptive_pool(plan.input(dims), "avg", out=out, label="adaptive_avg_pool")])
    return plan


def _adaptive_avg_pool_cpu(input: Tensor, output_size: Ints, channels_last: bool) -> Tensor:
    return _run(_adaptive_plan(input.dtype, spatial(input.shape), triple(output_size, 1)), input, channels_last)[0]


def _adaptive_avg_pool_fake(input: Tensor, output_size: Ints, channels_last: bool) -> Tensor:
    return _empty(input, input.size(0), output_size, input.size(1), channels_last)


def _adaptive_avg_pool_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def _adaptive_avg_pool_backward(ctx: Any, grad: Tensor) -> Any:
    return adaptive_avg_pool_backward(grad, ctx.shape), None, None


adaptive_avg_pool = _operator(
    "adaptive_avg_pool(Tensor input, SymInt[] output_size, bool channels_last) -> Tensor",
    _adaptive_avg_pool_cpu,
    _adaptive_avg_pool_fake,
    _adaptive_avg_pool_setup,
    _adaptive_avg_pool_backward,
)


@lru_cache(maxsize=256)
def _adaptive_backward_plan(dtype: torch.dtype, dims: tuple[int, ...], out: tuple[int, ...]) -> _core.Plan:
    plan = new_plan(dtype)
    plan.finish([plan.adaptive_pool_backward(plan.input(out), dims, "avg", label="adaptive_avg_pool")])
    return plan


def _adaptive_avg_pool_backward_cpu(grad: Tensor, input_size: Ints) -> Tensor:
    return _run(_adaptive_backward_plan(grad.dtype, spatial(input_size), spatial(grad.shape)), grad, True)[0]


def _adaptive_avg_pool_backward_fake(grad: Tensor, input_size: Ints) -> Tensor:
    return _empty(grad, input_size[0], input_size[2:], input_size[1], True)


def _adaptive_avg_pool_backward_setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.sizes = inputs[0].shape[2:]


def _adaptive_avg_pool_backward_backward(ctx: Any, dx: Tensor) -> Any:
    return adaptive_avg_pool(dx, ctx.sizes, True), None


adaptive_avg_pool_backward = _operator(
    "adaptive_avg_pool_backward(Tensor grad, SymInt[] input_size) -> Tensor",
    _adaptive_avg_pool_backward_cpu,
    _adaptive_avg_pool_backward_fake,
    _adaptive_avg_pool_backward_setup,
    _adaptive_avg_pool_backward_backward,
)
