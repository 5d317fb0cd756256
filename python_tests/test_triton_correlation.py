"""The Triton kernels in Triton's interpreter: the CPU kernels' cases, and cases of their own.

The interpreter takes about a tenth of a second for each small case, hence a selection.
"""

from __future__ import annotations

import os

import pytest
from triton_sessions import Selection, assert_passed, run_selection

pytest.importorskip("triton", reason="Triton kernels skipped: the package triton is not installed")
pytestmark = pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="this is the interpreter's session already"
)

# Each file's cases that reach code of the kernels which no other case here reaches. Every setting
# once, every shape by Pearson's correlation, which needs more; the checks have the rest.
SELECTION: Selection = {
    "test_correlation.py": (
        "(test_float32 and (7x13 or ((1x1- or 2x1- or 1x2- or 33x10) and dist)))"
        " or (test_dtypes and 7x13 and dist) or (test_mask and 33x10 and dist)"
        " or (test_mixed_dtypes and (bfloat16-float32 or float64-float16 or float32-float64))"
        " or (test_float64_to_the_last_digits and 7x13)"
    ),
    "test_correlation_inputs.py": (
        "(test_layouts and 7 and bfloat16) or (test_different_layouts and transposed)"
        " or test_expanded or test_lazily_negated or (test_all_rows_masked and float32)"
        " or test_no_rows or test_one_row_kept or test_no_term_at_all"
        " or test_offsets_beyond_32_bits or test_kernel_on_another_device"
    ),
    "test_correlation_numerics.py": (
        "(test_spread_and_temperature and 9 and dist and not 30.0) or test_spread_in_float64"
        " or (test_outlier and student and 2-) or (test_common_offset and dist)"
        " or test_rows_of_equal_logits or test_all_logits_equal"
        " or (test_eps and dist) or test_minus_infinity or test_eps_zero"
        " or (test_poison and 37 and float32 and dist) or (test_poison_under and float32)"
        " or test_largest_logits or test_denormal or test_float16_gradient"
        " or (test_every_half_precision and bfloat16)"
    ),
    "test_correlation_autograd.py": (
        "test_create_graph_gives or test_backward_does_not_scale or test_student_as_its_own"
    ),
    "triton_correlation_checks.py": "test",
}


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    assert_passed(run_selection(SELECTION), 110)
