"""`r2kd_ext.bench.limits` under the name by which the benchmarks import it."""

from r2kd_ext.bench.limits import (
    INDEX_BYTES,
    Network,
    copy_bytes,
    copy_call,
    correlation,
    correlation_bytes,
    csr_conv2d,
    csr_linear,
    ensemble,
    fused_linear,
    hard_spearman,
    linear,
    matrix_rate,
    ranked_correlation,
    soft_rank,
    step,
    three_streams,
)
from r2kd_ext.bench.results import Work

__all__ = [
    "INDEX_BYTES",
    "Network",
    "Work",
    "copy_bytes",
    "copy_call",
    "correlation",
    "correlation_bytes",
    "csr_conv2d",
    "csr_linear",
    "ensemble",
    "fused_linear",
    "hard_spearman",
    "linear",
    "matrix_rate",
    "ranked_correlation",
    "soft_rank",
    "step",
    "three_streams",
]
