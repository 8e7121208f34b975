"""Shape inference of every operator against what the compiled plan really gives, its refusals, and parameters."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import tolerance
from convkern.compiler import compile
from convkern.errors import ConvkernError, DTypeError, ShapeError, Unsupported
from convkern.graph import _RULES, Graph, Param, conv_transpose_size, infer_shape, pool_size, scale_and_shift, value_of
from graphs import random_graph


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, "f4")


# operator, input shapes, attributes, parameters, shape of the output
SHAPES: list[tuple[str, list[tuple[int, ...]], dict[str, Any], dict[str, Any], tuple[int, ...]]] = [
    ("conv", [(8, 9, 4)], {}, dict(kernel=ones(3, 2, 4, 6)), (6, 8, 6)),
    (
        "conv",
        [(8, 9, 4)],
        dict(strides=(2, 3), padding=((1, 0), (2, 2))),
        dict(kernel=ones(3, 3, 4, 6), bias=ones(6)),
        (4, 4, 6),
    ),
    ("conv", [(8, 9, 4)], dict(dilation=(2, 3), groups=2), dict(kernel=ones(3, 3, 2, 6)), (4, 3, 6)),
    ("conv", [(9, 4)], dict(padding=((1, 1),)), dict(kernel=ones(3, 4, 6)), (9, 6)),
    ("conv", [(5, 8, 9, 4)], {}, dict(kernel=ones(2, 3, 3, 4, 6)), (4, 6, 7, 6)),
    ("conv", [(4, 5, 6)], dict(transposed=True, strides=(2, 2)), dict(kernel=ones(3, 3, 8, 6)), (9, 11, 8)),
    (
        "conv",
        [(4, 5, 6)],
        dict(transposed=True, strides=(2, 3), padding=((1, 0), (1, 2)), output_padding=(1, 2), groups=3),
        dict(kernel=ones(3, 3, 4, 6), bias=ones(12)),
        (9, 14, 12),
    ),
    ("depthwise", [(8, 9, 4)], dict(strides=(2, 2)), dict(kernel=ones(3, 3, 4, 1)), (3, 4, 4)),
    ("depthwise", [(9, 4)], {}, dict(kernel=ones(3, 4, 3), bias=ones(12)), (7, 12)),
    ("dense", [(7,)], {}, dict(kernel=ones(7, 5)), (5,)),
    ("dense", [(2, 3, 7)], {}, dict(kernel=ones(7, 5), bias=ones(5)), (2, 3, 5)),
    ("pool", [(8, 9, 4)], dict(kind="max", window=(2, 2)), {}, (4, 4, 4)),
    (
        "pool",
        [(8, 9, 4)],
        dict(kind="avg", window=(3, 3), strides=(2, 2), padding=((1, 1), (0, 1)), ceil_mode=True),
        {},
        (5, 5, 4),
    ),
    ("pool", [(8, 9, 4)], dict(kind="max", window=(2, 2), strides=(1, 1), dilation=(3, 2)), {}, (5, 7, 4)),
    ("pool", [(9, 4)], dict(kind="avg", window=(2,), count_include_pad=False, padding=((1, 0),)), {}, (5, 4)),
    ("pool", [(4, 4, 4, 3)], dict(kind="avg", window=(2, 2, 2), divisor=3), {}, (2, 2, 2, 3)),
    ("adaptive_pool", [(8, 9, 4)], dict(kind="avg", out=(3, 2)), {}, (3, 2, 4)),
    ("adaptive_pool", [(8, 4)], dict(kind="max", out=(3,)), {}, (3, 4)),
    ("global_pool", [(8, 9, 4)], dict(kind="avg"), {}, (4,)),
    ("global_pool", [(8, 9, 4)], dict(kind="max", keepdims=True), {}, (1, 1, 4)),
    (
        "batch_norm",
        [(8, 9, 4)],
        dict(eps=1e-3),
        dict(mean=ones(4), var=ones(4), gamma=ones(4), beta=ones(4)),
        (8, 9, 4),
    ),
    ("batch_norm", [(4,)], dict(eps=1e-3), dict(mean=ones(4), var=ones(4)), (4,)),
    ("layer_norm", [(8, 4)], dict(eps=1e-3), dict(gamma=ones(4)), (8, 4)),
    ("lrn", [(2, 3, 9)], dict(size=5, alpha=1e-4, beta=0.75, k=1.0), {}, (2, 3, 9)),
    ("softmax", [(10,)], {}, {}, (10,)),
    ("softmax", [(2, 10)], dict(log=True), {}, (2, 10)),
    ("activation", [(2, 3, 4)], dict(kind="leaky_relu", a=0.1), {}, (2, 3, 4)),
    ("binary", [(2, 3, 4), (4,)], dict(kind="add"), {}, (2, 3, 4)),
    ("binary", [(1, 3, 1), (5, 1, 4)], dict(kind="mul"), {}, (5, 3, 4)),
    ("concat", [(2, 3, 4), (2, 3, 5), (2, 3, 1)], {}, {}, (2, 3, 10)),
    ("concat", [(2, 3, 4), (1, 3, 4)], dict(axis=0), {}, (3, 3, 4)),
    ("concat", [(4,), (5,)], dict(axis=-1), {}, (9,)),
    ("pad", [(2, 3, 4)], dict(padding=((1, 2), (0, 1), (0, 0))), {}, (5, 4, 4)),
    ("pad", [(4, 5, 4)], dict(padding=((1, -2), (2, 1), (1, 1)), mode="reflect"), {}, (3, 8, 6)),
    ("resize", [(4, 5, 3)], dict(out=(8, 7), mode="linear"), {}, (8, 7, 3)),
    ("resize", [(5, 3)], dict(out=(2,), mode="nearest"), {}, (2, 3)),
    ("resize", [(5, 6, 3)], dict(out=(10, 12), mode="linear", scales=(0.5, 0.5)), {}, (10, 12, 3)),
    ("reshape", [(4, 5, 3)], dict(shape=(-1,)), {}, (60,)),
    ("reshape", [(4, 5, 3)], dict(shape=(10, -1, 2)), {}, (10, 3, 2)),
    ("transpose", [(4, 5, 3)], dict(perm=(2, 0, 1)), {}, (3, 4, 5)),
    ("transpose", [(2, 4, 5, 3)], dict(perm=(3, 1, 0, 2)), {}, (3, 4, 2, 5)),
    ("rescale", [(4, 5, 3)], dict(scale=1 / 127.5, offset=-1.0), {}, (4, 5, 3)),
    ("rescale", [(4, 5, 3)], dict(scale=(1.0, 2.0, 3.0)), {}, (4, 5, 3)),
    ("identity", [(4, 5, 3)], {}, {}, (4, 5, 3)),
    ("dropout", [(4, 5, 3)], dict(rate=0.5), {}, (4, 5, 3)),
]


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[4]))}")
def test_shapes(case: Any) -> None:
    op, inputs, attrs, params, want = case
    assert infer_shape(op, inputs, attrs, params) == want
    graph = Graph()
    graph.outputs.append(graph.add(op, [graph.input(shape) for shape in inputs], attrs, params))
    assert graph.shapes[graph.outputs[0]] == want
    for passes in ((), None):  # the plan gives this shape, with and without passes
        plan = compile(graph) if passes is None else compile(graph, passes=passes)
        (y,) = plan.run([ones(2, *shape) for shape in inputs])
        assert y.shape == (2, *want)


# Operators of training graphs that the compiler for inference refuses.
TRAINING_SHAPES: list[tuple[str, list[tuple[int, ...]], dict[str, Any], tuple[int, ...]]] = [
    ("loss", [(10,), (1,)], dict(kind="sparse"), (1,)),
    ("loss", [(4, 5, 3), (4, 5, 3)], dict(kind="squared"), (4, 5, 1)),
]


@pytest.mark.parametrize("case", TRAINING_SHAPES, ids=lambda case: case[0])
def test_training_shapes(case: Any) -> None:
    op, inputs, attrs, want = case
    assert infer_shape(op, inputs, attrs, {}) == want
    graph = Graph()
    graph.outputs.append(graph.add(op, [graph.input(shape) for shape in inputs], attrs, {}))
    with pytest.raises(Unsupported, match=op):
        compile(graph)


def test_every_operator_has_a_shape_test() -> None:
    assert {case[0] for case in (*SHAPES, *TRAINING_SHAPES)} == set(_RULES)


REFUSED: list[tuple[str, list[tuple[int, ...]], dict[str, Any], dict[str, Any], str]] = [
    ("conv", [(8, 9, 4)], {}, dict(kernel=ones(3, 3, 3, 6)), r"wants 3 channels, got 4 in \(8, 9, 4\)"),
    ("conv", [(8, 9, 4)], {}, dict(kernel=ones(3, 4, 6)), "want 4 dimensions"),
    ("conv", [(8, 9, 4)], {}, {}, "kernel is missing"),
    ("conv", [(4,)], {}, dict(kernel=ones(4, 6)), "at least one spatial dimension"),
    ("conv", [(8, 9, 4)], dict(groups=3), dict(kernel=ones(3, 3, 1, 6)), "groups=3"),
    ("conv", [(8, 9, 4)], dict(groups=4), dict(kernel=ones(3, 3, 1, 6)), "groups=4"),
    ("conv", [(8, 9, 4)], dict(groups=0), dict(kernel=ones(3, 3, 4, 6)), "groups=0"),
    ("conv", [(8, 9, 4)], dict(strides=(0, 1)), dict(kernel=ones(3, 3, 4, 6)), r"strides=\(0, 1\)"),
    ("conv", [(8, 9, 4)], dict(strides=(1,)), dict(kernel=ones(3, 3, 4, 6)), "1 entries, want 2"),
    ("conv", [(8, 9, 4)], dict(padding=((1, 1),)), dict(kernel=ones(3, 3, 4, 6)), "1 pairs, want 2"),
    ("conv", [(8, 9, 4)], dict(padding=((1, -1), (0, 0))), dict(kernel=ones(3, 3, 4, 6)), "negative"),
    ("conv", [(2, 9, 4)], {}, dict(kernel=ones(3, 3, 4, 6)), r"larger than the input \(2, 9\)"),
    ("conv", [(8, 9, 4)], dict(dilation=(4, 1)), dict(kernel=ones(3, 3, 4, 6)), "larger than the input"),
    ("conv", [(8, 9, 4)], {}, dict(kernel=ones(3, 3, 4, 6), bias=ones(5)), r"bias of shape \(5,\), want \(6,\)"),
    ("conv", [(8, 9, 4)], dict(transposed=True), dict(kernel=ones(3, 3, 4, 6)), "wants 6 input channels"),
    (
        "conv",
        [(8, 9, 4)],
        dict(transposed=True, output_padding=(1, 0)),
        dict(kernel=ones(3, 3, 6, 4)),
        "output_padding",
    ),
    ("conv", [(1, 9, 4)], dict(transposed=True, padding=((2, 2), (0, 0))), dict(kernel=ones(3, 3, 6, 4)), "at least 1"),
    ("conv", [(8, 9, 4)], {}, dict(kernel=ones(3, 3, 4, 0)), "at least 1"),
    ("depthwise", [(8, 9, 4)], {}, dict(kernel=ones(3, 3, 3, 1)), "wants 3 channels"),
    ("dense", [(7,)], {}, dict(kernel=ones(6, 5)), "wants 6 features"),
    ("dense", [(7,)], {}, dict(kernel=ones(7, 5), bias=ones(1)), "bias"),
    ("pool", [(8, 9, 4)], dict(kind="sum", window=(2, 2)), {}, "'sum'"),
    ("pool", [(8, 9, 4)], dict(kind="max"), {}, "window is missing"),
    ("pool", [(8, 9, 4)], dict(kind="max", window=(2, 2), padding=((2, 0), (0, 0))), {}, "smaller than the window"),
    ("pool", [(8, 9, 4)], dict(kind="max", window=(9, 2)), {}, "larger than the input"),
    ("pool", [(8, 9, 4)], dict(kind="avg", window=(2, 2), dilation=(2, 2)), {}, "dilation"),
    ("adaptive_pool", [(8, 9, 4)], dict(kind="avg", out=(0, 2)), {}, "out="),
    ("adaptive_pool", [(8, 9, 4)], dict(kind="avg"), {}, "out is missing"),
    ("global_pool", [(4,)], dict(kind="avg"), {}, "spatial"),
    ("batch_norm", [(8, 4)], dict(eps=0.0), dict(mean=ones(4)), "var is missing"),
    ("batch_norm", [(8, 4)], dict(eps=0.0), dict(mean=ones(4), var=ones(3)), r"var has shape \(3,\), want \(4,\)"),
    ("layer_norm", [(8, 4)], dict(eps=0.0), dict(beta=ones(8)), "beta"),
    ("lrn", [(8, 4)], dict(size=0), {}, "size=0"),
    ("activation", [(4,)], dict(kind="swoosh"), {}, "'swoosh'"),
    ("binary", [(2, 3), (2, 4)], dict(kind="add"), {}, r"\(2, 3\) and \(2, 4\)"),
    ("binary", [(2, 3), (2, 3)], dict(kind="pow"), {}, "'pow'"),
    ("binary", [(2, 3)], dict(kind="add"), {}, "1 inputs, want 2"),
    ("concat", [(2, 3), (3, 3)], {}, {}, r"\(2, 3\) and \(3, 3\)"),
    ("concat", [], {}, {}, "no inputs"),
    ("concat", [(2, 3)], dict(axis=2), {}, "axis=2"),
    ("pad", [(2, 3)], dict(padding=((1, 1),)), {}, "1 pairs, want 2"),
    ("pad", [(2, 3)], dict(padding=((-1, -1), (0, 0))), {}, "at least 1"),
    ("pad", [(2, 3)], dict(padding=((2, 0), (0, 0)), mode="reflect"), {}, "too large"),
    ("pad", [(2, 3)], dict(padding=((0, 0), (0, 0)), mode="mirror"), {}, "'mirror'"),
    ("resize", [(2, 3)], dict(out=(0,)), {}, "out="),
    ("resize", [(2, 3)], dict(out=(4,), mode="lanczos"), {}, "'lanczos'"),
    ("reshape", [(2, 3)], dict(shape=(4, 2)), {}, "6 values"),
    ("reshape", [(2, 3)], dict(shape=(-1, -1)), {}, "more than one"),
    ("reshape", [(2, 3)], dict(shape=(-1, 4)), {}, "does not fit"),
    ("transpose", [(2, 3)], dict(perm=(0, 0)), {}, "perm="),
    ("rescale", [(2, 3)], dict(scale=(1.0, 2.0)), {}, "scale has shape"),
    ("softmax", [(2, 3), (2, 3)], {}, {}, "2 inputs, want 1"),
    ("conv", [(2**31, 2**30, 4)], {}, dict(kernel=ones(1, 1, 4, 6)), "overflows"),
    ("resize", [(2, 2, 3)], dict(out=(2**30, 2**30)), {}, "overflows"),
    ("fourier", [(2, 3)], {}, {}, "no operator 'fourier'"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[4][:24]}")
def test_refusals_name_the_values(case: Any) -> None:
    op, inputs, attrs, params, message = case
    with pytest.raises(ConvkernError, match=message):
        infer_shape(op, inputs, attrs, params)


def test_an_error_names_the_node() -> None:
    graph = Graph()
    x = graph.input((8, 9, 4))
    with pytest.raises(ShapeError, match="block1/conv: conv: a kernel"):
        graph.add("conv", (x,), {}, dict(kernel=ones(3, 3, 3, 6)), "block1/conv")
    assert not graph.nodes and list(graph.shapes) == [x]


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4, 5), (0, 3), (-1,)])
def test_inputs_that_are_not_images(shape: tuple[int, ...]) -> None:
    with pytest.raises((ShapeError, Unsupported)):
        Graph().input(shape)


def test_ceil_mode_starts_inside() -> None:
    """As in torch: the last window may hang over the edge, but must not start in the padding."""
    import torch

    for n in range(1, 12):
        for r in range(1, 5):
            for s in range(1, 5):
                for p in range(r // 2 + 1):
                    for ceil in (False, True):
                        try:
                            want = torch.nn.functional.max_pool1d(torch.zeros(1, 1, n), r, s, p, 1, ceil).shape[-1]
                        except RuntimeError:
                            want = 0
                        assert max(pool_size(n, r, s, p, p, 1, ceil), 0) == want, (n, r, s, p, ceil)
    assert conv_transpose_size(4, 3, 2, 1, 1, 1, 1) == 8


def test_graph_bookkeeping() -> None:
    graph = random_graph(0)
    uses = graph.uses()
    assert set(graph.producers()) | set(graph.inputs) == set(graph.shapes)
    assert sum(uses.values()) == sum(len(node.inputs) for node in graph.nodes) + len(graph.outputs)
    again = graph.rewritten(graph.nodes)
    again.shapes[10**6] = (1,)
    again.outputs.clear()
    assert graph.outputs and 10**6 not in graph.shapes  # nothing is shared


# Parameters


def test_param_is_read_only_and_counts_versions() -> None:
    p = Param("kernel", np.zeros((2, 3), "f4"))
    with pytest.raises(ValueError, match="read-only"):
        p.value[0, 0] = 1
    mine = np.ones((2, 3), "f4")
    p.assign(mine)
    mine[...] = 5
    assert p.version == 1 and p.value.sum() == 6 and value_of(p) is p.value
    p.assign(mine, copy=False)
    assert np.shares_memory(p.value, mine) and p.version == 2
    p.assign([[1, 2, 3], [4, 5, 6]]) if np.asarray([1]).dtype == np.int8 else p.assign(np.int16([[1, 2, 3], [4, 5, 6]]))
    assert p.value.dtype == np.float32


def test_param_refuses_what_does_not_fit() -> None:
    p = Param("kernel", np.zeros((2, 3), "f4"))
    with pytest.raises(ShapeError, match=r"kernel: got an array of shape \(3, 2\), want \(2, 3\)"):
        p.assign(np.zeros((3, 2), "f4"))
    with pytest.raises(DTypeError, match="float64, want float32"):
        p.assign(np.zeros((2, 3)))
    assert p.version == 0


def test_param_is_filled_once() -> None:
    calls = []

    def make() -> np.ndarray:
        calls.append(1)
        return np.ones((2, 3), "f4")

    p = Param("kernel", make, shape=(2, 3))
    assert p.shape == (2, 3) and not calls
    threads = [threading.Thread(target=lambda: p.value) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and p.version == 0
    later = Param("kernel", make, shape=(2, 3))
    later.assign(np.zeros((2, 3), "f4"))
    assert len(calls) == 1 and later.value.sum() == 0
    with pytest.raises(ShapeError, match="needs its shape"):
        Param("kernel", make)
    with pytest.raises(ShapeError, match=r"shape \(2, 3\), want \(3, 2\)"):
        _ = Param("kernel", make, shape=(3, 2)).value


def test_scale_and_shift(rng: np.random.Generator) -> None:
    x, mean, gamma, beta = (rng.standard_normal(5) for _ in range(4))
    var = rng.random(5)
    scale, shift = scale_and_shift(mean, var, gamma, beta, 1e-3)
    want = (x - mean) / np.sqrt(var + 1e-3) * gamma + beta
    tolerance.assert_within(x * scale + shift, want, tolerance.network_bound(want, "float64"))
    assert scale.dtype == shift.dtype == np.float64
