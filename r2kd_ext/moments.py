"""Moments of columns by torch, over chunks of rows: where no kernel gives them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**20

# p and q of some rows, [b, C] and 0 where masked, and which of them are kept, [b, 1] or None.
SoftmaxChunk = tuple[Tensor, Tensor, "Tensor | None"]


def row_chunks(rows: int, classes: int) -> list[slice]:
    """Slices of rows whose matrices have about 2**20 elements, or one row where that has more."""
    step = max(1, _CHUNK_ELEMENTS // classes)
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


def only_kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """x, 0 where it is not kept."""
    return x if keep is None else x.where(keep, 0.0)


def column_moments(chunks: Iterable[SoftmaxChunk], zeros: Tensor, centered: bool) -> Tensor:
    """Sums of p^2, q^2 and p q over the kept rows, [3, C]; centred, see below, [5, C].

    `zeros` [C], float64, says where and of which size. Centred, the sums are of deviations from the
    means of p and of q, which follow. Chunks are merged in order by the rule of Chan, Golub and
    LeVeque: no difference of large sums is taken.
    """
    moments = zeros.repeat(5 if centered else 3, 1)
    count = zeros.new_zeros(())
    for chunk_p, chunk_q, keep in chunks:
        p, q = chunk_p.double(), chunk_q.double()
        if centered:
            added = count.new_tensor(len(p)) if keep is None else keep.sum().double()  # []
            at_least_one = added.clamp(min=1)
            mean_p, mean_q = p.sum(0) / at_least_one, q.sum(0) / at_least_one  # [C]
            p, q = only_kept(p - mean_p, keep), only_kept(q - mean_q, keep)
            share = added / (count + added).clamp(min=1)
            dp, dq = mean_p - moments[3], mean_q - moments[4]
            moments[3] += dp * share
            moments[4] += dq * share
            moments[:3] += torch.stack([dp * dp, dq * dq, dp * dq]) * (share * count)
            count = count + added
        moments[:3] += torch.stack([(p * p).sum(0), (q * q).sum(0), (p * q).sum(0)])
    return moments
