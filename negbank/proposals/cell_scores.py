"""What a row of a cell weighs on average: log mean_{x ∈ c} exp(z·x / τ), from the cell's mean alone.

The second-order expansion of a cumulant generating function, with the spread within a cell taken as the same in all
of its D directions. The rows are of unit length, so that their mean knows their spread, trace Σ_c = 1 − |μ_c|²:

    a(c) = z·μ_c / τ + ½ σ_c² / τ²,        σ_c² = zᵀΣ_c z ≈ (1 − |μ_c|²) / D

μ_c is the mean as it is. A unit centroid claims for every row of a wide cell the score of a row at its very middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.index import Cells
from negbank.index.contract import exact_scores


class CellScores:
    """The means (C, D) and spreads (C,) of cells over unit rows vectors (N, D)."""

    def __init__(self, vectors: Tensor, cells: Cells) -> None:
        rows = (cells.assignment >= 0).nonzero().flatten()
        sums = vectors.new_zeros(len(cells.sizes), vectors.shape[1]).index_add_(
            0, cells.assignment[rows], vectors[rows]
        )
        self._means = sums / cells.sizes.clamp(min=1)[:, None]
        self._spread = (1 - self._means.square().sum(1)).clamp(min=0).double() / vectors.shape[1]

    def __call__(self, queries: Tensor, temperature: float) -> Tensor:
        """a(c) of queries (A, D): (A, C) float64; of no meaning for an empty cell."""
        every = torch.arange(len(self._means), device=queries.device).expand(len(queries), -1)
        scores = exact_scores(self._means, queries, every)
        return scores.double() / temperature + self._spread / (2 * temperature**2)
