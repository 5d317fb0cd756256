"""tools/cuda_check.py: what it reads from the compiler, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "cuda_check.py"
OUTPUT = """
ptxas info    : Compiling entry function '_ZN4r2kd4cuda38_GLOBAL__N__1f_7_tile_cu_a747a99411tile\
_kernelIf6__halfEEvNS1_8TileTaskIT_EE' for 'sm_90a'
ptxas info    : Function properties for _ZN4r2kd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 680 bytes smem
ptxas info    : Compiling entry function '_ZN4r2kd4cuda38_GLOBAL__N__1f_7_rows_cu_a747a99411rows\
_kernelIfNS0_3AnyEEEvNS1_8RowsTaskIT_EE' for 'sm_80'
ptxas info    : Function properties for _ZN4r2kd
    24 bytes stack frame, 32 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN4r2kd4cuda49_GLOBAL__N__1_16_hard_spearman_cu_0420\
hard_spearman_kernelIdLi2048EEEvNS1_8HardTaskIT_EE' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 58 registers, used 1 barriers, 33024 bytes smem
ptxas info    : Compiling entry function '_ZN4r2kd4cuda46_GLOBAL__N__c7_13_csr_conv2d_cu_84576c7217\
csr_conv2d_kernelI13__nv_bfloat16Li8EEEvNS1_10Conv2dTaskE' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 120 registers, used 1 barriers, 704 bytes cmem[0]
"""


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_compiler_says(tool: ModuleType) -> None:
    assert tool.parse(OUTPUT) == {
        "sm_90a": {"tile_kernel<float, half>": (64, 680, 0)},
        "sm_80": {
            "rows_kernel<float, any>": (40, 0, 60),
            "hard_spearman_kernel<double, 2048>": (58, 33024, 0),
            "csr_conv2d_kernel<bfloat16, 8>": (120, 0, 0),
        },
    }


def test_a_spill_and_a_missing_kernel_are_problems(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tool.report(tool.parse(OUTPUT))
    assert "rows_kernel<float, any> spills on sm_80: 60 bytes" in problems
    assert "tile_kernel<float, half> was not compiled for sm_80" in problems
    assert len(problems) == 5
    assert "missing" in capsys.readouterr().out
    assert tool.report({"sm_90a": tool.parse(OUTPUT)["sm_90a"]}) == []


def test_without_nvcc(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CUDACXX"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], env={**environment, "PATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout.startswith("cuda-check skipped: nvcc was not found")
