"""Result files and what `r2kd bench` says about them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from r2kd_ext.bench import results
from r2kd_ext.bench.compare import compare
from r2kd_ext.bench.results import Case, Rates, Work
from r2kd_ext.bench.timing import timing_of
from r2kd_ext.cli import main

ORIGIN = {
    "device": "a processor", "threads": "2", "simd": "avx2", "torch": "2.13", "driver": "",
    "commit": "0123",
}  # fmt: skip
RATES = Rates(1e10, 1e11)
SHAPES = [(64, 2**k) for k in range(6, 12)]


def rows(
    seed: int,
    factors: dict[tuple[int, int], float] | None = None,
    *,
    machine: float = 1.0,
    noise: float = 0.05,
    turns: int = 15,
    **origin: str,
) -> list[dict[str, str]]:
    """A result file of a machine that is slower by `machine`, ours by `factors`."""
    generator = np.random.default_rng(seed)
    found = []
    for shape in SHAPES:
        drift = machine * generator.lognormal(0, 0.3, turns)  # of a turn, for all alike
        timings = {
            name: timing_of(list(seconds * drift * generator.lognormal(0, noise, turns)))
            for name, seconds in {
                "ours": 1e-4 * (factors or {}).get(shape, 1.0), "eager": 1e-3, "copy": 1e-5,
            }.items()
        }  # fmt: skip
        roles = {"ours": "ours", "eager": "reference", "copy": "unit"}
        case = Case("correlation", shape, "float32", Work(10**6, 10**6), roles)
        found += results.rows_of(case, timings, RATES, {**ORIGIN, **origin})
    return found


def verdicts(*files: list[dict[str, str]]) -> dict[str, str]:
    return {change.name.split(", ")[2]: change.verdict for change in compare(*files).changes}


def test_a_planted_slowdown_is_found_and_noise_is_not() -> None:
    slow, fast = SHAPES[1], SHAPES[4]
    found = verdicts(rows(0), rows(1, {slow: 1.2, fast: 1 / 1.2}))
    assert found.pop("64 x 128") == "slower"
    assert found.pop("64 x 1024") == "faster"
    assert set(found.values()) == {"no change shown"}


def test_the_estimate_is_what_was_planted() -> None:
    change = compare(rows(0), rows(1, {SHAPES[0]: 1.3}))[0][0]
    assert change.ratio.low < 1.3 < change.ratio.high
    assert change.ratio.estimate == pytest.approx(1.3, rel=0.05)
    assert change.unit == "eager"


def test_a_slower_hour_of_the_machine_is_no_slower_kernel() -> None:
    assert set(verdicts(rows(0), rows(1, machine=1.5)).values()) == {"no change shown"}


def test_wrong_calls_are_rare() -> None:
    """Of 100 comparisons in which nothing changed, 5% may call anything; 4 deviations are 9."""
    calls = sum(
        any(change.verdict != "no change shown" for change in compare(rows(i), rows(i + 1)).changes)
        for i in range(0, 200, 2)
    )
    assert calls <= 5 + 9


def test_other_machines_are_flagged_and_not_judged() -> None:
    comparison = compare(rows(0), rows(1, {SHAPES[0]: 3.0}, device="another", torch="2.14"))
    assert {change.verdict for change in comparison.changes} == {"another machine"}
    assert "device: a processor -> another" in comparison.notes
    assert "torch: 2.13 -> 2.14" in comparison.notes


def test_cases_of_one_file_alone_are_named() -> None:
    ours = rows(0)
    comparison = compare(ours[:3], [*ours[:3], *rows(1, threads="1")[3:6]])
    assert len(comparison.changes) == 1
    assert any("1 cases are in the new file alone: correlation" in n for n in comparison.notes)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = rows(0)
    results.save(tmp_path / "a.csv", saved)
    assert results.load(tmp_path / "a.csv") == saved
    assert tuple(saved[0]) == results.COLUMNS
    ours, eager = saved[0], saved[1]
    assert float(ours["us"]) == pytest.approx(np.median(results.turns_of(ours)), rel=1e-3)
    ratios = np.divide(results.turns_of(eager), results.turns_of(ours))
    assert float(eager["times_ours"]) == pytest.approx(np.median(ratios), rel=1e-3)
    assert float(eager["times_ours_low"]) < float(eager["times_ours"])
    limit = max(1e6 / RATES.copy, 1e6 / RATES.matrix)
    assert float(ours["share_of_limit"]) == pytest.approx(limit / (float(ours["us"]) / 1e6), 1e-2)
    assert saved[2]["share_of_limit"] == ""  # the unit's


def _damaged(path: Path, saved: list[dict[str, str]], damage: str) -> None:
    if damage == "column":
        saved = [{key: value for key, value in row.items() if key != "us"} for row in saved]
    elif damage == "turns":
        saved[1]["turns_us"] = "1 2 -3"
    elif damage == "count":
        saved[1]["turns_us"] = "1 2 3"
    elif damage == "twice":
        saved.append(saved[0])
    results.save(path, saved)
    if damage == "empty":
        path.write_text("")
    elif damage == "header":
        path.write_text(path.read_text().splitlines()[0])
    elif damage == "short":
        path.write_text("\n".join([*path.read_text().splitlines(), "correlation,64"]))
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif damage == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("column", "is no result file of a benchmark: no column 'us'"),
        ("turns", "line 3: turns_us must be at least 2 times > 0, got '1 2 -3'"),
        ("count", "line 3: turns_us has 3 times, other contenders of the case have 15"),
        ("twice", "a second row of correlation"),
        ("empty", "is no result file"),
        ("header", "has no rows"),
        ("short", "line 20: not"),
        ("binary", "is not a CSV file"),
        ("missing", "No such file"),
    ],
)
def test_bad_files(
    damage: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    results.save(good, rows(0))
    _damaged(bad, rows(1), damage)
    assert main(["bench", "--compare", str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(bad) in error


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    results.save(old, rows(0))
    results.save(new, rows(1, {SHAPES[2]: 1.4}))
    assert main(["bench", "--compare", str(old), str(new)]) == 1
    out = capsys.readouterr().out
    assert "64 x 256" in out
    assert "64 x 128" not in out
    assert "6 cases in both files: 1 slower, 0 faster, 5 without a change beyond noise" in out
    assert main(["bench", "--compare", str(old), str(old)]) == 0


def test_measuring_needs_a_folder_to_write_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--output", str(tmp_path / "none" / "a.csv")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_short_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r2kd_ext.bench.short.SHAPES", ((16, 10), (64, 100)))
    monkeypatch.setattr("r2kd_ext.bench.short.SECONDS_PER_TURN", 1e-3)
    path = tmp_path / "a.csv"
    assert main(["bench", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "64 x 100" in out
    assert "medians of paired turns" in out
    found = results.load(path)
    assert [row["contender"] for row in found] == ["ours", "plain PyTorch", "copy"] * 2


def test_a_missing_rich_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("rich", "rich.table", "rich.console"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["bench"]) == 1
    remedy = "r2kd: error: bench needs the package rich: pip install 'r2kd_ext[bench]'\n"
    assert capsys.readouterr().err == remedy


def test_what_two_runs_of_one_build_say() -> None:
    """The figures of docs/benchmarks.md."""
    folder = Path(__file__).parent.parent / "benchmarks" / "results"
    again, before = (results.load(folder / f"growth_{name}.csv") for name in ("again", "before"))
    changes = compare(again, before).changes
    called = [change for change in changes if change.verdict != "no change shown"]
    assert len(changes) == 54
    assert [change.verdict for change in called] == ["faster"]
    assert called[0].ratio.estimate == pytest.approx(1 / 1.09, abs=0.01)
