"""Checks that no function of a kernel object can be merged with another ISA's by the linker.

Each kernel is compiled once per ISA. A template or an inline function that a compiler emits out of line is a weak
symbol of the same name in each object; the linker keeps one of them, perhaps the AVX-512 one, and a machine without
AVX-512 dies of it. So the objects may define no weak (W, V) and no unique (u) symbol.

    python tools/check_symbols.py BUILD_FOLDER
"""

import subprocess
import sys
from pathlib import Path


def defined(path: Path) -> list[tuple[str, str]]:
    """(kind, demangled name) of every symbol that an object defines for others to see."""
    lines = subprocess.run(["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    return [(kind, name) for _, kind, name in (line.split(" ", 2) for line in lines.splitlines())]


def main() -> None:
    objects = [path for folder in sys.argv[1:] for path in sorted(Path(folder).glob("**/kernels_*.dir/**/*.o"))]
    found = [(path, kind, name) for path in objects for kind, name in defined(path) if kind in "WVu"]
    for path, kind, name in found:
        print(f"{path}: {kind} {name}")
    isas = {next(part for part in path.parts if part.startswith("kernels_")) for path in objects}
    if len(isas) < 2:
        sys.exit(f"no objects of two ISAs under {' '.join(sys.argv[1:])}: build first")
    if found:
        sys.exit(f"{len(found)} symbols could be merged across ISAs: make the functions static and always inline")
    print(f"{len(objects)} kernel objects of {len(isas)} ISAs: no weak symbols")


main()
