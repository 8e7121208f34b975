"""CUDA on a device: the cases of cuda_cases.py on every row, tensor cores included, the zoo against its golden
facts, and what only a device can show: streams, several threads, memory given back.

`make gpu-test` builds for the device at hand and runs this; elsewhere all of it is skipped. Tests marked `sanitizer`
are few and small: compute-sanitizer runs them for memory errors and races.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import cuda_cases
import golden
import oracle
import tolerance
from convkern import device
from convkern.errors import Unsupported
from cuda_cases import *  # noqa: F403 - the tests
from cuda_cases import back, check_conv, check_network, put, small_net
from oracle import Conv

if not device.is_available():
    reason = "no CUDA device, or a build without CUDA kernels: make gpu-test is for a machine that has one"
    if os.environ.get("CONVKERN_REQUIRE_GPU"):
        device.count()  # says what is missing
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)

ROWS = cuda_cases.listed("PORTABLE", "TENSOR", "SM90")
GOLDEN = [
    name for name in golden.names() if not name.startswith("tv_vgg") or name in ("tv_vgg16@224", "tv_vgg11_bn@224")
]
DEEP = ("resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0", "resnext50_32x4d", "inception_v3", "vgg11")


@pytest.fixture
def cuda() -> Any:
    """The real module."""
    return device.module()


@pytest.fixture(params=cuda_cases.listed("PORTABLE"))
def row(request: pytest.FixtureRequest) -> str:
    """Each portable row, for the cases that cuda_cases.py has for float32."""
    return request.param


# 16-bit and tensor-core rows want channels in eights; these have them, with tails of tiles all the same.
EIGHTS = [
    Conv(1, h, w, c, k, 1, r, s, (1, st, st), (0, lo, lo), (0, hi, hi), (1, dil, dil))
    for h, w, c, k, r, s, st, lo, hi, dil in (
        (1, 1, 64, 64, 1, 1, 1, 0, 0, 1),
        (7, 7, 512, 64, 1, 1, 1, 0, 0, 1),
        (14, 14, 72, 40, 3, 3, 1, 1, 1, 1),
        (13, 17, 64, 136, 3, 3, 1, 1, 0, 1),
        (28, 28, 64, 64, 3, 3, 1, 1, 1, 1),
        (15, 15, 128, 256, 3, 3, 2, 1, 1, 1),
        (12, 12, 64, 128, 3, 3, 1, 2, 2, 2),
        (9, 11, 48, 64, 1, 7, 1, 3, 3, 1),
        (9, 9, 64, 96, 5, 5, 1, 2, 2, 1),
        (56, 56, 16, 24, 1, 1, 1, 0, 0, 1),
        (30, 30, 3, 64, 7, 7, 2, 3, 3, 1),
        (33, 33, 3, 96, 11, 11, 4, 2, 2, 1),
        (24, 24, 3, 64, 3, 3, 1, 1, 1, 1),
        (16, 16, 4, 32, 3, 3, 1, 1, 1, 1),
        (16, 16, 1, 32, 5, 5, 1, 2, 2, 1),
    )
]


@pytest.mark.parametrize("precision", device.PRECISIONS)
@pytest.mark.parametrize("algo", ROWS)
def test_exact_sums(cuda: Any, algo: str, precision: str) -> None:
    """Every row in every precision that it takes: to the bit, small integers being exact in TF32 and bfloat16, too."""
    problems = [*cuda_cases.ODD, *cuda_cases.LARGER, *EIGHTS]
    ran = sum(check_conv(algo, precision, problem, turn) for turn, problem in enumerate(problems))
    print(f"{algo} in {precision}: {ran} of {len(problems)} problems")
    if not ran:
        problem = EIGHTS[4]
        runner = cuda_cases.conv_runner(problem, np.zeros(problem.w_shape, "f4"), None, algo, precision)
        with pytest.raises(Unsupported) as refusal:
            runner.steps()
        pytest.skip(f"{algo} does not serve {precision} on this device: {refusal.value}")


@pytest.mark.sanitizer
@pytest.mark.parametrize("algo", ROWS)
def test_small(cuda: Any, algo: str) -> None:
    """A few problems a row, for compute-sanitizer."""
    for precision in ("float32", "tf32", "float16", "bfloat16"):
        for turn, problem in enumerate([*cuda_cases.LARGER[3:8], *EIGHTS[2:6], EIGHTS[10]]):
            check_conv(algo, precision, problem, turn)


@pytest.mark.sanitizer
def test_small_network(cuda: Any, rng: np.random.Generator) -> None:
    cuda_cases.test_runs_one_after_another_and_as_a_graph_agree(cuda, rng)


def test_results_repeat(cuda: Any, rng: np.random.Generator) -> None:
    """The same bits every time, for every row and precision."""
    for problem in (*EIGHTS, *cuda_cases.LARGER):
        x, w = (rng.standard_normal(shape).astype("f4") for shape in ((4, *problem.x_shape), problem.w_shape))
        for algo in ROWS:
            for precision, (_, dtype) in device.PRECISIONS.items():
                runner = cuda_cases.conv_runner(problem, w, None, algo, precision, exact=cuda_cases.is_exact(algo))
                array = put(x, dtype)
                try:
                    first = back(runner.run([array])[0])
                except Unsupported:
                    continue
                for _ in range(5):
                    tolerance.assert_exact(back(runner.run([array])[0]), first, (algo, precision, str(problem)))


# Unit roundoffs of the products: TF32 keeps 11 bits of a factor, three of them about 22.
ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "fp32x3": 2.0**-21, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize("precision", device.PRECISIONS)
@pytest.mark.parametrize("algo", ROWS)
def test_real_numbers_in_every_precision(cuda: Any, algo: str, precision: str, rng: np.random.Generator) -> None:
    """|error| <= (2u of the factors + gamma(n) of the float32 sum) * sum |x||w| + u of the result."""
    u, dtype = ROUNDOFF[precision], device.PRECISIONS[precision][1]
    for problem in (*EIGHTS, *cuda_cases.LARGER):
        if "winograd" in algo:
            continue
        x, w = (rng.standard_normal(shape).astype("f4") for shape in ((2, *problem.x_shape), problem.w_shape))
        runner = cuda_cases.conv_runner(problem, w, None, algo, precision)
        try:
            got = back(runner.run([put(x, dtype)])[0])
        except Unsupported:
            continue
        want = oracle.conv(x, w, **problem.geometry)
        magnitude = oracle.conv(np.abs(x), np.abs(w), **problem.geometry)
        bound = (2.1 * u + tolerance.gamma(2 * problem.terms + 4)) * magnitude + u * np.abs(want) + 2.0**-24
        tolerance.assert_within(got, want, bound, (algo, precision, str(problem)))


# Whole networks


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_of_the_zoo(cuda: Any, name: str) -> None:
    """float32 against the reference's float64 logits; half precision and TF32 find the same class or come close."""
    from convkern.models import get_model

    facts = golden.load(name)
    size = facts["size"]
    model = get_model(facts["model"].partition(":")[2], input_shape=(size, size, 3), weights=golden.state_dict(facts))
    image = golden.image(size, facts["seed"])
    bound = {"float32": 1e-4, "fp32x3": 3e-4, "tf32": 0.03, "float16": 0.03, "bfloat16": 0.2}
    for precision, limit in bound.items():
        model.to("cuda:0", precision)
        y = back(model(put(image, device.PRECISIONS[precision][1])))
        error = np.abs(y[0, :16] - facts["logits_head"]).max() / facts["logits_absmax"]
        print(f"{name} in {precision}: {error:.2e}")
        assert np.isfinite(y).all() and error <= limit, f"{precision}: {error:.2e}"
        if precision == "float32":
            assert y.argmax() == facts["argmax"]


