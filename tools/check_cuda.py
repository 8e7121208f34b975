"""Reads what ptxas said about every CUDA kernel (FILE.o.ptxas, kept by tools/nvcc_log.py) and fails on what costs speed
unseen: spilled registers, stack frames, and wgmma instructions that the compiler serialised (C7508, C7510 ... C7520).

    python tools/check_cuda.py build/cuda [--table] [--most BYTES]

--table prints registers and shared memory of every kernel; --most is what the module may take, packed as in a wheel.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Kernels that may keep an array in local memory: the definitions, which nobody runs for speed. Everything else is hot.
COLD = re.compile(r"ck::cuda::(conv|relay_kernel|transform_filters)\b")


class Kernel(NamedTuple):
    kernel: str
    arch: str
    file: str
    registers: int
    shared: int
    stack: int
    spills: int


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_ADVICE = re.compile(r"\((C75\d\d)\)")


def demangle(names: list[str]) -> list[str]:
    """C++ names without arguments, by c++filt where there is one."""
    if not names or not shutil.which("c++filt"):
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = (re.sub(r"\(anonymous namespace\)::|^void ", "", line) for line in done.stdout.splitlines())
    return [line.partition("(")[0] for line in plain]


def read(folder: Path) -> tuple[list[Kernel], list[str]]:
    """All kernels of a build folder, and what is wrong with them."""
    rows: list[Kernel] = []
    problems: list[str] = []
    reports = sorted(folder.rglob("*.ptxas"))
    for report in reports:
        file = report.name.removesuffix(".ptxas").removesuffix(".o")
        name = arch = ""
        stack = spills = 0
        for line in report.read_text().splitlines():
            if found := _ADVICE.search(line):
                problems.append(f"{file}: {found[1]} in {name or 'a kernel'}: {line.strip()}")
            if found := _ENTRY.search(line):
                name, arch, stack, spills = found[1], found[2], 0, 0
            elif found := _STACK.search(line):
                stack, spills = max(stack, int(found[1])), spills + int(found[2]) + int(found[3])
            elif (found := _USED.search(line)) and name:
                shared = _SHARED.search(line)
                rows.append(Kernel(name, arch, file, int(found[1]), int(shared[1]) if shared else 0, stack, spills))
                name = ""
    if not rows:
        problems.append(f"{folder} holds no report of ptxas: build with CONVKERN_CUDA=ON")
    rows = [row._replace(kernel=plain) for row, plain in zip(rows, demangle([row.kernel for row in rows]))]
    for row in rows:
        if COLD.match(row.kernel):
            continue
        if row.spills:
            problems.append(f"{row.file}: {row.kernel} for {row.arch} spills {row.spills} bytes")
        elif row.stack:
            problems.append(f"{row.file}: {row.kernel} for {row.arch} has a stack of {row.stack} bytes")
    return rows, problems


def too_large(folder: Path, most: int) -> list[str]:
    """The module's size in a wheel (deflated), if it is more than `most`."""
    modules = sorted(folder.rglob("_cuda*.so"))
    if not modules:
        return [f"{folder} holds no module _cuda"]
    packed = len(zlib.compress(modules[0].read_bytes(), 6))
    print(f"{modules[0].name}: {packed / 1e6:.1f} MB in a wheel")
    return [f"{modules[0].name} takes {packed} bytes in a wheel, want {most} at most"] if packed > most else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--most", type=int)
    arguments = parser.parse_args()
    rows, problems = read(arguments.folder)
    if arguments.most is not None:
        problems += too_large(arguments.folder, arguments.most)
    if arguments.table:
        for row in sorted(rows, key=lambda r: (r.file, r.kernel, r.arch)):
            memory = f"{row.shared:6} B shared {row.stack:5} B stack"
            print(f"{row.file:24} {row.arch:8} {row.registers:4} registers {memory}  {row.kernel}")
    for problem in problems:
        print(problem, file=sys.stderr)
    per_arch = ", ".join(f"{count} for {arch}" for arch, count in sorted(Counter(row.arch for row in rows).items()))
    print(f"{len(rows)} kernels ({per_arch}): {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
