"""The k best allowed rows of every query, exactly, from rows that are read block by block.

Products of rounded rows, in bfloat16 where the processor multiplies that natively, leave every query a shortlist that
holds its k best (listed.py). Its scores, computed in float32 row by row and so the same whatever the batch, order it by
(−score, id). Queries with more rows that are nearly equal than a shortlist has room for are searched again: with
products in float32, and at last with every score computed row by row.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.index.contract import exact_scores
from negbank.index.products import fast_dtype
from negbank.index.threads import OwnThreads, threads_for
from negbank.mining.forbidden import Forbidden
from negbank.mining.listed import Listed
from negbank.mining.rows import Rows

NO_ROW = -1
TOGETHER = 512
"""Queries multiplied, and ranked, at once by a thread."""
GATHERED = 1 << 18
"""Numbers gathered at once to score rows again: 1 MiB, so that they stay in a core's cache."""


class Found(NamedTuple):
    """positions (B, k) int64 and scores (B, k) float32 by (−score, id), padded by `NO_ROW` and −∞."""

    positions: np.ndarray
    scores: np.ndarray


def half_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively."""
    return fast_dtype(torch.device("cpu")) == torch.bfloat16


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
    result = Found(
        np.full((len(queries), k), NO_ROW, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    left = np.arange(len(queries))
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
            settle = partial(_settle, corpus=corpus, k=k, rank=rank, rescored=rescored, result=result)
            threads.run(settle, zip(runs, asked, listed))
            left = np.concatenate([run[~one.found] for run, one in zip(runs, listed)]) if runs else left
            if not len(left):
                return result
    _row_by_row(queries, numbers, left, corpus, k, forbidden, rank, block_rows, result)
    return result


def _settle(
    run: tuple[np.ndarray, Tensor, Listed], corpus: Rows, k: int, rank: np.ndarray | None, rescored: bool, result: Found
) -> None:
    """Order the shortlists of a run of queries into `result`, where they had room."""
    numbers, asked, listed = run
    positions, products = listed.take()
    scores = dots(asked, corpus, positions) if rescored else products
    some = listed.found
    _put(result, numbers[some], Found(positions[some], scores[some]), k, rank)


def dots(queries: Tensor, corpus: Rows, positions: np.ndarray) -> np.ndarray:
    """Inner products of queries (B, D) with their own rows at positions (B, n): (B, n) float32; `NO_ROW` gives −∞.

    Each is summed by itself, so that it does not depend on what shares the call.
    """
    ids = torch.from_numpy(positions)
    if corpus.resident is not None:
        return exact_scores(corpus.resident, queries, ids.to(corpus.device)).cpu().numpy()
    scores = torch.empty(ids.shape)
    step = max(1, GATHERED // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        rows = corpus.take(part.flatten().clamp(min=0))
        places = torch.arange(len(rows)).view(part.shape).masked_fill(part == NO_ROW, NO_ROW).to(rows.device)
        scores[at : at + step] = exact_scores(rows, queries[at : at + step].to(rows.device), places)
    return scores.numpy()


def _put(result: Found, at: np.ndarray, found: Found, k: int, rank: np.ndarray | None) -> None:
    """The k best of found (B, n ≥ k) by (−score, id) into rows `at` of the result."""
    best = by_score_then_id(found, rank)
    result.positions[at], result.scores[at] = best.positions[:, :k], best.scores[:, :k]


def by_score_then_id(found: Found, rank: np.ndarray | None) -> Found:
    """Each query's rows in the order of (−score, id), padding last."""
    place = found.positions if rank is None else np.where(found.positions == NO_ROW, NO_ROW, rank[found.positions])
    order = np.lexsort((place, -found.scores), axis=1)
    return Found(np.take_along_axis(found.positions, order, 1), np.take_along_axis(found.scores, order, 1))


def _row_by_row(
    queries: Tensor,
    numbers: np.ndarray,
    chosen: np.ndarray,
    corpus: Rows,
    k: int,
    forbidden: Forbidden,
    rank: np.ndarray | None,
    block_rows: int,
    result: Found,
) -> None:
    """The last resort, for more equal scores than shortlists hold: every score as `dots` computes it."""
    for start, rows in corpus.blocks(block_rows):
        positions = np.arange(start, start + len(rows))[None]
        every = torch.arange(len(rows), device=rows.device)[None]
        for query in chosen:
            some = slice(query, query + 1)
            scores = exact_scores(rows, queries[some], every).cpu().numpy()
            free = forbidden.allowed(numbers[some], positions) & (scores >= result.scores[query, -1])
            both = (result.positions[some], positions[free][None]), (result.scores[some], scores[free][None])
            _put(result, chosen[chosen == query], Found(*(np.concatenate(two, axis=1) for two in both)), k, rank)
