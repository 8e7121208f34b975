"""What a user meets beside the time of a warm call: the first call, peak memory, how time grows with the batch, what a
second thread gains.

First calls and memory are measured in a process of their own for each contestant. There the library is imported and the
weights are made in the form it takes them in: NumPy arrays for us, channels-last tensors for PyTorch (eager, inference
mode), an ONNX file for ONNX Runtime and OpenVINO. Then

    first call    is the time from there to the first result: reading the file, making the plan, packing, running;
    peak memory   is the largest resident set from there to the third result, less that after the imports: it counts the
                  weights in every form they have, the tensors in between and the libraries' own buffers.

Batches and threads are timed in one process, interleaved (harness.py).
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvkernError, Unsupported
from ..terminal import seconds as duration
from ..terminal import size, table
from . import harness, onnx_graph, peers

FACTS = ("first", "memory", "batch", "threads")
MODELS = ("resnet50", "vgg16")  # what `convkern bench facts` measures without being told
OURS = ("convkern", "convkern.lean")
PEERS = ("torch", "onnxruntime", "openvino")
BATCHES = (8, 32)
CALLS = 3  # whose peak is taken


def run(
    name: str, facts: Sequence[str], threads: int, against: Sequence[str] = (), seconds: float = 2.0, rounds: int = 7
) -> dict[str, Any]:
    """The facts of one model, each under its name in FACTS.

    against: names of peers, all of them installed. Raises Unsupported for a fact that is none, and for memory on a
    system that does not tell it; ConvkernError if a contestant's process fails.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise Unsupported(f"no fact {unknown[0]!r}; there are {', '.join(FACTS)}")
    if "memory" in facts and not Path("/proc/self/clear_refs").exists():
        raise Unsupported("peak memory is read from /proc/self, which this system does not have")
    row: dict[str, Any] = dict(model=name)
    if {"first", "memory"} & set(facts):
        kinds = [*OURS, *(peer for peer in against if peer in PEERS)]
        with tempfile.TemporaryDirectory(prefix="convkern") as folder:
            file = _write_onnx(name, Path(folder) / "model.onnx") if {"onnxruntime", "openvino"} & set(kinds) else ""
            for fact in ("first", "memory"):
                if fact in facts:
                    row[fact] = {kind: _in_a_process(fact, name, kind, threads, file) for kind in kinds}
    for fact, measure in (("batch", _batch), ("threads", _threads)):
        if fact in facts:
            row[fact] = measure(name, threads, seconds, rounds)
    return row


def _write_onnx(name: str, file: Path) -> str:
    from ..models import get_model

    file.write_bytes(onnx_graph.export(get_model(name).graph(), 1))
    return str(file)


