"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any


class FileProblem(Exception):
    """A file or folder that cannot be used; the message names it and says what to do."""


def new_folder(wanted: Path) -> Path:
    """Create `wanted`, or the first of wanted-2, wanted-3, ... that does not exist yet.

    Raises FileProblem where no folder can be created there.
    """
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError as error:
            if folder.is_dir():
                continue
            raise FileProblem(
                f"cannot create the folder {folder}: {error.filename} is a file"
            ) from error
        except OSError as error:
            raise FileProblem(f"cannot create the folder {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")


def write(path: Path, content: bytes | str) -> None:
    """Replace the file `path` by `content` (text as UTF-8) in one step.

    A reader, also one after a crash or a full disk, finds the old file or the new one. Raises
    FileProblem where it cannot be written.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileProblem(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can sync folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`write` of `value` as indented JSON; refuses NaN and infinity with ValueError."""
    write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises FileProblem where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FileProblem(f"{path} is damaged: {error}") from error
