"""Builds the compiled core by driving CMakeLists.txt. Everything else is in pyproject.toml.

Environment variables:
    R2KD_CUDA        auto (default: where nvcc is found), on, off
    R2KD_CUDA_ARCHS  CUDA architectures, separated by ; or , or spaces (default: 80;90;100)
    R2KD_WERROR      1 makes compiler warnings errors
    R2KD_SANITIZE    1 builds with the address and undefined-behaviour sanitizers
    CXX, CUDACXX     the C++ compiler, nvcc
    CXXFLAGS, CUDAFLAGS, LDFLAGS  further flags, as CMake reads them

CMake works in build/, one folder for each Python and each setting of these, so that nothing of
another build is taken over and a repeated build is incremental. Everything else that setuptools
writes goes to a temporary folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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


def stop(message: str) -> NoReturn:
    """End the build with one line instead of a stack trace."""
    sys.stdout.flush()
    sys.exit(f"error: {message}")


def choice(name: str, default: str, values: tuple[str, ...]) -> str:
    """An environment variable that takes one of a few values; empty counts as unset."""
    value = os.environ.get(name) or default
    if value.lower() not in values:
        stop(f"{name} must be {', '.join(values[:-1])} or {values[-1]}, got {value!r}")
    return value.lower()


def cmake_switch(name: str) -> str:
    """A CMake option that an environment variable of the same name turns on by 1."""
    return f"-D{name}={'ON' if choice(name, '0', ('0', '1')) == '1' else 'OFF'}"


def check_compiler() -> str:
    """The C++ compiler to use; ends the build with one line if there is none that will do."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    if compiler is None:
        where = f"CXX={wanted} was not found" if wanted else "none of c++, g++, clang++ was found"
        stop(f"no C++ compiler: {where}; {COMPILERS_NEEDED}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        command = [compiler, "-std=c++17", str(source), "-o", str(Path(folder) / "probe")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        name = version.splitlines()[0] if version.strip() else "unknown version"
        first = next((line for line in result.stderr.splitlines() if "error" in line), "no message")
        stop(
            f"the C++ compiler {compiler} ({name}) cannot build a C++17 program "
            f"({first.strip()}); {COMPILERS_NEEDED}"
        )
    return compiler


def find_nvcc() -> str | None:
    """The path of nvcc, or None; ends the build where CUDACXX names none."""
    wanted = os.environ.get("CUDACXX")
    nvcc = shutil.which(wanted or "nvcc")
    if wanted and nvcc is None:
        stop(f"CUDACXX={wanted} was not found; set it to nvcc of the CUDA toolkit, or unset it")
    return nvcc


def cuda_arguments() -> list[str]:
    """CMake arguments for the CUDA part, after R2KD_CUDA and R2KD_CUDA_ARCHS."""
    mode = choice("R2KD_CUDA", "auto", ("auto", "on", "off"))
    nvcc = None if mode == "off" else find_nvcc()
    if mode == "on" and nvcc is None:
        stop(
            "R2KD_CUDA=on, but nvcc was not found; install the CUDA toolkit and put its bin folder "
            "on the PATH (or set CUDACXX to nvcc), or build without CUDA by R2KD_CUDA=off"
        )
    if nvcc is None:
        return ["-DR2KD_CUDA=OFF"]
    arguments = ["-DR2KD_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    archs = os.environ.get("R2KD_CUDA_ARCHS")
    if archs:
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


@contextmanager
def build_folder(settings: list[str]) -> Iterator[Path]:
    """The CMake build folder of these settings; a second build of the same waits for the first."""
    import fcntl

    flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "CUDAFLAGS", "LDFLAGS")]
    key = "\n".join([str(ROOT), sys.executable, sys.version, *settings, *flags])
    tag = f"{sys.implementation.cache_tag}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    folder = ROOT / "build" / tag
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


class CMakeBuild(build_ext):
    """Configures, builds and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        settings = [
            f"-DCMAKE_CXX_COMPILER={check_compiler()}",
            cmake_switch("R2KD_WERROR"),
            cmake_switch("R2KD_SANITIZE"),
            *cuda_arguments(),
        ]
        # These change from build to build: an isolated build has its tools in a new folder.
        places = [
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DR2KD_VERSION={self.distribution.get_version()}",
            f"-DR2KD_COMMIT={commit()}",
        ]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with build_folder(settings) as folder:
            configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
            for command in (
                [*configure, *settings, *places],
                ["cmake", "--build", str(folder), "--target", "_core"],
            ):
                if subprocess.run(command).returncode != 0:
                    stop(f"'{' '.join(command[:3])} ...' failed; its output is above")
            shutil.copyfile(next(folder.glob("_core*.so")), target)


with tempfile.TemporaryDirectory(prefix="r2kd-build-") as scratch:
    setup(
        ext_modules=[Extension("r2kd_ext._core", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
