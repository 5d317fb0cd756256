"""The correlation loss on a CUDA device: the CPU's cases, and what only a GPU can get wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import (
    FEW_SHAPES,
    SETTINGS,
    Setting,
    Shape,
    each_dtype,
    each_of_few_shapes,
    each_setting,
    each_shape,
    loss_of,
    make_logits,
    make_mask,
)
from compare import Outcome, assert_same_bits, assert_true, run
from test_correlation_inputs import LAYOUTS
from test_correlation_numerics import POISON, ruled_out
from torch import Tensor

import r2kd_ext
from r2kd_ext.backends import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
]
each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            "native",
            marks=pytest.mark.skipif(
                not cuda.is_compiled(), reason="backend 'native' skipped: built without CUDA"
            ),
        ),
        pytest.param(
            "triton",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("triton") is None,
                reason="backend 'triton' skipped: the package triton is not installed",
            ),
        ),
    ],
)
each_correlation = pytest.mark.parametrize("correlation", ["cosine", "pearson"])
GIB = 2**30


def on_gpu(backend: str | None, student: Tensor, teacher: Tensor, **options: Any) -> Outcome:
    """Forward and backward on the GPU, the result on the CPU, where the comparators are."""
    options = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    got = run(loss_of(backend), student.cuda(), teacher.cuda(), **options)
    return Outcome(got.loss.cpu(), got.grad.cpu())


def check(backend: str | None, student: Tensor, teacher: Tensor, **options: Any) -> None:
    assert_true(on_gpu(backend, student, teacher, **options), student, teacher, **options)


@pytest.fixture
def without_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


# --- the grid ----------------------------------------------------------------------------------
# Thinner than the CPU's: each combination of terms, block, dtype and mask is a kernel to compile,
# a second each.

MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float16, torch.bfloat16),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float64),
]
both_terms = pytest.mark.parametrize("setting", SETTINGS[:2], ids=lambda s: s.name)
each_term = pytest.mark.parametrize(
    "setting", [SETTINGS[1], SETTINGS[3], SETTINGS[5]], ids=lambda s: s.name
)


@each_backend
@both_terms
@each_shape
def test_float32(shape: Shape, setting: Setting, backend: str) -> None:
    check(backend, *make_logits(shape.rows, shape.classes), **setting.options)


@each_backend
@each_setting
@pytest.mark.parametrize("shape", [(7, 13), (2, 32_001)], ids=str)
def test_settings(shape: tuple[int, int], setting: Setting, backend: str) -> None:
    check(backend, *make_logits(*shape), **setting.options)


@each_backend
@each_of_few_shapes
@each_dtype
def test_dtypes(shape: Shape, dtype: torch.dtype, backend: str) -> None:
    options = SETTINGS[1].options
    check(backend, *make_logits(shape.rows, shape.classes, dtype=dtype), **options)


@each_backend
@both_terms
@each_of_few_shapes
def test_mask(shape: Shape, setting: Setting, backend: str) -> None:
    mask = make_mask(shape.rows)
    check(backend, *make_logits(shape.rows, shape.classes), **setting.options, mask=mask)


@each_backend
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("shape", [(33, 65), (5, 9001)], ids=str)
def test_mixed_dtypes(
    shape: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype], backend: str
) -> None:
    logits = make_logits(*shape, dtype=dtypes[0], teacher_dtype=dtypes[1])
    check(backend, *logits, correlation="pearson")


@each_backend
@each_correlation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1024, 1000), (256, 21_841), (64, 32_768), (16, 131_072), (8, 262_144)], ids=str
)
def test_large(shape: tuple[int, int], dtype: torch.dtype, correlation: str, backend: str) -> None:
    check(backend, *make_logits(*shape, dtype=dtype), correlation=correlation)


@each_backend
@each_correlation
def test_a_million_rows(correlation: str, backend: str) -> None:
    check(backend, *make_logits(2**20, 10), correlation=correlation)


@each_backend
@each_correlation
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("shape", [(9, 37), (3, 9001), (700, 4)], ids=str)
def test_spread_and_temperature(
    shape: tuple[int, int], spread: float, temperature: float, correlation: str, backend: str
) -> None:
    """The GPU's exponential is not the CPU's: this is where its error would show."""
    logits = make_logits(*shape, spread=spread)
    check(backend, *logits, temperature=temperature, correlation=correlation)


@each_backend
@each_correlation
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, correlation: str, backend: str) -> None:
    student, teacher = make_logits(12, 70, dtype=dtype)
    lain = [LAYOUTS[layout](x.cuda()) for x in (student, teacher)]
    got = run(loss_of(backend), *lain, correlation=correlation)
    got = Outcome(got.loss.cpu(), got.grad.cpu())
    assert_true(got, student, teacher, correlation=correlation)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_long_rows(layout: str, dtype: torch.dtype, backend: str) -> None:
    """Without columns, rows that lie well are read 16 bytes at a time, and only these may be."""
    student, teacher = make_logits(5, 4104, dtype=dtype)
    lain = [LAYOUTS[layout](x.cuda()) for x in (student, teacher)]
    got = run(loss_of(backend), *lain, intra_weight=0.0)
    got = Outcome(got.loss.cpu(), got.grad.cpu())
    assert_true(got, student, teacher, intra_weight=0.0)


@each_backend
@pytest.mark.parametrize("classes", [10, 2100])
def test_runs_of_dropped_rows(classes: int, backend: str) -> None:
    """Parts of the batch that no row is kept of, at both ends and in between."""
    student, teacher = make_logits(1500, classes)
    mask = torch.zeros(1500, dtype=torch.bool)
    mask[700:720] = mask[1200] = True
    check(backend, student, teacher, correlation="pearson", mask=mask)


@each_backend
@each_term
def test_minus_infinity(setting: Setting, backend: str) -> None:
    student, teacher = ruled_out(14, 35)
    got = on_gpu(backend, student, teacher, **setting.options)
    assert_true(got, student, teacher, **setting.options)
    assert (got.grad[student == -torch.inf] == 0).all()


@each_backend
@each_term
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("classes", [37, 9001])
def test_poison(classes: int, poison: str, setting: Setting, backend: str) -> None:
    student, teacher = make_logits(9, classes)
    of, value = POISON[poison]
    logits = student if of == "student" else teacher
    for row, column in ((4, 0), (6, classes - 1)):
        logits[row, slice(None) if value == -torch.inf else column] = value
    got = on_gpu(backend, student, teacher, **setting.options)
    expected = run(loss_of("reference"), student, teacher, **setting.options)
    assert got.loss.isnan()
    assert torch.equal(got.grad.isnan(), expected.grad.isnan())


@each_backend
@each_term
def test_all_rows_masked_and_no_rows(setting: Setting, backend: str) -> None:
    student, teacher = make_logits(6, 9)
    mask = torch.zeros(6, dtype=torch.bool)
    got = on_gpu(backend, student, teacher, **setting.options, mask=mask)
    assert got.loss.item() == 0
    assert_same_bits(got.grad, torch.zeros_like(student))
    got = on_gpu(backend, student[:0], teacher[:0], **setting.options)
    assert got.loss.item() == 0
    assert got.grad.shape == (0, 9)


@each_backend
@pytest.mark.parametrize("setting", SETTINGS[:3], ids=lambda s: s.name)
def test_gradcheck(setting: Setting, backend: str) -> None:
    student, teacher = (x.cuda() for x in make_logits(5, 7, spread=1.0, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda z: loss_of(backend)(z, teacher, **setting.options), student.requires_grad_()
    )


# --- what only a GPU can get wrong ---------------------------------------------------------------

RUNS = [*((s.rows, s.classes) for s in FEW_SHAPES), (1024, 1000), (64, 2100), (33, 9001)]
each_run = pytest.mark.parametrize("shape", RUNS, ids=str)


@each_backend
@each_correlation
@each_run
def test_same_bits_in_every_run(shape: tuple[int, int], correlation: str, backend: str) -> None:
    logits = make_logits(*shape)
    first = on_gpu(backend, *logits, correlation=correlation)
    for _ in range(5):
        again = on_gpu(backend, *logits, correlation=correlation)
        assert_same_bits(first.loss, again.loss)
        assert_same_bits(first.grad, again.grad)


@each_backend
@each_run
@pytest.mark.parametrize("masked", [False, True])
def test_no_synchronisation(
    shape: tuple[int, int], masked: bool, backend: str, without_synchronisation: None
) -> None:
    student, teacher = (torch.empty(shape, device="cuda") for _ in range(2))
    mask = torch.empty(shape[0], device="cuda", dtype=torch.bool) if masked else None
    loss_of(backend)(student.requires_grad_(), teacher, mask=mask).backward()


@each_backend
@each_run
def test_on_another_stream(shape: tuple[int, int], backend: str) -> None:
    """The logits are ready late, on this stream only: a launch elsewhere would see them early."""
    student, teacher = make_logits(*shape)
    late_student, late_teacher = (torch.full(shape, torch.nan, device="cuda") for _ in range(2))
    source_student, source_teacher = student.cuda(), teacher.cuda()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # clock cycles
        late_student.copy_(source_student)
        late_teacher.copy_(source_teacher)
        got = run(loss_of(backend), late_student, late_teacher)
    stream.synchronize()
    assert_true(Outcome(got.loss.cpu(), got.grad.cpu()), student, teacher)


@each_backend
@each_run
@pytest.mark.parametrize("masked", [False, True])
def test_graph_capture(shape: tuple[int, int], masked: bool, backend: str) -> None:
    """Captured once, replayed on other logits and another mask."""
    rows, _ = shape
    static = [x.cuda() for x in make_logits(*shape)]
    static[0].requires_grad_()
    mask = torch.ones(rows, dtype=torch.bool, device="cuda") if masked else None

    def step() -> tuple[Tensor, Tensor]:
        loss = loss_of(backend)(*static, mask=mask, correlation="pearson")
        return loss, torch.autograd.grad(loss, static[0])[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    student, teacher = make_logits(*shape, spread=2.0)
    options: dict[str, Any] = {"correlation": "pearson"}
    with torch.no_grad():
        static[0].copy_(student)
        static[1].copy_(teacher)
        if mask is not None:
            options["mask"] = make_mask(rows)
            mask.copy_(options["mask"])
    graph.replay()
    torch.cuda.synchronize()
    assert_true(Outcome(loss.detach().cpu(), grad.cpu()), student, teacher, **options)


@each_backend
def test_second_device(backend: str) -> None:
    """Tensors on a device that is not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    student, teacher = make_logits(33, 65)
    got = run(loss_of(backend), student.to("cuda:1"), teacher.to("cuda:1"))
    assert got.grad.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_true(Outcome(got.loss.cpu(), got.grad.cpu()), student, teacher)


