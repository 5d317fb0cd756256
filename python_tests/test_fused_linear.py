"""Loss and gradients of the fused linear loss against the mathematics in float64."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import every_backend, generator
from fused_linear_cases import Heads, Truth, distances, make_heads, truth_of
from torch import Tensor
from triton_sessions import Selection, assert_passed, run_selection

from r2kd_ext import (
    autograd_fused_linear,
    chunks,
    correlation_kd,
    fused_linear_correlation_kd,
    linear_head,
    reference,
)

INF, NAN = torch.inf, torch.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_correlation = pytest.mark.parametrize("correlation", ["pearson", "cosine"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# Options of the function, and the same in the words of `truth_of`.
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 2.5, "weight": 0.7}, {"temperature": 2.5, "weight": 0.7}),
    (
        {"temperature": 3.0, "temperature_scaling": False},
        {"temperature": 3.0, "temperature_scaling": False},
    ),
    ({"eps": 0.05}, {"eps": 0.05}),
    ({"logit_scale": 0.3}, {"scales": (0.3, 0.3)}),
    ({"logit_scale": (1.7, 0.4)}, {"scales": (1.7, 0.4)}),
    ({"logit_softcap": 4.0}, {"caps": (4.0, 4.0)}),
    ({"logit_softcap": (None, 3.0)}, {"caps": (None, 3.0)}),
    (
        {"logit_scale": (0.8, 1.5), "logit_softcap": (5.0, None), "temperature": 2.0},
        {"scales": (0.8, 1.5), "caps": (5.0, None), "temperature": 2.0},
    ),
]


def gradients(
    heads: Heads, function: Any = fused_linear_correlation_kd, **options: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss = function(**(heads.keywords() | options))
    return loss.detach(), torch.autograd.grad(loss, heads.student)


def assert_true(
    heads: Heads,
    got: tuple[Tensor, tuple[Tensor, ...]],
    truth: Truth,
    eager_options: dict[str, Any] | None = None,
) -> None:
    """The error of each gradient is at most that of the eager reference in float32 on the same
    numbers, plus a quarter of what rounding costs, and what storing it in its dtype costs."""
    loss, grads = got
    wide = Heads(*(x.detach().float() for x in heads))
    for x in wide.student:
        x.requires_grad_()
    eager_loss, eager = gradients(
        wide, reference.fused_linear_correlation_kd, **(eager_options or {})
    )
    assert loss.dtype == torch.float32
    error, own = abs(loss.item() - truth.loss), abs(eager_loss.item() - truth.loss)
    assert error <= own + 1e-6 * max(1, truth.loss)
    for name, x, grad, far, own, rounding, exact in zip(
        heads._fields, heads.student, grads, distances(grads, truth), distances(eager, truth),
        truth.roundings, truth.grads, strict=False,
    ):  # fmt: skip
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        stored = torch.finfo(grad.dtype)
        allowed = own + 0.25 * np.linalg.norm(rounding)
        if grad.dtype != torch.float32:
            allowed += stored.eps / 2 * np.linalg.norm(exact)
            allowed += stored.smallest_normal * stored.eps / 2 * exact.size**0.5
        assert far <= allowed, f"{name}: {far:.3g} from the truth, allowed {allowed:.3g}"


@each_dtype
@each_correlation
@pytest.mark.parametrize("spread", [1e-2, 3.0, 30.0])
@pytest.mark.parametrize(
    "shape", [(23, 61, 12, 20), (200, 1000, 64, 96), (3, 8001, 16, 8)], ids=str
)
def test_truth(shape: tuple[int, ...], spread: float, correlation: str, dtype: torch.dtype) -> None:
    heads = make_heads(*shape, dtype=dtype, spread=spread)
    got = gradients(heads, correlation=correlation, chunk_rows=50)
    truth = truth_of(heads, correlation=correlation)
    assert_true(heads, got, truth, {"correlation": correlation})


@every_backend
@each_correlation
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: ",".join(s[0]) or "defaults")
def test_options(
    setting: tuple[dict[str, Any], dict[str, Any]], correlation: str, backend: str
) -> None:
    ours, theirs = setting
    heads = make_heads()
    options = ours | {"correlation": correlation}
    got = gradients(heads, chunk_rows=7, backend=backend, **options)
    assert_true(heads, got, truth_of(heads, correlation=correlation, **theirs), options)


@every_backend
@pytest.mark.parametrize("chunk_rows", [None, 1, 5, 22, 23, 1000])
def test_chunks(chunk_rows: int | None, backend: str) -> None:
    heads, mask = make_heads(), torch.rand(23, generator=generator("mask")) < 0.6
    settings: list[dict[str, Any]] = [{}, {"mask": mask}]
    for options in settings:
        got = gradients(heads, chunk_rows=chunk_rows, backend=backend, **options)
        assert_true(heads, got, truth_of(heads, **options), options)


def test_blocks_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted and gathered weights come in blocks, of which the last is smaller."""
    monkeypatch.setattr(linear_head, "BLOCK_BYTES", 4 * 12 * 9)
    heads = make_heads(dtype=torch.bfloat16)
    assert_true(heads, gradients(heads, chunk_rows=7), truth_of(heads))
    order = torch.randperm(61, generator=generator("order"))
    shuffled = heads._replace(
        teacher_weight=heads.teacher_weight[order], teacher_bias=heads.teacher_bias[order]
    )
    got = gradients(shuffled, chunk_rows=7, vocab_map=order.argsort().int())
    assert_true(heads, got, truth_of(heads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_products(
    autocast: bool, mapped: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU multiplies 16-bit operands as they are, so the gradient of the logits is rounded, after
    the softmax. Here with products that do the same."""

    def product(a: Tensor, b: Tensor, out: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == dtype
        return a.to(out) @ b.to(out)

    monkeypatch.setattr(linear_head, "_multiplies_halves", lambda device: True)
    monkeypatch.setattr(linear_head, "_product", product)
    monkeypatch.setattr(linear_head, "BLOCK_BYTES", 4 * 12 * 9)
    heads = make_heads(400, dtype=dtype)
    tiny = 2.0**-14  # brings the gradients of the logits below what float16 can hold
    options: dict[str, Any] = {"logit_scale": 0.7, "weight": tiny}
    if mapped:
        options["vocab_map"] = torch.arange(61)
    inputs = heads
    if autocast:
        inputs = Heads(*(x.detach().float() for x in heads))
        for x in inputs.student:
            x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = fused_linear_correlation_kd(**inputs.keywords(), chunk_rows=90, **options)
    grads = torch.autograd.grad(loss, inputs.student, torch.tensor(1 / tiny))
    truth = truth_of(heads, scales=(0.7, 0.7), weight=tiny)
    assert loss.item() == pytest.approx(truth.loss, rel=1e-5)
    h, w = (x.detach().double().numpy() for x in heads.student[:2])
    square, unit = truth.logit_grad**2, torch.finfo(dtype).eps / 2
    sizes = (square @ w**2, square.T @ h**2, np.zeros(61))
    found = tuple(x.double() * tiny for x in grads)
    for far, size, exact in zip(distances(found, truth), sizes, truth.grads, strict=True):
        stored = unit * np.linalg.norm(exact)
        assert far <= unit * np.sqrt(size.sum()) + stored + 1e-5 * np.linalg.norm(exact)


def test_row_term_of_correlation_kd() -> None:
    heads = make_heads(dtype=torch.float64)
    h, w, b, th, tw, tb = heads
    loss = correlation_kd(
        h @ w.T + b, th @ tw.T + tb, 2.0, correlation="pearson", inter_weight=0.7, intra_weight=0
    )
    got = fused_linear_correlation_kd(**heads.keywords(), temperature=2.0, weight=0.7)
    torch.testing.assert_close(got, loss, rtol=1e-12, atol=1e-12)


@each_correlation
def test_gradcheck(correlation: str) -> None:
    heads = make_heads(5, 11, 4, 3, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, True])

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fused_linear_correlation_kd(
            h, w, *heads[3:5], 1.3, student_bias=b, correlation=correlation, mask=mask,
            logit_softcap=4.0, logit_scale=0.8, chunk_rows=2,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, heads.student)


@each_correlation
def test_second_derivative_of_the_reference(correlation: str) -> None:
    heads = make_heads(4, 7, 3, 3, dtype=torch.float64)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return reference.fused_linear_correlation_kd(
            h, w, *heads[3:5], 1.3, student_bias=b, correlation=correlation
        )

    assert torch.autograd.gradgradcheck(loss, heads.student)


def test_second_derivative_is_refused() -> None:
    heads = make_heads()
    loss = fused_linear_correlation_kd(**heads.keywords())
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        torch.autograd.grad(loss, heads.student, create_graph=True)


@each_dtype
def test_second_backward_gives_the_same(dtype: torch.dtype) -> None:
    heads = make_heads(dtype=dtype)
    loss = fused_linear_correlation_kd(**heads.keywords())
    first = torch.autograd.grad(loss, heads.student, torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(loss, heads.student, torch.tensor(3.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_incoming_gradient_comes_before_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale lifts gradients that float16 cannot hold."""
    monkeypatch.setattr(autograd_fused_linear, "_BLOCK", 999)
    heads = make_heads(200, 1000, 64, 96, dtype=torch.float16, spread=1e-2)
    loss = fused_linear_correlation_kd(**heads.keywords())
    grads = torch.autograd.grad(loss, heads.student, torch.tensor(2.0**16))
    truth = truth_of(heads)
    for far, exact in zip(
        distances(tuple(x.double() / 2**16 for x in grads), truth), truth.grads, strict=True
    ):
        assert far <= 1e-3 * np.linalg.norm(exact)


def test_the_same_bits_every_time() -> None:
    heads = make_heads(200, 1000, 64, 96, dtype=torch.bfloat16)
    (loss, grads), (again, same) = gradients(heads), gradients(heads)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))


@each_dtype
def test_dropped_rows(dtype: torch.dtype) -> None:
    """Rows that the mask or the labels drop may hold anything, and get a gradient of 0."""
    heads = make_heads(dtype=dtype)
    mask = torch.rand(23, generator=generator("mask")) < 0.7
    labels = torch.randint(0, 61, (23,), generator=generator("labels"))
    labels[::3] = 7
    kept = mask & (labels != 7)
    truth = truth_of(heads, mask=kept)
    with torch.no_grad():
        heads.student_hidden[~kept] = NAN
        heads.teacher_hidden[~kept] = INF
    options = {"mask": mask, "labels": labels, "ignore_index": 7}
    got = gradients(heads, chunk_rows=6, **options)
    assert not got[1][0][~kept].any()
    clean = heads._replace(
        student_hidden=heads.student_hidden.detach().nan_to_num().requires_grad_(),
        teacher_hidden=heads.teacher_hidden.nan_to_num(posinf=0.0),
    )
    assert_true(clean, got, truth, {"mask": kept})
    _, eager = gradients(heads, reference.fused_linear_correlation_kd, **options)
    assert all(x.isfinite().all() for x in eager)


def test_dropped_rows_where_their_number_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU dropped rows are computed with the others; here the same on the CPU."""
    from r2kd_ext import linear_chunks

    monkeypatch.setattr(linear_chunks, "_knows_kept_rows", lambda mask: False)
    heads = make_heads()
    mask = torch.rand(23, generator=generator("mask")) < 0.5
    mask[:6] = False
    truth = truth_of(heads, mask=mask)
    for softcap in (None, 4.0):
        truth = truth_of(heads, mask=mask, caps=(softcap, softcap))
        for backend in ("native", "reference"):
            dirty = heads._replace(
                student_hidden=heads.student_hidden.detach().clone(),
                teacher_hidden=heads.teacher_hidden.clone(),
            )
            dirty.student_hidden[~mask], dirty.teacher_hidden[~mask] = NAN, NAN
            dirty.student_hidden.requires_grad_()
            options: dict[str, Any] = {"mask": mask, "logit_softcap": softcap}
            got = gradients(dirty, chunk_rows=6, backend=backend, **options)
            assert not got[1][0][~mask].any()
            assert_true(heads, got, truth, options)


@every_backend
@pytest.mark.parametrize("known", [True, False])
def test_no_row_is_kept(known: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2kd_ext import linear_chunks

    monkeypatch.setattr(linear_chunks, "_knows_kept_rows", lambda mask: known)
    heads = make_heads()
    loss, grads = gradients(heads, mask=torch.zeros(23, dtype=torch.bool), backend=backend)
    assert loss.item() == 0
    assert not any(x.any() for x in grads)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_rows(dtype: torch.dtype, backend: str) -> None:
    heads = make_heads(0, dtype=dtype)
    loss, grads = gradients(heads, backend=backend)
    assert loss.item() == 0
    assert grads[0].shape == (0, 12)
    assert not any(x.any() for x in grads)


@every_backend
@pytest.mark.parametrize(("correlation", "expected"), [("pearson", 1.0), ("cosine", 1e-8)])
def test_one_class(correlation: str, expected: float, backend: str) -> None:
    """p = q = 1: nothing varies, so a centred r is 0, and an uncentred one is 1."""
    heads = make_heads(5, 1, 4, 3)
    loss, grads = gradients(heads, correlation=correlation, backend=backend)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert not any(x.any() for x in grads)


@every_backend
@each_correlation
def test_classes_ruled_out(correlation: str, backend: str) -> None:
    heads = make_heads()
    with torch.no_grad():
        heads.student_bias[::4] = -INF
        heads.teacher_bias[::5] = -INF
    got = gradients(heads, chunk_rows=7, correlation=correlation, backend=backend)
    assert not got[1][1][::4].any()
    assert not got[1][2][::4].any()
    finite = heads._replace(  # far enough below for p = 0 in float64, too
        student_bias=heads.student_bias.detach().clamp(min=-3e3).requires_grad_(),
        teacher_bias=heads.teacher_bias.clamp(min=-3e3),
    )
    assert_true(heads, got, truth_of(finite, correlation=correlation), {"correlation": correlation})


def test_leading_dimensions_and_strides() -> None:
    heads = make_heads(24)
    truth = truth_of(heads)
    h, w, b, th, tw, tb = heads

    def strided(x: Tensor) -> Tensor:
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), NAN)
        wide[..., 1::2] = x.detach()
        return wide[..., 1::2]

    leaves = (
        strided(h.detach().reshape(2, 4, 3, -1).transpose(0, 2)).requires_grad_(),
        w.detach().t().contiguous().t().requires_grad_(),
        strided(b).requires_grad_(),
    )
    teacher = strided(th.reshape(2, 4, 3, -1).transpose(0, 2))
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    loss = fused_linear_correlation_kd(
        leaves[0], leaves[1], teacher, strided(tw), student_bias=leaves[2], teacher_bias=tb,
        mask=mask, chunk_rows=7,
    )  # fmt: skip
    grads = torch.autograd.grad(loss, leaves)
    assert grads[0].shape == (3, 4, 2, 12)
    rows = (grads[0].transpose(0, 2).reshape(24, 12), *grads[1:])
    assert_true(heads, (loss.detach(), rows), truth)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_only_what_requires_a_gradient_gets_one(frozen: tuple[int, ...]) -> None:
    heads = make_heads()
    _, expected = gradients(heads)
    for index in frozen:
        heads.student[index].requires_grad_(False)
    loss = fused_linear_correlation_kd(**heads.keywords())
    assert loss.requires_grad == (len(frozen) < 3)
    if loss.requires_grad:
        loss.backward()
    for index, (x, grad) in enumerate(zip(heads.student, expected, strict=True)):
        if index in frozen:
            assert x.grad is None
        else:
            assert x.grad is not None
            assert torch.equal(x.grad, grad)


def test_teacher_gets_no_gradient() -> None:
    heads = make_heads()
    for x in heads[3:]:
        x.requires_grad_()
    fused_linear_correlation_kd(**heads.keywords()).backward()
    assert all(x.grad is None for x in heads[3:])


def test_no_gradient_is_asked_for() -> None:
    heads = make_heads()
    expected = fused_linear_correlation_kd(**heads.keywords()).detach()
    with torch.no_grad():
        loss = fused_linear_correlation_kd(**heads.keywords())
    assert torch.equal(loss, expected)
    assert not loss.requires_grad
    with torch.inference_mode():
        teacher = heads.teacher_hidden * 1
    assert torch.equal(
        fused_linear_correlation_kd(**heads._replace(teacher_hidden=teacher).keywords()), expected
    )


@every_backend
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_mixed_dtypes(owner: str, backend: str) -> None:
    """float64 anywhere makes the loss float64; each head is multiplied in its own type."""
    heads = make_heads()
    wide = heads._replace(
        **{f"{owner}_weight": getattr(heads, f"{owner}_weight").detach().double().requires_grad_()}
    )
    loss, grads = gradients(wide, backend=backend)
    assert loss.dtype == torch.float64
    assert [x.dtype for x in grads] == [x.dtype for x in wide.student]
    truth = truth_of(heads)
    assert loss.item() == pytest.approx(truth.loss, rel=1e-6)
    for far, exact in zip(distances(grads, truth), truth.grads, strict=True):
        assert far <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("classes", "rows"), [(1, 1024), (16384, 512), (32768, 256), (128256, 64), (10**7, 16)]
)
def test_chunk_rule(classes: int, rows: int) -> None:
    """The largest power of two whose 12 V bytes per row fit into 128 MiB, from 16 to 1024."""
    device = torch.device("cpu")
    assert chunks.rows_per_chunk(classes, torch.float32, device) == rows
    half = rows if rows in (16, 1024) else rows // 2
    assert chunks.rows_per_chunk(classes, torch.float64, device) == half


def test_chunk_rule_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of what is free to the device or unused in torch's cache; no GPU is needed."""
    free = 8 * 100 * 12 * 1000  # 100 rows of 1000 classes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free // 2, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: free // 2)
    assert chunks.rows_per_chunk(1000, torch.float32, torch.device("cuda")) == 64


@pytest.mark.parametrize(
    ("available", "want"),
    [
        ("MemAvailable:   99999999 kB", 1024),  # the most that is taken
        ("MemFree: 7 kB\nMemAvailable:      9375 kB\n", 64),  # 100 rows of 1000 classes
        ("MemFree: 7 kB", 1024),  # an old kernel
        (None, 1024),  # another system
    ],
)
def test_chunk_rule_on_a_cpu(
    available: str | None, want: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if available is not None:
        (tmp_path / "meminfo").write_text(available)
    monkeypatch.setattr(chunks, "_MEMINFO", tmp_path / "meminfo")
    assert chunks.rows_per_chunk(1000, torch.float32, torch.device("cpu")) == want


@pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="this is the interpreter's session already"
)
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    selection: Selection = {
        "test_fused_linear.py": (
            "test_no_row or test_one_class or (test_chunks and (5 or 22)) or test_mixed_dtypes"
        )
    }
    assert_passed(run_selection(selection, R2KD_BACKEND="triton"), 9)
