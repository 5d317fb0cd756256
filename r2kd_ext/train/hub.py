"""Data sets of the hub, and folders that the package `datasets` reads as such."""

from __future__ import annotations

import difflib
from typing import Any

import datasets

from .config import DataConfig
from .files import FileProblem
from .images import Labelled


def open_hub(config: DataConfig) -> tuple[Labelled, Labelled, Labelled]:
    """Train, validation and test images of the data set config.path; the last two are one.

    Raises FileProblem where it cannot be had, ValueError where it lacks the split or column, or the
    classes of the splits differ.
    """
    try:
        splits = datasets.load_dataset(config.path)
    except Exception as error:  # of the network, the hub, the file system or a format
        reason = (str(error).splitlines() or [""])[0]
        raise FileProblem(
            f"cannot load the data set {config.path!r}: {type(error).__name__}: {reason}"
        ) from error
    train, test = (
        _open_split(splits[_known(name, list(splits), key, config)], name, config)
        for key, name in (("train_split", config.train_split), ("test_split", config.test_split))
    )
    if train.classes != test.classes:
        raise ValueError(
            f"the classes of {test.where} differ from those of {train.where}: "
            f"{len(test.classes)} and {len(train.classes)}, first "
            f"{', '.join(sorted(set(train.classes) ^ set(test.classes))[:5])}"
        )
    return train, test, test


def _known(name: str, known: list[str], key: str, config: DataConfig) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"data.{key} must be one of {', '.join(known)}, of {config.path!r}, got {name!r}{hint}"
        )
    return name


def _open_split(table: Any, name: str, config: DataConfig) -> Labelled:
    where = f"{config.path}, split {name}"
    image = _known(config.image_column, table.column_names, "image_column", config)
    label = _known(config.label_column, table.column_names, "label_column", config)
    if not isinstance(table.features[image], datasets.Image):
        raise ValueError(f"data.image_column {image!r} of {config.path!r} holds no images")
    given = list(table[label])
    feature = table.features[label]
    if isinstance(feature, datasets.ClassLabel):
        classes = tuple(feature.names)
        labels = given
        if any(value is None or not 0 <= value < len(classes) for value in labels):
            raise ValueError(f"{where} has images without a class in the column {label!r}")
    else:
        if any(not isinstance(value, (int, str)) for value in given):
            raise ValueError(
                f"data.label_column {label!r} of {config.path!r} must hold classes, one for each "
                "image, as whole numbers or names"
            )
        ordered = sorted(set(given))
        classes = tuple(str(value) for value in ordered)
        place = {value: index for index, value in enumerate(ordered)}
        labels = [place[value] for value in given]
    column = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Labelled(column, image, labels, classes, where)
