"""Builds libraries in which CUDA kernels run on the CPU (emulated_cuda/cuda_runtime.h)."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GUARD = 256  # bytes around scratch memory that nobody may write to


def as_cpp(source: str) -> str:
    """CUDA's launches and dynamic shared memory as C++ that the emulation knows."""
    launch = r"(\w+(?:<[\w, ]+>)?)<<<(.+?)>>>\("
    source = re.sub(
        launch,
        r"emulated::launch([&](const auto&... given) { \1(given...); }, \2)(",
        source,
        flags=re.DOTALL,
    )
    return re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];", r"\1* const \2 = emulated::dynamic<\1>();", source
    )


def emulated_library(folder: Path, entries: str, kernels: tuple[str, ...]) -> ctypes.CDLL:
    """The kernel files of csrc/cuda with `entries`, a file of this folder, as a library."""
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        pytest.skip("no C++ compiler: the CUDA kernels are not emulated")
    sources = []
    for name in kernels:
        source = folder / f"{name}.cpp"
        source.write_text(as_cpp((ROOT / "csrc" / "cuda" / f"{name}.cu").read_text()))
        sources.append(str(source))
    includes = [f"-I{p}" for p in (HERE / "emulated_cuda", ROOT / "csrc", ROOT / "csrc" / "cuda",
                                   ROOT / "csrc" / "include")]  # fmt: skip
    target = folder / "emulated.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
         "-Wno-unknown-pragmas", *includes, "-shared", str(HERE / entries), *sources,
         "-o", str(target)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(target))
