"""The k best allowed rows of every query, exactly, from rows that are read block by block.

A first pass multiplies in bfloat16 where the processor does that fast, else in float32, and keeps the w > k best of
each query. It is a filter, not the answer: it comes with a bound e on how far its scores â can be from the true ones s,

    |s − â| ≤ ‖q − q̂‖ ‖c‖ + ‖q̂‖ ‖c − ĉ‖ + rounding = e,

so that rows left out are proven to be outside the top k where â_w + e < â_k − e. Scores are then computed again in
float32 row by row, the same whatever the batch, and order the result by (−score, id). A query without the proof is
searched again: in float32, and at last with every score computed row by row.

Selection is one partition: a score and its row, packed into one integer, sort as (score, −row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.mining.forbidden import Forbidden
from negbank.mining.rows import Rows

NO_ROW = -1
GROUP = 32
"""Scores, equally spaced in a block, whose maximum stands for them until it passes the threshold."""
PASS_QUERIES = 256
"""Queries multiplied with a block at once."""
GATHERED = 1 << 18
"""Numbers gathered at once to score rows again: 1 MiB, so that they stay in a core's cache."""
SETTLED = 1024
"""Queries settled at once."""
EMPTY = np.iinfo(np.int64).min


Each = Callable[[Callable[[int], Any], Iterable[int]], list[Any]]
"""A function and integers → its values of them."""


class Found(NamedTuple):
    """positions (B, k) int64 and scores (B, k) float32 by (−score, id), padded by `NO_ROW` and −∞."""

    positions: np.ndarray
    scores: np.ndarray


