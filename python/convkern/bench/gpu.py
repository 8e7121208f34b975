"""GPUs: layers and whole networks beside PyTorch on the same device, in the same run (`make gpu-bench`).

    python -m convkern.bench.gpu [NETWORK ...] [--batch 1 32 256] [--precision float32 float16 ...] [--json FILE]

Every contestant is captured into a CUDA graph of several calls on rotating inputs that together exceed the second-level
cache, so that neither Python nor launches count; graphs are replayed in alternating blocks and timed by events. PyTorch
runs channels last with cudnn.benchmark, convolution + bias + ReLU as its functions have them; whole networks also with
torch.compile. A ratio is PyTorch's best time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import _core, device
from ..errors import ConvkernError, Unsupported
from . import harness, report, shapefile
from .shapefile import ConvShape

BATCHES = (1, 32, 256)
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
# Largest difference from PyTorch, relative to the largest output: products of 11 and 8 bits, random weights.
TOLERANCE = {"float32": 1e-4, "fp32x3": 1e-3, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
NETWORK_TOLERANCE = {"float32": 1e-3, "fp32x3": 5e-3, "tf32": 5e-2, "float16": 1e-1, "bfloat16": 3e-1}

Call = Callable[[int], Any]  # of a running number, which picks the input


class Cuda:
    """How work is captured and timed on a device; tests put a clock of the CPU in its place."""

    name = "cuda"

    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.backends.cudnn.benchmark = True

    def capture(self, call: Call, calls: int) -> Callable[[], Any]:
        """A function that queues `calls` calls as one graph."""
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(3):
                call(i)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call(i) for i in range(calls)]

        def replay() -> Any:
            graph.replay()
            return kept  # the results' memory is the graph's

        return replay

    def seconds(self, queue: Callable[[], Any]) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        queue()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def ring(self, bytes_: int) -> int:
        """How many inputs exceed the second-level cache twice, 2 to 16."""
        cache = self.torch.cuda.get_device_properties(0).L2_cache_size
        return min(16, max(2, 2 * cache // max(bytes_, 1) + 1))


def race(clock: Any, contestants: dict[str, Call], inputs: int, rounds: int = 9) -> dict[str, harness.Timing]:
    """Median seconds of one call of each contestant, in alternating blocks."""
    first = {name: clock.seconds(clock.capture(call, inputs)) / inputs for name, call in contestants.items()}
    longest = max(first.values())
    calls = inputs * max(1, min(64, int(2e-3 / max(longest, 1e-7) / inputs)))  # blocks of some 2 ms
    queues = {name: clock.capture(call, calls) for name, call in contestants.items()}
    blocks: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, queue in queues.items():
            clock.seconds(queue)  # not counted: caches and clocks settle
            blocks[name].append([clock.seconds(queue) / calls])
    return {name: harness.Timing.of(times) for name, times in blocks.items()}


def ours(runner: device.Runner, arrays: Sequence[Any]) -> Call:
    """Runs a plan into memory of its own, without Python's share."""
    calls = []
    for x in arrays:
        n, inputs, outputs = runner._arguments([x], False)
        calls.append((n, inputs, outputs, [y.pointer for y in outputs]))

    def call(i: int) -> Any:
        n, inputs, outputs, pointers = calls[i % len(calls)]
        runner._plan.run(n, inputs, pointers, False, device.current_stream(runner.device))
        return outputs[0]

    return call


def dtype_of(precision: str) -> Any:
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision, torch.float32)


