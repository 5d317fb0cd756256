"""What the hardware allows: the least that an operation can do, and the rates of this machine.

Counted is what the operation needs, not what an implementation does: every input once from memory
in each pass that needs it, every result once to it; what stays on the chip and the O(B + C) numbers
between forward and backward are left out. An exponential, a root and a comparison count as one
floating-point operation. So a share of the limit of 1 may be out of reach, and none is above it.

The copy rate is that of `torch.add(a, b, out=c)` on vectors as large as the inputs, which reads two
and writes one, in its fastest turn. The matrix rate is that of a product of two square matrices: in
float32 on a CPU, on a GPU in the inputs' dtype where that is faster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .results import Work
from .timing import ROTATED_BYTES, rotated

# Passes over B x C elements: forward reads the logits of student and teacher; backward reads them
# again and writes the gradient.
FORWARD_PASSES, BACKWARD_PASSES = 2, 3
CORRELATION_PASSES = FORWARD_PASSES + BACKWARD_PASSES
COPY_PASSES = 3
INDEX_BYTES = 4  # of a column number or a row start in csr
# Multiplications of direct sums over those of F(4x4, 3x3): 16 outputs of 9 each, and 6 x 6.
DIRECT_PER_WINOGRAD = 4

# Operations per element. Softmax of student and teacher: scale, subtract, exp, sum, divide. Three
# moments by rows, three by columns: multiply and add. Backward: both softmaxes again, the gradient
# g = a q - b p, its product with p summed, p (g - s) / T.
_SOFTMAXES, _MOMENTS, _GRADIENT = 2 * 5, 3 * 2, 3 + 2 + 3


def correlation_bytes(rows: int, classes: int, dtype: torch.dtype) -> int:
    """The fewest bytes that forward + backward of the correlation loss can move."""
    return CORRELATION_PASSES * rows * classes * dtype.itemsize


def correlation(
    rows: int,
    classes: int,
    dtype: torch.dtype,
    *,
    passes: str = "forward+backward",
    columns: bool = True,
) -> Work:
    """The correlation loss of B x C logits: `passes` "forward", "backward" or both."""
    elements, terms = rows * classes, 2 if columns else 1
    forward = Work(
        FORWARD_PASSES * elements * dtype.itemsize, elements * (_SOFTMAXES + terms * _MOMENTS)
    )
    backward = Work(
        BACKWARD_PASSES * elements * dtype.itemsize,
        elements * (_SOFTMAXES + _GRADIENT + (terms - 1) * 3),
    )
    both = Work(*(a + b for a, b in zip(forward, backward, strict=True)))
    return {"forward": forward, "backward": backward, "forward+backward": both}[passes]


def sort_comparisons(classes: int) -> int:
    """The fewest comparisons that put a row in order, log2(C!), rounded."""
    return round(math.lgamma(classes + 1) / math.log(2))


def hard_spearman(rows: int, classes: int, dtype: torch.dtype) -> Work:
    """rho of B x C numbers, forward: two sorts, and the squared differences of ranks."""
    operations = 2 * sort_comparisons(classes) + 3 * classes
    return Work(2 * rows * classes * dtype.itemsize, rows * operations)


def soft_rank(rows: int, classes: int, dtype: torch.dtype) -> Work:
    """Soft ranks of B x C numbers and their gradient: float32 ranks, one sort, two scans.

    Forward reads x and writes the ranks; backward reads their gradient, and the order of each row,
    and writes the gradient of x.
    """
    elements = rows * classes
    moved = elements * (dtype.itemsize + 4) + elements * (4 + INDEX_BYTES + dtype.itemsize)
    return Work(moved, rows * (sort_comparisons(classes) + 8 * classes))


def ranked_correlation(rows: int, classes: int, dtype: torch.dtype, *, soft: bool) -> Work:
    """The correlation loss with its rank term, forward + backward: the logits are read no more."""
    value = correlation(rows, classes, dtype)
    sorts = rows * 2 * sort_comparisons(classes)
    return Work(value.bytes, value.flops + sorts + rows * classes * (24 if soft else 3))


def linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Work:
    """A dense layer, forward: x [N, K] times weight [M, K] transposed."""
    numbers = rows * inputs + outputs * inputs + rows * outputs
    return Work(numbers * dtype.itemsize, 2 * rows * inputs * outputs)


def csr_linear(rows: int, inputs: int, outputs: int, nonzeros: int, dtype: torch.dtype) -> Work:
    """The same with a weight in csr that has `nonzeros` elements."""
    weight = nonzeros * (dtype.itemsize + INDEX_BYTES) + (outputs + 1) * INDEX_BYTES
    numbers = rows * inputs + rows * outputs
    return Work(numbers * dtype.itemsize + weight, 2 * rows * nonzeros)


def csr_conv2d(
    batch: int,
    inputs: tuple[int, int, int],
    outputs: tuple[int, int, int],
    nonzeros: int,
    dtype: torch.dtype,
) -> Work:
    """A convolution with a weight in csr; `inputs` and `outputs` are channels, height, width."""
    weight = nonzeros * (dtype.itemsize + INDEX_BYTES) + (outputs[0] + 1) * INDEX_BYTES
    numbers = batch * (math.prod(inputs) + math.prod(outputs))
    operations = 2 * batch * outputs[1] * outputs[2] * nonzeros
    return Work(numbers * dtype.itemsize + weight, operations)


def conv2d_3x3(batch: int, inputs: int, outputs: int, height: int, width: int) -> Work:
    """A float32 3 x 3 convolution with stride 1, padding 1 and a bias, forward."""
    numbers = batch * (inputs + outputs) * height * width + outputs * (9 * inputs + 1)
    direct = 2 * 9 * batch * inputs * outputs * height * width
    return Work(4 * numbers, math.ceil(direct / DIRECT_PER_WINOGRAD))


@torch.no_grad()
def multiplications(network: nn.Module, images: Tensor) -> int:
    """What a network with frozen weights multiplies and adds at the least for an image, forward.

    As torch counts it, but 3 x 3 convolutions with stride 1 by Winograd's F(4x4, 3x3).
    """
    spared = 0

    def note(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal spared
        direct = 9 * out.numel() * int(layer.in_channels)  # type: ignore[arg-type]
        spared += direct - math.ceil(direct / DIRECT_PER_WINOGRAD)

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
    ]
    try:
        with FlopCounterMode(display=False) as counter:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return (int(counter.get_total_flops()) // 2 - spared) // len(images)


def ensemble(batch: int, inputs: int, outputs: int, weights: int, multiplications: int) -> Work:
    """Both float32 networks of an ensemble on a batch, forward.

    `inputs` and `outputs` are numbers per image; `weights` those of one network, and
    `multiplications` what it multiplies and adds per image. Activations may stay on the chip.
    """
    return Work(4 * (batch * (inputs + outputs) + 2 * weights), 2 * 2 * batch * multiplications)


class Network(NamedTuple):
    """Number of weights, and what it multiplies and adds per image in forward and in backward."""

    weights: int
    forward: int
    backward: int = 0


def step(
    batch: int, inputs: int, classes: int, teacher: Network, student: Network
) -> dict[str, Work]:
    """The float32 training step of R2KD with an augmented view: by part, and as "step" the sum.

    `inputs` is numbers per image. Clean and augmented images are forwarded by the teacher, its
    pruned copy and the student; the loss of each has its rank term; SGD has a momentum.
    """
    images = 2 * batch
    value = correlation(batch, classes, torch.float32, passes="forward")
    ranks = hard_spearman(batch, classes, torch.float32)
    numbers = images * (inputs + classes)
    parts = {
        "augment": Work(4 * images * inputs),
        "teacher": ensemble(images, inputs, classes, teacher.weights, teacher.forward),
        "student forward": Work(4 * (numbers + student.weights), 2 * images * student.forward),
        "loss": Work(2 * value.bytes, 2 * (value.flops + ranks.flops)),
        "backward": Work(4 * (numbers + 2 * student.weights), 2 * images * student.backward),
        "optimiser": Work(5 * 4 * student.weights, 5 * student.weights),
    }
    whole = Work(*(sum(counts) for counts in zip(*parts.values(), strict=True)))
    return {**parts, "step": whole}


def fused_linear(
    rows: int, vocabulary: int, student: int, teacher: int, dtype: torch.dtype
) -> Work:
    """Loss and gradients from hidden states [N, H] and heads [V, H] of student and teacher.

    Both products in forward, two more for the gradients of the student's states and head; without
    recomputation. All four inputs are read once, both gradients written once.
    """
    student_numbers, teacher_numbers = (
        (rows + vocabulary) * hidden for hidden in (student, teacher)
    )
    elements = rows * vocabulary
    products = 2 * elements * (student + teacher) + 4 * elements * student
    pointwise = elements * (_SOFTMAXES + _MOMENTS + _GRADIENT)
    return Work((2 * student_numbers + teacher_numbers) * dtype.itemsize, products + pointwise)


def copy_bytes(elements: int, dtype: torch.dtype) -> int:
    """The bytes that the three-stream copy of `elements` moves."""
    return COPY_PASSES * elements * dtype.itemsize


def three_streams(
    elements: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Two sources and a target for the three-stream copy, each [elements], already written."""
    a, b, c = (torch.ones(elements, device=device, dtype=dtype) for _ in range(3))
    return a, b, c


def copy_call(
    elements: int, dtype: torch.dtype, *, resident: bool = False, device: str = "cpu"
) -> Callable[[int], object]:
    """The three-stream copy as a contender, on vectors in place or rotating past the caches."""
    size = copy_bytes(elements, dtype)
    past = 0 if resident else ROTATED_BYTES
    streams = rotated(lambda: three_streams(elements, dtype, device), size, past)

    def run(call: int) -> Tensor:
        a, b, c = streams[call % len(streams)]
        return torch.add(a, b, out=c)

    return run


def matrix_rate(
    device: str = "cpu", size: int = 1024, turns: int = 5, dtype: torch.dtype = torch.float32
) -> float:
    """Floating-point operations a second of a matrix product, the fastest of a few."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def once() -> float:
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    once()
    return 2 * size**3 / min(once() for _ in range(turns))
