"""The demo: its data, losses and loop, and whole runs on a tiny configuration."""

from __future__ import annotations

import io
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import value_term
from rich.console import Console
from torch import Tensor, nn

from r2kd_ext import models
from r2kd_ext.demo import augment, data, loop, methods, results
from r2kd_ext.demo import run as demo
from r2kd_ext.demo.screen import Screen
from r2kd_ext.demo.settings import Settings
from r2kd_ext.teacher import TeacherEnsemble
from r2kd_ext.train import files, networks

TINY = Settings(
    seeds=2,
    teacher_epochs=1,
    student_epochs=2,
    images_per_class=5,
    teacher_images_per_class=40,
    validation_per_class=20,
    test_per_class=40,
)


@pytest.fixture(scope="module")
def digits() -> data.Images:
    return data.load_digits()


def _screen() -> Screen:
    return Screen(Console(file=io.StringIO(), width=80))


# --- data


def test_the_splits_are_stratified_and_share_no_image(digits: data.Images) -> None:
    # Every pixel of an image replaced by its number, so that it can be followed.
    numbers = torch.arange(5000.0).reshape(-1, 1, 1, 1)
    splits = data.split(data.Images(numbers, digits.labels), 250, 100, 150)
    assert [len(part.labels) for part in splits] == [2500, 1000, 1500]
    assert (
        torch.cat([part.images.flatten() for part in splits])
        .sort()
        .values.equal(torch.arange(5000.0))
    )
    for part, per_class in zip(splits, (250, 100, 150), strict=True):
        assert part.labels.bincount().tolist() == [per_class] * 10
        assert part.labels.equal(digits.labels[part.images.flatten().long()])


def test_the_split_is_always_the_same(digits: data.Images) -> None:
    torch.manual_seed(1)
    first = data.split(digits, 10, 10, 10)
    torch.manual_seed(2)
    second = data.split(digits, 10, 10, 10)
    assert all(a.images.equal(b.images) for a, b in zip(first, second, strict=True))


def test_the_digits_are_images_in_0_1(digits: data.Images) -> None:
    assert digits.images.shape == (5000, 1, 28, 28)
    assert digits.images.dtype == torch.float32
    assert (digits.images.amin(), digits.images.amax()) == (0.0, 1.0)
    assert digits.labels.bincount().tolist() == [500] * 10


def test_more_images_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"per_class must be at most 2, .* class 1, got 3"):
        data.draw_per_class(torch.tensor([0, 0, 0, 1, 1]), 3, torch.Generator())


# --- augmentation


@pytest.mark.parametrize("make", [augment.standard, augment.strong_view])
def test_augmentation_depends_on_its_seed_only(make: Any) -> None:
    images, change = torch.rand(8, 1, 28, 28), make()
    torch.manual_seed(3)
    first, following = change(images, 5), torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1).equal(following)  # nothing was drawn from the global generator
    torch.manual_seed(4)
    assert change(images, 5).equal(first)
    assert not change(images, 6).equal(first)
    assert not first[0].equal(images[0])


def test_the_standard_augmentation_shifts_by_at_most_two_pixels() -> None:
    images = torch.zeros(500, 1, 28, 28)
    images[:, :, 14, 10] = 1
    shifted = augment.standard()(images, 0)[:, 0]  # [N, H, W]
    place = torch.arange(28.0)
    rows = (shifted.sum(2) * place).sum(1) - 14  # [N], the centre of mass
    columns = (shifted.sum(1) * place).sum(1) - 10
    assert torch.allclose(shifted.sum((1, 2)), torch.ones(500), atol=1e-4)  # no scale, no loss
    for shift in (rows, columns):
        assert shift.abs().max() <= 2.001
        assert shift.min() < -1.5
        assert shift.max() > 1.5


# --- losses


class _Fixed(nn.Module):
    """Gives `logits` for images of zeros and `view_logits` for images of ones."""

    def __init__(self, logits: Tensor, view_logits: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)  # something to prune
        self.logits, self.view_logits = nn.Parameter(logits), nn.Parameter(view_logits)

    def forward(self, images: Tensor) -> Tensor:
        chosen = [
            (self.view_logits if image.any() else self.logits)[i % len(self.logits)]
            for i, image in enumerate(images)
        ]
        return torch.stack(chosen)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))


