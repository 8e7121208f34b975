"""The oracle: convolution and pooling written as their definitions in float64, plus generators of odd problems.

Everything is NDHWC and (T,R,S,C/G,K), as inside the plans. One loop over the taps of the window, no cleverness:
what is tested against this must not share an idea with it. With small integers (see `integers`) every sum is exact, so
results must be equal to the bit.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Triple = tuple[int, int, int]
ONE: Triple = (1, 1, 1)
ZERO: Triple = (0, 0, 0)


@dataclass(frozen=True)
class Conv:
    """A convolution problem without its batch: sizes and geometry, with the names of csrc/core/problem.h."""

    d: int
    h: int
    w: int
    c: int
    k: int
    t: int = 1
    r: int = 1
    s: int = 1
    stride: Triple = ONE
    pad_lo: Triple = ZERO
    pad_hi: Triple = ZERO
    dilation: Triple = ONE
    groups: int = 1
    transposed: bool = False
    output_padding: Triple = ZERO

    @property
    def window(self) -> Triple:
        return (self.t, self.r, self.s)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.d, self.h, self.w, self.c)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.t, self.r, self.s, self.c // self.groups, self.k)

    @property
    def y_shape(self) -> tuple[int, ...]:
        sizes = []
        for i, n in enumerate((self.d, self.h, self.w)):
            reach = self.dilation[i] * (self.window[i] - 1)
            pads = self.pad_lo[i] + self.pad_hi[i]
            if self.transposed:
                sizes.append((n - 1) * self.stride[i] - pads + reach + self.output_padding[i] + 1)
            else:
                sizes.append((n + pads - reach - 1) // self.stride[i] + 1)
        return (*sizes, self.k)

    @property
    def terms(self) -> int:
        """The most products that one output sums up."""
        return self.t * self.r * self.s * (self.c // self.groups)

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of `conv` below and of the compiled Plan's conv."""
        names = ("stride", "pad_lo", "pad_hi", "dilation", "groups", "transposed", "output_padding")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        """Short, for the ids of parametrised tests."""
        text = f"{self.d}x{self.h}x{self.w}x{self.c}-{self.t}x{self.r}x{self.s}x{self.k}"
        for name, default in (
            ("stride", ONE),
            ("pad_lo", ZERO),
            ("pad_hi", ZERO),
            ("dilation", ONE),
            ("output_padding", ZERO),
        ):
            value = getattr(self, name)
            if value != default:
                text += f"-{name}{''.join(map(str, value))}"
        return text + (f"-g{self.groups}" if self.groups > 1 else "") + ("-transposed" if self.transposed else "")


def _slices(offset: Triple, count: Triple, step: Triple) -> tuple[slice, ...]:
    return tuple(slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, count, step))


def _split_groups(a: np.ndarray, groups: int) -> np.ndarray:
    """(..., G*m) -> (G, ..., m)."""
    return np.moveaxis(a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups), -2, 0)


