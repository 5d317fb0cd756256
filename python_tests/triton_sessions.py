"""Test sessions in Triton's interpreter.

Triton decides on the interpreter when it sees a kernel, so these are processes of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# File -> what of it the interpreter runs.
Selection = dict[str, str]


def run_selection(selection: Selection, **environment: str) -> subprocess.CompletedProcess[str]:
    """All files in one process: starting one takes as long as 20 small cases."""
    expression = " or ".join(f"({file} and ({cases}))" for file, cases in selection.items())
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", expression,
         *(str(HERE / file) for file in selection)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True,
    )  # fmt: skip


def assert_passed(result: subprocess.CompletedProcess[str], least: int) -> None:
    """Raise AssertionError unless all passed, none was skipped, and there were `least` of them."""
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, result.stdout
    assert "skipped" not in result.stdout, result.stdout
