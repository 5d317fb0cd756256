"""What a rank does in the tests of losses over a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from cases import generator, make_logits
from torch import Tensor

import r2kd_ext
from r2kd_ext import reference


class Batch(NamedTuple):
    """A batch that one process sees whole, and a group in parts."""

    student: Tensor  # [B, C]
    teacher: Tensor  # [B, C]
    mask: Tensor | None  # [B] bool
    sample_weight: Tensor | None  # [B]

    def rows(self, begin: int, end: int) -> Batch:
        mask = None if self.mask is None else self.mask[begin:end]
        weight = None if self.sample_weight is None else self.sample_weight[begin:end]
        return Batch(self.student[begin:end], self.teacher[begin:end], mask, weight)


# Rows of each rank. With a mask, the rows of rank 1 are all masked.
SPLITS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"even": (6, 6), "uneven": (9, 2), "empty": (7, 0)},
    4: {"even": (3, 3, 3, 3), "uneven": (5, 1, 2, 8), "empty": (4, 0, 7, 1)},
}


def make_batch(
    split: tuple[int, ...],
    classes: int,
    *,
    masked: bool = False,
    only_masked: bool = False,
    weighted: bool = False,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    total = sum(split)
    student, teacher = make_logits(total, classes, spread=spread, dtype=dtype)
    source = generator("group", split, classes)
    mask = weight = None
    if masked:
        mask = torch.rand(total, generator=source) < 0.7
        mask[split[0] : split[0] + split[1]] = False
        mask &= not only_masked
    if weighted:
        weight = torch.rand(total, generator=source, dtype=torch.float64) + 0.1
    return Batch(student, teacher, mask, weight)


def share(batch: Batch, split: tuple[int, ...], rank: int) -> Batch:
    return batch.rows(sum(split[:rank]), sum(split[: rank + 1]))


def loss_and_grad(batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss of a batch and its gradient, by the fused functions or by the reference itself."""
    student = batch.student.detach().requires_grad_()
    function: Callable[..., Tensor] = r2kd_ext.correlation_kd
    if options.get("backend") == "specification":
        function = reference.correlation_kd
        options = {name: value for name, value in options.items() if name != "backend"}
    loss = function(
        student, batch.teacher, mask=batch.mask, sample_weight=batch.sample_weight, **options
    )
    (grad,) = torch.autograd.grad(loss, student)
    return loss.detach(), grad


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes that each collective call inside hands to torch.distributed, in order."""
    sent: list[int] = []
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *rest: Any, **options: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return original(tensor, *rest, **options)

    dist.all_reduce = all_reduce
    try:
        yield sent
    finally:
        dist.all_reduce = original


def local_result(
    group: Any, split: tuple[int, ...], classes: int, made: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    batch = share(make_batch(split, classes, **made), split, group.rank())
    return loss_and_grad(batch, group=group, **options)


def kept_bytes(group: Any, rows: int, classes: int, backend: str) -> int:
    """Bytes of what autograd keeps between forward and backward, without the logits."""
    student, teacher = make_logits(rows, classes)
    student.requires_grad_()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        r2kd_ext.correlation_kd(
            student, teacher, correlation="pearson", rank_weight=1.0, rank="soft",
            rank_strength=0.1, group=group, backend=backend,
        )  # fmt: skip
    for x in (student, teacher):
        kept.pop(x.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def collective_bytes(group: Any, classes: int, options: dict[str, Any]) -> tuple[list[int], int]:
    """Bytes of each collective call of forward, and how many calls backward makes."""
    student, teacher = make_logits(5, classes)
    student.requires_grad_()
    with counted() as sent:
        loss = r2kd_ext.correlation_kd(student, teacher, group=group, **options)
        forward = list(sent)
        loss.backward()
    return forward, len(sent) - len(forward)


class Student(torch.nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        source = generator("student", classes)
        self.hidden = torch.nn.Linear(6, 8, dtype=torch.float64)
        self.head = torch.nn.Linear(8, classes, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.hidden(x)))
        return out


def parameter_gradients(
    group: Any, split: tuple[int, ...], classes: int, options: dict[str, Any]
) -> list[Tensor]:
    """Gradients of a model's parameters after DDP's averaging; without a group, of one process."""
    total = sum(split)
    images = torch.randn(total, 6, generator=generator("images", total), dtype=torch.float64)
    teacher = make_batch(split, classes).teacher
    model = Student(classes)
    parameters = list(model.parameters())
    run: torch.nn.Module = model
    if group is not None:
        rank = group.rank()
        rows = slice(sum(split[:rank]), sum(split[: rank + 1]))
        images, teacher = images[rows], teacher[rows]
        run = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
    criterion = r2kd_ext.CorrelationKDLoss(group=group, **options)
    (3.0 * criterion(run(images), teacher)).backward()
    return [p.grad for p in parameters if p.grad is not None]


def odd_one_out(group: Any, odd: dict[str, Any], common: dict[str, Any]) -> Tensor:
    """Rank 1 calls with other options than the rest."""
    student, teacher = make_logits(4, 6)
    options = odd if group.rank() == 1 else common
    return r2kd_ext.correlation_kd(student, teacher, group=group, **options)


def second_derivative(group: Any, backend: str) -> None:
    student, teacher = make_logits(4, 6)
    student.requires_grad_()
    loss = r2kd_ext.correlation_kd(student, teacher, group=group, backend=backend)
    torch.autograd.grad(loss, student, create_graph=True)


def gradient_twice(group: Any, backend: str) -> bool:
    """Whether a second backward through a kept graph, and a second call, give the same bits."""
    student, teacher = make_logits(9, 21)
    student.requires_grad_()
    grads: list[Tensor] = []
    for _ in range(2):
        loss = r2kd_ext.correlation_kd(
            student, teacher, correlation="pearson", group=group, backend=backend
        )
        grads += torch.autograd.grad(loss, student, retain_graph=True)
        grads += torch.autograd.grad(loss, student)
    return all(torch.equal(grads[0], grad) for grad in grads[1:])


def refused_groups(group: Any) -> list[str]:
    """Messages for groups that do not fit: one without this rank, one that is gone."""
    logits = torch.ones(2, 3)
    rank = group.rank()
    others = dist.new_group([0])
    messages = []
    wrong: Any
    for wrong in (others, "world"):
        try:
            r2kd_ext.correlation_kd(logits, logits, group=wrong)
            messages.append("")
        except (TypeError, ValueError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages if rank else messages[1:]


def compiled(group: Any) -> tuple[float, float, str]:
    """The loss eager, and in a compiled function; what fullgraph says."""
    student, teacher = make_logits(4, 6)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return 2 * r2kd_ext.correlation_kd(z, y, group=group)

    broken = torch.compile(loss, backend="eager")(student, teacher)
    torch.compiler.reset()
    try:
        torch.compile(loss, backend="eager", fullgraph=True)(student, teacher)
        message = ""
    except Exception as error:
        message = str(error)
    return loss(student, teacher).item(), broken.item(), message


def leaves_early(rank: int) -> str:
    """Rank 1 ends before the call; what the others see."""
    import os

    if rank == 1:
        os._exit(1)
    return wrong_call(rank, 6)


def never_calls(rank: int, seconds: float) -> str:
    """Rank 1 is busy elsewhere for longer than the group's time-out."""
    import time

    if rank == 1:
        time.sleep(seconds)
        return ""
    return wrong_call(rank, 6)


def wrong_call(rank: int, *classes: int) -> str:
    """The error of a call on logits with classes[rank] classes (or the last given)."""
    student, teacher = make_logits(4, classes[min(rank, len(classes) - 1)])
    assert dist.group.WORLD is not None
    try:
        r2kd_ext.correlation_kd(student, teacher, group=dist.group.WORLD)
    except RuntimeError as error:
        return str(error)
    return ""
