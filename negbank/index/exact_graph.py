"""The exact kNN graph of a whole bank.

Scores are symmetric, and on the CPU a product serves both of its rows: tiles of one half of the matrix are read by rows
and by columns. The pairs of blocks whose tiles these are meet in the rounds of a tournament, in which every block meets
every other once and none plays twice in a round, so that no two threads write to the same row's shortlist. Rows
that are near each other are put together and meet first: what comes later then mostly is not let in.

Other devices search for all rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import local

import torch
from torch import Tensor

from negbank.index.contract import MEMORY, Graph, GraphReport, Neighbors
from negbank.index.kmeans import kmeans
from negbank.index.products import Products, fast_dtype
from negbank.index.search import TILE, exact_search, ranked, rows_at_once
from negbank.index.shortlist import Shortlist, room
from negbank.index.threads import OwnThreads, threads_for

ORDER_FROM = 8 * TILE
"""Rows from which on it pays to put near ones together."""
ROWS_A_CELL = 256


def exact_graph(
    vectors: Tensor, rows: Tensor | None, k: int, *, memory: int = MEMORY, dtype: torch.dtype | None = None
) -> Graph:
    """The k nearest others, by (−score, id), of all rows of vectors (n, D) float32; the ids are rows (n,) if given.

    Args:
        memory: bytes held at once beside the rows, their copy for fast products, and the result.
        dtype: of the products; `fast_dtype` by default.
    """
    started = time.perf_counter()
    dtype = dtype or fast_dtype(vectors.device)
    if vectors.device.type in Shortlist.devices:
        ids, scores = _tournament(vectors, k, memory, dtype)
    else:
        own = torch.arange(len(vectors), device=vectors.device)
        ids, scores = exact_search(vectors, vectors, k, own=own, memory=memory, dtype=dtype)
    seconds = time.perf_counter() - started
    report = GraphReport("exact", len(vectors), 1.0, k, None, None, len(vectors) - 1.0, seconds)
    return Graph(ids if rows is None else rows[ids], scores, report)


def _tournament(vectors: Tensor, k: int, memory: int, dtype: torch.dtype) -> Neighbors:
    """`exact_graph` by position. Rows come in strips whose shortlists fit into `memory`; a strip is one tournament."""
    count = len(vectors)
    order = _near_order(vectors)
    products = Products(vectors, dtype, order=order)
    names = order.to(torch.int32).numpy()
    every = torch.arange(count)
    ids, scores = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    strip = max(1, memory // 4 * 3 // ((4 + dtype.itemsize) * room(k, count) * TILE)) * TILE
    spaces = local()

    def tile(one: slice, two: slice) -> Tensor:
        if not hasattr(spaces, "tile"):
            spaces.tile = torch.empty(TILE * TILE, dtype=dtype)
        left, right = products.left[one], products.right[two]
        return torch.mm(left, right.T, out=spaces.tile[: len(left) * len(right)].view(len(left), len(right)))

    with OwnThreads(threads_for(count * count, vectors.device)) as threads:
        step = rows_at_once(k, count, memory // 4 // threads.count, vectors.device)
        for first in range(0, count, strip):
            last = min(first + strip, count)
            found = Shortlist(k, products.slack[first:last], dtype, count)

            def meet(pair: tuple[slice, slice], first: int = first, found: Shortlist = found) -> None:
                one, two = pair
                mirror = slice(two.start - first, two.stop - first) if one != two else None
                rows = slice(one.start - first, one.stop - first)
                found.add(rows, tile(one, two), names[two], names[one], mirror)

            def face(one: slice, first: int = first, last: int = last, found: Shortlist = found) -> None:
                rows = slice(one.start - first, one.stop - first)
                for two in (*_blocks(0, first), *_blocks(last, count)):
                    found.add(rows, tile(one, two), names[two], names[one])

            def finish(at: int, first: int = first, last: int = last, found: Shortlist = found) -> None:
                own = order[at : min(at + step, last)]
                listed = found.take(slice(at - first, at - first + len(own)))
                ids[own], scores[own] = ranked(vectors, vectors[own], listed, every, own, k)

            blocks = _blocks(first, last)
            threads.run(meet, [(block, block) for block in blocks])
            for pairs in rounds(blocks):
                threads.run(meet, pairs)
            if last - first < count:
                threads.run(face, blocks)
            threads.run(finish, range(first, last, step))
    return Neighbors(ids, scores)


def _blocks(first: int, last: int) -> list[slice]:
    return [slice(at, min(at + TILE, last)) for at in range(first, last, TILE)]


def rounds(blocks: list[slice]) -> Iterator[list[tuple[slice, slice]]]:
    """Every pair of blocks once, in rounds in which no block comes twice (the circle method)."""
    ring: list[slice | None] = [*blocks, None] if len(blocks) % 2 else [*blocks]
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        yield [(a, b) for a, b in zip(ring[:half], reversed(ring[half:])) if a is not None and b is not None]
        ring = [ring[0], ring[-1], *ring[1:-1]]


def _near_order(vectors: Tensor) -> Tensor:
    """Positions (n,) in which rows that are near each other mostly stand together: by cell, the cells along a line."""
    if len(vectors) < ORDER_FROM:
        return torch.arange(len(vectors))
    cells = kmeans(vectors, len(vectors) // ROWS_A_CELL, generator=torch.Generator().manual_seed(0))
    centred = cells.centroids - cells.centroids.mean(0)
    line = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    return (centred @ line).argsort().argsort()[cells.assignment].argsort(stable=True)
