"""The Triton kernels of ranks in Triton's interpreter: the CPU kernels' cases, and their own.

Pools are found step by step, which takes the interpreter a millisecond each: a selection of short
rows. R2KD_BACKEND=triton has `spearman` and `soft_rank` run Triton's kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from triton_sessions import Selection, Sessions, assert_passed, sessions_of

pytest.importorskip("triton", reason="Triton kernels skipped: the package triton is not installed")
pytestmark = pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="this is the interpreter's session already"
)

SELECTION: Selection = {
    "test_spearman.py": (
        "(test_formula and fused and not 4097) or (test_scipy and fused and not 1000)"
        " or (test_published and (case0 or case3)) or test_eps_is or (test_ties and fused)"
        " or (test_outliers and 40) or (test_hostile and 40) or test_hard_adds"
        " or test_rank_alone or (test_soft_formula and fused and 17)"
        " or test_mask_equals or (test_soft_gradient_against and 17- and 0.3)",
        100,
    ),
    "test_soft_rank.py": (
        "(test_formula and fused and (3- or 33-)) or (test_small and fused)"
        " or (test_large and fused) or (test_one_pool and fused) or (test_equal and fused)"
        " or (test_infinite and fused) or (test_nan and fused and 30) or (test_jacobian and fused)"
        " or (test_backward_against and 5- and (0.3 or 4.0))",
        60,
    ),
    "test_rank_inputs.py": (
        "(test_layouts and 21 and (transposed or offset) and not float16)"
        " or test_expanded or test_leading or test_mixed or (test_nan and 30)"
        " or (test_poison_as and float32) or test_nan_in_the_loss"
        " or test_all_masked or test_equal_rows or test_inference or test_teacher_gets",
        50,
    ),
    "triton_rank_checks.py": ("test", 30),
}


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with sessions_of(SELECTION, R2KD_BACKEND="triton") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("file", SELECTION)
def test_in_the_interpreter(file: str, sessions: Sessions) -> None:
    assert_passed(sessions[file].result(), SELECTION[file][1])
