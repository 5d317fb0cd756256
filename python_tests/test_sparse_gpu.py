"""The sparse layers on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from sparse_cases import check, sparse
from torch import Tensor, nn
from torch.nn import functional as F

from r2kd_ext import SparseConv2d, SparseLinear, prune, sparsify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="GPU tests skipped: torch sees no CUDA device"
    ),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_semi_structured(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = prune(nn.Linear(256, 192), method="2:4").to("cuda", dtype)
    made = SparseLinear.from_dense(layer, "2:4")
    if torch.cuda.get_device_capability() >= (8, 0):
        assert made.kernel == "semi-structured"
    x = torch.randn(70, 256, device="cuda", dtype=dtype)
    weight, bias = layer.weight.cpu(), layer.bias.cpu()
    check(made(x).cpu(), F.linear, x.cpu(), weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_csr(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2).to(dtype)
    layer.weight.copy_(sparse(*layer.weight.shape, density=0.2, dtype=dtype))
    made = SparseConv2d.from_dense(layer).cuda()
    x = torch.randn(3, 16, 9, 11).to(dtype)

    def dense(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(a, w, b, stride=2, padding=1, groups=2)

    if dtype is torch.float32:  # TF32 would round the inputs
        torch.backends.cudnn.allow_tf32 = False
    check(made(x.cuda()).cpu(), dense, x, layer.weight, layer.bias)


def test_sparsify() -> None:
    model = prune(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)), method="2:4")
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    made = sparsify(model.to("cuda", torch.bfloat16), x)
    assert "total" in str(made.report)
