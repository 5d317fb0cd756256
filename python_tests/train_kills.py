"""Trains in processes that are killed, over and over; run by test_train_kills.py as a program.

Importing what the trainer needs takes seconds, so it is done once, and every process is a fork of
this one, which itself computes nothing (threads do not survive a fork).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard

from r2kd_ext.cli import main
from r2kd_ext.train import engine, files
from r2kd_ext.train.configure import load_config
from r2kd_ext.train.engine import Engine


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def during_a_write(number: int, share: float) -> Callable[[], None]:
    """Be killed when `share` of the bytes of the number-th checkpoint are written."""

    def prepare() -> None:
        real, count = Path.open, [0]

        def patched(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
            file = real(self, mode, *rest, **named)
            if not self.name.startswith(".step-") or "w" not in mode:
                return file
            count[0] += 1
            if count[0] < number:
                return file

            class Killing:
                def __enter__(self) -> Killing:
                    return self

                def __exit__(self, *error: Any) -> None:
                    raise AssertionError("alive")

                def write(self, raw: bytes) -> None:
                    file.write(raw[: int(share * len(raw))])
                    file.flush()
                    die()

            return Killing()

        Path.open = patched  # type: ignore[method-assign]

    return prepare


def around_a_rename(number: int, after: bool) -> Callable[[], None]:
    """Be killed before or after the number-th checkpoint gets its name."""

    def prepare() -> None:
        real, count = os.replace, [0]

        def patched(source: Any, target: Any) -> None:
            count[0] += Path(target).name.startswith("step-")
            if count[0] == number and not after:
                die()
            real(source, target)
            if count[0] == number:
                die()

        files.os.replace = patched  # type: ignore[assignment]

    return prepare


def nothing() -> None:
    pass


def at_a_moment(seconds: float) -> Callable[[], None]:
    """Be killed so long after training began."""

    def prepare() -> None:
        real = Engine.run

        def patched(self: Engine, folder: Path) -> None:
            threading.Timer(seconds, die).start()
            real(self, folder)

        Engine.run = patched  # type: ignore[method-assign]

    return prepare


def train(words: list[str], prepare: Callable[[], None], seconds: float | None = None) -> int:
    """The wait status of a process that trains; killed from here after `seconds`."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            prepare()
            code = main(words)
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def plan_of(whole: Path, seconds: float) -> list[tuple[Callable[[], None], float | None]]:
    """How each of the processes dies: what it does to itself, and after how long from here.

    `whole` is a run that was not killed, and `seconds` what it took.
    """
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    training = sum(json.loads(line)["seconds"] for line in lines)
    rng = random.Random(os.environ.get("R2KD_KILLS_SEED", 1))
    plan: list[tuple[Callable[[], None], float | None]] = []
    plan += [(during_a_write(rng.randint(1, 3), rng.random()), None) for _ in range(9)]
    plan += [(around_a_rename(rng.randint(1, 3), after), None) for after in (False, False, True)]
    plan += [(at_a_moment(rng.uniform(0, training / 12)), None) for _ in range(6)]
    plan += [(nothing, rng.uniform(0, (seconds - training) / 2)) for _ in range(2)]
    rng.shuffle(plan)
    return plan


def run(config: str, folder: Path) -> dict[str, Any]:
    """Train undisturbed, then with kills; what happened."""
    torch.set_num_threads(1)
    loaded = engine.load(load_config(config).data, seed=0)
    engine.load = lambda config, *, seed: loaded
    started = time.perf_counter()
    assert train(["train", config, "--run.output", str(folder / "whole")], nothing) == 0
    plan = plan_of(folder / "whole", time.perf_counter() - started)
    broken = folder / "broken"
    killed = halves = 0
    steps: list[str] = []
    for prepare, seconds in plan:
        words = ["train", config, "--run.output", str(broken)]
        if (broken / "config.yaml").exists():
            words = ["train", "--resume", str(broken)]
        status = train(words, prepare, seconds)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        checkpoints = broken / "checkpoints"
        halves += any(checkpoints.glob(".step-*"))
        steps.append(max((path.name for path in checkpoints.glob("step-*")), default=""))
    last = train(["train", "--resume", str(broken)], nothing)
    return {"killed": killed, "halves": halves, "last": last, "steps": steps}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
