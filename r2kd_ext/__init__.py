"""Fused correlation-distance knowledge distillation for PyTorch."""

from . import _built, models, reference  # noqa: F401  # _built first: others need the core
from .functional import correlation_kd, soft_rank, spearman
from .fused_linear import fused_linear_correlation_kd
from .info import build_info
from .nn import CorrelationKDLoss
from .pruning import prune
from .recalibration import recalibrate_batchnorm
from .sparse import SparseConv2d, SparseLinear
from .sparsification import sparsify
from .teacher import TeacherEnsemble
from .vocab_parallel import vocab_parallel_correlation_kd

__all__ = [
    "CorrelationKDLoss",
    "SparseConv2d",
    "SparseLinear",
    "TeacherEnsemble",
    "build_info",
    "correlation_kd",
    "fused_linear_correlation_kd",
    "models",
    "prune",
    "recalibrate_batchnorm",
    "reference",
    "soft_rank",
    "sparsify",
    "spearman",
    "vocab_parallel_correlation_kd",
]
