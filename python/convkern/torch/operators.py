"""The operators of `torch.ops.convkern`: what the modules call, and what torch.compile and torch.export see.

Each has a kernel for CPU tensors (a plan of one step, see plans.py), a rule for the shape and strides of its result, so
that it can be traced without data, and a derivative made of operators again (library.py). Tensors are torch's (N,C,...)
of float32, or of float64 on the reference kernels; a batch of vectors is (N,C). What all share:

    padding          2*rank numbers: front, top, left, then back, bottom, right
    exact            no algorithm that rounds differently from a plain sum (Winograd)
    channels_last    results lie channels-last in memory, whatever the input does; False: as the input does

Convolutions and poolings can be derived any number of times, batch norm with the statistics of the batch once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _core
from ..errors import ShapeError, Unsupported
from ..graph import conv_size, conv_transpose_size, pool_size, scale_and_shift
from ..ops.common import triple
from ..ops.convolution import _relaid
from .library import Operator, operator
from .plans import array, is_channels_last, made, new_plan, planned, run, spatial

Ints = Sequence[int]


def _empty(x: Tensor, channels: int, sizes: Ints, channels_last: bool = True, n: int | None = None) -> Tensor:
    """A result (N,C,...) without data, with the strides that a plan's has."""
    n = x.size(0) if n is None else n
    if channels_last or is_channels_last(x):
        return x.new_empty((n, *sizes, channels)).permute(0, -1, *range(1, len(sizes) + 1))
    return x.new_empty((n, channels, *sizes))


def _gradient_fake(grad: Tensor, *arguments: Any) -> Tensor:
    """Of the operators that lead a gradient back to an input of the size `input_size`, their first option."""
    n, channels, *sizes = next(a for a in arguments if not isinstance(a, Tensor))
    return _empty(grad, channels, sizes, n=n)


def _hashable(options: Sequence[Any]) -> tuple[Any, ...]:
    """torch gives lists of integers where tuples went in."""
    return tuple(tuple(option) if isinstance(option, list) else option for option in options)


# Convolutions, and the linear layer, which is one without spatial dimensions