def half_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def search(
    queries: Tensor,
    numbers: np.ndarray,
    corpus: Rows,
    k: int,
    forbidden: Forbidden,
    rank: np.ndarray | None,
    *,
    block_rows: int,
    half: bool | None = None,
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
        half: first pass in bfloat16; where that is fast by default.
        rescored: False to return what the first pass found, with its scores, unproven.
    """
    k = min(k, len(corpus))
    if half is None:
        half = corpus.device.type == "cpu" and half_is_fast()
    queries = queries.to(corpus.device)
    result = Found(
        np.full((len(queries), k), NO_ROW, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
    )
    left = np.arange(len(queries))
    with _threads(corpus.device) as each:
        for attempt in ("half", "single") if half else ("single",):
            wide = min(len(corpus), k + max(32, k) if attempt == "half" else k + 64)
            packed, error = _first_pass(
                queries, numbers, left, corpus, wide, forbidden, block_rows, attempt == "half", each
            )
            if not rescored:
                _put(result, left, _unpack(packed), k, rank)
                return result

            def settle(
                at: int, left: np.ndarray = left, packed: np.ndarray = packed, e: np.ndarray = error
            ) -> np.ndarray:
                part = slice(at, at + SETTLED)
                return _settle(queries, left[part], corpus, packed[part], e[part], k, rank, result)

            proven = each(settle, range(0, len(left), SETTLED))
            left = left[~np.concatenate(proven)] if proven else left
            if not len(left):
                return result
    _row_by_row(queries, numbers, left, corpus, k, forbidden, rank, block_rows, result)
    return result


@contextmanager
def _threads(device: torch.device) -> Iterator[Each]:
    """A map over as many threads as torch has, each with operations of one thread.

    Threads that meet once a block lose little to a core that is busy; those that meet in every operation wait for it.
    """
    count = torch.get_num_threads()
    if count == 1 or device.type != "cpu":
        yield lambda function, items: [function(i) for i in items]
        return
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, items: list(pool.map(function, items))
    finally:
        torch.set_num_threads(count)


def dots(queries: Tensor, corpus: Rows, positions: np.ndarray) -> np.ndarray:
    """Inner products of queries (B, D) with their own rows at positions (B, n): (B, n) float32; `NO_ROW` gives −∞.

    Each is summed by itself, so that it does not depend on what shares the call.
    """
    scores = np.full(positions.shape, -np.inf, dtype=np.float32)
    if not positions.size:
        return scores
    step = max(1, GATHERED // (positions.shape[1] * queries.shape[1]))
    for at in range(0, len(positions), step):
        part = torch.from_numpy(positions[at : at + step])
        rows = corpus.take(part.clamp(min=0))
        found = (rows * queries[at : at + step, None, :].to(rows.device)).sum(-1).cpu().numpy()
        scores[at : at + step] = np.where(part.numpy() == NO_ROW, -np.inf, found)
    return scores


def _first_pass(
    queries: Tensor,
    numbers: np.ndarray,
    chosen: np.ndarray,
    corpus: Rows,
    wide: int,
    forbidden: Forbidden,
    block_rows: int,
    half: bool,
    each: Each,
) -> tuple[np.ndarray, np.ndarray]:
    """The `wide` best rows of each chosen query, packed (B, wide) in descending order, and its bound e (B,)."""
    dtype = torch.bfloat16 if half else torch.float32
    runs = [chosen[at : at + PASS_QUERIES] for at in range(0, len(chosen), PASS_QUERIES)]
    asked = [queries[torch.from_numpy(run).to(queries.device)].to(dtype) for run in runs]
    kept = [np.full((len(run), wide), EMPTY) for run in runs]
    away = 0.0
    for start, rows in corpus.blocks(block_rows):
        short = -len(rows) % GROUP
        low = torch.cat((rows, rows.new_zeros(short, corpus.dim))) if short else rows
        low = low.to(dtype)
        if half:
            away = max(away, float((rows - low[: len(rows)]).norm(dim=1).max()))

        def multiply(i: int, start: int = start, count: int = len(rows), low: Tensor = low) -> None:
            scores = asked[i] @ low.T
            scores[:, count:] = -torch.inf
            forbidden.mask_(scores, numbers[runs[i]], start)
            _keep_best(kept[i], scores, start)

        each(multiply, range(len(runs)))
    packed = np.concatenate(kept)
    packed.sort(axis=1)
    packed = np.ascontiguousarray(packed[:, ::-1])
    fast = torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32
    summing = corpus.dim * 2.0**-23 + (2.0**-7 if fast and not half else 0.0)
    if not half:
        return packed, np.full(len(chosen), summing)
    exact = (queries[torch.from_numpy(run).to(queries.device)] for run in runs)
    own = torch.cat([(q - low).norm(dim=1) for q, low in zip(exact, asked)]).double()
    return packed, (own + (1 + own) * away).cpu().numpy() * (1 + 1e-3) + summing


def _keep_best(best: np.ndarray, scores: Tensor, start: int) -> None:
    """Merge a block of scores (b, s) of rows start.. into the best packed (b, w), in place."""
    count, width = best.shape
    groups = scores.view(count, GROUP, -1)
    apart = groups.shape[2]
    tops = groups.amax(1).float().cpu().numpy()
    threshold = _score_of(best.min(axis=1)) if best[0, 0] != EMPTY else np.full(count, -np.inf, dtype=np.float32)
    if tops.shape[1] > width:
        # The w best groups hold w scores at or above the least of their maxima: no row below it is among the best.
        threshold = np.maximum(threshold, np.partition(tops, -width, axis=1)[:, -width])
    threshold = np.maximum(threshold, np.finfo(np.float32).min)  # what is forbidden scores −∞
    at, group = np.divmod(np.flatnonzero(tops >= threshold[:, None]), apart)
    if not len(at):
        return
    members = groups[torch.from_numpy(at).to(scores.device), :, torch.from_numpy(group).to(scores.device)]
    values = members.float().cpu().numpy()
    hit, column = np.divmod(np.flatnonzero(values >= threshold[at][:, None]), GROUP)
    owner = at[hit]
    packed = _pack(values[hit, column], start + column * apart + group[hit])
    sizes = np.bincount(owner, minlength=count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    crowded = 4 * width + GROUP
    if sizes.max() > crowded:  # many equal scores: thin them out before they are laid side by side
        order = np.lexsort((-packed, owner))
        packed, owner = packed[order], owner[order]
        packed, owner, place = packed[place < width], owner[place < width], place[place < width]
    merged = np.full((count, width + int(place.max()) + 1), EMPTY)
    merged[:, :width] = best
    merged[owner, width + place] = packed
    best[:] = np.partition(merged, -width, axis=1)[:, -width:]


def _pack(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int64 that sort as (score, −position): the score's bits, made monotone, above the position's complement."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: no negative zero
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits << 32) | (0xFFFFFFFF - positions)


def _score_of(packed: np.ndarray) -> np.ndarray:
    bits = packed >> 32
    scores = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)
    return np.where(packed == EMPTY, np.float32(-np.inf), scores)


def _unpack(packed: np.ndarray) -> Found:
    positions = np.where(packed == EMPTY, NO_ROW, 0xFFFFFFFF - (packed & 0xFFFFFFFF))
    return Found(positions, _score_of(packed))


def _settle(
    queries: Tensor,
    chosen: np.ndarray,
    corpus: Rows,
    packed: np.ndarray,
    error: np.ndarray,
    k: int,
    rank: np.ndarray | None,
    result: Found,
) -> np.ndarray:
    """Score again what may be among the k best and put it into `result`; which chosen queries are proven: (B,) bool."""
    found = _unpack(packed)
    rough = found.scores.astype(np.float64)
    finite = np.isfinite(rough)
    rounding = np.where(finite, 2.0**-8 * np.abs(np.where(finite, rough, 0.0)), 0.0)  # of an output in bfloat16
    least = rough[:, k - 1] - error - rounding[:, k - 1]  # at least k rows score this, or fewer than k are allowed
    everything = rough.shape[1] == len(corpus)
    proven = everything | ~finite[:, -1] | (rough[:, -1] + error + rounding[:, -1] < least)
    may = finite & (rough + error[:, None] + rounding >= least[:, None])
    width = int(may[proven].sum(1).max(initial=0))
    if width:
        sure = np.flatnonzero(proven)
        positions = np.where(may[sure, :width], found.positions[sure, :width], NO_ROW)
        scores = dots(queries[torch.from_numpy(chosen[sure]).to(queries.device)], corpus, positions)
        _put(result, chosen[sure], Found(positions, scores), k, rank)
    return proven


def _put(result: Found, at: np.ndarray, found: Found, k: int, rank: np.ndarray | None) -> None:
    """The k best of found (B, n) by (−score, id) into rows `at` of the result."""
    best = by_score_then_id(found, rank)
    width = min(k, best.positions.shape[1])
    result.positions[at, :width] = best.positions[:, :width]
    result.scores[at, :width] = best.scores[:, :width]


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
    """The last resort, for more equal scores than the passes hold: every score as `dots` computes it."""
    kept = Found(np.full((len(chosen), k), NO_ROW), np.full((len(chosen), k), -np.inf, dtype=np.float32))
    step = max(1, min(block_rows, GATHERED // corpus.dim))
    for start, rows in corpus.blocks(block_rows):
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            positions = np.arange(start + at, start + at + len(part))
            for i, query in enumerate(chosen.tolist()):
                scores = (part * queries[query]).sum(-1).cpu().numpy()
                free = forbidden.allowed(numbers[query : query + 1], positions[None])[0]
                free &= scores >= kept.scores[i, -1]
                both = Found(
                    np.concatenate((kept.positions[i], positions[free]))[None],
                    np.concatenate((kept.scores[i], scores[free]))[None],
                )
                best = by_score_then_id(both, rank)
                kept.positions[i], kept.scores[i] = best.positions[0, :k], best.scores[0, :k]
    _put(result, chosen, kept, k, rank)
