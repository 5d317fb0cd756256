"""`r2kd eval` and `r2kd export` on a run of digits, as r2kd train leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from r2kd_ext import cli, models
from r2kd_ext.train.config import AugmentConfig, Config, DataConfig, MethodConfig, ModelConfig
from r2kd_ext.train.configure import to_yaml
from r2kd_ext.train.corruptions import STRENGTHS, corrupt
from r2kd_ext.train.data import ImageData, load
from r2kd_ext.train.evaluate import BINS, Trained, evaluate
from r2kd_ext.train.export import ExportFailed, check, to_onnx
from r2kd_ext.train.networks import save_network

SIZE = 8
DATA = DataConfig("digits", image_size=SIZE, workers=0)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(DATA, seed=0)


def network(seed: int) -> nn.Module:
    """Untrained but for its batch norms and a steep classifier, so that it is sure now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.create("resnet8", 10)
        for _ in range(20):
            net(torch.randn(64, 3, SIZE, SIZE))
        net.get_parameter("fc.weight").data *= 8
    return net.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is finished."""
    folder = tmp_path_factory.mktemp("run")
    teacher = folder / "teacher.pth"
    torch.save(network(1).state_dict(), teacher)
    config = Config(
        data=DATA,
        teacher=ModelConfig("resnet8", str(teacher)),
        student=ModelConfig("resnet8"),
        method=MethodConfig.published("kl"),
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    save_network(folder / "student.safetensors", network(2), "resnet8", 10)
    return folder


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al., ICML 2017, equation 3, as written there."""
    p = softmax(logits)
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for m in range(1, BINS + 1):
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(labels) * gap
    return total


def seen(data: ImageData, images: Tensor) -> Tensor:
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def test_measures_against_their_definitions(data: ImageData) -> None:
    config = Config(data=DATA, augment=AugmentConfig())
    student, teacher = network(2), network(1)
    found = evaluate(Trained(config, student, data, teacher), torch.device("cpu"))
    images = torch.stack([image for image, _ in (data.test[i] for i in range(found.images))])
    labels = np.array([data.test[i][1] for i in range(found.images)])
    assert (found.images, found.classes) == (355, 10)
    outputs = {}
    for name, net, measures in (
        ("student", student, found.student), ("teacher", teacher, found.teacher),
    ):  # fmt: skip
        assert measures is not None
        with torch.no_grad():
            logits = net(seen(data, images)).numpy()
        outputs[name] = logits
        order = np.argsort(-logits, 1)
        assert measures.top1 == pytest.approx((order[:, 0] == labels).mean(), abs=1e-6)
        assert measures.top5 == pytest.approx(
            (order[:, :5] == labels[:, None]).any(1).mean(), abs=1e-6
        )
        expected = calibration_error(logits.astype(np.float64), labels)
        assert measures.calibration_error == pytest.approx(expected, abs=1e-4)
        filled = [b for b in measures.bins if b.images]
        assert len(filled) > 5
        assert sum(b.images for b in filled) == 355
        again = sum(b.images * abs(b.accuracy - b.confidence) for b in filled) / 355
        assert again == pytest.approx(expected, abs=1e-4)
        assert set(measures.corrupted) == set(STRENGTHS)
        assert len(STRENGTHS) == 8
        for kind in ("jpeg", "shot_noise"):
            for severity in (1, 2, 3):
                changed = corrupt(images, kind, severity, seed=config.run.seed, indices=range(355))
                with torch.no_grad():
                    predicted = net(seen(data, changed)).argmax(1).numpy()
                assert measures.corrupted[kind][severity - 1] == pytest.approx(
                    (predicted == labels).mean(), abs=1e-6
                )
    same = (outputs["student"].argmax(1) == outputs["teacher"].argmax(1)).mean()
    assert found.agreement == pytest.approx(same)


