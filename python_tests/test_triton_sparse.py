"""The sparse layers' Triton kernels in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
from triton_sessions import assert_passed, run_selection

pytest.importorskip("triton", reason="Triton kernels skipped: the package triton is not installed")
pytestmark = pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="this is the interpreter's session already"
)


def test_in_the_interpreter() -> None:
    assert_passed(run_selection({"triton_sparse_checks.py": "test"}), 30)
