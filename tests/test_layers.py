"""Each layer against PyTorch in float64 or NumPy, on integers where every sum is exact; arguments, defaults, errors.

Keras itself is not a dependency: its conventions ("same", transposed sizes, averages without padding, defaults) are
restated here from their definitions.
"""

import inspect
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
import tolerance
from convkern import Input, Model, initializers, layers, set_seed
from convkern.errors import ConvkernError, DTypeError, ModelError, ShapeError, Unsupported
from convkern.graph import Param
from convkern.layers import (
    ELU,
    Activation,
    AdaptiveAveragePool2D,
    Add,
    Average,
    AveragePool1D,
    AveragePool2D,
    AveragePool3D,
    BatchNormalization,
    Concatenate,
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    Cropping1D,
    Cropping2D,
    Cropping3D,
    Dense,
    DepthwiseConv1D,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    InputLayer,
    Layer,
    LayerNormalization,
    LeakyReLU,
    LocalResponseNormalization,
    Maximum,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Minimum,
    Multiply,
    Permute,
    ReLU,
    Rescaling,
    Reshape,
    Resizing,
    SeparableConv1D,
    SeparableConv2D,
    Softmax,
    StochasticDepth,
    Subtract,
    UpSampling1D,
    UpSampling2D,
    UpSampling3D,
    ZeroPadding1D,
    ZeroPadding2D,
    ZeroPadding3D,
)

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
SIZES = {1: (11,), 2: (9, 10), 3: (5, 6, 7)}


def first(x):
    """Channels first, float64."""
    return torch.from_numpy(np.asarray(x, np.float64)).movedim(-1, 1)


def last(x):
    return x.movedim(1, -1).numpy()


def kernel(w):
    """(R,S,C,K) -> (K,C,R,S)."""
    return torch.from_numpy(np.asarray(w, np.float64)).permute(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))


def integer_weights(layer, rng):
    layer.set_weights([oracle.integers(rng, p.shape) for p in layer.weights])


def same(n, r, s, d=1):
    """Keras' padding: ceil(n / s) outputs, the odd pixel after."""
    total = max((math.ceil(n / s) - 1) * s + d * (r - 1) + 1 - n, 0)
    return total // 2, total - total // 2


def padded(x, pairs, value=0.0):
    return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


# Convolutions


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "same"},
        {"strides": 3, "padding": "same", "use_bias": False},
        {"padding": "same", "dilation_rate": 2},
        {"padding": 1, "groups": 2, "activation": "relu"},
        {"padding": "pairs", "strides": 2},
    ],
    ids=str,
)
def test_conv(rank, options, rng):
    options = dict(options)
    size, stride, dilation = SIZES[rank], options.get("strides", 1), options.get("dilation_rate", 1)
    if options.get("padding") == "pairs":
        options["padding"] = tuple((i, 2) for i in range(rank))
    layer = {1: Conv1D, 2: Conv2D, 3: Conv3D}[rank](6, 3, **options)
    x = oracle.integers(rng, (2, *size, 4))
    layer(x)
    integer_weights(layer, rng)
    w, b = layer.params["kernel"].value, layer.params.get("bias")
    padding = options.get("padding", "valid")
    if padding == "same":
        pairs = [same(n, 3, stride, dilation) for n in size]
    else:
        pairs = {"valid": [(0, 0)] * rank, 1: [(1, 1)] * rank}.get(padding, padding)
    bias = None if b is None else torch.from_numpy(b.value.astype(np.float64))
    want = CONV[rank](padded(first(x), pairs), kernel(w), bias, stride, 0, dilation, options.get("groups", 1))
    want = want.relu() if "activation" in options else want
    tolerance.assert_exact(layer(x), last(want))


def test_causal(rng):
    layer = Conv1D(3, 4, padding="causal", dilation_rate=2)
    x = oracle.integers(rng, (2, 10, 2))
    layer(x)
    integer_weights(layer, rng)
    w, b = layer.get_weights()
    want = F.conv1d(F.pad(first(x), (6, 0)), kernel(w), torch.from_numpy(b.astype("f8")), dilation=2)
    tolerance.assert_exact(layer(x), last(want))
    changed = x.copy()
    changed[:, 7:] += 1
    tolerance.assert_exact(layer(changed)[:, :7], layer(x)[:, :7])  # the past does not see the future


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"strides": 2, "padding": "same"}, {"padding": 1, "dilation_rate": 2}], ids=str
)
def test_depthwise(multiplier, options, rng):
    layer = DepthwiseConv2D(3, depth_multiplier=multiplier, **options)
    x = oracle.integers(rng, (2, 9, 10, 5))
    layer(x)
    integer_weights(layer, rng)
    w, b = layer.get_weights()
    assert w.shape == (3, 3, 5, multiplier)
    pairs = [same(n, 3, 2) for n in (9, 10)] if "strides" in options else [(options.get("padding", 0),) * 2] * 2
    taps = torch.from_numpy(w.astype("f8")).permute(2, 3, 0, 1).reshape(5 * multiplier, 1, 3, 3)
    stride, dilation = options.get("strides", 1), options.get("dilation_rate", 1)
    want = F.conv2d(padded(first(x), pairs), taps, torch.from_numpy(b.astype("f8")), stride, 0, dilation, 5)
    tolerance.assert_exact(layer(x), last(want))


@pytest.mark.parametrize("cls, size", [(SeparableConv1D, (9,)), (SeparableConv2D, (9, 8))])
def test_separable(cls, size, rng):
    layer = cls(4, 3, depth_multiplier=2, activation="relu6")
    x = oracle.integers(rng, (2, *size, 3))
    layer(x)
    integer_weights(layer, rng)
    depth, point, bias = layer.get_weights()
    assert depth.shape == (*(3,) * len(size), 3, 2) and point.shape == (*(1,) * len(size), 6, 4)
    rank = len(size)
    taps = torch.from_numpy(depth.astype("f8")).movedim((-2, -1), (0, 1)).reshape(6, 1, *(3,) * rank)
    want = CONV[rank](CONV[rank](first(x), taps, groups=3), kernel(point), torch.from_numpy(bias.astype("f8")))
    tolerance.assert_exact(layer(x), last(want.clamp(0, 6)))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("r, stride", [(3, 1), (3, 2), (2, 2), (4, 2), (1, 2), (2, 3), (5, 3)])
