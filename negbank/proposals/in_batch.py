"""Uniform over the rows of one batch that an anchor may be contrasted with:

    q_i(j) = 1 / |B ∩ D_i|,    j ∈ B ∩ D_i

This is the law *given the batch*, and its support is the batch: it fits estimators over the batch, or a `Mixture`
whose other part reaches the rest of D_i. A chain over D_i may not use this density across batches. Over the draw of a
uniform batch each of its rows is uniform over D_i, which is why EMC² takes in-batch steps with the constant ratio of
`Uniform`, and why they are wrong under batches that are not uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.counter import uniforms
from negbank.exclusions import Exclusions
from negbank.proposals.contract import Anchors


class InBatch:
    """Uniform over the allowed rows of a batch.

    Args:
        batch_rows: (B,) ids of the batch; a row that is there twice counts once.
        exclude: what may not be drawn, over the rows of the whole bank.

    Raises:
        ValueError: for an empty batch or ids outside 0..N−1; at a call, for anchors without an allowed row in it.
    """

    def __init__(self, batch_rows: Tensor, *, exclude: Exclusions) -> None:
        if not len(batch_rows) or int(batch_rows.min()) < 0 or int(batch_rows.max()) >= exclude.num_rows:
            raise ValueError(f"batch_rows: {len(batch_rows)} ids, expected at least one, in 0..{exclude.num_rows - 1}")
        self._batch = batch_rows.unique()
        self._exclude = exclude.to(batch_rows.device)

    def __call__(self, anchors: Anchors) -> InBatchDistribution:
        allowed = self._exclude.allowed(anchors.rows, self._batch.expand(len(anchors.rows), -1))
        short = anchors.rows[~allowed.any(1)]
        if len(short):
            raise ValueError(
                f"batch_rows: none of them is allowed for anchors {short.tolist()[:8]}; use a larger batch"
            )
        return InBatchDistribution(self._batch, allowed)


class InBatchDistribution:
    """Uniform over the rows batch (B,), ascending, that are allowed (A, B)."""

    def __init__(self, batch: Tensor, allowed: Tensor) -> None:
        self._batch, self._allowed = batch, allowed
        self._count = allowed.sum(1)[:, None]

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `ProposalDistribution.sample`."""
        shape, device = (len(self._allowed), n), self._batch.device
        draws = uniforms(shape, generator=generator, device=device)
        at = (draws * self._count).long()
        return self._batch[torch.searchsorted(self._allowed.cumsum(1), at, right=True)]

    def log_prob(self, ids: Tensor) -> Tensor:
        """log 1 / |B ∩ D_i| for ids (A, n) in B ∩ D_i: (A, n) float64, −∞ elsewhere."""
        at = torch.searchsorted(self._batch, ids.contiguous()).clamp(max=len(self._batch) - 1)
        inside = (self._batch[at] == ids) & self._allowed.gather(1, at)
        return torch.where(inside, -self._count.double().log(), -torch.inf)
