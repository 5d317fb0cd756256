"""Teachers of another vocabulary, and teachers whose largest probabilities alone are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import every_backend, generator
from formula import Array
from fused_linear_cases import make_heads, truth_of
from test_fused_linear import assert_true, gradients

from r2kd_ext import fused_linear_correlation_kd

INF = torch.inf


def teacher_logits(heads: Any, scale: float = 1.0) -> Array:
    th, tw, tb = (x.double().numpy() for x in heads[3:])
    return np.asarray(scale * (th @ tw.T + tb))


@every_backend
@pytest.mark.parametrize("correlation", ["pearson", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("map_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_vocab_map(
    map_dtype: torch.dtype, dtype: torch.dtype, correlation: str, backend: str
) -> None:
    """Onto a larger vocabulary, with classes named twice, others not at all."""
    heads = make_heads(teacher_classes=90, dtype=dtype)
    places = torch.randint(0, 90, (61,), generator=generator("map"))
    truth = truth_of(
        heads, teacher_logits=teacher_logits(heads)[:, places.numpy()], correlation=correlation
    )
    options = {"vocab_map": places.to(map_dtype), "correlation": correlation}
    got = gradients(heads, chunk_rows=7, backend=backend, **options)
    assert_true(heads, got, truth, options)


@every_backend
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_classes_that_the_teacher_lacks(softcap: float | None, backend: str) -> None:
    """They have no probability, also with a soft-cap, which would make -inf finite."""
    heads = make_heads(teacher_classes=40)
    places = torch.randint(-1, 40, (61,), generator=generator("lacks"))
    places[:3] = -1
    y = teacher_logits(heads)
    if softcap is not None:
        y = softcap * np.tanh(y / softcap)
    y = np.where(places.numpy() < 0, -np.inf, y[:, places.numpy()])
    truth = truth_of(heads, teacher_logits=y, caps=(softcap, softcap))
    options = {"vocab_map": places, "logit_softcap": softcap}
    assert_true(heads, gradients(heads, chunk_rows=7, backend=backend, **options), truth, options)


def test_vocabularies_of_different_sizes_need_a_map() -> None:
    for classes in (60, 62):
        heads = make_heads(teacher_classes=classes)
        with pytest.raises(ValueError, match=rf"teacher_weight .* 61 .* got {classes}.*vocab_map"):
            fused_linear_correlation_kd(**heads.keywords())


def spread(log_p: Array, k: int, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    """Top k and the whole distribution that stands for them, in float64: values, indices, logits
    (its logarithm)."""
    order = np.argsort(-log_p, axis=1)[:, :k]
    values = np.take_along_axis(log_p, order, 1)
    rest = 1 - np.exp(values).sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        full = np.broadcast_to(np.log(rest / max(1, log_p.shape[1] - k)), log_p.shape).copy()
    np.put_along_axis(full, order, values, 1)
    return values, order, full


def log_softmax(y: Array) -> Array:
    y = y - y.max(1, keepdims=True)
    return np.asarray(y - np.log(np.exp(y).sum(1, keepdims=True)))


@every_backend
@pytest.mark.parametrize("correlation", ["pearson", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_topk(k: int, correlation: str, backend: str) -> None:
    heads = make_heads()
    values, indices, full = spread(log_softmax(teacher_logits(heads)), k)
    shuffled = torch.randperm(k, generator=generator(k))
    topk = (torch.from_numpy(values)[:, shuffled], torch.from_numpy(indices)[:, shuffled])
    single = topk[0].float()
    # What float32 loses of the values is not the function's error.
    left = (1 - np.exp(single.double().numpy()).sum(1, keepdims=True)).clip(min=0)
    with np.errstate(divide="ignore"):
        full = np.broadcast_to(np.log(left / (61 - k)), full.shape).copy()
    np.put_along_axis(full, topk[1].numpy(), single.double().numpy(), 1)
    for temperature in (1.0, 2.5):
        settings = {"correlation": correlation, "temperature": temperature}
        truth = truth_of(heads, teacher_logits=full, **settings)  # type: ignore[arg-type]
        options: dict[str, Any] = {
            "teacher_topk": (single, topk[1].int()), "teacher_hidden": None,
            "teacher_weight": None, "teacher_bias": None, **settings,
        }  # fmt: skip
        got = gradients(heads, chunk_rows=7, backend=backend, **options)
        assert_true(heads, got, truth, options)


def test_topk_of_all_classes_is_the_teacher() -> None:
    heads = make_heads(dtype=torch.float64)
    log_p = torch.from_numpy(log_softmax(teacher_logits(heads)))
    without = {"teacher_hidden": None, "teacher_weight": None, "teacher_bias": None}
    topk = torch.topk(log_p, 61)
    loss = fused_linear_correlation_kd(
        **(heads.keywords() | without), teacher_topk=(topk.values, topk.indices)
    )
    torch.testing.assert_close(
        loss, fused_linear_correlation_kd(**heads.keywords()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_topk_whose_probabilities_exceed_one(dtype: torch.dtype) -> None:
    """Rounded log-probabilities may sum to more than 1: then nothing is left for the others."""
    heads = make_heads()
    values = torch.log(torch.tensor([0.7, 0.32])).to(dtype).expand(23, 2).clone()
    indices = torch.tensor([3, 50]).expand(23, 2)
    y = np.full((23, 61), -np.inf)
    y[:, [3, 50]] = values.double().numpy()
    options: dict[str, Any] = {
        "teacher_topk": (values, indices), "teacher_hidden": None, "teacher_weight": None,
        "teacher_bias": None,
    }  # fmt: skip
    assert_true(heads, gradients(heads, **options), truth_of(heads, teacher_logits=y), options)


def test_topk_with_dropped_rows_and_leading_dimensions() -> None:
    heads = make_heads(24)
    values, indices, full = spread(log_softmax(teacher_logits(heads)), 5)
    mask = torch.rand(4, 6, generator=generator("mask")) < 0.6
    loss = fused_linear_correlation_kd(
        heads.student_hidden.reshape(4, 6, 12), heads.student_weight,
        student_bias=heads.student_bias, mask=mask, chunk_rows=5,
        teacher_topk=(
            torch.from_numpy(values).reshape(4, 6, 5), torch.from_numpy(indices).reshape(4, 6, 5)
        ),
    )  # fmt: skip
    truth = truth_of(heads, teacher_logits=full, mask=mask)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(truth.loss, rel=1e-6)
    grads = torch.autograd.grad(loss, heads.student)
    for grad, exact in zip(grads, truth.grads, strict=True):
        assert np.linalg.norm(grad.numpy() - exact) <= 2e-6 * np.linalg.norm(exact)
