"""The specification itself, against the published figures, the formula and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Setting, Shape, each_setting, each_shape, make_logits, make_mask
from compare import run, truth_of
from scipy import stats
from scipy.spatial import distance
from torch import Tensor

from r2kd_ext import reference

PUBLISHED = np.load(Path(__file__).parent / "data" / "loss_vectors.npz")
CASES = [f"case{i}" for i in range(6)]
DIST: dict[str, Any] = {
    "temperature": 1.0,
    "correlation": "pearson",
    "inter_weight": 1.0,
    "intra_weight": 1.0,
    "temperature_scaling": False,
}


def published_logits(case: str) -> tuple[Tensor, Tensor]:
    student, teacher = (PUBLISHED[f"{case}/{who}"] for who in ("student", "teacher"))
    return torch.from_numpy(student).double(), torch.from_numpy(teacher).double()


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(np.asarray(found - expected)) / np.linalg.norm(expected))


@pytest.mark.parametrize("case", CASES)
def test_published_r2kd(case: str) -> None:
    got = run(
        reference.correlation_kd,
        *published_logits(case),
        temperature=float(PUBLISHED[f"{case}/temperature"]),
    )
    assert relative(got.loss.numpy(), PUBLISHED[f"{case}/value_loss"]) < 1e-12
    assert relative(got.grad.numpy(), PUBLISHED[f"{case}/value_grad"]) < 1e-12


@pytest.mark.parametrize("case", [c for c in CASES if f"{c}/dist_loss" in PUBLISHED])
def test_published_dist(case: str) -> None:
    got = run(reference.correlation_kd, *published_logits(case), **DIST)
    assert relative(got.loss.numpy(), PUBLISHED[f"{case}/dist_loss"]) < 1e-12
    assert relative(got.grad.numpy(), PUBLISHED[f"{case}/dist_grad"]) < 1e-12


@each_setting
@each_shape
@pytest.mark.parametrize("masked", [False, True])
def test_formula(shape: Shape, setting: Setting, masked: bool) -> None:
    """In float64 as exact as float64 allows, by the independent formula in extended precision.

    A sum over 32001 elements takes more than one rounding, hence not one but four.
    """
    student, teacher = make_logits(shape.rows, shape.classes, dtype=torch.float64)
    options = {**setting.options, "mask": make_mask(shape.rows) if masked else None}
    got = run(reference.correlation_kd, student, teacher, **options)
    truth = truth_of(student, teacher, **options)
    assert abs(got.loss.numpy() - truth.loss) <= 4 * truth.loss_rounding
    assert (abs(got.grad.numpy() - truth.grad) <= 4 * truth.grad_rounding).all()


def test_scipy_pearson() -> None:
    """Rows and columns, each against scipy's own correlation coefficient."""
    student, teacher = make_logits(9, 14, dtype=torch.float64)
    p, q = (torch.softmax(x, dim=1).numpy() for x in (student, teacher))
    common = {**DIST, "eps": 0.0}
    rows = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    got = reference.correlation_kd(student, teacher, **{**common, "intra_weight": 0.0})
    assert got.item() == pytest.approx(rows, rel=1e-13)
    got = reference.correlation_kd(student, teacher, **{**common, "inter_weight": 0.0})
    assert got.item() == pytest.approx(columns, rel=1e-13)


def test_scipy_cosine() -> None:
    """The defaults against scipy's cosine distance of scipy-free softmaxes at T = 4."""
    student, teacher = make_logits(9, 14, dtype=torch.float64)
    p, q = (torch.softmax(x / 4, dim=1).numpy() for x in (student, teacher))
    rows = np.mean([distance.cosine(a, b) for a, b in zip(p, q, strict=True)])
    columns = np.mean([distance.cosine(a, b) for a, b in zip(p.T, q.T, strict=True)])
    got = reference.correlation_kd(student, teacher, eps=0.0)
    assert got.item() == pytest.approx(4**2 * 2 * (rows + columns), rel=1e-13)


@each_setting
@pytest.mark.parametrize("masked", [False, True])
def test_finite_differences(setting: Setting, masked: bool) -> None:
    """First and second derivatives."""
    student, teacher = make_logits(5, 4, spread=1.0, dtype=torch.float64)
    student.requires_grad_()
    options = {**setting.options, "mask": torch.tensor([1, 1, 0, 1, 1]).bool() if masked else None}

    def loss(z: Tensor) -> Tensor:
        return reference.correlation_kd(z, teacher, **options)

    assert torch.autograd.gradcheck(loss, student)
    assert torch.autograd.gradgradcheck(loss, student)
