"""What a score is, the order that scores give, and which rows are near-duplicates: rows whose score is high enough.

The score of unit rows q and c, of D float32 numbers each, is their inner product in fixed point, rounded to float32:

    s = 2⁻⁵¹ Σ_d rint(2⁵¹ q_d c_d)

A product of two float32 numbers is exact in float64, and so is every sum of these integers, in any order, as no part of
it exceeds 2⁵¹ |q| |c| < 2⁵³; rint takes less than D 2⁻⁵² away. So a score is the same number on every processor and
device, whatever shares the call, and whichever path led to the row. All that the miner returns, and all that it decides
by ranks, margins, bounds and duplicates, it decides on these numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.index.products import UNIT, UNIT_BFLOAT16, rounds_float32
from negbank.mining.rows import Rows

NO_ROW = -1
EXACT = 1 - 1e-6
"""Cosine from which two rows count as the same: the same text under two ids is embedded to within rounding."""
FIXED = 2.0**51
GATHERED = 1 << 18
"""Numbers gathered at once to score rows: 1 MiB, so that they stay in a core's cache."""


class Found(NamedTuple):
    """positions (B, k) int64 and scores (B, k) float32 by (−score, id), padded by `NO_ROW` and −∞."""

    positions: np.ndarray
    scores: np.ndarray

    @classmethod
    def nothing(cls, queries: int, k: int) -> Found:
        """Padding alone."""
        return cls(np.full((queries, k), NO_ROW, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))

    def put(self, at: np.ndarray, found: Found, rank: np.ndarray | None) -> None:
        """Set rows `at` (b,) to the best of found (b, n ≥ k)."""
        k = self.positions.shape[1]
        best = by_score_then_id(found, rank)
        self.positions[at], self.scores[at] = best.positions[:, :k], best.scores[:, :k]


def by_score_then_id(found: Found, rank: np.ndarray | None) -> Found:
    """Each query's rows in the order of (−score, id), padding last.

    Args:
        rank: (N,) place of each row's id; None when positions are in the order of ids.
    """
    place = found.positions if rank is None else np.where(found.positions == NO_ROW, NO_ROW, rank[found.positions])
    order = np.lexsort((place, -found.scores), axis=1)
    return Found(np.take_along_axis(found.positions, order, 1), np.take_along_axis(found.scores, order, 1))


def scores_of(queries: Tensor, corpus: Rows, positions: np.ndarray) -> np.ndarray:
    """Scores of queries (B, D) and their own rows at positions (B, n): (B, n) float32; `NO_ROW` gives −∞."""
    ids = torch.from_numpy(positions)
    if corpus.resident is not None:
        return scored(corpus.resident, queries, ids.to(corpus.device)).cpu().numpy()
    scores = torch.empty(ids.shape)
    step = max(1, GATHERED // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        rows = corpus.take(part.flatten().clamp(min=0))
        places = torch.arange(len(rows)).view(part.shape).masked_fill(part == NO_ROW, NO_ROW).to(rows.device)
        scores[at : at + step] = scored(rows, queries[at : at + step].to(rows.device), places)
    return scores.numpy()


def scored(rows: Tensor, queries: Tensor, places: Tensor) -> Tensor:
    """Scores of queries (B, D) and their own of some unit rows (n, D), at places (B, k): (B, k) float32.

    `NO_ROW` gives −∞.
    """
    if rows.device.type != "cpu":
        return summed(rows, queries, places)
    scores = torch.empty(places.shape)
    _sum(*(t.detach().contiguous().numpy() for t in (rows, queries, places, scores)))
    return scores.masked_fill_(places == NO_ROW, -torch.inf)


def summed(rows: Tensor, queries: Tensor, places: Tensor) -> Tensor:
    """`scored`, on any device."""
    scores = torch.empty(places.shape, device=rows.device)
    step = max(1, 4 * GATHERED // max(1, places.shape[1] * rows.shape[1]))
    for at in range(0, len(places), step):
        own, asked = rows[places[at : at + step].clamp(min=0)].double(), queries[at : at + step, None].double()
        scores[at : at + step] = (asked * FIXED * own).round().sum(2) / FIXED + 0.0  # −0.0 becomes 0.0
    return scores.masked_fill_(places == NO_ROW, -torch.inf)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _sum(rows: np.ndarray, queries: np.ndarray, places: np.ndarray, scores: np.ndarray) -> None:
    """Four rows at once, which halves the time; where fewer are left, the last again."""
    query, last = np.empty(rows.shape[1]), places.shape[1] - 1
    for q in range(places.shape[0]):
        for d in range(len(query)):
            query[d] = queries[q, d] * FIXED
        for c in range(0, places.shape[1], 4):
            c1, c2, c3 = min(c + 1, last), min(c + 2, last), min(c + 3, last)
            r0, r1 = rows[max(places[q, c], 0)], rows[max(places[q, c1], 0)]
            r2, r3 = rows[max(places[q, c2], 0)], rows[max(places[q, c3], 0)]
            s0 = s1 = s2 = s3 = 0.0
            for d in range(len(query)):
                s0 += np.rint(query[d] * r0[d])
                s1 += np.rint(query[d] * r1[d])
                s2 += np.rint(query[d] * r2[d])
                s3 += np.rint(query[d] * r3[d])
            for column, total in ((c, s0), (c1, s1), (c2, s2), (c3, s3)):
                scores[q, column] = np.int64(total) / FIXED


def near_rows(corpus: Rows, left: np.ndarray, right: np.ndarray, bound: float) -> np.ndarray:
    """Whether rows at left (b, m) and right (b, n) score `bound` or more: (b, m, n) bool; `NO_ROW` never does.

    Batched products say so, except for those that rounding, by γ as in index/products.py, could put on either side of
    the bound.
    """
    ours, theirs = (corpus.take(torch.from_numpy(positions.clip(min=0))) for positions in (left, right))
    similarity = torch.bmm(ours, theirs.transpose(1, 2)).cpu().numpy()
    found = similarity >= bound
    doubt = 2 * UNIT * (corpus.dim + 16) + (3 * UNIT_BFLOAT16 if rounds_float32(corpus.device) else 0.0)
    b, i, j = np.nonzero(np.abs(similarity - bound) <= doubt)
    if len(b):
        place = [torch.from_numpy(at).to(ours.device) for at in (b, i, j)]
        each = torch.arange(len(b), device=ours.device)[:, None]
        exact = scored(theirs[place[0], place[2]], ours[place[0], place[1]], each)[:, 0]
        found[b, i, j] = exact.cpu().numpy() >= np.float32(bound)
    return found & (left != NO_ROW)[:, :, None] & (right != NO_ROW)[:, None, :]