def conv(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    *,
    stride: Triple = ONE,
    pad_lo: Triple = ZERO,
    pad_hi: Triple = ZERO,
    dilation: Triple = ONE,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Triple = ZERO,
) -> np.ndarray:
    """y[n,i,k] = sum_trsc x[n, i*stride - pad_lo + (t,r,s)*dilation, c] * w[t,r,s,c,k] + bias[k] + residual[n,i,k].

    In float64; x (N,D,H,W,C), w (T,R,S,C/G,K). Transposed: x[n,i] is added into
    y[n, i*stride - pad_lo + (t,r,s)*dilation] instead.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    n, *size, c = x.shape
    *window, cg, k = w.shape
    assert c == cg * groups and k % groups == 0, (x.shape, w.shape, groups)
    reach = [d * (r - 1) for d, r in zip(dilation, window)]
    if transposed:
        shape = [(m - 1) * s + e + o + 1 for m, s, e, o in zip(size, stride, reach, output_padding)]
    else:
        x = np.pad(x, ((0, 0), *zip(pad_lo, pad_hi), (0, 0)))
        shape = [(m - e - 1) // s + 1 for m, e, s in zip(x.shape[1:4], reach, stride)]
    x, w = _split_groups(x, groups), _split_groups(w, groups)  # the groups first
    y = np.zeros((groups, n, *shape, k // groups))
    count = tuple(size if transposed else shape)
    for tap in itertools.product(*map(range, window)):
        where = (slice(None), slice(None), *_slices(tuple(i * d for i, d in zip(tap, dilation)), count, stride))
        x_tap = x if transposed else x[where]
        product = (x_tap.reshape(groups, -1, cg) @ w[(slice(None), *tap)]).reshape(*x_tap.shape[:-1], k // groups)
        y[where if transposed else ...] += product
    y = np.moveaxis(y, 0, -2).reshape(n, *shape, k)
    if transposed:
        y = y[(slice(None), *(slice(lo, m - hi) for lo, hi, m in zip(pad_lo, pad_hi, y.shape[1:4])))]
    if bias is not None:
        y = y + np.asarray(bias, np.float64)
    if residual is not None:
        y = y + np.asarray(residual, np.float64)
    return y


def pool(
    x: np.ndarray,
    kind: str,
    *,
    window: Triple,
    stride: Triple,
    pad_lo: Triple = ZERO,
    pad_hi: Triple = ZERO,
    dilation: Triple = ONE,
    out: Triple,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Pooling in float64: the values and, for kind "max", the flat index within D*H*W of each maximum.

    Of equal maxima the first counts; if there are NaNs, the last of them.
    """
    x = np.asarray(x, np.float64)
    n, *size, c = x.shape
    y = np.empty((n, *out, c))
    index = np.zeros((n, *out, c), np.int64)
    flat = np.arange(np.prod(size, dtype=np.int64)).reshape(size)
    for at in itertools.product(*map(range, out)):
        taps, clipped = [], 1
        for i, (o, lo, hi, m) in enumerate(zip(at, pad_lo, pad_hi, size)):
            first = o * stride[i] - lo
            taps.append([j for j in range(first, first + dilation[i] * window[i], dilation[i]) if 0 <= j < m])
            clipped *= min(first + window[i], m + hi) - first
        inside = x[(slice(None), *np.ix_(*taps))].reshape(n, -1, c)
        if kind == "max":
            nan = np.isnan(inside)
            last = inside.shape[1] - 1 - nan[:, ::-1].argmax(1)
            pick = np.where(nan.any(1), last, np.where(nan, -np.inf, inside).argmax(1))
            y[(slice(None), *at)] = np.take_along_axis(inside, pick[:, None], 1)[:, 0]
            index[(slice(None), *at)] = flat[np.ix_(*taps)].reshape(-1)[pick]
        else:
            count = divisor or (clipped if count_include_pad else inside.shape[1])
            y[(slice(None), *at)] = inside.sum(1) / count
    return y, index


# Data


def integers(rng: np.random.Generator, shape: tuple[int, ...], limit: int = 4, dtype: str = "float32") -> np.ndarray:
    """Whole numbers in [-limit, limit]: with limit 4, sums of up to 2^20 products are exact in float32 in any order."""
    return rng.integers(-limit, limit + 1, shape).astype(dtype)


