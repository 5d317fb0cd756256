"""Fused correlation-distance knowledge distillation for PyTorch."""

from . import reference
from .functional import correlation_kd
from .info import build_info
from .nn import CorrelationKDLoss

__all__ = ["CorrelationKDLoss", "build_info", "correlation_kd", "reference"]
