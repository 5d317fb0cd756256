"""What sees the ops instead of the function: compilers, tracers, fake tensors, opcheck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    FEW_SHAPES,
    Setting,
    each_dtype,
    each_setting,
    every_backend,
    every_kernel,
    loss_of,
    make_logits,
    make_mask,
)
from compare import Outcome, assert_true, run
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

OP_SETTINGS = [  # temperature, centered, inter_weight, intra_weight
    (4.0, False, 32.0, 32.0),
    (1.0, True, 1.0, 1.0),
    (1.0, True, 0.0, 1.0),
    (2.0, False, 3.0, 0.0),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """torch.compile without a graph break, up to but not into code generation, which takes long."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@every_backend
@each_setting
def test_fullgraph(setting: Setting, backend: str) -> None:
    student, teacher = make_logits(12, 37)
    got = run(compiled(loss_of(backend)), student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)


@every_kernel
@each_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_fullgraph_in_each_dtype(masked: bool, dtype: torch.dtype, backend: str) -> None:
    student, teacher = make_logits(12, 37, dtype=dtype)
    options: dict[str, Any] = {"mask": make_mask(12)} if masked else {}
    got = run(compiled(loss_of(backend)), student, teacher, **options)
    assert_true(got, student, teacher, **options)


@pytest.mark.slow
@every_kernel
@pytest.mark.parametrize("correlation", ["cosine", "pearson"])
def test_inductor(correlation: str, backend: str) -> None:
    """The default compiler, with something to fuse before and after the loss."""
    function = loss_of(backend)

    def step(z: Tensor, y: Tensor) -> Tensor:
        return function(z * 2, y + 1, correlation=correlation).square()

    student, teacher = make_logits(12, 37)
    student.requires_grad_()
    (got,) = torch.autograd.grad(torch.compile(step, fullgraph=True)(student, teacher), student)
    (eager,) = torch.autograd.grad(step(student, teacher), student)
    torch.testing.assert_close(got, eager, rtol=1e-5, atol=1e-7)


@every_kernel
def test_dynamic_shapes(backend: str) -> None:
    """One graph serves every shape, the last and smaller batch of an epoch among them."""
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(loss_of(backend), fullgraph=True, dynamic=True, backend=counter)
    frames = []  # the first call may take more than one: torch starts over to make numbers symbolic
    for shape in ((6, 9), (5, 9), (33, 10), (64, 100)):
        student, teacher = make_logits(*shape)
        assert_true(run(function, student, teacher), student, teacher)
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[-1] == frames[0]


@every_backend
@pytest.mark.parametrize("option", ["temperature", "inter_weight", "intra_weight", "eps"])
def test_changing_options(option: str, backend: str) -> None:
    """An annealed temperature or weight: the compiler makes the number symbolic."""
    function = compiled(lambda z, y, x: loss_of(backend)(z, y, **{option: x}))
    student, teacher = make_logits(12, 37)
    for x in (4.0, 3.0, 2.5):
        got = run(lambda z, y, x=x: function(z, y, x), student, teacher)
        assert_true(got, student, teacher, **{option: x})


