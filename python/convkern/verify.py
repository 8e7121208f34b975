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

    def run(self, dtype: str, kernel: str = "", bf16: bool = False) -> tuple[Any, list[np.ndarray]]:
        """The plan in that type, and its outputs."""

        def cast(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array, dtype)

        plan = _core.Plan(dtype=dtype, bf16=bf16)
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
            rows = [row for row in _core.kernels() if row["isa"] == isa and row["family"] == "conv"]
            convs = {row["name"]: row["bf16"] for row in rows}  # small integers are exact in bfloat16, too
            if checks:  # the reference is the same code for all
                del convs["conv_ref"]
            tally: Counter[str] = Counter()
            for done, (case, want) in enumerate(cases):
                for kernel in ["", *(convs if case.family == "conv" else ())]:
                    try:
                        plan, (got,) = case.run("float32", kernel, convs.get(kernel, False))
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
    (alone,) = plan.run([np.ascontiguousarray(array[:1], np.float32) for array in case.inputs], threads=1)
    return (
        "" if np.array_equal(alone[0], batch[0], equal_nan=True) else "other bits alone on one thread than in the batch"
    )


def problems(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` random problems, a convolution every second time."""
    rng = np.random.default_rng(seed)
    others = (_pool, _adaptive_pool, _norm, _activation, _binary, _concat, _pad, _transpose, _resize)
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
