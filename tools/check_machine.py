"""What building needs and pip cannot install: asked before anything is tried, answered with the remedy.

Run by the Makefile with whatever Python 3 the user has.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

COMPILERS = (os.environ.get("CXX"), "c++", "g++", "clang++")
PROGRAM = """
#include <omp.h>
#include <optional>
int main() { return omp_get_max_threads() < *std::optional<int>(1); }
"""


def compiler_problem() -> str:
    compiler = next((name for name in COMPILERS if name and shutil.which(name.split()[0])), None)
    if compiler is None:
        return "a C++17 compiler: apt install g++, dnf install gcc-c++, or set CXX"
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "try.cpp"), os.path.join(folder, "try")
        with open(source, "w") as file:
            file.write(PROGRAM)
        command = [*compiler.split(), "-std=c++17", "-fopenmp", source, "-o", program]
        tried = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    return f"a C++17 compiler with OpenMP; {compiler} says:\n{tried.stderr.decode()}" if tried.returncode else ""


def main() -> None:
    problems = []
    if sys.version_info < (3, 10):  # noqa: UP036
        problems.append(f"Python 3.10 or later (this is {sys.version.split()[0]}): make PYTHON=python3.12")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        problems.append("Python's headers: apt install python3-dev, dnf install python3-devel")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        problems.append("venv and ensurepip: apt install python3-venv")
    problems.append(compiler_problem())
    problems = [problem for problem in problems if problem]
    if problems:
        sys.exit("convkern cannot be built here. Missing:\n  " + "\n  ".join(problems))


main()