@each_backend
@pytest.mark.parametrize("setting", [SETTINGS[1], SETTINGS[3]], ids=lambda s: s.name)
def test_more_than_2_to_the_31_elements(setting: Setting, backend: str) -> None:
    """Real rows, not expanded ones; the last must be right, and the columns must see all."""
    rows, classes, same = 2**15 + 8, 2**16 + 1, 8
    assert rows * classes > 2**31
    if torch.cuda.mem_get_info()[0] < 30 * GIB:
        pytest.skip("needs 30 GiB of free GPU memory")
    few = make_logits(same, classes, dtype=torch.bfloat16)
    student, teacher = (x.cuda().repeat(rows // same, 1) for x in few)  # [B, C]
    # The same rows over and over: the correlations are those of a few (without eps, which does not
    # grow with the rows), the gradients a share.
    options = {**setting.options, "eps": 0.0}
    got = run(loss_of(backend), student, teacher, **options)
    expected = run(loss_of("reference"), *(x.double() for x in few), **options)
    torch.testing.assert_close(got.loss.cpu().double(), expected.loss, rtol=1e-5, atol=1e-6)
    share = same / rows
    for block in (slice(0, same), slice(rows - same, rows)):
        grad = got.grad[block].cpu().double()
        torch.testing.assert_close(grad, expected.grad * share, rtol=1e-2, atol=1e-12)


@each_backend
def test_strides_beyond_32_bits(backend: str) -> None:
    stride = 2**30 + 1
    if torch.cuda.mem_get_info()[0] < 8 * GIB:
        pytest.skip("needs 8 GiB of free GPU memory")
    student, teacher = make_logits(3, 40, dtype=torch.bfloat16)
    memory = torch.empty(3 * stride, dtype=torch.bfloat16, device="cuda")
    far, far_teacher = (memory.as_strided((3, 40), (stride, 1), at) for at in (0, 40))
    far.copy_(student)
    far_teacher.copy_(teacher)
    got = run(loss_of(backend), far, far_teacher)
    assert_true(Outcome(got.loss.cpu(), got.grad.cpu()), student, teacher)


@each_backend
@each_dtype
def test_opcheck(dtype: torch.dtype, backend: str) -> None:
    student, teacher = (x.cuda() for x in make_logits(6, 21, dtype=dtype))
    arguments = (student, teacher, make_mask(6).cuda(), 1.0, True, 1.0, 1.0)
    which = {"triton": backend == "triton"}
    torch.library.opcheck(torch.ops.r2kd.correlation, (*arguments, 1e-8), which)
    loss, stats = torch.ops.r2kd.correlation(*arguments, 1e-8, **which)
    backward = (torch.full_like(loss, 2.0), *arguments[:3], stats, *arguments[3:])
    torch.library.opcheck(torch.ops.r2kd.correlation_backward, backward, which)


@each_backend
@each_correlation
def test_compiled(correlation: str, backend: str) -> None:
    student, teacher = make_logits(33, 65)
    function: Callable[..., Tensor] = torch.compile(loss_of(backend), fullgraph=True)
    got = run(function, student.cuda(), teacher.cuda(), correlation=correlation)
    got = Outcome(got.loss.cpu(), got.grad.cpu())
    assert_true(got, student, teacher, correlation=correlation)


def test_choice() -> None:
    """Without a wish a GPU tensor gets what build_info() says, and nothing else."""
    student, teacher = make_logits(33, 65)
    chosen = r2kd_ext.build_info()["ops"]["correlation"]["cuda"]
    assert chosen["reason"]
    default, asked = (on_gpu(backend, student, teacher) for backend in (None, chosen["backend"]))
    assert_same_bits(default.loss, asked.loss)
    assert_same_bits(default.grad, asked.grad)
