"""Images in folders: path/SPLIT/CLASS/*."""

from __future__ import annotations

from pathlib import Path

import datasets
from PIL import Image

from .config import DataConfig
from .files import FileProblem
from .images import Labelled


def open_folder(config: DataConfig) -> tuple[Labelled, Labelled, Labelled]:
    """Train, validation and test images of the folder config.path.

    A folder "val" (or "validation") beside the two that config names is the validation split; it is
    also the test split where there is no other. Without one, the test images validate.

    Raises FileProblem where a folder is missing, ValueError where the classes of the splits differ
    or a class has no images.
    """
    assert config.path is not None
    root = Path(config.path)
    if not root.is_dir():
        raise FileProblem(f"data.path {root} is no folder")
    extra = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    train = _open_split(_existing(root, config.train_split, "data.train_split"))
    if (root / config.test_split).is_dir() or not extra:
        test = _open_split(_existing(root, config.test_split, "data.test_split"))
        validation = _open_split(extra[0]) if extra else test
    else:
        validation = test = _open_split(extra[0])
    for split in (validation, test):
        if split.classes != train.classes:
            missing = sorted(set(train.classes) - set(split.classes))
            unknown = sorted(set(split.classes) - set(train.classes))
            differences = [
                f"{text} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
                for text, names in (("lacks", missing), ("adds", unknown))
                if names
            ]
            raise ValueError(
                f"the classes of {split.where} differ from those of {train.where}: it "
                + " and ".join(differences)
            )
    return train, validation, test


def _existing(root: Path, name: str, key: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise FileProblem(
            f"{folder}, named by {key}, is no folder; {root} has {', '.join(found) or 'none'}"
        )
    return folder


def _open_split(folder: Path) -> Labelled:
    classes = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    if not classes:
        raise FileProblem(f"{folder} has no folders of classes in it")
    known = set(Image.registered_extensions())
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # By name and not by content: a damaged image must be found, not passed over.
        found = [
            entry
            for entry in sorted((folder / name).rglob("*"))
            if entry.suffix.lower() in known and not entry.name.startswith(".")
        ]
        if not found:
            raise ValueError(f"the class folder {folder / name} has no images in it")
        paths += [str(path) for path in found]
        labels += [label] * len(found)
    table = datasets.Dataset.from_dict({"image": paths})
    table = table.cast_column("image", datasets.Image(decode=False))
    return Labelled(table, "image", labels, tuple(classes), str(folder))


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
