"""Timing: who is called when, and what is kept of it.

Contestants (ours and the peers) are timed in one process on the same data, in alternating blocks of calls, so that a
slow minute of a shared machine hits all of them. Each block starts with calls that are not counted: the idle threads of
the library that ran before still spin for a while, and the first call finds the others' data in the caches. Every call
gets the next of a ring of buffers that together exceed the last cache. A timing is a median with its quartiles; a ratio
is the median, over the rounds, of the ratio of two neighbouring blocks.
"""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROUNDS = 7  # blocks for each contestant
SETTLE = 0.003  # seconds a block runs before it counts: about as long as GNU OpenMP's idle threads spin
LEAST_CALLS = 2  # counted in each block, however slow


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the quartiles over all counted calls, and the median of each block."""

    median: float
    q1: float
    q3: float
    best: float
    calls: int
    blocks: tuple[float, ...]

    @classmethod
    def of(cls, blocks: list[list[float]]) -> Timing:
        """From the seconds of every counted call, block by block.

        >>> Timing.of([[1.0, 2.0, 3.0], [2.0, 2.0]]).median
        2.0
        """
        calls = sorted(call for block in blocks for call in block)
        q1, median, q3 = statistics.quantiles(calls, n=4, method="inclusive") if len(calls) > 1 else calls * 3
        return cls(median, q1, q3, calls[0], len(calls), tuple(statistics.median(block) for block in blocks))

    def as_dict(self) -> dict[str, Any]:
        return dict(median=self.median, q1=self.q1, q3=self.q3, best=self.best, calls=self.calls)


def ratio(other: Timing, ours: Timing) -> float:
    """How many times as fast as the other we are, block against neighbouring block: over 1 is a win.

    >>> ratio(Timing.of([[2.0], [4.0], [9.0]]), Timing.of([[1.0], [2.0], [3.0]]))
    2.0
    """
    return statistics.median(b / a for a, b in zip(ours.blocks, other.blocks))


def interleave(
    contestants: Mapping[str, Callable[[int], Any]], seconds: float = 0.2, rounds: int = ROUNDS, settle: float = SETTLE
) -> dict[str, Timing]:
    """Time the contestants in alternating blocks of calls.

    contestants: name -> function of a running number, which picks the buffer.
    seconds: counted time for each contestant, about; at least LEAST_CALLS calls a round are made however long they
        take.

    >>> list(interleave({"a": lambda i: i, "b": lambda i: i}, seconds=0.001, rounds=2, settle=0))
    ['a', 'b']
    """
    clock = time.perf_counter
    turn = dict.fromkeys(contestants, 0)
    blocks: dict[str, list[list[float]]] = {name: [] for name in contestants}

    def call(name: str) -> float:
        turn[name] += 1
        start = clock()
        contestants[name](turn[name])
        return clock() - start

    for name in contestants:  # plans are made, memory is touched
        call(name)
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            start = clock()
            call(name)
            while clock() - start < settle:
                call(name)
            block = [call(name)]
            while len(block) < LEAST_CALLS or sum(block) + block[-1] / 2 < seconds / rounds:
                block.append(call(name))
            blocks[name].append(block)
        order.append(order.pop(0))  # nobody always follows the same neighbour
    return {name: Timing.of(block) for name, block in blocks.items()}


def cache_bytes() -> int:
    """Size of the last-level cache in bytes; 32 MiB where the system does not say."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = re.match(r"(\d+)([KMG]?)", file.read_text())
        if size:
            sizes.append(int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]])
    return max(sizes) or 32 << 20


def ring_size(bytes_each: int, most: int = 64) -> int:
    """How many buffers of that size to rotate: together they exceed twice the last cache (but at most 64)."""
    return max(2, min(most, math.ceil(2 * cache_bytes() / max(1, bytes_each))))


class Peak:
    """The float32 FMA rate with that many threads: the highest of short measurements spread over a run."""

    def __init__(self, threads: int):
        self.threads = threads
        self.gflops = 0.0
        self.measure(0.1)

    def measure(self, seconds: float = 0.02) -> float:
        from .. import _core

        self.gflops = max(self.gflops, _core.peak_gflops(self.threads, seconds))
        return self.gflops


def bandwidth(threads: int, seconds: float = 0.3) -> float:
    """Bytes a second between memory and that many threads, reading as much as is written: the best of many ReLUs."""
    import numpy as np

    from .. import _core

    x = np.ones((1, 1, 1, min(4 * cache_bytes(), 1 << 28) // 256, 64), np.float32)
    plan = _core.Plan()
    plan.finish([plan.activation(plan.input(x.shape[1:]), "relu")])
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        plan.run([x], threads=threads)
        best = min(best, time.perf_counter() - start)
    return 2 * x.nbytes / best


def machine() -> dict[str, Any]:
    """What a figure means nothing without: processor, instruction set, cores, versions."""
    from .. import _core

    return dict(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        last_cache_bytes=cache_bytes(),
        isa=_core.isa(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        numpy=import_module("numpy").__version__,
    )


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        name = None
    return name[1] if name else platform.processor() or "unknown"


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()


def commit() -> str | None:
    """The commit of the checkout that the package is imported from, with a + if it has changes; None outside of one."""
    try:
        _git("ls-files", "--error-unmatch", __file__)  # fails if installed into a folder of somebody else's repository
        return _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
