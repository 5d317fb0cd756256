"""The training steps of the benchmarks: what the published one computes, and rows by part."""

from __future__ import annotations

import importlib
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from r2kd_ext import models, reference
from r2kd_ext.bench import results
from r2kd_ext.train.timing import Parts

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_published_loss_is_that_of_the_specification(load: Any) -> None:
    published: ModuleType = load("published")
    student, teacher = (3 * torch.randn(16, 50, dtype=torch.float64) for _ in range(2))
    expected = reference.correlation_kd(student, teacher, rank_weight=2.0, rank="hard")
    # Its ranks are float32.
    assert published.kd(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_published_view_has_a_box_of_another_image(load: Any) -> None:
    published: ModuleType = load("published")
    np.random.seed(3)
    images = torch.arange(1.0, 9.0)[:, None, None, None].expand(8, 3, 16, 16)
    view = published.cutmix(images)
    changed = (view != images).any(1)  # [B, H, W]
    assert changed.any()
    assert set(view.unique().tolist()) <= set(range(1, 9))
    assert torch.equal(images, torch.arange(1.0, 9.0)[:, None, None, None].expand(8, 3, 16, 16))


def test_the_limit_has_the_products_that_torch_counts(load: Any) -> None:
    published, steps = load("published"), load("steps")
    pair = steps.Pair("resnet14", "resnet8", classes=10, batch=4, size=16)
    parts = Parts(torch.device("cpu"))
    run = published.step(*pair, parts)
    with FlopCounterMode(display=False) as counter:
        run(0)
    works = steps.works(pair)
    with FlopCounterMode(display=False) as of_teacher, torch.no_grad():
        models.create("resnet14", 10)(torch.zeros(1, 3, 16, 16))
    networks_and_images = 2 * 2 * pair.batch
    direct = networks_and_images * of_teacher.get_total_flops()
    assert works["student forward"].flops + works["backward"].flops == (
        counter.get_total_flops() - direct
    )
    # Nearly all of it is in 3 x 3 convolutions, which may take a quarter.
    assert 0.25 * direct < works["teacher"].flops < 0.35 * direct
    whole = works.pop("step")
    assert whole.flops == sum(work.flops for work in works.values())
    assert whole.bytes == sum(work.bytes for work in works.values())
    (timed,) = parts.steps
    assert set(timed) == set(works)


def test_bfloat16_takes_part_where_the_processor_or_the_time_allows(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: ModuleType = load("steps")
    pair = steps.Pair("resnet14", "resnet8", classes=10, batch=2, size=8)
    teacher, student = "ours, teacher in bfloat16", "ours in bfloat16"
    for has, unlimited, want in (
        (False, False, set()), (False, True, {teacher}), (True, False, {teacher, student}),
    ):  # fmt: skip
        monkeypatch.setattr(steps, "processor_has_bfloat16", lambda has=has: has)
        with steps.contenders_of(pair, unlimited=unlimited) as (contenders, _):
            assert set(contenders) == {"ours", "published"} | want
            for run in contenders.values():
                run(0)


def test_rows_of_a_pair(load: Any, tmp_path: Path) -> None:
    steps: ModuleType = load("steps")
    pair = steps.Pair("resnet14", "resnet8", classes=10, batch=4, size=16)
    rows = steps.measure_pair(pair, 6, 1.0, by_part=True, with_host=True)
    results.save(tmp_path / "a.csv", rows)
    cases: dict[str, dict[str, dict[str, str]]] = {}
    for row in results.load(tmp_path / "a.csv"):
        cases.setdefault(row["op"], {})[row["contender"]] = row
    whole = cases.pop("step")
    assert set(whole) >= {"ours", "published", "copy"}
    assert whole["ours"]["variant"] == "resnet14 to resnet8"
    assert float(whole["published"]["peak_mib"]) > 0
    for name in ("ours", "published"):
        of_parts = [float(case[name]["host_us"]) for case in cases.values()]
        assert min(of_parts) > 0
        # Medians of a few turns each: beside a busy process they add up to another sum.
        assert 1 / 3 < sum(of_parts) / float(whole[name]["host_us"]) < 3
    assert list(cases) == [
        f"step: {part}"
        for part in ("augment", "teacher", "student forward", "loss", "backward", "optimiser")
    ]
    for name in ("ours", "published"):
        turns = [results.turns_of(case[name]) for case in cases.values()]
        shares = [
            sum(parts) / step
            for parts, step in zip(
                zip(*turns, strict=True), results.turns_of(whole[name]), strict=True
            )
        ]
        assert max(shares) <= 1.01
        assert median(shares) > 0.8


def test_the_pairs_are_those_of_the_configurations(load: Any) -> None:
    zoo: ModuleType = load("bench_zoo")
    pairs = zoo.pairs()
    files = {path.stem for path in (ROOT / "configs" / "cifar100").glob("*.yaml")}
    assert {f"{pair.teacher}-{pair.student}".lower() for pair in pairs} == files
    assert len(pairs) == len(files) == 13
    assert {(pair.classes, pair.size) for pair in pairs} == {(100, 32)}
