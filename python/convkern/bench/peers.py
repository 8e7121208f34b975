"""The libraries we are measured against, each asked for one convolution + bias + ReLU on the same numbers.

A runner is a function of a running number (which buffer) and a function that brings its output to an NHWC array, for
the comparison of values. PyTorch runs eagerly under inference_mode, channels-last and contiguous; ONNX Runtime and
OpenVINO get a graph of the one layer. All get the same number of threads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Unsupported
from .shapefile import ConvShape

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Runner:
    """One contestant on one problem: `call(i)` computes on buffer i; `nhwc(result)` is that result as an array."""

    name: str
    call: Callable[[int], Any]
    nhwc: Callable[[Any], np.ndarray]


# peer -> the packages it needs
PEERS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx")}


def missing(peer: str) -> list[str]:
    """The packages that `peer` needs and this environment lacks; Unsupported for a name that is no peer."""
    if peer not in PEERS:
        raise Unsupported(f"no peer {peer!r}; there are {', '.join(PEERS)}")
    return [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]


def versions(peers: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {peer: version(peer) for peer in peers}


def layer_runners(
    peer: str, layer: ConvShape, xs: Arrays, w: np.ndarray, b: np.ndarray, threads: int
) -> Iterator[Runner]:
    """The runners of one peer for one layer.

    xs: NHWC inputs to rotate; w: (R,S,C/G,K); b: (K,).
    """
    kcrs = np.ascontiguousarray(w.transpose(3, 2, 0, 1))
    if peer == "torch":
        yield from _torch(layer, xs, kcrs, b, threads)
    elif peer == "onnxruntime":
        yield _onnxruntime(layer, xs, kcrs, b, threads)
    elif peer == "openvino":
        yield _openvino(layer, xs, kcrs, b, threads)


def _torch(layer: ConvShape, xs: Arrays, kcrs: np.ndarray, b: np.ndarray, threads: int) -> Iterator[Runner]:
    import torch

    torch.set_num_threads(threads)
    bias = torch.from_numpy(b)
    (top, bottom), (left, right) = layer.pad
    even = top == bottom and left == right
    conv2d, pad, relu_ = torch.nn.functional.conv2d, torch.nn.functional.pad, torch.relu_
    pads = (top, left) if even else (0, 0)

    for name, layout in (("torch.channels_last", torch.channels_last), ("torch.contiguous", torch.contiguous_format)):
        inputs = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout) for x in xs]
        weight = torch.from_numpy(kcrs).contiguous(memory_format=layout)

        @torch.inference_mode()
        def call(i: int, inputs: list[Any] = inputs, weight: Any = weight) -> Any:
            x = inputs[i % len(inputs)]
            if not even:
                x = pad(x, (left, right, top, bottom))
            return relu_(conv2d(x, weight, bias, layer.stride, pads, layer.dil, layer.groups))

        yield Runner(name, call, lambda y: y.permute(0, 2, 3, 1).numpy())


def _onnx_model(layer: ConvShape, n: int, kcrs: np.ndarray, b: np.ndarray) -> bytes:
    """A graph of the one layer, NCHW as ONNX has it."""
    from onnx import TensorProto, helper, numpy_helper

    (top, bottom), (left, right) = layer.pad
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["conv"],
            pads=[top, left, bottom, right],
            strides=list(layer.stride),
            dilations=list(layer.dil),
            group=layer.groups,
        ),
        helper.make_node("Relu", ["conv"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n, layer.c, layer.h, layer.w])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n, layer.k, layer.p, layer.q])],
        [numpy_helper.from_array(kcrs, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # readable by every runtime of the last years
    return model.SerializeToString()


def _nchw(xs: Arrays) -> list[np.ndarray]:
    return [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in xs]


def _onnxruntime(layer: ConvShape, xs: Arrays, kcrs: np.ndarray, b: np.ndarray, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would slow the next contestant.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = _onnx_model(layer, len(xs[0]), kcrs, b)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = [{"x": x} for x in _nchw(xs)]

    def call(i: int) -> Any:
        return session.run(None, inputs[i % len(inputs)])[0]

    return Runner("onnxruntime", call, lambda y: y.transpose(0, 2, 3, 1))


def _openvino(layer: ConvShape, xs: Arrays, kcrs: np.ndarray, b: np.ndarray, threads: int) -> Runner:
    import io

    import openvino

    core = openvino.Core()
    model = core.read_model(io.BytesIO(_onnx_model(layer, len(xs[0]), kcrs, b)))
    settings = dict(
        INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1, PERFORMANCE_HINT="LATENCY", INFERENCE_PRECISION_HINT="f32"
    )
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    inputs = [openvino.Tensor(x, shared_memory=True) for x in _nchw(xs)]

    def call(i: int) -> Any:
        request.set_input_tensor(inputs[i % len(inputs)])
        request.infer()
        return request.get_output_tensor().data

    return Runner("openvino", call, lambda y: y.transpose(0, 2, 3, 1))