def test_transposed_is_the_gradient(r, stride, padding, rng):
    """Keras' sizes: the layer undoes a convolution of H*stride (+ r - stride) pixels with the same word for padding."""
    layer = Conv2DTranspose(4, r, strides=stride, padding=padding, use_bias=False)
    x = oracle.integers(rng, (2, 5, 6, 3))
    layer(x)
    integer_weights(layer, rng)
    (w,) = layer.get_weights()
    assert w.shape == (r, r, 4, 3)
    size = [n * stride + (max(r - stride, 0) if padding == "valid" else 0) for n in (5, 6)]
    big = torch.zeros(2, 4, *size, dtype=torch.float64, requires_grad=True)
    pairs = [same(n, r, stride) for n in size] if padding == "same" else [(0, 0)] * 2
    F.conv2d(padded(big, pairs), kernel(w), stride=stride).backward(first(x))
    tolerance.assert_exact(layer(x), last(big.grad))


@pytest.mark.parametrize(
    "options", [{"padding": 1, "output_padding": 1}, {"padding": ((0, 1), (2, 0)), "groups": 2}], ids=str
)
def test_transposed_as_torch(options, rng):
    layer = Conv2DTranspose(4, 3, strides=2, **options)
    x = oracle.integers(rng, (2, 5, 6, 6))
    layer(x)
    integer_weights(layer, rng)
    w, b = layer.get_weights()  # (R, S, K/G, C)
    groups, padding = options.get("groups", 1), options["padding"]
    taps = torch.from_numpy(w.astype("f8")).permute(3, 2, 0, 1)
    extra = options.get("output_padding", 0)
    want = F.conv_transpose2d(first(x), taps, torch.from_numpy(b.astype("f8")), 2, 0, extra, groups)
    (top, bottom), (left, right) = ((1, 1), (1, 1)) if padding == 1 else padding
    want = want[:, :, top : want.shape[2] - bottom, left : want.shape[3] - right]
    tolerance.assert_exact(layer(x), last(want))


def test_transposed_other_ranks(rng):
    for cls, size, torch_op in (
        (Conv1DTranspose, (7,), F.conv_transpose1d),
        (Conv3DTranspose, (3, 4, 5), F.conv_transpose3d),
    ):
        layer = cls(2, 2, strides=2)
        x = oracle.integers(rng, (2, *size, 3))
        layer(x)
        integer_weights(layer, rng)
        w, b = layer.get_weights()
        taps = torch.from_numpy(w.astype("f8")).movedim((-1, -2), (0, 1))
        tolerance.assert_exact(layer(x), last(torch_op(first(x), taps, torch.from_numpy(b.astype("f8")), 2)))


# Pooling


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_size": 3, "strides": 2},
        {"pool_size": 3, "strides": 2, "padding": 1, "ceil_mode": True},
        {"pool_size": 2, "dilation": 2},
    ],
    ids=str,
)
def test_max_pool(rank, options, rng):
    x = oracle.integers(rng, (2, *SIZES[rank], 3), limit=100)
    got = {1: MaxPool1D, 2: MaxPool2D, 3: MaxPool3D}[rank](**options)(x)
    o = {"pool_size": 2, "strides": None, "padding": 0, **options}
    rest = {"ceil_mode": o.get("ceil_mode", False), "dilation": o.get("dilation", 1)}
    tolerance.assert_exact(got, last(MAX[rank](first(x), o["pool_size"], o["strides"], o["padding"], **rest)))


def average_bound(x, n):
    return tolerance.sum_bound(n + 1, np.abs(x).max())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_average_pool_as_torch(rank, include, ceil_mode, rng):
    x = oracle.integers(rng, (2, *SIZES[rank], 3))
    cls = {1: AveragePool1D, 2: AveragePool2D, 3: AveragePool3D}[rank]
    got = cls(3, 2, padding=1, ceil_mode=ceil_mode, count_include_pad=include)(x)
    want = AVG[rank](first(x), 3, 2, 1, ceil_mode=ceil_mode, count_include_pad=include)
    tolerance.assert_within(got, last(want), average_bound(x, 3**rank))


def test_same_pooling(rng):
    """Maxima ignore the padding, averages divide by the pixels that are there."""
    x = oracle.integers(rng, (2, 9, 10, 3))
    pairs = [same(n, 3, 2) for n in (9, 10)]
    want = F.max_pool2d(padded(first(x), pairs, -math.inf), 3, 2)
    tolerance.assert_exact(MaxPool2D(3, 2, padding="same")(x), last(want))
    ones = F.avg_pool2d(padded(torch.ones(2, 3, 9, 10, dtype=torch.float64), pairs), 3, 2)
    want = F.avg_pool2d(padded(first(x), pairs), 3, 2) / ones
    tolerance.assert_within(AveragePool2D(3, 2, padding="same")(x), last(want), average_bound(x, 9))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_and_adaptive_pools(rank, rng):
    x = oracle.integers(rng, (2, *SIZES[rank], 3))
    axes, count = tuple(range(1, rank + 1)), math.prod(SIZES[rank])
    mean, maximum = x.mean(axes, dtype=np.float64), x.max(axes)
    bound = average_bound(x, count)
    tolerance.assert_within(getattr(layers, f"GlobalAveragePool{rank}D")()(x), mean, bound)
    tolerance.assert_exact(getattr(layers, f"GlobalMaxPool{rank}D")()(x), maximum)
    kept = getattr(layers, f"GlobalMaxPool{rank}D")(keepdims=True)(x)
    tolerance.assert_exact(kept, x.max(axes, keepdims=True))
    adaptive = {1: (F.adaptive_avg_pool1d, F.adaptive_max_pool1d), 2: (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)}
    adaptive[3] = (F.adaptive_avg_pool3d, F.adaptive_max_pool3d)
    average, maximum = adaptive[rank]
    size = (4,) if rank == 1 else (4, 3) if rank == 2 else (4, 3, 1)
    got = getattr(layers, f"AdaptiveAveragePool{rank}D")(size)(x)
    tolerance.assert_within(got, last(average(first(x), size)), bound)
    tolerance.assert_exact(getattr(layers, f"AdaptiveMaxPool{rank}D")(size)(x), last(maximum(first(x), size)))


