"""Random negatives for rows that came out short: shortfall="pad_random".

Rows of D_i that are not among the candidates are tried in a random order, a hash of the seed and the query; those are
taken that pass the filters other than ranks and `min_score`, until the row is full or nothing is left to try.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from negbank.mining.forbidden import Forbidden
from negbank.mining.ids import Ids
from negbank.mining.near import near_rows
from negbank.mining.positives import Csr
from negbank.mining.rows import Rows
from negbank.mining.rules import Rules, Window, draw, reference_scores, verdicts
from negbank.mining.search import Found, by_score_then_id
from negbank.mining.select import Kept, Selected

ORDERED = 4096
"""Corpora up to this size are tried whole; from larger ones a number of rows is drawn."""
Score = Callable[[int, np.ndarray], np.ndarray]
"""(query from 0, positions) → float32 scores."""


def pad(
    kept: Kept,
    selected: Selected,
    rules: Rules,
    score: Score,
    corpus: Rows,
    forbidden: Forbidden,
    queries: Ids,
    ids: Ids,
    bound: float | None,
) -> tuple[Selected, np.ndarray]:
    """The selection with short rows filled, and which of its negatives are random: (M,) bool."""
    query, positive = kept.queries(rules.positive_reference)
    reference = reference_scores(kept.positives.indptr, kept.positive_scores, rules.positive_reference)
    counts = np.diff(selected.negatives.indptr)
    indptr = selected.negatives.indptr
    values, scores, random, log_probs = [], [], [], []
    done = 0
    for row in np.flatnonzero(counts < rules.num_negatives).tolist():
        at, stop = int(indptr[row]), int(indptr[row + 1])
        own = int(query[row])
        pool = _pool(kept, own, -1 if positive is None else int(positive[row]), rules, corpus, forbidden, queries, ids)
        taken = selected.negatives.values[at:stop].astype(np.int64)
        extra, gained = _fill(kept, own, pool, taken, reference[row], rules, score, corpus, bound)
        both = Found(
            np.concatenate((taken, extra))[None],
            np.concatenate((selected.scores[at:stop], gained)).astype(np.float32)[None],
        )
        ordered = by_score_then_id(both, ids.rank)
        values += [selected.negatives.values[done:at], ordered.positions[0]]
        scores += [selected.scores[done:at], ordered.scores[0]]
        random += [np.zeros(at - done, dtype=bool), np.isin(ordered.positions[0], extra)]
        if selected.log_probs is not None:
            known = dict(zip(taken.tolist(), selected.log_probs[at:stop].tolist()))
            filled = [known.get(j, np.nan) for j in ordered.positions[0].tolist()]
            log_probs += [selected.log_probs[done:at], np.array(filled, dtype=np.float32)]
        counts[row] += len(extra)
        done = stop
    dtype = selected.negatives.values.dtype
    values.append(selected.negatives.values[done:])
    scores.append(selected.scores[done:])
    random.append(np.zeros(len(selected.scores) - done, dtype=bool))
    if selected.log_probs is not None:
        log_probs.append(selected.log_probs[done:])
    filled_rows = Selected(
        Csr(np.concatenate(([0], np.cumsum(counts))), np.concatenate(values).astype(dtype)),
        np.concatenate(scores).astype(np.float32),
        None if selected.log_probs is None else np.concatenate(log_probs).astype(np.float32),
        selected.rejects,
    )
    return filled_rows, np.concatenate(random)


def _pool(
    kept: Kept, own: int, positive: int, rules: Rules, corpus: Rows, forbidden: Forbidden, queries: Ids, ids: Ids
) -> np.ndarray:
    """Rows of D_i outside the candidates, in the random order of this query."""
    number = np.array([kept.first + own])
    pair = np.zeros(1, dtype=np.uint64) if positive < 0 else ids.keys(kept.positives.values[positive : positive + 1])
    tried = np.arange(min(len(corpus), ORDERED))
    keys = ids.keys(tried) if len(corpus) <= ORDERED else tried.astype(np.uint64)
    # Another stream of the same hash than the one that chooses among candidates.
    noise = draw(rules.seed + 1, queries.keys(number), pair, keys[None])[0]
    order = np.argsort(noise, kind="stable") if len(corpus) <= ORDERED else (noise * len(corpus)).astype(np.int64)
    _, first = np.unique(order, return_index=True)
    order = order[np.sort(first)]
    window = kept.candidates.values[kept.candidates.indptr[own] : kept.candidates.indptr[own + 1]]
    free = forbidden.allowed(number, order[None])[0] & ~np.isin(order, window)
    return order[free]


def _fill(
    kept: Kept,
    own: int,
    pool: np.ndarray,
    taken: np.ndarray,
    reference: float,
    rules: Rules,
    score: Score,
    corpus: Rows,
    bound: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of the pool that pass, as many as the row lacks, and their scores."""
    missing = rules.num_negatives - len(taken)
    found: list[int] = []
    gained: list[float] = []
    step = 4 * missing + 16
    known = kept.positives.values[kept.positives.indptr[own] : kept.positives.indptr[own + 1]]
    for at in range(0, len(pool), step):
        tried = pool[at : at + step]
        scores = score(own, tried)
        near = None
        if bound is not None and len(known):
            near = near_rows(corpus, tried[None], known[None], bound)[0].any(1)[None]
        free = verdicts(Window(scores[None], near), np.array([reference]), rules, bounds=False)[0] == 0
        for j, value, open_ in zip(tried.tolist(), scores.tolist(), free.tolist()):
            rivals = np.concatenate((taken, np.array(found, dtype=np.int64)))[None]
            if open_ and not (
                bound is not None and rivals.size and near_rows(corpus, np.array([[j]]), rivals, bound).any()
            ):
                found.append(j)
                gained.append(value)
                if len(found) == missing:
                    return np.array(found), np.array(gained, dtype=np.float32)
    return np.array(found, dtype=np.int64), np.array(gained, dtype=np.float32)
