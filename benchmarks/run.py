"""All benchmarks of the CPU, one after another, in a given time.

    python benchmarks/run.py [--only GROUP ...] [--seconds 575] [--turns 15] [--folder FOLDER]

Each group runs in a process of its own and writes one result file. What a group does not need of
its part of the time goes to those after it. Where the time is short, each takes fewer turns (not
less than 6), and then fewer cases, which it names. A group that fails, or that takes more than
twice its part, is reported and leaves its earlier file as it was; the others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PROCESSES = multiprocessing.get_context("forkserver")
# Imported once, in a process that all groups are forked from: 9 seconds for those that train, and 6
# for those that compile.
IMPORTED_ONCE = ["r2kd_ext.train.run", "torch._inductor.compile_fx"]


class Group(NamedTuple):
    """A script, the file that it writes, and its part of the time."""

    script: str
    results: str
    part: float


# In the order in which they run; parts are seconds of the default time, with nothing compiled yet.
# Last is what can end at any time, since its cases are many and short.
GROUPS = {
    "correlation": Group("bench_correlation.py", "correlation_cpu.csv", 88),
    "rank": Group("bench_rank.py", "rank_cpu.csv", 92),
    "fused_linear": Group("bench_fused_linear.py", "fused_linear_cpu.csv", 44),
    "sparse": Group("bench_sparse.py", "sparse_cpu.csv", 114),
    "winograd_conv2d": Group("bench_winograd_conv2d.py", "winograd_conv2d_cpu.csv", 22),
    "ensemble": Group("bench_ensemble.py", "ensemble_cpu.csv", 42),
    "step": Group("bench_step.py", "step_cpu.csv", 22),
    "zoo": Group("bench_zoo.py", "zoo_cpu.csv", 102),
    "growth": Group("bench_growth.py", "growth_cpu.csv", 21),
    "kernels": Group("bench_kernels.py", "correlation_kernels_cpu.csv", 28),
}
START_SECONDS = 1  # what a group takes to start, which is not in its time
SECONDS = 575  # of all groups
OVERRUN = 1.03  # of the given time, when all is stopped


def run(group: Group, folder: Path, turns: int, seconds: float, limit: float) -> str | None:
    """Run a group in about `seconds`, at most `limit`; what went wrong, or None."""
    command = [
        str(HERE / group.script), "--turns", str(turns),
        "--seconds", f"{max(seconds - START_SECONDS, 1):.0f}",
        "--output", str(folder / group.results),
    ]  # fmt: skip
    process = PROCESSES.Process(target=run_script, args=(command,))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return f"took more than {limit:.0f} s"
    return f"ended with {process.exitcode}" if process.exitcode else None


def run_script(command: list[str]) -> None:
    """A Python script with its arguments, as if it were the program."""
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP",
        help=f"of {', '.join(GROUPS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"about how long all may take (default {SECONDS})",
    )
    parser.add_argument("--turns", type=int, default=15, help="turns at most (default 15)")
    parser.add_argument(
        "--folder", type=Path, default=HERE / "results", help="where the result files go"
    )
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error(f"--seconds must be > 0, got {options.seconds}")
    folder = options.folder.resolve()
    os.chdir(HERE)  # where the process that imports looks first: not beside the package's sources
    PROCESSES.set_forkserver_preload(IMPORTED_ONCE)
    start = time.monotonic()
    failed = []
    for place, name in enumerate(options.only):
        begin = time.monotonic()
        print(f"=== {name}", flush=True)
        left = options.seconds - (begin - start)
        parts = sum(GROUPS[other].part for other in options.only[place:])
        seconds = max(left, 0) * GROUPS[name].part / parts
        at_most = max(left + (OVERRUN - 1) * options.seconds, 1)
        limit = min(2 * seconds + START_SECONDS, at_most)
        problem = run(GROUPS[name], folder, options.turns, seconds, limit)
        print(f"=== {name}: {problem or 'done'}, {time.monotonic() - begin:.0f} s", flush=True)
        failed += [name] if problem else []
    print(f"all took {time.monotonic() - start:.0f} s")
    if failed:
        sys.exit(f"error: benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