# Dense and value by value


@pytest.mark.parametrize("shape", [(7,), (5, 7), (4, 5, 7)])
def test_dense(shape, rng):
    layer = Dense(3)
    x = oracle.integers(rng, (2, *shape))
    assert layer(x).shape == (2, *shape[:-1], 3)
    integer_weights(layer, rng)
    w, b = layer.get_weights()
    assert w.shape == (7, 3)
    tolerance.assert_exact(layer(x), x @ w + b)


KERAS_ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "swish": F.silu, "sigmoid": torch.sigmoid,
    "hard_swish": F.hardswish, "hard_silu": F.hardswish, "hard_sigmoid": F.hardsigmoid, "gelu": F.gelu,
    "tanh": torch.tanh, "elu": F.elu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "leaky_relu": lambda v: F.leaky_relu(v, 0.2),
    "softplus": F.softplus, "linear": lambda v: v, "exponential": torch.exp, "exp": torch.exp,
}  # fmt: skip


@pytest.mark.parametrize("name", KERAS_ACTIVATIONS)
def test_activations(name, rng):
    x = oracle.reals(rng, (2, 5, 6, 7))
    kind, a, b = layers.arguments.ACTIVATIONS[name]
    want = KERAS_ACTIVATIONS[name](torch.from_numpy(x.astype("f8"))).numpy()
    if kind == "exp":
        bound = tolerance.FUNCTION_ULPS * tolerance.U * want + tolerance.TINY
    else:
        bound = tolerance.activation_bound(kind, x, 0.0, a, b)
    tolerance.assert_within(Activation(name)(x), want, bound, name)
    dense = Dense(7, activation=name, use_bias=False, kernel_initializer=lambda shape, _: np.eye(7, dtype="f4"))
    tolerance.assert_within(dense(x), want, bound, f"Dense with {name}")
    assert set(KERAS_ACTIVATIONS) == set(layers.arguments.ACTIVATIONS)


def test_relu_layers(rng):
    x = oracle.integers(rng, (3, 17), limit=20)
    tolerance.assert_exact(ReLU()(x), np.maximum(x, 0))
    tolerance.assert_exact(ReLU(6)(x), np.clip(x, 0, 6))
    tolerance.assert_exact(ReLU(negative_slope=0.5)(x), np.where(x > 0, x, x / 2))
    tolerance.assert_exact(ReLU(4, 0.5)(x), np.minimum(np.where(x > 0, x, x / 2), 4))
    tolerance.assert_exact(LeakyReLU(0.25)(x), np.where(x > 0, x, x / 4))
    want = np.where(x > 0, x, 2 * np.expm1(np.minimum(x, 0, dtype="f8")))
    tolerance.assert_within(ELU(2.0)(x), want, tolerance.activation_bound("elu", x, 0.0, 2.0))


@pytest.mark.parametrize("axis", [-1, 1, 2, 3, -3])
def test_softmax(axis, rng):
    x = oracle.reals(rng, (2, 4, 5, 6))
    want = torch.softmax(torch.from_numpy(x.astype("f8")), axis).numpy()
    tolerance.assert_within(Softmax(axis)(x), want, tolerance.softmax_bound(x, axis))


def test_softmax_by_name(rng):
    x = oracle.reals(rng, (3, 10))
    want = torch.log_softmax(torch.from_numpy(x.astype("f8")), -1).numpy()
    tolerance.assert_within(Activation("log_softmax")(x), want, tolerance.softmax_bound(x, log=True))
    tolerance.assert_within(Activation("softmax")(x), np.exp(want), tolerance.softmax_bound(x))


def test_rescaling_and_dropout(rng):
    x = oracle.integers(rng, (2, 3, 4, 3))
    tolerance.assert_exact(Rescaling(0.5, -1.0)(x), x * 0.5 - 1)
    tolerance.assert_exact(Rescaling([1, 2, 4], [0.5, 0, -1])(x), x * [1, 2, 4] + [0.5, 0, -1])
    tolerance.assert_exact(Dropout(0.9)(x), x)


# Normalization


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False, "epsilon": 1e-5}], ids=str)
@pytest.mark.parametrize("behind", [None, "conv", "depthwise", "dense"])
def test_batch_norm(options, behind, rng):
    """By itself and folded into the layer before it."""
    norm = BatchNormalization(**options)
    x = oracle.reals(rng, (2, 5, 6, 4))
    image = Input((5, 6, 4))
    make = {
        "conv": lambda: Conv2D(7, 1),
        "depthwise": lambda: DepthwiseConv2D(1),
        "dense": lambda: Dense(7),
        None: None,
    }[behind]
    before = make() if make else None
    y = before(image) if before else image
    model = Model(image, norm(y))
    c = y.shape[-1]
    for param in norm.weights:
        value = oracle.reals(rng, (c,))
        param.assign(np.abs(value) + 0.1 if param.name == "moving_variance" else value)
    v = x.astype("f8")
    if before:
        w, b = (p.value.astype("f8") for p in before.weights)
        v = x * w.reshape(-1) + b if behind == "depthwise" else x @ w.reshape(4, 7) + b
    p = {key: param.value.astype("f8") for key, param in norm.params.items()}
    eps = options.get("epsilon", 1e-3)
    want = (v - p["moving_mean"]) / np.sqrt(p["moving_variance"] + eps) * p.get("gamma", 1.0) + p.get("beta", 0.0)
    magnitude = np.abs(x) @ np.abs(w.reshape(4, 7)) + np.abs(b) if behind in ("conv", "dense") else np.abs(x)
    if behind == "depthwise":
        magnitude = np.abs(x) * np.abs(w.reshape(-1)) + np.abs(b)
    bound = tolerance.batch_norm_bound(
        magnitude, p["moving_mean"], p["moving_variance"], p.get("gamma"), p.get("beta"), eps
    )
    tolerance.assert_within(model(x), want, bound)
    if before:  # it really was folded
        assert [step["op"] for step in model.plan().steps()] == ["conv"]