@pytest.mark.parametrize("precision", device.PRECISIONS)
@pytest.mark.parametrize("name", DEEP)
def test_networks(cuda: Any, name: str, precision: str) -> None:
    check_network(name, 96, precision, n=5)


# What only a device can show


def test_torch_arrays_on_torch_streams(cuda: Any, rng: np.random.Generator) -> None:
    """Zero-copy both ways; work is queued on PyTorch's current stream, behind what made the input."""
    model = small_net()
    x = rng.standard_normal((4, 13, 11, 3)).astype("f4")
    want = model(x)
    model.to("cuda:0")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert device.current_stream() == stream.cuda_stream
        for _ in range(6):
            late = torch.from_numpy(x).cuda(non_blocking=True)
            torch.cuda._sleep(20_000_000)  # the values come late
            late = late * 2 / 2
            y = torch.from_dlpack(model(late))
            assert y.device.type == "cuda"
            result = (y * 1).cpu().numpy()
            tolerance.assert_within(result, want, tolerance.network_bound(want), "stream")
    half = model.to("cuda:0", "bfloat16")(torch.from_numpy(x).cuda().bfloat16())
    assert torch.from_dlpack(half).dtype is torch.bfloat16


def test_a_result_may_be_used_on_another_stream(cuda: Any, rng: np.random.Generator) -> None:
    model = small_net()
    x = rng.standard_normal((64, 13, 11, 3)).astype("f4")
    want = model(x)
    model.to("cuda:0")
    array = torch.from_numpy(x).cuda()
    torch.cuda.synchronize()
    other_stream = torch.cuda.Stream()
    for _ in range(10):
        y = model(array)
        with torch.cuda.stream(other_stream):
            taken = torch.from_dlpack(y)
            del y
            kept = taken.clone()
            del taken
        model(array)
        other_stream.synchronize()
        tolerance.assert_within(kept.cpu().numpy(), want, tolerance.network_bound(want), "other stream")


