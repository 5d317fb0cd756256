"""The command `r2kd train`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_OK, _FAILED, _BAD_INPUT = 0, 1, 2
_OWN = ("--resume", "--profile", "--help")  # every other option is a key of the configuration
_PACKAGES = (
    "accelerate", "datasets", "jsonargparse", "kornia", "mlxtend", "PIL", "rich", "safetensors",
    "sklearn", "tensorboard", "torchmetrics", "yaml",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `r2kd`."""
    train = commands.add_parser(
        "train",
        help="train a student with a teacher, as a configuration file says",
        usage="r2kd train CONFIG [--section.key value ...] [--profile]\n"
        "       r2kd train --resume FOLDER [--section.key value ...]",
        description=(
            "Train as CONFIG says; any of its keys can be given as an option too, as "
            "--optimizer.epochs 10. A new run gets a new folder, run.output; where it exists, "
            "FOLDER-2, FOLDER-3, ... Ctrl-C and SIGTERM save and stop. Several processes and GPUs: "
            "torchrun --nproc-per-node 4 -m r2kd_ext train CONFIG, or accelerate launch."
        ),
        allow_abbrev=False,
    )
    train.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a YAML file; see configs/"
    )
    train.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on with the run in FOLDER, with its configuration, from its newest checkpoint",
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="print the time of a step by part after a few steps, and write nothing",
    )
    train.set_defaults(run=_train)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without the options that are keys of a configuration, and those.

    Words of another command are left as they are.
    """
    if list(words[:1]) != ["train"]:
        return list(words), []
    rest, overrides, queue = [], [], list(words)
    while queue:
        word = queue.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or name in _OWN:
            rest.append(word)
            if name == "--resume" and not equals and queue:
                rest.append(queue.pop(0))
            continue
        overrides.append(word)
        if not equals and queue:
            overrides.append(queue.pop(0))
    return rest, overrides


def _train(arguments: argparse.Namespace) -> int:
    try:
        return _start_or_resume(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _PACKAGES:
            raise
        return _error(f"the trainer needs the package {missing}: pip install 'r2kd_ext[train]'")


def _start_or_resume(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from . import run as runs
    from .configure import load_config
    from .files import FileProblem
    from .screen import Screen

    resumed: Path | None = arguments.resume
    if (arguments.config is None) == (resumed is None):
        return _error("give either CONFIG or --resume FOLDER", _BAD_INPUT)
    if resumed is not None and arguments.profile:
        return _error("--profile measures a new run: leave --resume out", _BAD_INPUT)
    try:
        if resumed is None:
            config = load_config(arguments.config, arguments.overrides)
        else:
            config = runs.stored_config(resumed, arguments.overrides)
        with runs.processes(config) as accelerator:
            screen = Screen(Console(), shown=accelerator.is_main_process)
            if arguments.profile:
                runs.profile(config, accelerator, screen)
                return _OK
            if resumed is None:
                engine, folder = runs.start(config, accelerator, screen)
            else:
                folder, going_on = resumed, runs.resume(resumed, config, accelerator, screen)
                if going_on is None:
                    screen.line(f"{folder} is finished already; nothing to do")
                    return _OK
                engine = going_on
            return _run(engine, folder, screen)
    except (FileProblem, ValueError) as error:
        return _error(str(error), _BAD_INPUT)


def _run(engine: Any, folder: Path, screen: Any) -> int:
    from .engine import Stopped
    from .files import FileProblem
    from .finite import TrainingFailed
    from .interrupt import signals_between_steps

    go_on = f"To go on: r2kd train --resume {shlex.quote(str(folder))}"
    screen.line(f"Everything is written to {folder}")
    try:
        with signals_between_steps():
            engine.run(folder)
    except Stopped as stop:
        name = "Ctrl-C" if stop.number == signal.SIGINT else signal.Signals(stop.number).name
        screen.line(f"Stopped by {name}; the state is saved. {go_on}")
        return 128 + stop.number
    except KeyboardInterrupt:
        screen.line(f"Stopped at once; what came after the newest checkpoint is lost. {go_on}")
        return 128 + signal.SIGINT
    except (FileProblem, TrainingFailed) as error:
        return _error(f"{error}\n{go_on}" if screen.shown else None)
    screen.line(f"The student: {folder / 'student.safetensors'}")
    return _OK


def _error(message: str | None, code: int = _FAILED) -> int:
    if message is not None:
        print(f"r2kd: error: {message}", file=sys.stderr)
    return code
