"""Which backend serves, for which tensors, and who may decide."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import make_logits

import r2kd_ext
from r2kd_ext import backends
from r2kd_ext.backends import Won, choose, choose_ranks, choose_sparse

CPU, CUDA, META = (torch.device(kind) for kind in ("cpu", "cuda", "meta"))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own: the environment is read at import."""
    kept = {k: v for k, v in os.environ.items() if k not in ("R2KD_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True
    )


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: True)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: False)


@pytest.fixture
def with_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_compiled", lambda: True)


@pytest.fixture
def without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_compiled", lambda: False)


def test_without_a_wish(with_triton: None) -> None:
    assert choose(None, CPU).backend == "native"
    assert choose("triton", CUDA) == ("triton", "asked for")
    assert choose(None, CUDA).backend == "reference"
    assert "not run on a GPU" in choose(None, CUDA).reason
    assert "backend='triton'" in choose(None, CUDA).reason
    assert choose(None, META) == ("reference", "no kernels for device type 'meta' in this version")


def test_without_triton(without_triton: None, without_cuda_kernels: None) -> None:
    reason = "neither CUDA kernels nor the package triton are installed"
    assert choose(None, CUDA) == ("reference", reason)
    with pytest.raises(ValueError, match=r'backend "triton" needs the package triton'):
        choose("triton", CUDA)


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="in Triton's interpreter")
def test_triton_takes_no_cpu_tensors_outside_of_the_interpreter() -> None:
    with pytest.raises(ValueError, match=r'backend "triton" takes .*TRITON_INTERPRET=1.*on cpu'):
        r2kd_ext.correlation_kd(*make_logits(2, 3), backend="triton")


def test_triton_takes_cpu_tensors_in_the_interpreter(
    with_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", CPU).backend == "triton"
    assert choose(None, CPU).backend == "native"


def test_native_takes_gpu_tensors_where_it_was_compiled_for_them(
    with_cuda_kernels: None,
) -> None:
    assert choose("native", CUDA) == ("native", "asked for")
    with pytest.raises(ValueError, match=r'backend "native" takes CPU and CUDA tensors, got .*xpu'):
        choose("native", torch.device("xpu"))


def test_native_without_cuda_kernels(without_cuda_kernels: None) -> None:
    message = r'backend "native" has no CUDA kernels .*on cuda; .*R2KD_CUDA=on.*use None'
    with pytest.raises(ValueError, match=message):
        choose("native", CUDA)


def test_a_gpu_takes_the_first_backend_that_has_won(
    with_triton: None, with_cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    won = (Won("native", 1, 4096), Won("triton", 1, 10**6))
    monkeypatch.setattr(backends, "WON", won)
    assert [choose(None, CUDA, classes).backend for classes in (100, 4096, 4097, 10**6)] == [
        "native", "native", "triton", "triton",
    ]  # fmt: skip
    assert choose(None, CUDA, 10**6 + 1).backend == "reference"
    assert choose(None, CUDA).backend == "native"  # build_info asks without a number of classes
    assert choose(None, CPU, 100).backend == "native"
    assert choose("triton", CUDA, 100).backend == "triton"
    monkeypatch.setattr(backends, "is_compiled", lambda: False)
    assert choose(None, CUDA, 100).backend == "triton"


def test_ranks_have_a_table_of_their_own(
    with_triton: None, with_cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was won by the value term says nothing about the ranks."""
    for backend in ("native", "triton", "reference"):
        assert choose_ranks(backend, CUDA) == (backend, "asked for")
    assert choose_ranks(None, CPU).backend == "native"
    assert choose_ranks(None, META).backend == "reference"
    monkeypatch.setattr(backends, "WON", (Won("native", 1, 10**6),))
    assert choose_ranks(None, CUDA, 100).backend == "reference"
    monkeypatch.setattr(backends, "WON_RANKS", (Won("triton", 1, 100),))
    assert choose_ranks(None, CUDA, 100).backend == "triton"
    assert choose_ranks(None, CUDA, 101).backend == "reference"


def test_sparse_ops_have_a_table_of_their_own(
    with_triton: None, with_cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their layers have no argument `backend`: the environment is the only wish."""
    assert choose_sparse(CPU).backend == "native"
    assert choose_sparse(CUDA).backend == "reference"
    monkeypatch.setattr(backends, "WON", (Won("native", 1, 10**6),))
    assert choose_sparse(CUDA).backend == "reference"
    monkeypatch.setattr(backends, "WON_SPARSE", (Won("triton", 1, 10**6),))
    assert choose_sparse(CUDA).backend == "triton"
    monkeypatch.setattr(backends, "WISH", "native")
    assert choose_sparse(CUDA) == ("native", "R2KD_BACKEND asks for it")
    monkeypatch.setattr(backends, "is_compiled", lambda: False)
    with pytest.raises(ValueError, match=r'R2KD_BACKEND "native" has no CUDA kernels'):
        choose_sparse(CUDA)


def test_import_takes_no_triton() -> None:
    """Importing costs nothing of Triton, and works where it cannot be imported."""
    code = """
import sys
sys.modules["triton"] = None  # an import of it raises
import torch, r2kd_ext
r2kd_ext.correlation_kd(torch.zeros(2, 3), torch.zeros(2, 3))
r2kd_ext.build_info()
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


SAYS = """
import torch, r2kd_ext
z = torch.randn(4, 5, requires_grad=True)
print(type(r2kd_ext.correlation_kd(z, z.detach()).grad_fn).__name__)
print(type(r2kd_ext.correlation_kd(z, z.detach(), backend="native").grad_fn).__name__)
print(r2kd_ext.build_info()["ops"]["correlation"]["cpu"])
"""


@pytest.mark.parametrize("wish", ["", "native", "reference"])
def test_environment_decides_where_the_caller_does_not(wish: str) -> None:
    result = python(SAYS, R2KD_BACKEND=wish)
    assert result.returncode == 0, result.stderr
    default, asked, info = result.stdout.splitlines()
    assert asked == "ContiguousCorrelationFunctionBackward"
    assert (default == asked) == (wish != "reference")
    assert f"'backend': '{wish or 'native'}'" in info
    assert ("R2KD_BACKEND" in info) == bool(wish)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            "cuda",
            "R2KD_BACKEND must be unset or one of 'native', 'triton', 'reference', got",
        ),
        ("triton", 'R2KD_BACKEND "triton" takes tensors on a GPU'),
    ],
)
def test_environment_that_does_not_fit(wish: str, message: str) -> None:
    result = python(SAYS, R2KD_BACKEND=wish)
    assert result.returncode != 0
    assert "ValueError: environment variable " + message in result.stderr
