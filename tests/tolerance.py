"""Every float bound of the tests, derived and in one place; nowhere else does a test contain a tolerance.

u = 2^-24 is the unit roundoff of float32 and gamma(n) = n*u / (1 - n*u). A sum of n products, in any
order, with or without fused multiply-adds, differs from the exact one by at most gamma(n) * sum |x||w| (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., sec. 3.1). Kernels flush denormals, so every operation may also
lose the smallest normal number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import oracle

U = 2.0**-24
U_BF16 = 2.0**-8  # the unit roundoff of bfloat16
TINY = 2.0**-126  # the smallest normal float32
FUNCTION_ULPS = 8  # what exp, tanh, erf ... may be off by, relative to the largest term they are made of


def gamma(n: float) -> float:
    assert n * U < 0.5, f"{n} roundings leave nothing to compare"
    return n * U / (1 - n * U)


def for_dtype(bound: np.ndarray | float, dtype: str) -> np.ndarray:
    """A float32 bound, or that of float64: 2^29 times finer, and twice that, since the reference then errs as much."""
    return np.asarray(bound) * (1.0 if np.dtype(dtype) == np.float32 else 2.0**-28)


def sum_bound(terms: float, magnitude: np.ndarray) -> np.ndarray:
    """For sums of `terms` products; magnitude = the same sum over absolute values."""
    return gamma(terms) * np.asarray(magnitude, np.float64) + terms * TINY


def conv_bound(x: Any, w: Any, bias: Any = None, residual: Any = None, **geometry: Any) -> np.ndarray:
    """gamma(n) * (conv(|x|,|w|) + |bias| + |residual|), n = the products of one output and the two additions."""
    terms = int(np.prod(np.shape(w)[:-1])) + 2
    absolute = [None if a is None else np.abs(np.asarray(a, np.float64)) for a in (x, w, bias, residual)]
    return sum_bound(terms, oracle.conv(*absolute, **geometry))


def rounded_bf16(x: Any) -> np.ndarray:
    """float32 values rounded to bfloat16: to nearest, ties to even; NaN stays, denormals become zero."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    return np.where(np.isnan(x), x, np.where(np.abs(x) < TINY, np.copysign(0, x), bits.view(np.float32)))


def conv_bf16_bound(x: Any, w: Any, bias: Any = None, residual: Any = None, **geometry: Any) -> np.ndarray:
    """conv_bound of float32 sums, and of each product |x||w| the two roundings of its factors: 2u + u^2."""
    products = oracle.conv(np.abs(np.asarray(x, np.float64)), np.abs(np.asarray(w, np.float64)), **geometry)
    return (2 * U_BF16 + U_BF16**2) * products + conv_bound(x, w, bias, residual, **geometry) * (1 + U_BF16) ** 2


def bf16_network_bound(want: np.ndarray) -> np.ndarray:
    """For a network in bfloat16 beside float32: not derived, eight roundings of the largest output."""
    return np.full(want.shape, 8 * U_BF16 * float(np.abs(want).max(initial=0.0)))


# Winograd's F(m x m, r x r) by Cook and Toom: products of polynomials from their values at m + r - 2 points and at
# infinity (Barabasz et al. 2020, arXiv:1803.10986, sec. 2). y = A' [(G w G') * (B' x B)] A for a tile.
_POINTS = {"conv_winograd": (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), "conv_winograd2": (0, 1, -1)}
for _name in ("conv_winograd4", "conv_winograd5", "conv_winograd_small", "conv_winograd_mixed"):
    _POINTS[_name] = _POINTS["conv_winograd"]


def _powers(points: np.ndarray, n: int) -> np.ndarray:
    """Values of 1, x, ... x^(n-1) at the points and infinity, where only the last counts."""
    return np.r_[np.vander(points, n, increasing=True), np.eye(1, n, n - 1)]


