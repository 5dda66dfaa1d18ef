"""Negatives of a run of queries from their candidates: what mining and `MiningResult.refilter` share; and random ones
for rows that came out short, shortfall="pad_random".

For these, rows of D_i that are not among the candidates are tried in a random order, a hash of the seed and the query;
those are taken that pass the filters other than ranks and `min_score`, until the row is full or nothing is left to try.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from negbank.links import Ids
from negbank.mining.candidates import Candidates, Finder
from negbank.mining.inputs import Work
from negbank.mining.rules import NOBODY, REASONS, Csr, Rules, Window, draw, offsets, pick, reference_scores, verdicts

CHUNK = 4096
"""Rows chosen for at once."""
ORDERED = 4096
"""Corpora up to this size are tried whole; from larger ones a number of rows is drawn."""


class Choice(NamedTuple):
    """Negatives of every row: positions and float32 scores by (−score, id), and how they came to be chosen.

    log_probs: of the proposal they were drawn from, NaN for padding, or None; rejects: (7,) candidates, by `REASONS`;
    random: which are padding, bool, or None.
    """

    negatives: Csr
    scores: np.ndarray
    log_probs: np.ndarray | None
    rejects: np.ndarray
    random: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What a result holds of it."""
        every = {
            "indptr": self.negatives.indptr,
            "negatives": self.negatives.values,
            "scores": self.scores,
            "log_probs": self.log_probs,
            "random": self.random,
        }
        return {name: values for name, values in every.items() if values is not None}


def choose(known: Candidates, rules: Rules, queries: Ids, corpus: Ids) -> Choice:
    """Apply the rules to every row.

    Raises:
        ValueError: for margins where a query has no positive, or, with shortfall="error", too few negatives.
    """
    reference = reference_scores(known.positives.indptr, known.positive_scores, rules.positive_reference)
    if rules.margins and np.isnan(reference).any():
        lone = queries.of(known.first + np.flatnonzero(np.isnan(reference))[:4]).tolist()
        raise ValueError(
            f"absolute_margin/relative_margin: queries {lone} have no positive to measure against; drop these queries, "
            f"or the margins"
        )
    query, positive = known.queries(rules.positive_reference)
    drawn = rules.sampling_strategy != "top"
    rejects = np.zeros(len(REASONS), dtype=np.int64)
    counts, positions = [np.zeros(0, np.int64)], [np.zeros(0, known.candidates.values.dtype)]
    scores, log_probs = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for at in range(0, len(query), CHUNK):
        rows = query[at : at + CHUNK]
        window, candidates = known.window(rows)
        noise = None
        if drawn:
            mine = None if positive is None else known.positives.values[positive[at : at + CHUNK]]
            noise = draw(
                rules.seed,
                queries.keys(known.first + rows),
                np.zeros(len(rows), dtype=np.uint64) if mine is None else corpus.keys(mine),
                corpus.keys(candidates.clip(min=0)),
            )
        found = pick(window, reference[at : at + CHUNK], noise, rules)
        hit = found.columns != NOBODY
        if rules.shortfall == "drop":
            hit &= hit.all(axis=1)[:, None]
        columns = found.columns.clip(min=0)
        counts.append(hit.sum(1))
        positions.append(np.take_along_axis(candidates, columns, 1)[hit])
        scores.append(np.take_along_axis(window.scores, columns, 1)[hit])
        if found.log_probs is not None:
            log_probs.append(found.log_probs[hit].astype(np.float32))
        rejects += found.rejects
    number = np.concatenate(counts)
    if rules.shortfall == "error" and (number < rules.num_negatives).any():
        short = np.flatnonzero(number < rules.num_negatives)
        raise ValueError(
            f"shortfall='error': {len(short)} row(s) have fewer than num_negatives={rules.num_negatives}, such as "
            f"queries {queries.of(known.first + query[short[:4]]).tolist()}; raise range_max, loosen the filters, or "
            f"allow 'short'"
        )
    return Choice(
        Csr(offsets(number), np.concatenate(positions)), np.concatenate(scores),
        np.concatenate(log_probs) if drawn else None, rejects,
    )  # fmt: skip