@pytest.mark.parametrize("options", [{}, {"center": False, "scale": False, "epsilon": 1e-5}], ids=str)
def test_layer_norm(options, rng):
    layer = LayerNormalization(**options)
    x = oracle.reals(rng, (2, 5, 16))
    layer(x)
    layer.set_weights([oracle.reals(rng, p.shape) for p in layer.weights])
    g, b = (torch.from_numpy(w.astype("f8")) for w in layer.get_weights()) if layer.weights else (None, None)
    eps = options.get("epsilon", 1e-3)
    want = F.layer_norm(torch.from_numpy(x.astype("f8")), (16,), g, b, eps).numpy()
    g, b = (None, None) if g is None else (g.numpy(), b.numpy())
    tolerance.assert_within(layer(x), want, tolerance.layer_norm_bound(x, g, b, eps))


def test_local_response_norm(rng):
    x = oracle.reals(rng, (2, 4, 5, 12))
    got = LocalResponseNormalization(5, alpha=0.3, beta=0.75, k=2.0)(x)
    want = last(F.local_response_norm(first(x), 5, 0.3, 0.75, 2.0))
    tolerance.assert_within(got, want, tolerance.lrn_bound(x, want, 5, 0.75, 2.0))


# Several tensors


@pytest.mark.parametrize(
    "cls, want",
    [
        (Add, lambda a, b: a + b),
        (Subtract, lambda a, b: a - b),
        (Multiply, lambda a, b: a * b),
        (Maximum, np.maximum),
        (Minimum, np.minimum),
        (Average, lambda a, b: (a + b) / 2),
    ],
)
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 6), (4, 1, 1)])
def test_merges(cls, want, shape, rng):
    a, b = oracle.integers(rng, (2, 4, 5, 6)), oracle.integers(rng, (2, *shape))
    tolerance.assert_exact(cls()([a, b]), want(a, b))


def test_merges_of_three(rng):
    a, b, c = (oracle.integers(rng, (2, 4, 6)) for _ in range(3))
    tolerance.assert_exact(Add()([a, b, c]), a + b + c)
    tolerance.assert_exact(Multiply()([a, b, c]), a * b * c)
    tolerance.assert_exact(Maximum()([a, b, c]), np.maximum(np.maximum(a, b), c))
    tolerance.assert_within(Average()([a, b, c]), (a + b + c) / 3.0, tolerance.sum_bound(2, 4))
    x, y = Input((4, 6)), Input((4, 6))
    tolerance.assert_exact(Model([x, y], (x + y) * x - y)([a, b]), (a + b) * a - b)


@pytest.mark.parametrize("axis", [-1, 1, 2, 3, -2])
def test_concatenate(axis, rng):
    shapes = [[4, 5, 6], [4, 5, 6], [4, 5, 6]]
    for i, shape in enumerate(shapes):
        shape[axis if axis < 0 else axis - 1] = i + 1
    arrays = [oracle.integers(rng, (2, *shape)) for shape in shapes]
    tolerance.assert_exact(Concatenate(axis)(arrays), np.concatenate(arrays, axis))


# Moving and resizing


def test_reshapes(rng):
    x = oracle.integers(rng, (2, 4, 5, 6))
    tolerance.assert_exact(Flatten()(x), x.reshape(2, -1))
    tolerance.assert_exact(Reshape((10, -1))(x), x.reshape(2, 10, 12))
    tolerance.assert_exact(Permute((3, 1, 2))(x), x.transpose(0, 3, 1, 2))


def test_borders(rng):
    for rank in (1, 2, 3):
        x = oracle.integers(rng, (2, *SIZES[rank], 3))
        amounts = [(1, 2), (0, 1), (2, 0)][:rank]
        got = getattr(layers, f"ZeroPadding{rank}D")(amounts if rank > 1 else (1, 2))(x)
        tolerance.assert_exact(got, np.pad(x, [(0, 0), *amounts, (0, 0)]))
        tolerance.assert_exact(getattr(layers, f"Cropping{rank}D")(amounts if rank > 1 else (1, 2))(got), x)


def test_padding_in_front_of_layers(rng):
    """Folded into the convolution, not into the maximum (zeros count there)."""
    x = oracle.integers(rng, (2, 6, 6, 3), limit=4) - 10
    image = Input((6, 6, 3))
    padded_image = ZeroPadding2D(((0, 1), (1, 0)))(image)
    conv = Conv2D(4, 3)
    model = Model(image, [conv(padded_image), MaxPool2D(3, 2)(padded_image)])
    integer_weights(conv, rng)
    zeros = np.pad(x, ((0, 0), (0, 1), (1, 0), (0, 0)))
    tolerance.assert_exact(model(x)[0], conv(zeros))
    tolerance.assert_exact(model(x)[1], MaxPool2D(3, 2)(zeros))


