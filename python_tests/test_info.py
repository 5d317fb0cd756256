"""`build_info` and `describe`: what they say follows what is."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import r2kd_ext
from r2kd_ext.info import describe

LEVELS = ["baseline", "avx2", "avx512"]
PACKAGES = str(Path(r2kd_ext.__file__).parent.parent)
REPORT = "import json, torch, r2kd_ext\nprint(json.dumps(r2kd_ext.build_info()))"
VALUE = """
z = torch.linspace(-3, 3, 640, dtype=torch.float64).sin().view(8, 80).requires_grad_()
y = torch.linspace(-2, 5, 640, dtype=torch.float64).cos().view(8, 80)
loss = r2kd_ext.correlation_kd(z, y)
loss.backward()
print(json.dumps([loss.item(), z.grad.norm().item()]))
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with the package that this process tests."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("R2KD_SIMD", "PYTHONPATH")}
    paths = os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
    )


@cache
def available_levels() -> list[str]:
    best = json.loads(run(REPORT).stdout)["simd"]
    return LEVELS[: LEVELS.index(best) + 1]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_facts() -> None:
    info = r2kd_ext.build_info()
    assert info["torch"] == torch.__version__
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{info["version"]}"' in project.splitlines()
    assert info["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert info["gpu"] is None or torch.cuda.is_available()
    if info["triton"] is not None:
        assert info["triton"] == version("triton")
    json.dumps(info)  # nothing but plain values


def test_cuda_is_consistent() -> None:
    cuda = r2kd_ext.build_info()["cuda"]
    if cuda["compiled"]:
        assert cuda["runtime"]
        assert cuda["architectures"]
        assert (cuda["devices"] > 0) == (cuda["problem"] is None)
    else:
        assert (cuda["runtime"], cuda["architectures"], cuda["devices"]) == (None, [], 0)


@pytest.mark.skipif(platform.system() != "Linux", reason="torch's runtime is looked up on Linux")
def test_the_kernels_share_the_runtime_of_torch() -> None:
    assert r2kd_ext.build_info()["parallel_runtime"] == "GOMP"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_follow_torch(count: int) -> None:
    torch.set_num_threads(count)
    assert r2kd_ext.build_info()["threads"] == count
    assert ["threads", str(count)] in [line.split() for line in describe().splitlines()]


def test_backend_of_each_op_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = r2kd_ext.build_info()["ops"]["correlation"]["cpu"]
    assert choice["backend"] == "native"
    assert choice["reason"]
    z, y = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    loss = r2kd_ext.correlation_kd(z, y)
    assert torch.equal(loss, r2kd_ext.correlation_kd(z, y, backend=choice["backend"]))
    ops = {row.rsplit(" on ")[0] for row in describe().splitlines() if " on cpu " in row}
    assert ops == set(r2kd_ext.build_info()["ops"])


def test_description_has_every_fact() -> None:
    info, text = r2kd_ext.build_info(), describe()
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if " on " not in line[:20])
    assert rows["r2kd_ext"] == info["version"]
    assert rows["torch"] == info["torch"]
    assert rows["SIMD"] == info["simd"]
    assert rows["commit"] == (info["commit"] or "unknown")
    assert rows["Triton"] == (info["triton"] or "not installed")
    assert rows["GPU"] == (info["gpu"] or "none")
    for architecture in info["cuda"]["architectures"]:
        assert architecture in rows["CUDA"]
    assert ("not compiled" in rows["CUDA"]) == (not info["cuda"]["compiled"])


def test_simd_follows_the_environment() -> None:
    levels, results = available_levels(), []
    for level in levels:
        completed = run(REPORT + VALUE, R2KD_SIMD=level)
        assert completed.returncode == 0, completed.stderr
        report, result = map(json.loads, completed.stdout.splitlines())
        assert report["simd"] == level
        results.append(result)
    for result in results[1:]:  # and computes the same
        assert result == pytest.approx(results[0], rel=1e-13)
    assert json.loads(run(REPORT, R2KD_SIMD="").stdout)["simd"] == levels[-1]


@pytest.mark.parametrize("value", ["avx", "AVX2"])
def test_unknown_simd_level_stops_the_import(value: str) -> None:
    completed = run(REPORT, R2KD_SIMD=value)
    last = completed.stderr.strip().splitlines()[-1]
    assert completed.returncode != 0
    assert "R2KD_SIMD must be empty or one of baseline" in last
    assert f"got '{value}'" in last


def test_level_beyond_the_processor_stops_the_import() -> None:
    missing = [level for level in LEVELS if level not in available_levels()]
    if not missing:
        pytest.skip("this processor has every level")
    completed = run(REPORT, R2KD_SIMD=missing[0])
    assert completed.returncode != 0
    assert f"got '{missing[0]}'" in completed.stderr


def test_source_folder_without_the_core(tmp_path: Path) -> None:
    """What a newcomer meets who runs Python beside the sources: the message says what to do."""
    package = Path(r2kd_ext.__file__).parent
    shutil.copytree(package, tmp_path / "r2kd_ext", ignore=shutil.ignore_patterns("_core.*"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import r2kd_ext"
    process = run(code)
    assert process.returncode == 1
    message = process.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: r2kd_ext was imported from {tmp_path}")
    assert "pip install -e ." in message
