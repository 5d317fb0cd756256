"""Tests of the CPU kernels, run again at a lower instruction set than the processor's best."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

import r2kd_ext

LEVELS = ("baseline", "avx2", "avx512")


def rerun(level: str, file: str, tests: Sequence[str]) -> None:
    """The named tests of a file in a process that uses `level`; skips where this one does."""
    own = r2kd_ext.build_info()["simd"]
    # These tests have run at the suite's own level, and a higher one the processor may not have.
    if LEVELS.index(level) >= LEVELS.index(own):
        pytest.skip(f"the suite itself runs at {own}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"{file}::{name}" for name in tests)],
        env={**os.environ, "R2KD_SIMD": level}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
