"""What is accepted, in every layout, and what is refused, with an error that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from compare import assert_same_bits, assert_true, run
from torch import Tensor

import r2kd_ext
from r2kd_ext import reference


def around(x: Tensor) -> Tensor:
    """x as a slice with an offset inside a larger tensor that holds NaN elsewhere."""
    larger = torch.full((x.shape[0] + 3, x.shape[1] + 4), torch.nan, dtype=x.dtype)
    larger[2:-1, 3:-1] = x
    return larger[2:-1, 3:-1]


def strided(x: Tensor) -> Tensor:
    larger = torch.full((x.shape[0] * 2, x.shape[1] * 3), torch.nan, dtype=x.dtype)
    larger[::2, 1::3] = x
    return larger[::2, 1::3]


def negated(x: Tensor) -> Tensor:
    """The imaginary part of a conjugate: the numbers in memory have the other sign."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "slice with offset": around,
    "every other element": strided,
    "one element off alignment": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@every_kernel
@each_dtype
@each_layout
@pytest.mark.parametrize("shape", [(7, 13), (12, 70)], ids=str)
def test_layouts(shape: tuple[int, int], layout: str, dtype: torch.dtype, backend: str) -> None:
    student, teacher = (LAYOUTS[layout](x) for x in make_logits(*shape, dtype=dtype))
    got = run(loss_of(backend), student, teacher)
    assert_true(got, student, teacher)


@every_kernel
@pytest.mark.parametrize("teacher_layout", LAYOUTS)
@each_layout
def test_different_layouts(layout: str, teacher_layout: str, backend: str) -> None:
    """Also with a mask that is a slice of something."""
    student, teacher = make_logits(12, 37)
    mask = torch.stack([make_mask(12), ~make_mask(12)], dim=1)[:, 0]
    student, teacher = LAYOUTS[layout](student), LAYOUTS[teacher_layout](teacher)
    got = run(loss_of(backend), student, teacher, correlation="pearson", mask=mask)
    assert_true(got, student, teacher, correlation="pearson", mask=mask)


@every_backend
@pytest.mark.parametrize("make", [negated, torch._neg_view], ids=["conj().imag", "_neg_view"])
def test_lazily_negated(make: Callable[[Tensor], Tensor], backend: str) -> None:
    student, teacher = make_logits(12, 37)
    lazy = (make(student), make(teacher))
    assert all(x.is_neg() for x in lazy)
    got = run(loss_of(backend), *lazy)
    assert_true(got, *(x.clone() for x in lazy))


@every_kernel
@pytest.mark.parametrize("expanded", ["rows", "classes", "both"])
def test_expanded(expanded: str, backend: str) -> None:
    """Stride 0; the gradient is one per element, as for any other tensor of that shape."""
    sizes = {"rows": (1, 37), "classes": (12, 1), "both": (1, 1)}[expanded]
    student, teacher = (x.expand(12, 37) for x in make_logits(*sizes))
    for z, y in ((student, make_logits(12, 37)[1]), (make_logits(12, 37)[0], teacher)):
        got = run(loss_of(backend), z, y)
        assert_true(got, z, y)


@every_kernel
def test_gradient_of_the_source_of_an_expanded_student(backend: str) -> None:
    row, teacher = torch.randn(1, 9, generator=generator("row")), make_logits(12, 9)[1]
    row.requires_grad_()
    (got,) = torch.autograd.grad(loss_of(backend)(row.expand(12, 9), teacher), row)
    (expected,) = torch.autograd.grad(loss_of("reference")(row.expand(12, 9), teacher), row)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@every_backend
@pytest.mark.parametrize("masked", ["no mask", "leading shape", "flat"])
@pytest.mark.parametrize("permuted", [False, True])
def test_leading_dimensions(permuted: bool, masked: str, backend: str) -> None:
    student, teacher = make_logits(24, 13)
    student, teacher = student.reshape(2, 3, 4, 13), teacher.reshape(2, 3, 4, 13)
    if permuted:  # rows in an order that no view can flatten
        student, teacher = student.permute(2, 0, 1, 3), teacher.permute(2, 0, 1, 3)
    mask = make_mask(24).reshape(student.shape[:-1])
    options: dict[str, Any] = {}
    if masked != "no mask":
        options["mask"] = mask if masked == "leading shape" else mask.flatten()
    got = run(loss_of(backend), student, teacher, **options)
    assert_true(got, student, teacher, **options)


@every_backend
@each_setting
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 1)], ids=str)
def test_no_rows(shape: tuple[int, ...], setting: Setting, backend: str) -> None:
    empty = torch.empty(shape)
    got = run(loss_of(backend), empty, empty, **setting.options)
    assert got.loss.item() == 0
    assert got.loss.dtype is torch.float32
    assert got.grad.shape == shape


