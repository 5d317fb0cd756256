"""Extreme logits: spreads, temperatures, -inf, NaN, +inf, rows without variation, long sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    Setting,
    each_dtype,
    each_setting,
    every_backend,
    every_kernel,
    generator,
    loss_of,
    make_logits,
    make_mask,
)
from compare import assert_true, eager_of, flat, run, truth_of
from torch import Tensor

INF, NAN = torch.inf, torch.nan

each_correlation = pytest.mark.parametrize("correlation", ["cosine", "pearson"])


@every_kernel
@each_correlation
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("shape", [(9, 37), (3, 1000), (700, 4)], ids=str)
def test_spread_and_temperature(
    shape: tuple[int, int], spread: float, temperature: float, correlation: str, backend: str
) -> None:
    student, teacher = make_logits(*shape, spread=spread)
    options: dict[str, Any] = {"temperature": temperature, "correlation": correlation}
    got = run(loss_of(backend), student, teacher, **options)
    assert_true(got, student, teacher, **options)


@every_kernel
@each_correlation
@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_spread_in_float64(spread: float, correlation: str, backend: str) -> None:
    """Nothing in the float64 path may be tuned to the digits or the exponents of float32."""
    student, teacher = make_logits(9, 37, spread=spread, dtype=torch.float64)
    got = run(loss_of(backend), student, teacher, correlation=correlation)
    assert_true(got, student, teacher, correlation=correlation)


@every_kernel
@each_correlation
@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_outlier_in_each_row_of_a_column(
    of: str, rows: int, correlation: str, backend: str
) -> None:
    """A column moment must not lose the many small entries beside a large one, wherever it is.

    At T = 1 a column typically is one sample of that class among many others. Each column here has
    its outlier in another row: the first, the last and those around blocks of rows among them.
    """
    student, teacher = make_logits(rows, 40)
    for column, row in enumerate(np.linspace(0, rows - 1, 40).round().astype(int)):
        logits = student if of == "student" else teacher
        logits[:, column] -= 4
        logits[row, column] = 12
    options: dict[str, Any] = {"temperature": 1.0, "correlation": correlation}
    for weights in ({}, {"inter_weight": 0.0}):
        got = run(loss_of(backend), student, teacher, **options, **weights)
        assert_true(got, student, teacher, **options, **weights)


@every_kernel
@each_setting
@pytest.mark.parametrize("offset", [-1e4, 300.0, 1e6])
def test_common_offset(offset: float, setting: Setting, backend: str) -> None:
    """exp of the logits themselves would overflow or vanish."""
    student, teacher = make_logits(8, 50)
    student, teacher = student + offset, teacher - offset
    got = run(loss_of(backend), student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)


@every_kernel
@each_correlation
@pytest.mark.parametrize("shape", [(2, 300_001), (60_001, 5), (513, 513)], ids=str)
def test_long_sums(shape: tuple[int, int], correlation: str, backend: str) -> None:
    student, teacher = make_logits(*shape)
    got = run(loss_of(backend), student, teacher, correlation=correlation)
    assert_true(got, student, teacher, correlation=correlation)


@every_kernel
@each_correlation
def test_similar_rows(correlation: str, backend: str) -> None:
    """All rows nearly alike: the centred columns are small differences, block after block."""
    student, teacher = make_logits(1000, 12)
    student, teacher = (x[:1] + 1e-3 * x for x in (student, teacher))
    got = run(loss_of(backend), student, teacher, temperature=1.0, correlation=correlation)
    assert_true(got, student, teacher, temperature=1.0, correlation=correlation)


@every_kernel
@each_correlation
def test_sorted_rows(correlation: str, backend: str) -> None:
    """Rows that drift along the batch: the first rows are far from the mean of the columns."""
    student, teacher = make_logits(1000, 12)
    drift = torch.linspace(-6, 6, 1000).unsqueeze(1) * torch.linspace(-1, 1, 12)
    student, teacher = student * 0.1 + drift, teacher * 0.1 + drift
    got = run(loss_of(backend), student, teacher, temperature=1.0, correlation=correlation)
    assert_true(got, student, teacher, temperature=1.0, correlation=correlation)


@every_kernel
@each_correlation
@pytest.mark.parametrize("of", ["student", "teacher", "both"])
def test_rows_of_equal_logits(of: str, correlation: str, backend: str) -> None:
    """p is uniform: centred moments are 0, and rounding must not make a correlation of them."""
    student, teacher = make_logits(16, 24)
    if of != "teacher":
        student[3:9] = 7.25
    if of != "student":
        teacher[5:12] = -0.5
    got = run(loss_of(backend), student, teacher, correlation=correlation)
    assert_true(got, student, teacher, correlation=correlation)


@every_kernel
@each_correlation
def test_all_logits_equal(correlation: str, backend: str) -> None:
    student, teacher = torch.full((6, 8), 3.0), torch.full((6, 8), -2.0)
    got = run(loss_of(backend), student, teacher, correlation=correlation)
    assert_true(got, student, teacher, correlation=correlation)
    expected = 0.0 if correlation == "cosine" else 64.0
    assert got.loss.item() == pytest.approx(expected, abs=1e-4)


@every_kernel
@each_setting
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1.0, 1e3])
def test_eps(eps: float, setting: Setting, backend: str) -> None:
    student, teacher = make_logits(11, 19)
    options = {**setting.options, "eps": eps}
    got = run(loss_of(backend), student, teacher, **options)
    assert_true(got, student, teacher, **options)


def ruled_out(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits with -inf in every pattern: alone, in common, a whole column, all but one class."""
    student, teacher = make_logits(rows, classes)
    keep = torch.rand(2, rows, classes, generator=generator("keep", rows, classes)) < 0.8
    keep[:, :, 0] = True  # no row is without a class
    student, teacher = student.where(keep[0], -INF), teacher.where(keep[1], -INF)
    student[:, 3], teacher[:, 4] = -INF, -INF
    student[:, 5], teacher[:, 5] = -INF, -INF
    student[1, 1:], teacher[2, 1:] = -INF, -INF
    return student, teacher


