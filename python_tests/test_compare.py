"""The comparators reject what is wrong: each mistake here is one that a kernel could make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import SETTINGS, Setting, Shape, each_of_few_shapes, each_setting, make_logits, make_mask
from compare import Outcome, assert_same_bits, assert_true, eager_of, run, truth_of
from formula import value_term
from torch import Tensor

from r2kd_ext import reference

ROWS, CLASSES = 12, 37


def right(dtype: torch.dtype = torch.float32) -> tuple[Outcome, Tensor, Tensor]:
    """The truth rounded to a dtype, and its inputs."""
    student, teacher = make_logits(ROWS, CLASSES, dtype=dtype)
    truth = truth_of(student, teacher)
    loss = torch.tensor(float(truth.loss), dtype=torch.promote_types(dtype, torch.float32))
    return (
        Outcome(loss, torch.from_numpy(truth.grad.astype(np.float64)).to(dtype)),
        student,
        teacher,
    )


def typical(grad: Tensor) -> tuple[int, int]:
    """Where the gradient has its median magnitude."""
    at = int(grad.abs().flatten().argsort()[grad.numel() // 2])
    return at // grad.shape[1], at % grad.shape[1]


def change(grad: Tensor, value: Callable[[Tensor], Tensor | float]) -> Tensor:
    """The gradient with another value at its typical element."""
    at, grad = typical(grad), grad.clone()
    grad[at] = value(grad[at])
    return grad


WRONG_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "relative error of 1e-5": lambda x: x * (1 + 1e-5),
    "sign": lambda x: -x,
    "without T^2": lambda x: x / 16,
    "zero": lambda x: x * 0,
    "NaN": lambda x: x * torch.nan,
    "infinite": lambda x: x * torch.inf,
    "float64": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
    "shape (1,)": lambda x: x.reshape(1),
}

WRONG_GRAD: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled by 1 + 1e-4": lambda g: g * (1 + 1e-4),
    "scaled by 2": lambda g: g * 2,
    "sign": lambda g: -g,
    "zero": torch.zeros_like,
    "shifted by a thousandth of its typical size": lambda g: g + g.abs().median() * 1e-3,
    "one class further": lambda g: g.roll(1, dims=1),
    "one row further": lambda g: g.roll(1, dims=0),
    "last row missing": lambda g: torch.cat([g[:-1], g[-1:] * 0]),
    "last class missing": lambda g: torch.cat([g[:, :-1], g[:, -1:] * 0], dim=1),
    "one element off by 1e-3": lambda g: change(g, lambda x: x * (1 + 1e-3)),
    "one element of the other sign": lambda g: change(g, lambda x: -x),
    "one element zero": lambda g: change(g, lambda x: 0.0),
    "one element NaN": lambda g: change(g, lambda x: torch.nan),
    "one element infinite": lambda g: change(g, lambda x: torch.inf),
    "all NaN": lambda g: g * torch.nan,
    "rounded to bfloat16": lambda g: g.bfloat16().float(),
    "rounded to float16": lambda g: g.half().float(),
    "float64": lambda g: g.double(),
    "transposed": lambda g: g.T,
    "flat": lambda g: g.flatten(),
}


def test_truth_is_accepted() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert_true(*right(dtype))


@pytest.mark.parametrize("mistake", WRONG_LOSS)
def test_wrong_loss(mistake: str) -> None:
    got, student, teacher = right()
    with pytest.raises(AssertionError):
        assert_true(got._replace(loss=WRONG_LOSS[mistake](got.loss)), student, teacher)


@pytest.mark.parametrize("mistake", WRONG_GRAD)
def test_wrong_grad(mistake: str) -> None:
    got, student, teacher = right()
    with pytest.raises(AssertionError):
        assert_true(got._replace(grad=WRONG_GRAD[mistake](got.grad)), student, teacher)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "mistake", [m for m in WRONG_GRAD if m.split()[-1] not in ("1e-4", "1e-3", "size", "float16")]
)
def test_wrong_narrow_grad(mistake: str, dtype: torch.dtype) -> None:
    """What a narrow gradient can show; "rounded to bfloat16" widens it to float32 here."""
    got, student, teacher = right(dtype)
    with pytest.raises(AssertionError):
        assert_true(got._replace(grad=WRONG_GRAD[mistake](got.grad)), student, teacher)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_grad_rounded_twice_the_wrong_way(dtype: torch.dtype) -> None:
    """One unit in the last place of a narrow gradient: truncation is not rounding."""
    got, student, teacher = right(dtype)
    off = change(got.grad, lambda x: x + x * torch.finfo(dtype).eps)
    with pytest.raises(AssertionError):
        assert_true(got._replace(grad=off), student, teacher)


@each_setting
@each_of_few_shapes
def test_tight_on_the_grid(shape: Shape, setting: Setting) -> None:
    """The reference passes on the grid; one typical element off by 1e-3 does not."""
    student, teacher = make_logits(shape.rows, shape.classes)
    got = run(reference.correlation_kd, student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)
    wrong = got._replace(grad=change(got.grad, lambda x: x * (1 + 1e-3)))
    with pytest.raises(AssertionError, match="gradient elements"):
        assert_true(wrong, student, teacher, **setting.options)
    wrong = got._replace(loss=got.loss * (1 + 1e-3))
    with pytest.raises(AssertionError, match="loss"):
        assert_true(wrong, student, teacher, **setting.options)


@each_setting
def test_other_settings_are_rejected(setting: Setting) -> None:
    """No setting passes for another: each option has an effect that the comparators see."""
    student, teacher = make_logits(ROWS, CLASSES)
    got = run(reference.correlation_kd, student, teacher, **setting.options)
    for other in SETTINGS:
        if other.name != setting.name:
            with pytest.raises(AssertionError):
                assert_true(got, student, teacher, **other.options)


def test_wrong_rows_are_rejected() -> None:
    """Teacher for student, a forgotten mask, and masked rows that still count."""
    student, teacher = make_logits(ROWS, CLASSES)
    mask = make_mask(ROWS)
    plain = run(reference.correlation_kd, student, teacher)
    with pytest.raises(AssertionError):
        assert_true(run(reference.correlation_kd, teacher, student), student, teacher)
    with pytest.raises(AssertionError):
        assert_true(plain, student, teacher, mask=mask)
    masked = run(reference.correlation_kd, student, teacher, mask=mask)
    share = float(mask.sum()) / ROWS
    with pytest.raises(AssertionError):
        assert_true(masked._replace(loss=masked.loss * share), student, teacher, mask=mask)
    leak = masked.grad.clone()
    leak[~mask] += 1e-30
    with pytest.raises(AssertionError):
        assert_true(masked._replace(grad=leak), student, teacher, mask=mask)


def test_nan_must_be_where_the_truth_has_it() -> None:
    student, teacher = make_logits(ROWS, CLASSES)
    student[4, 3] = torch.nan
    options = {"intra_weight": 0.0}
    got = eager_of(student, teacher, **options)
    assert got.loss.isnan()
    assert got.grad.isnan().any(dim=1).nonzero().flatten().tolist() == [4]
    assert_true(got, student, teacher, **options)
    for grad in (got.grad.nan_to_num(), got.grad.roll(1, 0), got.grad * torch.nan):
        with pytest.raises(AssertionError, match="NaN in the wrong place"):
            assert_true(got._replace(grad=grad), student, teacher, **options)
    with pytest.raises(AssertionError):
        assert_true(got._replace(loss=torch.tensor(1.0)), student, teacher, **options)


def test_one_rounding_covers_the_reference() -> None:
    """The unit is an honest one: float64 is within it, and float32 of ordinary logits too."""
    for dtype, rounding in ((torch.float64, np.float64), (torch.float32, np.float32)):
        student, teacher = make_logits(64, 100, dtype=dtype)
        got = run(reference.correlation_kd, student, teacher)
        truth = value_term(
            student.numpy(), teacher.numpy(), rounding=rounding, precision=np.longdouble
        )
        assert abs(got.loss.item() - truth.loss) <= truth.loss_rounding
        assert (abs(got.grad.numpy() - truth.grad) <= truth.grad_rounding).all()
        # and not a generous one: five digits of a typical element remain in float32
        assert np.median(truth.grad_rounding / abs(truth.grad)) < 2.5e2 * np.finfo(rounding).eps


def test_same_bits() -> None:
    x = torch.tensor([1.0, torch.nan, 0.0])
    assert_same_bits(x, x.clone())
    for other in (x[:2], x.double(), -x, torch.tensor([1.0, torch.nan, -0.0]), x.nextafter(x + 1)):
        with pytest.raises(AssertionError):
            assert_same_bits(x, other)