def test_eval_writes_a_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "eval"
    assert cli.main(["eval", str(run), "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {
        "report.md", "results.json", "reliability.png", "robustness.png",
    }  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    text = (output / "report.md").read_text()
    for name in ("student", "teacher"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        measures = results[name]
        corrupted = [value for row in measures["corrupted"].values() for value in row]
        assert len(corrupted) == 24
        expected = [
            measures["top1"], measures["top5"], measures["calibration_error"],
            sum(corrupted) / len(corrupted),
        ]  # fmt: skip
        assert [float(cell) for cell in cells[1:]] == pytest.approx(
            [100 * value for value in expected], abs=0.0051
        )
    assert f"{100 * results['agreement']:.2f} %" in text
    assert str(output / "report.md") in capsys.readouterr().out.replace("\n", "")
    # A second one goes beside it.
    words = ["eval", str(run), "--output", str(output), "--no-corruptions", "--no-teacher"]
    assert cli.main(words) == 0
    second = json.loads((tmp_path / "eval-2" / "results.json").read_text())
    assert second["teacher"] is None
    assert second["student"]["corrupted"] == {}
    assert second["student"]["top1"] == results["student"]["top1"]
    assert not (tmp_path / "eval-2" / "robustness.png").exists()


def test_eval_of_a_file_with_a_configuration(run: Path, tmp_path: Path) -> None:
    student = tmp_path / "student.safetensors"
    student.write_bytes((run / "student.safetensors").read_bytes())
    assert cli.main(["eval", str(student)]) == 2  # which images?
    words = ["eval", str(student), "--config", str(run / "config.yaml"), "--no-corruptions"]
    assert cli.main(words) == 0
    assert (tmp_path / "eval" / "report.md").is_file()


def test_eval_complaints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*words: str) -> str:
        assert cli.main(["eval", *words]) == 2
        return capsys.readouterr().err

    assert "nowhere does not exist" in complaint(str(tmp_path / "nowhere"))
    assert "--device 'gpu' cannot be used here" in complaint(str(run), "--device", "gpu")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    text = (run / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(text)
    assert "student.safetensors is missing: the run in" in complaint(str(unfinished))
    damaged = unfinished / "student.safetensors"
    damaged.write_bytes((run / "student.safetensors").read_bytes()[:-100])
    assert "does not hold a network" in complaint(str(unfinished))
    save_network(damaged, models.create("resnet8", 12), "resnet8", 12)
    assert "the student must give one logit for each of the 10 classes" in complaint(
        str(unfinished), "--no-teacher"
    )
    (unfinished / "config.yaml").write_text(text.replace("teacher.pth", "gone.pth"))
    assert "gone.pth for resnet8" in complaint(str(unfinished))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The folder that r2kd export leaves."""
    assert cli.main(["export", str(run)]) == 0
    return run / "export"


def test_export(exported: Path) -> None:
    stored = safetensors.torch.load_file(exported / "student.safetensors")
    original = network(2)
    assert all(torch.equal(value, stored[key]) for key, value in original.state_dict().items())
    path = exported / "student.onnx"
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts == {"network": "resnet8", "image_size": "8"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 7):  # batches that the check of the export did not see
        images = torch.rand(count, 3, SIZE, SIZE) * 4 - 2
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(found), original(images), rtol=1e-4, atol=1e-3
            )


def test_export_refuses_what_differs(exported: Path) -> None:
    model = (exported / "student.onnx").read_bytes()
    batch = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        right, wrong = network(2)(batch), network(3)(batch)
    assert check(model, [batch], [right]) < 1e-4
    with pytest.raises(ExportFailed, match="differs from torch by"):
        check(model, [batch], [wrong])
    with pytest.raises(ExportFailed, match="differs from torch by"):
        check(model, [batch], [torch.full_like(right, torch.nan)])
    with pytest.raises(ExportFailed, match="ONNX Runtime cannot run"):
        check(model[:100], [batch], [right])


def test_export_complaints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum().item() > 0 else -x.flatten(1)

    with pytest.raises(ExportFailed, match="torch cannot export resnet20 to ONNX"):
        to_onnx(Undecided(), SIZE, Config())
    assert cli.main(["export", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
