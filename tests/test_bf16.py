"""Convolutions in bfloat16 with float32 sums: the rows that say so, tensors stored so, models with precision="bf16".

Small integers are exact in bfloat16 and so are their sums, so the oracle's bits are demanded. Real numbers are compared
with the oracle on inputs rounded here, which leaves only the bound of float32 sums: a wrong rounding is found.
"""

from __future__ import annotations

import itertools
import pickle
import zlib
from typing import Any

import numpy as np
import pytest

import oracle
import tolerance
from convkern import Input, Model, _core
from convkern.errors import Unsupported
from convkern.layers import Add, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool2D
from convkern.models import get_model
from oracle import Conv

BF16 = _core.bf16()
ROWS = [k["name"] for k in _core.kernels() if k["name"] == "conv_bf16" or (k["name"] == "conv_amx" and BF16 == "amx")]
PROBLEMS = [*oracle.CORNER_CONVS, *oracle.odd_convs(160, seed=5)]
# Padded bands: whole steps of channels, stride 1, few filters; rows longer than a block; dilation; wide filters.
BANDS = (
    Conv(1, 14, 14, 32, 40, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 3, 75, 64, 16, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1)),
    Conv(1, 9, 8, 32, 33, 1, 5, 3, pad_lo=(0, 0, 2), pad_hi=(0, 4, 0)),
    Conv(1, 12, 12, 32, 17, 1, 3, 3, pad_lo=(0, 2, 2), pad_hi=(0, 2, 2), dilation=(1, 2, 2)),
    Conv(1, 2, 40, 96, 8, 1, 5, 1, pad_lo=(0, 2, 0), pad_hi=(0, 2, 0)),
    Conv(1, 1, 70, 32, 8, 1, 1, 3, pad_lo=(0, 0, 3), pad_hi=(0, 0, 0)),
)

pytestmark = pytest.mark.skipif(not ROWS, reason="this CPU has no bfloat16: its refusal is tested in test_refusals")


def test_the_rows_are_known() -> None:
    """A new row needs a test here."""
    found = {k["name"] for k in _core.kernels() if k["bf16"]}
    assert found - {"conv_amx"} == {"conv_bf16", "conv_depthwise_bf16", "pool_bf16", "map_bf16"}


def make(
    problem: Conv, data: oracle.ConvData, algo: str, act: str = "none", a: float = 0.0, b: float = 0.0
) -> _core.Plan:
    plan = _core.Plan(bf16=True)
    x = plan.input(problem.x_shape)
    added = -1 if data.residual is None else plan.input(problem.y_shape)
    weight = _core.Parameter(data.w)
    plan.finish([plan.conv(x, weight, data.bias, added, algo=algo, act=act, act_a=a, act_b=b, **problem.geometry)])
    return plan


def arrays(data: oracle.ConvData) -> list[np.ndarray]:
    return [data.x] if data.residual is None else [data.x, data.residual]


def seeded(problem: Conv) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(problem).encode()))


@pytest.mark.parametrize("algo", ROWS)
def test_integers_are_exact(algo: str) -> None:
    ran = 0
    for i, problem in enumerate([*BANDS, *PROBLEMS]):
        data = oracle.conv_data(problem, seeded(problem), 3, residual=i % 3 == 0)
        if problem.transposed or problem.groups > 1:
            with pytest.raises(Unsupported, match="stays float32"):
                make(problem, data, algo)
            continue
        plan = make(problem, data, algo, "relu")
        got = plan.run(arrays(data), threads=2)[0]
        tolerance.assert_exact(got, np.maximum(data.want, 0), (algo, str(problem)))
        # One image alone, on one thread: the same bits.
        alone = plan.run([x[1:2] for x in arrays(data)], threads=1)[0]
        tolerance.assert_exact(alone, got[1:2], (algo, str(problem)))
        ran += 1
    assert ran > 80