def _in_a_process(*words: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ConvkernError(f"{' '.join(map(str, words[:3]))}: {reason}")
    return json.loads(done.stdout)


# In the process of a contestant


def _contestant(name: str, kind: str, threads: int, file: str) -> tuple[Callable[[], Callable[[], Any]], Any]:
    """A function that readies the contestant and returns one that calls it on one image; and our model, if it is that.

    What exists when this returns is the weights, in the contestant's own form, and the image.
    """
    from ..models import get_model, model_info

    x = np.random.default_rng(0).standard_normal((1, *model_info(name).input_shape), np.float32)
    if kind in ("onnxruntime", "openvino"):

        def ready() -> Callable[[], Any]:
            runner = peers.runtime_runner(kind, file, [x], threads)
            return lambda: runner.call(0)

        return ready, None
    model = get_model(name)
    model.memory = "lean" if kind == "convkern.lean" else "normal"
    for param in model.weights:
        _ = param.value  # initial values are drawn when they are first read
    if kind in OURS:
        return lambda: lambda: model(x, threads=threads), model
    runner = next(peers.model_runners(["torch"], model.graph(), [x], threads))
    return lambda: lambda: runner.call(0), None


def _import(kind: str) -> None:
    from .. import models  # noqa: F401

    if kind not in OURS:
        __import__(kind)


def _first(name: str, kind: str, threads: int, file: str) -> dict[str, Any]:
    """Seconds of the first and of the second call; of ours also what making the plan takes, and what packing adds."""
    _import(kind)
    ready, model = _contestant(name, kind, threads, file)
    start = time.perf_counter()
    facts = {}
    if model is not None:
        model.plan()
        facts["plan"] = time.perf_counter() - start
    call = ready()
    call()
    facts["first"] = time.perf_counter() - start
    start = time.perf_counter()
    call()
    facts["second"] = time.perf_counter() - start
    return facts


def _memory(name: str, kind: str, threads: int, file: str) -> dict[str, Any]:
    """Bytes of the resident set: after the imports, with the weights made, at the peak; of ours also what it holds."""
    _import(kind)
    imported = resident("VmRSS")
    ready, model = _contestant(name, kind, threads, file)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    made = resident("VmRSS")
    call = ready()
    for _ in range(CALLS):
        call()
    peak = resident("VmHWM")
    facts = dict(process=peak, imported=imported, weights=made - imported, peak=peak - imported)
    if model is not None:
        plan = model.plan()
        facts.update(packed=plan.packed_bytes, arena=plan.arena_bytes)
    return facts


def resident(what: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at the peak (its own, where getrusage's is inherited)."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def forget_peak() -> None:
    """The peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")


# In this process


def _model(name: str, batches: Sequence[int]) -> tuple[Any, dict[int, list[np.ndarray]]]:
    from ..models import get_model

    model, rng = get_model(name), np.random.default_rng(0)
    return model, {n: [rng.standard_normal((n, *model.input_shape), np.float32) for _ in range(2)] for n in batches}


def _batch(name: str, threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds an image in batches of BATCHES, and the larger one's over the smaller one's."""
    model, xs = _model(name, BATCHES)
    calls = {str(n): (lambda i, n=n: model(xs[n][i % 2], threads=threads)) for n in BATCHES}
    timings = harness.interleave(calls, seconds, rounds)
    small, large = BATCHES
    return dict(
        {str(n): timings[str(n)].median / n for n in BATCHES},
        ratio=harness.ratio(timings[str(large)], timings[str(small)]) * small / large,
    )


def _threads(name: str, threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds of a call on one image with one thread and with `threads`, and how many times as fast these are."""
    model, xs = _model(name, [1])
    calls = {str(t): (lambda i, t=t: model(xs[1][i % 2], threads=t)) for t in (1, threads)}
    timings = harness.interleave(calls, seconds, rounds)
    facts: dict[str, Any] = {key: timing.median for key, timing in timings.items()}
    return dict(facts, ratio=harness.ratio(timings["1"], timings[str(threads)]))


def text(rows: Sequence[dict[str, Any]], threads: int) -> str:
    """The tables of a run."""
    return "\n\n".join(_tables(rows, threads))


def _tables(rows: Sequence[dict[str, Any]], threads: int) -> Iterator[str]:
    def cells(fact: str, of: Callable[[dict[str, Any]], list[str]]) -> list[list[str]]:
        return [[row["model"], kind, *of(facts)] for row in rows for kind, facts in row.get(fact, {}).items()]

    first = cells(
        "first", lambda f: [duration(f["first"]), duration(f["plan"]) if "plan" in f else "", duration(f["second"])]
    )
    if first:
        titles = ["model", "contestant", "first call", "of it plan", "second call"]
        yield f"one image, {threads} threads, weights in memory, in a fresh process\n{table(titles, first, left=2)}"
    memory = cells("memory", lambda f: [size(f[key]) if key in f else "" for key in _MEMORY])
    if memory:
        yield (
            f"peak of resident memory, one image, {threads} threads, in a fresh process\n"
            f"{table(['model', 'contestant', *_MEMORY.values()], memory, left=2)}"
        )
    batch = [
        [row["model"], *(duration(row["batch"][str(n)]) for n in BATCHES), f"{row['batch']['ratio']:.3f}"]
        for row in rows
        if "batch" in row
    ]
    if batch:
        yield f"time an image, {threads} threads\n{table(['model', *(f'N={n}' for n in BATCHES), 'ratio'], batch)}"
    several = [
        [row["model"], *(duration(row["threads"][str(t)]) for t in (1, threads)), f"{row['threads']['ratio']:.2f}"]
        for row in rows
        if "threads" in row
    ]
    if several:
        yield f"one image\n{table(['model', '1 thread', f'{threads} threads', 'speed-up'], several)}"


_MEMORY = dict(
    process="whole process",
    imported="of it imports",
    peak="the rest",
    weights="of it weights",
    packed="packed weights",
    arena="tensors",
)


if __name__ == "__main__":
    _fact, _name, _kind, _thread_count, _file = sys.argv[1:]
    print(json.dumps(dict(first=_first, memory=_memory)[_fact](_name, _kind, int(_thread_count), _file)))
