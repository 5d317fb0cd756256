"""One split of stored images, and how an image of it becomes a tensor."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .files import FileProblem


@dataclass(frozen=True)
class Labelled:
    """Images of a data set of the package `datasets`, not decoded.

    Attributes:
        table: rows with the column `column`, a feature `Image(decode=False)`: a dict of "path" and
            "bytes", either of which may be None.
        labels: the class index of each row.
        classes: the names.
        where: the folder or split, for errors.
    """

    table: Any
    column: str
    labels: Sequence[int]
    classes: tuple[str, ...]
    where: str

    def open(self, index: int) -> tuple[Image.Image, str]:
        """The image of a row, with nothing but its header read, and its name for errors.

        Raises FileProblem where there is none.
        """
        entry = self.table[int(index)][self.column] or {}
        path, content = entry.get("path"), entry.get("bytes")
        title = f"{path or f'the image in row {index} of {self.where}'}"
        if content is None and path is None:
            raise FileProblem(f"{title} is missing")
        try:
            source = Path(str(path)) if content is None else io.BytesIO(content)
            return Image.open(source), title
        except FileNotFoundError as error:
            raise FileProblem(f"{title} is missing") from error
        except _DAMAGED as error:
            raise FileProblem(f"{title} is no image: {_reason(error)}") from error

    def header(self, index: int) -> None:
        """Raise FileProblem where the header of the image cannot be read."""
        image, _ = self.open(index)
        image.close()


# What Pillow raises for files that it cannot decode: its formats differ.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no format that Pillow knows"
    return str(error) or type(error).__name__


def read(images: Labelled, index: int, size: int) -> Tensor:
    """An image as uint8 (3, size, size), RGB: its shorter side scaled to `size` (bilinear, with
    antialiasing), the square in its centre. Raises FileProblem where it cannot be decoded."""
    image, title = images.open(index)
    try:
        with image, warnings.catch_warnings():
            # Palette images with transparency and odd EXIF data; what is read is right.
            warnings.simplefilter("ignore", UserWarning)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    except _DAMAGED as error:
        raise FileProblem(f"{title} is damaged: {_reason(error)}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
