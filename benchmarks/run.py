"""All benchmarks of the CPU, one after another, in a given time.

    python benchmarks/run.py [--only GROUP ...] [--seconds 540] [--turns 15] [--folder FOLDER]

Each group runs in a process of its own and writes one result file. Where the time is short, each
takes fewer turns (not less than 6). A group that fails or takes more than twice its time is
reported, and the others go on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Group(NamedTuple):
    """A script, the file that it writes, and its part of the time."""

    script: str
    results: str
    part: float


GROUPS = {
    "correlation": Group("bench_correlation.py", "correlation_cpu.csv", 5),
    "kernels": Group("bench_kernels.py", "correlation_kernels_cpu.csv", 1.5),
    "rank": Group("bench_rank.py", "rank_cpu.csv", 3),
    "growth": Group("bench_growth.py", "growth_cpu.csv", 2),
    "ensemble": Group("bench_ensemble.py", "ensemble_cpu.csv", 6),
}
START_SECONDS = 20  # a group's imports and compilations, which are not in its time


def run(name: str, folder: Path, turns: int, seconds: float) -> str | None:
    """Run a group; what went wrong, or None."""
    group = GROUPS[name]
    command = [
        sys.executable, str(HERE / group.script), "--turns", str(turns),
        "--seconds", f"{max(seconds - START_SECONDS, 5):.0f}",
        "--output", str(folder / group.results),
    ]  # fmt: skip
    try:
        code = subprocess.run(command, cwd=HERE, timeout=2 * seconds).returncode
    except subprocess.TimeoutExpired:
        return f"took more than {2 * seconds:.0f} s"
    return f"ended with {code}" if code else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP",
        help=f"of {', '.join(GROUPS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=540, help="about how long all may take (default 540)"
    )
    parser.add_argument("--turns", type=int, default=15, help="turns at most (default 15)")
    parser.add_argument(
        "--folder", type=Path, default=HERE / "results", help="where the result files go"
    )
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error(f"--seconds must be > 0, got {options.seconds}")
    parts = sum(group.part for group in GROUPS.values())
    failed = []
    for name in options.only:
        begin = time.monotonic()
        print(f"=== {name}", flush=True)
        seconds = options.seconds * GROUPS[name].part / parts
        problem = run(name, options.folder.resolve(), options.turns, seconds)
        print(f"=== {name}: {problem or 'done'}, {time.monotonic() - begin:.0f} s", flush=True)
        failed += [name] if problem else []
    if failed:
        sys.exit(f"error: benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
