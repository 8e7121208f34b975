"""Checks what a compiler made of the register tiles of gemm.h for aarch64: the speed of all dense convolutions.

The inner loop of tile<pixels, vectors> takes kChunk channels at a time: 16 x pixels x vectors FMAs, of which none may
have fallen apart into a multiplication and an addition, and no accumulator may live on the stack.

    python tools/check_neon.py BUILD_FOLDER [OBJDUMP]
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

Code = list[tuple[int, str]]  # address, instruction


def functions(objdump: str, path: Path) -> Iterator[tuple[str, Code]]:
    """(demangled name, code) of every function of an object."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", path]
    name, code = "", Code()
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if match := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            yield name, code
            name, code = match[1], Code()
        elif match := re.match(r"\s+([0-9a-f]+):\s+(.*)", line):
            code.append((int(match[1], 16), match[2]))
    yield name, code


def inner_loops(code: Code) -> Iterator[list[str]]:
    """The instructions between each branch backwards and its target, where no such branch is in between."""
    loops = []
    for at, instruction in code:
        match = re.match(r"(?:b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+([0-9a-f]+) <", instruction)
        if match and code[0][0] <= int(match[1], 16) <= at:
            loops.append((int(match[1], 16), at))
    for first, last in loops:
        if not any(first <= other[0] and other[1] <= last for other in loops if other != (first, last)):
            yield [instruction for at, instruction in code if first <= at <= last]


def main() -> None:
    folder, objdump = Path(sys.argv[1]), (sys.argv[2:] or ["aarch64-linux-gnu-objdump"])[0]
    problems, seen = [], 0
    for path in sorted(folder.glob("**/kernels_*.dir/**/*.o")):
        for name, code in functions(objdump, path):
            tile = re.search(r"\btile<(\d+), (\d+)>", name)
            if not tile:
                continue
            seen += 1
            pixels, vectors = int(tile[1]), int(tile[2])
            what = f"{path.name}: tile<{pixels}, {vectors}>"
            wanted = 16 * pixels * vectors
            loops = [loop for loop in inner_loops(code) if sum(i.startswith("fmla") for i in loop) == wanted]
            loop = min(loops, key=len, default=[])
            stack = sum("[sp" in i for i in loop)
            loads = sum(2 if i.startswith("ldp") else 1 for i in loop if i.startswith("ld"))
            if not loop or any(i.startswith(("fmul", "fadd")) for i in loop):
                problems.append(f"{what}: no loop of {wanted} FMAs")
            elif stack:
                problems.append(f"{what}: {stack} accesses to the stack")
            elif path.name.startswith("conv_direct") and pixels == 8:
                print(f"{what}: {len(loop)} instructions, {wanted} FMAs, {loads} loads")
    if not seen:
        sys.exit(f"no tile of gemm.h under {folder}: build first")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{seen} register tiles: nothing on the stack")


main()
