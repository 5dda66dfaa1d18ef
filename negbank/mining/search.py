"""Scores, and the k best allowed rows of every query by them, exactly, from rows that are read block by block.

Products of rounded rows, in bfloat16 where the processor multiplies that natively, leave every query a shortlist that
holds its k best; their scores order it. A product p = q̂·ĉ of rounded rows orders rows as the score s = q·c does, up to
2ε (index/shortlist.py). So that the gate can work across blocks, ε is known before the first one: rows of length at
most m, rounded to u of every element, are at most u m away from what they were, and by Cauchy–Schwarz

    |p − s| ≤ |(q − q̂)·c| + |q̂·(c − ĉ)| + 3γ |q| m ≤ ε = m (|q − q̂| + u |q̂| + 3γ |q̂|)

with |q − q̂| as measured, u = 2⁻⁸ of bfloat16, and γ as in index/products.py; rows in float32 are not rounded. Queries
with more rows that are nearly equal than a shortlist has room for are searched again: with products in float32, and at
last by the score of every row. Near-duplicates are rows whose score is high enough.

The score of unit rows q and c, of D float32 numbers each, is their inner product in fixed point, rounded to float32:

    s = 2⁻⁵¹ Σ_d rint(2⁵¹ q_d c_d)        cut to [−1, 1], which rounded unit rows exceed by a few 10⁻⁷

A product of two float32 numbers is exact in float64, and so is every sum of these integers, in any order, as no part of
it exceeds 2⁵¹ |q| |c| < 2⁵³; rint takes less than D 2⁻⁵² away. So a score is the same number on every processor and
device, whatever shares the call, and whichever path led to the row. All that the miner returns, and all that it decides
by ranks, margins, bounds and duplicates, it decides on these numbers.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.index.products import UNIT, UNIT_BFLOAT16, fast_dtype, lengths, rounds_float32
from negbank.index.shortlist import SPAN, Shortlist, shortlist
from negbank.index.threads import OwnThreads, threads_for
from negbank.mining.inputs import Rows
from negbank.mining.rules import Forbidden

LONGEST = 1 + 2.0**-6
"""m: a unit row, stored in float32 or less, and then rounded."""
TILE = 1 << 20
"""Products of a tile, which is to stay in a core's cache."""
TOGETHER = 512
"""Queries multiplied, and ranked, at once by a thread."""
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
        total = (asked * FIXED * own).round().sum(2).clamp(-FIXED, FIXED)
        scores[at : at + step] = total / FIXED + 0.0  # −0.0 becomes 0.0
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
                scores[q, column] = np.int64(min(max(total, -FIXED), FIXED)) / FIXED


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


