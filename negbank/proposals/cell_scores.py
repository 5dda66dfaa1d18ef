"""What a row of a cell weighs on average: log mean_{x ∈ c} exp(z·x / τ), from the cell's mean alone.

The second-order expansion of a cumulant generating function, with the spread within a cell taken as the same in all
of its D directions. The rows are of unit length, so that their mean knows their spread, trace Σ_c = 1 − |μ_c|²:

    a(c) = z·μ_c / τ + ½ σ_c² / τ²,        σ_c² = zᵀΣ_c z ≈ (1 − |μ_c|²) / D

μ_c is the mean as it is. A unit centroid claims for every row of a wide cell the score of a row at its very middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from negbank.index import Cells
from negbank.index.products import rounded_up

BLOCK = 64
"""Queries of one product."""


class CellScores:
    """The means (C, D) and spreads (C,) of cells over unit rows vectors (N, D)."""

    def __init__(self, vectors: Tensor, cells: Cells) -> None:
        rows = (cells.assignment >= 0).nonzero().flatten()
        sums = vectors.new_zeros(len(cells.sizes), vectors.shape[1]).index_add_(
            0, cells.assignment[rows], vectors[rows]
        )
        means = sums / cells.sizes.clamp(min=1)[:, None]
        self._cells, dim = means.shape
        self._right = torch.zeros(rounded_up(self._cells, BLOCK), rounded_up(dim + 2, 16), device=vectors.device)
        self._right[: self._cells, :dim] = means
        self._right[: self._cells, dim] = (1 - means.square().sum(1)).clamp(min=0) / dim  # σ_c²
        self._right[:, dim + 1] = 1

    def __call__(self, queries: Tensor, temperature: float, factor: float = 1.0) -> Tensor:
        """a(c) + log factor of queries (A, D): (A, C) float32; of no meaning for an empty cell.

        One product, [z / τ, 1 / 2τ², log factor] by [μ_c, σ_c², 1]. Products of one shape, whatever the number of
        queries, so that a score does not depend on which others share the call.
        """
        dim, right = queries.shape[1], self._right
        left = queries.new_zeros(rounded_up(len(queries), BLOCK), right.shape[1], dtype=torch.float32)
        left[: len(queries), :dim] = queries.detach() / temperature
        left[:, dim], left[:, dim + 1] = 1 / (2 * temperature**2), math.log(factor)
        scores = left.new_empty(len(left), len(right))
        for start in range(0, len(left), BLOCK):
            torch.mm(left[start : start + BLOCK], right.T, out=scores[start : start + BLOCK])
        return scores[: len(queries), : self._cells]
