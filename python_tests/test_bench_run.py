"""benchmarks/run.py: each group has its file and its part of the time; a failure stops no other."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
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
    monkeypatch.setattr(module, "IMPORTED_ONCE", [])
    monkeypatch.chdir(tmp_path)  # and back
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
    assert (tmp_path / "works.csv").read_text() == "3 7"  # 3 parts of 10
    # The 10 seconds less what the others took, of which one was stopped after twice its part.
    seconds, turns = (tmp_path / "last.csv").read_text().split()
    assert turns == "7"
    assert 4 <= int(seconds) <= 7
    out = capsys.readouterr().out
    assert "fails: ended with 3" in out
    assert "hangs: took more than 3 s" in out


def test_some_groups(run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They share the whole time."""
    start(run, monkeypatch, "--only", "last", "works", "--seconds", "80", "--folder", str(tmp_path))
    assert (tmp_path / "last.csv").read_text() == "50 15"
    assert (tmp_path / "works.csv").read_text() == "80 15"  # what the first one left
    with pytest.raises(SystemExit) as stop:
        start(run, monkeypatch, "--only", "nothing")
    assert stop.value.code == 2


def test_the_time_of_all_is_below_ten_minutes(run: ModuleType) -> None:
    """However slow a group is: the last one is stopped where all of it must end."""
    real = importlib.reload(run)
    assert real.SECONDS * real.OVERRUN < 600
    assert sum(group.part for group in real.GROUPS.values()) == real.SECONDS


def test_a_slow_group_is_stopped_where_all_must_end(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="failed: hangs"):
        start(run, monkeypatch, "--only", "hangs", "--seconds", "2", "--folder", str(tmp_path))
    assert time.monotonic() - begin < 2 * run.OVERRUN + 1


def test_the_scripts_of_all_groups_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    groups = importlib.reload(importlib.import_module("run")).GROUPS
    assert "correlation" in groups
    for group in groups.values():
        assert (folder / group.script).exists()
    assert len({group.results for group in groups.values()}) == len(groups)


def test_groups_import_nothing_from_where_they_are_called(tmp_path: Path) -> None:
    """`make bench` is called beside the package's sources, and is about the installed package."""
    decoy, marker = tmp_path / "checkout", tmp_path / "imported"
    decoy.mkdir()
    (decoy / "decoy.py").write_text(f"open({str(marker)!r}, 'w')")
    (tmp_path / "works.py").write_text("")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent / 'benchmarks')!r})\n"
        "import run\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        f"    run.HERE, run.IMPORTED_ONCE = Path({str(tmp_path)!r}), ['decoy']\n"
        "    run.GROUPS = {'works': run.Group('works.py', 'works.csv', 1)}\n"
        "    sys.argv = ['run.py', '--only', 'works']\n"
        "    run.main()\n"
    )
    subprocess.run([sys.executable, str(program)], cwd=decoy, check=True)
    assert not marker.exists()
