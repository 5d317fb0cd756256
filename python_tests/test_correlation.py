"""The kernels over the whole grid: as near to the truth as the eager reference, plus rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    Setting,
    Shape,
    each_dtype,
    each_of_few_shapes,
    each_setting,
    each_shape,
    every_kernel,
    loss_of,
    make_logits,
    make_mask,
)
from compare import assert_true, run
from test_reference import CASES, DIST, PUBLISHED, published_logits, relative


@every_kernel
@each_setting
@each_shape
def test_float32(shape: Shape, setting: Setting, backend: str) -> None:
    student, teacher = make_logits(shape.rows, shape.classes)
    got = run(loss_of(backend), student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)


@every_kernel
@each_setting
@each_of_few_shapes
@each_dtype
def test_dtypes(shape: Shape, setting: Setting, dtype: torch.dtype, backend: str) -> None:
    student, teacher = make_logits(shape.rows, shape.classes, dtype=dtype)
    got = run(loss_of(backend), student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)


@every_kernel
@each_setting
@each_shape
def test_mask(shape: Shape, setting: Setting, backend: str) -> None:
    student, teacher = make_logits(shape.rows, shape.classes)
    options = {**setting.options, "mask": make_mask(shape.rows)}
    got = run(loss_of(backend), student, teacher, **options)
    assert_true(got, student, teacher, **options)


@every_kernel
@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=lambda d: f"teacher-{d}"[14:])
@each_dtype
def test_mixed_dtypes(dtype: torch.dtype, teacher_dtype: torch.dtype, backend: str) -> None:
    """Accumulates in the wider of both, and the gradient has the student's dtype."""
    student, teacher = make_logits(12, 75, dtype=dtype, teacher_dtype=teacher_dtype)
    got = run(loss_of(backend), student, teacher)
    assert_true(got, student, teacher)


@every_kernel
@each_of_few_shapes
def test_float64_to_the_last_digits(shape: Shape, backend: str) -> None:
    """A float32 constant or accumulator anywhere in the float64 path would show here."""
    student, teacher = make_logits(shape.rows, shape.classes, dtype=torch.float64)
    options = {"temperature": 1.7, "inter_weight": 0.1, "intra_weight": 0.3, "eps": 1e-3}
    got = run(loss_of(backend), student, teacher, **options)
    assert_true(got, student, teacher, **options)


@every_kernel
@pytest.mark.parametrize("case", CASES)
def test_published_r2kd(case: str, backend: str) -> None:
    temperature = float(PUBLISHED[f"{case}/temperature"])
    got = run(loss_of(backend), *published_logits(case), temperature=temperature)
    assert relative(got.loss.numpy(), PUBLISHED[f"{case}/value_loss"]) < 1e-10
    assert relative(got.grad.numpy(), PUBLISHED[f"{case}/value_grad"]) < 1e-10
    student, teacher = (x.float() for x in published_logits(case))
    got = run(loss_of(backend), student, teacher, temperature=temperature)
    assert_true(got, student, teacher, temperature=temperature)


@every_kernel
@pytest.mark.parametrize("case", [c for c in CASES if f"{c}/dist_loss" in PUBLISHED])
def test_published_dist(case: str, backend: str) -> None:
    got = run(loss_of(backend), *published_logits(case), **DIST)
    assert relative(got.loss.numpy(), PUBLISHED[f"{case}/dist_loss"]) < 1e-10
    assert relative(got.grad.numpy(), PUBLISHED[f"{case}/dist_grad"]) < 1e-10
    student, teacher = (x.float() for x in published_logits(case))
    got = run(loss_of(backend), student, teacher, **DIST)
    assert_true(got, student, teacher, **DIST)


@every_kernel
def test_loss_without_gradient(backend: str) -> None:
    """A forward that needs no gradient may take another path; it must give the same bits."""
    student, teacher = make_logits(64, 100)
    with_gradient = run(loss_of(backend), student, teacher).loss
    assert loss_of(backend)(student, teacher).item() == with_gradient.item()
    with torch.no_grad():
        assert loss_of(backend)(student.requires_grad_(), teacher).item() == with_gradient.item()


def test_published_cases_are_all_there() -> None:
    assert sum(key.endswith("value_loss") for key in PUBLISHED) == 6
    assert sum(key.endswith("dist_loss") for key in PUBLISHED) == 5
    assert np.isfinite(PUBLISHED["case3/value_grad"]).all()
