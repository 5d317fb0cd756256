"""The examples run as they stand, and what they train learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs", "least"),
    [
        ("plain_loop.py", "sklearn", 0.6),
        ("lightning_module.py", "lightning", 0.6),
        ("huggingface_trainer.py", "transformers", 0.4),
    ],
)
def test_an_example(name: str, needs: str, least: float, tmp_path: Path) -> None:
    """Chance is 0.1 for digits, about 0.2 for the most frequent word."""
    pytest.importorskip(needs, reason=f"{name} needs the package {needs}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / name, "--epochs", "4"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert float(found["teacher"]) > least, done.stdout
    assert float(found["distilled"]) > least, done.stdout
    assert not list(tmp_path.iterdir())
