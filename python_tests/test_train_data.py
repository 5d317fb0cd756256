"""Images from packages, folders and the hub; what is wrong with them is found first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from r2kd_ext import models
from r2kd_ext.train.config import DataConfig
from r2kd_ext.train.data import ImageData, check_classes, load, stratified
from r2kd_ext.train.files import FileProblem

CLASSES = ("cat", "dog", "owl")


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def square(seed: int) -> Image.Image:
    """The middle 20 x 20 of a picture, scaled to 16 x 16."""
    return picture(seed).resize((16, 16), Image.Resampling.BILINEAR, (2, 0, 22, 20))


def make_folder(root: Path, splits: tuple[str, ...] = ("train", "test"), count: int = 4) -> Path:
    for number, split in enumerate(splits):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * number + 100 * label + index
                picture(seed).save(root / split / name / f"{index}.png")
    return root


def folder_config(root: Path, **options: Any) -> DataConfig:
    given: dict[str, Any] = {"name": "folder", "path": str(root), "image_size": 16, "workers": 0}
    return DataConfig(**given | options)


@pytest.mark.parametrize(("name", "count"), [("digits", 1797), ("mnist", 5000)])
def test_packaged_digits(name: Any, count: int) -> None:
    data = load(DataConfig(name=name, image_size=16, workers=0), seed=0)
    assert data.classes == tuple("0123456789")
    assert len(data.train) + len(data.test) == count  # type: ignore[arg-type]
    assert data.validation is data.test
    image, label = data.train[3]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
    assert isinstance(label, int)
    seen = torch.stack([data.train[i][0] for i in range(len(data.train))]).double() / 255  # type: ignore[arg-type]
    torch.testing.assert_close(torch.tensor(data.mean).double(), seen.mean((0, 2, 3)))
    expected = seen.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), expected)


def test_digits_keep_their_pixels() -> None:
    from sklearn.datasets import load_digits

    data = load(DataConfig(name="digits", image_size=8, workers=0), seed=0)
    bunch = load_digits()
    known = {image.tobytes() for image in np.rint(bunch.images * 255 / 16).astype(np.uint8)}
    assert all(data.train[i][0][0].numpy().tobytes() in known for i in range(50))


def test_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    data = load(folder_config(root), seed=0)
    assert data.classes == CLASSES
    assert [data.train[i][1] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    image = square(101)
    found = data.train[5][0].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_images_of_the_right_size_stay_as_they_are(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    picture(5, 16, 16).save(root / "train" / "cat" / "0.png")
    data = load(folder_config(root), seed=0)
    assert np.array_equal(data.train[0][0].permute(1, 2, 0).numpy(), np.asarray(picture(5, 16, 16)))


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for index, mode in enumerate(("L", "P", "RGBA", "1")):
        picture(1).convert(mode).save(root / "train" / "cat" / f"{index}.png")
    data = load(folder_config(root), seed=0)
    assert all(data.train[i][0].shape == (3, 16, 16) for i in range(4))


@pytest.mark.parametrize(
    ("splits", "sources"),
    [
        (("train", "test"), (0, 1, 1)),
        (("train", "val"), (0, 1, 1)),
        (("train", "val", "test"), (0, 1, 2)),
    ],
)
def test_which_folder_is_what(
    tmp_path: Path, splits: tuple[str, ...], sources: tuple[int, ...]
) -> None:
    data = load(folder_config(make_folder(tmp_path, splits)), seed=0)
    for split, number in zip((data.train, data.validation, data.test), sources, strict=True):
        image = square(1000 * number)
        difference = split[0][0].permute(1, 2, 0).int() - torch.from_numpy(np.array(image)).int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_all_named(tmp_path: Path, workers: int) -> None:
    root = make_folder(tmp_path)
    cut = root / "train" / "cat" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    (root / "train" / "dog" / "2.png").write_text("hello")
    gone = root / "train" / "dog" / "3.png"
    gone.unlink()
    gone.symlink_to(root / "nowhere.png")
    (root / "train" / "owl" / "0.png").write_bytes(b"")
    with pytest.raises(FileProblem) as caught:
        load(folder_config(root, workers=workers), seed=0)
    message = str(caught.value)
    assert "4 of 12 images cannot be used" in message
    assert f"{cut} is damaged" in message
    assert f"{gone} is missing" in message
    for name in ("dog/2.png", "owl/0.png"):
        assert f"{root / 'train' / name} is no image" in message
    # Headers alone: the truncated one is found when it is read.
    with pytest.raises(FileProblem, match="3 of 12 images"):
        load(folder_config(root, workers=workers, check="headers"), seed=0)


def test_damaged_test_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "test" / "owl" / "3.png").write_text("hello")
    with pytest.raises(FileProblem, match=r"test: 1 of 12 images.*owl/3\.png"):
        load(folder_config(root), seed=0)


def test_what_is_wrong_with_folders(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="nowhere is no folder"):
        load(folder_config(tmp_path / "nowhere"), seed=0)
    root = make_folder(tmp_path / "a")
    with pytest.raises(FileProblem, match=r"a/training.*data\.train_split.*has test, train"):
        load(folder_config(root, train_split="training"), seed=0)
    (root / "test" / "emu").mkdir()
    picture(1).save(root / "test" / "emu" / "0.png")
    with pytest.raises(ValueError, match=r"a/test differ from those of .*a/train: it adds emu"):
        load(folder_config(root), seed=0)
    root = make_folder(tmp_path / "b")
    (root / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*b/train/emu has no images"):
        load(folder_config(root), seed=0)
    (tmp_path / "c" / "train").mkdir(parents=True)
    with pytest.raises(FileProblem, match="c/train has no folders of classes"):
        load(folder_config(tmp_path / "c"), seed=0)


def test_validation_is_stratified_and_fixed_by_the_seed(tmp_path: Path) -> None:
    labels = [0] * 40 + [1] * 20 + [2] * 10
    chosen, rest = stratified(labels, 0.1, CLASSES, 3)
    assert sorted(chosen + rest) == list(range(70))
    assert [sum(labels[i] == c for i in chosen) for c in range(3)] == [4, 2, 1]
    assert stratified(labels, 0.1, CLASSES, 3)[0] == chosen
    assert stratified(labels, 0.1, CLASSES, 4)[0] != chosen
    root = make_folder(tmp_path)
    data = load(folder_config(root, validation_fraction=0.25), seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of the 4 training images of the class 'cat' leaves noth"):
        load(folder_config(root, validation_fraction=0.01), seed=0)


def test_loading_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    before = torch.get_rng_state()
    load(folder_config(root, validation_fraction=0.25), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A data set as the hub has them, in a folder: parquet files with images inside."""
    folder = tmp_path / "hub"
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=list(CLASSES)),
            "year": datasets.Value("int64"),
        }
    )
    for number, split in enumerate(("train", "test")):
        rows = {
            "img": [picture(1000 * number + i) for i in range(6)],
            "fine": [i % 3 for i in range(6)],
            "year": [1990 + i % 2 for i in range(6)],
        }
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def hub_config(path: Path | str, **options: Any) -> DataConfig:
    given: dict[str, Any] = {"name": "hub", "path": str(path), "image_size": 16, "workers": 0}
    return DataConfig(**given | {"image_column": "img", "label_column": "fine"} | options)


