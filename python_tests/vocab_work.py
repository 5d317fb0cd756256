"""What a rank does in the tests of logits that are spread over the ranks by classes."""

from __future__ import annotations

from typing import Any

import torch
from group_work import Batch, counted, make_batch
from torch import Tensor

from r2kd_ext import vocab_parallel_correlation_kd

ROWS = 23
# Classes of each rank.
SPLITS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"even": (16, 16), "uneven": (1, 40)},
    4: {"even": (8, 8, 8, 8), "uneven": (3, 1, 20, 7)},
}


def vocabulary(split: tuple[int, ...], made: dict[str, Any]) -> Batch:
    """The whole batch, with a class that is ruled out and one that stands out."""
    batch = make_batch((ROWS - 3, 3), sum(split), **made)
    batch.student[:, 0] = -torch.inf
    batch.teacher[2, -1] += 20
    return batch


def shard(x: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    return x[:, sum(split[:rank]) : sum(split[: rank + 1])]


def local_result(
    group: Any, split: tuple[int, ...], made: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    batch = vocabulary(split, made)
    student = shard(batch.student, split, group.rank()).detach().requires_grad_()
    teacher = shard(batch.teacher, split, group.rank())
    loss = vocab_parallel_correlation_kd(
        student, teacher, group=group, mask=batch.mask, sample_weight=batch.sample_weight, **options
    )
    (grad,) = torch.autograd.grad(loss, student)
    return loss.detach(), grad


def distributed_tensor_result(group: Any, classes: int) -> tuple[Tensor, Tensor, str]:
    """Loss and whole gradient of DTensors, whose shards torch chooses, and a refusal."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    batch = make_batch((5, 2), classes)
    mesh = DeviceMesh.from_group(group, "cpu")
    student = distribute_tensor(batch.student, mesh, [Shard(1)]).requires_grad_()
    teacher = distribute_tensor(batch.teacher, mesh, [Shard(1)])
    loss = vocab_parallel_correlation_kd(student, teacher, correlation="pearson")
    loss.backward()
    assert student.grad is not None
    try:
        vocab_parallel_correlation_kd(student, teacher.redistribute(mesh, [Replicate()]))
        message = ""
    except ValueError as error:
        message = str(error)
    return loss.detach(), student.grad.full_tensor(), message  # type: ignore[attr-defined]


def collective_bytes(group: Any, rows: int, classes: int) -> tuple[list[int], int]:
    """Bytes of each collective call of forward, and how many calls backward makes."""
    batch = make_batch((rows,), classes, dtype=torch.float32)
    student = batch.student.requires_grad_()
    with counted() as sent:
        loss = vocab_parallel_correlation_kd(student, batch.teacher, group=group)
        forward = list(sent)
        loss.backward()
    return forward, len(sent) - len(forward)


def kept_bytes(group: Any, rows: int, classes: int) -> int:
    """Bytes of what autograd keeps between forward and backward, without the logits."""
    batch = make_batch((rows,), classes, dtype=torch.float32)
    student = batch.student.requires_grad_()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        vocab_parallel_correlation_kd(student, batch.teacher, correlation="pearson", group=group)
    for x in (student, batch.teacher):
        kept.pop(x.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def in_chunks(group: Any) -> bool:
    """Whether chunks of three rows give what one chunk does."""
    from r2kd_ext import moments

    split = (8,) * group.size()
    made, options = {"masked": True}, {"correlation": "pearson"}
    whole = local_result(group, split, made, options)
    size = moments._CHUNK_ELEMENTS
    moments._CHUNK_ELEMENTS = 3 * 8
    try:
        parts = local_result(group, split, made, options)
    finally:
        moments._CHUNK_ELEMENTS = size
    return all(
        torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(whole, parts, strict=True)
    )


def odd_one_out(group: Any) -> None:
    logits = torch.eye(4, 6)
    vocab_parallel_correlation_kd(logits, logits, 2.0 + group.rank(), group=group)


def without_a_group(group: Any) -> None:
    vocab_parallel_correlation_kd(torch.eye(3), torch.eye(3))