@pytest.mark.parametrize("algo", ROWS)
def test_rounding(algo: str) -> None:
    for problem in [*BANDS, *oracle.odd_convs(40, seed=6)]:
        if problem.transposed or problem.groups > 1:
            continue
        data = oracle.conv_data(problem, seeded(problem), 2, exact=False, residual=True)
        x, w = tolerance.rounded_bf16(data.x), tolerance.rounded_bf16(data.w)
        want = oracle.conv(x, w, data.bias, data.residual, **problem.geometry)
        bound = tolerance.conv_bound(x, w, data.bias, data.residual, **problem.geometry)
        got = make(problem, data, algo).run(arrays(data))[0]
        tolerance.assert_within(got, want, bound, (algo, str(problem)))
        loose = tolerance.conv_bf16_bound(data.x, data.w, data.bias, data.residual, **problem.geometry)
        tolerance.assert_within(got, data.want, loose, (algo, str(problem)))


@pytest.mark.parametrize("algo", ROWS)
def test_special_values(algo: str) -> None:
    one = np.float32(1)
    ties = [one + one / 256, one + 3 * one / 256, one + one / 256 + one / 65536, -one - one / 256]
    values = np.array([*ties, np.nan, np.inf, -np.inf, 1e-40, 3e38, -0.0, 65504.0], np.float32)
    problem = Conv(1, 1, len(values), 1, 1)
    data = oracle.ConvData(values.reshape(1, 1, 1, -1, 1), np.ones((1, 1, 1, 1, 1), np.float32), None, None, values)
    got = make(problem, data, algo).run([data.x])[0].ravel()
    tolerance.assert_exact(got, tolerance.rounded_bf16(values))
    assert got[0] == 1 and got[1] == one + one / 64 and np.isnan(got[4])


@pytest.mark.parametrize("algo", ROWS)
@pytest.mark.parametrize("act", tolerance.ACTIVATIONS)
def test_activations(algo: str, act: str) -> None:
    a, b = {"clamp": (-2.0, 3.0), "elu": (0.75, 0.0), "leaky_relu": (0.125, 0.0), "softplus": (0.5, 6.0)}.get(
        act, (0.0, 0.0)
    )
    problem = Conv(1, 5, 9, 3, 37, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    data = oracle.conv_data(problem, seeded(problem), 2, residual=True, limit=1)
    got = make(problem, data, algo, act, a, b).run(arrays(data))[0]
    want = tolerance.activation(act, data.want, a, b)
    tolerance.assert_within(got, want, tolerance.activation_bound(act, data.want, 0.0, a, b), (algo, act))


@pytest.mark.parametrize("algo", ROWS)
def test_strided_inputs_are_read_in_place(algo: str, rng: np.random.Generator) -> None:
    for c, r in ((3, 3), (32, 3), (32, 1), (20, 1)):
        problem = Conv(1, 10, 12, c, 24, 1, r, r)
        data = oracle.conv_data(problem, rng, 2)
        wide = np.full((2, 1, 10, 15, c + 5), np.nan, np.float32)
        wide[:, :, :, 1:13, 2 : c + 2] = data.x
        got = make(problem, data, algo).run([wide[:, :, :, 1:13, 2 : c + 2]])[0]
        tolerance.assert_exact(got, data.want, (algo, c, r))


def chain(kernels: dict[str, np.ndarray], bf16: bool, algo: str = "", strips: bool = True, c: int = 64) -> _core.Plan:
    """1x1, then 3x3 with the 1x1's result as its residual, then 1x1."""
    plan = _core.Plan(bf16=bf16, strips=strips)
    x = plan.input((1, 9, 11, c))
    a = plan.conv(x, _core.Parameter(kernels["a"]), act="relu", algo=algo)
    b = plan.conv(a, _core.Parameter(kernels["b"]), residual=a, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), algo=algo)
    plan.finish([plan.conv(b, _core.Parameter(kernels["c"]), act="relu", algo=algo)])
    return plan


