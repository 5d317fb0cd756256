"""Types of the compiled core (csrc/bindings*.cpp), for type checkers."""

from collections.abc import Sequence
from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    commit: str
    compiler: str
    simd: str
    parallel_runtime: str
    cuda_compiled: bool
    cuda_runtime_version: int
    cuda_architectures: str
    cuda_devices: int
    cuda_problem: str

class CorrelationState:
    @property
    def nbytes(self) -> int: ...
    def backward(
        self,
        student: int,
        teacher: int,
        mask: int,
        mask_stride: int,
        grad_loss: int,
        grad_student: int,
        threads: int,
        /,
    ) -> None: ...

class CudaPlan(TypedDict):
    scratch_bytes: int
    forward_launches: int
    forward: str
    backward: str

ROW_STATS: int
COL_STATS: int
MAX_RANK_COLS: int
MOMENT_SUMS: int
CUDA_COMPILED: bool
MAX_CUDA_COLS: int

def build_info() -> BuildInfo: ...
def correlation_forward_contiguous(
    rows: int,
    cols: int,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    student: int,
    student_dtype: int,
    teacher: int,
    teacher_dtype: int,
    mask: int,
    mask_stride: int,
    loss: int,
    threads: int,
    /,
) -> CorrelationState: ...
def correlation_forward(
    rows: int,
    cols: int,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    student: int,
    student_row_stride: int,
    student_col_stride: int,
    student_dtype: int,
    teacher: int,
    teacher_row_stride: int,
    teacher_col_stride: int,
    teacher_dtype: int,
    mask: int,
    mask_stride: int,
    sample_weight: int,
    loss: int,
    stats: int,
    threads: int,
    /,
) -> None: ...
def correlation_backward(
    rows: int,
    cols: int,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    student: int,
    student_row_stride: int,
    student_col_stride: int,
    student_dtype: int,
    teacher: int,
    teacher_row_stride: int,
    teacher_col_stride: int,
    teacher_dtype: int,
    mask: int,
    mask_stride: int,
    grad_loss: int,
    stats: int,
    grad_student: int,
    threads: int,
    /,
) -> None: ...
def cuda_correlation_plan(
    rows: int,
    cols: int,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    student_dtype: int,
    teacher_dtype: int,
    weighed: bool,
    device: int,
    /,
) -> CudaPlan: ...
def cuda_correlation_forward(
    rows: int,
    cols: int,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    eps: float,
    student: int,
    student_row_stride: int,
    student_col_stride: int,
    student_dtype: int,
    teacher: int,
    teacher_row_stride: int,
    teacher_col_stride: int,
    teacher_dtype: int,
    mask: int,
    mask_stride: int,
    sample_weight: int,
    loss: int,
    stats: int,
    scratch: int,
    device: int,
    stream: int,
    /,
) -> None: ...
def cuda_correlation_backward(
    rows: int,
    cols: int,
    temperature: float,
    centered: bool,
    inter_weight: float,
    intra_weight: float,
    student: int,
    student_row_stride: int,
    student_col_stride: int,
    student_dtype: int,
    teacher: int,
    teacher_row_stride: int,
    teacher_col_stride: int,
    teacher_dtype: int,
    mask: int,
    mask_stride: int,
    grad_loss: int,
    stats: int,
    grad_student: int,
    device: int,
    stream: int,
    /,
) -> None: ...

# Sizes, scalars, addresses, strides and dtype codes, in the order of csrc/bindings_moments.cpp and
# csrc/bindings_rank.cpp.
def correlation_moments(*arguments: float) -> None: ...
def spearman_forward(*arguments: float) -> None: ...
def rank_loss(*arguments: float) -> None: ...
def rank_loss_backward(*arguments: float) -> None: ...
def spearman_backward(*arguments: float) -> None: ...
def soft_rank_forward(*arguments: float) -> None: ...
def soft_rank_backward(*arguments: float) -> None: ...

# Likewise of csrc/bindings_cuda_rank.cpp.
def cuda_rank_scratch_bytes(op: int, rows: int, cols: int, in_double: bool, /) -> int: ...
def cuda_spearman_forward(*arguments: float) -> None: ...
def cuda_spearman_backward(*arguments: float) -> None: ...
def cuda_soft_rank_forward(*arguments: float) -> None: ...
def cuda_soft_rank_backward(*arguments: float) -> None: ...

# Sizes, addresses, strides and dtype codes, in the order of csrc/bindings_sparse.cpp.
def csr_linear(*arguments: int) -> None: ...
def csr_conv2d(*arguments: int | Sequence[int]) -> None: ...

# Likewise of csrc/bindings_winograd.cpp.
def winograd_conv2d(*arguments: int) -> None: ...

# Likewise of csrc/bindings_cuda_sparse.cpp.
def cuda_csr_linear(*arguments: int) -> None: ...
def cuda_csr_conv2d(*arguments: int | Sequence[int]) -> None: ...
