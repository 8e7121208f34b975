"""Does this installation compute what it should, on this machine? The check behind `convkern verify`.

A few hundred small random problems of every operator, on every instruction set the machine has. Each kernel that
accepts a convolution is forced in turn. Results are compared with the float64 reference kernels: bit for bit where the
inputs are small integers, for which every order of summation gives the same result, else within a tolerance. Every plan
must also give one image the same bits alone on one thread and within a batch on all threads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from .errors import Unsupported
from .graph import ACTIVATIONS, conv_size, conv_transpose_size, pool_size

TOLERANCE = 2e-5  # relative to the largest result, for operators that round (exp, erf, division); float32 has 6e-8

_MACS = 500_000  # of the largest convolution, for one image: the references take their time

Build = Callable[[Any, Sequence[int], Callable[[np.ndarray], np.ndarray], str], int]


@dataclass(frozen=True)
class Case:
    """One problem: its inputs (N,D,H,W,C), and build(plan, input ids, cast to the plan's type, kernel or "")."""

    family: str
    text: str
    inputs: Sequence[np.ndarray]
    build: Build
    exact: bool
    training: bool = False  # a gradient; then the result may be one for the batch

    def run(self, dtype: str, kernel: str = "", bf16: bool = False) -> tuple[Any, list[np.ndarray]]:
        """The plan in that type, and its outputs."""

        def cast(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array, dtype)

        plan = _core.Plan(dtype=dtype, training=self.training, bf16=bf16)
        ids = [plan.input(array.shape[1:]) for array in self.inputs]
        plan.finish([self.build(plan, ids, cast, kernel)])
        return plan, plan.run([cast(array) for array in self.inputs])


def run(count: int = 400, seed: int = 0, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Check `count` problems on every instruction set; a report with the failures in words.

    progress: called with (isa, problems done, problems) now and then. The instruction set in use is restored.

    >>> run(count=12)["failures"]
    []
    """
    cases = [(case, case.run("float64")[1][0]) for case in problems(count, seed)]
    isa_before = _core.isa()
    checks: dict[str, dict[str, int]] = {}
    failures: list[str] = []
    try:
        for isa in _core.isas():
            _core.set_isa(isa)
            forced: dict[str, list[str]] = {"conv": [], "conv_weight": []}
            bf16_rows = {row["name"] for row in _core.kernels() if row["bf16"]}  # small integers are exact there, too
            for row in _core.kernels():  # the reference is the same code for all
                if row["isa"] == isa and row["family"] in forced and not (checks and row["name"].endswith("_ref")):
                    forced[row["family"]].append(row["name"])
            tally: Counter[str] = Counter()
            for done, (case, want) in enumerate(cases):
                runs = [("", False), *((kernel, kernel in bf16_rows) for kernel in forced.get(case.family, ()))]
                if case.family in ("pool", "map") and _core.bf16():
                    runs.append(("", True))
                for kernel, bf16 in runs:
                    try:
                        plan, (got,) = case.run("float32", kernel, bf16)
                    except Unsupported:
                        if kernel:
                            continue  # a kernel may refuse; without a name one must accept
                        raise
                    step = plan.steps()[-1]
                    tally[step["kernel"]] += 1
                    problem = _difference(case, got, want) or _depends_on_batch(case, plan, got)
                    if problem:
                        failures.append(f"{isa} {step['kernel']}: {case.text}: {problem}")
                if progress and done % 50 == 0:
                    progress(isa, done, len(cases))
            checks[isa] = dict(sorted(tally.items()))
    finally:
        _core.set_isa(isa_before)
    return dict(problems=len(cases), checks=checks, failures=failures)


def _difference(case: Case, got: np.ndarray, want: np.ndarray) -> str:
    if got.shape != want.shape:
        return f"shape {got.shape}, want {want.shape}"
    if case.exact:
        wrong = int((got != want).sum())
        return f"{wrong} of {got.size} values differ from the reference" if wrong else ""
    error = float(np.abs(got - want).max(initial=0.0) / max(1.0, np.abs(want).max(initial=0.0)))
    return "" if error <= TOLERANCE else f"relative error {error:.1e}, want at most {TOLERANCE:.0e}"


def _depends_on_batch(case: Case, plan: Any, batch: np.ndarray) -> str:
    if case.training:  # statistics and sums are those of the batch; the threads must not show
        (one,) = plan.run([np.ascontiguousarray(array, np.float32) for array in case.inputs], threads=1)
        return "" if np.array_equal(one, batch, equal_nan=True) else "other bits on one thread than on all"
    (alone,) = plan.run([np.ascontiguousarray(array[:1], np.float32) for array in case.inputs], threads=1)
    return (
        "" if np.array_equal(alone[0], batch[0], equal_nan=True) else "other bits alone on one thread than in the batch"
    )


def problems(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` random problems, a convolution every second time."""
    rng = np.random.default_rng(seed)
    others = (
        *(_pool, _adaptive_pool, _norm, _activation, _binary, _concat, _pad, _transpose, _resize, _data_gradient),
        *(_weight_gradient, _pool_gradient, _norm_gradient, _batch_norm, _activation_gradient, _sum, _dropout, _loss),
        *(_pad_gradient, _resize_gradient, _update),
    )
    for i in range(count):
        yield (_conv if i % 2 == 0 else others[i // 2 % len(others)])(rng)


def _pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def _integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


def _sizes(rng: np.random.Generator, largest: tuple[int, int, int] = (5, 14, 17)) -> tuple[int, int, int]:
    """Depth, height and width of an image, now and then of a sequence or a volume."""
    d, h, w = (int(rng.integers(1, most + 1)) for most in largest)
    return _pick(rng, (1, h, w), (1, h, w), (1, h, w), (1, 1, w), (d, h, w))


def _channels(rng: np.random.Generator) -> int:
    return int(_pick(rng, 1, 2, 3, 5, 8, 13, 16, 17, 24, 32, 40, 64))


def _image(rng: np.random.Generator) -> np.ndarray:
    return _integers(rng, 3, *_sizes(rng), _channels(rng))


def _conv(rng: np.random.Generator) -> Case:
    while True:
        size = _sizes(rng)
        window = tuple(int(_pick(rng, 1, 2, 3, 3, 5, 7)) if n > 1 else 1 for n in size)
        stride = tuple(int(_pick(rng, 1, 1, 2, 3)) for _ in size)
        dilation = tuple(int(_pick(rng, 1, 1, 1, 2)) for _ in size)
        lo, hi = (tuple(int(rng.integers(0, r + 1)) if r > 1 else 0 for r in window) for _ in range(2))
        transposed = rng.random() < 0.2
        sides = zip(size, window, stride, lo, hi, dilation)
        if transposed:
            out = [conv_transpose_size(n, r, s, before, after, d, 0) for n, r, s, before, after, d in sides]
        else:
            out = [conv_size(n, r, s, before, after, d) for n, r, s, before, after, d in sides]
        groups = int(_pick(rng, 1, 1, 1, 2, 4, 32))
        c, k = (groups * int(_pick(rng, 1, 3, 4, 8, 17)) for _ in range(2))
        if rng.random() < 0.25:  # depthwise, with a multiplier
            groups = c = _channels(rng)
            k = c * int(_pick(rng, 1, 1, 1, 2, 3))
        macs = math.prod(window) * (c // groups) * k * math.prod(size if transposed else out)
        if min(out) >= 1 and macs <= _MACS:
            break
    act = _pick(rng, "none", "relu", "relu6")
    x, w, b = _integers(rng, 3, *size, c), _integers(rng, *window, c // groups, k), _integers(rng, k)
    residual = _integers(rng, 3, *out, k) if rng.random() < 0.25 else None

    def build(plan: Any, ids: Sequence[int], cast: Callable[[np.ndarray], np.ndarray], kernel: str) -> int:
        return plan.conv(
            ids[0],
            _core.Parameter(cast(w)),
            cast(b),
            ids[1] if residual is not None else -1,
            stride=stride,
            pad_lo=lo,
            pad_hi=hi,
            dilation=dilation,
            groups=groups,
            transposed=transposed,
            act=act,
            algo=kernel,
        )

    kind = "transposed convolution" if transposed else "convolution"
    text = f"{kind} {size}x{c} -> {k}, window {window}, stride {stride}, padding {lo} {hi}"
    text += f", dilation {dilation}, groups {groups}, {act}"
    return Case("conv", text, [x] if residual is None else [x, residual], build, exact=True)


def _pool(rng: np.random.Generator) -> Case:
    kind = _pick(rng, "max", "avg")
    x = _image(rng)
    size = x.shape[1:4]
    window = tuple(int(rng.integers(1, min(n, 4) + 1)) for n in size)
    stride = tuple(int(rng.integers(1, 4)) for _ in size)
    lo = tuple(int(rng.integers(0, r // 2 + 1)) for r in window)
    ceil_mode, count_include_pad = bool(rng.integers(2)), bool(rng.integers(2))
    out = tuple(pool_size(n, r, s, p, p, 1, ceil_mode) for n, r, s, p in zip(size, window, stride, lo))

    def build(plan: Any, ids: Sequence[int], cast: Any, kernel: str) -> int:
        options = dict(window=window, stride=stride, pad_lo=lo, pad_hi=lo, out=out, count_include_pad=count_include_pad)
        return plan.pool(ids[0], kind, **options)

    text = f"{kind} pooling {x.shape[1:]}, window {window}, stride {stride}, padding {lo}"
    text += f", ceil_mode {ceil_mode}, count_include_pad {count_include_pad}"
    return Case("pool", text, [x], build, exact=kind == "max")


def _adaptive_pool(rng: np.random.Generator) -> Case:
    kind, x = _pick(rng, "max", "avg"), _image(rng)
    out = _pick(rng, (1, 1, 1), tuple(int(rng.integers(1, n + 1)) for n in x.shape[1:4]))
    return Case(
        "pool",
        f"adaptive {kind} pooling {x.shape[1:]} to {out}",
        [x],
        lambda plan, ids, cast, kernel: plan.adaptive_pool(ids[0], kind, out=out),
        exact=kind == "max",
    )


def _norm(rng: np.random.Generator) -> Case:
    kind, x = _pick(rng, "scale_shift", "layer_norm", "lrn", "softmax"), _image(rng)
    a, b = _integers(rng, x.shape[-1]), _integers(rng, x.shape[-1])

    def build(plan: Any, ids: Sequence[int], cast: Callable[[np.ndarray], np.ndarray], kernel: str) -> int:
        if kind == "scale_shift":
            return plan.scale_shift(ids[0], cast(a), cast(b))
        if kind == "layer_norm":
            return plan.layer_norm(ids[0], cast(a), cast(b), 1e-5)
        return plan.lrn(ids[0], 5, 1e-4, 0.75, 2.0) if kind == "lrn" else plan.softmax(ids[0])

    return Case("norm", f"{kind} {x.shape[1:]}", [x], build, exact=kind == "scale_shift")


def _activation(rng: np.random.Generator) -> Case:
    name, x = _pick(rng, *(a for a in ACTIVATIONS if a != "none")), _image(rng)
    a, b = {"clamp": (-1.0, 2.0), "softplus": (1.0, 20.0)}.get(name, (0.5, 0.0))
    return Case(
        "map",
        f"{name} {x.shape[1:]}",
        [x],
        lambda plan, ids, cast, kernel: plan.activation(ids[0], name, a, b),
        exact=name in ("relu", "relu6", "clamp"),
    )


def _binary(rng: np.random.Generator) -> Case:
    kind, x = _pick(rng, "add", "sub", "mul", "max", "min"), _image(rng)
    y = _integers(rng, 3, *(n if rng.integers(2) else 1 for n in x.shape[1:]))
    return Case(
        "map",
        f"{kind} {x.shape[1:]} and {y.shape[1:]}",
        [x, y],
        lambda plan, ids, cast, kernel: plan.binary(ids[0], ids[1], kind),
        exact=True,
    )


def _concat(rng: np.random.Generator) -> Case:
    x, axis = _image(rng), int(rng.integers(4))
    shape = list(x.shape)
    shape[axis + 1] = int(rng.integers(1, 9))
    y = _integers(rng, *shape)
    return Case(
        "move",
        f"concatenation of {x.shape[1:]} and {y.shape[1:]} along {axis}",
        [x, y],
        lambda plan, ids, cast, kernel: plan.concat([ids[0], ids[1]], axis),
        exact=True,
    )


def _pad(rng: np.random.Generator) -> Case:
    mode, x = _pick(rng, "constant", "reflect", "replicate", "circular"), _image(rng)
    most = [min(n - 1, 3) for n in x.shape[1:]]
    lo, hi = ([int(rng.integers(0, m + 1)) for m in most] for _ in range(2))
    return Case(
        "move",
        f"{mode} padding of {x.shape[1:]} by {lo} {hi}",
        [x],
        lambda plan, ids, cast, kernel: plan.pad(ids[0], lo, hi, mode, 2.0),
        exact=True,
    )


def _transpose(rng: np.random.Generator) -> Case:
    x, perm = _image(rng), [int(i) for i in rng.permutation(4)]
    return Case(
        "move",
        f"transpose {x.shape[1:]} {perm}",
        [x],
        lambda plan, ids, cast, kernel: plan.transpose(ids[0], perm),
        exact=True,
    )


def _resize(rng: np.random.Generator) -> Case:
    mode, x = (
        _pick(rng, "nearest", "nearest-exact", "linear", "cubic"),
        _integers(rng, 3, 1, *_sizes(rng)[1:], _channels(rng)),
    )
    out = (1, *(int(rng.integers(1, 24)) for _ in range(2)))
    corners = bool(rng.integers(2)) and mode in ("linear", "cubic")
    return Case(
        "resize",
        f"{mode} resize {x.shape[1:]} to {out}, align_corners {corners}",
        [x],
        lambda plan, ids, cast, kernel: plan.resize(ids[0], out, mode, corners),
        exact=mode.startswith("nearest"),
    )


# Gradients


def _conv_gradient(
    rng: np.random.Generator,
) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], tuple[int, ...], str]:
    """Geometry, shapes of x, y and the weights, and words."""
    while True:
        size = _sizes(rng)
        window = tuple(int(_pick(rng, 1, 2, 3, 3, 5)) if n > 1 else 1 for n in size)
        stride = tuple(int(_pick(rng, 1, 1, 2)) for _ in size)
        pad = tuple(int(rng.integers(0, r + 1)) if r > 1 else 0 for r in window)
        transposed = rng.random() < 0.2
        formula = conv_transpose_size if transposed else conv_size
        out = tuple(formula(n, r, s, p, p, 1, *([0] * transposed)) for n, r, s, p in zip(size, window, stride, pad))
        groups = int(_pick(rng, 1, 1, 2, 4))
        c, k = (groups * int(_pick(rng, 1, 3, 4, 8, 17)) for _ in range(2))
        if rng.random() < 0.25:
            groups = c = k = _channels(rng)
        if min(out) >= 1 and math.prod(window) * (c // groups) * k * math.prod(out) <= _MACS:
            break
    geometry = dict(stride=stride, pad_lo=pad, pad_hi=pad, groups=groups, transposed=transposed)
    text = f"{'transposed ' * transposed}convolution {size}x{c} -> {k}, window {window}, stride {stride}, padding {pad}"
    return geometry, (3, *size, c), (3, *out, k), (*window, c // groups, k), f"{text}, groups {groups}"


def _data_gradient(rng: np.random.Generator) -> Case:
    geometry, x, y, weight, text = _conv_gradient(rng)
    w = _integers(rng, *weight)

    def build(plan: Any, ids: Sequence[int], cast: Callable[[np.ndarray], np.ndarray], kernel: str) -> int:
        return plan.conv_backward_data(ids[0], _core.Parameter(cast(w)), x[1:], algo=kernel, **geometry)

    return Case("conv", f"data gradient of {text}", [_integers(rng, *y)], build, exact=True, training=True)


def _weight_gradient(rng: np.random.Generator) -> Case:
    geometry, x, y, weight, text = _conv_gradient(rng)

    def build(plan: Any, ids: Sequence[int], cast: Any, kernel: str) -> int:
        return plan.conv_backward_weight(*ids, kernel=weight[:3], algo=kernel, **geometry)

    inputs = [_integers(rng, *x), _integers(rng, *y)]
    winograd = geometry["stride"] == (1, 1, 1) and weight[:3] == (1, 3, 3)  # which rounds
    return Case("conv_weight", f"weight gradient of {text}", inputs, build, exact=not winograd, training=True)


def _pool_gradient(rng: np.random.Generator) -> Case:
    x = _image(rng)
    window = tuple(int(rng.integers(1, min(n, 3) + 1)) for n in x.shape[1:4])
    stride = tuple(int(rng.integers(1, 4)) for _ in window)
    out = tuple((n - r) // s + 1 for n, r, s in zip(x.shape[1:4], window, stride))
    dy, kind = _integers(rng, 3, *out, x.shape[-1]), _pick(rng, "max", "avg")
    geometry = dict(window=window, stride=stride)

    def build(plan: Any, ids: Sequence[int], cast: Any, kernel: str) -> int:
        if kind == "avg":
            return plan.avg_pool_backward(ids[1], x.shape[1:], **geometry)
        index = plan.pool(ids[0], "max", out=out, indices=True, **geometry)[1]
        return plan.max_pool_backward(ids[1], index, x.shape[1:], **geometry)

    text = f"gradient of {kind} pooling {x.shape[1:]}, window {window}, stride {stride}"
    return Case("pool_back", text, [x, dy], build, exact=kind == "max", training=True)


def _norm_gradient(rng: np.random.Generator) -> Case:
    kind, x = _pick(rng, "layer_norm", "lrn", "softmax"), _image(rng)
    g = _integers(rng, x.shape[-1])

    def build(plan: Any, ids: Sequence[int], cast: Callable[[np.ndarray], np.ndarray], kernel: str) -> int:
        if kind == "layer_norm":
            return plan.layer_norm_backward(*ids, _core.Parameter(cast(g)), 1e-1)[0]
        if kind == "lrn":
            return plan.lrn_backward(*ids, 5, 1e-4, 0.75, 2.0)
        return plan.softmax_backward(*ids)

    inputs = [_integers(rng, *x.shape), x]
    return Case("norm_back", f"gradient of {kind} {x.shape[1:]}", inputs, build, exact=False, training=True)


def _batch_norm(rng: np.random.Generator) -> Case:
    x, backward = _image(rng), bool(rng.integers(2))

    def build(plan: Any, ids: Sequence[int], cast: Any, kernel: str) -> int:
        y, mean, var = plan.batch_norm_train(ids[0], None, None, 1e-1)
        return plan.batch_norm_backward(ids[1], ids[0], mean, var, None, None, 1e-1)[0] if backward else y

    text = f"{'gradient of ' * backward}batch norm {x.shape[1:]}"
    return Case("batch_norm", text, [x, _integers(rng, *x.shape)], build, exact=False, training=True)


def _activation_gradient(rng: np.random.Generator) -> Case:
    name, x = _pick(rng, *(a for a in ACTIVATIONS if a != "none")), _image(rng)
    a, b = {"clamp": (-1.0, 2.0), "softplus": (1.0, 20.0)}.get(name, (0.5, 0.0))
    return Case(
        "map_back",
        f"gradient of {name} {x.shape[1:]}",
        [_integers(rng, *x.shape), x],
        lambda plan, ids, cast, kernel: plan.activation_backward(*ids, name, a, b),
        exact=name in ("relu", "relu6", "clamp"),
        training=True,
    )


def _sum(rng: np.random.Generator) -> Case:
    x = _image(rng)
    shape, total = _pick(rng, (1, 1, 1, x.shape[-1]), (1, 1, 1, 1), x.shape[1:]), bool(rng.integers(2))
    return Case(
        "sum",
        f"sum of {x.shape[1:]} to {shape}",
        [x, _integers(rng, *x.shape)],
        lambda plan, ids, cast, kernel: plan.sum(*ids, shape=shape, total=total),
        exact=True,
        training=True,
    )


def _dropout(rng: np.random.Generator) -> Case:
    x, seed = _image(rng), int(rng.integers(1 << 40))
    return Case(
        "dropout",
        f"dropout {x.shape[1:]}",
        [x],
        lambda plan, ids, cast, kernel: plan.dropout(ids[0], rate=0.5, seed=seed),
        exact=True,
        training=True,
    )


def _loss(rng: np.random.Generator) -> Case:
    x, kind = _image(rng), _pick(rng, "softmax_sparse", "softmax_dense", "sigmoid", "squared", "absolute")
    target = (
        _integers(rng, *x.shape) if kind != "softmax_sparse" else np.abs(_integers(rng, *x.shape[:4], 1)) % x.shape[-1]
    )
    return Case(
        "loss",
        f"{kind} loss of {x.shape[1:]}",
        [x, target],
        lambda plan, ids, cast, kernel: plan.loss(*ids, kind)[1],
        exact=False,
        training=True,
    )


def _pad_gradient(rng: np.random.Generator) -> Case:
    mode, x = _pick(rng, "reflect", "replicate", "circular"), _image(rng)
    lo, hi = ([int(rng.integers(0, min(n - 1, 3) + 1)) for n in x.shape[1:]] for _ in range(2))
    dy = _integers(rng, 3, *(n + a + b for n, a, b in zip(x.shape[1:], lo, hi)))
    return Case(
        "move_back",
        f"gradient of {mode} padding of {x.shape[1:]} by {lo} {hi}",
        [dy],
        lambda plan, ids, cast, kernel: plan.pad_backward(ids[0], x.shape[1:], lo, hi, mode),
        exact=True,
        training=True,
    )


def _resize_gradient(rng: np.random.Generator) -> Case:
    mode, shape = _pick(rng, "nearest", "linear", "cubic"), (1, *_sizes(rng)[1:], _channels(rng))
    dy = _integers(rng, 3, 1, *(int(rng.integers(1, 24)) for _ in range(2)), shape[-1])
    return Case(
        "resize_back",
        f"gradient of {mode} resize {shape} to {dy.shape[1:]}",
        [dy],
        lambda plan, ids, cast, kernel: plan.resize_backward(ids[0], shape, mode),
        exact=mode == "nearest",
        training=True,
    )


class _Update(Case):
    """An optimizer's step, which is no plan: the first input moves by the second."""

    def run(self, dtype: str, kernel: str = "", bf16: bool = False) -> tuple[Any, list[np.ndarray]]:
        return _Updated(dtype), _Updated(dtype).run(self.inputs)


class _Updated:
    def __init__(self, dtype: str):
        self.dtype = dtype

    def run(self, inputs: Sequence[np.ndarray], threads: int = 0) -> list[np.ndarray]:
        w, g = (array.astype(self.dtype) for array in inputs)
        m, v = np.ones_like(w), np.ones_like(w)
        _core.sgd_step([w], [g], [m], rate=0.1, momentum=0.9, decay=0.01, threads=threads)
        _core.adam_step([w], [g], [m], [v], step=2, rate=0.1, threads=threads)
        _core.rmsprop_step([w], [g], [v], rate=0.1, threads=threads)
        return [w]

    def steps(self) -> list[dict[str, str]]:
        return [{"kernel": next(row["name"] for row in _core.kernels() if row["family"] == "update")}]


def _update(rng: np.random.Generator) -> Case:
    x = _image(rng)
    return _Update(
        "update",
        f"optimizer steps on {x.size} values",
        [x, _integers(rng, *x.shape)],
        lambda plan, ids, cast, kernel: ids[0],
        exact=False,
        training=True,
    )