@pytest.mark.parametrize("algo", ROWS)
def test_tensors_between_are_stored_as_bfloat16(algo: str, rng: np.random.Generator) -> None:
    shapes = dict(a=(1, 1, 1, 64, 64), b=(1, 3, 3, 64, 64), c=(1, 1, 1, 64, 16))
    # Sparse enough for integers below 256 in between, which bfloat16 holds.
    kernels = {name: (rng.random(shape) < 0.03).astype(np.float32) for name, shape in shapes.items()}
    x = rng.integers(0, 3, (3, 1, 9, 11, 64)).astype(np.float32)
    plan, full = chain(kernels, True, algo), chain(kernels, False, "conv_direct")
    assert full.run([x])[0].max() < 2**24
    tolerance.assert_exact(plan.run([x], threads=2)[0], full.run([x])[0])
    why = [step["why"] for step in plan.steps()]
    assert "reads float32, writes it" in why[0] and "reads it, writes it" in why[1]
    assert "reads it, writes float32" in why[2]
    assert plan.arena_bytes * 2 == full.arena_bytes
    assert sum(step["bytes"] for step in plan.steps()) < sum(step["bytes"] for step in full.steps())
    real = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    y = rng.standard_normal((5, 1, 9, 11, 64)).astype(np.float32)
    plan = chain(real, True, algo)
    batch = plan.run([y], threads=3)[0]
    for i in range(5):
        tolerance.assert_exact(plan.run([y[i : i + 1]], threads=1)[0], batch[i : i + 1])


def test_strips_do_not_change_bits(rng: np.random.Generator) -> None:
    wide, w, d = (
        rng.standard_normal(s).astype(np.float32) for s in ((1, 1, 1, 16, 96), (1, 1, 1, 96, 24), (1, 3, 3, 1, 96))
    )
    x = rng.standard_normal((2, 1, 48, 48, 16)).astype(np.float32)
    results, ops = [], []
    for strips in (True, False):
        plan = _core.Plan(bf16=True, strips=strips)
        y = plan.conv(plan.input((1, 48, 48, 16)), _core.Parameter(wide), act="relu6")
        y = plan.conv(y, _core.Parameter(d), groups=96, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), act="relu6")
        plan.finish([plan.conv(y, _core.Parameter(w))])
        results.append(plan.run([x])[0])
        ops.append([step["kernel"] for step in plan.steps()])
    assert len(ops[0]) == 1 and len(ops[1]) == 3 and "conv_depthwise_bf16" in ops[0][0]
    tolerance.assert_exact(*results)


