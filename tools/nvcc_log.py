"""Runs nvcc and keeps what ptxas says about registers, stacks and spills beside the object (FILE.o.ptxas), out of the
build's output. CMake puts it in front of every CUDA compilation; tools/check_cuda.py reads the files.
"""

import subprocess
import sys


def main(command: list[str]) -> int:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if "-c" in command and "-o" in command:
        with open(command[command.index("-o") + 1] + ".ptxas", "w") as log:
            log.write(done.stdout)
    lines = done.stdout.splitlines()
    if done.returncode == 0:  # reports are kept, warnings shown
        lines = [line for line in lines if "warning" in line or "error" in line or "(C75" in line]
    if lines:
        print("\n".join(lines), file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
