"""Limits: the counts against torch's own counter and the tensors' sizes; the order of the rates."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext.bench import limits
from r2kd_ext.bench.results import Rates, Work


def flops_of(call: object) -> int:
    with FlopCounterMode(display=False) as counter:
        call()  # type: ignore[operator]
    return counter.get_total_flops()


def test_products_are_counted_as_torch_counts_them() -> None:
    x, weight = torch.randn(7, 12), torch.randn(5, 12)
    work = limits.linear(7, 12, 5, torch.float32)
    assert work.flops == flops_of(lambda: F.linear(x, weight))
    assert work.bytes == x.nbytes + weight.nbytes + F.linear(x, weight).nbytes
    assert limits.csr_linear(7, 12, 5, weight.numel(), torch.float32).flops == work.flops


def test_csr_bytes_are_those_of_the_tensor() -> None:
    weight = torch.randn(9, 16) * (torch.rand(9, 16) < 0.3)
    csr = weight.to_sparse_csr()
    nonzeros = csr.values().numel()
    stored = csr.values().nbytes + 4 * (csr.col_indices().numel() + csr.crow_indices().numel())
    work = limits.csr_linear(4, 16, 9, nonzeros, torch.float32)
    assert work.bytes == stored + 4 * (4 * 16 + 4 * 9)
    assert work.flops == 2 * 4 * nonzeros


def test_a_convolution_without_zeros_is_a_dense_one() -> None:
    x, weight = torch.randn(2, 3, 10, 8), torch.randn(6, 3, 3, 3)
    y = F.conv2d(x, weight, stride=2)
    work = limits.csr_conv2d(
        2,
        (3, 10, 8),
        (6, y.shape[2], y.shape[3]),
        weight.numel(),
        torch.float32,
    )
    assert work.flops == flops_of(lambda: F.conv2d(x, weight, stride=2))
    assert work.bytes == x.nbytes + y.nbytes + 2 * weight.nbytes + 4 * 7


def test_multiplications_of_a_network() -> None:
    """A quarter of those of 3 x 3 convolutions with stride 1, all of the others."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, stride=2, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=2),
        torch.nn.Conv2d(8, 4, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    )
    images = torch.randn(3, 3, 8, 8)
    direct = flops_of(lambda: network(images)) // 2
    first = 9 * 3 * 8 * 64 * len(images)
    assert limits.multiplications(network, images) == (direct - 3 * first // 4) // 3
    work = limits.conv2d_3x3(3, 3, 8, 8, 8)
    assert 4 * work.flops == flops_of(lambda: network[0](images)) == 2 * first
    moved = [images, network[0](images), *network[0].parameters()]
    assert work.bytes == sum(x.nbytes for x in moved)


def test_ensemble_counts_both_networks() -> None:
    network = torch.nn.Linear(12, 5, bias=False)
    x = torch.randn(7, 12)
    work = limits.ensemble(7, 12, 5, 60, 60)
    assert work.flops == flops_of(lambda: (network(x), network(x)))
    assert work.bytes == x.nbytes + network(x).nbytes + 2 * network.weight.nbytes


def test_fused_linear_has_the_products_of_loss_and_gradients() -> None:
    rows, vocabulary, student, teacher = 6, 20, 8, 10
    h, w = torch.randn(rows, student), torch.randn(vocabulary, student)
    g, v = torch.randn(rows, teacher), torch.randn(vocabulary, teacher)
    h.requires_grad_()
    w.requires_grad_()
    products = flops_of(lambda: (F.linear(h, w) * F.linear(g, v)).sum().backward())
    work = limits.fused_linear(rows, vocabulary, student, teacher, torch.float32)
    per_element = (work.flops - products) / (rows * vocabulary)
    assert 20 <= per_element <= 40  # two softmaxes, moments, gradient
    assert work.bytes == 2 * (h.nbytes + w.nbytes) + g.nbytes + v.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [True, False])
def test_correlation_is_five_passes(dtype: torch.dtype, columns: bool) -> None:
    logits = torch.empty(64, 100, dtype=dtype)
    works = {
        passes: limits.correlation(64, 100, dtype, passes=passes, columns=columns)
        for passes in ("forward", "backward", "forward+backward")
    }
    assert works["forward"].bytes == 2 * logits.nbytes
    assert works["backward"].bytes == 3 * logits.nbytes
    both = works["forward+backward"]
    assert both.bytes == 5 * logits.nbytes == limits.correlation_bytes(64, 100, dtype)
    assert both.flops == works["forward"].flops + works["backward"].flops
    assert (both.flops > limits.correlation(64, 100, dtype, columns=False).flops) == columns


def test_sorts() -> None:
    assert [limits.sort_comparisons(n) for n in (1, 2, 4, 5)] == [0, 1, 5, 7]
    hard = limits.hard_spearman(3, 100, torch.float32)
    assert hard.bytes == 2 * 3 * 100 * 4
    assert limits.ranked_correlation(3, 100, torch.float32, soft=False).flops > hard.flops
    # x in, ranks out; their gradient and the order in, the gradient of x out.
    assert limits.soft_rank(3, 100, torch.float32).bytes == 5 * 3 * 100 * 4


def test_the_limit_is_the_longer_of_both() -> None:
    rates = Rates(copy=100.0, matrix=1000.0)
    assert rates.seconds(Work(200, 100)) == 2.0
    assert rates.seconds(Work(200, 5000)) == 5.0


def test_rates_of_this_machine() -> None:
    """Within what processors of today do; an error of units is a factor of a thousand or more."""
    assert 1e8 < limits.matrix_rate(size=256) < 1e13
    copy = limits.copy_call(1000, torch.float32)
    a = copy(0)
    assert a is not copy(1)
