"""The demo: one teacher, one small student trained four ways, on real images, compared fairly."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..info import version_of
from ..train.files import FileProblem, new_folder, read_json, write_json
from . import data, jobs, report, results
from .methods import METHODS
from .parts import Part, obtain
from .screen import Screen
from .settings import Settings


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
        splits = jobs.splits_of(settings)
        self.screen.line(
            f"{data.NAME}; {len(splits.train.labels)} for the teacher, "
            f"{len(splits.validation.labels)} for validation, {len(splits.test.labels)} for test"
        )
        dense = self._obtain("teacher", "teacher", jobs.teacher_job(settings, splits), 1, splits)
        teacher = jobs.ensemble_of(dense.network, settings)
        students: dict[str, list[Part]] = {method: [] for method in METHODS}
        for seed in range(settings.seeds):
            for name, method in METHODS.items():
                job = jobs.student_job(method, seed, settings, splits, teacher)
                line_every = max(1, settings.student_epochs // 5)
                file = f"students/{name}-{seed}"
                part = self._obtain(f"{name} seed {seed}", file, job, line_every, splits)
                students[name].append(part)

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

    def _obtain(
        self, title: str, file: str, job: jobs.Job, line_every: int, splits: data.Splits
    ) -> Part:
        """The finished part in `file`: from the run's folder, or trained now and kept there.

        `line_every` counts epochs.
        """
        self._parts_begun += 1

        def train() -> Part:
            place = f"part {self._parts_begun} of {1 + self.settings.seeds * len(METHODS)}"
            with self.screen.part(title, place, job.recipe.epochs, line_every) as after:
                return jobs.train(job, splits.validation, after)

        part, found = obtain(self.folder, file, job.model, data.NUM_CLASSES, train)
        if found:
            self._seconds_before += part.seconds
            self.screen.line(f"{title:<18} finished before")
        return part


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
