"""tools/gpu_check.py, as far as it goes without a GPU: steps, their outcomes and limits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "gpu_check.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: gpu-check needs an NVIDIA GPU, and torch sees none\n"


def test_outcomes(tool: ModuleType, tmp_path: Path) -> None:
    codes = {
        "good": "import os; print(os.environ['COLOUR'])",
        "bad": "print('why'); raise SystemExit(3)",
        "slow": "import subprocess; subprocess.run(['sleep', '60'])",
    }
    steps = [
        tool.Step(name, [sys.executable, "-c", code], tmp_path, {"COLOUR": "green"})
        for name, code in codes.items()
    ]
    good, bad, slow = tool.run_together(steps, 3.0)
    assert (good.result, good.last) == ("passed", "green")
    assert (bad.result, bad.last) == ("failed", "ended with 3: why")
    assert slow.result == "failed"
    assert slow.last.startswith("took more than 3 s")


def test_the_limits_leave_it_below_nine_minutes(tool: ModuleType) -> None:
    assert tool.BUILD + tool.TESTS + tool.SANITIZED + tool.BENCHMARK <= 9 * 60 - 15
    names = [step.name for step in tool.tests() + tool.sanitized("compute-sanitizer")]
    assert len(set(names)) == len(names)
    for name in ("correlation_gpu", "correlation_cuda", "teacher_gpu", "fused_linear_gpu"):
        assert all(f"test_{name}.py" in step.command for step in tool.tests())
    for tool_name in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"{tool_name} of native" in names