def reals(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Normal numbers of both signs and a few orders of magnitude, so that cancellation does occur."""
    return np.asarray(rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, shape)), dtype)


@dataclass
class ConvData:
    """The arrays of one run of a problem, with the oracle's answer."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    residual: np.ndarray | None
    want: np.ndarray = field(repr=False)


def conv_data(
    problem: Conv,
    rng: np.random.Generator,
    n: int = 2,
    *,
    exact: bool = True,
    bias: bool = True,
    residual: bool = False,
    limit: int = 4,
) -> ConvData:
    """Inputs for a problem (when exact, integers up to limit) and what it must give before its activation."""
    assert not exact or 16 * problem.terms < 2**24, f"{problem}: sums of {problem.terms} products are not exact"
    draw = functools.partial(integers, limit=limit) if exact else reals
    x = draw(rng, (n, *problem.x_shape))
    w = draw(rng, problem.w_shape)
    b = draw(rng, (problem.k,)) if bias else None
    res = draw(rng, (n, *problem.y_shape)) if residual else None
    return ConvData(x, w, b, res, conv(x, w, b, res, **problem.geometry))


# Problems

# Sizes around the widths of vectors and register tiles: where tails are.
_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 130)


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _one_odd_conv(rng: np.random.Generator, kind: str) -> Conv | None:
    rank = _pick(rng, (1, 2, 2, 2, 2, 3)) if kind != "pointwise" else 2
    off = 3 - rank  # leading dimensions that stay at 1

    def triple(values: tuple[int, ...], rest: int) -> Triple:
        a = tuple(rest if i < off else int(_pick(rng, values)) for i in range(3))
        return a[0], a[1], a[2]

    size = triple((1, 2, 3, 4, 5, 6, 7, 9, 13, 14) if rank < 3 else (1, 2, 3, 5), 1)
    groups = 1
    if kind == "depthwise":
        groups = _pick(rng, _CHANNELS)
        c, k = groups, groups * _pick(rng, (1, 1, 1, 2, 3))
    elif kind == "grouped":
        groups = _pick(rng, (2, 3, 4, 5, 32))
        c, k = groups * _pick(rng, (1, 2, 3, 4, 8, 17)), groups * _pick(rng, (1, 2, 3, 4, 8, 17))
    elif kind == "resnext":
        groups = _pick(rng, (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33))
        c = k = groups * _pick(rng, (2, 4, 8))
    elif kind == "cardinal":
        groups = _pick(rng, (2, 3, 4, 5, 8, 9))
        c = groups * _pick(rng, (2, 4, 8, 16, 20, 32))
        k = c if rng.integers(4) else groups * _pick(rng, (1, 6, 16, 24))
    elif kind == "spread":  # transposed: depthwise, or to few channels
        c = _pick(rng, _CHANNELS)
        groups, k = (c, c) if rng.integers(2) else (1, int(rng.integers(1, 5)))
    elif kind == "square":
        c, k = _pick(rng, (16, 32, 33, 40, 47, 48, 63, 64)), _pick(rng, (16, 17, 24, 31))
    else:
        c, k = _pick(rng, _CHANNELS), _pick(rng, _CHANNELS)
    if kind == "pointwise":
        return Conv(*size, c, k, stride=triple((1, 1, 2, 3), 1))
    if kind == "square":  # of stride 1: Winograd's
        pads, r = rng.integers(0, 3, 4).tolist(), _pick(rng, (3, 5, 5))
        return Conv(1, size[1] + r - 1, size[2] + r - 1, c, k, 1, r, r, ONE, (0, *pads[:2]), (0, *pads[2:]))
    if kind == "cardinal":  # 3x3 in groups: ResNeXt's
        h, w, pads = _pick(rng, (1, 2, 3, 4, 7, 9)), int(rng.integers(1, 32)), rng.integers(0, 3, 4).tolist()
        lo, hi, stride = (0, *pads[:2]), (0, *pads[2:]), int(rng.integers(1, 3))
        problem = Conv(_pick(rng, (1, 1, 2)), h, w, c, k, 1, 3, 3, (1, stride, stride), lo, hi, ONE, groups)
        return problem if min(h + lo[1] + hi[1], w + lo[2] + hi[2]) >= 3 else None
    window = triple((1, 2, 3, 3, 3, 4, 5, 7) if rank < 3 else (1, 2, 3), 1)
    stride, dilation = triple((1, 1, 1, 2, 3, 4), 1), triple((1, 1, 1, 2, 3), 1)
    pad_lo, pad_hi = triple((0, 0, 1, 1, 2, 3), 0), triple((0, 0, 1, 1, 2, 3), 0)
    extra = ZERO
    transposed = kind in ("transposed", "spread")
    if transposed:
        e = tuple(0 if i < off else int(rng.integers(max(stride[i], dilation[i]))) for i in range(3))
        extra = e[0], e[1], e[2]
    problem = Conv(*size, c, k, *window, stride, pad_lo, pad_hi, dilation, groups, transposed, extra)
    if transposed:
        return problem if min(problem.y_shape) >= 1 else None
    fits = all(n + lo + hi >= d * (r - 1) + 1 for n, lo, hi, d, r in zip(size, pad_lo, pad_hi, dilation, window))
    return problem if fits else None


CONV_KINDS = ("dense", "pointwise", "square", "depthwise", "grouped", "resnext", "transposed")
# and, where a test asks for them, "spread" and "cardinal"


def odd_convs(count: int, seed: int = 0, kinds: tuple[str, ...] = CONV_KINDS) -> list[Conv]:
    """`count` different small convolutions with odd sizes, strides, asymmetric padding, dilation and groups."""
    rng = np.random.default_rng(seed)
    found: dict[Conv, None] = {}
    for turn in itertools.count():
        if len(found) == count:
            return list(found)
        problem = _one_odd_conv(rng, kinds[turn % len(kinds)])
        if problem is not None and np.prod(problem.y_shape) * problem.terms < 2e6 and np.prod(problem.w_shape) < 5e4:
            found[problem] = None
    raise AssertionError("unreachable")


