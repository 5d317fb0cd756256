"""Builds the compiled core by driving CMakeLists.txt. Everything else is in pyproject.toml.

Environment variables:
    R2KD_CUDA        auto (default: where nvcc is found), on, off
    R2KD_CUDA_ARCHS  CUDA architectures, separated by ; or , or spaces (default: 80;90;100)
    R2KD_WERROR      1 makes compiler warnings errors
    R2KD_SANITIZE    1 builds with the address and undefined-behaviour sanitizers
    CXX              the C++ compiler
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PROBE = """
#if __cplusplus < 201703L
#error "C++17 needed"
#endif
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 9
#error "GCC 9 needed"
#endif
#include <type_traits>
int main() { if constexpr (std::is_same_v<int, int>) return 0; return 1; }
"""
COMPILERS_NEEDED = "r2kd_ext needs GCC 9 or newer, or Clang 10 or newer (C++17)"


def stop(message: str) -> None:
    """End the build with one line instead of a stack trace."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def check_compiler() -> str:
    """The C++ compiler to use; ends the build with one line if there is none that will do."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    if compiler is None:
        where = f"CXX={wanted} was not found" if wanted else "none of c++, g++, clang++ was found"
        stop(f"no C++ compiler: {where}; {COMPILERS_NEEDED}")
        raise AssertionError
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        command = [compiler, "-std=c++17", "-c", str(source), "-o", str(Path(folder) / "probe.o")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        name = version.splitlines()[0] if version else compiler
        stop(f"the C++ compiler {compiler} ({name}) cannot compile C++17; {COMPILERS_NEEDED}")
    return compiler


def cuda_arguments() -> list[str]:
    """CMake arguments for the CUDA part, after R2KD_CUDA and R2KD_CUDA_ARCHS."""
    mode = os.environ.get("R2KD_CUDA", "auto").lower()
    if mode not in ("auto", "on", "off"):
        stop(f"R2KD_CUDA must be auto, on or off, got {mode!r}")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if mode == "on" and nvcc is None:
        stop(
            "R2KD_CUDA=on, but nvcc was not found; install the CUDA toolkit and put its bin folder "
            "on the PATH (or set CUDACXX to nvcc), or build without CUDA by R2KD_CUDA=off"
        )
    if mode == "off" or nvcc is None:
        return ["-DR2KD_CUDA=OFF"]
    arguments = ["-DR2KD_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    archs = os.environ.get("R2KD_CUDA_ARCHS")
    if archs is not None:
        parts = [part for part in re.split(r"[;,\s]+", archs) if part]
        if not parts or not all(re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", p) for p in parts):
            stop(f"R2KD_CUDA_ARCHS must list architectures such as 80;90a;100, got {archs!r}")
        arguments.append(f"-DR2KD_CUDA_ARCHS={';'.join(parts)}")
    return arguments


def commit() -> str:
    """The commit of this checkout, marked if the tree has changes; empty outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return result.stdout.strip() if result.returncode == 0 else ""


class CMakeBuild(build_ext):
    """Configures, builds and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_CXX_COMPILER={check_compiler()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DR2KD_COMMIT={commit()}",
            f"-DR2KD_WERROR={'ON' if os.environ.get('R2KD_WERROR') == '1' else 'OFF'}",
            f"-DR2KD_SANITIZE={'ON' if os.environ.get('R2KD_SANITIZE') == '1' else 'OFF'}",
            *cuda_arguments(),
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", str(build)]):
            if subprocess.run(command).returncode != 0:
                stop(f"'{' '.join(command[:3])} ...' failed; its output is above")
        module = next(build.glob("_core*.so"), None) or next(build.glob("_core*.pyd"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)


setup(ext_modules=[Extension("r2kd_ext._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
