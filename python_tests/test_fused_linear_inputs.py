"""Arguments that do not fit: the error names the argument, what came and what is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_linear_cases import make_heads
from torch import Tensor

from r2kd_ext import fused_linear_correlation_kd, reference

# rows 23, classes 61, widths 12 and 20
long = torch.zeros(23, dtype=torch.int64)
topk = (torch.full((23, 4), -2.0), torch.arange(4).expand(23, 4))
NO_TEACHER = {"teacher_hidden": None, "teacher_weight": None, "teacher_bias": None}

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"student_hidden": [[1.0]]}, TypeError, "student_hidden must be a Tensor, got"),
    ({"student_hidden": torch.zeros(12)}, ValueError, r"student_hidden .*\., H\), got \(12,\)"),
    ({"student_hidden": torch.zeros(23, 12).int()}, TypeError, "student_hidden .* got torch.int32"),
    ({"student_hidden": torch.zeros(23, 12).to_sparse()}, TypeError, "student_hidden .* layout"),
    ({"student_hidden": torch.zeros(22, 12)}, ValueError, r"teacher_hidden .*\(22,\), got \(23,\)"),
    ({"student_weight": None}, TypeError, "student_weight must be a Tensor, got None"),
    ({"student_weight": torch.zeros(61, 11)}, ValueError, r"student_weight .*\(V, 12\).*61, 11\)"),
    ({"student_weight": torch.zeros(61)}, ValueError, r"student_weight .*\(V, H\), got \(61,\)"),
    ({"student_weight": torch.zeros(0, 12), "student_bias": None}, ValueError, "least one class"),
    ({"student_weight": torch.zeros(61, 12, device="meta")}, ValueError, "device .*cpu, got meta"),
    ({"student_bias": torch.zeros(60)}, ValueError, r"student_bias .*\(61,\).*got \(60,\)"),
    ({"student_bias": torch.zeros(61, 1)}, ValueError, r"student_bias .*\(V,\), got \(61, 1\)"),
    ({"student_bias": 0.0}, TypeError, "student_bias must be a Tensor, got 0.0"),
    ({"teacher_hidden": None}, TypeError, "teacher_hidden must be a Tensor unless teacher_topk"),
    ({"teacher_weight": None}, TypeError, "teacher_weight must be a Tensor unless teacher_topk"),
    ({"teacher_hidden": torch.zeros(23, 19)}, ValueError, r"teacher_weight .*\(V, 19\)"),
    ({"teacher_weight": torch.zeros(61, 20).bool()}, TypeError, "teacher_weight .* torch.bool"),
    ({"teacher_bias": torch.zeros(62)}, ValueError, r"teacher_bias .*\(61,\).*got \(62,\)"),
    ({"temperature": 0.0}, ValueError, "temperature must be a finite number > 0, got 0.0"),
    ({"temperature": "1"}, TypeError, "temperature"),
    ({"correlation": "spearman"}, ValueError, "correlation must be one of .* got 'spearman'"),
    ({"weight": -1.0}, ValueError, "weight must be a finite number >= 0, got -1.0"),
    ({"weight": torch.ones(3)}, TypeError, "^weight must be"),
    ({"eps": float("nan")}, ValueError, "eps must be a finite number >= 0, got nan"),
    ({"temperature_scaling": 1}, TypeError, "temperature_scaling"),
    ({"mask": torch.ones(23)}, TypeError, "mask must have dtype torch.bool, got torch.float32"),
    ({"mask": torch.ones(22).bool()}, ValueError, r"mask .*\(23,\).*got \(22,\)"),
    ({"mask": [True]}, TypeError, "mask must be a Tensor or None"),
    ({"labels": torch.zeros(23)}, TypeError, "labels must have an integer dtype, got torch.f"),
    ({"labels": torch.zeros(24).long()}, ValueError, r"labels .*\(23,\).*got \(24,\)"),
    ({"labels": long, "ignore_index": 1.5}, TypeError, "ignore_index must be an integer, got 1.5"),
    ({"logit_scale": 0.0}, ValueError, "logit_scale .* > 0, or a pair .*, got 0.0"),
    ({"logit_scale": (1.0, 2.0, 3.0)}, ValueError, "logit_scale must be one value or a pair"),
    ({"logit_scale": None}, TypeError, "logit_scale .* got None"),
    ({"logit_softcap": -30.0}, ValueError, "logit_softcap .* got -30.0"),
    ({"logit_softcap": (30.0, 0.0)}, ValueError, "logit_softcap .* got 0.0"),
    ({"vocab_map": long[:22]}, ValueError, r"vocab_map .*\(61,\), got \(22,\)"),
    ({"vocab_map": torch.zeros(61)}, TypeError, "vocab_map must have an integer dtype"),
    ({"vocab_map": list(range(61))}, TypeError, "vocab_map must be a Tensor or None"),
    ({"vocab_map": torch.arange(61) + 1}, ValueError, "vocab_map .* from -1 to 60, got 61"),
    ({"vocab_map": torch.arange(61) - 2}, ValueError, "vocab_map .* from -1 to 60, got -2"),
    ({"teacher_topk": topk}, ValueError, "teacher_hidden must be None with teacher_topk"),
    (NO_TEACHER | {"teacher_topk": topk[0]}, TypeError, "teacher_topk must be a pair"),
    (
        NO_TEACHER | {"teacher_topk": topk, "vocab_map": torch.arange(61)},
        ValueError,
        "vocab_map must be None with teacher_topk",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0][:22], topk[1])},
        ValueError,
        r"teacher_topk values must have shape \(23, 'k'\), got \(22, 4\)",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0], topk[1][:, :3])},
        ValueError,
        r"teacher_topk indices .*\(23, 4\), got \(23, 3\)",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0], topk[1].float())},
        TypeError,
        "teacher_topk indices must have an integer dtype",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[1], topk[1])},
        TypeError,
        "teacher_topk values .* got torch.int64",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0][:, :0], topk[1][:, :0])},
        ValueError,
        "between 1 and 61 classes",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0], topk[1] + 58)},
        ValueError,
        "teacher_topk indices must be integers from 0 to 60, got 61",
    ),
    (
        NO_TEACHER | {"teacher_topk": (topk[0], topk[1] - 1)},
        ValueError,
        "teacher_topk indices must be integers from 0 to 60, got -1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [fused_linear_correlation_kd, reference.fused_linear_correlation_kd],
    ids=["fused", "reference"],
)
@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=lambda x: str(x)[:40])
def test_refused(
    changes: dict[str, Any], error: type[Exception], message: str, function: Callable[..., Tensor]
) -> None:
    heads = make_heads()
    with pytest.raises(error, match=message):
        function(**(heads.keywords() | changes))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be an integer >= 1, got 0"),
        ({"chunk_rows": 2.0}, TypeError, "chunk_rows must be an integer >= 1, got 2.0"),
        ({"backend": "cuda"}, ValueError, "backend must be None or one of .* got 'cuda'"),
        ({"backend": "triton"}, ValueError, "TRITON_INTERPRET"),
    ],
)
def test_refused_by_the_fused_function(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fused_linear_correlation_kd(**make_heads().keywords(), **options)


def test_a_weight_that_is_sharded() -> None:
    """Gathering it is for FSDP; here only the message."""
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.device_mesh import DeviceMesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        heads = make_heads(requires_grad=False)
        mesh = DeviceMesh("cpu", [0, 1])
        sharded = DTensor.from_local(heads.student_weight, mesh, [Shard(0)])
        with pytest.raises(TypeError, match=r"student_weight .* DTensor .* fully_shard"):
            fused_linear_correlation_kd(**heads._replace(student_weight=sharded).keywords())
    finally:
        torch.distributed.destroy_process_group()


def test_shapes_without_data() -> None:
    """Tensors on the device "meta" give the shapes and dtypes of result and gradients."""
    heads = make_heads(dtype=torch.bfloat16)
    meta = [x.detach().to("meta").requires_grad_() for x in heads]
    h, w, b, th, tw, tb = meta
    loss = fused_linear_correlation_kd(h, w, th, tw, student_bias=b, teacher_bias=tb)
    assert loss.dtype == torch.float32
    for grad, x in zip(torch.autograd.grad(loss, meta[:3]), heads.student, strict=True):
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
