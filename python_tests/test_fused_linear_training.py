"""The fused linear loss as training loops use it: gradients equal those of the eager reference."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import every_backend, generator
from fused_linear_cases import Heads, make_heads
from torch import Tensor, nn

from r2kd_ext import fused_linear_correlation_kd, reference

Loss = Callable[..., Tensor]
FUNCTIONS: tuple[Loss, Loss] = (
    partial(fused_linear_correlation_kd, chunk_rows=5),
    reference.fused_linear_correlation_kd,
)
VOCABULARY, WIDTH, TEACHER_WIDTH = 67, 16, 24


class Student(nn.Module):
    """A language model without attention: embedding, a layer, and a head that is the embedding
    again where `tied`. Its forward is the loss, as it is where FSDP gathers the head."""

    def __init__(self, loss: Loss, *, tied: bool) -> None:
        super().__init__()
        self.loss = loss
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=not tied)
        source = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(std=0.5, generator=source)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, *teacher: Tensor, **options: Any) -> Tensor:
        hidden = torch.tanh(self.layer(self.embedding(tokens)))  # [N, L, H]
        return self.loss(hidden, self.head.weight, *teacher, student_bias=self.head.bias, **options)


def batch(number: int, sequences: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and labels [N, L], the teacher's hidden states [N, L, H_t] and weight [V, H_t]."""
    source = generator("batch", number)
    tokens = torch.randint(0, VOCABULARY, (sequences, 6), generator=source)
    labels = tokens.where(torch.rand(sequences, 6, generator=source) < 0.7, -100)
    hidden = torch.randn(sequences, 6, TEACHER_WIDTH, generator=source)
    weight = torch.randn(VOCABULARY, TEACHER_WIDTH, generator=generator("teacher")) / 2
    return tokens, labels, hidden, weight


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the rounding of float32 sums, in units of each gradient's largest element."""
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        size = expected[name].abs().max()
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=2e-6 * size.item(), msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_gradient_accumulation_and_tied_weights(tied: bool) -> None:
    found = []
    for function in FUNCTIONS:
        model = Student(function, tied=tied)
        for number in range(3):
            tokens, labels, *teacher = batch(number)
            (model(tokens, *teacher, labels=labels) / 3).backward()
        found.append(gradients_of(model))
    assert len(found[0]) == (3 if tied else 5)
    assert_equal(*found)


def test_together_with_another_loss() -> None:
    """The hidden states and the head serve a cross-entropy, too."""
    found = []
    for function in FUNCTIONS:
        heads = make_heads()
        targets = torch.arange(23)
        logits = heads.student_hidden @ heads.student_weight.T
        loss = function(**heads.keywords(), temperature=2.0)
        (0.3 * loss + nn.functional.cross_entropy(logits, targets)).backward()
        found.append({str(i): x.grad for i, x in enumerate(heads.student) if x.grad is not None})
    assert_equal(*found)


def test_a_weight_stepped_between_forward_and_backward() -> None:
    """Backward needs nothing but what forward has computed."""
    heads = make_heads()
    loss = fused_linear_correlation_kd(**heads.keywords())
    expected = torch.autograd.grad(loss, heads.student, retain_graph=True)
    with torch.no_grad():
        for x in heads.student:
            x.zero_()
    found = torch.autograd.grad(loss, heads.student)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    """Operands are rounded as `linear` rounds them; the products and all that follows are not."""
    heads = make_heads()
    with torch.autocast("cpu", dtype=dtype):
        loss = fused_linear_correlation_kd(**heads.keywords(), chunk_rows=7, backend=backend)
        eager_loss = reference.fused_linear_correlation_kd(**heads.keywords())
    rounded = Heads(*(x.detach().to(dtype).float() for x in heads))
    for x in rounded.student:
        x.requires_grad_()
    expected_loss = reference.fused_linear_correlation_kd(**rounded.keywords())
    expected = torch.autograd.grad(expected_loss, rounded.student)
    eager = torch.autograd.grad(eager_loss, heads.student)
    found = torch.autograd.grad(loss, heads.student)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    for grad, other, exact in zip(found, eager, expected, strict=True):
        assert grad.dtype == torch.float32
        size = exact.abs().max().item()
        torch.testing.assert_close(grad, exact, rtol=0, atol=2e-6 * size)
        # Autograd rounds the gradient of a rounded operand to the operand's dtype.
        torch.testing.assert_close(other, exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_autocast_leaves_float64_alone() -> None:
    heads = make_heads(dtype=torch.float64)
    expected = fused_linear_correlation_kd(**heads.keywords())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused_linear_correlation_kd(**heads.keywords()), expected)


