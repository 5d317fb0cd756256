"""Says what is wrong where the compiled core is missing; imported before all that needs it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

if find_spec(f"{__package__}._core") is None:
    raise ImportError(
        f"r2kd_ext was imported from {Path(__file__).parent}, where its compiled core (_core) is "
        "not: a source folder comes before the installed package on Python's path. Run Python from "
        "another folder, or install with `pip install -e .` from the source folder to work on it"
    )