def test_a_graph_of_the_caller(cuda: Any, rng: np.random.Generator) -> None:
    """A call inside of PyTorch's capture becomes part of its graph, whose replays see new values."""
    model = small_net()
    xs = rng.standard_normal((2, 4, 13, 11, 3)).astype("f4")
    wants = [model(x) for x in xs]
    plan = model.to("cuda:0").plan()._plan
    x = torch.from_numpy(xs[0]).cuda()
    n, inputs, outputs = plan._arguments([device.from_object(x, "x")[:, None]], False)

    def call() -> None:
        plan._plan.run(n, inputs, [outputs[0].pointer], False, device.current_stream())

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
        call()
    for values, want in zip(xs, wants):
        x.copy_(torch.from_numpy(values))
        graph.replay()
        torch.cuda.synchronize()
        got = back(outputs[0]).reshape(4, 10)
        tolerance.assert_within(got, want, tolerance.network_bound(want), "captured")


def test_several_threads(cuda: Any, rng: np.random.Generator) -> None:
    """Concurrent calls on one model, each thread on its own stream."""
    model = small_net()
    xs = rng.standard_normal((8, 3, 13, 11, 3)).astype("f4")
    wants = [model(x) for x in xs]
    model.to("cuda:0")
    tensors = [torch.from_numpy(x).cuda() for x in xs]
    torch.cuda.synchronize()

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                got = torch.from_dlpack(model(tensors[i])).cpu().numpy()
                tolerance.assert_within(got, wants[i], tolerance.network_bound(wants[i]), i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.alone
def test_memory_is_given_back(cuda: Any, rng: np.random.Generator) -> None:
    """Making and dropping models does not fill the device."""
    x = device.to_device(rng.standard_normal((8, 13, 11, 3)).astype("f4"))

    def free() -> int:
        torch.cuda.synchronize()
        return torch.cuda.mem_get_info()[0]

    for _ in range(3):
        small_net().to("cuda:0")(x)
    before = free()
    for _ in range(50):
        model = small_net().to("cuda:0")
        for _ in range(3):
            model(x)
        del model
    assert before - free() < 64 << 20


@pytest.mark.alone
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_tensors_beyond_2_31_elements(cuda: Any, precision: str) -> None:
    """A map of more than 2^31 elements in and out: the last images are as right as the first."""
    dtype = {"float32": torch.float32, "float16": torch.float16}[precision]
    item = 4 if precision == "float32" else 2
    n, h, c = 176, 224, 256  # 2.26e9 elements
    if torch.cuda.mem_get_info()[0] < 2.6 * n * h * h * c * item:
        pytest.skip(f"needs {2.6 * n * h * h * c * item / 2**30:.0f} GiB of device memory")
    from convkern import Input, Model
    from convkern.layers import DepthwiseConv2D, MaxPool2D, ReLU

    image = Input((h, h, c))
    model = Model(image, MaxPool2D(2)(ReLU()(DepthwiseConv2D(3, padding="same")(image))))
    small = torch.randint(-2, 3, (1, h, h, c)).to(dtype)
    model.set_weights([np.round(4 * w) for w in model.get_weights()])
    want = model(small.float().numpy())
    x = torch.zeros((n, h, h, c), dtype=dtype, device="cuda")
    for i in (0, n // 2, n - 1):
        x[i] = small[0].cuda()
    y = torch.from_dlpack(model.to("cuda:0", precision)(x))
    for i in (0, n // 2, n - 1):
        tolerance.assert_exact(y[i].float().cpu().numpy(), want[0], i)