def _published_spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """rho of each row as R2KD publishes it: centred ranks over their sum, and eps."""
    classes = x.shape[1]
    a, b = (
        (v.argsort(1).argsort(1) + 1 - (classes + 1) / 2) / (classes * (classes + 1) / 2)
        for v in (x, y)
    )
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / (norms + 1e-8))


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_each_loss_against_its_formula(name: str) -> None:
    torch.manual_seed(0)
    rows, classes = 6, 10
    z, z_view, y, y_view, w, w_view = (
        3 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(6)
    )
    labels = torch.arange(rows)
    student = _Fixed(z, z_view)
    teacher = TeacherEnsemble(_Fixed(y, y_view), 0.1, 0.7)
    pruned = teacher.pruned
    assert isinstance(pruned, _Fixed)
    pruned.logits.copy_(w)
    pruned.view_logits.copy_(w_view)
    images = torch.zeros(rows, 1, 2, 2, dtype=torch.float64)
    method = methods.METHODS[name]
    view = images + 1 if method.takes_view else None
    loss = method.loss(student, teacher, methods.Batch(images, labels, view))

    entropy = -_log_softmax(z.numpy())[np.arange(rows), labels].mean()
    if name == "ce":
        expected = entropy
    elif name == "kl":
        log_p, log_q = _log_softmax(z.numpy() / 4), _log_softmax(y.numpy() / 4)
        divergence = (np.exp(log_q) * (log_q - log_p)).sum() / rows
        expected = 0.1 * entropy + 0.9 * 16 * divergence
    elif name == "dist":
        expected = (
            entropy
            + value_term(
                z.numpy(), y.numpy(), 1.0, correlation="pearson", inter_weight=1.0, intra_weight=1.0
            ).loss
        )
    else:
        expected = entropy
        for mine, dense, thinned in ((z, y, w), (z_view, y_view, w_view)):
            blended = 0.7 * dense + 0.3 * thinned
            expected += value_term(mine.numpy(), blended.numpy(), 4.0).loss
            expected += 2 * (1 - _published_spearman(mine.numpy(), blended.numpy()).mean())
    assert loss.item() == pytest.approx(float(expected), rel=1e-10)

    loss.backward()
    assert student.logits.grad is not None
    assert (student.view_logits.grad is not None) == method.takes_view
    assert all(p.grad is None for p in teacher.parameters())


# --- the loop


def _fit(network: nn.Module, loss: Any, images: data.Images, **options: Any) -> list[loop.Epoch]:
    recipe = loop.Recipe(**{"epochs": 2, "batch_size": 16, "learning_rate": 0.1, **options})
    return loop.fit(
        network, loss, images, images, recipe, 7,
        augmentation=augment.standard(), view=augment.strong_view(),
    )  # fmt: skip


def _entropy(network: nn.Module, batch: methods.Batch) -> Tensor:
    return nn.functional.cross_entropy(network(batch.images), batch.labels)


def test_every_loss_sees_the_same_batches(digits: data.Images) -> None:
    few = digits.take(torch.arange(0, 5000, 100))  # 50: three batches of 16 and two images left

    def seen_by(factor: float) -> list[tuple[Tensor, ...]]:
        batches: list[tuple[Tensor, ...]] = []

        def loss(network: nn.Module, batch: methods.Batch) -> Tensor:
            assert batch.view is not None
            batches.append((batch.images, batch.labels, batch.view))
            return factor * _entropy(network, batch)

        _fit(models.create("digits_student", 10), loss, few)
        return batches

    first, second = seen_by(1.0), seen_by(0.1)
    assert [len(labels) for _, labels, _ in first] == [16] * 6
    for a, b in zip(first, second, strict=True):
        assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert not first[0][0].equal(first[3][0])  # another order in the next epoch


