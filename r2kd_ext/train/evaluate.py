"""What a trained student is worth: accuracy, calibration, agreement, robustness."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from .augment import Augment
from .config import Config
from .configure import load_config
from .corruptions import SEVERITIES, STRENGTHS, corrupt
from .data import ImageData, check_classes, load
from .files import FileProblem
from .networks import create, load_network

BINS = 15  # of the calibration error, as in Guo et al., ICML 2017
_BATCH = 128
STUDENT = "student.safetensors"
CONFIG = "config.yaml"


class Bin(NamedTuple):
    """The images to whose class a network gives a probability within one of `BINS` intervals."""

    images: int
    confidence: float  # mean probability of the predicted class; NaN where there are none
    accuracy: float  # NaN where there are none


@dataclass
class Measures:
    """What one network does on the images.

    Attributes:
        top1, top5: share of the images whose class is the first, or one of the first five (or of
            all, where there are fewer classes).
        calibration_error: expected calibration error: mean over the images of |accuracy -
            confidence| of their bin (Guo et al., *On Calibration of Modern Neural Networks*, ICML
            2017).
        bins: what it is made of.
        corrupted: corruption -> top1 at each severity.
    """

    top1: float
    top5: float
    calibration_error: float
    bins: list[Bin]
    corrupted: dict[str, list[float]] = field(default_factory=dict)

    @property
    def mean_corrupted(self) -> float:
        """Mean of top1 over corruptions and severities."""
        values = [value for row in self.corrupted.values() for value in row]
        return sum(values) / len(values)


@dataclass
class Evaluation:
    """`agreement`: the share of the images for which student and teacher choose the same class."""

    images: int
    classes: int
    student: Measures
    teacher: Measures | None = None
    agreement: float | None = None


class Trained(NamedTuple):
    """A trained student with what it was trained with."""

    config: Config
    student: nn.Module
    data: ImageData
    teacher: nn.Module | None


def find(place: Path, config: Path | None) -> tuple[Config, Path]:
    """The configuration and the student's file of a run's folder or of a safetensors file.

    Args:
        place: a run's folder, or the file.
        config: the configuration; None for config.yaml in the folder.

    Raises FileProblem where one is missing, ConfigProblem where the configuration is no good.
    """
    if not place.exists():
        raise FileProblem(f"{place} does not exist")
    folder = place if place.is_dir() else place.parent
    student = place / STUDENT if place.is_dir() else place
    chosen = folder / CONFIG if config is None else config
    if not chosen.is_file():
        hint = "" if config is not None else "; name a configuration with --config"
        raise FileProblem(f"{chosen} is missing{hint}")
    if not student.is_file():
        raise FileProblem(
            f"{student} is missing: the run in {place} is not finished, or is no run of r2kd train"
        )
    return load_config(chosen), student


def open_trained(place: Path, config: Path | None, *, with_teacher: bool) -> Trained:
    """Load student, images and, where asked and the method has a trained one, the teacher.

    Raises what `find`, `data.load` and `networks.create` raise; ValueError where a network does not
    fit the classes.
    """
    settings, path = find(place, config)
    student = load_network(path, settings.student.name)
    teacher = None
    data = load(settings.data, seed=settings.run.seed)
    if with_teacher and settings.method.name != "ce" and not settings.teacher.untrained:
        teacher = create(settings.teacher, len(data.classes)).eval()
        check_classes(data, teacher)
    check_classes(data, student, "student")
    return Trained(settings, student, data, teacher)


def evaluate(
    trained: Trained,
    device: torch.device,
    *,
    corruptions: bool = True,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure student and teacher on the test images.

    Args:
        trained: whom, and the images.
        device: where the networks run.
        corruptions: whether also under corruptions; their random numbers come from the run's seed.
        on_batch: called after each batch with the images done and all.
    """
    data, config = trained.data, trained.config
    augment = Augment(config.augment, config.data.image_size, data.mean, data.std)
    networks = {"student": trained.student.to(device)}
    if trained.teacher is not None:
        networks["teacher"] = trained.teacher.to(device)
    classes = len(data.classes)
    counts = {name: _Counts(classes, device) for name in networks}
    total, done, agreed = len(data.test), 0, 0  # type: ignore[arg-type]
    with torch.no_grad(), _as_trained(networks.values()):
        for images_u8, labels in _batches(data.test, config.data.workers):
            indices = range(done, done + len(labels))
            images_u8, labels = images_u8.to(device), labels.to(device)
            clean = augment.evaluation(images_u8)
            logits = {name: network(clean).float() for name, network in networks.items()}
            for name, count in counts.items():
                count.clean(logits[name], labels)
            if "teacher" in logits:
                same = logits["student"].argmax(1) == logits["teacher"].argmax(1)
                agreed += int(same.sum())
            for kind in STRENGTHS if corruptions else ():
                for severity in range(1, SEVERITIES + 1):
                    changed = corrupt(
                        images_u8, kind, severity, seed=config.run.seed, indices=indices
                    )
                    seen = augment.evaluation(changed)
                    for name, network in networks.items():
                        counts[name].corrupted(kind, severity, network(seen), labels)
            done += len(labels)
            on_batch(done, total)
    found = {name: count.measures(done) for name, count in counts.items()}
    teacher = found.get("teacher")
    agreement = None if teacher is None else agreed / done
    return Evaluation(done, classes, found["student"], teacher, agreement)


