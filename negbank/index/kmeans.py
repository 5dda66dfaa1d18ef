"""k-means in plain torch: one Lloyd loop, for cells to search by and for parts to be made of.

    part(i) = argmin_c |x_i − μ_c|²,        μ_c ← mean of the rows of c                           (Lloyd 1982)
    cell(i) = argmax_c x_i·μ_c,             μ_c ← Σ_{i ∈ c} x_i / |Σ_{i ∈ c} x_i|                 (Dhillon & Modha 2001)

Cells are short: three rounds on 16 rows a cell are enough for a search whose recall is measured afterwards; more rounds
cost more than they save it. An empty cell starts again at a row, an empty part stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.index.contract import Cells
from negbank.index.products import fast_dtype
from negbank.index.threads import OwnThreads, threads_for

ROUNDS = 3
ROWS_A_CELL = 16
BLOCK = 1024
"""Rows of one product with all centroids."""


def kmeans(vectors: Tensor, count: int, *, generator: torch.Generator) -> Cells:
    """Cut unit rows (n, D) into `count` ≤ n cells, on their device, with a generator on the CPU."""
    drawn = torch.randperm(len(vectors), generator=generator)[: ROWS_A_CELL * count]
    sample = vectors[drawn.to(vectors.device)]

    def renewed(rows: Tensor, own: Tensor, before: Tensor) -> Tensor:
        sums, sizes = _sums(rows, own, before)
        empty = sizes == 0
        spare = torch.randperm(len(rows), generator=generator)[: int(empty.sum())]
        sums[empty] = rows[spare.to(rows.device)]
        return torch.nn.functional.normalize(sums, dim=1)

    centroids = _rounds(sample, sample[:count], ROUNDS, nearest_cell, renewed, settle=False)
    own = nearest_cell(vectors, centroids)
    return Cells(centroids, own, torch.bincount(own, minlength=count))


def lloyd(rows: Tensor, start: Tensor, rounds: int) -> Tensor:
    """The centres (K, D) of parts of rows (R, D), from centres `start` (K, D), until no row changes its part."""
    return _rounds(rows, start, rounds, lambda *pair: closeness(*pair).argmax(1), means, settle=True)


def _rounds(
    rows: Tensor,
    centres: Tensor,
    rounds: int,
    nearest: Callable[[Tensor, Tensor], Tensor],
    moved: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    settle: bool,
) -> Tensor:
    """Parts by the centres, centres by the parts, for so many rounds or, to `settle`, until no row changes its part."""
    part = None
    for _ in range(rounds):
        before, part = part, nearest(rows, centres)
        if settle and before is not None and part.equal(before):
            break
        centres = moved(rows, part, centres)
    return centres


def closeness(rows: Tensor, centres: Tensor) -> Tensor:
    """x·c − |c|²/2 of rows (R, D) and centres (K, D), as (R, K): |x|²/2 less half the squared distance."""
    return torch.addmm(centres.square().sum(1) / -2, rows, centres.T)


def means(rows: Tensor, part: Tensor, before: Tensor) -> Tensor:
    """Mean row of each part (K, D); of a part without rows, what it was before."""
    sums, sizes = _sums(rows, part, before)
    return torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), before)


def _sums(rows: Tensor, part: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The sum (K, D) of the rows of each part, and how many they are (K,)."""
    return torch.zeros_like(before).index_add_(0, part, rows), torch.bincount(part, minlength=len(before))


def nearest_cell(vectors: Tensor, centroids: Tensor) -> Tensor:
    """The cell (n,) whose centroid (C, D) has the largest product with each row."""
    dtype = fast_dtype(vectors.device)
    columns = centroids.to(dtype).T
    own = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)

    def some(at: int) -> None:
        own[at : at + BLOCK] = _largest(vectors[at : at + BLOCK].to(dtype) @ columns)

    with OwnThreads(threads_for(len(vectors) * len(centroids), vectors.device)) as threads:
        threads.run(some, range(0, len(vectors), BLOCK))
    return own


def _largest(products: Tensor) -> Tensor:
    """The column (n,) of the largest product of each row (n, C)."""
    if products.device.type != "cpu":
        return products.argmax(1)
    bits = products.view(torch.int16 if products.dtype == torch.bfloat16 else torch.int32)
    return torch.from_numpy(_largest_bits(bits.numpy()))


@numba.njit(cache=True, nogil=True)
def _largest_bits(bits: np.ndarray) -> np.ndarray:
    """By bits, which order numbers that are not negative; in two passes, the first of them vectorised."""
    columns = np.zeros(len(bits), np.int64)
    for r in range(len(bits)):
        row, best = bits[r], bits[r, 0]
        for c in range(len(row)):
            best = max(best, row[c])
        while row[columns[r]] != best:
            columns[r] += 1
    return columns
