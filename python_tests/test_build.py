"""The build: what it refuses, what a source distribution holds, what is installed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import r2kd_ext

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("CXX", "CUDACXX", "CXXFLAGS", "R2KD_CUDA", "R2KD_CUDA_ARCHS", "R2KD_WERROR")

pytest.importorskip("setuptools", reason="the build needs setuptools")
pytest.importorskip("pybind11", reason="the build needs pybind11")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def nvcc(tmp_path: Path) -> str:
    """Something that passes for nvcc as long as it is not run."""
    return str(script(tmp_path / "nvcc", "exit 1"))


def build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(target)],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def refusal(target: Path, **environment: str) -> str:
    """The one line that a build ends with."""
    completed = build(target, **environment)
    assert completed.returncode != 0
    assert "Traceback" not in completed.stderr
    line = completed.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_cuda_without_nvcc(tmp_path: Path) -> None:
    compiler = script(tmp_path / "c++", "exit 0")  # the only program on the PATH
    line = refusal(tmp_path, PATH=str(tmp_path), CXX=str(compiler), R2KD_CUDA="on")
    assert "R2KD_CUDA=on, but nvcc was not found" in line
    assert "install the CUDA toolkit" in line
    assert "R2KD_CUDA=off" in line


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("R2KD_CUDA", "yes", "auto, on or off"),
        ("R2KD_CUDA", "ON ", "auto, on or off"),
        ("R2KD_WERROR", "true", "0 or 1"),
        ("R2KD_SANITIZE", "address", "0 or 1"),
        ("R2KD_CUDA_ARCHS", "sm_90", "such as 80;90a;100"),
        ("R2KD_CUDA_ARCHS", "native", "such as 80;90a;100"),
        ("R2KD_CUDA_ARCHS", "8.0", "such as 80;90a;100"),
        ("R2KD_CUDA_ARCHS", ";", "such as 80;90a;100"),
    ],
)
def test_value_out_of_range(
    name: str, value: str, accepted: str, nvcc: str, tmp_path: Path
) -> None:
    line = refusal(tmp_path, **{"CUDACXX": nvcc, name: value})
    assert f"{name} must " in line
    assert accepted in line
    assert line.endswith(f"got {value!r}")


def test_nvcc_that_is_not_there(tmp_path: Path) -> None:
    assert "CUDACXX=/no/nvcc was not found" in refusal(tmp_path, CUDACXX="/no/nvcc")


def test_compiler_that_is_not_there(tmp_path: Path) -> None:
    line = refusal(tmp_path, CXX="/no/such/c++")
    assert "no C++ compiler: CXX=/no/such/c++ was not found" in line
    assert "needs GCC 9 or newer, or Clang 10 or newer" in line


def test_no_compiler_at_all(tmp_path: Path) -> None:
    line = refusal(tmp_path, PATH=str(tmp_path))
    assert "no C++ compiler: none of c++, g++, clang++ was found" in line


def test_compiler_that_is_too_old(tmp_path: Path) -> None:
    old = script(
        tmp_path / "old++",
        'if [ "$1" = --version ]; then echo "old++ (Old) 4.8.5"; exit 0; fi\n'
        "echo \"old++: error: unrecognized command line option '-std=c++17'\" >&2; exit 1",
    )
    line = refusal(tmp_path, CXX=str(old))
    assert f"the C++ compiler {old} (old++ (Old) 4.8.5) cannot build a C++17 program" in line
    assert "unrecognized command line option '-std=c++17'" in line
    assert "needs GCC 9 or newer" in line


def test_source_distribution(tmp_path: Path) -> None:
    before = {path for path in ROOT.iterdir() if path.name != "build"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert {path for path in ROOT.iterdir() if path.name != "build"} == before
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    needed = {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md"}
    for folder, endings in (("csrc", (".h", ".cpp", ".cu")), ("r2kd_ext", (".py", ".pyi"))):
        needed |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.suffix in endings
        }
    assert needed | {"r2kd_ext/py.typed"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


def test_the_package_under_test_is_the_installed_one() -> None:
    if os.environ.get("R2KD_EXPECT_INSTALLED") != "1":
        pytest.skip("the tests run on the source tree (make test runs them on what it installed)")
    package = Path(r2kd_ext.__file__).resolve().parent
    assert package != ROOT / "r2kd_ext"
    installed = distribution("r2kd_ext")
    assert package == Path(str(installed.locate_file("r2kd_ext"))).resolve()
    files = {str(path) for path in installed.files or []}
    assert "r2kd_ext/py.typed" in files
    assert "r2kd_ext/_core.pyi" in files
    assert not [name for name in files if name.startswith(("csrc", "python_tests"))]
    assert installed.metadata["License-Expression"] == "MIT"
    extras = set(installed.metadata.get_all("Provides-Extra") or [])
    assert extras == {"train", "bench", "export", "wandb", "dev"}
