"""The autograd layer: derivatives of both orders, kept graphs, in-place changes, saved memory."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from cases import (
    Setting,
    each_dtype,
    each_setting,
    every_backend,
    every_kernel,
    loss_of,
    make_logits,
    make_mask,
)
from compare import assert_same_bits, assert_true, eager_of, flat, run, truth_of
from torch import Tensor

from r2kd_ext import reference


@every_backend
@each_setting
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(setting: Setting, masked: bool, backend: str) -> None:
    student, teacher = make_logits(5, 7, spread=1.0, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False]) if masked else None
    assert torch.autograd.gradcheck(
        lambda z: loss_of(backend)(z, teacher, mask=mask, **setting.options),
        student.requires_grad_(),
    )


@every_backend
@each_setting
@pytest.mark.parametrize("masked", [False, True])
def test_gradgradcheck(setting: Setting, masked: bool, backend: str) -> None:
    student, teacher = make_logits(4, 3, spread=1.0, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True]) if masked else None
    assert torch.autograd.gradgradcheck(
        lambda z: loss_of(backend)(z, teacher, mask=mask, **setting.options),
        student.requires_grad_(),
    )


@every_kernel
@each_setting
def test_gradient_of_a_gradient_penalty(setting: Setting, backend: str) -> None:
    """loss + |dloss/dz|^2, as a training loop with create_graph=True has it."""
    student, teacher = make_logits(6, 9, dtype=torch.float64)

    def penalised(backend: str) -> Tensor:
        z = student.clone().requires_grad_()
        loss = loss_of(backend)(z, teacher, **setting.options)
        (grad,) = torch.autograd.grad(loss, z, create_graph=True)
        (second,) = torch.autograd.grad(loss + grad.square().sum(), z)
        return second

    torch.testing.assert_close(penalised(backend), penalised("reference"), rtol=1e-9, atol=1e-12)


@every_kernel
def test_create_graph_gives_the_first_gradient_too(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher)
    (grad,) = torch.autograd.grad(loss * 3, student, create_graph=True)
    truth = truth_of(student, teacher)
    assert (abs(flat(grad) - 3 * truth.grad) <= 3 * 2 * truth.grad_rounding).all()


@every_backend
@each_dtype
def test_second_backward_has_the_same_bits(dtype: torch.dtype, backend: str) -> None:
    student, teacher = make_logits(33, 65, dtype=dtype)
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher, mask=make_mask(33))
    first, second, third = (
        torch.autograd.grad(loss, student, retain_graph=True)[0] for _ in range(3)
    )
    assert_same_bits(first, second)
    assert_same_bits(first, third)


@every_kernel
def test_backward_does_not_scale_what_it_keeps(backend: str) -> None:
    """Backwards with other factors between two equal ones leave no trace."""
    student, teacher = make_logits(33, 65)
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher)
    grads = [
        torch.autograd.grad(loss, student, torch.tensor(factor), retain_graph=True)[0]
        for factor in (1.0, 1e3, 0.0, torch.nan, 1.0)
    ]
    assert_same_bits(grads[0], grads[-1])
    assert (grads[2] == 0).all()
    assert grads[3].isnan().all()


@every_backend
def test_backward_twice_without_retain_graph(backend: str) -> None:
    student, teacher = make_logits(4, 5)
    loss = loss_of(backend)(student.requires_grad_(), teacher)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_kernel
@pytest.mark.parametrize("changed", ["student", "teacher", "mask"])
def test_in_place_change_before_backward(changed: str, backend: str) -> None:
    """Backward recomputes from the logits; it must not use other ones than forward."""
    leaf, teacher = make_logits(6, 9)
    leaf.requires_grad_()
    student, mask = leaf * 1, make_mask(6)
    loss = loss_of(backend)(student, teacher, mask=mask)
    with torch.no_grad():
        {"student": student, "teacher": teacher, "mask": mask}[changed][0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_kernel
def test_in_place_change_with_leading_dimensions(backend: str) -> None:
    """The same through the flattened views of logits (..., C) and of a mask (...)."""
    for changed in range(3):
        leaf, teacher = (x.reshape(2, 3, 9) for x in make_logits(6, 9))
        leaf.requires_grad_()
        student, mask = leaf * 1, make_mask(6).reshape(2, 3)
        loss = loss_of(backend)(student, teacher, mask=mask)
        with torch.no_grad():
            (student, teacher, mask)[changed].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_kernel
def test_in_place_change_of_an_optimizer_after_backward(backend: str) -> None:
    """The ordinary order of a training step is no such change."""
    student, teacher = make_logits(6, 9)
    student.requires_grad_()
    for _ in range(2):
        loss_of(backend)(student, teacher).backward()
        with torch.no_grad():
            assert student.grad is not None
            student -= 0.1 * student.grad
            student.grad = None


@every_backend
def test_teacher_never_gets_a_gradient(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    weight = torch.ones(9, requires_grad=True)
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher * weight)
    assert torch.autograd.grad(loss, weight, allow_unused=True, retain_graph=True) == (None,)
    loss.backward()
    assert weight.grad is None
    assert_true(run(loss_of(backend), student, teacher * weight), student, teacher)


@every_backend
def test_only_the_teacher_requires_grad(backend: str) -> None:
    student, teacher = make_logits(6, 9)
    assert not loss_of(backend)(student, teacher.requires_grad_()).requires_grad


@every_backend
def test_student_as_its_own_teacher(backend: str) -> None:
    """One tensor in both places: its gradient is that of the student alone."""
    student, _ = make_logits(6, 9)
    student.requires_grad_()
    (own,) = torch.autograd.grad(loss_of(backend)(student, student, correlation="pearson"), student)
    apart = run(loss_of(backend), student, student.detach().clone(), correlation="pearson")
    assert_same_bits(own, apart.grad)


@every_backend
@pytest.mark.parametrize("factor", [3.0, -1.0, 2.0**-20, 1e6])
def test_scaled_loss(factor: float, backend: str) -> None:
    student, teacher = make_logits(17, 40)
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher)
    (grad,) = torch.autograd.grad(loss * factor, student)
    got = run(loss_of(backend), student, teacher)._replace(grad=grad)
    assert_true(got, student, teacher, factor=factor)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_scaling_of_narrow_gradients(dtype: torch.dtype, backend: str) -> None:
    """A GradScaler multiplies the loss so that float16 holds the gradient: not after rounding."""
    student, teacher = make_logits(64, 200, dtype=dtype)
    options: dict[str, Any] = {"inter_weight": 1e-3, "intra_weight": 1e-3}
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher, **options)
    (grad,) = torch.autograd.grad(loss * 2.0**16, student)
    got = run(loss_of(backend), student, teacher, **options)
    if dtype is torch.float16:
        assert (got.grad == 0).float().mean() > 0.1  # else the case is not one
    assert_true(got._replace(grad=grad), student, teacher, factor=2.0**16, **options)


@every_backend
def test_loss_in_a_sum_and_in_a_vector(backend: str) -> None:
    """The gradient that arrives may be an expanded view or an element of something else."""
    student, teacher = make_logits(6, 9)
    plain = run(loss_of(backend), student, teacher).grad
    student.requires_grad_()
    loss = loss_of(backend)(student, teacher)
    ways = (loss.expand(4).sum() / 4, torch.stack([student.sum() * 0, loss])[1], loss.neg().neg())
    for way in ways:
        (grad,) = torch.autograd.grad(way, student, retain_graph=True)
        torch.testing.assert_close(grad, plain, rtol=1e-6, atol=0)


@every_backend
def test_gradients_add_up(backend: str) -> None:
    """Clean and augmented batch through one model, as the published recipe has it."""
    model = torch.nn.Linear(5, 7).double()
    clean, augmented, teacher = (torch.randn(6, n).double() for n in (5, 5, 7))

    def gradients(backend: str) -> list[Tensor]:
        loss = loss_of(backend)(model(clean), teacher) + loss_of(backend)(model(augmented), teacher)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    for got, expected in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@every_backend
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode(mode: Any, backend: str) -> None:
    student, teacher = make_logits(6, 9)
    student.requires_grad_()
    with mode():
        loss = loss_of(backend)(student, teacher)
    assert not loss.requires_grad
    assert loss.item() == loss_of(backend)(student, teacher).item()


@every_backend
def test_teacher_from_inference_mode(backend: str) -> None:
    """The usual way to run a teacher; its logits are inference tensors."""
    student, teacher = make_logits(6, 9)
    with torch.inference_mode():
        inferred = teacher + 0
    assert_true(run(loss_of(backend), student, inferred), student, teacher)
    first, second = (
        torch.autograd.functional.hvp(lambda z, y=y: loss_of(backend)(z, y), student, student)[1]
        for y in (inferred, teacher)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@every_backend
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_hook_and_anomaly_mode(masked: bool, backend: str) -> None:
    student, teacher = make_logits(6, 9)
    seen: list[Tensor] = []
    student.requires_grad_().register_hook(seen.append)
    with torch.autograd.detect_anomaly(check_nan=True):
        loss_of(backend)(student, teacher, mask=make_mask(6) if masked else None).backward()
    assert [grad.shape for grad in seen] == [student.shape]


class Kept:
    """Counts the bytes that a forward keeps for backward, besides the storages in `given`."""

    def __init__(self, *given: Tensor) -> None:
        self.given = {x.untyped_storage().data_ptr() for x in given}
        self.storages: dict[int, int] = {}

    def see(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.given:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return x

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


ROWS, CLASSES = 301, 1003
# Six numbers per row and five per column serve (DESIGN 3); twice that is still O(B + C), and a
# single bit per logit would already be more.
ALLOWED = 12 * 4 * (ROWS + CLASSES)
assert ALLOWED < ROWS * CLASSES // 4


def tensors() -> list[Tensor]:
    """All strided CPU tensors that a Python object holds."""
    gc.collect()
    return [
        thing
        for thing in gc.get_objects()
        if type(thing) is Tensor and thing.device.type == "cpu" and thing.layout is torch.strided
    ]


@every_kernel
@each_setting
@pytest.mark.parametrize(
    "layout", ["contiguous", "transposed", "sliced", "bfloat16", "leading", "strided leading"]
)
def test_kept_memory(layout: str, setting: Setting, backend: str) -> None:
    """O(B + C) besides the logits and the mask, however they lie."""
    student, teacher = make_logits(ROWS, CLASSES)
    mask = make_mask(ROWS)
    if layout == "transposed":
        student, teacher = student.T.contiguous().T, teacher.T.contiguous().T
    elif layout == "sliced":
        student, teacher = (
            torch.cat([x, x], dim=1)[:, 7 : 7 + CLASSES] for x in (student, teacher)
        )
    elif layout == "bfloat16":
        student, teacher = student.bfloat16(), teacher.bfloat16()
    elif layout == "leading":
        student, teacher, mask = student.unsqueeze(1), teacher.unsqueeze(1), mask.unsqueeze(1)
    elif layout == "strided leading":  # rows that no view can flatten
        student, teacher = (x.reshape(7, 43, CLASSES).transpose(0, 1) for x in (student, teacher))
        mask = mask.reshape(7, 43).transpose(0, 1)
    student.requires_grad_()
    kept = Kept(student, teacher, mask)
    others = tensors()  # of tests before this one; held, so that no address is used again
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda x: x):
        loss = loss_of(backend)(student, teacher, mask=mask, **setting.options)
    # Where the logits are contiguous, the statistics are no tensor but the node's own state.
    state = getattr(loss.grad_fn, "state", None)
    assert 0 < kept.bytes + (state.nbytes if state is not None else 0) <= ALLOWED
    # What a Function hangs on its context by another way is a Python object too.
    known = {*kept.given, *(thing.untyped_storage().data_ptr() for thing in others)}
    for thing in tensors():
        storage = thing.untyped_storage()
        small = storage.nbytes() < ROWS * CLASSES
        assert small or storage.data_ptr() in known, f"{tuple(thing.shape)} is kept"
    loss.backward()
    assert student.grad is not None


def test_kept_memory_is_seen() -> None:
    """The counter does see the O(B C) that the plain reference keeps."""
    student, teacher = make_logits(ROWS, CLASSES)
    student.requires_grad_()
    kept = Kept(student, teacher)
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda x: x):
        reference.correlation_kd(student, teacher)
    assert kept.bytes > 4 * ROWS * CLASSES > ALLOWED


@every_kernel
def test_graph_dies_with_the_loss(backend: str) -> None:
    """No reference cycle: what is kept is freed at once, without the garbage collector."""
    student, teacher = make_logits(6, 9)
    freed: list[int] = []

    class Sentinel:
        def __del__(self) -> None:
            freed.append(1)

    sentinel = Sentinel()

    def pack(x: Tensor, sentinel: Sentinel = sentinel) -> tuple[Tensor, Sentinel]:
        return x, sentinel

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed[0]):
            loss = loss_of(backend)(student.requires_grad_(), teacher)
        del sentinel, pack
        assert not freed
        del loss
        assert freed
    finally:
        gc.enable()


def test_eager_is_the_reference() -> None:
    """`eager_of` really runs the reference in the accumulating dtype."""
    student, teacher = make_logits(6, 9, dtype=torch.bfloat16)
    assert eager_of(student, teacher).grad.dtype is torch.float32