def set_tf32(precision: str) -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def layer(clock: Any, shape: ConvShape, n: int, precision: str, algo: str = "") -> dict[str, Any]:
    """One convolution with bias and ReLU; a row of the report."""
    import torch

    set_tf32(precision)
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape.kernel_shape, np.float32) / np.float32(
        np.sqrt(shape.r * shape.s * shape.c / shape.groups)
    )
    b = rng.standard_normal(shape.k, np.float32)
    (top, bottom), (left, right) = shape.pad
    plan = _core.Plan(record=True)
    x_id = plan.input((1, shape.h, shape.w, shape.c))
    geometry: dict[str, Any] = dict(
        stride=(1, *shape.stride),
        pad_lo=(0, top, left),
        pad_hi=(0, bottom, right),
        dilation=(1, *shape.dil),
        groups=shape.groups,
    )
    plan.finish([plan.conv(x_id, _core.Parameter(w[None]), b, act="relu", algo=algo, label=shape.name, **geometry)])
    runner = device.Runner(plan, 0, precision, graphs=False)
    kind = dtype_of(precision)
    item = torch.empty((), dtype=kind).element_size()
    count = clock.ring(n * item * (shape.h * shape.w * shape.c + shape.p * shape.q * shape.k))
    nhwc = [torch.randn((n, 1, shape.h, shape.w, shape.c), device=clock.name).to(kind) for _ in range(count)]
    arrays = [device.from_object(x, "x") if clock.name == "cuda" else clock.array(x) for x in nhwc]
    images = [x[:, 0].permute(0, 3, 1, 2) for x in nhwc]
    weight = torch.from_numpy(w).permute(3, 2, 0, 1).to(clock.name, kind).contiguous(memory_format=torch.channels_last)
    bias = torch.from_numpy(b).to(clock.name, kind)
    even = top == bottom and left == right

    @torch.inference_mode()
    def peer(i: int) -> Any:
        x = images[i % count]
        if not even:
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
        pads = (top, left) if even else (0, 0)
        return torch.relu_(torch.nn.functional.conv2d(x, weight, bias, shape.stride, pads, shape.dil, shape.groups))

    mine = ours(runner, arrays)
    got = clock.read(mine(0)) if clock.name != "cuda" else torch.from_dlpack(mine(0))
    want = peer(0).permute(0, 2, 3, 1)
    error = float((got[:, 0].float() - want.float()).abs().max() / (want.float().abs().max() + 1e-30))
    if not error <= TOLERANCE[precision]:
        raise ConvkernError(
            f"{shape} in {precision}, N={n}: PyTorch's result differs by {error:.1e} of the largest output"
        )
    timings = race(clock, {"convkern": mine, "torch": peer}, count)
    return _row(
        timings,
        dict(layer=shape.name, shape=str(shape), macs=shape.macs),
        runner.steps(n)[0]["kernel"],
        n,
        precision,
        error,
    )


def network(
    clock: Any, name: str, n: int, precision: str, compiled: bool = True, size: int | None = None
) -> dict[str, Any]:
    """A whole network from an image in memory to logits; a row of the report."""
    import torch

    from ..models import get_model
    from .torch_graph import TorchGraph

    set_tf32(precision)
    options: dict[str, Any] = {} if size is None else dict(input_shape=(size, size, 3))
    model = get_model(name, **options)
    height, width, channels = model.input_shape
    kind = dtype_of(precision)
    count = 2
    nhwc = [torch.randn((n, height, width, channels), device=clock.name).to(kind) for _ in range(count)]
    graph = model.graph()
    model.to("cuda:0", precision)
    runner = model.plan()._plan
    arrays = [(device.from_object(x, "x") if clock.name == "cuda" else clock.array(x))[:, None] for x in nhwc]
    images = [x.permute(0, 3, 1, 2) for x in nhwc]

    class OnDevice(TorchGraph):
        def _tensor(self, array: np.ndarray, param: Any) -> Any:
            return super()._tensor(array, param).to(clock.name, kind)

    eager = torch.inference_mode()(OnDevice(graph, torch.channels_last))
    contestants: dict[str, Call] = {"convkern": ours(runner, arrays), "torch": lambda i: eager(images[i % count])}
    if compiled:
        torch._dynamo.reset()
        fast = torch.compile(OnDevice(graph, torch.channels_last).traced(), dynamic=False)
        contestants["torch.compile"] = torch.inference_mode()(lambda i: fast(images[i % count]))
    y = contestants["convkern"](0)
    got = (clock.read(y) if clock.name != "cuda" else torch.from_dlpack(y)).reshape(n, -1).float()
    want = contestants["torch"](0).reshape(n, -1).float()
    error = float((got - want).abs().max() / (want.abs().max() + 1e-30))
    if not error <= NETWORK_TOLERANCE[precision]:
        raise ConvkernError(
            f"{name} in {precision}, N={n}: PyTorch's result differs by {error:.1e} of the largest output"
        )
    timings = race(clock, contestants, count)
    steps = runner.steps(n)
    facts = dict(model=name, shape=f"{height}x{width}x{channels}", macs=sum(step["macs"] for step in steps))
    return _row(timings, facts, "", n, precision, error)