@every_backend
@each_setting
@each_dtype
def test_all_rows_masked(dtype: torch.dtype, setting: Setting, backend: str) -> None:
    student, teacher = make_logits(6, 9, dtype=dtype)
    student[1], teacher[2], student[3] = torch.nan, torch.inf, -torch.inf
    mask = torch.zeros(6, dtype=torch.bool)
    got = run(loss_of(backend), student, teacher, **setting.options, mask=mask)
    assert got.loss.item() == 0
    assert_same_bits(got.grad, torch.zeros_like(student))


@every_backend
@each_setting
def test_one_row_kept(setting: Setting, backend: str) -> None:
    student, teacher = make_logits(6, 9)
    mask = torch.arange(6) == 4
    got = run(loss_of(backend), student, teacher, **setting.options, mask=mask)
    assert_true(got, student, teacher, **setting.options, mask=mask)


@every_kernel
def test_mask_that_keeps_all(backend: str) -> None:
    student, teacher = make_logits(33, 65)
    plain = run(loss_of(backend), student, teacher)
    for mask in (torch.ones(33, dtype=torch.bool), torch.tensor([True]).expand(33)):
        got = run(loss_of(backend), student, teacher, mask=mask)
        assert_same_bits(got.loss, plain.loss)
        assert_same_bits(got.grad, plain.grad)


@every_backend
@pytest.mark.parametrize("centered", ["cosine", "pearson"])
def test_no_term_at_all(centered: str, backend: str) -> None:
    """Both weights 0 is legal: a loss of 0 that a training loop can still call backward on."""
    student, teacher = make_logits(6, 9)
    got = run(
        loss_of(backend), student, teacher,
        inter_weight=0.0, intra_weight=0.0, correlation=centered,
    )  # fmt: skip
    assert got.loss.item() == 0
    assert (got.grad == 0).all()


