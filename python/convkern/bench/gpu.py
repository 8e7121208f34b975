"""GPUs: layers and whole networks beside PyTorch on the same device, in the same run (`make gpu-bench`).

    python -m convkern.bench.gpu [--only GROUP ...] [--seconds 540] [--json FILE]
    python -m convkern.bench.gpu NETWORK ... [--batch 1 32 256] [--precision float32 float16 ...] [--json FILE]

Without a network: the numbers that this backend is held to, group by group (NUMBERS), and a table of what was asked and
what was measured. With networks: their layers and themselves.

Every contestant is captured into a CUDA graph of several calls on rotating inputs that together exceed the second-level
cache, so that neither Python nor launches count; graphs are replayed in alternating blocks and timed by events. PyTorch
runs channels last with cudnn.benchmark: convolution, bias and ReLU as its functions have them, and fused as cuDNN has
them (cudnn_convolution_relu) where it takes the problem; whole networks also with torch.compile, whose kernels are
captured like all others (its mode "reduce-overhead" does the same with copies of the inputs). A ratio is PyTorch's best
time over ours: above 1 we are faster. The JSON file is written anew after each row, so that a run cut short leaves its
rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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

    @torch.inference_mode()
    def fused(i: int) -> Any:
        x, pads = images[i % count], (top, left)
        return torch.cudnn_convolution_relu(x, weight, bias, shape.stride, pads, shape.dil, shape.groups)

    contestants = {"convkern": mine, "torch": peer}
    if clock.name == "cuda" and even:
        try:
            fused(0)
            contestants["cuDNN fused"] = fused
        except RuntimeError:  # cuDNN has no such kernel
            pass
    timings = race(clock, contestants, count)
    return _row(
        timings,
        dict(layer=shape.name, shape=str(shape), macs=shape.macs),
        runner.steps(n)[0]["kernel"],
        n,
        precision,
        error,
    )


class Pool(NamedTuple):
    """A pooling layer on images of `size` rows and columns."""

    name: str
    kind: str
    size: int
    c: int
    window: int
    stride: int
    pad: int

    @property
    def out(self) -> int:
        return (self.size + 2 * self.pad - self.window) // self.stride + 1


def pool(clock: Any, shape: Pool, n: int, precision: str) -> dict[str, Any]:
    """One pooling layer; a row of the report, with its share of the bandwidth of a copy."""
    import torch

    plan = _core.Plan(record=True)
    x_id = plan.input((1, shape.size, shape.size, shape.c))
    window, stride, pad = (1, *[shape.window] * 2), (1, *[shape.stride] * 2), (0, *[shape.pad] * 2)
    y_id = plan.pool(x_id, shape.kind, window=window, stride=stride, pad_lo=pad, pad_hi=pad, out=(1, *[shape.out] * 2))
    plan.finish([y_id])
    runner = device.Runner(plan, 0, precision, graphs=False)
    kind = dtype_of(precision)
    bytes_ = n * shape.c * (shape.size**2 + shape.out**2) * torch.empty((), dtype=kind).element_size()
    count = clock.ring(bytes_)
    nhwc = [torch.randn((n, 1, shape.size, shape.size, shape.c), device=clock.name).to(kind) for _ in range(count)]
    arrays = [device.from_object(x, "x") if clock.name == "cuda" else clock.array(x) for x in nhwc]
    images = [x[:, 0].permute(0, 3, 1, 2) for x in nhwc]
    function = torch.nn.functional.max_pool2d if shape.kind == "max" else torch.nn.functional.avg_pool2d
    peer = torch.inference_mode()(lambda i: function(images[i % count], shape.window, shape.stride, shape.pad))
    mine = ours(runner, arrays)
    got = clock.read(mine(0)) if clock.name != "cuda" else torch.from_dlpack(mine(0))
    want = peer(0).permute(0, 2, 3, 1)
    error = float((got[:, 0].float() - want.float()).abs().max() / (want.float().abs().max() + 1e-30))
    if not error <= TOLERANCE[precision]:
        raise ConvkernError(f"{shape} in {precision}, N={n}: PyTorch's result differs by {error:.1e} of the largest")
    whole = [torch.empty(bytes_ // 2, dtype=torch.uint8, device=clock.name) for _ in range(4)]
    timings = race(
        clock, {"convkern": mine, "torch": peer, "copy": lambda i: whole[i % 2].copy_(whole[2 + i % 2])}, count
    )
    copy = timings.pop("copy").median
    facts = dict(pool=shape.name, shape=str(shape), macs=0, of_copy=copy / timings["convkern"].median)
    return _row(timings, facts, runner.steps(n)[0]["kernel"], n, precision, error)


def first_call(clock: Any, name: str, n: int, precision: str, size: int | None = None) -> dict[str, Any]:
    """Seconds of a model's first call on the device: plan, kernels loaded, weights packed, result there."""
    import torch

    from ..models import get_model

    options: dict[str, Any] = {} if size is None else dict(input_shape=(size, size, 3))
    model = get_model(name, **options)
    model.to("cuda:0", precision)
    x = torch.randn((n, *model.input_shape), device=clock.name).to(dtype_of(precision))
    array = device.from_object(x, "x") if clock.name == "cuda" else clock.array(x)
    start = time.perf_counter()
    y = model(array)
    y.numpy() if y.dtype != "bfloat16" else y.astype("float32").numpy()
    seconds = time.perf_counter() - start
    return dict(call=name, n=n, precision=precision, seconds=seconds)


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
    for what in ("layer", "pool", "model"):
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
    if "call" in row:
        return f"{row['call']:28} {row['precision']:9} N={row['n']:<4} first call {row['seconds']:.3f} s"
    peers = "  ".join(
        f"{name} {peer['median'] * 1e6:9.1f} us x{peer['ratio']:.2f}" for name, peer in row["peers"].items()
    )
    name, us = row.get("layer") or row.get("model") or row["pool"], row["ours"]["median"] * 1e6
    rate = f"{us:9.1f} us " + (f"{row['of_copy']:7.2f} of copy  " if "pool" in row else f"{row['tflops']:7.1f} TFLOP/s")
    return f"{name:28} {row['precision']:9} N={row['n']:<4} {rate}  {peers}  {row['kernel']}"