def _row(
    timings: dict[str, harness.Timing], facts: dict[str, Any], kernel: str, n: int, precision: str, error: float
) -> dict[str, Any]:
    mine = timings.pop("convkern")
    peers = {name: dict(t.as_dict(), ratio=harness.ratio(t, mine)) for name, t in timings.items()}
    tflops = 2e-12 * facts["macs"] * n / mine.median
    return dict(
        facts, n=n, precision=precision, kernel=kernel, tflops=tflops, ours=mine.as_dict(), peers=peers, error=error
    )


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Geometric means of the ratio to PyTorch's best, by precision and batch."""
    lines = []
    for what in ("layer", "model"):
        for precision in dict.fromkeys(row["precision"] for row in rows):
            for n in sorted({row["n"] for row in rows}):
                ratios = [
                    min(peer["ratio"] for peer in row["peers"].values())
                    for row in rows
                    if what in row and row["precision"] == precision and row["n"] == n
                ]
                if ratios:
                    mean, faster = report.geometric_mean(ratios), sum(r > 1 for r in ratios)
                    lines.append(
                        f"{len(ratios):4} {what}s  {precision:9} N={n:<4} PyTorch's best / ours: geometric mean "
                        f"{mean:.2f}, lowest {min(ratios):.2f}, faster {faster}"
                    )
    return lines


def line(row: dict[str, Any]) -> str:
    peers = "  ".join(
        f"{name} {peer['median'] * 1e6:9.1f} us x{peer['ratio']:.2f}" for name, peer in row["peers"].items()
    )
    name, us = row.get("layer") or row.get("model"), row["ours"]["median"] * 1e6
    rate = f"{us:9.1f} us {row['tflops']:7.1f} TFLOP/s"
    return f"{name:28} {row['precision']:9} N={row['n']:<4} {rate}  {peers}  {row['kernel']}"


def rows_of(
    clock: Any,
    networks: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    what: Sequence[str],
    compiled: bool,
) -> Iterator[dict[str, Any]]:
    """All rows, as they are measured; what is refused or wrong is said and left out."""
    import torch

    shapes = dict.fromkeys(s for name in networks if name in shapefile.names() for s in shapefile.load(name))
    jobs: list[Callable[[], dict[str, Any]]] = []
    for precision in precisions:
        for n in batches:
            if "layers" in what:
                jobs += [functools.partial(layer, clock, s, n, precision) for s in shapes]
            if "models" in what:
                jobs += [functools.partial(network, clock, name, n, precision, compiled) for name in networks]
    for job in jobs:
        try:
            yield job()
        except (Unsupported, ConvkernError, torch.OutOfMemoryError) as error:
            print(f"left out: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m convkern.bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "networks", nargs="*", default=["resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "resnext50_32x4d"]
    )
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--precision", nargs="+", choices=device.PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only", nargs="+", choices=("layers", "models"), default=("layers", "models"))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    import torch

    doc = report.document(0, 0.0, {"torch": torch.__version__})
    doc["device"] = device.info()
    doc["cudnn"] = torch.backends.cudnn.version()
    print(f"{doc['device']['name']}, PyTorch {torch.__version__}, cuDNN {doc['cudnn']}")
    clock = Cuda()
    for row in rows_of(clock, options.networks, options.batch, options.precision, options.only, not options.no_compile):
        doc["rows"].append(row)
        print(line(row), flush=True)
    doc["summary"] = summary(doc["rows"])
    print("\n".join(doc["summary"]))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(doc, file, indent=1)
    return 0 if doc["rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