def test_hub(hub: Path) -> None:
    data = load(hub_config(hub), seed=0)
    assert data.classes == CLASSES
    assert [data.test[i][1] for i in range(6)] == [0, 1, 2, 0, 1, 2]
    image = square(1004)
    found = data.test[4][0].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - np.asarray(image).astype(int)).max() <= 1
    numbered = load(hub_config(hub, label_column="year"), seed=0)
    assert numbered.classes == ("1990", "1991")
    assert numbered.train[1][1] == 1


def test_what_is_wrong_with_the_hub(hub: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.test_split must be one of .*got 'tests'; did you mean test"
    ):
        load(hub_config(hub, test_split="tests"), seed=0)
    with pytest.raises(
        ValueError, match=r"data\.image_column must be one of img, fine, year.*'image'"
    ):
        load(hub_config(hub, image_column="image"), seed=0)
    with pytest.raises(ValueError, match=r"data\.image_column 'fine' .* holds no images"):
        load(hub_config(hub, image_column="fine"), seed=0)
    with pytest.raises(FileProblem, match="cannot load the data set 'nobody/nothing'"):
        load(hub_config("nobody/nothing"), seed=0)


def test_damaged_images_of_the_hub(hub: Path) -> None:
    path = hub / "data" / "train-00000-of-00001.parquet"
    table = datasets.Dataset.from_parquet(str(path)).cast_column(
        "img", datasets.Image(decode=False)
    )
    entries = list(table["img"])
    entries[2] = {"bytes": entries[2]["bytes"][:-300], "path": None}
    entries[4] = None
    broken = datasets.Dataset.from_dict(
        {"img": entries, "fine": table["fine"]},
        features=datasets.Features({"img": datasets.Image(), "fine": table.features["fine"]}),
    )
    broken.to_parquet(path)
    (hub / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileProblem) as caught:
        load(hub_config(hub, test_split="train"), seed=0)
    message = str(caught.value)
    assert "2 of 6 images" in message
    assert "row 2" in message
    assert "row 4" in message


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load(DataConfig(name="digits", image_size=8, workers=0), seed=0)


def test_class_count_that_does_not_fit(digits: ImageData) -> None:
    check_classes(digits, models.create("resnet8", 10))
    with pytest.raises(
        ValueError, match=r"the teacher must give one logit .* 10 classes .*\(1, 12\)"
    ):
        check_classes(digits, models.create("resnet8", 12))
    with pytest.raises(ValueError, match=r"the student does not take images \(3, 8, 8\)"):
        check_classes(digits, nn.Conv2d(1, 4, 3), "student")
    network = models.create("resnet8", 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    check_classes(digits, network)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
