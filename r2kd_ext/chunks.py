"""How many rows of logits exist at a time."""

from __future__ import annotations

import re
from pathlib import Path

import torch

# Logits of student and teacher and their gradient.
_BUFFERS = 3
_CPU_BYTES = 128 * 2**20
_LEAST_ROWS = 16
_MOST_ROWS = 1024
# Of the memory that is free, what a chunk may take.
_SHARE = 1 / 8
_MEMINFO = Path("/proc/meminfo")


def _available() -> int | None:
    """Bytes that the system can give without swapping; None where it does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        available = _available()
        return _CPU_BYTES if available is None else min(_CPU_BYTES, int(available * _SHARE))
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + unused) * _SHARE)


def rows_per_chunk(classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """The largest power of two, from 16 to 1024, whose logits fit the budget of the device.

    A row takes 3 V numbers: logits of student and teacher, and their gradient. The budget is
    an eighth of the memory that is free, on a GPU torch's cache included. On the CPU it is at most
    128 MiB: with 1 GiB free, the same call has the same chunks, and with them the same bits, on
    every run.
    """
    rows = _budget(device) // (_BUFFERS * classes * dtype.itemsize)
    return 1 << (min(max(rows, _LEAST_ROWS), _MOST_ROWS).bit_length() - 1)
