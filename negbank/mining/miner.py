"""Mines parts: independent runs of queries, each searched, scored, compared, chosen from and padded by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.index import Index
from negbank.mining import parts
from negbank.mining.budget import Plan
from negbank.mining.candidates import recall, search_index
from negbank.mining.inputs import Work
from negbank.mining.near import near_rows
from negbank.mining.padding import pad
from negbank.mining.positives import Csr
from negbank.mining.rules import Rules
from negbank.mining.search import NO_ROW, Found, by_score_then_id, dots, search
from negbank.mining.select import Kept, select

SAMPLE = 256
"""Queries on which an index is tuned and its recall measured."""
COMPARED = 64
"""Queries whose candidates are compared with each other at once."""
PAIRS = 4096
"""(query, positive) pairs scored at once."""

Rescore = Callable[[np.ndarray, np.ndarray], Any]
"""(query ids (n,), corpus ids (n,)) → n finite scores."""


def sample_of(count: int, seed: int) -> np.ndarray:
    """Positions of the queries that an index is tuned and measured on, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLE])


class Miner:
    """The work of one run under its rules, an index or none, and the sizes of its plan."""

    def __init__(
        self,
        work: Work,
        rules: Rules,
        bound: float | None,
        rescore: Rescore | None,
        exact: bool,
        index: Index | None,
        sizes: Plan,
        depth: int,
    ) -> None:
        self._work, self._rules, self._bound, self._rescore, self._exact = work, rules, bound, rescore, exact
        self._index, self._sizes, self._depth = index, sizes, depth

    def compact(self, positions: np.ndarray) -> np.ndarray:
        """Positions in four bytes where they fit."""
        return positions.astype(np.int32) if len(self._work.corpus) < 2**31 else positions

    def recall(self, seed: int) -> float:
        """Recall of the index on a sample of the queries."""
        sample = sample_of(len(self._work.query_ids), seed)
        queries = self._work.queries.take(torch.from_numpy(sample))
        return recall(self._search(queries, sample), self._exactly(queries, sample))

    def part(self, start: int, stop: int) -> parts.Part:
        """Everything of queries start..stop−1."""
        work = self._work
        queries = work.queries.block(start, stop)
        found = self._search(queries, np.arange(start, stop))
        positives = work.positives.part(start, stop)
        anchor = np.repeat(np.arange(stop - start), np.diff(positives.indptr))
        if self._rescore is None:
            positive_scores = self._cosines(queries, anchor, positives.values)
        else:
            positive_scores = self._rescored(start + anchor, positives.values)
            found = self._rerank(start, found)
        some = found.positions != NO_ROW
        near = pairs = others = None
        if self._bound is not None:
            near, pairs, others = self._duplicates(found.positions, positives)
        kept = Kept(
            start,
            positives,
            positive_scores,
            Csr(parts.offsets(some.sum(1)), self.compact(found.positions[some])),
            found.scores[some],
            None if near is None else near[some],
            pairs,
            others,
        )
        chosen, random = select(kept, self._rules, work.query_ids, work.corpus_ids), None
        if self._rules.shortfall == "pad_random":
            chosen, random = pad(
                kept, chosen, self._rules, lambda i, j: self._score(queries, start, i, j), work.corpus, work.forbidden,
                work.query_ids, work.corpus_ids, self._bound,
            )  # fmt: skip
        made: dict[str, np.ndarray | None] = {
            "positive_scores": positive_scores,
            "candidate_counts": some.sum(1),
            "candidates": kept.candidates.values,
            "candidate_scores": kept.candidate_scores,
            "near": kept.near,
            "pair_counts": None if pairs is None else np.diff(pairs.indptr),
            "pairs": None if pairs is None else pairs.values,
            "others": others,
            "counts": np.diff(chosen.negatives.indptr),
            "negatives": chosen.negatives.values,
            "scores": chosen.scores,
            "log_probs": chosen.log_probs,
            "random": random,
            "rejects": chosen.rejects,
        }
        return {name: values for name, values in made.items() if values is not None}

    def _search(self, queries: Tensor, numbers: np.ndarray) -> Found:
        work = self._work
        if self._index is None:
            return self._exactly(queries, numbers)
        rows = work.rows if self._index is work.searched else None
        return search_index(queries, numbers, self._index, rows, self._depth, work.forbidden, work.corpus_ids.rank)

    def _exactly(self, queries: Tensor, numbers: np.ndarray) -> Found:
        work = self._work
        return search(
            queries, numbers, work.corpus, self._depth, work.forbidden, work.corpus_ids.rank,
            block_rows=self._sizes.rows, rescored=self._exact,
        )  # fmt: skip

    def _cosines(self, queries: Tensor, anchor: np.ndarray, positions: np.ndarray) -> np.ndarray:
        scores = np.empty(len(anchor), dtype=np.float32)
        for at in range(0, len(anchor), PAIRS):
            own = queries[torch.from_numpy(anchor[at : at + PAIRS]).to(queries.device)]
            scores[at : at + PAIRS] = dots(own, self._work.corpus, positions[at : at + PAIRS, None])[:, 0]
        return scores

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

    def _rerank(self, start: int, found: Found) -> Found:
        """Candidates with the scores of `rescore`, in their order."""
        some = found.positions != NO_ROW
        scores = np.full(found.scores.shape, -np.inf, dtype=np.float32)
        scores[some] = self._rescored(start + np.nonzero(some)[0], found.positions[some])
        return by_score_then_id(Found(found.positions, scores), self._work.corpus_ids.rank)

    def _score(self, queries: Tensor, start: int, query: int, positions: np.ndarray) -> np.ndarray:
        """Scores of one query and some rows."""
        if self._rescore is not None:
            return self._rescored(np.full(len(positions), start + query), positions)
        return dots(queries[query : query + 1], self._work.corpus, positions[None])[0]

    def _duplicates(self, candidates: np.ndarray, positives: Csr) -> tuple[np.ndarray, Csr, np.ndarray]:
        """Candidates near a positive (B, K) bool, and pairs of candidates near each other: CSR of left, and right."""
        assert self._bound is not None
        near = np.zeros(candidates.shape, dtype=bool)
        counts, lefts, rights = np.zeros(len(candidates), dtype=np.int64), [], []
        for at in range(0, len(candidates), COMPARED):
            some = candidates[at : at + COMPARED]
            known = positives.part(at, at + len(some))
            sizes = np.diff(known.indptr)
            if sizes.max(initial=0):
                padded = np.full((len(some), int(sizes.max())), NO_ROW)
                padded[np.arange(padded.shape[1]) < sizes[:, None]] = known.values
                near[at : at + COMPARED] = near_rows(self._work.corpus, some, padded, self._bound).any(2)
            each = near_rows(self._work.corpus, some, some, self._bound)
            row, left, right = np.nonzero(np.triu(each, 1))
            counts[at : at + len(some)] = np.bincount(row, minlength=len(some))
            lefts.append(left.astype(np.int32))
            rights.append(right.astype(np.int32))
        pairs = np.concatenate([np.zeros(0, dtype=np.int32), *lefts])
        return near, Csr(parts.offsets(counts), pairs), np.concatenate([np.zeros(0, dtype=np.int32), *rights])
