"""The tables of docs/fused_linear.md are what the committed result files say."""

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "fused_linear.md").read_text()


def results(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ("---",) * len(head), *map(tuple, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def bench_table() -> str:
    rows = [
        [
            row["rows"], row["dtype"], row["fused_s"], row["eager_s"], row["of_eager_time"],
            row["fused_mib"], row["eager_mib"], row["of_eager_memory"],
        ]
        for row in results("fused_linear_cpu_4096.csv")
    ]  # fmt: skip
    head = (
        "N", "dtype", "fused, s", "eager, s", "of eager", "fused, MiB", "eager, MiB", "of eager",
    )  # fmt: skip
    return table(head, rows)


def topk_table() -> str:
    rows = [
        [
            row["spread"], row["temperature"], row["k"], row["mass_of_k"],
            row["loss_full"], row["loss_bias"], row["gradient_error"], row["gradient_cosine"],
        ]
        for row in results("topk_bias.csv")
        if row["correlation"] == "pearson"
    ]  # fmt: skip
    head = ("spread", "T", "k", "mass of k", "loss", "bias", "gradient's error", "its cosine")
    return table(head, rows)


def test_measured() -> None:
    rows = results("fused_linear_cpu_4096.csv")
    assert {row["dtype"] for row in rows} >= {"float32"}
    assert bench_table() in TEXT


def test_topk_bias() -> None:
    assert len(results("topk_bias.csv")) >= 20
    assert topk_table() in TEXT