@every_kernel
def test_compiled_inside_a_model(backend: str) -> None:
    """A whole training step: leading dimensions, a mask computed in the graph, the teacher too."""
    torch.manual_seed(0)
    student, teacher = torch.nn.Linear(8, 11).double(), torch.nn.Linear(8, 11).double()
    x = torch.randn(3, 5, 8).double()

    def step(x: Tensor) -> Tensor:
        return loss_of(backend)(student(x), teacher(x), correlation="pearson", mask=x[..., 0] > 0)

    got = torch.autograd.grad(compiled(step)(x), list(student.parameters()))
    expected = torch.autograd.grad(step(x), list(student.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    loss = compiled(step)(x)
    loss.backward()
    assert teacher.weight.grad is None
    assert student.weight.grad is not None


@every_kernel
def test_compiled_for_evaluation(backend: str) -> None:
    student, teacher = make_logits(12, 37)
    with torch.no_grad():
        loss = compiled(loss_of(backend))(student, teacher)
    assert loss.item() == loss_of(backend)(student, teacher).item()


@every_kernel
def test_compiled_transposed(backend: str) -> None:
    student, teacher = make_logits(12, 37)
    student, teacher = student.T.contiguous().T, teacher.T.contiguous().T
    assert_true(run(compiled(loss_of(backend)), student, teacher), student, teacher)


@every_kernel
def test_compiled_after_an_in_place_change(backend: str) -> None:
    """The compiler may not move the change past the loss."""
    student, teacher = make_logits(12, 37)

    def step(z: Tensor, y: Tensor) -> Tensor:
        y = y.clone()
        y.mul_(2)
        loss = loss_of(backend)(z * 1.0, y)
        y.zero_()
        return loss + y.sum()

    # Not what backward recomputes from: without grad, eager mode allows it too.
    with torch.no_grad():
        got = compiled(step)(student, teacher)
    assert got.item() == loss_of(backend)(student, teacher * 2).item()


@every_backend
@pytest.mark.parametrize("through", [lambda f: f, compiled], ids=["eager", "compiled"])
def test_autocast(
    through: Callable[[Callable[..., Tensor]], Callable[..., Tensor]], backend: str
) -> None:
    """Narrow logits from an autocast layer; the loss is float32 and its inputs are not rounded."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 37)
    x, (_, teacher) = torch.randn(12, 16) * 5, make_logits(12, 37)
    function = through(loss_of(backend))
    with torch.autocast("cpu", torch.bfloat16):
        student = layer(x)
        assert student.dtype is torch.bfloat16
        loss = function(student, teacher)
    (grad,) = torch.autograd.grad(loss, student)
    assert_true(Outcome(loss.detach(), grad), student, teacher)


@every_backend
def test_autocast_leaves_float32_logits_alone(backend: str) -> None:
    student, teacher = make_logits(12, 37)
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(backend)(student, teacher)
        (grad,) = torch.autograd.grad(loss, student)
    assert_true(Outcome(loss.detach(), grad), student, teacher)


def op_arguments(setting: tuple[Any, ...], masked: bool, dtype: torch.dtype) -> tuple[Any, ...]:
    student, teacher = make_logits(6, 21, dtype=dtype)
    return (student, teacher, make_mask(6) if masked else None, *setting)


@every_kernel
@each_dtype
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("setting", OP_SETTINGS, ids=str)
def test_opcheck(setting: tuple[Any, ...], masked: bool, dtype: torch.dtype, backend: str) -> None:
    """Schema, fake kernels and AOT dispatch of both ops, by torch's own checks."""
    arguments = op_arguments(setting, masked, dtype)
    torch.library.opcheck(torch.ops.r2kd.correlation, (*arguments, 1e-8))
    loss, stats = torch.ops.r2kd.correlation(*arguments, 1e-8)
    grad_loss = torch.full_like(loss, 2.0)
    torch.library.opcheck(
        torch.ops.r2kd.correlation_backward,
        (grad_loss, *arguments[:3], stats, *arguments[3:]),
    )


@every_kernel
@pytest.mark.parametrize("shape", FEW_SHAPES, ids=lambda s: f"{s.rows}x{s.classes}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_ops_on_meta_tensors(shape: Any, dtype: torch.dtype, backend: str) -> None:
    """The fake kernels promise the shapes and dtypes that the real ones give."""
    student, teacher = make_logits(shape.rows, shape.classes, dtype=dtype)
    setting = OP_SETTINGS[0]
    real_loss, real_stats = torch.ops.r2kd.correlation(student, teacher, None, *setting, 1e-8)
    meta = student.to("meta")
    loss, stats = torch.ops.r2kd.correlation(meta, meta, None, *setting, 1e-8)
    for fake, real in ((loss, real_loss), (stats, real_stats)):
        assert fake.device.type == "meta"
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert stats.dim() == 1
    assert stats.numel() <= 16 * (shape.rows + shape.classes)
    grad = torch.ops.r2kd.correlation_backward(loss, meta, meta, None, stats, *setting)
    assert (grad.shape, grad.dtype) == (student.shape, dtype)


@every_kernel
@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_strides_are_as_the_fake_kernel_says(transposed: bool, backend: str) -> None:
    student, teacher = make_logits(6, 21)
    if transposed:
        student = student.T.contiguous().T
    setting = OP_SETTINGS[0]
    loss, stats = torch.ops.r2kd.correlation(student, teacher, None, *setting, 1e-8)
    real = torch.ops.r2kd.correlation_backward(loss, student, teacher, None, stats, *setting)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (loss, student, teacher, stats)]
        fake = torch.ops.r2kd.correlation_backward(*fakes[:3], None, fakes[3], *setting)
    assert fake.stride() == real.stride()


@every_backend
@each_dtype
def test_fake_tensors_through_the_function(dtype: torch.dtype, backend: str) -> None:
    """Shapes and dtypes of forward and backward without any data."""
    with FakeTensorMode():
        student = torch.empty(4, 3, 5, dtype=dtype, requires_grad=True)
        teacher = torch.empty(4, 3, 5)
        loss = loss_of(backend)(student, teacher, mask=torch.empty(4, 3, dtype=torch.bool))
        (grad,) = torch.autograd.grad(loss, student)
    assert loss.shape == ()
    assert loss.dtype is torch.promote_types(dtype, torch.float32)
    assert (grad.shape, grad.dtype) == (student.shape, dtype)


@every_kernel
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx(tracing: Any, backend: str) -> None:
    """The trace of forward and backward holds the two ops and replays on other logits."""

    def gradient(z: Tensor, y: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss_of(backend)(z, y), z)[0]

    graph = make_fx(gradient, tracing_mode=tracing)(*make_logits(6, 21, spread=1.0))
    targets = {node.target for node in graph.graph.nodes}
    assert torch.ops.r2kd.correlation.default in targets
    assert torch.ops.r2kd.correlation_backward.default in targets
    student, teacher = make_logits(6, 21)
    got = run(loss_of(backend), student, teacher)
    assert_true(got._replace(grad=graph(student, teacher)), student, teacher)


@every_kernel
def test_export(backend: str) -> None:
    """torch.export keeps the op, with a dynamic batch."""

    class Loss(torch.nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return loss_of(backend)(z, y)

    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(
        Loss(), make_logits(6, 21), dynamic_shapes={"z": {0: batch}, "y": {0: batch}}
    )
    student, teacher = make_logits(33, 21)
    assert program.module()(student, teacher).item() == loss_of(backend)(student, teacher).item()


@every_backend
def test_under_a_dispatch_mode(backend: str) -> None:
    """Tools that watch every op, such as the counter of flops, change nothing."""
    student, teacher = make_logits(12, 37)
    with FlopCounterMode(display=False):
        got = run(loss_of(backend), student, teacher)
    assert_true(got, student, teacher)
