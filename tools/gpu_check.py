"""Everything that needs a GPU, in one command: build, tests, compute-sanitizer, benchmark.

    python tools/gpu_check.py

Needs torch, Triton, nvcc, CMake, Ninja, pybind11, setuptools and pytest, and no network. Builds
into build/gpu-check, leaves what is installed alone, prints what became of each step, and ends with
an error if any failed. Each step has a limit; together they stay below nine minutes. A step that
was skipped (no compute-sanitizer) is no failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu-check"
PACKAGES = FOLDER / "packages"
BACKENDS = ("native", "triton")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SHARDS = {"native": 2, "triton": 3}  # sessions that share a backend's tests
# Seconds. Steps of one group run side by side.
BUILD, TESTS, SANITIZED, BENCHMARK = 100, 190, 110, 120


class Step(NamedTuple):
    """A command, where it runs, and what is added to its environment."""

    name: str
    command: list[str]
    folder: Path
    environment: dict[str, str]


class Outcome(NamedTuple):
    name: str
    result: str  # "passed", "failed", "skipped"
    seconds: float
    last: str  # line of the output


def run_together(steps: list[Step], limit: float) -> list[Outcome]:
    """Runs steps side by side; their output goes to files, and here where they fail."""
    begin = time.monotonic()
    running = []
    for step in steps:
        log = FOLDER / f"{step.name.replace(' ', '-')}.log"
        path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        with open(log, "w") as file:
            process = subprocess.Popen(
                step.command, cwd=step.folder, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, **step.environment},
            )  # fmt: skip
        running.append((step, process, log))
    outcomes = []
    for step, process, log in running:
        try:
            code = process.wait(max(begin + limit - time.monotonic(), 0.1))
            why = f"ended with {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            code, why = process.wait(), f"took more than {limit:.0f} s"
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        result = "passed" if code == 0 else "failed"
        if code != 0:
            print("\n".join(lines[-60:]))
        last = lines[-1] if code == 0 else f"{why}: {lines[-1]}"
        outcomes.append(Outcome(step.name, result, time.monotonic() - begin, last))
        print(f"=== {step.name}: {result}, {last}", flush=True)
    return outcomes


def build(architecture: str) -> Step:
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps",
        "--no-index", "--disable-pip-version-check", "--target", str(PACKAGES), ".",
    ]  # fmt: skip
    return Step("build", command, ROOT, {"R2KD_CUDA": "on", "R2KD_CUDA_ARCHS": architecture})


def tests() -> list[Step]:
    """Sessions side by side: most of Triton's is compiling on the CPU."""
    folder = ROOT / "python_tests"
    files = sorted(p.name for p in folder.glob("test_*.py") if "pytest.mark.gpu" in p.read_text())
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    chosen = {"native": "not triton", "triton": "triton"}
    return [
        Step(
            f"tests of {backend} {shard + 1} of {SHARDS[backend]}",
            [*pytest, "-k", chosen[backend]],
            folder,
            {"R2KD_TEST_SHARD": f"{shard}/{SHARDS[backend]}", "OMP_NUM_THREADS": "3"},
        )
        for backend in BACKENDS
        for shard in range(SHARDS[backend])
    ]


def find_sanitizer() -> str | None:
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    beside = [str(Path(place).parent) for place in (nvcc, nvcc and Path(nvcc).resolve()) if place]
    return shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside])
    )


def sanitized(sanitizer: str) -> list[Step]:
    # Without torch's cache every tensor is an allocation of its own, past whose end nothing lies.
    return [
        Step(
            f"{tool} of {backend}",
            [sanitizer, "--tool", tool, "--error-exitcode", "1", "--print-limit", "20",
             sys.executable, "tools/gpu_steps.py", backend],
            ROOT,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in SANITIZERS
        for backend in BACKENDS
    ]  # fmt: skip


def main() -> None:
    try:
        import torch
    except ImportError:
        sys.exit("error: gpu-check needs torch, which this Python does not have")
    if not torch.cuda.is_available():
        sys.exit("error: gpu-check needs an NVIDIA GPU, and torch sees none")
    begin = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    major, minor = torch.cuda.get_device_capability()
    print(f"=== {torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}")
    outcomes = run_together([build(f"{major}{minor}")], BUILD)
    if outcomes[0].result == "passed":
        outcomes += run_together(tests(), TESTS)
        sanitizer = find_sanitizer()
        if sanitizer is None:
            why = "compute-sanitizer was found neither on the PATH nor beside nvcc"
            outcomes.append(Outcome("compute-sanitizer", "skipped", 0, why))
            print(f"=== compute-sanitizer: skipped, {why}")
        else:
            outcomes += run_together(sanitized(sanitizer), SANITIZED)
        # Cases that do not fit are left out, and named; the file is written after each.
        benchmark = [
            sys.executable, "benchmarks/bench_gpu.py", "--turns", "7",
            "--seconds", str(BENCHMARK - 40),
        ]  # fmt: skip
        outcomes += run_together([Step("benchmark", benchmark, ROOT, {})], BENCHMARK)
    print(f"\n{'step':<24}{'result':<10}{'seconds':>8}  last line")
    for outcome in outcomes:
        print(f"{outcome.name:<24}{outcome.result:<10}{outcome.seconds:>8.0f}  {outcome.last}")
    print(f"gpu-check took {time.monotonic() - begin:.0f} s; logs in {FOLDER.relative_to(ROOT)}/")
    failed = [outcome.name for outcome in outcomes if outcome.result == "failed"]
    if failed:
        sys.exit(f"error: gpu-check: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
