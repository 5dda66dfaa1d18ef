"""The candidates of a run of queries: the best rows of D_i, by exact search or an index, and what is known of them.

An index knows nothing of D_i, so more is fetched than is wanted, and twice as much for queries that are left short.
Queries go to the index in runs that start at multiples of `RUN`: what shares a call could tip a tie between two cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.index import FaissIndex, Index
from negbank.mining.budget import Plan
from negbank.mining.inputs import Work
from negbank.mining.rules import Csr, Window, csr, offsets
from negbank.mining.search import NO_ROW, Found, by_score_then_id, near_rows, scores_of, search

RUN = 256
SAMPLE = 256
"""Queries on which an index is tuned and its recall measured."""
TARGET_RECALL = 0.99
COMPARED = 64
"""Queries whose candidates are compared with each other at once."""
PAIRS = 4096
"""(query, positive) pairs scored at once."""

Rescore = Callable[[np.ndarray, np.ndarray], Any]
"""(query ids (n,), corpus ids (n,)) → n finite scores."""


class Candidates(NamedTuple):
    """Everything known of queries first.. after the search: rows are queries, values positions in the corpus.

    positives, positive_scores: known positives in the order given.
    candidates, candidate_scores: the best of D_i by (−score, id).
    near: near-duplicates of a positive among the candidates, bool, or None.
    pairs, others: columns of candidates that are near-duplicates of each other, left and right, or None.
    """

    first: int
    positives: Csr
    positive_scores: np.ndarray
    candidates: Csr
    candidate_scores: np.ndarray
    near: np.ndarray | None = None
    pairs: Csr | None = None
    others: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What a result holds of them, beside the positives."""
        every = {
            "positive_scores": self.positive_scores,
            "candidate_indptr": self.candidates.indptr,
            "candidates": self.candidates.values,
            "candidate_scores": self.candidate_scores,
            "near": self.near,
            "pair_indptr": None if self.pairs is None else self.pairs.indptr,
            "pairs": None if self.pairs is None else self.pairs.values,
            "others": self.others,
        }
        return {name: values for name, values in every.items() if values is not None}

    def queries(self, reference: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The query (from 0) of every row of the result, and its positive (an index) where rows are pairs."""
        if reference != "each":
            return np.arange(len(self.positives.counts)), None
        return self.positives.rows, np.arange(len(self.positives.values))

    def window(self, queries: np.ndarray) -> tuple[Window, np.ndarray]:
        """The candidates of queries (r,) side by side, and their positions (r, K), `NO_ROW` for padding."""
        start, stop = self.candidates.indptr[queries], self.candidates.indptr[queries + 1]
        at = start[:, None] + np.arange(max(1, int((stop - start).max(initial=0))))
        inside = at < stop[:, None]
        at = at.clip(max=max(0, len(self.candidates.values) - 1))

        def laid(values: np.ndarray, padding: float) -> np.ndarray:
            if not len(values):
                return np.full(at.shape, padding, dtype=values.dtype)
            return np.where(inside, values[at], np.asarray(padding, dtype=values.dtype))

        pairs = None
        if self.pairs is not None and self.others is not None:
            row, place = self.pairs.places(queries)
            pairs = (row, self.pairs.values[place].astype(np.int64), self.others[place].astype(np.int64))
        near = None if self.near is None else laid(self.near, False)
        return Window(laid(self.candidate_scores, -np.inf), near, pairs), laid(self.candidates.values, NO_ROW)


class Finder:
    """Finds candidates.

    Args:
        index: what is searched; None for exact search.
        depth: candidates a query.
        bound: the score from which rows are near-duplicates; None when only ids count.
        rescore: replaces the scores of candidates and positives.
        exact: whether exact search scores candidates again, from the rows.
        identical: the score from which rows are the query itself, and no candidates; None when only ids count.
        sizes: corpus rows read at once.
    """

    def __init__(
        self, work: Work, index: Index | None, depth: int, bound: float | None, rescore: Rescore | None, exact: bool,
        identical: float | None, sizes: Plan,
    ) -> None:  # fmt: skip
        self._work, self._index, self._depth, self._exact = work, index, depth, exact
        self.bound, self.identical, self._rescore, self._sizes = bound, identical, rescore, sizes

    def candidates(self, start: int, stop: int) -> Candidates:
        """Those of queries start..stop−1."""
        work = self._work
        queries, positives = work.queries.block(start, stop), work.positives.part(start, stop)
        found = self._others(queries, np.arange(start, stop))
        if self._rescore is None:
            positive_scores = np.empty(len(positives.values), dtype=np.float32)
            for at in range(0, len(positives.values), PAIRS):
                own = queries[torch.from_numpy(positives.rows[at : at + PAIRS]).to(queries.device)]
                positive_scores[at : at + PAIRS] = scores_of(own, work.corpus, positives.values[at : at + PAIRS, None])[
                    :, 0
                ]
        else:
            positive_scores = self._rescored(start + positives.rows, positives.values)
            row, column = np.nonzero(found.positions != NO_ROW)
            scores = np.full(found.scores.shape, -np.inf, dtype=np.float32)
            scores[row, column] = self._rescored(start + row, found.positions[row, column])
            found = by_score_then_id(Found(found.positions, scores), work.corpus_ids.rank)
        some = found.positions != NO_ROW
        near = pairs = others = None
        if self.bound is not None:
            near, pairs, others = self._duplicates(found.positions, self.alike(start, stop), self.bound)
        listed = Csr(offsets(some.sum(1)), self.compact(found.positions[some]))
        return Candidates(
            start, positives, positive_scores, listed, found.scores[some], None if near is None else near[some], pairs,
            others,
        )  # fmt: skip

    def _others(self, queries: Tensor, numbers: np.ndarray) -> Found:
        """The best rows of D_i that are not the query itself, which come first: as many more are looked for."""
        wide, left = self._depth, np.arange(len(queries))
        result = found = self._search(queries, numbers, wide)
        while self.identical is not None and len(left):
            own = found.scores >= self.identical
            others = Found(np.where(own, NO_ROW, found.positions), np.where(own, np.float32(-np.inf), found.scores))
            result.put(left, others, self._work.corpus_ids.rank)
            short = own.sum(1) > wide - self._depth
            if not short.any() or wide >= len(self._work.corpus):
                break
            left, wide = left[short], min(len(self._work.corpus), self._depth + int(own.sum(1).max()))
            found = self._search(queries[torch.from_numpy(left).to(queries.device)], numbers[left], wide)
        return result

    def score(self, query: int, positions: np.ndarray) -> np.ndarray:
        """Scores (n,) of one query and rows at positions (n,)."""
        if self._rescore is not None:
            return self._rescored(np.full(len(positions), query), positions)
        return scores_of(self._work.queries.block(query, query + 1), self._work.corpus, positions[None])[0]

    def alike(self, start: int, stop: int) -> Csr:
        """What candidates of queries start..stop−1 may not be near: positives and, within the corpus, the own row."""
        known = self._work.positives.part(start, stop)
        if not self._work.within:
            return known
        own = np.arange(start, stop)
        return csr(np.append(known.rows, own - start), np.append(known.values, own), stop - start)

    def is_other(self, query: int, positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Whether rows at positions (n,) with these scores are not a query itself: (n,) bool."""
        if self.identical is None:
            return np.ones(len(positions), dtype=bool)
        if self._rescore is not None:
            scores = scores_of(self._work.queries.block(query, query + 1), self._work.corpus, positions[None])[0]
        return scores < self.identical

    def near(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether rows at left (m,) are near-duplicates of any of right (n,): (m,) bool."""
        if self.bound is None or not left.size or not right.size:
            return np.zeros(left.shape, dtype=bool)
        return near_rows(self._work.corpus, left[None], right[None], self.bound)[0].any(1)

    def compact(self, positions: np.ndarray) -> np.ndarray:
        """Positions in four bytes where they fit."""
        return positions.astype(np.int32) if len(self._work.corpus) < 2**31 else positions

    def recall(self, seed: int) -> float | None:
        """Share of the exact candidates that the index finds, on a sample of the queries; None for exact search."""
        if self._index is None:
            return None
        sample = sample_of(len(self._work.query_ids), seed)
        queries = self._work.queries.take(torch.from_numpy(sample))
        found, truth = self._search(queries, sample, self._depth), self._exactly(queries, sample, self._depth)
        hits = (truth.positions[:, :, None] == found.positions[:, None, :]).any(2) & (truth.positions != NO_ROW)
        return float(hits.sum() / max(1, (truth.positions != NO_ROW).sum()))

    def _exactly(self, queries: Tensor, numbers: np.ndarray, depth: int) -> Found:
        work = self._work
        return search(
            queries, numbers, work.corpus, depth, work.forbidden, work.corpus_ids.rank,
            block_rows=self._sizes.rows, rescored=self._exact,
        )  # fmt: skip

    def _search(self, queries: Tensor, numbers: np.ndarray, depth: int) -> Found:
        if self._index is None:
            return self._exactly(queries, numbers, depth)
        work, index = self._work, self._index
        k = min(depth, len(index))
        result = Found.nothing(len(queries), k)
        for at in range(0, len(queries), RUN):
            run = np.arange(at, min(at + RUN, len(queries)))
            wide = min(len(index), k + work.forbidden.most(numbers[run]), 2 * k + 64)
            while len(run):
                asked = queries[torch.from_numpy(run).to(queries.device)]
                positions = index.search(asked, wide).ids.cpu().numpy()
                if index is work.searched and work.rows is not None:
                    positions = np.searchsorted(work.rows, positions)
                free = work.forbidden.allowed(numbers[run], positions)
                positions = np.where(free, positions, NO_ROW)
                result.put(run, Found(positions, scores_of(asked, work.corpus, positions)), work.corpus_ids.rank)
                run = run[free.sum(1) < k] if wide < len(index) else run[:0]
                wide = min(len(index), 2 * wide)
        return result

    def _rescored(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """What `rescore` says of pairs of positions."""
        assert self._rescore is not None
        if not len(positions):
            return np.zeros(0, dtype=np.float32)
        given = self._rescore(self._work.query_ids.of(queries), self._work.corpus_ids.of(positions))
        scores = np.asarray(given.cpu() if isinstance(given, Tensor) else given, dtype=np.float32)
        if scores.shape != positions.shape or not np.isfinite(scores).all():
            raise ValueError(
                f"rescore: gave scores of shape {scores.shape} for {len(positions)} pairs, "
                f"{int((~np.isfinite(scores)).sum())} of them not finite; return one finite score a pair"
            )
        return scores

    def _duplicates(self, candidates: np.ndarray, positives: Csr, bound: float) -> tuple[np.ndarray, Csr, np.ndarray]:
        """Candidates near a positive (B, K) bool, and pairs of candidates near each other: CSR of left, and right."""
        near = np.zeros(candidates.shape, dtype=bool)
        pairs = [np.zeros((3, 0), dtype=np.int64)]  # row, left, right
        for at in range(0, len(candidates), COMPARED):
            some = candidates[at : at + COMPARED]
            known = positives.part(at, at + len(some))
            width = int(known.counts.max(initial=0))
            if width:
                padded = np.full((len(some), width), NO_ROW)
                padded[np.arange(width) < known.counts[:, None]] = known.values
                near[at : at + COMPARED] = near_rows(self._work.corpus, some, padded, bound).any(2)
            each = near_rows(self._work.corpus, some, some, bound)
            row, left, right = np.nonzero(np.triu(each, 1))
            pairs.append(np.stack((at + row, left, right)))
        rows, lefts, rights = np.concatenate(pairs, axis=1)
        counts = np.bincount(rows, minlength=len(candidates))
        return near, Csr(offsets(counts), lefts.astype(np.int32)), rights.astype(np.int32)


def sample_of(count: int, seed: int) -> np.ndarray:
    """Positions of the queries that an index is tuned and measured on, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLE])


def build_index(factory: str, work: Work, depth: int, seed: int) -> Index | None:
    """An index over the corpus, tuned on a sample of the queries: they may lie unlike the rows. None if it is flat."""
    corpus, forbidden = work.corpus, work.forbidden.most(np.arange(len(work.query_ids)))
    corpus.settle(len(corpus) * corpus.dim * 4)
    built = FaissIndex(
        corpus.block(0, len(corpus)), factory=factory, target_recall=TARGET_RECALL, recall_at=depth, seed=seed
    )
    if built.report.factory == "Flat":
        return None
    queries = work.queries.take(torch.from_numpy(sample_of(len(work.query_ids), seed)))
    built.tune(queries, min(2 * depth, depth + forbidden), TARGET_RECALL)
    return built
