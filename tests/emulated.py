"""The portable CUDA kernels and the device plan, compiled for the CPU (csrc/cuda/emulate.h): a "cuda:0" on any machine.

Everything but the compiler, the driver and the hardware is the code that runs on a GPU: the kernels' bodies and index
arithmetic, their choice, the packing of weights, the arena, the order of launches. Kernels that need tensor cores are
left out (kernels.def says which).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FLAGS = "-std=gnu++17 -O1 -DCK_EMULATE -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -Werror".split()
NOT_PORTABLE = ("mma", "sm90", "first")  # in the names of files with CK_TENSOR and CK_SM90 rows


def compiler() -> str:
    """The C++ compiler that built the package, or the system's."""
    for name in (os.environ.get("CXX"), "c++", "g++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("no C++ compiler was found: the emulated CUDA kernels cannot be built")


def sources() -> list[Path]:
    kernels = [p for p in sorted((CSRC / "cuda/kernels").glob("*.cu")) if not any(n in p.stem for n in NOT_PORTABLE)]
    return [*kernels, *(CSRC / "cuda" / f"{name}.cpp" for name in ("dispatch", "plan", "table"))]


def build() -> Path:
    """The shared library, from build/emulated; files are compiled again when anything they may include has changed."""
    out = ROOT / "build" / "emulated"
    out.mkdir(parents=True, exist_ok=True)
    headers = hashlib.sha256(" ".join([compiler(), *FLAGS]).encode())
    for path in sorted(
        [*CSRC.glob("cuda/*.*h"), *CSRC.glob("cuda/*.def"), *CSRC.glob("core/*.h"), CSRC / "plan/layout.h"]
    ):
        headers.update(path.read_bytes())

    def compile_one(source: Path) -> Path:
        digest = headers.copy()
        digest.update(source.read_bytes())
        target = out / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            scratch = target.with_suffix(f".{os.getpid()}")
            command = [compiler(), *FLAGS, f"-I{CSRC}", "-x", "c++", "-c", str(source), "-o", str(scratch)]
            subprocess.run(command, check=True)
            scratch.rename(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources()))
    names = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = out / f"cuda_emulated-{names}{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    if not library.exists():
        scratch = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), "-shared", *map(str, objects), "-o", str(scratch)], check=True)
        scratch.rename(library)
    return library


def module() -> Any:
    """The emulated device module, as convkern.device.module() gives the real one."""
    from convkern import _core

    library = ctypes.CDLL(str(build()))
    library.ck_device_table.restype = ctypes.c_void_p
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    name = ctypes.c_char_p(b"convkern.device.table")
    _kept.extend((library, name))  # the capsule points at both
    return _core.DeviceModule(new(library.ck_device_table(), name, None))


_kept: list[Any] = []
