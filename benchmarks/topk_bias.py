"""Bias of a teacher of which only the k largest probabilities are known, the rest spread evenly.

    python benchmarks/topk_bias.py [--output FILE.csv]

V = 32,000 classes, 128 rows, float64 heads of width 64. The teacher's logits are a Zipf prior,
-log(rank of the class), plus a normal part of standard deviation `spread`, which differs from row
to row; the student's have the same prior, and a normal part that agrees with the teacher's in half.
`loss_full` is the loss against the whole teacher, `loss_bias` what the top k add to it. The
gradient is that of the student's hidden states: `gradient_error` is the norm of its difference over
its norm, `gradient_cosine` the cosine between both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_rows
from torch import Tensor

from r2kd_ext import fused_linear_correlation_kd

RESULTS = Path(__file__).parent / "results" / "topk_bias.csv"
ROWS, CLASSES, WIDTH = 128, 32_000, 64
SPREADS = (1.0, 3.0)
TEMPERATURES = (1.0, 4.0)
TOP = (1, 8, 64, 512, 4096)


def loss_and_gradient(hidden: Tensor, *arguments: Any, **options: Any) -> tuple[float, Tensor]:
    loss = fused_linear_correlation_kd(
        hidden, *arguments, temperature_scaling=False, chunk_rows=32, **options
    )
    return loss.item(), torch.autograd.grad(loss, hidden)[0]


def rows_of(spread: float) -> list[dict[str, object]]:
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    prior = -torch.log(torch.arange(1, CLASSES + 1, dtype=torch.float64))  # [V]
    weight = normal(CLASSES, WIDTH) * (spread / WIDTH**0.5)  # [V, H]
    teacher = normal(ROWS, WIDTH)  # [N, H]
    student = (0.5 * teacher + 0.75**0.5 * normal(ROWS, WIDTH)).requires_grad_()  # [N, H]
    log_p = torch.log_softmax(teacher @ weight.T + prior, dim=1)  # [N, V]
    found: list[dict[str, object]] = []
    for correlation in ("pearson", "cosine"):
        for temperature in TEMPERATURES:
            options: dict[str, Any] = {
                "correlation": correlation, "temperature": temperature, "student_bias": prior,
            }  # fmt: skip
            full, exact = loss_and_gradient(
                student, weight, teacher, weight, teacher_bias=prior, **options
            )
            for k in TOP:
                top = torch.topk(log_p, k)
                loss, grad = loss_and_gradient(
                    student, weight, teacher_topk=(top.values, top.indices), **options
                )
                cosine = torch.cosine_similarity(grad.flatten(), exact.flatten(), dim=0)
                found.append(
                    {
                        "classes": CLASSES,
                        "rows": ROWS,
                        "spread": spread,
                        "correlation": correlation,
                        "temperature": temperature,
                        "k": k,
                        "mass_of_k": f"{top.values.exp().sum(1).mean().item():.4f}",
                        "loss_full": f"{full:.5f}",
                        "loss_bias": f"{loss - full:+.5f}",
                        "gradient_error": f"{((grad - exact).norm() / exact.norm()).item():.4f}",
                        "gradient_cosine": f"{cosine.item():.5f}",
                        **machine(),
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="the result file (CSV)")
    options = parser.parse_args()
    write_rows(options.output, [row for spread in SPREADS for row in rows_of(spread)])
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