@every_backend
def test_integers_as_options(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    options: dict[str, Any] = {"temperature": 2, "inter_weight": 1, "intra_weight": 3, "eps": 0}
    assert_true(run(loss_of(backend), student, teacher, **options), student, teacher, **options)


@every_kernel
def test_parameters_and_buffers_as_logits(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    parameter = torch.nn.Parameter(student)
    loss_of(backend)(parameter, torch.nn.Parameter(teacher)).backward()
    assert parameter.grad is not None
    assert_same_bits(parameter.grad, run(loss_of(backend), student, teacher).grad)


class Tagged(Tensor):
    """A subclass that does nothing."""


@every_backend
def test_tensor_subclass(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    got = loss_of(backend)(student.as_subclass(Tagged), teacher.as_subclass(Tagged))
    assert got.item() == loss_of(backend)(student, teacher).item()


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_offsets_beyond_32_bits(dtype: torch.dtype, backend: str) -> None:
    """Rows that lie 2^30 elements apart; only the touched pages take memory."""
    stride = 2**30 + 1
    try:
        memory = torch.empty(3 * stride, dtype=dtype)  # 6 GiB of addresses
    except RuntimeError as problem:
        pytest.skip(f"the machine grants no 6 GiB of address space: {problem}")
    student, teacher = make_logits(3, 40, dtype=dtype)
    far = memory.as_strided((3, 40), (stride, 1))
    far.copy_(student)
    far_teacher = memory.as_strided((3, 40), (stride, 1), 40)
    far_teacher.copy_(teacher)
    assert_true(run(loss_of(backend), far, far_teacher), student, teacher)


@every_kernel
def test_more_than_2_to_the_31_elements(backend: str) -> None:
    """B C beyond 2^31 by a stride of 0 and a mask that keeps few rows, the last among them."""
    rows, classes, kept = 2**20, 2**11 + 1, 8
    student, teacher = make_logits(1, classes)
    mask = torch.zeros(rows, dtype=torch.bool)
    mask[-kept:] = True
    assert rows * classes > 2**31
    loss = loss_of(backend)(student.expand(rows, -1), teacher.expand(rows, -1), mask=mask)
    expected = loss_of("reference")(student.expand(kept, -1), teacher.expand(kept, -1))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


# --- refusals ----------------------------------------------------------------------------------

Z = torch.zeros(4, 5)
INPUTS: dict[str, tuple[type[Exception], str, Any, Any]] = {
    "list": (TypeError, r"student_logits .*Tensor.*list", [[1.0, 2.0]], Z),
    "None for the teacher": (TypeError, r"teacher_logits .*Tensor.*None", Z, None),
    "integers": (TypeError, r"student_logits .*float32.*int64", Z.long(), Z),
    "bool": (TypeError, r"teacher_logits .*float32.*bool", Z, Z.bool()),
    "complex": (TypeError, r"student_logits .*float32.*complex64", Z.to(torch.complex64), Z),
    "float8": (TypeError, r"student_logits .*float8", Z.to(torch.float8_e4m3fn), Z),
    "sparse": (TypeError, r"student_logits .*sparse", Z.to_sparse(), Z),
    "scalar": (ValueError, r"student_logits .*\(\)", Z[0, 0], Z[0, 0]),
    "1-D": (ValueError, r"student_logits .*\(\.\.\., C\).*\(5,\)", Z[0], Z[0]),
    "no classes": (ValueError, r"student_logits .*class.*\(4, 0\)", Z[:, :0], Z[:, :0]),
    "neither rows nor classes": (ValueError, r"student_logits .*class", Z[:0, :0], Z[:0, :0]),
    "other rows": (ValueError, r"teacher_logits .*\(4, 5\).*\(3, 5\)", Z, Z[:3]),
    "other classes": (ValueError, r"teacher_logits .*\(4, 5\).*\(4, 4\)", Z, Z[:, :4]),
    "broadcastable": (ValueError, r"teacher_logits .*\(4, 5\).*\(1, 5\)", Z, Z[:1]),
    "leading dimensions": (ValueError, r"teacher_logits .*\(2, 2, 5\)", Z, Z.view(2, 2, 5)),
    "device": (ValueError, r"teacher_logits .*device.*cpu.*meta", Z, Z.to("meta")),
}

OPTIONS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "temperature 0": (ValueError, r"temperature .*> 0.*0", {"temperature": 0}),
    "temperature < 0": (ValueError, r"temperature .*> 0.*-1", {"temperature": -1.0}),
    "temperature inf": (ValueError, r"temperature .*finite.*inf", {"temperature": torch.inf}),
    "temperature NaN": (ValueError, r"temperature .*finite.*nan", {"temperature": torch.nan}),
    "temperature str": (TypeError, r"temperature .*'4'.*str", {"temperature": "4"}),
    "temperature bool": (TypeError, r"temperature .*True.*bool", {"temperature": True}),
    "temperature None": (TypeError, r"temperature .*None", {"temperature": None}),
    "temperature Tensor": (TypeError, r"temperature .*Tensor", {"temperature": torch.tensor(4.0)}),
    "correlation": (
        ValueError,
        r"correlation .*'cosine'.*'pearson'.*'spearman'",
        {"correlation": "spearman"},
    ),
    "correlation None": (ValueError, r"correlation .*None", {"correlation": None}),
    "inter_weight < 0": (ValueError, r"inter_weight .*>= 0.*-1", {"inter_weight": -1.0}),
    "intra_weight < 0": (ValueError, r"intra_weight .*>= 0.*-1", {"intra_weight": -1.0}),
    "intra_weight NaN": (ValueError, r"intra_weight .*nan", {"intra_weight": torch.nan}),
    "inter_weight str": (TypeError, r"inter_weight .*str", {"inter_weight": "2"}),
    "rank_weight < 0": (ValueError, r"rank_weight .*>= 0.*-1", {"rank_weight": -1.0}),
    "rank": (ValueError, r"rank .*'hard'.*'soft'.*'exact'", {"rank": "exact"}),
    "rank_strength 0": (ValueError, r"rank_strength .*> 0.*0", {"rank_strength": 0.0}),
    "temperature_scaling": (TypeError, r"temperature_scaling .*1", {"temperature_scaling": 1}),
    "eps < 0": (ValueError, r"eps .*>= 0.*-1e-08", {"eps": -1e-8}),
    "eps inf": (ValueError, r"eps .*finite.*inf", {"eps": torch.inf}),
    "mask list": (TypeError, r"mask .*bool.*list", {"mask": [True] * 4}),
    "mask integers": (TypeError, r"mask .*bool.*int64", {"mask": torch.ones(4).long()}),
    "mask float": (TypeError, r"mask .*bool.*float32", {"mask": torch.ones(4)}),
    "mask too short": (ValueError, r"mask .*\(4,\).*\(3,\)", {"mask": torch.ones(3).bool()}),
    "mask column": (ValueError, r"mask .*\(4,\).*\(4, 1\)", {"mask": torch.ones(4, 1).bool()}),
    "mask per class": (ValueError, r"mask .*\(4,\).*\(4, 5\)", {"mask": torch.ones(4, 5).bool()}),
    "mask scalar": (ValueError, r"mask .*\(4,\).*\(\)", {"mask": torch.tensor(True)}),
    "mask device": (
        ValueError,
        r"mask .*device.*cpu.*meta",
        {"mask": torch.ones(4, dtype=torch.bool, device="meta")},
    ),
    "sample_weight list": (
        TypeError,
        r"sample_weight .*floating-point.*list",
        {"sample_weight": [1.0] * 4},
    ),
    "sample_weight integers": (
        TypeError,
        r"sample_weight .*floating-point.*int64",
        {"sample_weight": torch.ones(4).long()},
    ),
    "sample_weight too short": (
        ValueError,
        r"sample_weight .*\(4,\).*\(3,\)",
        {"sample_weight": torch.ones(3)},
    ),
    "sample_weight device": (
        ValueError,
        r"sample_weight .*device.*cpu.*meta",
        {"sample_weight": torch.ones(4, device="meta")},
    ),
    "group": (TypeError, r"group must be a ProcessGroup.*object", {"group": object()}),
}


@every_backend
@pytest.mark.parametrize("case", INPUTS)
def test_refused_logits(case: str, backend: str) -> None:
    error, message, student, teacher = INPUTS[case]
    with pytest.raises(error, match=message):
        loss_of(backend)(student, teacher)
    with pytest.raises(error, match=message):
        reference.correlation_kd(student, teacher)


@every_backend
@pytest.mark.parametrize("case", OPTIONS)
def test_refused_options(case: str, backend: str) -> None:
    error, message, options = OPTIONS[case]
    with pytest.raises(error, match=message):
        loss_of(backend)(Z, Z, **options)
    with pytest.raises(error, match=message):
        reference.correlation_kd(Z, Z, **options)


@every_backend
def test_refused_options_after_accepted_equal_ones(backend: str) -> None:
    """1 == True and 1.0 == 1: checks whose result is remembered must still tell them apart."""
    loss_of(backend)(Z, Z, temperature=1.0, inter_weight=1)
    with pytest.raises(TypeError, match="temperature"):
        loss_of(backend)(Z, Z, temperature=True)
    with pytest.raises(TypeError, match="inter_weight"):
        loss_of(backend)(Z, Z, inter_weight=True)
    loss_of(backend)(Z, Z, temperature_scaling=True)
    with pytest.raises(TypeError, match="temperature_scaling"):
        loss_of(backend)(Z, Z, temperature_scaling=1)


@pytest.mark.parametrize("wrong", [[4.0], {"a": 1}, [[1.0]]], ids=str)
def test_refused_unhashable_option(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"temperature must be .* got "):
        r2kd_ext.correlation_kd(Z, Z, wrong)
    with pytest.raises((TypeError, ValueError), match="correlation must be "):
        r2kd_ext.correlation_kd(Z, Z, correlation=wrong)


def test_options_are_keywords() -> None:
    """(student, teacher, labels) is the likely mistake of someone who comes from another loss."""
    with pytest.raises(TypeError):
        r2kd_ext.correlation_kd(Z, Z, 4.0, "cosine")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temperature"):
        r2kd_ext.correlation_kd(Z, Z, torch.zeros(4).long())  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["nonsense", "", "Native", 0, ["native"]], ids=repr)
def test_backend_that_nobody_knows(backend: Any) -> None:
    with pytest.raises(ValueError, match=r"backend .*'native'.*'reference'") as caught:
        r2kd_ext.correlation_kd(Z, Z, backend=backend)
    assert repr(backend) in str(caught.value)


@every_kernel
def test_kernel_on_another_device(backend: str) -> None:
    with pytest.raises(ValueError, match=rf"backend .*{backend}.*CPU.*meta"):
        loss_of(backend)(Z.to("meta"), Z.to("meta"))


def test_default_backend_on_another_device() -> None:
    """No kernel there: the reference, which needs none."""
    student = Z.to("meta").requires_grad_()
    loss = r2kd_ext.correlation_kd(student, Z.to("meta"))
    assert (loss.shape, loss.device.type) == ((), "meta")
    assert r2kd_ext.build_info()["ops"]["correlation"]["cpu"]["backend"] == "native"


@every_kernel
def test_default_backend_is_the_kernel(backend: str) -> None:
    student, teacher = make_logits(33, 65)
    assert_same_bits(r2kd_ext.correlation_kd(student, teacher), loss_of(backend)(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_one_class_has_no_gradient(correlation: str, dtype: torch.dtype) -> None:
    """The softmax of one number is 1: exactly no gradient, whatever the numbers; NaN stays NaN."""
    generator = torch.Generator().manual_seed(17)
    student, teacher = (torch.randn(300, 1, generator=generator).to(dtype) for _ in range(2))
    for backend in ("native", "reference"):
        x = student.clone().requires_grad_()
        r2kd_ext.correlation_kd(x, teacher, correlation=correlation, backend=backend).backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))
    student[7] = float("nan")
    x = student.requires_grad_()
    r2kd_ext.correlation_kd(x, teacher, correlation=correlation).backward()
    assert x.grad is not None
    assert x.grad.isnan().all()