def test_bottlenecks_and_pooling_in_strips(rng: np.random.Generator) -> None:
    """1x1 -> 3x3 -> 1x1 with the first one's input as residual, 3x3 -> max pooling: the bits of step by step."""
    shapes = dict(
        stem=(1, 1, 1, 8, 64), a=(1, 1, 1, 64, 32), b=(1, 3, 3, 32, 32), c=(1, 1, 1, 32, 64), d=(1, 3, 3, 3, 32)
    )
    w = {name: _core.Parameter(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    around = dict(pad_lo=(0, 1, 1), pad_hi=(0, 1, 1))
    x = rng.standard_normal((3, 1, 59, 57, 8)).astype(np.float32)
    photo = rng.standard_normal((3, 1, 112, 96, 3)).astype(np.float32)
    results = []
    for strips in (True, False):
        plan = _core.Plan(bf16=True, strips=strips)
        y = plan.conv(plan.input((1, 59, 57, 8)), w["stem"], act="relu")
        z = plan.conv(plan.conv(y, w["a"], act="relu"), w["b"], act="relu", **around)
        z = plan.conv(z, w["c"], residual=y, act="relu")
        first = plan.conv(plan.input((1, 112, 96, 3)), w["d"], act="relu", **around)
        first = plan.pool(first, "max", window=(1, 3, 3), stride=(1, 2, 2), out=(1, 56, 48), **around)
        plan.finish([z, first])
        kernels = [step["kernel"].count(" > ") for step in plan.steps()]
        assert kernels == ([0, 2, 1] if strips else [0] * 6)
        results.append([plan.run([x, photo], threads=2), plan.run([x[1:2], photo[1:2]], threads=1)])
    for k in range(2):
        tolerance.assert_exact(results[0][0][k], results[1][0][k], k)
        tolerance.assert_exact(results[0][1][k], results[0][0][k][1:2], k)


# Depthwise convolution, pooling, elementwise operators: on tensors stored as bfloat16 between two 1x1 convolutions that
# change nothing, or on the float32 arrays of the call.


def identity(plan: _core.Plan, x: int, channels: int) -> int:
    return plan.conv(x, _core.Parameter(np.eye(channels, dtype=np.float32)[None, None, None]), algo=ROWS[0])


def sandwiched(shapes: list[tuple[int, ...]], build: Any, stored: bool) -> _core.Plan:
    """A plan of build(plan, *tensors), a single tensor of shape (d,h,w,c); `stored`: all of them are bfloat16."""
    plan = _core.Plan(bf16=True)
    tensors = [plan.input(shape) for shape in shapes]
    if stored:
        tensors = [identity(plan, x, shape[-1]) for x, shape in zip(tensors, shapes)]
    y = build(plan, *tensors)
    plan.finish([identity(plan, y, plan.shape(y)[-1]) if stored else y])
    return plan


def the_step(plan: _core.Plan, kernel: str, stored: bool) -> None:
    (step,) = (step for step in plan.steps() if step["kernel"] == kernel)
    assert ("reads it, writes it" if stored else "reads float32, writes float32") in step["why"]


def depthwise_problems() -> list[Conv]:
    rng, found = np.random.default_rng(11), []
    for c in (2, 7, 31, 32, 33, 64, 100, 290):
        for s, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1)):
            h, w, r = (int(n) for n in rng.integers((1, 1, 1), (13, 20, 8)))
            top, bottom, left, right = (int(n) for n in rng.integers(0, 4, 4))
            if h + top + bottom >= r and w + left + right >= s:
                strides = (1, int(rng.integers(1, 3)), stride)
                found.append(Conv(1, h, w, c, c, 1, r, s, strides, (0, top, left), (0, bottom, right), groups=c))
    return found


@pytest.mark.parametrize("stored", [False, True])
def test_depthwise_is_exact(stored: bool) -> None:
    problems = depthwise_problems()
    assert len(problems) >= 30
    algo = "conv_depthwise_bf16"
    for i, problem in enumerate(problems):
        data = oracle.conv_data(problem, seeded(problem), 3, residual=i % 3 == 0)
        added = data.residual is not None
        act = ("relu", "none", "relu6")[i % 3]

        def build(plan: _core.Plan, x: int, residual: int = -1) -> int:
            return plan.conv(x, _core.Parameter(data.w), data.bias, residual, act=act, algo=algo, **problem.geometry)  # noqa: B023

        plan = sandwiched([problem.x_shape, *[problem.y_shape] * added], build, stored)
        the_step(plan, "conv_depthwise_bf16", stored)
        limits = dict(relu=(0, np.inf), none=(-np.inf, np.inf), relu6=(0, 6))[act]
        want = np.clip(data.want, *limits)
        got = plan.run(arrays(data), threads=2)[0]
        tolerance.assert_exact(got, tolerance.rounded_bf16(want) if stored else want, str(problem))
        alone = plan.run([x[1:2] for x in arrays(data)], threads=1)[0]
        tolerance.assert_exact(alone, got[1:2], str(problem))


