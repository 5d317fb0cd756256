"""Configurations: what YAML and the command line say, and what is wrong with it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from r2kd_ext.train.config import Config, MethodConfig
from r2kd_ext.train.configure import ConfigProblem, load_config, to_yaml


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_values_and_defaults(path: Path) -> None:
    path.write_text(
        "data: {name: folder, path: /images}\n"
        "optimizer:\n  learning_rate: 5e-4\n  milestones: [3, 5]\n"
        "run:\n  compile: true\n"
    )
    config = load_config(path)
    assert config.optimizer.learning_rate == 5e-4
    assert config.optimizer.milestones == (3, 5)
    assert config.run.compile is True
    assert config.augment == Config().augment
    assert config.method == Config().method


def test_overrides(path: Path) -> None:
    path.write_text("method: {name: kl}\n")
    words = ["--optimizer.learning_rate", "1e-3", "--data.mean=[0.1, 0.2, 0.3]"]
    config = load_config(path, [*words, "--data.std=[1, 1, 1]", "--run.output", "here"])
    assert config.optimizer.learning_rate == 1e-3
    assert config.data.mean == (0.1, 0.2, 0.3)
    assert config.run.output == "here"
    assert load_config(path, ["--run.seed=1", "--run.seed=2"]).run.seed == 2


def test_the_section_method_starts_from_the_published_values(path: Path) -> None:
    path.write_text("method: {name: kl, kd_weight: 0.8}\n")
    config = load_config(path)
    assert (config.method.ce_weight, config.method.kd_weight) == (0.1, 0.8)
    other = load_config(path, ["--method.name", "dist"])
    assert other.method == MethodConfig.published("dist", kd_weight=0.8)


def test_round_trip(path: Path) -> None:
    path.write_text("method: {name: dist}\ndata: {mean: [0.1, 0.2, 0.3], std: [0.2, 0.2, 1e-3]}\n")
    config = load_config(path)
    path.write_text(to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer: {learning_rat: 1}",
            "optimizer.learning_rat is unknown; did you mean optimizer.learning_rate?",
        ),
        ("optimzer: {learning_rate: 1}", "optimzer is unknown; did you mean optimizer?"),
        (
            "data: {learning_rate: 1}",
            "data.learning_rate is unknown; did you mean optimizer.learning_rate?",
        ),
        ("run: {qqq: 1}", "run.qqq is unknown; known are output, seed"),
        (
            "method: {name: r2dk}",
            "method.name must be one of ce, kl, dkd, dist, r2kd, got 'r2dk'; did you mean r2kd?",
        ),
        ("method: {rank: 3}", "method.rank must be one of none, hard, soft, got 3"),
        (
            "optimizer: {learning_rate: fast}",
            "optimizer.learning_rate must be a number, got 'fast'",
        ),
        ("optimizer: {epochs: 1.5}", "optimizer.epochs must be a whole number, got 1.5"),
        ("optimizer: {epochs: true}", "optimizer.epochs must be a whole number, got True"),
        ("run: {compile: maybe}", "run.compile must be true or false, got 'maybe'"),
        ("data: {path: 3}", "data.path must be text or null, got 3"),
        (
            "optimizer: {milestones: 3}",
            "optimizer.milestones must be a list of whole numbers, got 3",
        ),
        (
            "optimizer: {milestones: [1.5]}",
            "optimizer.milestones must be a list of whole numbers, got [1.5]",
        ),
        ("run: {trackers: [wand]}", "run.trackers must be a list of wandb, got ['wand']"),
        (
            "augment: {crop_scale: [0.5]}",
            "augment.crop_scale must be a list of 2 numbers, got [0.5]",
        ),
        ("optimizer: {learning_rate: -1}", "optimizer.learning_rate must be > 0, got -1"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate must be > 0, got nan"),
        ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate must be > 0, got inf"),
        ("optimizer: {milestones: [5, 3]}", "optimizer.milestones must be rising"),
        ("optimizer: {learning_rate: }", "optimizer.learning_rate has no value"),
        (
            "optimizer: {epochs: 1, epochs: 2}",
            "'epochs' comes twice in one section, again in line 1",
        ),
        ("optimizer: 3", "optimizer must be a mapping of learning_rate"),
        ("- 1", "must be a mapping of data, teacher"),
        ("a: [1", "is no YAML"),
        ("data: {name: hub}", "data.path must be given where data.name is 'hub'"),
        ("data: {path: x}", "data.path must not be given where data.name is 'digits'"),
        ("data: {mean: [0.1, 0.2, 0.3]}", "data.mean and data.std must both have 3 numbers"),
        ("data: {validation_fraction: 1}", "data.validation_fraction must be in [0, 1), got 1"),
        ("augment: {cutout_size: 0}", "augment.cutout_size must be >= 1, or -1, got 0"),
        ("method: {temperature: 0}", "method.temperature must be > 0, got 0"),
        ("method: {dense_weight: 1.5}", "method.dense_weight must be in [0, 1], got 1.5"),
        (
            "augment: {view: none}",
            "augment.view must be one of mixup, cutmix, cutout, autoaugment, cutmix_pick where",
        ),
        (
            "augment: {view: cutmix_pick, cutmix_pick_keep: 64}",
            "augment.cutmix_pick_keep must be below optimizer.batch_size 64",
        ),
        ("teacher: {pretrained: true}", 'pretrained is for models named "timm:NAME"'),
    ],
)
def test_what_is_wrong_names_itself(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigProblem) as caught:
        load_config(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method.nam", "kl"], "method.nam is unknown; did you mean method.name?"),
        (["--method.name"], "--method.name needs a value"),
        (["method.name", "kl"], "expected --section.key value, got 'method.name'"),
        (["--method", "kl"], "--method is a section; give a key of it, as --method.name"),
        (["--optimizer.epochs=many"], "optimizer.epochs must be a whole number, got 'many'"),
        (["--data.mean=[1"], "--data.mean is no YAML"),
    ],
)
def test_what_is_wrong_with_overrides(path: Path, words: list[str], message: str) -> None:
    path.write_text("{}")
    with pytest.raises(ConfigProblem) as caught:
        load_config(path, words)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"cannot read .*: No such file"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigProblem, match="cannot read"):
        load_config(tmp_path / "binary.yaml")


def test_every_section_has_defaults(path: Path) -> None:
    path.write_text("{}")
    assert load_config(path) == Config()
    for field in fields(Config):
        path.write_text(f"{field.name}:\n")  # a heading alone
        assert load_config(path) == Config()
