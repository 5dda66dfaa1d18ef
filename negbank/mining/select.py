"""Negatives of a run of queries from their kept candidates: what mining and `MiningResult.refilter` share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from negbank.mining.ids import Ids
from negbank.mining.positives import Csr
from negbank.mining.rules import NOBODY, REASONS, Rules, Window, draw, pick, reference_scores

CHUNK = 4096
"""Rows chosen for at once."""


class Kept(NamedTuple):
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

    def queries(self, reference: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The query (from 0) of every row of the result, and its positive (an index) where rows are pairs."""
        counts = np.diff(self.positives.indptr)
        if reference != "each":
            return np.arange(len(counts)), None
        return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum())

    def window(self, queries: np.ndarray) -> tuple[Window, np.ndarray]:
        """The candidates of queries (r,) side by side, and their positions (r, K), −1 for padding."""
        start, stop = self.candidates.indptr[queries], self.candidates.indptr[queries + 1]
        width = max(1, int((stop - start).max(initial=0)))
        at = start[:, None] + np.arange(width)
        inside = at < stop[:, None]
        last = max(0, len(self.candidates.values) - 1)
        at = at.clip(max=last)

        def laid(values: np.ndarray, padding: float) -> np.ndarray:
            if not len(values):
                return np.full(at.shape, padding, dtype=values.dtype)
            return np.where(inside, values[at], np.asarray(padding, dtype=values.dtype))

        pairs = None
        if self.pairs is not None and self.others is not None:
            counts = self.pairs.indptr[queries + 1] - self.pairs.indptr[queries]
            row = np.repeat(np.arange(len(queries)), counts)
            place = (
                np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + self.pairs.indptr[queries][row]
            )
            pairs = (row, self.pairs.values[place].astype(np.int64), self.others[place].astype(np.int64))
        near = None if self.near is None else laid(self.near, False)
        return Window(laid(self.candidate_scores, -np.inf), near, pairs), laid(self.candidates.values, -1)


class Selected(NamedTuple):
    """Negatives of every row: positions and float32 scores by (−score, id), log-probabilities or None, rejects (7,)."""

    negatives: Csr
    scores: np.ndarray
    log_probs: np.ndarray | None
    rejects: np.ndarray


def select(kept: Kept, rules: Rules, queries: Ids, corpus: Ids) -> Selected:
    """Apply the rules to every row of `kept`.

    Raises:
        ValueError: for margins where a query has no positive, or, with shortfall="error", too few negatives.
    """
    reference = reference_scores(kept.positives.indptr, kept.positive_scores, rules.positive_reference)
    if rules.margins and np.isnan(reference).any():
        lone = queries.of(kept.first + np.flatnonzero(np.isnan(reference))[:4]).tolist()
        raise ValueError(
            f"absolute_margin/relative_margin: queries {lone} have no positive to measure against; drop these queries, "
            f"or the margins"
        )
    query, positive = kept.queries(rules.positive_reference)
    drawn = rules.sampling_strategy != "top"
    rejects = np.zeros(len(REASONS), dtype=np.int64)
    counts, positions, scores, log_probs = [], [], [], []
    for at in range(0, len(query), CHUNK):
        rows = query[at : at + CHUNK]
        window, candidates = kept.window(rows)
        noise = None
        if drawn:
            mine = None if positive is None else kept.positives.values[positive[at : at + CHUNK]]
            noise = draw(
                rules.seed,
                queries.keys(kept.first + rows),
                np.zeros(len(rows), dtype=np.uint64) if mine is None else corpus.keys(mine),
                corpus.keys(candidates.clip(min=0)),
            )
        found = pick(window, reference[at : at + CHUNK], noise, rules)
        hit = found.columns != NOBODY
        if rules.shortfall == "drop":
            hit &= hit.all(axis=1)[:, None]
        counts.append(hit.sum(1))
        columns = found.columns.clip(min=0)
        positions.append(np.take_along_axis(candidates, columns, 1)[hit])
        scores.append(np.take_along_axis(window.scores, columns, 1)[hit])
        if found.log_probs is not None:
            log_probs.append(found.log_probs[hit].astype(np.float32))
        rejects += found.rejects
    number = _joined(counts, np.int64)
    if rules.shortfall == "error" and (number < rules.num_negatives).any():
        short = np.flatnonzero(number < rules.num_negatives)
        raise ValueError(
            f"shortfall='error': {len(short)} row(s) have fewer than num_negatives={rules.num_negatives}, such as "
            f"queries {queries.of(kept.first + query[short[:4]]).tolist()}; raise range_max, loosen the filters, or "
            f"allow 'short'"
        )
    indptr = np.concatenate(([0], np.cumsum(number)))
    return Selected(
        Csr(indptr, _joined(positions, kept.candidates.values.dtype)),
        _joined(scores, np.float32),
        _joined(log_probs, np.float32) if drawn else None,
        rejects,
    )


def _joined(parts: list[np.ndarray], dtype: np.dtype | type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype=dtype)
