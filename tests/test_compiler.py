"""Compiled plans against the interpreter of graphs, with all passes and with none, in float64 and float32."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import tolerance
from convkern import _core, passes
from convkern.compiler import compile
from convkern.errors import DTypeError, ShapeError
from convkern.graph import Graph, Param
from graphs import interpret, random_graph, random_inputs
from oracle import integers, reals


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    want = interpret(graph, inputs)
    double = [x.astype("f8") for x in inputs]
    for optimised in (passes.ALL, ()):
        for got, expected in zip(compile(graph, dtype="float64", passes=optimised).run(double), want):
            tolerance.assert_within(got, expected, tolerance.network_bound(expected, "float64"), seed)
        for got, expected in zip(compile(graph, passes=optimised, exact=True).run(inputs), want):
            tolerance.assert_within(got, expected, tolerance.network_bound(expected), seed)


@pytest.mark.parametrize("seed", range(60, 70))
def test_random_graphs_on_each_isa(seed: int, isa: str) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed, 3)
    plan = compile(graph)
    results = plan.run(inputs)
    for got, expected in zip(results, interpret(graph, inputs)):
        tolerance.assert_within(got, expected, tolerance.network_bound(expected), seed)
    for n, threads in ((1, 1), (3, 1), (3, 2), (0, 2)):  # the same bits for an image, whatever runs beside it
        for got, whole in zip(plan.run([x[:n] for x in inputs], threads), results):
            tolerance.assert_exact(got, whole[:n], (seed, n, threads))


def conv_graph(c: int = 4, k: int = 8, **params: Any) -> tuple[Graph, dict[str, Param]]:
    rng = np.random.default_rng(0)
    p = {
        "kernel": Param("kernel", integers(rng, (3, 3, c, k))),
        "mean": Param("mean", reals(rng, (k,))),
        "var": Param("var", np.abs(reals(rng, (k,)))),
        "gamma": Param("gamma", reals(rng, (k,))),
    }
    graph = Graph()
    x = graph.input((6, 6, c))
    y = graph.add("conv", (x,), {}, dict(kernel=p["kernel"]), "conv")
    norm = {name: p[name] for name in ("mean", "var", "gamma")}
    graph.outputs.append(graph.add("batch_norm", (y,), dict(eps=1e-3), norm, "norm"))
    return graph, p


def test_packed_weights_are_shared_until_they_change() -> None:
    graph, params = conv_graph()
    cache: Any = {}
    first, second = compile(graph, parameters=cache), compile(graph, parameters=cache)
    assert len(cache) == 1 and first._parameters[0] is second._parameters[0]
    for name, param in params.items():
        before = next(iter(cache.values()))[2]
        param.assign(param.value * np.float32(0.5))
        plan = compile(graph, parameters=cache)
        # the mean changes the bias only; the others change the packed weights. Old forms are not kept.
        assert (plan._parameters[0] is before) == (name == "mean") and len(cache) == 1
    x = [np.ones((1, 6, 6, 4), "f4")]
    want = interpret(graph, x)[0]
    tolerance.assert_within(plan.run(x)[0], want, tolerance.network_bound(want))


def test_old_plans_keep_their_weights() -> None:
    graph, params = conv_graph()
    cache: Any = {}
    x = [np.ones((2, 6, 6, 4), "f4")]
    old = compile(graph, parameters=cache)
    before = old.run(x)[0]
    params["kernel"].assign(params["kernel"].value * 2)
    new = compile(graph, parameters=cache)
    tolerance.assert_exact(old.run(x)[0], before)
    assert not np.array_equal(new.run(x)[0], before)


def test_a_plan_does_not_outlive_its_cache() -> None:
    graph, _ = conv_graph()
    plan = compile(graph, parameters={})
    alive = weakref.ref(plan)
    del plan
    gc.collect()
    assert alive() is None


def test_both_types_share_a_cache() -> None:
    graph, _ = conv_graph()
    cache: Any = {}
    single, double = compile(graph, parameters=cache), compile(graph, dtype="float64", parameters=cache)
    assert len(cache) == 2
    x = np.ones((1, 6, 6, 4))
    want = double.run([x])[0]
    tolerance.assert_within(single.run([x.astype("f4")])[0], want, tolerance.network_bound(want))


def test_one_kernel_in_two_layouts() -> None:
    """The same parameter as a convolution and as a transposed one: two packed forms, not one mistaken for the other."""
    kernel = Param("kernel", reals(np.random.default_rng(1), (3, 3, 4, 4)))
    graph = Graph()
    x = graph.input((5, 5, 4))
    graph.outputs.append(graph.add("conv", (x,), {}, dict(kernel=kernel)))
    graph.outputs.append(graph.add("conv", (x,), dict(transposed=True), dict(kernel=kernel)))
    graph.outputs.append(graph.add("depthwise", (x,), {}, dict(kernel=kernel)))
    inputs = random_inputs(graph, 0)
    for got, want in zip(compile(graph, parameters={}, exact=True).run(inputs), interpret(graph, inputs)):
        tolerance.assert_within(got, want, tolerance.network_bound(want))


def test_steps_carry_names_and_reasons() -> None:
    graph, _ = conv_graph()
    plan = compile(graph)
    (step,) = plan.steps()
    assert step["label"] == "conv" and step["kernel"] and step["why"] and step["macs"] == 4 * 4 * 8 * 9 * 4
    assert plan.arena_bytes >= 0 and plan.packed_bytes > 0
    (seconds,) = plan.profile([np.ones((1, 6, 6, 4), "f4")], repeat=2)
    assert seconds > 0


def test_an_input_can_be_an_output() -> None:
    graph = Graph()
    x = graph.input((2, 3, 4))
    y = graph.add("activation", (x,), dict(kind="relu"))
    graph.outputs += [x, y, x, y]
    value = reals(np.random.default_rng(0), (2, 2, 3, 4))
    got = compile(graph).run([value])
    for array, want in zip(got, (value, np.maximum(value, 0)) * 2):
        tolerance.assert_exact(array, want)
    assert not np.shares_memory(got[0], value) and not np.shares_memory(got[1], got[3])


def test_slices_of_a_concat_can_be_outputs() -> None:
    graph = Graph()
    x = graph.input((4, 4, 3))
    rng = np.random.default_rng(0)
    parts = [graph.add("conv", (x,), {}, dict(kernel=integers(rng, (1, 1, 3, k)))) for k in (2, 5, 16)]
    joined = graph.add("concat", parts)
    graph.outputs += [parts[1], joined, parts[0]]
    inputs = [integers(rng, (3, 4, 4, 3))]
    plan = compile(graph)
    assert [step["op"] for step in plan.steps()] == ["conv"] * 3  # nothing is copied
    for got, want in zip(plan.run(inputs), interpret(graph, inputs)):
        tolerance.assert_exact(got, want)


def test_inputs_in_any_memory() -> None:
    graph, _ = conv_graph()
    plan = compile(graph)
    x = reals(np.random.default_rng(0), (2, 6, 6, 4))
    want = plan.run([x])[0]
    frozen = x.copy()
    frozen.flags.writeable = False
    channels_first = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    strided = np.repeat(x, 2, axis=2)[:, :, ::2]
    odd = np.frombuffer(b"." + x.tobytes(), "f4", offset=1).reshape(x.shape)
    for array in (frozen, channels_first, strided, odd, x[::-1][::-1]):
        tolerance.assert_exact(plan.run([array])[0], want)


def test_inputs_that_do_not_fit() -> None:
    graph, _ = conv_graph()
    plan = compile(graph)
    with pytest.raises(ShapeError, match=r"input 0: got shape \(1, 5, 6, 4\), want \(N, 6, 6, 4\)"):
        plan.run([np.zeros((1, 5, 6, 4), "f4")])
    with pytest.raises(ShapeError, match="got 2 inputs, want 1"):
        plan.run([np.zeros((1, 6, 6, 4), "f4")] * 2)
    with pytest.raises(DTypeError, match="float64"):
        plan.run([np.zeros((1, 6, 6, 4))])
    with pytest.raises(ShapeError):
        plan.run([np.zeros((6, 6, 4), "f4")])


def test_parameters_of_another_type() -> None:
    graph = Graph()
    x = graph.input((4,))
    graph.outputs.append(graph.add("dense", (x,), {}, dict(kernel=np.ones((4, 2))), "head"))
    with pytest.raises(DTypeError, match="head: got elements of float64, want float32"):
        compile(graph)
    assert compile(graph, dtype="float64").run([np.ones((1, 4))])[0].tolist() == [[4.0, 4.0]]


def test_batches_of_two_inputs_must_agree() -> None:
    graph = Graph()
    a, b = graph.input((4,)), graph.input((4,))
    graph.outputs.append(graph.add("binary", (a, b), dict(kind="add")))
    with pytest.raises(ShapeError, match="3"):
        compile(graph).run([np.zeros((2, 4), "f4"), np.zeros((3, 4), "f4")])


def test_calls_at_the_same_time() -> None:
    graph = random_graph(3)
    plan = compile(graph)
    inputs = [random_inputs(graph, seed, 1 + seed % 3) for seed in range(8)]
    want = [plan.run(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if any(not np.array_equal(a, b) for a, b in zip(plan.run(inputs[i], threads=1 + i % 2), want[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_isa_of_a_plan_is_that_of_its_making() -> None:
    graph, _ = conv_graph(16, 32)
    cache: Any = {}
    x = [reals(np.random.default_rng(0), (1, 6, 6, 16))]
    before = _core.isa()
    plans = []
    try:
        for name in _core.isas():
            _core.set_isa(name)
            plans.append(compile(graph, parameters=cache, exact=True))
    finally:
        _core.set_isa(before)
    want = interpret(graph, x)[0]
    for plan in plans:  # one cache, weights packed for each
        tolerance.assert_within(plan.run(x)[0], want, tolerance.network_bound(want))