def test_hidden_states_of_an_autocast_layer() -> None:
    """bfloat16 hidden states and float32 weights, as a model under autocast has them."""
    found = []
    for function in FUNCTIONS:
        model = Student(function, tied=False)
        tokens, labels, *teacher = batch(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(tokens, *teacher, labels=labels)
        loss.backward()
        found.append(gradients_of(model))
    for name, grad in found[0].items():
        assert grad.dtype == torch.float32
        size = found[1][name].abs().max().item()
        torch.testing.assert_close(grad, found[1][name], rtol=0, atol=2**-7 * size)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fullgraph(dtype: torch.dtype, backend: str) -> None:
    torch.compiler.reset()

    def step(scale: Tensor, keywords: dict[str, Any]) -> Tensor:
        hidden = keywords["student_hidden"] * scale
        loss = fused_linear_correlation_kd(
            **(keywords | {"student_hidden": hidden}), backend=backend, chunk_rows=7,
            logit_softcap=(5.0, None),
        )  # fmt: skip
        return 3 * loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    heads = make_heads(dtype=dtype)
    mask = torch.rand(23, generator=generator("mask")) < 0.6
    keywords = heads.keywords() | {"mask": mask, "labels": torch.arange(23), "ignore_index": 2}
    two = torch.tensor(2.0, dtype=dtype)
    losses = [f(two, keywords) for f in (compiled, step)]
    found, expected = (torch.autograd.grad(x, heads.student) for x in losses)
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_fullgraph_under_autocast_and_without_gradient() -> None:
    torch.compiler.reset()
    heads = make_heads()
    compiled = torch.compile(fused_linear_correlation_kd, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = fused_linear_correlation_kd(**heads.keywords())
        assert torch.equal(compiled(**heads.keywords()), expected)
        with torch.no_grad():
            assert torch.equal(compiled(**heads.keywords()), expected)


@pytest.mark.slow
def test_inductor() -> None:
    torch.compiler.reset()
    found = []
    for function in (torch.compile(fused_linear_correlation_kd, fullgraph=True), FUNCTIONS[1]):
        heads = make_heads(dtype=torch.bfloat16)
        loss = function(**heads.keywords()) * 2
        found.append(dict(zip("hwb", torch.autograd.grad(loss, heads.student), strict=True)))
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=2**-7, atol=1e-5)


def test_op_is_sound() -> None:
    heads, none = make_heads(7, 11, 4, 3, requires_grad=False), (None,) * 4
    scalars = (1.3, True, 1.0, 1e-8, 1.0, 1.0, 0.0, 5.0, None, 3)
    torch.library.opcheck(
        torch.ops.r2kd.fused_linear_correlation.default,
        (*heads, *none, *scalars, [True, True, False], "native"),
    )


def _expected_of_both(tied: bool) -> dict[str, Tensor]:
    """The mean of the ranks' gradients, by the eager reference in one process."""
    model = Student(FUNCTIONS[1], tied=tied)
    for number in range(2):
        tokens, labels, *teacher = batch(number)
        (model(tokens, *teacher, labels=labels) / 2).backward()
    return gradients_of(model)


def _ddp(rank: int, tied: bool) -> None:
    model = nn.parallel.DistributedDataParallel(Student(FUNCTIONS[0], tied=tied))
    tokens, labels, *teacher = batch(rank)
    model(tokens, *teacher, labels=labels).backward()
    assert_equal(gradients_of(model.module), _expected_of_both(tied))


def _fsdp(rank: int, tied: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (2,))
    model = Student(FUNCTIONS[0], tied=tied)
    if not tied:  # its own group: gathered and freed apart from the rest
        fully_shard(model.layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weight = model.head.weight
    assert isinstance(weight, DTensor)
    assert weight.to_local().shape[0] < VOCABULARY
    tokens, labels, *teacher = batch(rank)
    model(tokens, *teacher, labels=labels).backward()
    found = {}
    for name, grad in gradients_of(model).items():
        assert isinstance(grad, DTensor)
        found[name] = grad.full_tensor()
    assert_equal(found, _expected_of_both(tied))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        for wrapped in (_ddp, _fsdp):
            for tied in (False, True):
                wrapped(rank, tied)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """DDP and FSDP2, tied and not; one pair of processes, since starting it takes longest."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
