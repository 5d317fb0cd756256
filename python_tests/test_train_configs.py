"""The files of configs/: every one is read, and says what was published."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from r2kd_ext import models
from r2kd_ext.train.augment import Augment
from r2kd_ext.train.config import Config, MethodConfig
from r2kd_ext.train.configure import load_config

ROOT = Path(__file__).parent.parent / "configs"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml"))

# teacher -> students
TINY_IMAGENET = {
    "wrn_40_2": ["wrn_16_2"],
    "resnet56": ["resnet20"],
    "resnet32x4": ["resnet8x4", "ShuffleV2"],
    "vgg13": ["vgg8", "MobileNetV2"],
}
CIFAR100 = {
    "wrn_40_2": ["wrn_16_2", "wrn_40_1", "ShuffleV1"],
    "resnet56": ["resnet20"],
    "resnet110": ["resnet20", "resnet32"],
    "resnet32x4": ["resnet8x4", "ShuffleV1", "ShuffleV2"],
    "vgg13": ["vgg8", "MobileNetV2"],
    "ResNet50": ["MobileNetV2", "vgg8"],
}

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="configs/ is not beside the tests")


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read(name: str) -> None:
    config = load_config(ROOT / name)
    for model in (config.teacher.name, config.student.name):
        assert model in models.names() or model.startswith("timm:")
    Augment(config.augment, config.data.image_size, (0.5,) * 3, (0.25,) * 3)
    assert max(config.optimizer.milestones) < config.optimizer.epochs


@pytest.mark.parametrize(
    ("folder", "pairs"), [("tiny_imagenet", TINY_IMAGENET), ("cifar100", CIFAR100)]
)
def test_all_pairs_are_there(folder: str, pairs: dict[str, list[str]]) -> None:
    expected = {(teacher, student) for teacher, students in pairs.items() for student in students}
    configs = [load_config(path) for path in sorted((ROOT / folder).iterdir())]
    assert {(config.teacher.name, config.student.name) for config in configs} == expected
    assert len(configs) == len(expected)
    assert len({config.run.output for config in configs}) == len(configs)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("tiny", "cifar"))])
def test_the_published_recipe(name: str) -> None:
    config = load_config(ROOT / name)
    slow = config.student.name in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
    optimizer = config.optimizer
    assert optimizer.learning_rate == (0.01 if slow else 0.05)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.9, 5e-4, False)
    assert (optimizer.batch_size, optimizer.epochs, optimizer.decay) == (64, 240, 0.1)
    assert optimizer.milestones == (150, 180, 210)
    method = config.method
    assert method == MethodConfig()
    assert (method.name, method.temperature, method.rank, method.rank_weight) == (
        "r2kd",
        4,
        "hard",
        2,
    )
    assert (method.inter_weight, method.intra_weight) == (2, 2)
    assert (method.pruning_amount, method.dense_weight) == (0.1, 0.7)
    tiny = name.startswith("tiny")
    size = 64 if tiny else 32
    assert config.data.image_size == size
    assert config.augment.cutout_size == size // 4
    assert (config.augment.mixup_alpha, config.augment.cutmix_alpha) == (0.2, 1.0)
    assert config.augment.autoaugment_policy == ("imagenet" if tiny else "cifar10")
    assert (config.augment.crop, config.augment.crop_padding) == ("padded", size // 8)
    assert config.augment.flip
    moments = {  # of ImageNet and of CIFAR-100: what the public teachers were trained with
        True: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        False: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }
    assert (config.data.mean, config.data.std) == moments[tiny]


@pytest.mark.parametrize("name", FILES)
def test_nothing_published_is_left_to_a_default(name: str) -> None:
    content = yaml.safe_load((ROOT / name).read_text())
    wanted = {
        "optimizer": {
            "learning_rate", "momentum", "nesterov", "weight_decay", "batch_size", "epochs",
            "milestones", "decay",
        },
        "method": {"name"},
    }  # fmt: skip
    if content["method"]["name"] == "r2kd":
        wanted["method"] |= {
            "temperature", "correlation", "inter_weight", "intra_weight", "rank", "rank_weight",
            "pruned_teacher", "pruning_amount", "dense_weight", "augmented_view",
        }  # fmt: skip
        wanted["augment"] = {
            "crop", "flip", "view", "mixup_alpha", "cutmix_alpha", "cutout_holes", "cutout_size",
            "autoaugment_policy",
        }  # fmt: skip
    if not name.startswith("demo"):
        wanted["data"] = {"name", "image_size", "mean", "std"}
    for section, keys in wanted.items():
        assert keys <= set(content[section]), section


def test_the_demo_is_offline_and_takes_its_teachers_weights() -> None:
    teacher, student = (load_config(ROOT / name) for name in ("demo_teacher.yaml", "demo.yaml"))
    assert teacher.data == student.data
    assert student.data.name == "digits"
    assert student.teacher.name == teacher.student.name
    assert student.teacher.checkpoint == f"{teacher.run.output}/student.safetensors"
    assert teacher.method.name == "ce"


def test_defaults_are_the_published_ones() -> None:
    assert Config().method == MethodConfig.published("r2kd")