def half_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively."""
    return fast_dtype(torch.device("cpu")) == torch.bfloat16


def room(k: int, rows: int) -> int:
    """Rows that a shortlist has room for: many are nearly equal where embeddings crowd around one direction."""
    return min(4 * k + 512, rows + SPAN)


def search(
    queries: Tensor,
    numbers: np.ndarray,
    corpus: Rows,
    k: int,
    forbidden: Forbidden,
    rank: np.ndarray | None,
    *,
    block_rows: int,
    rescored: bool = True,
) -> Found:
    """Exact search.

    Args:
        queries: (B, D) unit rows.
        numbers: (B,) their numbers in `forbidden`.
        corpus: N unit rows.
        k: rows wanted; fewer come back where fewer are allowed.
        rank: (N,) place of each row's id, to break ties; None when positions are in the order of ids.
        block_rows: corpus rows read at once.
        rescored: False to return what the products say, with them as scores, unproven.
    """
    k, queries = min(k, len(corpus)), queries.to(corpus.device)
    result, left = Found.nothing(len(queries), k), np.arange(len(queries))

    def settle(run: tuple[np.ndarray, Tensor, Listed]) -> None:
        """Order the shortlists of a run of queries into the result, where they had room."""
        these, asked, listed = run
        positions, products = listed.take()
        scores = scores_of(asked, corpus, positions) if rescored else products
        some = listed.found
        result.put(these[some], Found(positions[some], scores[some]), rank)

    half = corpus.device.type == "cpu" and half_is_fast()
    with OwnThreads(threads_for(len(queries) * len(corpus), corpus.device)) as threads:
        for dtype in (torch.bfloat16, torch.float32) if half else (torch.float32,):
            step = max(1, min(TOGETHER, -(-len(left) // threads.count)))
            runs = [left[at : at + step] for at in range(0, len(left), step)]
            asked = [queries[torch.from_numpy(run).to(queries.device)] for run in runs]
            listed = [Listed(q, numbers[run], k, dtype, forbidden, len(corpus)) for q, run in zip(asked, runs)]
            for start, rows in corpus.blocks(block_rows):
                block = rows.to(dtype)
                threads.run(partial(Listed.see, start=start, rows=block), listed)
            threads.run(settle, zip(runs, asked, listed))
            left = np.concatenate([run[~one.found] for run, one in zip(runs, listed)]) if runs else left
            if not len(left):
                return result
    for start, rows in corpus.blocks(block_rows):  # more equal scores than shortlists hold: every score
        positions, every = np.arange(start, start + len(rows))[None], torch.arange(len(rows), device=rows.device)[None]
        for query in left:
            some = slice(query, query + 1)
            scores = scored(rows, queries[some], every).cpu().numpy()
            free = forbidden.allowed(numbers[some], positions) & (scores >= result.scores[query, -1])
            both = (result.positions[some], positions[free][None]), (result.scores[some], scores[free][None])
            result.put(np.array([query]), Found(*(np.concatenate(two, axis=1) for two in both)), rank)
    return result


class Listed:
    """The shortlists of a few queries among unit rows that are seen block by block, of any number of rows.

    Args:
        queries: (b, D) unit rows.
        numbers: (b,) their numbers in `forbidden`.
        dtype: of the products, torch.bfloat16 (on the CPU) or torch.float32.
        rows: how many there are in all.
    """

    def __init__(
        self, queries: Tensor, numbers: np.ndarray, k: int, dtype: torch.dtype, forbidden: Forbidden, rows: int
    ) -> None:
        self._left, self._mask = queries.to(dtype), forbidden.mask(numbers)
        kept, lost = lengths(self._left.to(torch.float32)), lengths(queries - self._left)
        coarse = 2 * UNIT_BFLOAT16 if dtype == torch.float32 and rounds_float32(queries.device) else 0.0
        away = UNIT_BFLOAT16 if dtype == torch.bfloat16 else coarse
        slack = (
            2 * LONGEST * (lost + (away + 4 * UNIT * (queries.shape[1] + 16)) * kept)
        )  # of the 4 one: scores are cut
        tiled = queries.device.type in Shortlist.devices
        self._list: Shortlist | _Merged = (
            Shortlist(k, slack, dtype, rows, room(k, rows)) if tiled else _Merged(k, slack, rows)
        )
        self._columns = max(1024, TILE // len(queries) // 256 * 256) if tiled else rows
        self._nobody = np.full(len(queries), -1, np.int32)

    def see(self, start: int, rows: Tensor) -> None:
        """Rows start.. in the dtype of the products."""
        space = self._left.new_empty(len(self._left) * min(len(rows), self._columns))
        for at in range(0, len(rows), self._columns):
            columns = rows[at : at + self._columns]
            tile = space[: len(self._left) * len(columns)].view(len(self._left), -1)
            torch.mm(self._left, columns.T, out=tile)
            self._mask(tile, start + at)
            ids = np.arange(start + at, start + at + tile.shape[1], dtype=np.int32)
            self._list.add(slice(None), tile, ids, self._nobody)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (b, w ≥ k), padded by −1, and their products."""
        positions = self._list.take(slice(None))
        return positions.cpu().numpy(), self._list.products(slice(None))

    @property
    def found(self) -> np.ndarray:
        """For which queries (b,) there was room for all, known after `take`."""
        return ~self._list.given_up(slice(None))


class _Merged:
    """A `Shortlist` for other devices, which looks at a whole block of products at once."""

    def __init__(self, k: int, slack: Tensor, columns: int) -> None:
        self._k, self._slack, self._room = k, slack, room(k, columns)
        self._ids = torch.empty(len(slack), 0, dtype=torch.int64, device=slack.device)
        self._products = torch.empty(len(slack), 0, device=slack.device)
        self._given_up = np.zeros(len(slack), dtype=bool)

    def add(self, rows: slice, tile: Tensor, ids: np.ndarray, own: np.ndarray) -> None:
        names = torch.from_numpy(ids.astype(np.int64)).to(tile.device).expand(len(tile), -1)
        both, names = torch.cat((self._products, tile), 1), torch.cat((self._ids, names), 1)
        found = shortlist(both, min(self._k, both.shape[1]), self._slack)
        found = found.masked_fill(found >= both.shape[1], -1)  # its padding, where fewer than k are allowed
        products = both.gather(1, found.clamp(min=0)).masked_fill_(found < 0, -torch.inf)
        counts = (products > -torch.inf).sum(1)  # what is forbidden has −∞, and comes last
        self._given_up |= (counts > self._room).cpu().numpy()
        width = min(self._room, int(counts.max()))
        self._products = products[:, :width]
        self._ids = names.gather(1, found[:, :width].clamp(min=0)).masked_fill_(self._products == -torch.inf, NO_ROW)

    def take(self, rows: slice) -> Tensor:
        return torch.nn.functional.pad(self._ids, (0, max(0, self._k - self._ids.shape[1])), value=NO_ROW)

    def products(self, rows: slice) -> np.ndarray:
        short = max(0, self._k - self._ids.shape[1])
        return np.asarray(torch.nn.functional.pad(self._products, (0, short), value=-torch.inf).cpu())

    def given_up(self, rows: slice) -> np.ndarray:
        return self._given_up
