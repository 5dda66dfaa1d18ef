"""Uniform over the allowed rows: q_i(j) = 1 / |D_i|. It needs nothing; the others are judged by it."""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.proposals.contract import Anchors, of_anchors
from negbank.snapshot import Snapshot


class Uniform:
    """The uniform proposal of EMC² (Yau et al. 2024).

    Args:
        snapshot: gives the number of rows; None with `exclude`, before there is a first snapshot.
        exclude: what may not be drawn; the anchor's own row by default.

    Raises:
        ValueError: when neither is given.
    """

    def __init__(self, snapshot: Snapshot | None = None, *, exclude: Exclusions | None = None) -> None:
        if exclude is None:
            if snapshot is None:
                raise ValueError("snapshot=None: give a snapshot, or `exclude` for the number of rows")
            exclude = snapshot.exclude_self
        self._exclude = exclude

    def __call__(self, anchors: Anchors) -> UniformDistribution:
        return UniformDistribution(anchors.rows, self._exclude.to(anchors.rows.device))


class UniformDistribution:
    """q_i(j) = 1 / |D_i| for anchors of rows (A,)."""

    def __init__(self, rows: Tensor, exclude: Exclusions) -> None:
        self._rows, self._exclude = rows, exclude

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `ProposalDistribution.sample`."""
        return self._exclude.uniform(self._rows, n, generator=generator)

    def log_prob(self, ids: Tensor) -> Tensor:
        """See `ProposalDistribution.log_prob`."""
        log_q = -self._exclude.count(self._rows).double().log()[:, None]
        return torch.where(self._exclude.allowed(self._rows, ids), log_q, -torch.inf)

    def __getitem__(self, anchors: slice) -> UniformDistribution:
        """See `ProposalDistribution.__getitem__`."""
        return of_anchors(self, anchors, "_rows")
