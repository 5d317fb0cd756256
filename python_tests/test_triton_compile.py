"""Ahead-of-time compilation of the Triton kernels for the GPUs they are meant for, without one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sized
from multiprocessing.pool import AsyncResult, Pool

import pytest

pytest.importorskip("triton", reason="Triton kernels skipped: the package triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("nothing is compiled in Triton's interpreter", allow_module_level=True)

from triton_kernels import SHARED_MEMORY, Usage, all_kernels, compile_all
from triton_rank_kernels import all_rank_kernels, compile_all_ranks
from triton_sparse_kernels import all_sparse_kernels, compile_all_sparse

Results = dict[tuple[str, int], "AsyncResult[dict[str, Usage]]"]
COMPILE: dict[str, tuple[Callable[[int], dict[str, Usage]], Callable[[], Sized]]] = {
    "correlation": (compile_all, all_kernels),
    "ranks": (compile_all_ranks, all_rank_kernels),
    "sparse": (compile_all_sparse, all_sparse_kernels),
}


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    """All architectures at once, on as many processes as there are cores."""
    environment = {**os.environ}
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # no part of the code, and a third of the time
    pool: Pool
    with multiprocessing.get_context("spawn").Pool(min(3, os.cpu_count() or 1)) as pool:
        yield {
            (kind, sm): pool.apply_async(function, (sm,))
            for kind, (function, _) in COMPILE.items()
            for sm in SHARED_MEMORY
        }
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("kind", COMPILE)
def test_every_kernel_compiles_and_fits(kind: str, architecture: int, results: Results) -> None:
    """No register is spilled to memory, and no block asks for more shared memory than there is."""
    found = results[kind, architecture].get()
    assert len(found) == len(COMPILE[kind][1]()) >= 12
    for name, usage in found.items():
        assert usage.registers > 0, name
        assert usage.spilled == 0, f"{name} spills {usage.spilled} bytes on sm_{architecture}"
        assert usage.shared <= SHARED_MEMORY[architecture], f"{name}: {usage.shared} bytes shared"
        if name.startswith("pools_kernel"):
            assert usage.shared == 0, f"{name}: lanes exchange what each should keep to itself"
