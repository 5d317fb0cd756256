"""Fused correlation-distance knowledge distillation for PyTorch."""

from . import models, reference
from .functional import correlation_kd, soft_rank, spearman
from .info import build_info
from .nn import CorrelationKDLoss
from .pruning import prune
from .recalibration import recalibrate_batchnorm
from .sparse import SparseConv2d, SparseLinear
from .sparsification import sparsify
from .teacher import TeacherEnsemble

__all__ = [
    "CorrelationKDLoss",
    "SparseConv2d",
    "SparseLinear",
    "TeacherEnsemble",
    "build_info",
    "correlation_kd",
    "models",
    "prune",
    "recalibrate_batchnorm",
    "reference",
    "soft_rank",
    "sparsify",
    "spearman",
]