def test_training_lowers_the_loss_and_reports_it(digits: data.Images) -> None:
    few = digits.take(torch.arange(0, 5000, 50))
    torch.manual_seed(0)
    network = models.create("digits_student", 10)
    course = _fit(network, _entropy, few, epochs=9, evaluate_every=4)
    assert [epoch.epoch for epoch in course] == list(range(1, 10))
    assert [e.epoch for e in course if e.accuracy is not None] == [4, 8, 9]
    assert course[-1].loss < 0.7 * course[0].loss
    network.eval()
    right = sum(
        int(network(few.images[i : i + 1]).argmax()) == int(few.labels[i]) for i in range(100)
    )
    assert course[-1].accuracy == right / 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(digits: data.Images, bad: float) -> None:
    few = digits.take(torch.arange(0, 5000, 100))
    steps = []

    def loss(network: nn.Module, batch: methods.Batch) -> Tensor:
        steps.append(1)
        return _entropy(network, batch) * (bad if len(steps) == 5 else 1)

    network = models.create("digits_student", 10)
    with pytest.raises(loop.TrainingFailed, match=f"the loss is {bad} in epoch 2 of 2"):
        _fit(network, loss, few)
    assert all(p.isfinite().all() for p in network.parameters())


# --- files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.FileProblem, match=r"cannot write .*results.json: No space left"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_network_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = loop.channels_last(models.create("digits_student", 7))
    network(torch.rand(9, 1, 28, 28))  # moves the batch norms' statistics
    path = tmp_path / "student.safetensors"
    networks.save_network(path, network, "digits_student", 7)
    images = torch.rand(5, 1, 28, 28)
    assert torch.allclose(networks.load_network(path)(images), network.eval()(images), atol=1e-6)

    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(files.FileProblem, match=r"student.safetensors does not hold a network"):
        networks.load_network(path)


# --- results


def test_agreement_and_hardest_images() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 0.5]])
    pruned = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 0.5]])
    outcome = results.Outcome(
        data.Images(torch.zeros(4, 1, 1, 1), labels), teacher, pruned, teacher, {}, 0.1, []
    )
    assert results.agreement(outcome) == 0.75
    assert results.hardest(outcome, 3).tolist() == [1, 3, 0]


# --- whole runs