# Cases that must always be tried, whatever the generator draws.
CORNER_CONVS = (
    Conv(1, 1, 1, 1, 1),
    Conv(1, 1, 1, 7, 1000),  # dense layer
    Conv(1, 1, 1, 1030, 5),
    Conv(1, 7, 7, 3, 64, 1, 7, 7, (1, 2, 2), (0, 3, 3), (0, 3, 3)),  # the first layer of ResNet, cropped
    Conv(1, 23, 23, 3, 96, 1, 11, 11, (1, 4, 4)),  # the first layer of AlexNet, cropped
    Conv(1, 1, 961, 8, 20, stride=(1, 1, 64)),  # pixels 2 KB apart, of fewer channels than a vector
    Conv(1, 9, 9, 256, 20, 1, 3, 3, (1, 2, 4), (0, 1, 1), (0, 1, 1)),  # pixels 4 KB apart
    Conv(1, 5, 5, 8, 8, 1, 3, 3, (1, 1, 1), (0, 4, 0), (0, 0, 4)),  # padding wider than the window's reach
    Conv(1, 2, 2, 4, 4, 1, 5, 5, (1, 1, 1), (0, 2, 2), (0, 2, 2)),  # window larger than the image
    Conv(1, 9, 9, 4, 4, 1, 2, 2, (1, 5, 5)),  # stride larger than the window
    Conv(1, 9, 9, 2, 3, 1, 3, 3, (1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 4, 4)),  # one output, far taps
    Conv(1, 14, 14, 33, 65, 1, 3, 3, (1, 2, 2), (0, 0, 0), (0, 1, 1)),  # SAME at stride 2
    Conv(1, 1, 100, 20, 30, 1, 1, 9, (1, 1, 2), (0, 0, 4), (0, 0, 4)),  # sequence
    Conv(4, 5, 6, 3, 9, 3, 3, 3, (1, 2, 2), (1, 1, 1), (1, 1, 1)),  # volume
    Conv(1, 6, 6, 17, 17, 1, 3, 3, (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=17),
    Conv(1, 6, 6, 12, 36, 1, 5, 5, (1, 2, 2), (0, 1, 1), (0, 2, 2), groups=12),
    Conv(1, 5, 5, 128, 128, 1, 3, 3, (1, 1, 1), (0, 1, 1), (0, 1, 1), groups=32),  # ResNeXt
    Conv(1, 4, 4, 6, 8, 1, 4, 4, (1, 2, 2), (0, 1, 1), (0, 1, 1), transposed=True),
    Conv(1, 3, 3, 6, 8, 1, 2, 2, (1, 3, 3), transposed=True, output_padding=(0, 1, 2)),  # holes between the taps
)

# Few channels and fewer filters than a vector holds: LeNet's first layer and everything odd around it.
NARROW_CONVS = (
    Conv(1, 28, 28, 1, 6, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),
    Conv(1, 21, 150, 3, 7, 1, 5, 5, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2)),  # several bands
    Conv(1, 9, 33, 4, 8, 1, 3, 3, (1, 2, 1), (0, 1, 0), (0, 1, 2)),
    Conv(1, 12, 17, 2, 5, 1, 2, 4, (1, 3, 1), (0, 0, 3), (0, 1, 0), (1, 2, 3)),
    Conv(1, 7, 16, 1, 1, 1, 3, 3, pad_lo=(0, 3, 3), pad_hi=(0, 2, 3)),  # more padding than the window reaches
    Conv(1, 10, 40, 3, 2, 1, 1, 1),
    Conv(1, 1, 300, 2, 3, 1, 1, 9, pad_lo=(0, 0, 4), pad_hi=(0, 0, 4)),  # a sequence
    Conv(1, 11, 5, 1, 4, 1, 11, 5),  # one output
    Conv(1, 6, 64, 4, 6, 1, 6, 1),
    Conv(1, 31, 7, 3, 8, 1, 4, 2, (1, 4, 1), (0, 1, 0), (0, 0, 1)),
)


def odd_pools(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Keyword arguments of `pool` (and "kind", "x_shape") for small problems, no window in the padding alone."""
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        off = 3 - _pick(rng, (1, 2, 2, 3))

        def triple(low: int, high: int, rest: int, off: int = off) -> Triple:
            a = tuple(rest if i < off else int(rng.integers(low, high)) for i in range(3))
            return a[0], a[1], a[2]

        kind = _pick(rng, ("max", "avg"))
        size, window, stride = triple(1, 12, 1), triple(1, 5, 1), triple(1, 4, 1)
        dilation = triple(1, 3, 1) if kind == "max" else ONE
        pads = [tuple(int(rng.integers(0, r // 2 + 1)) for r in window) for _ in range(2)]
        ceil_mode = bool(rng.integers(2))
        out = []
        for n, r, s, lo, hi, d in zip(size, window, stride, *pads, dilation):
            m = (n + lo + hi - d * (r - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
            out.append(m - (ceil_mode and (m - 1) * s >= n + lo))
            real = all(any(0 <= o * s - lo + j * d < n for j in range(r)) for o in range(max(out[-1], 0)))
            if not real:
                out[-1] = 0
        if min(out) < 1:
            continue
        problem = dict(
            x_shape=(*size, _pick(rng, _CHANNELS)),
            kind=kind,
            window=window,
            stride=stride,
            pad_lo=pads[0],
            pad_hi=pads[1],
        )
        problem |= dict(dilation=dilation, out=tuple(out))
        if kind == "avg":
            problem |= dict(count_include_pad=bool(rng.integers(2)), divisor=int(_pick(rng, (0, 0, 3))))
        found.append(problem)
    return found
