"""The losses of a student by name: ce, kl, dkd, dist and r2kd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import CorrelationKDLoss
from ..teacher import TeacherEnsemble
from .augment import View
from .config import MethodConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Targets(NamedTuple):
    """What the teacher says of a batch and of its view; None where the method doesn't ask."""

    clean: Tensor | None = None  # [B, C]
    view: Tensor | None = None  # [V, C], of the images of the view that are kept
    kept: Tensor | None = None  # [V] int64, which those are; None for all


class LossParts(NamedTuple):
    """The loss of a step and its summands, weights included.

    Only `total` has a gradient; the parts are detached scalars, for the log.
    """

    total: Tensor  # scalar
    parts: dict[str, Tensor]


class Method(nn.Module):
    """The loss that `config` describes.

    It holds a frozen copy of the teacher as a `TeacherEnsemble` (with the pruned copy for r2kd
    where asked), moves with `.to(device)` and has no state of its own to checkpoint.

    Args:
        config: the method and its weights.
        teacher: maps images (B, 3, H, W) to logits (B, C); None for ce alone.
        num_classes: C.
        group: the process group over which the columns of dist and r2kd are exact.
        teacher_dtype: what the teacher computes in: None for its own dtype, or torch.bfloat16.
        teacher_chunk: the most images that it takes at a time.

    Raises ValueError where the method needs a teacher and none is given, and what
    `TeacherEnsemble` raises.
    """

    def __init__(
        self,
        config: MethodConfig,
        teacher: nn.Module | None,
        *,
        num_classes: int,
        group: ProcessGroup | None = None,
        teacher_dtype: torch.dtype | None = None,
        teacher_chunk: int = 32,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.teacher: TeacherEnsemble | None = None
        if config.name != "ce":
            if teacher is None:
                raise ValueError(f"method.name {config.name!r} needs a teacher")
            blended = config.name == "r2kd" and config.pruned_teacher
            mode = config.pruned_batchnorm if blended else "eval"
            self.teacher = TeacherEnsemble(
                teacher,
                config.pruning_amount,
                config.dense_weight if blended else 1.0,
                pruned_batchnorm=mode,
                dtype=teacher_dtype,
                # Not measured, as None would have it: a resumed run must round as the first did.
                chunk=teacher_chunk if mode == "eval" else None,
            )
        ranked = config.rank != "none"
        self.correlation = CorrelationKDLoss(
            config.temperature,
            correlation=config.correlation,
            inter_weight=config.inter_weight,
            intra_weight=config.intra_weight,
            rank_weight=config.rank_weight if ranked else 0.0,
            rank=config.rank if ranked else "hard",
            rank_strength=config.rank_strength,
            group=group,
        )

    @property
    def takes_view(self) -> bool:
        """Whether `prepare` and `loss` use the augmented view."""
        return self.config.name == "r2kd" and self.config.augmented_view

    @torch.no_grad()
    def prepare(self, clean: Tensor, view: View | None) -> Targets:
        """The teacher's logits of a batch (B, 3, H, W) and, where the method takes it, of its view.

        Of a view that says how many images to keep (cutmix-pick), those are kept whose logits have
        the highest entropy of their softmax (at temperature 1), in the order of the batch.

        Raises ValueError where the method takes a view and none is given.
        """
        if self.teacher is None:
            return Targets()
        with torch.autocast(clean.device.type, enabled=False):
            if not self.takes_view:
                return Targets(self._checked(self.teacher(clean)))
            images = self._view(view).images
            on_clean, on_view = self.teacher.both(clean, images)  # [B, C] each
        self._checked(on_clean)
        kept = None
        keep = self._view(view).keep
        if keep is not None and keep < len(on_view):
            kept = highest_entropy(on_view, keep)
            on_view = on_view[kept]
        return Targets(on_clean, on_view, kept)

    def loss(
        self,
        student: Callable[[Tensor], Tensor],
        clean: Tensor,
        labels: Tensor,
        view: View | None,
        targets: Targets,
        *,
        epoch: int | None = None,
    ) -> LossParts:
        """The loss of `student`, which runs here: on the clean batch, then on the view.

        Args:
            student: maps images (B, 3, H, W) to logits (B, C).
            clean, view: as in `prepare`.
            labels: (B,) int64.
            targets: what `prepare` returned for `clean` and `view`.
            epoch: from 1, for the warm-up of dkd.

        Raises ValueError where dkd has a warm-up and no epoch is given, or the student's logits
        are not (B, num_classes).
        """
        config = self.config
        logits = self._checked(student(clean), "student")  # [B, C]
        cross_entropy = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if config.name == "ce":
            return _sum(ce=cross_entropy)
        target = targets.clean
        assert target is not None
        if config.name == "kl":
            divergence = kl_divergence(logits, target, config.temperature)
            return _sum(ce=config.ce_weight * cross_entropy, kl=config.kd_weight * divergence)
        if config.name == "dkd":
            weight = config.kd_weight * self._warmup(epoch)
            target_part, other_part = decoupled_divergences(
                logits, target, labels, config.temperature
            )
            return _sum(
                ce=config.ce_weight * cross_entropy,
                target_kd=weight * config.dkd_alpha * target_part,
                other_kd=weight * config.dkd_beta * other_part,
            )
        on_clean = self.correlation(logits, target)
        if not self.takes_view:
            return _sum(ce=cross_entropy, correlation=on_clean)
        images = self._view(view).images
        if targets.kept is not None:
            images = images[targets.kept]
        assert targets.view is not None
        on_view = self.correlation(self._checked(student(images), "student"), targets.view)
        return _sum(ce=cross_entropy, correlation=on_clean, correlation_view=on_view)

    def _view(self, view: View | None) -> View:
        if view is None:
            raise ValueError(
                "r2kd with method.augmented_view needs augment.view, which is 'none': name one of "
                "mixup, cutmix, cutout, autoaugment, cutmix_pick, or set method.augmented_view "
                "to false"
            )
        return view

    def _checked(self, logits: Tensor, whose: str = "teacher") -> Tensor:
        if not isinstance(logits, Tensor) or logits.shape[1:] != (self.num_classes,):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the {whose} must return logits (B, {self.num_classes}), got {found}")
        return logits

    def _warmup(self, epoch: int | None) -> float:
        epochs = self.config.dkd_warmup_epochs
        if epochs == 0:
            return 1.0
        if epoch is None:
            raise ValueError("dkd with dkd_warmup_epochs > 0 needs the epoch, from 1")
        return min(epoch / epochs, 1.0)


def _sum(**parts: Tensor) -> LossParts:
    total = torch.stack(list(parts.values())).sum()
    return LossParts(total, {name: part.detach() for name, part in parts.items()})


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)), averaged over rows (B, C); a scalar.

    Source: Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(_wide(student) / temperature, dim=1),
        F.log_softmax(_wide(teacher) / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def decoupled_divergences(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two parts that DKD makes of T² KL: of the target class against the rest, and within the
    rest; scalars, averaged over rows (B, C) with labels (B,).

    With b = (p_t, 1 - p_t) and p^ the softmax over the classes other than t, of teacher and
    student at temperature T, they are T² KL(b_teacher || b_student) and
    T² KL(p^_teacher || p^_student); T² KL is the first + (1 - p_t of the teacher) times the second.
    Source: Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022.
    """
    is_target = F.one_hot(labels, student.shape[1]).bool()  # [B, C]
    binary, others = [], []
    for logits in (student, teacher):
        scaled = _wide(logits) / temperature
        target = scaled[is_target]  # [B]
        rest = scaled[~is_target].reshape(len(labels), -1)  # [B, C - 1]
        # From the rest's own logits: 1 - p_t has no digits left where the teacher is sure.
        pair = torch.stack([target, rest.logsumexp(1)], dim=1)  # [B, 2]
        binary.append(F.log_softmax(pair, dim=1))
        others.append(F.log_softmax(rest, dim=1))
    scale = temperature**2
    target_part, other_part = (
        scale * F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
        for of_student, of_teacher in (binary, others)
    )
    return target_part, other_part


def highest_entropy(logits: Tensor, count: int) -> Tensor:
    """Indices (count,), int64 and rising, of the rows (B, C) whose softmax has most entropy."""
    log_p = F.log_softmax(_wide(logits), dim=1)
    entropy = -(log_p.exp() * log_p).nan_to_num(0.0).sum(1)  # [B]; 0 log 0 = 0
    return entropy.topk(count).indices.sort().values


def _wide(logits: Tensor) -> Tensor:
    """float64 as it is, anything else as float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