def _accuracies(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "results.json").read_text())
    for key in ("seconds", "versions"):
        del content[key]
    return dict(content)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished tiny run and what it printed."""
    screen = _screen()
    run = demo.start(TINY, tmp_path_factory.mktemp("demo") / "runs" / "demo", screen)
    run.run()
    assert isinstance(screen.console.file, io.StringIO)
    return run.folder, screen.console.file.getvalue()


def test_results_hold_what_they_promise(undisturbed: tuple[Path, str]) -> None:
    content = json.loads((undisturbed[0] / "results.json").read_text())
    assert isinstance(content["dataset"], str)
    assert content["seconds"] > 0
    assert set(content["methods"]) == {"ce", "kl", "dist", "r2kd"}
    for method in content["methods"].values():
        assert len(method["accuracy"]) == TINY.seeds
        assert all(value * 400 == pytest.approx(round(value * 400)) for value in method["accuracy"])
        assert method["mean"] == pytest.approx(np.mean(method["accuracy"]))
        assert method["std"] == pytest.approx(np.std(method["accuracy"], ddof=1))
    for name, difference in content["differences"].items():
        other = content["methods"][name.removeprefix("r2kd - ")]["accuracy"]
        pairs = zip(content["methods"]["r2kd"]["accuracy"], other, strict=True)
        per_seed = [mine - its for mine, its in pairs]
        assert difference["per_seed"] == pytest.approx(per_seed)
        assert difference["std"] == pytest.approx(statistics.stdev(per_seed))
    assert content["pruned_teacher"]["sparsity"] == pytest.approx(0.1, abs=0.001)


def test_the_saved_weights_have_the_reported_accuracies(undisturbed: tuple[Path, str]) -> None:
    folder, _ = undisturbed
    content = json.loads((folder / "results.json").read_text())
    test = data.split(data.load_digits(), 40, 20, 40).test
    reported = {"teacher": content["teacher"]["accuracy"]}
    for method, its in content["methods"].items():
        for seed, accuracy in enumerate(its["accuracy"]):
            reported[f"students/{method}-{seed}"] = accuracy
    for name, accuracy in reported.items():
        with torch.no_grad():
            classes = networks.load_network(folder / f"{name}.safetensors")(test.images).argmax(1)
        # Rounding may depend on the batch size: one image of 400 may fall to the other side.
        assert (classes == test.labels).float().mean().item() == pytest.approx(accuracy, abs=0.0026)


def test_the_report_shows_table_and_pictures(undisturbed: tuple[Path, str]) -> None:
    folder, _ = undisturbed
    text = (folder / "report.md").read_text()
    content = json.loads((folder / "results.json").read_text())
    pictures = re.findall(r"!\[[^]]+\]\((.+?)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    for method in content["methods"].values():
        assert f"{100 * method['mean']:.2f}" in text
    assert not list(folder.rglob(".*"))  # no temporary file is left


def test_plain_output_has_a_line_per_epoch_and_no_control_characters(
    undisturbed: tuple[Path, str],
) -> None:
    _, printed = undisturbed
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    lines = printed.splitlines()
    assert sum(line.startswith("r2kd seed 1 ") for line in lines) == TINY.student_epochs
    assert re.search(r"teacher +epoch 1/1  loss +\d\.\d+  validation accuracy 0\.\d", printed)


class _Interrupts(Screen):
    """Ctrl-C after the first epoch of the part `title`."""

    def __init__(self, title: str) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.title = title

    def line(self, text: str) -> None:
        if text.startswith(self.title):
            raise KeyboardInterrupt
        super().line(text)


def test_a_second_run_and_an_interrupted_one_end_with_the_same_results(
    undisturbed: tuple[Path, str],
) -> None:
    first, _ = undisturbed
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    run = demo.start(TINY, first, _Interrupts("dist seed 0"))
    assert run.folder == first.with_name("demo-2")
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert not (run.folder / "results.json").exists()
    assert demo.start(TINY, first, _screen()).folder == first.with_name("demo-3")

    with pytest.raises(KeyboardInterrupt):  # a second time, later
        demo.resume(run.folder, {}, _Interrupts("kl seed 1")).run()
    screen = _screen()
    demo.resume(run.folder, {"seeds": TINY.seeds}, screen).run()
    assert isinstance(screen.console.file, io.StringIO)
    assert "dist seed 0        finished before" in screen.console.file.getvalue()
    assert "kl seed 1          epoch" in screen.console.file.getvalue()
    assert _accuracies(run.folder) == _accuracies(first)
    assert before == {path: path.read_bytes() for path in before}


def test_a_finished_run_is_left_as_it_is(undisturbed: tuple[Path, str]) -> None:
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    summary = demo.resume(folder, {}, _screen()).run()
    assert summary == json.loads((folder / "results.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_damaged_weights_are_not_used(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    finished, _ = undisturbed
    run = demo.start(TINY, tmp_path / "demo", _screen())
    for name in ("teacher.json", "teacher.safetensors"):
        (run.folder / name).write_bytes((finished / name).read_bytes())
    weights = run.folder / "teacher.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(files.FileProblem, match=r"teacher.safetensors is not the file that"):
        run.run()


def test_resume_refuses_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(files.FileProblem, match=r"there is no run .*config.json is missing"):
        demo.resume(tmp_path, {}, _screen())
    folder = demo.start(TINY, tmp_path / "demo", _screen()).folder
    with pytest.raises(files.FileProblem, match="was started with seeds 2, got 5: leave"):
        demo.resume(folder, {"seeds": 5}, _screen())

    config = folder / "config.json"
    content = json.loads(config.read_text())
    del content["settings"]["student_epochs"]
    config.write_text(json.dumps(content))
    with pytest.raises(files.FileProblem, match="not written by this version"):
        demo.resume(folder, {}, _screen())
    config.write_text("{")
    with pytest.raises(files.FileProblem, match=r"config.json is damaged"):
        demo.resume(folder, {}, _screen())


def test_another_number_of_threads_is_mentioned(tmp_path: Path) -> None:
    folder = demo.start(TINY, tmp_path / "demo", _screen()).folder
    config = folder / "config.json"
    content = json.loads(config.read_text())
    content["versions"]["threads"] += 1
    config.write_text(json.dumps(content))
    screen = _screen()
    assert demo.resume(folder, {}, screen).settings == replace(TINY)
    assert isinstance(screen.console.file, io.StringIO)
    assert "results may differ" in screen.console.file.getvalue()


def test_bars_on_a_terminal() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=True, width=100))
    with screen.part("teacher", "part 1 of 13", 2, 1) as after:
        after(loop.Epoch(1, 0.5, 0.25))
        after(loop.Epoch(2, 0.25, None))
    assert "teacher            epoch 1/2  loss  0.5000  validation accuracy 0.250" in out.getvalue()
    assert "part 1 of 13: teacher" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is shown again
