"""The command `r2kd`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .bench import command as bench
from .demo.settings import QUICK, Settings
from .train import cli_eval, cli_train

# Of the extra "train"; nothing outside of `train/` and `demo/` imports them.
_TRAIN_PACKAGES = ("kornia", "matplotlib", "mlxtend", "rich", "safetensors")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="r2kd",
        description="Knowledge distillation with fused correlation-distance losses.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"r2kd_ext {_version()}", help="print the version"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train and compare four ways of distillation on real images",
        description=(
            "Train a teacher on MNIST digits, prune it, and train a much smaller student on few "
            "labelled images in four ways (cross-entropy, KL, DIST, R2KD). Downloads nothing. "
            "Ctrl-C stops; --resume goes on."
        ),
        allow_abbrev=False,
    )
    place = demo.add_mutually_exclusive_group()
    place.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="the new folder for everything that is written; where it exists, FOLDER-2, FOLDER-3, "
        "... is taken (default: %(default)s)",
    )
    place.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on with the interrupted run in FOLDER, with its settings",
    )
    demo.add_argument(
        "--seeds",
        type=_whole_number(2),
        metavar="N",
        help=f"students per method, at least 2 (default: {defaults.seeds})",
    )
    demo.add_argument(
        "--epochs",
        type=_whole_number(1),
        metavar="N",
        help=f"epochs of each student (default: {defaults.student_epochs})",
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help="see in seconds that everything works: few images and epochs, 2 seeds; the accuracies "
        "mean nothing",
    )
    demo.set_defaults(run=_demo)

    cli_train.add_commands(commands)
    cli_eval.add_commands(commands)

    info = commands.add_parser(
        "info",
        help="print what is installed and what would run",
        description="Print the versions, the hardware, and the backend that each op would use.",
        allow_abbrev=False,
    )
    info.add_argument("--json", action="store_true", help="print build_info() as JSON")
    info.set_defaults(run=_info)
    bench.add_commands(commands)
    return parser


def _version() -> str:
    try:
        return version("r2kd_ext")
    except PackageNotFoundError:
        return "(not installed)"


def _error(message: str) -> None:
    print(f"r2kd: error: {message}", file=sys.stderr)


def _info(arguments: argparse.Namespace) -> int:
    from .info import build_info, describe

    print(json.dumps(build_info(), indent=2) if arguments.json else describe())
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from .demo import report
        from .demo import run as demo
        from .demo.screen import Screen
        from .train.files import FileProblem
        from .train.finite import TrainingFailed
        from .train.interrupt import ctrl_c_between_steps
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _TRAIN_PACKAGES:
            raise
        _error(f"the demo needs the package {missing}: pip install 'r2kd_ext[train]'")
        return FAILED

    screen = Screen(Console())
    given = {"seeds": arguments.seeds, "student_epochs": arguments.epochs}
    chosen = QUICK if arguments.quick else {}
    chosen = chosen | {name: value for name, value in given.items() if value is not None}
    try:
        if arguments.resume is not None:
            run = demo.resume(arguments.resume, chosen, screen)
        else:
            run = demo.start(Settings(**chosen), arguments.output, screen)
    except FileProblem as error:
        _error(str(error))
        return BAD_INPUT
    go_on = f"To go on: r2kd demo --resume {shlex.quote(str(run.folder))}"
    try:
        with ctrl_c_between_steps():
            summary = run.run()
    except KeyboardInterrupt:
        screen.line(f"Stopped; the finished parts are kept in {run.folder}. {go_on}")
        return INTERRUPTED
    except (FileProblem, TrainingFailed) as error:
        _error(f"{error}\nThe finished parts are kept in {run.folder}. {go_on}")
        return FAILED
    screen.console.print(report.table(summary))
    screen.line(f"Report: {run.folder / report.NAME}")
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run `r2kd` with `argv` (default: the process's arguments); the exit code.

    0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    words, overrides = cli_train.split_overrides(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    arguments.overrides = overrides
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        _error("stopped")
        return INTERRUPTED
    return code
