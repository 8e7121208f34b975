"""A benchmark on fewer instructions than the machine has: `convkern bench peers --isa avx2`.

Instruction sets are chosen once, when a library is loaded, so the command is run again in a process with another
environment. We read CONVKERN_ISA, PyTorch ATEN_CPU_CAPABILITY and its oneDNN ONEDNN_MAX_CPU_ISA. That last one reaches
OpenVINO's oneDNN, too, but not OpenVINO's own code, and ONNX Runtime has no switch at all. So where the machine can,
CPUID itself is masked (mask_cpuid.c, compiled on the spot): then no library can find AVX-512. Where it cannot, these
two are left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

NEED_MASK = ("onnxruntime", "openvino")
_MASKED = "CONVKERN_BENCH_MASKED"  # tells the second process that CPUID is masked


def limited(isa: str) -> bool:
    """Whether this process is limited to `isa` already."""
    return os.environ.get("CONVKERN_ISA") == isa and "ONEDNN_MAX_CPU_ISA" in os.environ


def masked() -> bool:
    return _MASKED in os.environ


def environment(isa: str, folder: Path) -> dict[str, str]:
    """The variables of a process that is limited to `isa`; the mask lies in `folder` and must stay while it runs."""
    variables = dict(os.environ, CONVKERN_ISA=isa, ATEN_CPU_CAPABILITY=isa, ONEDNN_MAX_CPU_ISA=isa.upper())
    mask = _compile_mask(folder)
    if mask and _sees_no_avx512(mask):
        variables |= {_MASKED: "1", "LD_PRELOAD": " ".join(filter(None, (mask, os.environ.get("LD_PRELOAD"))))}
    return variables


def run(words: Sequence[str], isa: str) -> int:
    """Run `convkern WORDS...` in a process that is limited to `isa`; its exit code."""
    with tempfile.TemporaryDirectory(prefix="convkern") as folder:
        command = [sys.executable, "-m", "convkern", *words]
        return subprocess.run(command, env=environment(isa, Path(folder))).returncode


def _compile_mask(folder: Path) -> str:
    """The path of the library to preload; "" where there is no compiler, or the system is not one it is for."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return ""
    source = resources.files("convkern.bench") / "mask_cpuid.c"
    (folder / "mask.c").write_text(source.read_text("utf-8"), "utf-8")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", "mask.so", "mask.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    return "" if done.returncode else str(folder / "mask.so")


def _sees_no_avx512(mask: str) -> bool:
    """Whether a process with the mask is as it should be: our own library, which asks CPUID, finds no AVX-512."""
    code = "import convkern._core as c; print(*c.isas())"
    variables = {key: value for key, value in os.environ.items() if key != "CONVKERN_ISA"} | {"LD_PRELOAD": mask}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    return done.returncode == 0 and "avx512" not in done.stdout.split() and "avx2" in done.stdout.split()