def test_upsampling(rng):
    x = oracle.integers(rng, (2, 3, 4, 5))
    tolerance.assert_exact(UpSampling2D((2, 3))(x), x.repeat(2, 1).repeat(3, 2))
    tolerance.assert_exact(UpSampling1D(3)(x[:, 0]), x[:, 0].repeat(3, 1))
    v = oracle.integers(rng, (1, 2, 3, 4, 2))
    tolerance.assert_exact(UpSampling3D((1, 2, 3))(v), v.repeat(2, 2).repeat(3, 3))
    want = F.interpolate(first(x), scale_factor=2, mode="bilinear", align_corners=False)
    tolerance.assert_within(UpSampling2D(interpolation="bilinear")(x), last(want), tolerance.resize_bound(x, (6, 8), 2))


@pytest.mark.parametrize("mode, taps", [("nearest", 1), ("bilinear", 2), ("bicubic", 4)])
def test_resizing(mode, taps, rng):
    x = oracle.integers(rng, (2, 7, 10, 3))
    torch_mode = "nearest-exact" if mode == "nearest" else mode
    corners = {} if mode == "nearest" else {"align_corners": False}

    def want(array):
        return last(F.interpolate(first(array), size=(5, 6), mode=torch_mode, **corners))

    bound = tolerance.resize_bound(x, (10, 10), taps)
    tolerance.assert_within(Resizing(5, 6, interpolation=mode)(x), want(x), bound)
    # 7 x 10 to 5:6 is 7 x 8, or 8 x 10
    cut = Resizing(5, 6, interpolation=mode, crop_to_aspect_ratio=True)(x)
    tolerance.assert_within(cut, want(x[:, :, 1:9]), bound)
    framed = Resizing(5, 6, interpolation=mode, pad_to_aspect_ratio=True, fill_value=3.0)(x)
    border = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=3)
    tolerance.assert_within(framed, want(border), bound)


# Arguments

EXAMPLES = [
    (Conv1D(6, 2, padding="causal", dilation_rate=2, groups=2, activation="relu", name="c"), [(9, 4)]),
    (Conv2D(4, (3, 2), strides=2, padding=((1, 0), (2, 1)), use_bias=False, torch_name="features.0"), [(9, 8, 2)]),
    (Conv2D(4, 3, kernel_initializer=initializers.VarianceScaling(2.0)), [(9, 8, 2)]),
    (Conv3D(2, 2, padding="same"), [(3, 4, 5, 2)]),
    (DepthwiseConv1D(2, depth_multiplier=2), [(9, 4)]),
    (DepthwiseConv2D(3, 2, "same", 2, activation="silu"), [(9, 8, 3)]),
    (SeparableConv1D(4, 3), [(9, 3)]),
    (SeparableConv2D(4, 3, 1, 1), [(9, 8, 3)]),
    (Conv1DTranspose(3, 3, 2, "same"), [(9, 4)]),
    (Conv2DTranspose(3, 3, 2, "same", output_padding=1), [(5, 4, 2)]),
    (Conv3DTranspose(3, 2, 2), [(2, 3, 4, 2)]),
    (Dense(5, "tanh", flatten_shape=(2, 2, 3)), [(12,)]),
    (BatchNormalization(epsilon=1e-5, momentum=0.9, scale=False), [(4, 4, 3)]),
    (LayerNormalization(center=False), [(4, 8)]),
    (LocalResponseNormalization(3, k=2.0), [(4, 4, 8)]),
    (Activation("gelu"), [(5,)]),
    (ReLU(6.0, 0.1), [(5,)]),
    (LeakyReLU(), [(5,)]),
    (ELU(0.5), [(5,)]),
    (Softmax(1), [(5, 3)]),
    (Dropout(0.25, seed=3), [(5,)]),
    (StochasticDepth(0.25), [(4, 4, 5)]),
    (Rescaling([1, 2, 3], 0.5), [(2, 2, 3)]),
    (Flatten(), [(2, 3)]),
    (Reshape((3, -1)), [(2, 3)]),
    (Permute((2, 1)), [(2, 3)]),
    (ZeroPadding1D((1, 2)), [(4, 3)]),
    (ZeroPadding2D(((1, 0), (0, 2))), [(4, 4, 3)]),
    (ZeroPadding3D(1), [(2, 2, 2, 3)]),
    (Cropping1D(1), [(4, 3)]),
    (Cropping2D((1, 0)), [(4, 4, 3)]),
    (Cropping3D(1), [(4, 4, 4, 3)]),
    (UpSampling1D(3), [(4, 3)]),
    (UpSampling2D(2, interpolation="bilinear"), [(4, 4, 3)]),
    (UpSampling3D(2), [(2, 2, 2, 3)]),
    (Resizing(5, 6, "nearest", crop_to_aspect_ratio=True), [(4, 4, 3)]),
    *(
        (getattr(layers, f"{kind}Pool{rank}D")(2, 2), [(*SIZES[rank], 3)])
        for kind in ("Max", "Average")
        for rank in (1, 2, 3)
    ),
    *(
        (getattr(layers, f"Adaptive{kind}Pool{rank}D")(2), [(*SIZES[rank], 3)])
        for kind in ("Max", "Average")
        for rank in (1, 2, 3)
    ),
    *(
        (getattr(layers, f"Global{kind}Pool{rank}D")(), [(*SIZES[rank], 3)])
        for kind in ("Max", "Average")
        for rank in (1, 2, 3)
    ),
    *((cls(), [(3, 4), (3, 4)]) for cls in (Add, Subtract, Multiply, Maximum, Minimum, Average)),
    (Concatenate(1), [(3, 4), (2, 4)]),
]


def test_examples_are_complete():
    exported = {cls for cls in vars(layers).values() if inspect.isclass(cls) and issubclass(cls, Layer)}
    assert exported - {Layer, InputLayer} == {type(layer) for layer, _ in EXAMPLES}


