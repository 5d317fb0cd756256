"""benchmarks/run.py: each group has its file and its part of the time; a failure stops no other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if {mode!r} == "fails":
    sys.exit(3)
if {mode!r} == "hangs":
    time.sleep(60)
Path(options["--output"]).write_text(options["--seconds"] + " " + options["--turns"])
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    module = importlib.import_module("run")
    groups = {}
    for mode, part in (("works", 3), ("fails", 1), ("hangs", 1), ("last", 5)):
        (tmp_path / f"{mode}.py").write_text(SCRIPT.format(mode=mode))
        groups[mode] = module.Group(f"{mode}.py", f"{mode}.csv", part)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "GROUPS", groups)
    monkeypatch.setattr(module, "START_SECONDS", 0)
    return module


def start(run: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    run.main()


def test_groups(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="benchmarks failed: fails, hangs"):
        start(run, monkeypatch, "--seconds", "10", "--turns", "7", "--folder", str(tmp_path))
    assert (tmp_path / "works.csv").read_text() == "5 7"  # 3 of 10, but 5 at the least
    assert (tmp_path / "last.csv").read_text() == "5 7"
    out = capsys.readouterr().out
    assert "fails: ended with 3" in out
    assert "hangs: took more than 2 s" in out


def test_some_groups(run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start(run, monkeypatch, "--only", "last", "--seconds", "100", "--folder", str(tmp_path))
    assert (tmp_path / "last.csv").read_text() == "50 15"
    assert not (tmp_path / "works.csv").exists()
    with pytest.raises(SystemExit) as stop:
        start(run, monkeypatch, "--only", "nothing")
    assert stop.value.code == 2


def test_the_scripts_of_all_groups_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    groups = importlib.reload(importlib.import_module("run")).GROUPS
    assert "correlation" in groups
    for group in groups.values():
        assert (folder / group.script).exists()
    assert len({group.results for group in groups.values()}) == len(groups)