@pytest.mark.parametrize("act", ["silu", "hard_swish"])
def test_depthwise_activations(act: str) -> None:
    problem = Conv(1, 6, 9, 70, 70, 1, 3, 3, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), groups=70)
    data = oracle.conv_data(problem, seeded(problem), 2, limit=1)
    plan = sandwiched(
        [problem.x_shape],
        lambda plan, x: plan.conv(x, _core.Parameter(data.w), data.bias, act=act, **problem.geometry),
        True,
    )
    want = tolerance.activation(act, data.want, 0.0, 0.0)
    bound = tolerance.activation_bound(act, data.want, 0.0, 0.0, 0.0) + np.abs(want) * tolerance.U_BF16 * 1.01
    tolerance.assert_within(plan.run([data.x])[0], want, bound, act)


@pytest.mark.parametrize("stored", [False, True])
def test_pooling_is_exact(stored: bool, rng: np.random.Generator) -> None:
    wide = dict(kind="avg", x_shape=(1, 9, 11, 130), window=(1, 9, 11), stride=(1, 1, 1), out=(1, 1, 1))
    plain = dict(kind="max", x_shape=(1, 12, 13, 96), window=(1, 3, 3), stride=(1, 2, 2), out=(1, 5, 6))
    for options in [wide, plain, *oracle.odd_pools(60, seed=3)]:
        kind, shape = options["kind"], options["x_shape"]
        rest = {key: value for key, value in options.items() if key not in ("kind", "x_shape")}
        plan = sandwiched([shape], lambda plan, x: plan.pool(x, kind, **rest), stored)  # noqa: B023
        the_step(plan, "pool_bf16", stored)
        x = rng.integers(-9, 10, (3, *shape)).astype(np.float32)
        want = oracle.pool(x, kind, **rest)[0].astype(np.float32)
        got = plan.run([x], threads=2)[0]
        tolerance.assert_exact(got, tolerance.rounded_bf16(want) if stored else want, options)
        tolerance.assert_exact(plan.run([x[2:]], threads=1)[0], got[2:], options)


def test_pooling_of_special_values() -> None:
    x = np.array([[np.nan, 1, 2, -np.inf, -np.inf, np.inf]], np.float32).reshape(1, 1, 1, 6, 1)
    plan = sandwiched(
        [(1, 1, 6, 1)], lambda p, t: p.pool(t, "max", window=(1, 1, 2), stride=(1, 1, 2), out=(1, 1, 3)), False
    )
    tolerance.assert_exact(plan.run([x])[0].ravel(), [np.nan, 2, np.inf])


@pytest.mark.parametrize("stored", [False, True])
def test_elementwise_is_exact(stored: bool, rng: np.random.Generator) -> None:
    functions = dict(add=np.add, sub=np.subtract, mul=np.multiply, max=np.maximum, min=np.minimum)
    shapes = [((1, 5, 7, 40), (1, 1, 1, 40)), ((1, 6, 6, 33), (1, 6, 6, 33)), ((1, 4, 9, 1), (1, 4, 9, 70))]
    shapes += [((1, 30, 40, 3), (1, 1, 1, 1)), ((1, 1, 1, 1300), (1, 1, 1, 1300))]
    for (a, b), (op, function) in itertools.product(shapes, functions.items()):
        plan = sandwiched([a, b], lambda plan, x, y: plan.binary(x, y, op, "relu"), stored)  # noqa: B023
        the_step(plan, "map_bf16", stored)
        xs = [rng.integers(-9, 10, (3, *shape)).astype(np.float32) for shape in (a, b)]
        want = np.maximum(function(*xs), 0)
        tolerance.assert_exact(plan.run(xs, threads=2)[0], want, (a, b, op))
        plan = sandwiched([a], lambda plan, x: plan.activation(x, "relu"), stored)
        tolerance.assert_exact(plan.run(xs[:1])[0], np.maximum(xs[0], 0), a)


