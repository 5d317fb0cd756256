"""The Triton kernels in Triton's interpreter: the CPU kernels' cases, and cases of their own.

The interpreter takes about a tenth of a second for each small case, hence a selection.
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
    "test_correlation.py": (
        "(test_float32 and (7x13 or 1x1- or 2x1- or 1x2-)) or (test_float32 and dist and not x1000"
        " and not x32001 and not x257 and not x200) or (test_dtypes and 7x13 and (r2kd or dist))"
        " or (test_mask and 33x10)"
        " or test_mixed_dtypes or (test_float64_to_the_last_digits and (7x13 or 64x65))"
        " or (test_published and (case0 or case1)) or test_loss_without_gradient",
        90,
    ),
    "test_correlation_inputs.py": (
        "(test_layouts and 7 and (bfloat16 or float64)) or test_different_layouts or test_expanded"
        " or test_lazily_negated or test_leading_dimensions or test_no_rows or test_all_rows_masked"
        " or test_one_row_kept or test_mask_that_keeps_all or test_no_term_at_all or test_integers"
        " or test_tensor_subclass or test_offsets_beyond_32_bits or test_kernel_on_another_device",
        120,
    ),
    "test_correlation_numerics.py": (
        "(test_spread_and_temperature and 9 and not 30.0) or test_spread_in_float64"
        " or (test_outlier and student and (128 or 2-)) or (test_common_offset and dist)"
        " or test_similar_rows or test_sorted_rows"
        " or test_rows_of_equal_logits or test_all_logits_equal or (test_eps and dist)"
        " or test_minus_infinity or test_eps_zero or (test_poison and 37 and float32 and dist)"
        " or test_poison_under or test_largest_logits or test_denormal or test_float16_gradient"
        " or (test_every_half_precision and bfloat16)",
        90,
    ),
    "test_correlation_autograd.py": (
        "(test_gradcheck and True and dist) or test_create_graph_gives or test_second_backward"
        " or test_backward_does_not_scale or test_in_place_change_before or test_teacher_never"
        " or test_student_as_its_own or test_loss_scaling or test_teacher_from_inference"
        " or test_without_grad or test_graph_dies",
        18,
    ),
    "triton_correlation_checks.py": ("test", 30),
}


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with sessions_of(SELECTION) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("file", SELECTION)
def test_in_the_interpreter(file: str, sessions: Sessions) -> None:
    assert_passed(sessions[file].result(), SELECTION[file][1])