GEOMETRY = (
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
    """A weight as plans read it: in torch's memory, if its strides are regular, else in a contiguous copy.

    What kernels make of `kept` stays; `passing` is packed at each run, into memory that all layers share. A weight in
    training changes with each step.
    """

    def __init__(self, weight: Tensor, groups: int, transposed: bool):
        w, self.copy = weight.detach(), None
        if not _is_regular(w):
            w = self.copy = torch.empty(w.shape, dtype=w.dtype)
        rows, columns, *window = w.shape  # (K,C/G), transposed (C,K/G)
        across, along, *taps = w.stride()
        if transposed:
            shape, steps = (rows // groups, columns * groups), (across, along, rows // groups * across)
        else:
            shape, steps = (columns, rows), (along, across, rows // groups * across)
        memory = (w.data_ptr(), (*triple(window, 1), *shape), (taps[-1] if taps else 1, *steps), str(w.dtype)[6:])
        self.kept = _core.Parameter.strided(*memory)
        self.passing = _core.Parameter.strided(*memory, trainable=True)

    def load(self, weight: Tensor) -> None:
        if self.copy is not None:
            self.copy.copy_(weight.detach())
        self.kept.touch()

    @property
    def packed_bytes(self) -> int:
        return self.kept.packed_bytes


def _is_regular(w: Tensor) -> bool:
    """Whether one step leads from each tap to the next, and no step is 0."""
    steps, sizes = w.stride()[2:], w.shape[2:]
    flat = all(a == b * n for a, b, n in zip(steps, steps[1:], sizes[1:]))
    return flat and all(step > 0 or size == 1 for step, size in zip(w.stride(), w.shape))


def _weight_plan(
    weight: Tensor, groups: int, transposed: bool, key: Hashable, build: Callable[[_core.Parameter], _core.Plan]
) -> _core.Plan:
    """The plan of this key that reads the weight."""
    filters = made((groups, transposed), (weight,), lambda: _Filters(weight, groups, transposed))
    return filters.plan(key, lambda stays: build(filters.contents.kept if stays else filters.contents.passing))


def conv_shape(input: Tensor, weight: Tensor, *geometry: Any) -> tuple[int, ...]:
    """The shape of the result, (N,K,...)."""
    stride, padding, dilation, groups, transposed, output_padding, *_ = geometry
    by_axis = (input.shape[2:], weight.shape[2:], stride, *_halves(padding), dilation)
    if transposed:
        sizes = [conv_transpose_size(*of) for of in zip(*by_axis, output_padding)]
        return input.shape[0], weight.shape[1] * groups, *sizes
    return input.shape[0], weight.shape[0], *[conv_size(*of) for of in zip(*by_axis)]


def _conv_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    *geometry, channels_last = options
    _, channels, *sizes = conv_shape(input, weight, *geometry)
    return _empty(input, channels, sizes, channels_last)


@operator(f"conv(Tensor input, Tensor weight, Tensor? bias, {GEOMETRY}, bool channels_last) -> Tensor", _conv_fake)
def conv(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """A convolution, transposed or not: weight (K,C/groups,...), transposed (C,K/groups,...); bias (K,)."""
    stride, padding, dilation, groups, transposed, output_padding, exact, channels_last = options

    def build(parameter: _core.Parameter) -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        x = plan.input(spatial(input.shape))
        b = None if bias is None else plan.total_input((1, 1, 1, bias.numel()))
        geometry = _geometry(stride, padding, dilation, groups, transposed)
        extra = triple(output_padding, 0)
        plan.finish([plan.conv(x, parameter, b, **geometry, output_padding=extra, label="conv")])
        return plan

    key = ("conv", input.shape[1:], bias is None, exact, *stride, *padding, *dilation, *output_padding)
    return run(_weight_plan(weight, groups, transposed, key, build), [input, bias], channels_last)[0]


# The two gradients of a convolution; each is linear in both of its arguments, and the derivatives of the three are the
# three again.


@operator(f"conv_input(Tensor grad, Tensor weight, SymInt[] input_size, {GEOMETRY}) -> Tensor", _gradient_fake)
def conv_input(grad: Tensor, weight: Tensor, input_size: Ints, *geometry: Any) -> Tensor:
    """The gradient of a convolution's input."""
    stride, padding, dilation, groups, transposed, _output_padding, exact = geometry

    def build(parameter: _core.Parameter) -> _core.Plan:
        plan = new_plan(grad.dtype, exact)
        dy = plan.input(spatial(grad.shape))
        options = _geometry(stride, padding, dilation, groups, transposed)
        plan.finish([plan.conv_backward_data(dy, parameter, spatial(input_size), **options, label="conv")])
        return plan

    key = ("input", grad.shape[1:], tuple(input_size[1:]), exact, *stride, *padding, *dilation)
    return run(_weight_plan(weight, groups, transposed, key, build), [grad])[0]


def _conv_weight_plan(plan: _core.Plan, x: Ints, dy: Ints, window: Ints, *geometry: Any) -> list[int]:
    ids = plan.input(x), plan.input(dy)
    return [plan.conv_backward_weight(*ids, kernel=triple(window, 1), **_geometry(*geometry), label="conv")]


def _conv_weight_fake(grad: Tensor, input: Tensor, weight_size: Ints, *options: Any) -> Tensor:
    channels_last = options[-1]
    rows, columns, *window = weight_size
    return _empty(input, columns, window, channels_last, rows) if channels_last else input.new_empty(weight_size)


@operator(
    f"conv_weight(Tensor grad, Tensor input, SymInt[] weight_size, {GEOMETRY}, bool channels_last) -> Tensor",
    _conv_weight_fake,
)
def conv_weight(grad: Tensor, input: Tensor, weight_size: Ints, *options: Any) -> Tensor:
    """The gradient of a convolution's weight. channels_last: it lies so, as the weight does; else it is contiguous."""
    *geometry, _output_padding, exact, channels_last = _hashable(options)
    dims, out, window = spatial(input.shape), spatial(grad.shape), tuple(weight_size[2:])
    stride, padding, _, groups, transposed = geometry
    if groups == 1 and set(window + stride) <= {1} and not (any(padding) or transposed or channels_last):
        # A product of two matrices, which lies as the weight does if they change places.
        plan = planned(_conv_weight_plan, grad.dtype, exact, out, dims, window, *geometry)
        return run(plan, [grad, input])[0].view(weight_size)
    (dw,) = run(planned(_conv_weight_plan, grad.dtype, exact, dims, out, window, *geometry), [input, grad])
    c, k = dims[3] // groups, out[3] // groups
    source = dw.view(-1, c, groups, k)  # of each tap, as plans have it
    y = _conv_weight_fake(grad, input, weight_size, *options)
    target = y.view(groups, c if transposed else k, k if transposed else c, source.size(0))
    source = source.permute(2, 1, 3, 0) if transposed else source.permute(2, 3, 1, 0)
    _core.copy_strided(source.numpy(), target.numpy(), torch.get_num_threads())
    return y


@conv.derivative(saves=("input", "weight"))
def conv_gradients(ctx: Any, grad: Tensor) -> Any:
    input, weight = ctx.saved_tensors
    *geometry, _ = ctx.options
    needs = ctx.needs_input_grad
    dx = conv_input(grad, weight, input.shape, *geometry) if needs[0] else None
    dw = conv_weight(grad, input, weight.shape, *geometry, is_channels_last(weight)) if needs[1] else None
    db = grad.sum([0, *range(2, grad.dim())]) if needs[2] else None
    return dx, dw, db


@conv_input.derivative(saves=("grad", "weight"))
def conv_input_gradients(ctx: Any, dx: Tensor) -> Any:
    grad, weight = ctx.saved_tensors
    _input_size, *geometry = ctx.options
    needs = ctx.needs_input_grad
    dgrad = conv(dx, weight, None, *geometry, True) if needs[0] else None
    dw = conv_weight(grad, dx, weight.shape, *geometry, is_channels_last(weight)) if needs[1] else None
    return dgrad, dw


@conv_weight.derivative(saves=("grad", "input"))
def conv_weight_gradients(ctx: Any, dw: Tensor) -> Any:
    grad, input = ctx.saved_tensors
    _weight_size, *geometry, _ = ctx.options
    needs = ctx.needs_input_grad
    dgrad = conv(input, dw, None, *geometry, True) if needs[0] else None
    dx = conv_input(grad, dw, input.shape, *geometry) if needs[1] else None
    return dgrad, dx


# Convolution, batch norm, residual add and activation in one step, for inference


class _FoldedFilters:
    """A weight and a bias with a batch norm folded in, in a plan's order (T,R,S,C/G,K)."""

    def __init__(self, groups: int, transposed: bool, eps: float):
        self.groups, self.transposed, self.eps = groups, transposed, eps
        self.array: np.ndarray | None = None
        self.shift: Tensor | None = None

    def load(self, weight: Tensor, bias: Tensor | None, *norm: Tensor) -> None:
        filters = _relaid(array(weight), self.groups, self.transposed)
        shift = None if bias is None else array(bias).copy()
        if norm:
            mean, var, gamma, beta = map(array, norm)
            scale, offset = scale_and_shift(mean, var, gamma, beta, self.eps)
            shift = (offset if shift is None else offset + scale * shift).astype(filters.dtype)
            filters = (filters * scale).astype(filters.dtype)
        self.shift = None if shift is None else torch.from_numpy(shift)
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


ACTIVATION = "str activation, float a, float b"


def _conv_fused_fake(input: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor:
    return _conv_fake(input, weight, bias, *others[6:], True)  # from stride on


@operator(
    "conv_fused(Tensor input, Tensor weight, Tensor? bias, Tensor[] norm, float eps, Tensor? residual, "
    f"{ACTIVATION}, {GEOMETRY}) -> Tensor",
    _conv_fused_fake,
)
def conv_fused(
    input: Tensor, weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor], eps: float, residual: Tensor | None,
    activation: str, a: float, b: float, *geometry: Any,
) -> Tensor:  # fmt: skip
    """activation(norm(conv(input)) + residual); norm: running mean and variance, weight and bias, or nothing."""
    stride, padding, dilation, groups, transposed, output_padding, exact = geometry
    folded = made((groups, transposed, eps), (weight, bias, *norm), lambda: _FoldedFilters(groups, transposed, eps))
    shift = folded.contents.shift

    def build(_: bool) -> _core.Plan:
        plan = new_plan(input.dtype, exact)
        x = plan.input(spatial(input.shape))
        offset = None if shift is None else plan.total_input((1, 1, 1, len(shift)))
        added = -1 if residual is None else plan.input(spatial(residual.shape))
        options: Any = _geometry(stride, padding, dilation, groups, transposed)
        options |= dict(output_padding=triple(output_padding, 0), act=activation, act_a=a, act_b=b)
        plan.finish([plan.conv(x, folded.contents.parameter, offset, added, **options, label="conv")])
        return plan

    key = (input.shape[1:], exact, residual is None, activation, a, b, *stride, *padding, *dilation, *output_padding)
    return run(folded.plan(key, build, True), [input, shift, residual])[0]


# Batch norm with given statistics


class _ScaleShift:
    """A batch norm as scale and shift."""

    def __init__(self, eps: float):
        self.eps = eps

    def load(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        gamma, beta = (None if t is None else array(t) for t in (weight, bias))
        scale, shift = scale_and_shift(array(mean), array(var), gamma, beta, self.eps)
        self.vectors = [torch.from_numpy(v.astype(array(mean).dtype)) for v in (scale, shift)]


def _scale_shift_plan(plan: _core.Plan, dims: Ints) -> list[int]:
    x, vector = plan.input(dims), (1, 1, 1, dims[3])
    return [plan.scale_shift(x, plan.total_input(vector), plan.total_input(vector), label="batch_norm")]


def _same_fake(input: Tensor, *others: Any) -> Tensor:
    return _empty(input, input.size(1), input.shape[2:], others[-1])


@operator(
    "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps, bool channels_last) "
    "-> Tensor",
    _same_fake,
)
def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *options: Any
) -> Tensor:
    """(input - mean) / sqrt(var + eps) * weight + bias."""
    eps, channels_last = options
    if input.size(1) != mean.numel():
        raise ShapeError(f"batch_norm: got {input.size(1)} channels, want the {mean.numel()} of the statistics")
    norm = made(eps, (mean, var, weight, bias), lambda: _ScaleShift(eps)).contents
    plan = planned(_scale_shift_plan, input.dtype, True, spatial(input.shape))
    return run(plan, [input, *norm.vectors], channels_last)[0]


@batch_norm.derivative(saves=("input", "weight", "mean", "var"))
def batch_norm_gradients(ctx: Any, grad: Tensor) -> Any:
    input, weight, mean, var = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if any(needs[3:5]):
        raise Unsupported("batch_norm: the statistics have no gradient here; torch's layers have it (restore_layers)")
    along = (1, -1, *(1,) * (input.dim() - 2))
    sums = [0, *range(2, input.dim())]
    rstd = (var + ctx.options[0]).rsqrt()
    dx = grad * (rstd if weight is None else rstd * weight).reshape(along) if needs[0] else None
    dweight = (grad * ((input - mean.reshape(along)) * rstd.reshape(along))).sum(sums) if needs[1] else None
    return dx, dweight, grad.sum(sums) if needs[2] else None


# Batch norm with the statistics of the batch, and what follows it


def _norm_options(eps: float, activation: str, a: float, b: float) -> dict[str, Any]:
    """The arguments that Plan.batch_norm_train and batch_norm_backward share."""
    return dict(eps=eps, act=activation, act_a=a, act_b=b, label="batch_norm")


def _vectors(plan: _core.Plan, channels: int, given: Sequence[bool]) -> list[int | None]:
    return [plan.total_input((1, 1, 1, channels)) if there else None for there in given]


def _batch_norm_train_plan(
    plan: _core.Plan, dims: Ints, given: Sequence[bool], residual: bool, *numbers: Any
) -> list[int]:
    x = plan.input(dims)
    gamma, beta = _vectors(plan, dims[3], given)
    added = plan.input(dims) if residual else -1
    return list(plan.batch_norm_train(x, gamma, beta, residual=added, **_norm_options(*numbers)))


def _batch_norm_train(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *numbers, channels_last = options
    given = (weight is not None, bias is not None)
    dims = spatial(input.shape)
    plan = planned(_batch_norm_train_plan, input.dtype, True, dims, given, residual is not None, *numbers)
    y, mean, var = run(plan, [input, weight, bias, residual], channels_last)
    return y, mean, var


def _batch_norm_train_fake(input: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    c = input.size(1)
    return _same_fake(input, *others), input.new_empty(c), input.new_empty(c)


@operator(
    f"batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, float eps, {ACTIVATION}, bool channels_last) "
    "-> (Tensor, Tensor, Tensor)",
    _batch_norm_train_fake,
)
def batch_norm_train(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(activation(norm(input)), means, biased variances); the activation is none or a clamp (ReLU)."""
    return _batch_norm_train(input, weight, bias, None, *options)


@operator(
    "batch_norm_add_train(Tensor input, Tensor? weight, Tensor? bias, Tensor residual, float eps, "
    f"{ACTIVATION}, bool channels_last) -> (Tensor, Tensor, Tensor)",
    _batch_norm_train_fake,
)
def batch_norm_add_train(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(activation(norm(input) + residual), means, biased variances)."""
    return _batch_norm_train(input, weight, bias, residual, *options)


def _batch_norm_backward_plan(plan: _core.Plan, dims: Ints, given: Sequence[bool], *numbers: Any) -> list[int]:
    dy, x = plan.input(dims), plan.input(dims)
    mean, var, gamma, beta = _vectors(plan, dims[3], (True, True, *given))
    assert mean is not None and var is not None
    return list(plan.batch_norm_backward(dy, x, mean, var, gamma, beta, **_norm_options(*numbers)))


def _batch_norm_backward_fake(grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    c = grad.size(1)
    return _same_fake(grad, True), grad.new_empty(c), grad.new_empty(c)


@operator(
    "batch_norm_backward(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
    f"{ACTIVATION}) -> (Tensor, Tensor, Tensor)",
    _batch_norm_backward_fake,
)
def batch_norm_backward(
    grad: Tensor, input: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of batch_norm_train's input, weight and bias."""
    given = (weight is not None, bias is not None)
    plan = planned(_batch_norm_backward_plan, grad.dtype, True, spatial(grad.shape), given, *numbers)
    dx, dweight, dbias = run(plan, [grad, input, mean, var, weight, bias])
    return dx, dweight, dbias


def _activation_backward_plan(plan: _core.Plan, dims: Ints, activation: str, a: float, b: float) -> list[int]:
    return [plan.activation_backward(plan.input(dims), plan.input(dims), activation, a, b, label=activation)]


@operator(
    f"activation_backward(Tensor grad, Tensor output, {ACTIVATION}) -> Tensor",
    lambda grad, *_: _same_fake(grad, True),
)
def activation_backward(grad: Tensor, output: Tensor, *activation: Any) -> Tensor:
    """The gradient of an activation's input, for those whose slope shows in the output (clamps)."""
    plan = planned(_activation_backward_plan, grad.dtype, True, spatial(grad.shape), *activation)
    return run(plan, [grad, output])[0]


@batch_norm_train.derivative(saves=("input", "weight", "bias"), saves_results=(1, 2))
def batch_norm_train_gradients(ctx: Any, grad: Tensor) -> Any:
    input, weight, bias, mean, var = ctx.saved_tensors
    *numbers, _ = ctx.options
    of = batch_norm_backward(grad, input, mean, var, weight, bias, *numbers)
    return tuple(g if needed else None for g, needed in zip(of, ctx.needs_input_grad))


@batch_norm_add_train.derivative(saves=("input", "weight", "bias"), saves_results=(0, 1, 2))
def batch_norm_add_train_gradients(ctx: Any, grad: Tensor) -> Any:
    # The activation's slope shows in the output, which only the sum knows: the sum's gradient comes first.
    input, weight, bias, output, mean, var = ctx.saved_tensors
    eps, *activation, _ = ctx.options
    added = grad if activation[0] == "none" else activation_backward(grad, output, *activation)
    of = batch_norm_backward(added, input, mean, var, weight, bias, eps, "none", 0.0, 0.0)
    return tuple(g if needed else None for g, needed in zip((*of, added), ctx.needs_input_grad))


# Max pooling

WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def _window(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> dict[str, Any]:
    """The arguments of Plan.pool."""
    return dict(
        window=triple(kernel_size, 1),
        stride=triple(stride, 1),
        pad_lo=triple(padding, 0),
        pad_hi=triple(padding, 0),
        dilation=triple(dilation, 1),
    )


def _pool_sizes(sizes: Ints, kernel_size: Ints, *others: Any) -> list[int]:
    stride, padding, dilation, ceil_mode = others
    if any(2 * p > r for p, r in zip(padding, kernel_size)):
        raise ShapeError(f"pooling: padding={tuple(padding)}, want at most half of the kernel {tuple(kernel_size)}")
    of = zip(sizes, kernel_size, stride, padding, dilation)
    return [pool_size(n, r, s, p, p, d, ceil_mode) for n, r, s, p, d in of]


def _max_pool_plan(plan: _core.Plan, dims: Ints, indices: bool, *window: Any) -> list[int]:
    out = triple(_pool_sizes(dims[3 - len(window[0]) : 3], *window), 1)
    y: Any = plan.pool(plan.input(dims), "max", **_window(*window[:4]), out=out, indices=indices, label="max_pool")
    return list(y) if indices else [y]


def _max_pool(input: Tensor, indices: bool, *options: Any) -> list[Tensor]:
    *window, channels_last = _hashable(options)
    return run(
        planned(_max_pool_plan, input.dtype, True, spatial(input.shape), indices, *window), [input], channels_last
    )


def _max_pool_fake(input: Tensor, *options: Any) -> Tensor:
    *window, channels_last = options
    return _empty(input, input.size(1), _pool_sizes(input.shape[2:], *window), channels_last)


@operator(f"max_pool(Tensor input, {WINDOW}, bool channels_last) -> Tensor", _max_pool_fake)
def max_pool(input: Tensor, *options: Any) -> Tensor:
    """The maximum of each window."""
    return _max_pool(input, False, *options)[0]


def _max_pool_with_indices_fake(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    y = _max_pool_fake(input, *options)
    return y, torch.empty_like(y, dtype=torch.int64)


@operator(
    f"max_pool_with_indices(Tensor input, {WINDOW}, bool channels_last) -> (Tensor, Tensor)",
    _max_pool_with_indices_fake,
)
def max_pool_with_indices(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The maximum of each window and its place in the image."""
    y, index = _max_pool(input, True, *options)
    return y, index


def _max_pool_backward_plan(plan: _core.Plan, dims: Ints, out: Ints, *window: Any) -> list[int]:
    dy, index = plan.input(out), plan.index_input(out)
    return [plan.max_pool_backward(dy, index, dims, **_window(*window[:4]), label="max_pool")]


@operator(
    f"max_pool_backward(Tensor grad, Tensor index, SymInt[] input_size, {WINDOW}) -> Tensor",
    _gradient_fake,
)
def max_pool_backward(grad: Tensor, index: Tensor, input_size: Ints, *window: Any) -> Tensor:
    """The gradient of max pooling's input."""
    dims = spatial(input_size), spatial(grad.shape)
    plan = planned(_max_pool_backward_plan, grad.dtype, True, *dims, *_hashable(window))
    return run(plan, [grad, index.movedim(1, -1).contiguous().movedim(-1, 1)])[0]  # positions lie without gaps


@max_pool.derivative(saves=("input",))
def max_pool_gradients(ctx: Any, grad: Tensor) -> Any:
    (input,) = ctx.saved_tensors
    *window, _ = ctx.options
    _, index = max_pool_with_indices(input.detach(), *window, True)
    return (max_pool_backward(grad, index, input.shape, *window),)


@max_pool_with_indices.derivative(saves_results=(1,))
def max_pool_with_indices_gradients(ctx: Any, grad: Tensor) -> Any:
    (index,) = ctx.saved_tensors
    *window, _ = ctx.options
    return (max_pool_backward(grad, index, ctx.shape, *window),)


@max_pool_backward.derivative(saves=("index",))
def max_pool_backward_gradients(ctx: Any, dx: Tensor) -> Any:
    (index,) = ctx.saved_tensors
    return (dx.flatten(2).gather(2, index.flatten(2)).reshape(index.shape),)


# Average poolings: linear, so that each and the operator of its gradient are each other's derivative


def _average(
    name: str, schema: str, sizes: Callable[..., Ints], forward: Callable[..., int], backward: Callable[..., int]
) -> tuple[Operator, Operator]:
    """Define an average pooling and its gradient.

    schema: of its options. sizes: (image's sizes, *options) -> the result's sizes. forward, backward: (plan, id of what
    is given, the (D,H,W,C) that is wanted, *options) -> the result's id.
    """

    def plan_of(plan: _core.Plan, step: Callable[..., int], given: Ints, wanted: Ints, *options: Any) -> list[int]:
        return [step(plan, plan.input(given), wanted, *options)]

    def fake(input: Tensor, *arguments: Any) -> Tensor:
        *options, channels_last = arguments
        return _empty(input, input.size(1), sizes(input.shape[2:], *options), channels_last)

    @operator(f"{name}(Tensor input, {schema}, bool channels_last) -> Tensor", fake)
    def average_pool(input: Tensor, *arguments: Any) -> Tensor:
        """The average of each window."""
        *options, channels_last = _hashable(arguments)
        out = (*triple(sizes(input.shape[2:], *options), 1), input.size(1))
        plan = planned(plan_of, input.dtype, True, forward, spatial(input.shape), out, *options)
        return run(plan, [input], channels_last)[0]

    @operator(f"{name}_backward(Tensor grad, SymInt[] input_size, {schema}) -> Tensor", _gradient_fake)
    def average_pool_backward(grad: Tensor, input_size: Ints, *options: Any) -> Tensor:
        """The gradient of the average's input."""
        dims = spatial(grad.shape), spatial(input_size)
        return run(planned(plan_of, grad.dtype, True, backward, *dims, *_hashable(options)), [grad])[0]

    @average_pool.derivative()
    def gradients(ctx: Any, grad: Tensor) -> Any:
        *options, _ = ctx.options
        return (average_pool_backward(grad, ctx.shape, *options),)

    @average_pool_backward.derivative()
    def gradients_back(ctx: Any, dx: Tensor) -> Any:
        _input_size, *options = ctx.options
        return (average_pool(dx, *options, True),)

    return average_pool, average_pool_backward


def _average_options(kernel_size: Ints, stride: Ints, padding: Ints, _: bool, *counting: Any) -> dict[str, Any]:
    count_include_pad, divisor = counting
    window = _window(kernel_size, stride, padding, ())
    return window | dict(count_include_pad=count_include_pad, divisor=divisor, label="avg_pool")


avg_pool, avg_pool_backward = _average(
    "avg_pool",
    "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, int divisor",
    sizes=lambda sizes, r, stride, padding, ceil_mode, *_: _pool_sizes(
        sizes, r, stride, padding, (1,) * len(r), ceil_mode
    ),
    forward=lambda plan, x, out, *options: plan.pool(x, "avg", out=out[:3], **_average_options(*options)),
    backward=lambda plan, dy, dims, *options: plan.avg_pool_backward(dy, dims, **_average_options(*options)),
)

adaptive_avg_pool, adaptive_avg_pool_backward = _average(
    "adaptive_avg_pool",
    "SymInt[] output_size",
    sizes=lambda _sizes, output_size: output_size,
    forward=lambda plan, x, out, _: plan.adaptive_pool(x, "avg", out=out[:3], label="adaptive_avg_pool"),
    backward=lambda plan, dy, dims, _: plan.adaptive_pool_backward(dy, dims, "avg", label="adaptive_avg_pool"),
)
