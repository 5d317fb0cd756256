"""How many rows of logits exist at a time."""

from __future__ import annotations

import torch

# Logits of student and teacher and their gradient.
_BUFFERS = 3
_CPU_BYTES = 128 * 2**20
_LEAST_ROWS = 16
_MOST_ROWS = 1024
# Of the memory that is free on a GPU, what a chunk may take.
_GPU_SHARE = 1 / 8


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + unused) * _GPU_SHARE)


def rows_per_chunk(classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """The largest power of two, from 16 to 1024, whose logits fit the budget of the device.

    A row takes 3 V numbers: logits of student and teacher, and their gradient. The budget is
    128 MiB on the CPU, so that the same call has the same chunks, and with them the same bits, on
    every run; on a GPU it is an eighth of the memory that is free, torch's cache included.
    """
    rows = _budget(device) // (_BUFFERS * classes * dtype.itemsize)
    return 1 << (min(max(rows, _LEAST_ROWS), _MOST_ROWS).bit_length() - 1)
