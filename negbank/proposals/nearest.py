"""The softmax over an anchor's nearest bank rows, with a uniform floor λ:

    q_i(j) = λ / |D_i| + (1 − λ) · softmax_{j ∈ T_i}(s̃_ij / τ),    T_i: the top k of the index within D_i

s̃ are the bank's similarities. Whether j lies in T_i is asked of the ids that the search returned, never of a score
threshold: an approximate search misses rows, and the density must say what is drawn, not what should have been.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from negbank.bounds import Count, Gt, Le, Supplied, checked
from negbank.counter import uniforms
from negbank.exclusions import Exclusions
from negbank.proposals.adapt import Probe, tune
from negbank.proposals.contract import Anchors, by_id, check_head, of_anchors, search_allowed
from negbank.snapshot import Snapshot


class Nearest:
    """Top-k softmax with a uniform floor.

    Args:
        snapshot: whose index is searched.
        k: rows retrieved for an anchor, at most; fewer where exclusions or an unfinished bank leave fewer.
        temperature: of the softmax, τ; the loss's own where a run does not say.
        floor: share of uniform draws, λ, without which rows outside the top k are never reached.
        adapt: fit temperature and floor to measured staleness, once there is a probe; `temperature` is then the
            target's.
        probe: that measurement (probe.py, adapt.py).
        exclude: what may not be drawn; the anchor's own row by default.

    Raises:
        ValueError: for a k outside 1..N−1, and for a temperature or floor out of bounds.
    """

    @checked
    def __init__(
        self,
        snapshot: Snapshot,
        k: Count = 64,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")] = 0.07,
        floor: Annotated[float, Gt(0), Le(1)] = 0.3,
        *,
        adapt: bool = False,
        probe: Probe | None = None,
        exclude: Exclusions | None = None,
    ) -> None:
        check_head(k, len(snapshot))
        self._index, self._k, self.temperature, self.floor = snapshot.index, k, temperature, floor
        self._exclude = snapshot.excluded(exclude)
        if adapt:
            tune(self, probe)

    def __call__(self, anchors: Anchors) -> NearestDistribution:
        exclude = self._exclude
        found, head = search_allowed(self._index, exclude, anchors, self._k)
        logits = torch.where(head, found.scores.double() / self.temperature, -torch.inf)
        return NearestDistribution(anchors.rows, found.ids, logits, self.floor, exclude)


class NearestDistribution:
    """λ / |D_i| + (1 − λ) softmax(logits) on head ids (A, k); logits of −∞ are no part of the head."""

    def __init__(self, rows: Tensor, head: Tensor, logits: Tensor, floor: float, exclude: Exclusions) -> None:
        self._rows, self._exclude = rows, exclude
        self._head, order = by_id(head)
        logits = logits.gather(1, order)
        empty = (logits == -torch.inf).all(1)
        self._floor = torch.where(empty, 1.0, floor).double()[:, None]
        self._base = self._floor / exclude.count(rows)[:, None]
        self._probs = torch.softmax(logits, 1).nan_to_num(0.0)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `ProposalDistribution.sample`."""
        shape, device = (len(self._rows), n), self._rows.device
        coin = uniforms(shape, generator=generator, device=device)
        point = uniforms(shape, generator=generator, device=device)
        below = self._exclude.uniform(self._rows, n, generator=generator)
        cumulative = self._probs.cumsum(1)
        at = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)
        at = at.clamp(max=self._head.shape[1] - 1)
        rounded = self._probs.gather(1, at) == 0  # a point rounded up to the last sum, one in 2^53
        return torch.where((coin < self._floor) | rounded, below, self._head.gather(1, at))

    def log_prob(self, ids: Tensor) -> Tensor:
        """See `ProposalDistribution.log_prob`."""
        at = torch.searchsorted(self._head, ids.contiguous()).clamp(max=self._head.shape[1] - 1)
        head = torch.where(self._head.gather(1, at) == ids, self._probs.gather(1, at), 0.0)
        q = self._base + (1 - self._floor) * head
        return torch.where(self._exclude.allowed(self._rows, ids), q.log(), -torch.inf)

    def __getitem__(self, anchors: slice) -> NearestDistribution:
        """See `ProposalDistribution.__getitem__`."""
        return of_anchors(self, anchors, "_rows", "_head", "_floor", "_base", "_probs")