@every_backend
@each_setting
def test_minus_infinity(setting: Setting, backend: str) -> None:
    """Legal logits: p = 0, gradient exactly 0."""
    student, teacher = ruled_out(14, 35)
    got = run(loss_of(backend), student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)
    assert (got.grad[student == -INF] == 0).all()
    assert got.grad.isfinite().all()


@every_backend
@each_dtype
def test_minus_infinity_in_each_dtype(dtype: torch.dtype, backend: str) -> None:
    student, teacher = (x.to(dtype) for x in ruled_out(14, 35))
    got = run(loss_of(backend), student, teacher)
    assert_true(got, student, teacher)


@every_kernel
@each_correlation
def test_eps_zero_and_a_dead_column(correlation: str, backend: str) -> None:
    """0 / 0 in one column: the reference is NaN everywhere, so is a kernel."""
    student, teacher = ruled_out(14, 35)
    options = {"eps": 0.0, "correlation": correlation}
    got = run(loss_of(backend), student, teacher, **options)
    expected = eager_of(student, teacher, **options)
    assert expected.loss.isnan()
    assert got.loss.isnan()
    assert torch.equal(got.grad.isnan(), expected.grad.isnan())


POISON = {
    "NaN in the student": ("student", NAN),
    "NaN in the teacher": ("teacher", NAN),
    "+inf in the student": ("student", INF),
    "+inf in the teacher": ("teacher", INF),
    "a row of -inf in the student": ("student", -INF),
    "a row of -inf in the teacher": ("teacher", -INF),
}


@every_kernel
@each_setting
@each_dtype
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("classes", [3, 37])
def test_poison(
    classes: int, poison: str, dtype: torch.dtype, setting: Setting, backend: str
) -> None:
    """NaN exactly where the reference has it; where the reference is finite, the right number."""
    student, teacher = make_logits(9, classes, dtype=dtype)
    of, value = POISON[poison]
    logits = student if of == "student" else teacher
    for row, column in ((4, 0), (6, classes - 1)):  # in the first and in the last, partial vector
        logits[row, slice(None) if value == -INF else column] = value
    got = run(loss_of(backend), student, teacher, **setting.options)
    expected = eager_of(student, teacher, **setting.options)
    assert expected.loss.isnan()
    assert got.loss.isnan()
    assert torch.equal(got.grad.isnan(), expected.grad.isnan())
    if not expected.grad.isnan().all():  # the row term alone: other rows are not touched
        assert_true(got, student, teacher, **setting.options)


@every_kernel
@each_setting
def test_poison_under_the_mask(setting: Setting, backend: str) -> None:
    """Rows that do not count may hold anything: the result is that of any other content."""
    student, teacher = make_logits(9, 37)
    mask = make_mask(9)
    dead = (~mask).nonzero().flatten().tolist()
    clean = run(loss_of(backend), student, teacher, **setting.options, mask=mask)
    for row, (of, value) in zip(dead, POISON.values(), strict=False):
        (student if of == "student" else teacher)[row] = value
    assert len(dead) >= 2
    got = run(loss_of(backend), student, teacher, **setting.options, mask=mask)
    assert got.loss.item() == clean.loss.item()
    assert torch.equal(got.grad, clean.grad)
    assert (got.grad[~mask] == 0).all()


