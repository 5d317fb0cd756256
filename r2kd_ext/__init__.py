"""Fused correlation-distance knowledge distillation for PyTorch."""

from . import models, reference
from .functional import correlation_kd, soft_rank, spearman
from .info import build_info
from .nn import CorrelationKDLoss
from .pruning import prune
from .teacher import TeacherEnsemble

__all__ = [
    "CorrelationKDLoss",
    "TeacherEnsemble",
    "build_info",
    "correlation_kd",
    "models",
    "prune",
    "reference",
    "soft_rank",
    "spearman",
]
