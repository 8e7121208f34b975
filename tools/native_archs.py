"""Prints the architectures of this machine's CUDA devices as CMake's list, such as "86" or "80;90a": what to build for
when the result need not run anywhere else. Asks nvidia-smi, which comes with the driver, else PyTorch.
"""

import subprocess
import sys


def archs(capabilities: str) -> str:
    """From nvidia-smi's lines ("9.0") to nvcc's names; 9.0 has instructions of its own, which 90a stands for."""
    found = sorted({line.strip().replace(".", "") for line in capabilities.splitlines() if line.strip()}, key=int)
    return ";".join("90a" if arch == "90" else arch for arch in found)


if __name__ == "__main__":
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        try:
            import torch

            numbers = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        except ImportError:
            numbers = []
        if not numbers:
            sys.exit(f"no CUDA device was found ({error}): set CONVKERN_CUDA_ARCHS, for example to 90a")
        found = "".join(f"{major}.{minor}\n" for major, minor in numbers)
    print(archs(found))