# What this backend is held to


class Number(NamedTuple):
    """A number that is asked for: the rows that count, and what their geometric mean (and each of them) must reach."""

    group: str  # the rows' group
    what: str
    asked: float
    precisions: tuple[str, ...]  # of ours; several: the best of them, layer by layer
    n: int = 64
    each: float = 0.0
    value: str = (
        "ratio"  # to PyTorch's best; "compiled": to torch.compile; "of_copy": of the bandwidth; "seconds": at most
    )
    only: str = ""  # a model, or a kind of layer


NUMBERS = (
    Number("call", "first call of ResNet-50, float16", 1.0, ("float16",), 1, value="seconds", only="resnet50"),
    Number("half", "layers of C >= 64, float16", 1.15, ("float16",), each=0.9),
    Number("half", "layers of C >= 64, bfloat16", 1.15, ("bfloat16",), each=0.9),
    Number("first", "first layers with packing, float16", 2.3, ("float16",)),
    Number("first", "first layers with packing, bfloat16", 4.0, ("bfloat16",)),
    Number("one", "layers of one image, float16", 1.25, ("float16",), 1),
    Number("pool", "pooling, float16", 3.0, ("float16",)),
    Number("pool", "pooling, float32", 1.8, ("float32",)),
    Number("pool", "pooling, share of a copy's bandwidth", 0.8, ("float16",), each=0.8, value="of_copy"),
    Number("pool", "pooling, share of a copy's bandwidth", 0.8, ("float32",), each=0.8, value="of_copy"),
    Number("groups", "depthwise layers, float16", 1.3, ("float16",), only="depthwise"),
    Number("groups", "grouped layers, float16", 1.5, ("float16",), only="grouped"),
    Number("models", "ResNet-50 float16, torch.compile", 1.3, ("float16",), 1, value="compiled", only="resnet50"),
    Number("models", "ResNet-50 float16, torch.compile", 1.2, ("float16",), 32, value="compiled", only="resnet50"),
    Number("models", "ResNet-50 float16, torch.compile", 1.1, ("float16",), 256, value="compiled", only="resnet50"),
    Number("models", "VGG-16 float16", 1.3, ("float16",), 256, only="vgg16"),
    Number("models", "AlexNet float16", 2.0, ("float16",), 256, only="alexnet"),
    Number("tf32", "layers of C >= 64, TF32", 1.0, ("tf32",)),
    Number("float32", "layers of C >= 64, float32 or 3xTF32", 1.5, ("float32", "fp32x3")),
)
GROUPS = tuple(dict.fromkeys(number.group for number in NUMBERS))
LAYERED = ("alexnet", "vgg16", "resnet50")
POOLS = (
    Pool("max 2x2", "max", 224, 64, 2, 2, 0),
    Pool("max 3x3 /2", "max", 112, 64, 3, 2, 1),
    Pool("avg 3x3", "avg", 35, 192, 3, 1, 1),
)


