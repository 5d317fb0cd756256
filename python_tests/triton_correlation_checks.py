"""Checks of the Triton kernels that only a session in Triton's interpreter can run.

test_triton_correlation.py starts that session; by hand:
TRITON_INTERPRET=1 pytest python_tests/triton_correlation_checks.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Shape, each_dtype, generator, loss_of, make_logits, make_mask
from compare import assert_same_bits, assert_true, run, truth_of
from formula import Array
from torch import Tensor

import r2kd_ext
from r2kd_ext import reference
from r2kd_ext.backends import triton
from r2kd_ext.backends.triton import configs

loss = loss_of("triton")


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with limits so low that few classes reach every branch; real tiles take the
    interpreter seconds, and are compiled in test_triton_compile.py."""
    rows = ((64, 64, 4), (128, 128, 8))
    monkeypatch.setattr(configs, "_WHOLE_ROWS", dict.fromkeys((False, True), rows))
    monkeypatch.setattr(configs, "_BLOCKS", dict.fromkeys((False, True), (32, 4)))
    monkeypatch.setattr(configs, "_FUSED", dict.fromkeys((False, True), 64))
    monkeypatch.setattr(configs, "_COLUMNS", dict.fromkeys((False, True), (4, 32, 4)))
    monkeypatch.setattr(configs, "_MAX_PARTS", 4)
    monkeypatch.setattr(configs, "WEIGHED_ROWS", 4)
    monkeypatch.setattr(configs, "SUM_BLOCK", 16)


# One number of classes behind every branch of the lowered table, none a power of two.
LINES = [
    Shape(19, 3, "several rows in a tile, the padding to 8 classes"),
    Shape(5, 50, "one row in a tile"),
    Shape(9, 100, "columns_kernel; more rows than one of its tiles"),
    Shape(3, 133, "a row in blocks, the last one partial"),
]
each_line, each_of_the_last_lines = (
    pytest.mark.parametrize("shape", shapes, ids=lambda s: f"{s.rows}x{s.classes}")
    for shapes in (LINES, LINES[-2:])
)


@pytest.mark.parametrize(
    ("shape", "correlation"), [((3, 2100), "pearson"), ((2, 4100), "cosine")], ids=str
)
def test_real_table(
    shape: tuple[int, int], correlation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles as they are on a GPU: whole rows with columns_kernel, and rows in blocks."""
    monkeypatch.undo()
    student, teacher = make_logits(*shape)
    options: dict[str, Any] = {"correlation": correlation}
    assert_true(run(loss, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize(("correlation", "masked"), [("cosine", False), ("pearson", True)])
@each_line
def test_each_line_of_the_table(shape: Shape, masked: bool, correlation: str) -> None:
    student, teacher = make_logits(shape.rows, shape.classes)
    options: dict[str, Any] = {"correlation": correlation}
    if masked:
        options["mask"] = make_mask(shape.rows)
    assert_true(run(loss, student, teacher, **options), student, teacher, **options)


def weighted_truth(
    student: Tensor, teacher: Tensor, weight: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Any, Array, Array]:
    """The loss, its gradient, and what a rounding costs it: row by row, times the row's share."""
    keep = torch.ones(len(student), dtype=torch.bool) if mask is None else mask
    share = (weight.double() * keep / (weight.double() * keep).sum()).numpy()
    whole = truth_of(student, teacher, inter_weight=0.0, mask=mask, **options)
    loss, grad, rounding = whole.loss, whole.grad.copy(), whole.grad_rounding.copy()
    for i in np.flatnonzero(share):
        one = slice(i, i + 1)
        row = truth_of(student[one], teacher[one], intra_weight=0.0, **options)
        loss = loss + share[i] * row.loss
        grad[one] += share[i] * row.grad
        rounding[one] += share[i] * (row.grad_rounding + 2.0**-23 * abs(row.grad))
    return loss, grad, rounding


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(9, 13), (5, 50), (3, 133)], ids=str)  # rows in a tile; long
def test_sample_weight(shape: tuple[int, int], masked: bool) -> None:
    """Weights of very unequal size, one of them 0; the columns do not know of them."""
    student, teacher = make_logits(*shape)
    weight = torch.logspace(-3, 3, shape[0], dtype=torch.float64)
    weight[1] = 0
    options: dict[str, Any] = {"correlation": "pearson"}
    if masked:
        options["mask"] = torch.arange(shape[0]) != 2
    got = run(loss, student, teacher, sample_weight=weight, **options)
    mask = options.pop("mask", None)
    truth, grad, rounding = weighted_truth(student, teacher, weight, mask, **options)
    assert got.loss.item() == pytest.approx(float(truth), rel=1e-6)
    assert (abs(got.grad.double().numpy() - grad) <= 2 * rounding).all()