def test_a_squeeze_and_excitation_block_is_stored_as_bfloat16(rng: np.random.Generator) -> None:
    """Depthwise, pooling, gate, product, 1x1: nothing in between is float32, and a batch is its images."""
    plan = _core.Plan(bf16=True)
    c = 48
    w, d, down, up = (
        rng.standard_normal(s).astype(np.float32) / 4
        for s in ((1, 1, 1, c, c), (1, 3, 3, 1, c), (1, 1, 1, c, 8), (1, 1, 1, 8, c))
    )
    x = plan.conv(plan.input((1, 14, 14, c)), _core.Parameter(w), act="silu")
    x = plan.conv(x, _core.Parameter(d), groups=c, pad_lo=(0, 1, 1), pad_hi=(0, 1, 1), act="silu")
    s = plan.adaptive_pool(x, "avg", out=(1, 1, 1))
    s = plan.conv(plan.conv(s, _core.Parameter(down), act="silu"), _core.Parameter(up), act="sigmoid")
    plan.finish([plan.conv(plan.binary(x, s, "mul"), _core.Parameter(w))])
    why = [step["why"] for step in plan.steps()]
    assert all("reads it" in text for text in why[1:]) and all("writes it" in text for text in why[:-1])
    image = rng.standard_normal((4, 1, 14, 14, c)).astype(np.float32)
    y = plan.run([image], threads=2)[0]
    for i in range(4):
        tolerance.assert_exact(plan.run([image[i : i + 1]], threads=1)[0], y[i : i + 1])


def small_model() -> Model:
    image = Input((24, 24, 3))
    x = Conv2D(32, 3, activation="relu")(image)
    y = Conv2D(32, 3, padding="same", activation="relu")(x)
    x = DepthwiseConv2D(3, padding="same")(Add()([x, y]))
    return Model(image, Dense(10)(GlobalAveragePool2D()(x)), precision="bf16")


def test_models(rng: np.random.Generator) -> None:
    model = small_model()
    x = rng.standard_normal((5, 24, 24, 3)).astype(np.float32)
    y = model(x)
    kernels = [step["kernel"] for step in model.plan().steps()]
    assert "conv_depthwise_bf16" in kernels and "pool_bf16" in kernels and any(k in ROWS for k in kernels)
    tolerance.assert_exact(model(x[2:3], threads=1), y[2:3])
    copy = pickle.loads(pickle.dumps(model))
    assert copy.precision == "bf16"
    tolerance.assert_exact(copy(x), y)
    model.precision = "float32"
    full = model(x)
    assert not any(k in ROWS for step in model.plan().steps() for k in step["kernel"].split(" > "))
    assert not np.array_equal(full, y)
    tolerance.assert_within(y, full, tolerance.bf16_network_bound(full))
    assert Model.from_config(model.get_config()).precision == "float32"


def test_a_published_architecture(rng: np.random.Generator) -> None:
    model = get_model("resnet18", input_shape=(64, 64, 3), precision="bf16")
    x = rng.standard_normal((3, 64, 64, 3)).astype(np.float32)
    y = model(x)
    assert sum("reads it, writes it" in step["why"] for step in model.plan().steps()) >= 12
    model.precision = "float32"
    tolerance.assert_within(y, model(x), tolerance.bf16_network_bound(y))


def test_refusals() -> None:
    with pytest.raises(Unsupported, match="want one of float32, bf16"):
        Model(Input((3,)), Input((3,)), precision="fp8")
    with pytest.raises(Unsupported, match="float64"):
        _core.Plan("float64", bf16=True)
    with pytest.raises(Unsupported, match="bfloat16 is not asked for"):
        plan = _core.Plan()
        plan.conv(plan.input((1, 1, 1, 4)), _core.Parameter(np.ones((1, 1, 1, 4, 4), np.float32)), algo=ROWS[0])


def test_an_isa_without_it(isa: str) -> None:
    if isa == _core.isas()[0]:
        assert _core.bf16() == BF16
        return
    assert _core.bf16() == ""
    with pytest.raises(Unsupported, match=f"AVX512_BF16; this one is used as {isa}"):
        small_model()(np.zeros((1, 24, 24, 3), np.float32))
