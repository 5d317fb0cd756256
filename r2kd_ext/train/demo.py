"""The demo: one teacher, one small student trained four ways, on real images, compared fairly."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..info import version_of
from ..teacher import TeacherEnsemble
from . import augment, data, report, results
from .files import FileProblem, new_folder, read_json, write_json
from .loop import Recipe, channels_last, fit
from .methods import METHODS, Batch
from .parts import Part, obtain
from .screen import Screen
from .settings import STUDENT_MODEL, TEACHER_MODEL, Settings

_TEACHER_SEED = 0


class _Job(NamedTuple):
    """One network to train."""

    title: str
    file: str  # in the run's folder, without suffix
    model: str
    loss: Callable[[nn.Module, Batch], Tensor]
    train: data.Images
    recipe: Recipe
    seed: int
    view: augment.Seeded | None
    line_every: int  # epochs


class Demo:
    """One run of the demo in its folder. Make one with `start` or `resume`."""

    def __init__(self, folder: Path, settings: Settings, screen: Screen) -> None:
        self.folder, self.settings, self.screen = folder, settings, screen
        self._parts_begun = 0
        self._seconds_before = 0.0  # of training, in the parts that were found

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns the content of results.json, written last.

        Raises FileProblem (a file of the run is damaged or cannot be written) and TrainingFailed.
        """
        finished = self.folder / "results.json"
        if finished.exists():
            self.screen.line(f"{self.folder} is finished already; nothing to do")
            return dict(read_json(finished))
        started = time.perf_counter()
        settings = self.settings
        splits = data.split(
            data.load_digits(),
            settings.teacher_images_per_class,
            settings.validation_per_class,
            settings.test_per_class,
        )
        self.screen.line(
            f"{data.NAME}; {len(splits.train.labels)} for the teacher, "
            f"{len(splits.validation.labels)} for validation, {len(splits.test.labels)} for test"
        )
        dense = self._obtain(self._teacher_job(splits), splits)
        teacher = TeacherEnsemble(dense.network, settings.pruning_amount, settings.dense_weight)
        teacher = channels_last(teacher)
        students: dict[str, list[Part]] = {method: [] for method in METHODS}
        for seed in range(settings.seeds):
            for method in METHODS:
                job = self._student_job(method, seed, splits, teacher)
                students[method].append(self._obtain(job, splits))

        outcome = results.evaluate(
            splits,
            dense.network,
            teacher,
            {method: [part.network for part in parts] for method, parts in students.items()},
        )
        summary = {"dataset": data.NAME, **results.summarize(outcome)}
        report.plot(self.folder, outcome, {m: [p.course for p in students[m]] for m in METHODS})
        summary["seconds"] = round(time.perf_counter() - started + self._seconds_before, 1)
        rates = {name: method.learning_rate for name, method in METHODS.items()}
        summary["config"] = {**asdict(settings), "student_learning_rates": rates}
        summary["versions"] = _versions()
        report.write_report(self.folder, summary, outcome, splits)
        write_json(finished, summary)
        return summary

    def _teacher_job(self, splits: data.Splits) -> _Job:
        settings = self.settings
        recipe = Recipe(
            settings.teacher_epochs, settings.teacher_batch_size, settings.teacher_learning_rate
        )

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(network(batch.images), batch.labels)

        return _Job(
            "teacher", "teacher", TEACHER_MODEL, loss, splits.train, recipe, _TEACHER_SEED, None, 1
        )

    def _student_job(
        self, name: str, seed: int, splits: data.Splits, teacher: TeacherEnsemble
    ) -> _Job:
        settings, method = self.settings, METHODS[name]
        recipe = Recipe(
            settings.student_epochs,
            settings.student_batch_size,
            method.learning_rate,
            evaluate_every=max(1, settings.student_epochs // 30),
        )
        generator = torch.Generator().manual_seed(seed)
        drawn = data.draw_per_class(splits.train.labels, settings.images_per_class, generator)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            return method.loss(network, teacher, batch)

        return _Job(
            f"{name} seed {seed}",
            f"students/{name}-{seed}",
            STUDENT_MODEL,
            loss,
            splits.train.take(drawn),
            recipe,
            seed,
            augment.strong_view() if method.takes_view else None,
            max(1, settings.student_epochs // 5),
        )

    def _obtain(self, job: _Job, splits: data.Splits) -> Part:
        """The finished part of `job`: from the folder, or trained now and kept there."""
        self._parts_begun += 1
        part, found = obtain(
            self.folder, job.file, job.model, data.NUM_CLASSES, lambda: self._train(job, splits)
        )
        if found:
            self._seconds_before += part.seconds
            self.screen.line(f"{job.title:<18} finished before")
        return part

    def _train(self, job: _Job, splits: data.Splits) -> Part:
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            network = models.create(job.model, data.NUM_CLASSES)
        network = channels_last(network)
        place = f"part {self._parts_begun} of {1 + self.settings.seeds * len(METHODS)}"
        with self.screen.part(job.title, place, job.recipe.epochs, job.line_every) as after:
            course = fit(
                network,
                job.loss,
                job.train,
                splits.validation,
                job.recipe,
                job.seed,
                augmentation=augment.standard(),
                view=job.view,
                on_epoch=after,
            )
        return Part(network, course, time.perf_counter() - started)


def start(settings: Settings, output: Path, screen: Screen) -> Demo:
    """A new run in a new folder: `output`, or `output`-2, ... where that exists."""
    folder = new_folder(output)
    new_folder(folder / "students")
    write_json(folder / "config.json", {"settings": asdict(settings), "versions": _versions()})
    return Demo(folder, settings, screen)


def resume(folder: Path, chosen: dict[str, int], screen: Screen) -> Demo:
    """The interrupted run in `folder`, with the settings that it was started with.

    Args:
        folder: has the config.json of `start`.
        chosen: settings that the caller wants; must be those of the run.

    Raises:
        FileProblem: there is no run in `folder`, or it was started with other settings or by a
            version with other settings.
    """
    config = folder / "config.json"
    if not config.exists():
        raise FileProblem(f"there is no run of the demo in {folder}: {config} is missing")
    content = read_json(config)
    expected = {name: type(value) for name, value in asdict(Settings()).items()}
    stored = content.get("settings") if isinstance(content, dict) else None
    if (
        not isinstance(stored, dict)
        or {name: type(value) for name, value in stored.items()} != expected
    ):
        raise FileProblem(
            f"{config} was not written by this version of r2kd_ext: "
            "start a new run without --resume"
        )
    for name, value in chosen.items():
        if stored[name] != value:
            raise FileProblem(
                f"{folder} was started with {name} {stored[name]}, got {value}: "
                "leave the option out, or start a new run without --resume"
            )
    before, now = content.get("versions"), _versions()
    if before != now:
        screen.line(f"Note: the run was started with {before}, now it is {now}; results may differ")
    return Demo(folder, Settings(**stored), screen)


def _versions() -> dict[str, Any]:
    """What the same settings need to give the same numbers, on one machine."""
    return {
        **{name: version_of(name) for name in ("r2kd_ext", "torch", "kornia", "mlxtend")},
        "threads": torch.get_num_threads(),
    }
