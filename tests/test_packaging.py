"""What an installed convkern promises its process: one OpenMP runtime, a fast import, life after a fork, few needs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import convkern

PACKAGE = Path(convkern.__file__).parent


def run(code: str, *, timeout: float = 120) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CONVOLVE = """
import numpy as np
def convolve():
    from convkern import ops
    return ops.conv2d(np.ones((1, 64, 56, 56), "f4"), np.ones((64, 64, 3, 3), "f4"), padding=1, threads=2)
"""


@pytest.mark.parametrize("order", ["import convkern._core; import torch", "import torch; import convkern._core"])
def test_one_openmp_runtime(order: str) -> None:
    """torch and the wheel ship a libgomp.so.1 each; whichever comes first serves both."""
    printed = run(
        CONVOLVE
        + f"""
{order}
convolve()
torch.ones(1000, 1000).sin().sum()
mapped = {{line.split()[-1] for line in open("/proc/self/maps") if "/" in line}}
runtimes = [path for path in mapped if any(name in path for name in ("libgomp", "libiomp", "libomp"))]
print(len(runtimes), *runtimes)
"""
    )
    assert printed.split()[0] == "1", printed


def test_results_beside_torch() -> None:
    """The runtime that serves both gives both their threads."""
    run(
        CONVOLVE
        + """
import torch
alone = convolve()
torch.set_num_threads(2)
x = torch.ones(64, 64, 56, 56)
for _ in range(3):
    torch.nn.functional.conv2d(x[:1], torch.ones(64, 64, 3, 3), padding=1)
    assert (convolve() == alone).all()
"""
    )


def test_import_is_fast() -> None:
    """At most 60 ms more than numpy; the best of several, as anything above it is the machine's noise."""

    def best(module: str) -> float:
        code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
        return min(float(run(code)) for _ in range(7))

    assert best("convkern") < 0.060
    assert best("numpy, convkern.ops, convkern.layers") - best("numpy") < 0.060


def test_import_brings_in_no_frameworks() -> None:
    heavy = run(
        """
        import sys
        import convkern, convkern.ops, convkern.layers, convkern.models, convkern.cli
        heavy = {"torch", "PIL", "rich", "tqdm", "safetensors", "matplotlib", "onnx", "skimage"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert heavy.strip() == "[]"


@pytest.mark.parametrize("torch_first", [False, True])
def test_forked_child_works(torch_first: bool) -> None:
    """GNU OpenMP hangs in the child of a process that has used its threads; a plan must not."""
    run(
        ("import torch\n" if torch_first else "")
        + CONVOLVE
        + """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads: the point here
def child(queue):
    queue.put(convolve().tobytes())
if __name__ == "__main__":
    before = convolve()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(3)]
    for process in children:
        process.start()
    results = [queue.get(timeout=30) for _ in children]
    for process in children:
        process.join(30)
        assert process.exitcode == 0
    assert all(result == before.tobytes() for result in results)
    assert (convolve() == before).all()
""",
        timeout=100,
    )


def test_grandchild_works() -> None:
    """A child that has worked forks again."""
    run(
        CONVOLVE
        + """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
convolve()
for generation in range(3):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    convolve()
os._exit(0)
"""
    )


def elf(path: Path, *flags: str) -> str:
    return subprocess.run(["readelf", "--wide", *flags, path], check=True, capture_output=True, text=True).stdout


def test_extension_needs_only_the_system_and_its_own_libgomp() -> None:
    (extension,) = PACKAGE.glob("_core.*.so")
    dynamic = elf(extension, "--dynamic")
    needed = {line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libgomp.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
    assert (PACKAGE / "libgomp.so.1").is_file()
    assert "Library runpath: [$ORIGIN]" in dynamic
    exported = [line for line in elf(extension, "--dyn-syms").splitlines() if " UND " not in line and "FUNC" in line]
    assert [line.split()[-1] for line in exported] == ["PyInit__core"]


def test_installed_files() -> None:
    """Types, the class names and the layer lists are in; sources are not."""
    names = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert {"py.typed", "_core.pyi", "models/imagenet_classes.txt", "bench/shapes/resnet50.txt"} <= names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".map"))]
    assert sum((PACKAGE / name).stat().st_size for name in names if "__pycache__" not in name) < 12e6


def test_one_version() -> None:
    from importlib.metadata import version

    from convkern import _core

    assert version("convkern") == _core.version() == convkern.__version__
