"""The command `r2kd`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import r2kd_ext
from r2kd_ext.cli import main

ROOT = Path(r2kd_ext.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
R2KD = [sys.executable, "-m", "r2kd_ext"]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*R2KD, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_importing_the_package_imports_no_extra() -> None:
    done = _python(
        "import sys, r2kd_ext, r2kd_ext.models, r2kd_ext.teacher, r2kd_ext.cli\n"
        "extras = {'kornia', 'matplotlib', 'mlxtend', 'rich', 'safetensors'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_missing_extra_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = _python(
        f"""
import sys
from r2kd_ext.cli import main
ours = ("r2kd_ext.demo", "r2kd_ext.train")
for package in ("kornia", "matplotlib", "mlxtend", "rich", "safetensors"):
    for name in [n for n in sys.modules if n.partition(".")[0] == package or n.startswith(ours)]:
        del sys.modules[name]
    sys.modules[package] = None  # makes the import fail as if it were not installed
    print(package, main(["demo", "--output", r"{tmp_path / "demo"}"]))
    del sys.modules[package]
"""
    )
    packages = ["kornia", "matplotlib", "mlxtend", "rich", "safetensors"]
    assert done.stdout.splitlines() == [f"{package} 1" for package in packages], done.stderr
    assert done.stderr.splitlines() == [
        f"r2kd: error: the demo needs the package {package}: pip install 'r2kd_ext[train]'"
        for package in packages
    ]
    assert not (tmp_path / "demo").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("r2kd_ext ")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "correlation on cpu" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(r2kd_ext.build_info()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seeds", "1"], "--seeds: must be a whole number >= 2, got '1'"),
        (["demo", "--epochs", "many"], "--epochs: must be a whole number >= 1, got 'many'"),
        (
            ["demo", "--output", "a", "--resume", "b"],
            "--resume: not allowed with argument --output",
        ),
        (["demo", "--wrong"], "unrecognized arguments: --wrong"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_usage_ends_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demo", "info", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        options = re.findall(r"^  (?:-h, )?(--[a-z]+)(.*(?:\n {10,}.*)*)", text, re.MULTILINE)
        assert len(options) == {"demo": 6, "info": 2, "bench": 3}[command]
        for option, described in options:
            assert len(described.split()) > 3, option


def test_an_output_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "demo"):
        assert main(["demo", "--output", str(output)]) == 2
        assert f"cannot create the folder {output}" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_an_output_that_is_not_writable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_resume_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--resume", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "there is no run of the demo in" in error
    assert "nothing" in error


@pytest.mark.slow
def test_a_quick_run_survives_ctrl_c(tmp_path: Path) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    done = _run("demo", "--quick", "--output", str(undisturbed))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"Report: {undisturbed / 'report.md'}"

    with subprocess.Popen(
        [*R2KD, "demo", "--quick", "--output", str(stopped)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        for _ in range(1200):
            if (stopped / "students" / "kl-0.json").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"To go on: r2kd demo --resume {stopped}" in out.splitlines()[-1]
    assert errors == ""

    refused = _run("demo", "--resume", str(stopped), "--seeds", "4")
    assert refused.returncode == 2
    assert "was started with seeds 2, got 4" in refused.stderr
    resumed = _run("demo", "--resume", str(stopped))
    assert resumed.returncode == 0, resumed.stderr
    first, second = (
        json.loads((folder / "results.json").read_text()) for folder in (undisturbed, stopped)
    )
    for key in ("teacher", "pruned_teacher", "methods"):
        assert first[key] == second[key]
