"""Convolutions in bfloat16 with float32 sums: the rows that say so, tensors stored so, models with precision="bf16".

Small integers are exact in bfloat16 and so are their sums, so the oracle's bits are demanded. Real numbers are compared
with the oracle on inputs rounded here, which leaves only the bound of float32 sums: a wrong rounding is found.
"""

from __future__ import annotations

import pickle
import zlib

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
ROWS = [k["name"] for k in _core.kernels() if k["bf16"] and (k["name"] != "conv_amx" or BF16 == "amx")]
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
    assert len(ops[0]) == 1 and len(ops[1]) == 3 and "conv_depthwise" in ops[0][0]
    tolerance.assert_exact(*results)


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
    assert "conv_depthwise" in kernels and any(k in ROWS for k in kernels)
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
