"""Spherical k-means in plain torch (Dhillon & Modha, 2001), short: cells to search by, not clusters to report.

    cell(i) = argmax_c x_i·μ_c,        μ_c ← Σ_{i ∈ c} x_i / |Σ_{i ∈ c} x_i|

Three rounds on 16 rows a cell are enough for a search whose recall is measured afterwards; more rounds cost more than
they save it. An empty cell starts again at a row.
"""

from __future__ import annotations

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
    centroids = sample[:count]
    for _ in range(ROUNDS):
        own = nearest_cell(sample, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, own, sample)
        empty = torch.bincount(own, minlength=count) == 0
        spare = torch.randperm(len(sample), generator=generator)[: int(empty.sum())]
        sums[empty] = sample[spare.to(sample.device)]
        centroids = torch.nn.functional.normalize(sums, dim=1)
    own = nearest_cell(vectors, centroids)
    return Cells(centroids, own, torch.bincount(own, minlength=count))


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