@every_kernel
@each_correlation
@pytest.mark.parametrize("largest", [3e38, 65504.0])
def test_largest_logits(largest: float, correlation: str, backend: str) -> None:
    """z - max overflows to -inf, which is a class of probability 0."""
    student, teacher = make_logits(5, 21)
    student[0, 3], student[1, 4], student[2] = largest, -largest, -largest
    student[2, 20] = largest
    teacher[3, 0], teacher[4, 1], teacher[2, 20] = largest, -largest, -largest
    got = run(loss_of(backend), student, teacher, correlation=correlation)
    assert got.grad.isfinite().all()
    assert_true(got, student, teacher, correlation=correlation)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormal_logits(dtype: torch.dtype, backend: str) -> None:
    smallest = float(torch.finfo(dtype).smallest_normal)
    student, teacher = (x * smallest / 16 for x in make_logits(5, 21, dtype=dtype))
    got = run(loss_of(backend), student, teacher)
    assert_true(got, student, teacher)


@every_kernel
def test_float16_gradient_that_is_denormal(backend: str) -> None:
    """float16 holds nothing below 6e-8, and few digits below 6e-5."""
    student, teacher = make_logits(64, 200, dtype=torch.float16)
    got = run(loss_of(backend), student, teacher, inter_weight=1e-2, intra_weight=0.0)
    small = got.grad.abs()
    assert ((small > 0) & (small < torch.finfo(torch.float16).smallest_normal)).sum() > 1000
    assert_true(got, student, teacher, inter_weight=1e-2, intra_weight=0.0)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_logit(dtype: torch.dtype, backend: str) -> None:
    """Each of the 65536 bit patterns is read as the number that it is, NaN and inf included."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    student = bits.view(dtype).reshape(-1, 1)  # [65536, 1]
    student = torch.cat([student, torch.zeros_like(student)], dim=1)  # [65536, 2]
    teacher = torch.tensor([[1.0, 0.0]]).expand(2**16, 2)
    options: dict[str, Any] = {"temperature": 1.0, "intra_weight": 0.0}
    got = run(loss_of(backend), student, teacher, **options)
    expected = run(loss_of("reference"), student, teacher, **options)
    assert torch.equal(got.grad.isnan(), expected.grad.isnan())
    keep = student.isfinite().all(dim=1) | (student == -INF).any(dim=1)
    assert torch.equal(got.grad.isnan().any(dim=1), ~keep)
    got = run(loss_of(backend), student[keep], teacher[keep], **options)
    assert_true(got, student[keep], teacher[keep], **options)


@every_kernel
def test_floating_point_state_is_left_alone(backend: str) -> None:
    """A kernel that flushes denormals must not leave the caller's thread doing so."""
    student, teacher = make_logits(64, 100)
    run(loss_of(backend), student, teacher)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny) / 2
    assert smallest.item() > 0
    assert np.float32(1e-38) / np.float32(4) > 0


def test_truth_of_extremes_is_finite() -> None:
    """The truth that the cases above compare with is a number where it should be one."""
    for spread in (1e-3, 1e3):
        truth = truth_of(*make_logits(9, 37, spread=spread), temperature=0.1)
        assert np.isfinite(truth.grad).all()
        assert np.isfinite(truth.grad_rounding).all()
    truth = truth_of(*ruled_out(14, 35))
    assert np.isfinite(truth.loss)
    assert np.isfinite(flat(torch.from_numpy(truth.grad))).all()


@pytest.mark.parametrize("grad_loss", [1e-30, 1.0, 1e30])
def test_bfloat16_gradient_is_rounded_once(grad_loss: float) -> None:
    """Against float32's gradient of the same logits, within half a unit of bfloat16's last place
    and the few roundings of float32 that the two may be apart; all lengths of the last register,
    and a row of NaN."""
    for cols in (*range(1, 35), 1000):
        student, teacher = make_logits(16, cols, dtype=torch.bfloat16)
        student[5, cols // 2] = NAN

        def gradient(dtype: torch.dtype, x: Tensor = student, y: Tensor = teacher) -> Tensor:
            leaf = x.to(dtype).requires_grad_()
            loss = loss_of("native")(leaf, y.to(dtype), intra_weight=0.0)
            (grad,) = torch.autograd.grad(loss, leaf, torch.tensor(grad_loss))
            return grad

        got, wide = gradient(torch.bfloat16), gradient(torch.float32)
        assert torch.equal(got.isnan(), wide.isnan())
        assert got[5].isnan().all()
        exact = wide.double()
        half_unit = torch.ldexp(torch.tensor(0.5, dtype=torch.float64), torch.frexp(exact)[1] - 8)
        apart = 2**-20 * exact.abs().amax(dim=1, keepdim=True)
        error = (got.double() - exact).abs()
        assert (error <= half_unit + apart)[~got.isnan()].all()