def _transforms(points: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|A|, |B|, |G| along one dimension."""
    others = [np.delete(points, i) for i in range(len(points))]
    b = np.abs([*((*np.poly(o)[::-1], 0) for o in others), np.poly(points)[::-1]])
    a, g = np.abs(_powers(points, len(points) + 2 - r)), np.abs(_powers(points, r))
    g[:-1] /= np.abs([[np.prod(point - o)] for point, o in zip(points, others)])
    return a, b, g


def _winograd_magnitude(x: np.ndarray, w: np.ndarray, *points: np.ndarray) -> np.ndarray:
    """The algorithm on absolute values, points along rows and columns; x (N,H,W,C) padded already, w (r,r,C,K)."""
    r = len(w)
    (a0, b0, g0), (a1, b1, g1) = (_transforms(along, r) for along in points)
    sizes = np.array([len(b0), len(b1)])
    m = sizes + 1 - r
    outputs = np.array(x.shape[1:3]) + 1 - r
    x = np.pad(x, ((0, 0), (0, -outputs[0] % m[0]), (0, -outputs[1] % m[1]), (0, 0)))
    # n rows columns c size size
    tiles = np.lib.stride_tricks.sliding_window_view(x, sizes, (1, 2))[:, :: m[0], :: m[1]]
    v = np.einsum("ai,bj,nrscij->abnrsc", b0, b1, tiles, optimize=True)
    u = np.einsum("ai,bj,ijck->abck", g0, g1, w, optimize=True)
    y = np.einsum("ai,bj,abnrsk->nrisjk", a0, a1, v @ u[:, :, None, None], optimize=True)
    return y.reshape(x.shape[0], *(-outputs % m + outputs), -1)[:, : outputs[0], : outputs[1]]


def _mixed_magnitude(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """conv_winograd_mixed: tiles of 4 outputs, the last of them 2 where that is enough, from three of the points."""
    whole = np.array(_POINTS["conv_winograd"])

    def along(size: int) -> list[tuple[int, int, np.ndarray]]:
        end = size - size % 4 if 0 < size % 4 <= 2 else size
        return [(lo, hi, points) for lo, hi, points in ((0, end, whole), (end, size, whole[:3])) if lo < hi]

    rows, columns = (along(size + 1 - len(w)) for size in x.shape[1:3])
    parts = [
        [_winograd_magnitude(x[:, r0 : r1 + 2, c0 : c1 + 2], w, r_points, c_points) for c0, c1, c_points in columns]
        for r0, r1, r_points in rows
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in parts], axis=1)


def winograd_bound(
    algo: str,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    pad_lo: Any = (0, 0, 0),
    pad_hi: Any = (0, 0, 0),
) -> np.ndarray:
    """gamma(n) * (the same algorithm on absolute values + |bias| + |residual|), for stride 1 and one group.

    n = C products summed, 4 (4x4 tiles: 2) roundings in each of two dimensions of the inputs' transform and as many of
    the outputs', one of the transformed weight, one of a scale folded into it, the two additions. conv_winograd_small
    and conv_winograd_mixed: 3 in each dimension of the weight's transform, 2 of the outputs' factors.
    """
    x, w = np.abs(np.asarray(x, np.float64))[:, 0], np.abs(np.asarray(w, np.float64))[0]
    x = np.pad(x, ((0, 0), (pad_lo[1], pad_hi[1]), (pad_lo[2], pad_hi[2]), (0, 0)))
    points = np.array(_POINTS[algo])
    mixed = algo == "conv_winograd_mixed"
    magnitude = (_mixed_magnitude(x, w) if mixed else _winograd_magnitude(x, w, points, points))[:, None]
    for added in (bias, residual):
        magnitude = magnitude if added is None else magnitude + np.abs(np.asarray(added, np.float64))
    roundings = {"conv_winograd2": 12, "conv_winograd_small": 28, "conv_winograd_mixed": 28}.get(algo, 20)
    return sum_bound(x.shape[-1] + roundings, magnitude)


def winograd_weight_bound(p: oracle.Conv, x: Any, dy: Any) -> np.ndarray:
    """The gradient of 3x3 weights by F(3x3, 4x4), stride 1: gamma(n) * the same algorithm on absolute values.

    n = the tiles summed, 4 roundings in each of two dimensions of three transforms, 2 of G's entries, and the groups of
    tiles added, of which there are fewer than tiles.
    """
    x, dy = np.abs(np.asarray(x, np.float64))[:, 0], np.abs(np.asarray(dy, np.float64))[:, 0]
    n, rows, columns = dy.shape[0], -(-dy.shape[1] // 4), -(-dy.shape[2] // 4)
    points = np.array(_POINTS["conv_winograd"])
    others = [np.delete(points, i) for i in range(len(points))]
    a, g = np.abs(_powers(points, 3)), np.abs(_powers(points, 4))
    b = np.abs([*((*np.poly(o)[::-1], 0) for o in others), np.poly(points)[::-1]])
    g[:5] /= np.abs([[np.prod(point - o)] for point, o in zip(points, others)])
    pads = [(lo, max(0, 4 * m + 2 - lo - size)) for lo, m, size in zip(p.pad_lo[1:], (rows, columns), x.shape[1:3])]
    x = np.pad(x, ((0, 0), *pads, (0, 0)))[:, : 4 * rows + 2, : 4 * columns + 2]
    dy = np.pad(dy, ((0, 0), (0, -dy.shape[1] % 4), (0, -dy.shape[2] % 4), (0, 0)))
    x_tiles = np.lib.stride_tricks.sliding_window_view(x, (6, 6), (1, 2))[:, ::4, ::4]  # n rows columns c 6 6
    dy_tiles = np.lib.stride_tricks.sliding_window_view(dy, (4, 4), (1, 2))[:, ::4, ::4]
    v = np.einsum("ai,bj,nrscij->abcnrs", b, b, x_tiles, optimize=True)
    u = np.einsum("ai,bj,nrskij->abnrsk", g, g, dy_tiles, optimize=True)
    sums = v.reshape(6, 6, v.shape[2], -1) @ u.reshape(6, 6, -1, u.shape[-1])
    return sum_bound(2 * n * rows * columns + 26, np.einsum("ai,bj,abck->ijck", a, a, sums, optimize=True)[None])


def winograd_rms_ratio(algo: str, channels: int) -> float:
    """How much larger Winograd's RMS error may be than the direct kernel's on normal numbers. Measured.

    6x6 tiles: 1.75-1.95 from 64 channels on; the transforms' own roundings, which few channels do not outweigh, raise
    it to 2.4 (2.6 without fused multiply-adds) at 16; with sums by 32 channels (conv_winograd_small) 0.6 at 512. 4x4
    tiles: below 1, as C products are summed in place of 9 C.
    """
    if algo == "conv_winograd2":
        return 1.0
    return max(2.2, (1.8**2 + 64 / channels) ** 0.5)


def _sigmoid(v: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(v / 2))


def _erf(v: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(v)


# name -> (function of (v, a, b) in float64, its largest slope, what the rounding errors inside are relative to)
ACTIVATIONS: dict[str, tuple[Callable[..., np.ndarray], float, Callable[..., np.ndarray]]] = {
    "none": (lambda v, a, b: v, 1, lambda v, a, b: 0 * v),
    "relu": (lambda v, a, b: np.maximum(v, 0), 1, lambda v, a, b: 0 * v),
    "relu6": (lambda v, a, b: np.clip(v, 0, 6), 1, lambda v, a, b: 0 * v),
    "clamp": (lambda v, a, b: np.clip(v, a, b), 1, lambda v, a, b: np.abs(np.clip(v, a, b))),
    "silu": (lambda v, a, b: v * _sigmoid(v), 1.1, lambda v, a, b: np.abs(v)),
    "sigmoid": (lambda v, a, b: _sigmoid(v), 0.25, lambda v, a, b: 1 + 0 * v),
    "hard_swish": (lambda v, a, b: v * np.clip(v + 3, 0, 6) / 6, 1.5, lambda v, a, b: np.abs(v)),
    "hard_sigmoid": (lambda v, a, b: np.clip(v + 3, 0, 6) / 6, 1 / 6, lambda v, a, b: 1 + 0 * v),
    "gelu": (lambda v, a, b: v * 0.5 * (1 + _erf(v / np.sqrt(2))), 1.13, lambda v, a, b: np.abs(v)),
    "gelu_tanh": (
        lambda v, a, b: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
        1.13,
        lambda v, a, b: np.abs(v),
    ),
    "tanh": (lambda v, a, b: np.tanh(v), 1, lambda v, a, b: np.abs(np.tanh(v))),
    "elu": (
        lambda v, a, b: np.where(v > 0, v, a * np.expm1(np.minimum(v, 0))),
        1,
        lambda v, a, b: np.where(v > 0, v, abs(a)),
    ),
    "exp": (lambda v, a, b: np.exp(v), np.inf, lambda v, a, b: np.exp(v)),
    "leaky_relu": (lambda v, a, b: np.where(v > 0, v, a * v), 1, lambda v, a, b: np.abs(v)),
    "softplus": (
        lambda v, a, b: np.where(v * a > b, v, np.log1p(np.exp(np.minimum(v * a, 700))) / a),
        1,
        lambda v, a, b: np.maximum(np.abs(v), 1 / a),
    ),
}


def activation(kind: str, v: np.ndarray, a: float = 0.0, b: float = 0.0) -> np.ndarray:
    """The activation in float64."""
    return ACTIVATIONS[kind][0](np.asarray(v, np.float64), a, b)


def activation_bound(
    kind: str, v: np.ndarray, dv: np.ndarray | float = 0.0, a: float = 0.0, b: float = 0.0
) -> np.ndarray:
    """Bound of act(v + dv) computed in float32, |dv| a bound: slope * dv plus the function's own rounding."""
    v = np.asarray(v, np.float64)
    if kind == "exp":  # its slope is itself
        return np.exp(v) * (np.expm1(dv) + FUNCTION_ULPS * U) + TINY
    _, slope, magnitude = ACTIVATIONS[kind]
    slope = max(slope, abs(a)) if kind in ("elu", "leaky_relu") else slope
    own = FUNCTION_ULPS * U * magnitude(v, a, b) + TINY
    if kind == "softplus":  # at the threshold it jumps to the identity
        own = own + np.where(np.abs(v * a - b) < 1e-3, np.exp(-b) / a, 0)
    return slope * np.asarray(dv) + own


def softmax_bound(x: np.ndarray, axis: int = -1, log: bool = False) -> np.ndarray:
    """exp(x - max) / sum: the subtraction is off by u*|x - max|, relative after exp; then exp, sum, division."""
    x = np.asarray(x, np.float64)
    below = x.max(axis, keepdims=True) - x
    total = np.exp(-below).sum(axis, keepdims=True)
    relative = (
        (below + FUNCTION_ULPS) * U
        + gamma(x.shape[axis] + 2)
        + ((np.exp(-below) * below).sum(axis, keepdims=True) / total) * U
    )
    if log:
        return relative + U * (below + np.log(total)) * 2
    return relative * np.exp(-below) / total + 8 * TINY  # exp gives zero a little before the smallest normal number


def layer_norm_bound(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float, axes: tuple[int, ...] = (-1,)
) -> np.ndarray:
    """First order, for (x - mean) / sqrt(var + eps) * weight + bias: e in x - mean, the variance, three operations."""
    x = np.asarray(x, np.float64)
    n = int(np.prod([x.shape[i] for i in axes]))
    g = 1.0 if weight is None else np.abs(np.asarray(weight, np.float64))
    b = 0.0 if bias is None else np.abs(np.asarray(bias, np.float64))
    centred = x - x.mean(axes, keepdims=True)
    var = (centred**2).mean(axes, keepdims=True)
    e = gamma(n + 2) * np.abs(x).mean(axes, keepdims=True) + U * np.abs(centred)
    dvar = (2 * np.abs(centred) * e + e**2).mean(axes, keepdims=True) + gamma(n + 3) * var
    rstd = 1 / np.sqrt(var + eps)
    y = np.abs(centred) * rstd
    return g * (e * rstd + y * (dvar * rstd**2 + 4 * U)) + 2 * U * (g * y + b) + TINY


def batch_norm_bound(x: np.ndarray, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> np.ndarray:
    """x * s + t with s, t from the parameters: a few roundings of |x s| + |mean s| + |bias| (over the last axis)."""
    s = (1.0 if weight is None else np.abs(np.asarray(weight, np.float64))) / np.sqrt(np.asarray(var, np.float64) + eps)
    b = 0.0 if bias is None else np.abs(np.asarray(bias, np.float64))
    return gamma(8) * (np.abs(np.asarray(x, np.float64)) * s + np.abs(np.asarray(mean, np.float64)) * s + b) + TINY


def lrn_bound(x: np.ndarray, y: np.ndarray, size: int, beta: float, k: float) -> np.ndarray:
    """y = x * base^-beta: the base is off by gamma(size + 3), its power by beta times that and by pow's own error."""
    log_base = np.abs(np.log(np.maximum(np.abs(np.asarray(x, np.float64)), TINY) / np.maximum(np.abs(y), TINY)))
    return np.abs(y) * (beta * gamma(size + 3) + FUNCTION_ULPS * U * (1 + log_base)) + TINY


def resize_bound(x: np.ndarray, spatial: tuple[int, ...], taps: int) -> np.ndarray:
    """Weights come from float32 coordinates, off by a few u * size; taps = values blended per dimension."""
    x = np.abs(np.asarray(x, np.float64))
    coordinates = 4 * sum(spatial)
    return (gamma(taps ** len(spatial) + 4) + coordinates * U * taps) * x.max(initial=0.0) * 1.5 ** len(spatial) + TINY


def network_bound(want: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """For a few operators on values of the order of one: not derived, a thousand roundings of the largest output.

    The kernels have bounds of their own; this finds a wrong graph: a lost bias, a shifted window, a stale weight.
    """
    return for_dtype(np.full(want.shape, 1000 * U * max(1.0, float(np.abs(want).max(initial=0.0)))), dtype)


# Comparisons


def assert_within(got: Any, want: Any, bound: Any, what: object = "") -> None:
    """|got - want| <= bound everywhere, NaN and infinities in the same places; the message names the worst element."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    if not got.size:
        return
    finite = np.isfinite(want)
    strange = ~finite & ~((got == want) | (np.isnan(got) & np.isnan(want)))
    assert not strange.any(), f"{what}: {strange.sum()} of {got.size} should not be finite; first at {_first(strange)}"
    error = np.where(finite, np.abs(np.where(finite, got, 0) - np.where(finite, want, 0)), 0)
    error = np.where(finite & ~np.isfinite(got), np.inf, error)
    ratio = error / np.broadcast_to(np.asarray(bound, np.float64), got.shape)
    if not (ratio <= 1).all():
        at = np.unravel_index(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)), got.shape)
        at = tuple(int(i) for i in at)
        raise AssertionError(
            f"{what}: {(~(ratio <= 1)).sum()} of {got.size} outside of the bound; worst at {at}: "
            f"got {got[at]!r}, want {want[at]!r}, error {error[at]:.3g} = {ratio[at]:.3g} x bound"
        )


def assert_exact(got: Any, want: Any, what: object = "") -> None:
    """Equal values (NaN equals NaN) and equal shapes."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    wrong = ~((got == want) | ((got != got) & (want != want)))
    if wrong.any():
        at = _first(wrong)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {got.size} differ; first at {at}: got {got[at]!r}, want {want[at]!r}"
        )


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def bilinear(largest: float) -> float:
    """A bilinear sample of values up to `largest` in size, weights and arithmetic in float32.

    A mix p + t*(q - p) rounds t, the difference, the product and the sum: four times u = 2**-24 of at most 2*largest.
    Two mixes lie one inside the other, and the result of the reference is not rounded.
    """
    return 2 * 4 * 2.0**-24 * 2 * float(largest)
