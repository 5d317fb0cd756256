"""The Triton kernels of ranks in Triton's interpreter: the CPU kernels' cases, and their own.

Pools are found step by step, which takes the interpreter a millisecond each: a selection of short
rows. R2KD_BACKEND=triton has `spearman` and `soft_rank` run Triton's kernels.
"""

from __future__ import annotations

import os

import pytest
from triton_sessions import Selection, assert_passed, run_selection

pytest.importorskip("triton", reason="Triton kernels skipped: the package triton is not installed")
pytestmark = pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="this is the interpreter's session already"
)

# The definitions (scipy, the minimax formula, exact pools) in the type that shows most, and special
# rows. Dtypes, layouts, masks and longer rows are compared with the CPU's kernels in the checks.
SELECTION: Selection = {
    "test_spearman.py": (
        "(test_formula and fused and 100-float32) or (test_scipy and fused and 14)"
        " or (test_published and case0) or test_eps_is or (test_ties and fused)"
        " or test_hard_adds or test_rank_alone or (test_soft_formula and fused and 17-0.3-float32)"
        " or (test_soft_gradient_against and 17-0.3-dtype0)"
    ),
    "test_soft_rank.py": (
        "(test_formula and fused and 33- and float32) or (test_small and fused)"
        " or (test_equal and fused) or (test_infinite and fused)"
        " or (test_jacobian and fused) or (test_backward_against and 5-0.3)"
    ),
    "triton_rank_checks.py": "test",
}


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    assert_passed(run_selection(SELECTION, R2KD_BACKEND="triton"), 35)
