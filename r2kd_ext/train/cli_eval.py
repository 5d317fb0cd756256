"""The commands `r2kd eval` and `r2kd export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_OK, _FAILED, _BAD_INPUT = 0, 1, 2
_PACKAGES = (
    "datasets", "jsonargparse", "kornia", "matplotlib", "mlxtend", "PIL", "rich", "safetensors",
    "sklearn", "torchmetrics", "yaml",
)  # fmt: skip
_EXPORT_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_PLACE = "the folder of a finished run of r2kd train, or its student.safetensors"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to those of `r2kd`."""
    evaluate = commands.add_parser(
        "eval",
        help="measure a trained student: accuracy, calibration, agreement, robustness",
        description=(
            "Measure the student of a run, and its teacher, on the test images: top-1 and top-5 "
            "accuracy, calibration error, agreement, and accuracy under 8 corruptions at 3 "
            "severities. Leaves report.md, results.json and plots in a new folder."
        ),
        allow_abbrev=False,
    )
    _add_place(evaluate)
    evaluate.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="the new folder for the report; where it exists, FOLDER-2, FOLDER-3, ... is taken "
        "(default: eval beside the student)",
    )
    evaluate.add_argument(
        "--device",
        metavar="DEVICE",
        help="where the networks run, as torch names it: cpu, cuda, cuda:1 (default: cuda where "
        "there is one, else cpu)",
    )
    evaluate.add_argument(
        "--no-corruptions",
        action="store_true",
        help="leave out the accuracy under corruptions, which takes 24 passes over the images",
    )
    evaluate.add_argument(
        "--no-teacher",
        action="store_true",
        help="measure the student alone, as where the teacher's checkpoint is not at hand",
    )
    evaluate.set_defaults(run=_eval)

    export = commands.add_parser(
        "export",
        help="write a trained student as safetensors and ONNX",
        description=(
            "Write the student of a run as student.safetensors and student.onnx into a new folder. "
            "The ONNX file takes normalised images of any batch size; before it is written, it is "
            "run in ONNX Runtime and compared with torch."
        ),
        allow_abbrev=False,
    )
    _add_place(export)
    export.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="the new folder for both files; where it exists, FOLDER-2, FOLDER-3, ... is taken "
        "(default: export beside the student)",
    )
    export.set_defaults(run=_export)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", type=Path, metavar="RUN_OR_CHECKPOINT", help=_PLACE)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="the configuration that the student was trained with (default: config.yaml beside it)",
    )


def _error(message: str) -> None:
    print(f"r2kd: error: {message}", file=sys.stderr)


def _missing(error: ModuleNotFoundError, packages: tuple[str, ...], extra: str) -> int:
    """Say which package is missing; any other module that is missing is a fault."""
    missing = (error.name or "").partition(".")[0]
    if missing not in packages:
        raise error
    _error(f"this command needs the package {missing}: pip install 'r2kd_ext[{extra}]'")
    return _FAILED


def _beside(place: Path, name: str) -> Path:
    return (place if place.is_dir() else place.parent) / name


def _eval(arguments: argparse.Namespace) -> int:
    try:
        import torch
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
        from rich.table import Table

        from . import evaluation_report as report
        from .evaluate import evaluate, open_trained
        from .files import FileProblem, new_folder
    except ModuleNotFoundError as error:
        return _missing(error, _PACKAGES, "train")

    console = Console()
    try:
        device = _device(arguments.device)
        trained = open_trained(
            arguments.place, arguments.config, with_teacher=not arguments.no_teacher
        )
        columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("images", total=None)
            found = evaluate(
                trained,
                device,
                corruptions=not arguments.no_corruptions,
                on_batch=lambda done, total: progress.update(task, completed=done, total=total),
            )
        folder = new_folder(arguments.output or _beside(arguments.place, "eval"))
        path = report.write_report(folder, str(arguments.place), trained.config, found)
    except (FileProblem, ValueError) as error:
        _error(str(error))
        return _BAD_INPUT
    except torch.OutOfMemoryError as error:
        _error(str(error))
        return _FAILED
    except ModuleNotFoundError as error:  # of what only some data sets need
        return _missing(error, _PACKAGES, "train")
    table = Table(title=f"{found.images} test images (%)")
    for place, heading in enumerate(report.HEADINGS):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for row in report.summary(found):
        table.add_row(*row)
    console.print(table)
    console.print(f"Report: {path}", soft_wrap=True, markup=False, highlight=False)
    return _OK


def _device(wanted: str | None) -> torch.device:
    import torch

    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"--device {wanted!r} cannot be used here: {reason}") from error
    return device


def _export(arguments: argparse.Namespace) -> int:
    try:
        from .export import ExportFailed, export
        from .files import FileProblem
    except ModuleNotFoundError as error:
        extra = "export" if error.name in _EXPORT_PACKAGES else "train"
        return _missing(error, _PACKAGES + _EXPORT_PACKAGES, extra)

    output = arguments.output or _beside(arguments.place, "export")
    try:
        exported = export(arguments.place, arguments.config, output)
    except (FileProblem, ValueError) as error:
        _error(str(error))
        return _BAD_INPUT
    except ExportFailed as error:
        _error(str(error))
        return _FAILED
    print(
        f"{exported.folder}: student.safetensors and student.onnx; the logits of ONNX Runtime "
        f"differ from those of torch by at most {exported.difference:.1g} of the largest"
    )
    return _OK