def test_sample_weight_in_float64() -> None:
    """float32 weights of a batch of leading dimensions, against the reference."""
    student, teacher = (x.reshape(3, 4, 7) for x in make_logits(12, 7, dtype=torch.float64))
    weight = torch.rand(3, 4, generator=generator("weight"))
    got, expected = (
        run(function, student, teacher, sample_weight=weight, mask=make_mask(12))
        for function in (loss, reference.correlation_kd)
    )
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("classes", [13, 133])
def test_sample_weights_that_sum_to_nothing(classes: int) -> None:
    """No row term is left, not even of a row with a NaN; the columns stay."""
    student, teacher = make_logits(4, classes)
    weight, mask = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.arange(4) != 1
    got = run(loss, student, teacher, sample_weight=weight, mask=mask)
    expected = run(loss, student, teacher, inter_weight=0.0, mask=mask)
    assert_same_bits(got.loss, expected.loss)
    torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-12)
    student[0, 3] = torch.nan
    assert loss(student, teacher, sample_weight=weight, mask=mask, intra_weight=0.0).item() == 0
    none = torch.zeros(4, dtype=torch.bool)
    assert loss(student, teacher, sample_weight=torch.ones(4), mask=none).item() == 0


@each_dtype
@each_of_the_last_lines
def test_dtypes_of_long_rows(shape: Shape, dtype: torch.dtype) -> None:
    student, teacher = make_logits(shape.rows, shape.classes, dtype=dtype)
    options: dict[str, Any] = {"temperature": 1.7, "correlation": "pearson"}
    assert_true(run(loss, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_long_rows_whose_maximum_rises(correlation: str) -> None:
    """What the first blocks have summed shrinks again and again; the first block is ruled out."""
    cols = 12 * 32 + 5
    student, teacher = make_logits(3, cols)
    student[0] += torch.linspace(-30, 30, cols)
    teacher[0] += torch.linspace(30, -30, cols)
    student[1, :33], teacher[1, 125:] = -torch.inf, -torch.inf
    student[2] += torch.linspace(-3e3, 3e3, cols)
    options: dict[str, Any] = {"correlation": correlation}
    assert_true(run(loss, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_poison_in_long_rows(poison: float) -> None:
    """A poisoned row is NaN, its neighbours are right: the row term alone."""
    student, teacher = make_logits(3, 133)
    student[1, 132 if poison != -torch.inf else slice(None)] = poison
    got = run(loss, student, teacher, intra_weight=0.0)
    assert got.loss.isnan()
    assert torch.equal(got.grad.isnan().any(1), torch.tensor([False, True, False]))
    clean = run(loss, student[[0, 2]], teacher[[0, 2]], intra_weight=0.0).grad
    torch.testing.assert_close(got.grad[[0, 2]] * 3, clean * 2)


@pytest.mark.parametrize("cols", [40, 100])
def test_all_parts_of_the_columns(cols: int) -> None:
    """More than one part, parts without a kept row, and a last part that is not full."""
    rows = 35
    student, teacher = make_logits(rows, cols)
    table = configs.table(cols, False)
    tile = (table.rows if table.fused else table.columns).rows
    parts, tiles = configs.parts(rows, tile)
    assert parts > 2
    assert parts * tiles * tile > rows
    mask = (torch.arange(rows) < 3) | (torch.arange(rows) >= 33)
    both: list[dict[str, Any]] = [
        {"correlation": "pearson", "mask": mask}, {"correlation": "pearson"}
    ]  # fmt: skip
    for options in both:
        assert_true(run(loss, student, teacher, **options), student, teacher, **options)


@pytest.mark.parametrize("shape", [(33, 40), (9, 100), (2, 133)], ids=str)
def test_same_bits_in_every_run(shape: tuple[int, int]) -> None:
    student, teacher = make_logits(*shape)
    first, second = (run(loss, student, teacher, correlation="pearson") for _ in range(2))
    assert_same_bits(first.loss, second.loss)
    assert_same_bits(first.grad, second.grad)


def test_as_the_native_backend() -> None:
    """Another implementation of the same mathematics, near to the last digits of float64."""
    student, teacher = make_logits(12, 37, dtype=torch.float64)
    got = run(loss, student, teacher, correlation="pearson", temperature=1.7)
    native = run(r2kd_ext.correlation_kd, student, teacher, correlation="pearson", temperature=1.7)
    torch.testing.assert_close(got.loss, native.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(got.grad, native.grad, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_over_a_process_group(tmp_path: Path, correlation: str) -> None:
    """The columns come from torch and from the exchange, the rest from the kernels."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        student, teacher = make_logits(12, 37, dtype=torch.float64)
        options: dict[str, Any] = {"correlation": correlation, "mask": make_mask(12)}
        got = run(loss, student, teacher, group=dist.group.WORLD, **options)
        native = run(r2kd_ext.correlation_kd, student, teacher, **options)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(got.loss, native.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(got.grad, native.grad, rtol=1e-10, atol=1e-16)


def test_annealed_temperature_has_no_limit() -> None:
    """Temperatures are numbers of the call, not of the compiled kernel, in float64 too."""
    student, teacher = make_logits(4, 5, dtype=torch.float64)
    for temperature in (1.1, 2.0, 1e-3, 1e3, 3):
        got = run(loss, student, teacher, temperature=temperature)
        assert_true(got, student, teacher, temperature=temperature)


@pytest.mark.parametrize("shape", [(33, 10), (3, 100)], ids=str)
def test_statistics_have_the_size_that_the_fake_kernel_says(shape: tuple[int, int]) -> None:
    student, teacher = make_logits(*shape)
    setting = (4.0, True, 1.0, 1.0, 1e-8)
    loss, stats = triton.correlation(student, teacher, None, *setting)
    meta = student.to("meta")
    fake_loss, fake_stats = torch.ops.r2kd.correlation(meta, meta, None, *setting)
    for real, fake in ((loss, fake_loss), (stats, fake_stats)):
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