def kind_of(shape: ConvShape) -> str:
    """The kind of a layer, as Number.only has it."""
    if shape.groups == 1:
        return "first" if shape.c <= 4 else "plain"
    return "depthwise" if shape.groups == shape.c else "grouped"


def shapes_of(networks: Sequence[str], kind: str, least: int = 1) -> list[ConvShape]:
    """The distinct layers of a kind with at least so many channels."""
    found: dict[ConvShape, ConvShape] = {}
    for name in networks:
        for shape in shapefile.load(name):
            if kind_of(shape) == kind and shape.c >= least:
                found.setdefault(replace(shape, name="", count=1), replace(shape, name=f"{name}.{shape.name}"))
    return list(found.values())


def jobs_of(clock: Any, group: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """What is measured for a group."""
    job = functools.partial
    wide = shapes_of(LAYERED, "plain", 64)
    if group == "call":
        yield job(first_call, clock, "resnet50", 1, "float16")
        yield job(first_call, clock, "vgg16", 1, "float16")
    elif group == "first":
        for shape in shapes_of(LAYERED, "first"):
            yield from (job(layer, clock, shape, 64, precision) for precision in ("float16", "bfloat16"))
    elif group == "one":
        yield from (job(layer, clock, shape, 1, "float16") for shape in [*shapes_of(LAYERED, "first"), *wide])
    elif group == "pool":
        yield from (job(pool, clock, shape, 64, precision) for shape in POOLS for precision in ("float16", "float32"))
    elif group == "groups":
        for names, kind in ((("mobilenet_v2", "efficientnet_b0"), "depthwise"), (("resnext50_32x4d",), "grouped")):
            yield from (job(layer, clock, shape, 64, "float16") for shape in shapes_of(names, kind))
    elif group == "models":
        yield from (job(network, clock, "resnet50", n, "float16") for n in BATCHES)
        yield from (job(network, clock, name, 256, "float16", False) for name in ("vgg16", "alexnet"))
    else:
        precisions = {"half": ("float16", "bfloat16"), "tf32": ("tf32",), "float32": ("float32", "fp32x3")}[group]
        yield from (job(layer, clock, shape, 64, precision) for shape in wide for precision in precisions)


def measured(number: Number, rows: Iterable[dict[str, Any]]) -> list[float]:
    """The values of a number's rows: one for each layer, pool or model, the best of its precisions."""
    best: dict[str, float] = {}
    for row in rows:
        if row["group"] != number.group or row["n"] != number.n or row["precision"] not in number.precisions:
            continue
        name = row.get("model") or row.get("call")
        kind = kind_of(shapefile.parse_line(row["shape"])) if "layer" in row else ""
        if number.only and number.only not in (name, kind):
            continue
        if number.value == "ratio":
            value = min(peer["ratio"] for peer in row["peers"].values())
        elif number.value == "compiled":
            value = row["peers"]["torch.compile"]["ratio"]
        else:
            value = row[number.value]
        key = row.get("shape") or str(name)
        best[key] = max(best.get(key, 0.0), value)
    return list(best.values())


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked for and what was measured; a number without rows is left out."""
    table = []
    for number in NUMBERS:
        values = measured(number, rows)
        if not values:
            continue
        mean = report.geometric_mean(values)
        met = mean <= number.asked if number.value == "seconds" else mean >= number.asked and min(values) >= number.each
        facts = dict(what=number.what, precisions=number.precisions, n=number.n, value=number.value)
        table.append(
            dict(facts, asked=number.asked, each=number.each, got=mean, least=min(values), rows=len(values), met=met)
        )
    return table


def numbers_text(table: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'number':44} {'N':>4} {'rows':>5} {'asked':>7} {'got':>7} {'least':>7}"]
    for t in table:
        sign, each = "<=" if t["value"] == "seconds" else ">=", f", each {t['each']}" if t["each"] else ""
        lines.append(
            f"{t['what']:44} {t['n']:4} {t['rows']:5} {sign + format(t['asked'], '.2f'):>7} {t['got']:7.2f} "
            f"{t['least']:7.2f}  {'met' if t['met'] else 'NOT MET'}{each}"
        )
    return "\n".join(lines)


def rows_of(
    clock: Any,
    networks: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    what: Sequence[str],
    compiled: bool,
    until: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """All rows, as they are measured."""
    shapes = dict.fromkeys(s for name in networks if name in shapefile.names() for s in shapefile.load(name))
    jobs: list[Callable[[], dict[str, Any]]] = []
    for precision in precisions:
        for n in batches:
            if "layers" in what:
                jobs += [functools.partial(layer, clock, s, n, precision) for s in shapes]
            if "networks" in what:
                jobs += [functools.partial(network, clock, name, n, precision, compiled) for name in networks]
    yield from done(jobs, until)


def done(jobs: Iterable[Callable[[], dict[str, Any]]], until: float = float("inf")) -> Iterator[dict[str, Any]]:
    """The rows of jobs, as they are measured; what is refused or wrong is said and left out, as is what is late."""
    import torch

    for job in jobs:
        if time.monotonic() > until:
            print("left out: the time is up", file=sys.stderr)
            return
        try:
            yield job()
        except (Unsupported, ConvkernError, torch.OutOfMemoryError) as error:
            print(f"left out: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m convkern.bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="time these instead of the numbers that are asked for")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--precision", nargs="+", choices=device.PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only", nargs="+", choices=(*GROUPS, "layers", "networks"), help="some groups of rows")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row after that time")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.seconds
    import torch

    doc = report.document(0, 0.0, {"torch": torch.__version__})
    doc["device"] = device.info()
    doc["cudnn"] = torch.backends.cudnn.version()
    print(f"{doc['device']['name']}, PyTorch {torch.__version__}, cuDNN {doc['cudnn']}")
    clock = Cuda()

    def keep(rows: Iterable[dict[str, Any]], group: str) -> None:
        for row in rows:
            doc["rows"].append(dict(row, group=group))
            print(line(row), flush=True)
            doc["summary"], doc["numbers"] = summary(doc["rows"]), table_of(doc["rows"])
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(doc, file, indent=1)

    if options.networks:
        what = options.only or ("layers", "networks")
        compiled = not options.no_compile
        keep(rows_of(clock, options.networks, options.batch, options.precision, what, compiled, until), "")
        print("\n".join(doc.get("summary", [])))
    else:
        for group in options.only or GROUPS:
            print(f"-- {group}", flush=True)
            keep(done(jobs_of(clock, group), until), group)
        print(numbers_text(doc.get("numbers", [])))
    return 0 if doc["rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
