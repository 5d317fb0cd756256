"""Test sessions in Triton's interpreter.

Triton decides on the interpreter when it sees a kernel, so these are processes of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent

# File -> what of it the interpreter runs, and at least how many cases that must be.
Selection = dict[str, tuple[str, int]]
Sessions = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def _session(
    file: str, expression: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file),
         "-k", expression],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True,
    )  # fmt: skip


@contextmanager
def sessions_of(selection: Selection, **environment: str) -> Iterator[Sessions]:
    """As many at a time as there are cores; the interpreter uses one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            file: pool.submit(_session, file, expression, environment)
            for file, (expression, _) in selection.items()
        }


def assert_passed(result: subprocess.CompletedProcess[str], least: int) -> None:
    """Raise AssertionError unless all passed, none was skipped, and there were `least` of them."""
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, result.stdout
    assert "skipped" not in result.stdout, result.stdout