def padded(chosen: Choice, known: Candidates, rules: Rules, finder: Finder, work: Work) -> Choice:
    """The choice with short rows filled."""
    query, positive = known.queries(rules.positive_reference)
    reference = reference_scores(known.positives.indptr, known.positive_scores, rules.positive_reference)
    row, place = chosen.negatives.rows, chosen.negatives.values
    rows, places, scores = [row], [place], [chosen.scores]
    for short in np.flatnonzero(chosen.negatives.counts < rules.num_negatives).tolist():
        own, taken = int(query[short]), place[chosen.negatives.indptr[short] : chosen.negatives.indptr[short + 1]]
        pair = None if positive is None else known.positives.values[positive[short : short + 1]]
        order = _order(known, own, pair, rules.seed + 1, work)  # not the hash that chooses among candidates
        extra, gained = _fill(known, own, order, taken.astype(np.int64), reference[short], rules, finder)
        rows.append(np.full(len(extra), short))
        places.append(extra)
        scores.append(gained)
    row, place, score = np.concatenate(rows), np.concatenate(places).astype(place.dtype), np.concatenate(scores)
    by = np.lexsort((place if work.corpus_ids.rank is None else work.corpus_ids.rank[place], -score, row))
    log_probs = chosen.log_probs
    if log_probs is not None:
        log_probs = np.append(log_probs, np.full(len(row) - len(log_probs), np.nan, dtype=np.float32))[by]
    indptr = offsets(np.bincount(row, minlength=len(query)))
    return Choice(Csr(indptr, place[by]), score[by], log_probs, chosen.rejects, by >= len(chosen.scores))


def _order(known: Candidates, own: int, pair: np.ndarray | None, seed: int, work: Work) -> np.ndarray:
    """Rows of D_i outside the candidates, in the random order of this query."""
    number, size = np.array([known.first + own]), len(work.corpus)
    tried = np.arange(min(size, ORDERED))
    keys = work.corpus_ids.keys(tried) if size <= ORDERED else tried.astype(np.uint64)
    ours = np.zeros(1, dtype=np.uint64) if pair is None else work.corpus_ids.keys(pair)
    noise = draw(seed, work.query_ids.keys(number), ours, keys[None])[0]
    order = np.argsort(noise, kind="stable") if size <= ORDERED else (noise * size).astype(np.int64)
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    window = known.candidates.values[known.candidates.indptr[own] : known.candidates.indptr[own + 1]]
    return order[work.forbidden.allowed(number, order[None])[0] & ~np.isin(order, window)]


def _fill(
    known: Candidates, own: int, order: np.ndarray, taken: np.ndarray, reference: float, rules: Rules, finder: Finder
) -> tuple[np.ndarray, np.ndarray]:
    """The first rows in the order that pass, as many as the row lacks, and their scores."""
    missing = rules.num_negatives - len(taken)
    found: list[int] = []
    gained: list[float] = []
    step = 4 * missing + 16
    positives = finder.alike(known.first + own, known.first + own + 1).values
    for at in range(0, len(order), step):
        tried = order[at : at + step]
        scores = finder.score(known.first + own, tried)
        window = Window(scores[None], finder.near(tried, positives)[None])
        free = verdicts(window, np.array([reference]), rules, bounds=False)[0] == 0
        free &= finder.is_other(known.first + own, tried, scores)
        for j, value in zip(tried[free].tolist(), scores[free].tolist()):
            if len(found) < missing and not finder.near(np.array([j]), np.append(taken, found).astype(np.int64))[0]:
                found.append(j)
                gained.append(value)
        if len(found) == missing:
            break
    return np.array(found, dtype=np.int64), np.array(gained, dtype=np.float32)