@pytest.mark.parametrize("layer, shapes", EXAMPLES, ids=lambda v: type(v).__name__ if isinstance(v, Layer) else "")
def test_config_and_pickle(layer, shapes, rng):
    """A layer made again from its configuration (through JSON), or from a pickle, is the same layer."""
    arrays = [oracle.reals(rng, (2, *shape)) for shape in shapes]
    given = arrays if len(arrays) > 1 else arrays[0]
    want = layer(given)
    config = json.loads(json.dumps(layer.get_config()))
    twin = type(layer).from_config(config)
    assert twin.get_config() == layer.get_config() == config
    twin(given)
    twin.set_weights(layer.get_weights())
    tolerance.assert_exact(twin(given), want)
    thawed = pickle.loads(pickle.dumps(layer))
    assert thawed.get_config() == config and [p.version for p in thawed.weights] == [0] * len(layer.weights)
    tolerance.assert_exact(thawed(given), want)
    symbolic = [Input(shape) for shape in shapes]
    assert layer(symbolic if len(symbolic) > 1 else symbolic[0]).shape == want.shape[1:]


def test_keras_defaults():
    conv = Conv2D(8, 3)
    assert (conv.strides, conv.padding, conv.dilation_rate, conv.groups) == ((1, 1), "valid", (1, 1), 1)
    assert (conv.activation, conv.use_bias, conv.kernel_initializer) == (None, True, "glorot_uniform")
    assert conv.bias_initializer == "zeros" and conv.data_format is None
    norm = BatchNormalization()
    assert (norm.axis, norm.momentum, norm.epsilon, norm.center, norm.scale) == (-1, 0.99, 1e-3, True, True)
    pool = MaxPool2D()
    assert (pool.pool_size, pool.strides, pool.padding) == ((2, 2), (2, 2), "valid")
    assert AveragePool2D().count_include_pad is None
    assert LayerNormalization().epsilon == 1e-3 and LeakyReLU().negative_slope == 0.3 and ELU().alpha == 1.0
    assert (ReLU().max_value, ReLU().negative_slope, ReLU().threshold) == (None, 0.0, 0.0)
    assert UpSampling2D().interpolation == "nearest" and Resizing(2, 2).interpolation == "bilinear"
    assert ZeroPadding2D().padding == ((1, 1), (1, 1)) and Concatenate().axis == -1
    assert GlobalAveragePool2D().keepdims is False and DepthwiseConv2D(3).depth_multiplier == 1
    # positional order, as in Keras
    assert Conv2D(8, 3, 2, "same", None, 1, 2, "relu", False).use_bias is False
    assert DepthwiseConv2D(3, 2, "same", 2).depth_multiplier == 2


def test_weights_in_keras_order():
    image = Input((8, 8, 4))
    shapes = {}
    for layer in (
        Conv2D(6, 3, groups=2),
        DepthwiseConv2D(3, depth_multiplier=2),
        SeparableConv2D(5, 3),
        BatchNormalization(),
    ):
        layer(image)
        shapes[type(layer).__name__] = [(p.name, p.shape) for p in layer.weights]
    assert shapes == {
        "Conv2D": [("kernel", (3, 3, 2, 6)), ("bias", (6,))],
        "DepthwiseConv2D": [("kernel", (3, 3, 4, 2)), ("bias", (8,))],
        "SeparableConv2D": [("depthwise_kernel", (3, 3, 4, 1)), ("pointwise_kernel", (1, 1, 4, 5)), ("bias", (5,))],
        "BatchNormalization": [("gamma", (4,)), ("beta", (4,)), ("moving_mean", (4,)), ("moving_variance", (4,))],
    }


def test_aliases():
    assert layers.MaxPooling2D is MaxPool2D and layers.AvgPool2D is layers.AveragePooling2D is AveragePool2D
    assert layers.GlobalAveragePooling2D is GlobalAveragePool2D and layers.Convolution2D is Conv2D


