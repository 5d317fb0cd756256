"""Forward and backward of small shapes on the GPU, for compute-sanitizer to watch.

    python tools/gpu_steps.py BACKEND

Every kernel runs, with and without mask; Triton's, whose compilation takes most of the time, in one
dtype alone. Values are not judged here.
"""

from __future__ import annotations

import sys

import torch

from r2kd_ext import correlation_kd, ops_rank
from r2kd_ext.backends import cuda_sparse, triton

# Few and many classes, widths that are no multiple of anything, and rows that are shared by blocks.
SHAPES = {
    "native": [
        (1, 1),
        (7, 13),
        (64, 100),
        (33, 1000),
        (9, 1025),
        (3, 4104),
        (2, 9001),
        (2, 33_000),
    ],
    "triton": [(7, 13), (33, 1000), (9, 2100), (3, 4104)],
}
RANK_SHAPES = {
    "native": [(1, 1), (7, 13), (70, 100), (3, 1000), (3, 4100), (2, 9001)],
    "triton": [(7, 13), (40, 1000)],
}
DTYPES = {"native": [torch.float32, torch.bfloat16, torch.float64], "triton": [torch.float32]}


def step_of_ranks(rows: int, classes: int, dtype: torch.dtype, triton: bool) -> None:
    x, y = (torch.randn(rows, classes, device="cuda", dtype=dtype) for _ in range(2))
    mask = torch.arange(rows, device="cuda") % 3 != 1
    if rows > 1:
        x[1, 0] = torch.nan
    ranks, order = ops_rank.soft_rank(x, 0.1, triton=triton)
    ops_rank.soft_rank_backward(ranks, order, 0.1, dtype, triton=triton)
    for kept in (None, mask):
        ops_rank.spearman(x, y, kept, False, 1.0, 1e-8, triton=triton)
        rho = ops_rank.spearman(x, y, kept, True, 0.1, 1e-8, triton=triton)
        ops_rank.spearman_backward(rho, x, y, kept, 0.1, 1e-8, triton=triton)


def step_of_sparse_layers(dtype: torch.dtype, backend: str) -> None:
    """Short tiles, and tall ones of many rows."""
    kernels = cuda_sparse if backend == "native" else triton
    for rows, size in ((20, 11), (20_000, 4)) if backend == "native" else ((20, 11),):
        weight = torch.randn(rows, 27, device="cuda")
        matrix = (weight * (weight > 0.5)).to_sparse_csr()
        entries = (
            matrix.values().to(dtype), matrix.col_indices().int(), matrix.crow_indices().int()
        )  # fmt: skip
        bias = torch.randn(rows, device="cuda", dtype=dtype)
        for samples in (130, 3):
            x = torch.randn(samples, 27, device="cuda", dtype=dtype)
            kernels.csr_linear(x, *entries, bias)
        ones = [1, 1]
        images = torch.randn(33, 3, 9, size, device="cuda", dtype=dtype)
        for x in (images[:2], images, images.to(memory_format=torch.channels_last)):
            kernels.csr_conv2d(x, *entries, None, [3, 3], ones, ones, ones, 1)


def main() -> None:
    (backend,) = sys.argv[1:]
    for rows, classes in SHAPES[backend]:
        for dtype in DTYPES[backend]:
            student = torch.randn(rows, classes, device="cuda", dtype=dtype, requires_grad=True)
            teacher = torch.randn(rows, classes, device="cuda", dtype=dtype)
            mask = torch.arange(rows, device="cuda") % 3 != 1
            for correlation, intra_weight, kept in (
                ("cosine", 2.0, None), ("pearson", 2.0, mask), ("pearson", 0.0, None),
            ):  # fmt: skip
                loss = correlation_kd(
                    student, teacher, correlation=correlation, intra_weight=intra_weight,
                    mask=kept, backend=backend,
                )  # fmt: skip
                loss.backward()
    for rows, classes in RANK_SHAPES[backend]:
        for dtype in DTYPES[backend]:
            step_of_ranks(rows, classes, dtype, backend == "triton")
    for dtype in DTYPES[backend]:
        if dtype is not torch.float64:
            step_of_sparse_layers(dtype, backend)
    torch.cuda.synchronize()
    print(f"{backend}: {len(SHAPES[backend])} shapes, {len(DTYPES[backend])} dtypes")


if __name__ == "__main__":
    main()
