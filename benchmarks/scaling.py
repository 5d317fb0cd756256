"""The formulas of docs/scaling.md, and what they say of machines that nobody has run this on.

python benchmarks/scaling.py
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results" / "scaling_predictions.csv"
MEASURED = Path(__file__).parent / "results" / "group_cpu.csv"


def payloads(form: str, rows: int, classes: int, correlation: str) -> list[tuple[int, int]]:
    """Numbers, and bytes of each, of every all-reduce of forward, for a loss in float32.

    form: "rows", where each rank has `rows` of its own, or "classes", where each has all `rows` and
    its part of `classes`.
    """
    if form == "classes":
        return [(2 + 2 * rows, 4), (1 + 2 * rows, 8), (1 + 4 * rows, 8)]
    if correlation == "cosine":
        return [(6 + 3 * classes, 8)]
    return [(6 + 2 * classes, 8), (3 * classes, 8)]


def payload_bytes(form: str, rows: int, classes: int, correlation: str) -> int:
    """Bytes that a rank hands to its all-reduces per step."""
    return sum(count * size for count, size in payloads(form, rows, classes, correlation))


def wire_bytes(world: int, payload: int) -> float:
    """Bytes that each rank sends, and receives, in all-reduces of `payload` bytes by a ring."""
    return 2 * (world - 1) / world * payload


def kept_bytes(form: str, rows: int, classes: int, world: int) -> int:
    """Bytes kept for backward besides the logits, for a loss in float32."""
    if form == "rows":
        return 4 * (6 * rows + 5 * classes)
    return 4 * (7 * rows + 4 * (classes // world) + 3)


def logits_seconds(rows: int, classes: int, element: int, bandwidth: float) -> float:
    """The least time of forward + backward on logits that exist: five passes through memory."""
    return 5 * rows * classes * element / bandwidth


def head_flops(rows: int, classes: int, hidden: int, teacher_hidden: int) -> int:
    """Of the two heads with the loss from hidden states: one product of the teacher, three of the
    student (logits, gradient of the hidden states, gradient of the weight)."""
    return 2 * rows * classes * (3 * hidden + teacher_hidden)


class Machine(NamedTuple):
    """Assumed, not measured: per GPU and direction, in bytes and floating-point operations/s."""

    name: str
    world: int
    link: float
    latency: float  # s per all-reduce
    memory: float
    compute: float


MACHINES = (
    Machine("8 GPUs, one node", 8, 450e9, 20e-6, 3.35e12, 400e12),
    Machine("1024 GPUs", 1024, 50e9, 100e-6, 3.35e12, 400e12),
)


class Work(NamedTuple):
    """A step of one rank: rows, classes (of all ranks), bytes per logit, hidden size."""

    name: str
    form: str
    correlation: str
    rows: int
    classes: int
    element: int
    hidden: int


WORKS = (
    Work("images, columns", "rows", "cosine", 128, 1000, 2, 0),
    Work("vocabulary, columns", "rows", "pearson", 8192, 128_256, 2, 4096),
    Work("vocabulary, split over 8", "classes", "pearson", 8192, 128_256, 2, 4096),
)


def predictions() -> list[dict[str, str]]:
    rows = []
    for work in WORKS:
        for machine in MACHINES:
            # Classes are split within a node; what the other nodes do is data-parallel.
            node = MACHINES[0]
            link = node if work.form == "classes" else machine
            world = link.world
            shape = (work.form, work.rows, work.classes, work.correlation)
            payload = payload_bytes(*shape)
            wire = wire_bytes(world, payload)
            exchange = len(payloads(*shape)) * link.latency + wire / link.link
            local_classes = work.classes // (world if work.form == "classes" else 1)
            local = logits_seconds(work.rows, local_classes, work.element, machine.memory)
            flops = head_flops(work.rows, local_classes, work.hidden, work.hidden)
            replicas = machine.world // (world if work.form == "classes" else 1)
            head_gradient = wire_bytes(replicas, local_classes * work.hidden * work.element)
            rows.append(
                {
                    "work": work.name, "machine": machine.name, "rows": str(work.rows),
                    "classes": str(work.classes), "world": str(machine.world),
                    "correlation": work.correlation, "sent_mb": f"{wire / 1e6:.3g}",
                    "head_gradient_sent_mb": f"{head_gradient / 1e6:.4g}",
                    "kept_mb": f"{kept_bytes(*shape[:3], world) / 1e6:.3g}",
                    "exchange_ms": f"{1e3 * exchange:.2g}",
                    "loss_ms": f"{1e3 * local:.2g}",
                    "heads_ms": f"{1e3 * flops / machine.compute:.3g}",
                }
            )  # fmt: skip
    return rows


COLUMNS = {
    "work": "work",
    "machine": "machine",
    "sent_mb": "sent for the loss, MB",
    "head_gradient_sent_mb": "for the head's gradient, MB",
    "kept_mb": "kept, MB",
    "exchange_ms": "exchange, ms",
    "loss_ms": "loss on the logits, ms",
    "heads_ms": "both heads, ms",
}


def table(path: Path = RESULTS) -> str:
    """The table of docs/scaling.md from the result file."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---:|" * 6]
    lines += ["| " + " | ".join(row[name] for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def measured_table(path: Path = MEASURED) -> str:
    """The table of docs/scaling.md from the result file of bench_group.py."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| split by | ranks | N x V | correlation | sent, kB | formula | kept, kB | step, ms "
        "| parts, ms |",
        "|---|---:|---|---|" + "---:|" * 5,
    ]
    for row in rows:
        parts = float(row["local_ms"]) + float(row["all_reduce_ms"])
        cells = [
            row["form"], row["world"], f"{row['rows']} x {row['classes']}", row["correlation"],
            f"{int(row['wire_bytes']) / 1e3:.1f}", f"{int(row['wire_formula']) / 1e3:.1f}",
            f"{int(row['kept_bytes']) / 1e3:.1f}", f"{float(row['step_ms']):.1f}", f"{parts:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from harness import write_rows

    write_rows(RESULTS, [dict(row) for row in predictions()])
    print(table())