IMAGE = (8, 8, 3)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: Conv2D(0, 3), ShapeError, "filters: got 0, want at least 1"),
        (lambda: Conv2D(-4, 3), ShapeError, "-4"),
        (lambda: Conv2D(4.0, 3), DTypeError, "4.0"),
        (lambda: Conv2D(True, 3), DTypeError, "True"),
        (lambda: Conv2D("4", 3), DTypeError, "'4'"),
        (lambda: Conv2D(4, (3, 3, 3)), ShapeError, "(3, 3, 3)"),
        (lambda: Conv2D(4, 0), ShapeError, "kernel_size"),
        (lambda: Conv2D(4, 3, strides=0), ShapeError, "strides"),
        (lambda: Conv2D(4, 3, padding="full"), Unsupported, "valid, same"),
        (lambda: Conv2D(4, 3, padding="causal"), Unsupported, "causal"),
        (lambda: Conv2D(4, 3, padding=-1), ShapeError, "-1"),
        (lambda: Conv2D(4, 3, padding=((1, 2, 3), (1, 1))), ShapeError, "pairs"),
        (lambda: Conv2D(4, 3, activation="rleu"), Unsupported, "rleu"),
        (lambda: Conv2D(4, 3, activation=np.tanh), Unsupported, "want None or one of"),
        (lambda: Conv2D(4, 3, data_format="channels_first"), Unsupported, "transpose(0, 2, 3, 1)"),
        (lambda: Conv2D(4, 3, groups=3), ShapeError, "groups=3 does not divide filters=4"),
        (lambda: Conv2D(4, 3, dtype="float64"), DTypeError, "float32"),
        (lambda: Conv2D(4, 3, kernel_regularizer="l2"), Unsupported, "kernel_regularizer"),
        (lambda: Conv2D(4, 3, name="a/b"), ModelError, "a/b"),
        (lambda: Conv2D(4, 3, kernel_initializer="gloriot")(Input(IMAGE)), Unsupported, "gloriot"),
        (
            lambda: Conv2D(4, 3, groups=2)(Input(IMAGE)),
            ShapeError,
            "conv2d (Conv2D): groups=2 does not divide the 3 channels",
        ),
        (lambda: Conv2D(4, 3)(Input((8, 3))), ShapeError, "(N, 8, 3), want (N, H, W, C)"),
        (lambda: Conv2D(4, 9)(Input(IMAGE)), ShapeError, "(9, 9)"),
        (lambda: Conv2D(4, 3)(Input((8, 8, None))), ShapeError, "channels of the input (N, 8, 8, ?) must be known"),
        (lambda: Conv2D(4, 3)([Input(IMAGE), Input(IMAGE)]), ShapeError, "got 2 inputs, want 1"),
        (lambda: Conv2D(4, 3)([Input(IMAGE), np.zeros(3)]), DTypeError, "ndarray"),
        (lambda: Conv2D(4, 3)(Input(IMAGE), training=True), Unsupported, "training=True"),
        (lambda: Conv2DTranspose(4, 3, 2, output_padding=2), ShapeError, "less than strides"),
        (lambda: Dense(0), ShapeError, "units"),
        (lambda: MaxPool2D(0), ShapeError, "pool_size"),
        (lambda: MaxPool2D(2, padding=2)(Input(IMAGE)), ShapeError, "padding"),
        (lambda: MaxPool2D(2, padding="same", ceil_mode=True), ShapeError, "ceil_mode"),
        (lambda: MaxPool2D(9)(Input(IMAGE)), ShapeError, "(9, 9)"),
        (lambda: AveragePool2D(2, dilation=2), TypeError, "dilation"),
        (lambda: AdaptiveAveragePool2D((0, 1)), ShapeError, "output_size"),
        (lambda: GlobalAveragePool2D()(Input((5,))), ShapeError, "(N, 5)"),
        (lambda: BatchNormalization(axis=1)(Input(IMAGE)), Unsupported, "axis=1"),
        (lambda: BatchNormalization(epsilon=-1), ShapeError, "epsilon"),
        (lambda: LayerNormalization(epsilon="x"), DTypeError, "'x'"),
        (lambda: LocalResponseNormalization(0), ShapeError, "size"),
        (lambda: Dropout(1.0), ShapeError, "rate"),
        (lambda: Dropout(-0.1), ShapeError, "rate"),
        (lambda: ReLU(threshold=1.0), Unsupported, "threshold"),
        (lambda: ReLU(-1), ShapeError, "max_value"),
        (lambda: Softmax(0)(Input(IMAGE)), ShapeError, "axis=0"),
        (lambda: Concatenate(4)([Input(IMAGE), Input(IMAGE)]), ShapeError, "axis=4"),
        (lambda: Concatenate()([Input(IMAGE), Input((8, 7, 3))]), ShapeError, "(8, 7, 3)"),
        (lambda: Add()([Input(IMAGE)]), ShapeError, "got 1 inputs, want at least 2"),
        (lambda: Add()([Input(IMAGE), Input((8, 7, 3))]), ShapeError, "do not broadcast"),
        (lambda: Subtract()([Input(IMAGE)] * 3), ShapeError, "want 2"),
        (lambda: Reshape((5, -1))(Input(IMAGE)), ShapeError, "reshape"),
        (lambda: Reshape((-1, -1)), ShapeError, "-1"),
        (lambda: Permute((1, 3)), ShapeError, "(1, 3)"),
        (lambda: Permute((2, 1))(Input(IMAGE)), ShapeError, "perm"),
        (lambda: Cropping2D(4)(Input(IMAGE)), ShapeError, "at least 1"),
        (lambda: UpSampling2D(0), ShapeError, "size"),
        (lambda: UpSampling2D(interpolation="lanczos"), Unsupported, "lanczos"),
        (lambda: Resizing(0, 4), ShapeError, "height"),
        (lambda: Rescaling("x"), DTypeError, "'x'"),
        (lambda: Rescaling([1.0, 2.0])(Input(IMAGE)), ShapeError, "(2,)"),
        (lambda: Input(784), ShapeError, "want a tuple"),
        (lambda: Input((0, 3)), ShapeError, "at least 1"),
        (lambda: Input((2.5, 3)), DTypeError, "integers"),
        (lambda: Input(()), Unsupported, "1 to 4"),
        (lambda: Input((1, 2, 3, 4, 5)), Unsupported, "1 to 4"),
        (lambda: Input(IMAGE, batch_size=8), Unsupported, "batch"),
        (lambda: Input(IMAGE, dtype="float16"), DTypeError, "float16"),
        (lambda: np.asarray(Input(IMAGE)), DTypeError, "symbolic"),
        (lambda: ReLU()([[1.0, 2.0]]), DTypeError, "want an array"),
        (lambda: ReLU()(np.zeros((2, 3))), DTypeError, "float64"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
    assert isinstance(caught.value, ConvkernError) or error is TypeError


def test_unknown_argument():
    with pytest.raises(TypeError, match="'filtres'"):
        Conv2D(4, 3, filtres=2)


# Open sizes


def test_open_shapes():
    image = Input((None, None, 3))
    x = Conv2D(8, 3, strides=2, padding="same")(image)
    assert x.shape == (None, None, 8)
    assert GlobalAveragePool2D()(x).shape == (8,)
    assert Resizing(32, 32)(x).shape == (32, 32, 8)
    assert Concatenate()([x, x]).shape == (None, None, 16)
    assert Conv1D(4, 2)(Input((None, 2))).shape == (None, 4)
    with pytest.raises(ShapeError, match="must be known"):
        Dense(3)(Flatten()(x))


# Initializers


def drawn(name, shape=(3, 3, 64, 128), seed=5):
    set_seed(seed)
    layer = Layer()
    return layer.add_param("kernel", shape, name).value


@pytest.mark.parametrize(
    "name, std, bound",
    [
        ("glorot_uniform", math.sqrt(2 / (576 + 1152)), math.sqrt(6 / (576 + 1152))),
        ("glorot_normal", math.sqrt(2 / (576 + 1152)), None),
        ("he_normal", math.sqrt(2 / 576), 2 * math.sqrt(2 / 576) / 0.8796),
        ("he_uniform", math.sqrt(2 / 576), math.sqrt(6 / 576)),
        ("lecun_normal", math.sqrt(1 / 576), None),
        ("lecun_uniform", math.sqrt(1 / 576), math.sqrt(3 / 576)),
        ("random_normal", 0.05, None),
        ("truncated_normal", 0.05 * 0.8796, 0.1),
        ("random_uniform", 0.1 / math.sqrt(12), 0.05),
        (initializers.VarianceScaling(3.0, "fan_out", "untruncated_normal"), math.sqrt(3 / 1152), None),
    ],
    ids=str,
)
def test_initializer_statistics(name, std, bound):
    values = drawn(name)
    assert values.dtype == np.float32 and values.shape == (3, 3, 64, 128)
    # 73,728 draws: the mean is within 5 standard errors, the deviation within 2 %
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() / std - 1) < 0.02
    assert bound is None or np.abs(values).max() <= bound * (1 + 1e-4)


