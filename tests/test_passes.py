"""Passes keep the outputs of a graph: checked in float64 after each on random graphs, and one by one on small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tolerance
from convkern import passes
from convkern.graph import Graph, Node, Param
from convkern.passes import (
    ALL,
    Pass,
    drop_dead,
    fold_batch_norm,
    fold_pad,
    fuse_activation,
    fuse_residual,
    share_concats,
)
from graphs import interpret, random_graph, random_inputs


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, "f4")


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def same(got: np.ndarray, want: np.ndarray, what: object = "") -> None:
    tolerance.assert_within(got, want, tolerance.network_bound(want, "float64"), what)


def snapshot(graph: Graph) -> Any:
    nodes = [(n.op, n.inputs, n.output, dict(n.attrs), dict(n.params), n.name) for n in graph.nodes]
    return nodes, list(graph.inputs), list(graph.outputs), dict(graph.shapes)


@pytest.mark.parametrize("seed", range(60))
def test_outputs_stay_after_each_pass(seed: int) -> None:
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    want = interpret(graph, inputs)
    for step in ALL:
        before = snapshot(graph)
        after = step(graph)
        assert snapshot(graph) == before, f"{step.__name__} changed its argument"
        assert after.inputs == graph.inputs and len(after.outputs) == len(graph.outputs)
        written = set(after.inputs)
        for node in after.nodes:  # in the order they run, each tensor written once
            assert set(node.inputs) <= written and node.output not in written, step.__name__
            written.add(node.output)
        for got, expected in zip(interpret(after, inputs), want):
            same(got, expected, step.__name__)
        graph = after
    assert snapshot(passes.run(graph)) == snapshot(graph) or len(passes.run(graph).nodes) <= len(graph.nodes)


def test_random_graphs_are_worth_it() -> None:
    """Every pass finds work in the graphs above."""
    busy: dict[Pass, int] = dict.fromkeys(ALL, 0)
    for seed in range(60):
        graph = random_graph(seed)
        for step in ALL:
            after = step(graph)
            busy[step] += snapshot(after) != snapshot(graph)
            graph = after
    assert min(busy.values()) >= 3, {step.__name__: count for step, count in busy.items()}


def chain(*steps: tuple[str, dict[str, Any], dict[str, Any]], shape: tuple[int, ...] = (6, 6, 4)) -> Graph:
    graph = Graph()
    x = graph.input(shape)
    for op, attrs, params in steps:
        x = graph.add(op, (x,), attrs, params, op)
    graph.outputs.append(x)
    return graph


CONV = ("conv", {}, dict(kernel=ones(3, 3, 4, 8)))
NORM = ("batch_norm", dict(eps=1e-3), dict(mean=ones(8), var=ones(8), gamma=2 * ones(8), beta=ones(8)))
RELU = ("activation", dict(kind="relu"), {})


def test_conv_norm_activation_become_one_step() -> None:
    graph = passes.run(chain(CONV, NORM, RELU))
    (node,) = graph.nodes
    assert node.op == "conv" and node.attrs["activation"] == ("relu", 0.0, 0.0) and node.name == "conv"
    assert node.params["scale"].dtype == np.float64 and set(node.params) == {"kernel", "scale", "bias"}


def test_two_norms_fold_into_one_scale() -> None:
    graph = fold_batch_norm(chain(CONV, NORM, NORM))
    assert ops(graph) == ["conv"]
    x = [np.random.default_rng(0).standard_normal((1, 6, 6, 4))]
    same(interpret(graph, x)[0], interpret(chain(CONV, NORM, NORM), x)[0])


def test_a_norm_after_an_activation_stays() -> None:
    assert ops(passes.run(chain(CONV, RELU, NORM))) == ["conv", "batch_norm"]


def test_a_value_that_others_read_stays() -> None:
    graph = chain(CONV, NORM, RELU)
    graph.outputs.append(graph.nodes[0].output)  # the bare convolution is an output too
    after = passes.run(graph)
    assert ops(after) == ["conv", "batch_norm"] and after.nodes[1].attrs["activation"][0] == "relu"


def residual_graph(*, activation: bool = False, broadcast: bool = False) -> Graph:
    graph = Graph()
    x = graph.input((6, 6, 4))
    y = graph.add("conv", (x,), dict(padding=((1, 1), (1, 1))), dict(kernel=ones(3, 3, 4, 4)), "main")
    if activation:
        y = graph.add("activation", (y,), dict(kind="relu"), {}, "inner")
    other = graph.add("global_pool", (x,), dict(kind="avg", keepdims=True)) if broadcast else x
    y = graph.add("binary", (other, y), dict(kind="add"), {}, "add")
    graph.outputs.append(graph.add("activation", (y,), dict(kind="relu6"), {}, "act"))
    return graph


def test_the_residual_is_added_before_the_activation() -> None:
    (node,) = passes.run(residual_graph()).nodes
    assert node.attrs["residual"] and node.attrs["activation"][0] == "relu6" and len(node.inputs) == 2


def test_no_residual_after_an_activation_or_with_broadcasting() -> None:
    assert ops(passes.run(residual_graph(activation=True))) == ["conv", "binary"]
    assert ops(passes.run(residual_graph(broadcast=True))) == ["conv", "global_pool", "binary"]


def test_the_later_branch_takes_the_residual() -> None:
    graph = Graph()
    x = graph.input((6, 6, 4))
    main = graph.add("conv", (x,), {}, dict(kernel=ones(1, 1, 4, 4)), "main")
    shortcut = graph.add("conv", (x,), {}, dict(kernel=ones(1, 1, 4, 4)), "shortcut")
    graph.outputs.append(graph.add("binary", (main, shortcut), dict(kind="add")))
    assert [node.name for node in passes.run(graph).nodes] == ["main", "shortcut"]


def test_a_tensor_added_to_itself_is_not_a_residual() -> None:
    graph = chain(CONV)
    y = graph.outputs.pop()
    graph.outputs.append(graph.add("binary", (y, y), dict(kind="add")))
    assert ops(passes.run(graph)) == ["conv", "binary"]


def pad_step(value: float = 0.0, mode: str = "constant", lo: int = 1) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "pad", dict(padding=((lo, 1), (0, 1), (0, 0)), value=value, mode=mode), {}


def pool_step(kind: str, **attrs: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "pool", dict(kind=kind, window=(3, 3), **attrs), {}


@pytest.mark.parametrize(
    ("steps", "folds"),
    [
        ((pad_step(), CONV), True),
        ((pad_step(), pad_step(), CONV), True),
        ((pad_step(1.0), CONV), False),
        ((pad_step(mode="replicate"), CONV), False),
        ((pad_step(lo=-1), CONV), False),
        ((pad_step(), ("conv", dict(transposed=True), dict(kernel=ones(3, 3, 8, 4)))), False),
        ((pad_step(), ("depthwise", {}, dict(kernel=ones(3, 3, 4, 1)))), True),
        ((pad_step(), pool_step("avg")), True),
        ((pad_step(), pool_step("avg", count_include_pad=False)), False),
        ((pad_step(), pool_step("avg", padding=((1, 1), (1, 1)))), True),
        ((pad_step(lo=3), pool_step("avg")), False),
        ((pad_step(), pool_step("avg", strides=(2, 2), ceil_mode=True)), False),
        ((pad_step(), pool_step("max")), False),
        ((RELU, pad_step(), pool_step("max")), True),
        ((RELU, pad_step(), pool_step("max", dilation=(2, 1))), False),
        ((("activation", dict(kind="silu"), {}), pad_step(), pool_step("max")), False),
    ],
)
def test_pads_fold_where_zeros_are_zeros(steps: Any, folds: bool) -> None:
    graph = chain(*steps)
    after = drop_dead(fold_pad(graph))
    assert ("pad" not in ops(after)) == folds
    x = [np.random.default_rng(0).standard_normal((2, 6, 6, 4))]
    same(interpret(after, x)[0], interpret(graph, x)[0])


def branches(k: int = 3, count: int = 3) -> tuple[Graph, list[int]]:
    graph = Graph()
    x = graph.input((6, 6, 4))
    return graph, [graph.add("conv", (x,), {}, dict(kernel=ones(1, 1, 4, k))) for _ in range(count)]


def in_place(graph: Graph) -> list[bool]:
    return [bool(node.attrs.get("in_place", False)) for node in passes.run(graph).nodes if node.op == "concat"]


def test_concats_of_convolutions_are_in_place() -> None:
    graph, parts = branches()
    graph.outputs.append(graph.add("concat", parts))
    assert in_place(graph) == [True]


def test_a_concat_inside_a_concat_is_in_place_too() -> None:
    graph, (a, b, c) = branches()
    graph.outputs.append(graph.add("concat", (graph.add("concat", (a, b)), c)))
    assert in_place(graph) == [True, True]


def test_dense_blocks_become_a_chain() -> None:
    graph, (a, b, c) = branches()
    graph.outputs += [graph.add("concat", (a, b)), graph.add("concat", (a, b, c))]
    assert share_concats(graph).nodes[-1].inputs == (graph.outputs[0], c)
    assert in_place(graph) == [True, True]


@pytest.mark.parametrize("case", ["an input", "twice", "in two", "rows", "reshaped", "arithmetic"])
def test_concats_that_must_copy(case: str) -> None:
    graph, (a, b, c) = branches()
    match case:
        case "an input":
            graph.outputs.append(graph.add("concat", (a, graph.inputs[0])))
        case "twice":
            graph.outputs.append(graph.add("concat", (a, a)))
        case "in two":
            graph.outputs += [graph.add("concat", (a, b)), graph.add("concat", (c, a))]
            assert in_place(graph) == [True, False]
            return
        case "rows":
            graph.outputs.append(graph.add("concat", (a, b), dict(axis=0)))
        case "reshaped":
            graph.outputs += [graph.add("concat", (a, b)), graph.add("reshape", (a,), dict(shape=(-1,)))]
        case "arithmetic":
            graph.outputs.append(graph.add("concat", (a, graph.add("binary", (b, c), dict(kind="mul")))))
    assert not any(in_place(graph))


def test_identities_disappear_and_outputs_follow() -> None:
    graph = chain(("identity", {}, {}), ("activation", dict(kind="none"), {}), ("reshape", dict(shape=(6, 6, 4)), {}),
                  ("pad", dict(padding=((0, 0),) * 3), {}), ("transpose", dict(perm=(0, 1, 2)), {}), ("concat", {}, {}),
                  ("rescale", dict(scale=1.0), {}))  # fmt: skip
    after = passes.run(graph)
    assert not after.nodes and after.outputs == after.inputs


def test_dead_nodes_do_not_stop_a_fusion() -> None:
    graph = chain(CONV, RELU)
    graph.add("softmax", (graph.nodes[0].output,))
    assert ops(passes.run(graph)) == ["conv"]


def test_folding_reads_parameters_and_leaves_them_alone() -> None:
    mean = Param("mean", ones(8))
    graph = chain(CONV, ("batch_norm", dict(eps=0.0), dict(mean=mean, var=Param("var", ones(8)))))
    node: Node = fold_batch_norm(graph).nodes[0]
    assert mean.version == 0 and isinstance(node.params["bias"], np.ndarray)
    assert isinstance(graph.nodes[1].params["mean"], Param)


def test_activations_fuse_once() -> None:
    graph = fuse_activation(chain(CONV, RELU, ("activation", dict(kind="tanh"), {})))
    assert ops(graph) == ["conv", "activation"] and graph.nodes[0].attrs["activation"][0] == "relu"


def test_residual_keeps_the_activation_of_the_addition() -> None:
    graph = fuse_residual(fuse_activation(residual_graph()))
    (node,) = graph.nodes
    assert node.attrs["activation"][0] == "relu6" and node.attrs["residual"]