@contextmanager
def _as_trained(networks: Any) -> Any:
    """Eval mode for the time of the block."""
    modes = [(network, network.training) for network in networks]
    for network, _ in modes:
        network.eval()
    try:
        yield
    finally:
        for network, mode in modes:
            network.train(mode)


def _batches(images: Dataset[Any], workers: int) -> DataLoader[Any]:
    return DataLoader(images, _BATCH, num_workers=workers, generator=torch.Generator())


class _Counts:
    """The metrics of one network while the batches come."""

    def __init__(self, classes: int, device: torch.device) -> None:
        def accuracy(top_k: int) -> MulticlassAccuracy:
            return MulticlassAccuracy(classes, top_k=top_k, average="micro").to(device)

        self.top1, self.top5 = accuracy(1), accuracy(min(5, classes))
        self.error = MulticlassCalibrationError(classes, n_bins=BINS).to(device)
        self.binned = torch.zeros(3, BINS, dtype=torch.float64)  # count, confidence, accuracy
        self.right = {kind: [0] * SEVERITIES for kind in STRENGTHS}
        self.has_corrupted = False

    def clean(self, logits: Tensor, labels: Tensor) -> None:
        probabilities = logits.softmax(1)
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.error.update(probabilities, labels)
        confidence, predicted = (x.cpu() for x in probabilities.max(1))  # [B] each
        # Intervals open on the left, as the metric has them.
        place = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
        right = (predicted == labels.cpu()).double()
        for row, values in enumerate((torch.ones_like(right), confidence.double(), right)):
            self.binned[row].index_add_(0, place, values)

    def corrupted(self, kind: str, severity: int, logits: Tensor, labels: Tensor) -> None:
        self.has_corrupted = True
        self.right[kind][severity - 1] += int((logits.argmax(1) == labels).sum())

    def measures(self, images: int) -> Measures:
        bins = []
        for count, confidence, right in self.binned.T.tolist():
            empty = count == 0
            bins.append(
                Bin(
                    int(count),
                    float("nan") if empty else confidence / count,
                    float("nan") if empty else right / count,
                )
            )
        shares = {kind: [value / images for value in row] for kind, row in self.right.items()}
        return Measures(
            float(self.top1.compute()),
            float(self.top5.compute()),
            float(self.error.compute()),
            bins,
            shares if self.has_corrupted else {},
        )