def test_constant_initializers():
    assert (drawn("zeros") == 0).all() and (drawn("ones") == 1).all()
    assert (drawn(initializers.Constant(2.5), (4,)) == 2.5).all()
    assert (drawn(initializers.Constant([1, 2]), (2,)) == [1, 2]).all()
    with pytest.raises(ShapeError):
        drawn(initializers.Constant([1, 2]), (3,))
    q = drawn("orthogonal", (8, 5)).astype("f8")
    assert np.abs(q.T @ q - np.eye(5)).max() < 1e-6
    assert initializers.fans((5,)) == (5, 5) and initializers.fans(()) == (1, 1) and initializers.fans((4, 6)) == (4, 6)


def test_seeds():
    """Values depend on the seed and on the order of building: not on the order of reading."""
    image = Input((6,))

    def pair(backwards):
        set_seed(11)
        chain = [Dense(5), Dense(5)]
        for layer in chain:
            layer(image)
        for layer in reversed(chain) if backwards else chain:
            _ = layer.params["kernel"].value
        return [layer.params["kernel"].value for layer in chain]

    (a, b), (c, d) = pair(False), pair(True)
    assert (a == c).all() and (b == d).all() and (a != b).any()
    assert (drawn("he_normal", seed=1) != drawn("he_normal", seed=2)).any()
    for seed, error in ((-1, ShapeError), (1.5, DTypeError), (True, DTypeError)):
        with pytest.raises(error):
            set_seed(seed)


def test_own_initializers():
    layer = Dense(2, kernel_initializer=lambda shape, generator: np.full(shape, 3))
    layer(Input((4,)))
    assert (layer.params["kernel"].value == 3).all()
    twin = Dense.from_config(json.loads(json.dumps(layer.get_config())))
    twin(Input((4,)))
    assert twin.get_config() == layer.get_config()
    with pytest.raises(Unsupported, match="lambda"):  # code is not stored; weights are
        _ = twin.params["kernel"].value
    twin.set_weights(layer.get_weights())
    assert (twin.params["kernel"].value == 3).all()
    wrong = Dense(2, kernel_initializer=lambda shape, generator: np.zeros(3))
    wrong(Input((4,)))
    with pytest.raises(ShapeError, match="made an array of shape"):
        wrong.get_weights()
    for spec in ({"class_name": "os"}, 3, None):
        with pytest.raises(Unsupported):
            initializers.get(spec)


def test_lazy_parameters():
    calls = []
    param = Param("kernel", lambda: calls.append(1) or np.ones((2, 2), "f4"), shape=(2, 2))
    assert param.shape == (2, 2) and not calls
    param.assign(np.zeros((2, 2), "f4"))
    assert not calls and param.version == 1 and (param.value == 0).all()


# Own layers, and the cost of importing


class Scale(Layer):
    def __init__(self, factor, **base):
        super().__init__(**base)
        self.factor = factor

    def build(self, input_shape):
        self.add_param("offset", (input_shape[-1],), "ones")

    def lower(self, graph, inputs):
        y = graph.add("rescale", inputs, {"scale": self.factor, "offset": 0.0})
        return graph.add("batch_norm", [y], {"eps": 0.0}, self._norm())

    def _norm(self):
        ones = np.ones(self.params["offset"].shape, "f4")
        return {"mean": 0 * ones, "var": ones, "beta": self.params["offset"]}


def test_own_layer(rng):
    x = oracle.integers(rng, (2, 3, 4))
    layer = Scale(2.0)
    tolerance.assert_exact(layer(x), 2 * x + 1)
    assert Scale.from_config(layer.get_config()).factor == 2.0 and layer.name == "scale"


def test_layers_on_arrays_keep_few_models(rng):
    layer = Conv2D(2, 3)
    for size in range(3, 20):
        assert layer(oracle.reals(rng, (1, size, 4, 1))).shape == (1, size - 2, 2, 2)
    assert len(layer._eager) <= 8 and not layer._calls and not layer.named


def test_package_names_cannot_be_taken_over():
    before = layers.base.layer_class("Dense")
    type("Dense", (Layer,), {"__module__": "elsewhere"})
    assert layers.base.layer_class("Dense") is before is Dense
    with pytest.raises(ModelError, match="custom_objects"):
        layers.base.layer_class("Denser")


def test_import_is_light():
    """What `import convkern` loads beyond numpy: itself and its errors."""
    code = (
        "import numpy, sys; before = set(sys.modules); import convkern; new = set(sys.modules) - before\n"
        "assert new <= {'convkern', 'convkern.errors', '__future__'}, new\n"
        "from convkern import Input, Model\n"
        "heavy = {'torch', 'PIL', 'tqdm', 'rich', 'safetensors', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(dir(convkern)) >= set(convkern.__all__)\n"
        "for name in convkern.__all__: getattr(convkern, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
