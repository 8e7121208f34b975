"""The libraries we are measured against: for one convolution + bias + ReLU, and for a whole network, on our numbers.

A runner is a function of a running number (which buffer) and a function that brings its output to an array of channels
last, for the comparison of values. PyTorch runs eagerly under inference_mode, in both memory layouts, and whole
networks also compiled with frozen weights; ONNX Runtime and OpenVINO get an ONNX graph (onnx_graph.py), with all their
optimisations. All get the same number of threads. In bfloat16 PyTorch runs under autocast and OpenVINO with its hint;
ONNX Runtime, which has none on CPUs, stays in float32.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConvkernError, Unsupported
from ..graph import Graph
from . import onnx_graph
from .shapefile import ConvShape

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Runner:
    """One contestant on one problem: `call(i)` computes on buffer i; `nhwc(result)` is that result as an array."""

    name: str
    call: Callable[[int], Any]
    nhwc: Callable[[Any], np.ndarray]


# peer -> the packages it needs, its own first
PEERS = {
    "torch": ("torch",),
    "torch.compile": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
}
MODELS_ONLY = ("torch.compile",)


def missing(peer: str) -> str:
    """What `peer` needs and this environment lacks, with the remedy; "" if nothing. Unsupported if it is no peer."""
    if peer not in PEERS:
        raise Unsupported(f"no peer {peer!r}; there are {', '.join(PEERS)}")
    lacking = [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]
    if lacking:
        return f"{' and '.join(lacking)} not installed (pip install {' '.join(lacking)})"
    if peer == "torch.compile" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler found (g++, or name one in CXX)"
    return ""


def versions(peers: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {peer: version(PEERS[peer][0]) for peer in peers}


def layer_runners(
    peer: str, layer: ConvShape, xs: Arrays, w: np.ndarray, b: np.ndarray, threads: int
) -> Iterator[Runner]:
    """The runners of one peer for one layer; none for a peer that is for whole models only.

    xs: NHWC inputs to rotate; w: (R,S,C/G,K); b: (K,).
    """
    if peer == "torch":
        yield from _torch(layer, xs, np.ascontiguousarray(w.transpose(3, 2, 0, 1)), b, threads)
    elif peer not in MODELS_ONLY:
        yield _RUNTIMES[peer](onnx_graph.export(_layer_graph(layer, w, b), len(xs[0])), xs, threads)


def model_runners(
    peers: Sequence[str], graph: Graph, xs: Arrays, threads: int, precision: str = "float32"
) -> Iterator[Runner]:
    """The runners of all `peers` for a network of one input and one output.

    xs: inputs (N,H,W,C) to rotate. precision: "float32" or "bf16". Raises Unsupported for an operator that a peer does
    not have.
    """
    if "torch" in peers:
        yield from _torch_eager(graph, xs, threads, precision)
    if "torch.compile" in peers:
        yield _torch_compiled(graph, xs, threads, precision)
    runtimes = [peer for peer in peers if peer in _RUNTIMES]
    if runtimes:
        model = onnx_graph.export(graph, len(xs[0]))
        for peer in runtimes:
            yield _RUNTIMES[peer](model, xs, threads, precision)


def runtime_runner(peer: str, file: str, xs: Arrays, threads: int) -> Runner:
    """The runner of "onnxruntime" or "openvino" for an ONNX file, in float32."""
    return _RUNTIMES[peer](file, xs, threads)


def _layer_graph(layer: ConvShape, w: np.ndarray, b: np.ndarray) -> Graph:
    graph = Graph()
    x = graph.input((layer.h, layer.w, layer.c))
    attrs = dict(strides=layer.stride, padding=layer.pad, dilation=layer.dil, groups=layer.groups)
    y = graph.add("conv", (x,), attrs, dict(kernel=w, bias=b))
    graph.outputs.append(graph.add("activation", (y,), dict(kind="relu")))
    return graph


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


def _torch_eager(graph: Graph, xs: Arrays, threads: int, precision: str) -> Iterator[Runner]:
    import torch

    from .torch_graph import TorchGraph

    torch.set_num_threads(threads)
    for name, layout in (("torch.channels_last", torch.channels_last), ("torch.contiguous", torch.contiguous_format)):
        yield _torch_runner(name, TorchGraph(graph, layout), _torch_inputs(xs, layout), precision)


def _torch_compiled(graph: Graph, xs: Arrays, threads: int, precision: str) -> Runner:
    """Weights become constants of the compiled code: batch norms are folded and filters packed, as in ours."""
    import torch
    from torch._inductor import config

    from .torch_graph import TorchGraph

    torch.set_num_threads(threads)
    torch._dynamo.reset()  # forget the network before
    network = torch.compile(TorchGraph(graph, torch.channels_last).traced(), dynamic=False)
    runner = _torch_runner("torch.compile", network, _torch_inputs(xs, torch.channels_last), precision)
    try:
        with config.patch(freezing=True):
            runner.call(0)  # compiles
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConvkernError(f"torch.compile failed (--peers can leave it out): {reason}") from error
    return runner


def _torch_inputs(xs: Arrays, layout: Any) -> list[Any]:
    import torch

    inputs = [torch.from_numpy(x).movedim(-1, 1) for x in xs]
    return [x.contiguous(memory_format=layout) if x.ndim == 4 else x.contiguous() for x in inputs]


def _torch_runner(name: str, network: Callable[[Any], Any], inputs: Sequence[Any], precision: str) -> Runner:
    import torch

    @torch.inference_mode()
    @torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    def call(i: int) -> Any:
        return network(inputs[i % len(inputs)])

    return Runner(name, call, lambda y: y.float().movedim(1, -1).numpy())


def _nchw(xs: Arrays) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in xs]


def _nhwc(y: np.ndarray) -> np.ndarray:
    return np.moveaxis(y, 1, -1)


def _onnxruntime(model: bytes | str, xs: Arrays, threads: int, precision: str = "float32") -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would slow the next contestant.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = [{"x": x} for x in _nchw(xs)]
    return Runner("onnxruntime", lambda i: session.run(None, inputs[i % len(inputs)])[0], _nhwc)


def _openvino(model: bytes | str, xs: Arrays, threads: int, precision: str = "float32") -> Runner:
    import openvino

    core = openvino.Core()
    settings = dict(
        PERFORMANCE_HINT="LATENCY",
        INFERENCE_PRECISION_HINT="bf16" if precision == "bf16" else "f32",
        INFERENCE_NUM_THREADS=threads,
        NUM_STREAMS=1,
        ENABLE_HYPER_THREADING=True,  # else it may take fewer threads than it is given
    )
    compiled = core.compile_model(
        core.read_model(model if isinstance(model, str) else io.BytesIO(model)), "CPU", settings
    )
    request = compiled.create_infer_request()
    inputs = [openvino.Tensor(x, shared_memory=True) for x in _nchw(xs)]

    def call(i: int) -> Any:
        request.set_input_tensor(inputs[i % len(inputs)])
        request.infer()
        return request.get_output_tensor().data

    return Runner("openvino", call, _nhwc)


_RUNTIMES: dict[str, Callable[..., Runner]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
