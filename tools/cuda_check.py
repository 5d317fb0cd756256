"""Compiles the CUDA kernels for every architecture they are meant for, and reports what they take.

    python tools/cuda_check.py [ARCHITECTURE ...]        # default: 80 90a 100

Needs nvcc, CMake, Ninja and pybind11, and no GPU. Prints registers, static shared memory and spills
of each kernel; ends with an error where one spills, has a stack, or is missing on an architecture.
Without nvcc it says so in one line and succeeds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "cuda-check"
ARCHITECTURES = ("80", "90a", "100")
_TYPES = {"f": "float", "d": "double", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
_ARGUMENT = r"(?:f|d|6__half|13__nv_bfloat16|N(?:S\d*_)?\w*?3AnyE|Li(\d+)E)"  # of a template


class Usage(NamedTuple):
    """What a thread, and for shared memory a block, of one kernel takes."""

    registers: int
    shared: int  # bytes; dynamic shared memory comes on top (csrc/cuda/plan.h)
    spilled: int  # bytes of stack, of spill stores and of spill loads


def kernel_name(mangled: str) -> str:
    """tile_kernel<float, half>, soft_rank_kernel<float, 512> and so on from a mangled name."""
    for match in re.finditer(r"(?=(\d{1,2})([a-z]\w*))", mangled):
        length = int(match[1])
        name, rest = match[2][:length], match[2][length:]
        if not name.endswith("_kernel"):
            continue
        arguments = re.match(rf"I((?:{_ARGUMENT})+)E", rest)
        if arguments is None:
            return name
        types = [
            found[1] or _TYPES.get(found[0], "any")
            for found in re.finditer(_ARGUMENT, arguments[1])
        ]
        return f"{name}<{', '.join(types)}>"
    return mangled


def parse(output: str) -> dict[str, dict[str, Usage]]:
    """Architecture -> kernel -> usage, from what `ptxas -v` prints."""
    found: dict[str, dict[str, Usage]] = {}
    name = architecture = ""
    spilled = 0
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, architecture, spilled = kernel_name(match[1]), match[2], 0
        elif "spill stores" in line:
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes", line))
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            usage = Usage(int(match[1]), int(shared[1]) if shared else 0, spilled)
            found.setdefault(architecture, {})[name] = usage
            name = ""
    return found


def compile_kernels(nvcc: str, architectures: list[str]) -> str:
    """Compiles all CUDA sources of CMakeLists.txt anew; returns the compiler's output."""
    import pybind11

    shutil.rmtree(FOLDER, ignore_errors=True)
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(FOLDER), "-G", "Ninja", "-DR2KD_CUDA=ON",
        f"-DR2KD_CUDA_ARCHS={';'.join(f'{a}-real' for a in architectures)}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    output = ""
    for command in (configure, ["cmake", "--build", str(FOLDER), "--target", "r2kd_cuda"]):
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode != 0:
            sys.exit(f"{result.stdout}\nerror: cuda-check: '{' '.join(command[:2])} ...' failed")
        output = result.stdout
    return output


def report(found: dict[str, dict[str, Usage]]) -> list[str]:
    """Prints the table; returns what is wrong."""
    problems = []
    names = sorted({name for kernels in found.values() for name in kernels})
    print(f"{'kernel':<36}" + "".join(f"{sm:>26}" for sm in found))
    print(f"{'':<36}" + f"{'registers  shared   spill':>26}" * len(found))
    for name in names:
        row = f"{name:<36}"
        for sm, kernels in found.items():
            if name not in kernels:
                problems.append(f"{name} was not compiled for {sm}")
                row += f"{'missing':>26}"
                continue
            usage = kernels[name]
            row += f"{usage.registers:>10}{usage.shared:>8}{usage.spilled:>8}"
            if usage.spilled:
                problems.append(f"{name} spills on {sm}: {usage.spilled} bytes")
        print(row)
    return problems


def main() -> None:
    architectures = sys.argv[1:] or list(ARCHITECTURES)
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if nvcc is None:
        print("cuda-check skipped: nvcc was not found (put it on the PATH, or set CUDACXX)")
        return
    begin = time.monotonic()
    found = parse(compile_kernels(nvcc, architectures))
    problems = report(found)
    missing = {f"sm_{a}" for a in architectures} - set(found)
    problems += [f"nothing was compiled for {sm}" for sm in sorted(missing)]
    if problems:
        sys.exit("error: cuda-check: " + "; ".join(problems))
    kernels = len(next(iter(found.values())))
    print(
        f"cuda-check: {kernels} kernels for {', '.join(found)} in "
        f"{time.monotonic() - begin:.0f} s; no spill"
    )


if __name__ == "__main__":
    main()
