"""Parts of exactly B rows, near rows together: balanced k-means that carries what is left over.

A k-means cell of n rows holds n // B batches and a remainder, and rows that move to other cells spoil batches there. So
a cell gives whole batches only, and the remainders of all cells, together, are cut again:

    cut(S):  while |S| ≥ (leaf + 1)·B:  into cells by k-means;  S ← what cut(cell) leaves over, of all cells
             then parts of B, B, …, B and |S| mod B rows, fitted to their means at the least Σ |x − mean|²

The rows of small cells meet in later rounds, the nearest ones again. O(R·FAN·D) a level, and no kNN graph.

Sizes are exact: `assign` is a minimum-cost flow by successive shortest paths with potentials (Ahuja, Magnanti & Orlin
1993, §9.7) on the K parts. Each row starts in its best part; then part by part that holds too many gives up one row, by
the cheapest chain of moves a → b → c to a part that holds too few. A move costs what the row that loses least loses:

    T_ab = min_{i in a} g_ia − g_ib
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.index.kmeans import closeness, lloyd, means

FAN = 128
"""Cells of one k-means at most."""
SAMPLE = 128
"""Rows a cell that k-means is run on."""
CLOSE = 1 << 23
"""Row–centre products held at once."""


class Effort(NamedTuple):
    """leaf: parts that are fitted together, with exact sizes. rounds: of k-means. refits: times that the parts of a
    leaf move their centres and are fitted again."""

    leaf: int
    rounds: int
    refits: int


CAREFUL, QUICK = Effort(8, 8, 2), Effort(24, 2, 0)
"""QUICK keeps 97 % of the similarity inside of parts of 16 rows, in a fraction of the time (49 000 rows, 256 wide)."""


def cut(vectors: Tensor, size: int, generator: torch.Generator, effort: Effort = CAREFUL) -> Tensor:
    """Rows of `vectors` (R, D), on any device, as R // B disjoint parts of B = size rows near to each other.

    The generator, on the CPU, chooses the R mod B rows that are left out, first, and where k-means starts.
    Returns (R // B, B) long on the CPU, in no order.
    """
    count = len(vectors) // size
    rows = torch.randperm(len(vectors), generator=generator)[: count * size]
    parts: list[Tensor] = []
    _cut(vectors, rows, size, generator, effort, parts)
    return torch.stack(parts) if parts else rows.view(0, size)


def _cut(
    vectors: Tensor, rows: Tensor, size: int, generator: torch.Generator, effort: Effort, parts: list[Tensor]
) -> Tensor:
    """Append parts of rows (n,), which are in random order, until fewer than `size` are left over; return these."""
    while len(rows) >= (effort.leaf + 1) * size:
        cells = min(FAN, len(rows) // size)
        sample = vectors[rows[: cells * SAMPLE].to(vectors.device)]
        centres = lloyd(sample, sample[:cells], effort.rounds)
        cell = torch.cat([closeness(vectors[r], centres).argmax(1) for r in _blocks(rows, cells, vectors)]).cpu()
        sizes = torch.bincount(cell, minlength=cells)
        if int(sizes.max()) > 0.95 * len(rows):  # (nearly) all alike: any cells will do
            cell = torch.arange(len(rows)) * cells // len(rows)
            sizes = torch.bincount(cell, minlength=cells)
        inside = rows[cell.argsort(stable=True)].split(sizes.tolist())
        rest = torch.cat([_cut(vectors, r, size, generator, effort, parts) for r in inside])
        rows = rest[torch.randperm(len(rest), generator=generator)]
    return _leaf(vectors, rows, size, effort, parts) if len(rows) >= size else rows


def _leaf(vectors: Tensor, rows: Tensor, size: int, effort: Effort, parts: list[Tensor]) -> Tensor:
    """All whole parts of a few rows at once, and the rows that are left over."""
    whole, left = divmod(len(rows), size)
    count = whole + (left > 0)
    if count == 1:
        parts.append(rows)
        return rows[:0]
    x = vectors[rows.to(vectors.device)]
    centres = lloyd(x, x[:count], effort.rounds)
    sizes = torch.full((count,), size)
    for fit in range(1 + effort.refits):
        close = closeness(x, centres).cpu()
        if left:
            last = int(torch.bincount(close.argmax(1), minlength=count).argmin())
            sizes = torch.full((count,), size)
            sizes[last] = left
        part = assign(close, sizes)
        if fit < effort.refits:
            centres = means(x, part.to(x.device), centres)
    inside = list(rows[part.argsort(stable=True)].split(sizes.tolist()))
    rest = inside.pop(last) if left else rows[:0]
    parts.extend(inside)
    return rest


def _blocks(rows: Tensor, cells: int, vectors: Tensor) -> tuple[Tensor, ...]:
    return rows.to(vectors.device).split(max(1, CLOSE // max(cells, vectors.shape[1])))


def assign(gains: Tensor, sizes: Tensor) -> Tensor:
    """The assignment of R rows to K parts of the given sizes with the largest total gain.

    Args:
        gains: (R, K) finite, on the CPU.
        sizes: (K,) rows of each part; R together.

    Returns:
        (R,) long, the part of each row. O(K²) and a pass over a part's rows, for each row that must move.
    """
    part = gains.argmax(1)
    _balance(gains.double().numpy(), sizes.numpy(), part.numpy())
    return part


@numba.njit(cache=True, nogil=True)
def _balance(gains: np.ndarray, sizes: np.ndarray, part: np.ndarray) -> None:
    rows, parts = gains.shape
    room = sizes.copy()
    first, after, before = np.full(parts, -1), np.full(rows, -1), np.full(rows, -1)  # the rows of a part, as a list
    loss, mover = np.full((parts, parts), np.inf), np.full((parts, parts), -1)  # T_ab, and the row it is for
    for i in range(rows):
        room[part[i]] -= 1
        _enter(gains, i, part[i], first, after, before, loss, mover)
    potential, distance = np.zeros(parts), np.empty(parts)
    come_from, done = np.empty(parts, np.int64), np.empty(parts, np.bool_)
    for _ in range(-room[room < 0].sum()):
        for a in range(parts):
            distance[a] = 0.0 if room[a] < 0 else np.inf
            come_from[a], done[a] = -1, False
        while True:  # Dijkstra, from all parts that are too large to the first that is too small
            a, nearest = -1, np.inf
            for b in range(parts):
                if not done[b] and distance[b] < nearest:
                    a, nearest = b, distance[b]
            if room[a] > 0:
                break
            done[a] = True
            for b in range(parts):
                if not done[b]:
                    reduced = nearest + max(0.0, loss[a, b] + potential[a] - potential[b])
                    if reduced < distance[b]:
                        distance[b], come_from[b] = reduced, a
        for b in range(parts):
            potential[b] += min(distance[b], nearest)
        room[a] -= 1
        while come_from[a] >= 0:
            b, a = a, come_from[a]
            i = mover[a, b]
            part[i] = b
            _leave(gains, i, a, first, after, before, loss, mover)
            _enter(gains, i, b, first, after, before, loss, mover)
        room[a] += 1


@numba.njit(cache=True, nogil=True)
def _enter(
    gains: np.ndarray,
    i: int,
    a: int,
    first: np.ndarray,
    after: np.ndarray,
    before: np.ndarray,
    loss: np.ndarray,
    mover: np.ndarray,
) -> None:
    """Row i joins part a, and may be the one that leaves it at least loss."""
    before[i], after[i] = -1, first[a]
    if first[a] >= 0:
        before[first[a]] = i
    first[a] = i
    for b in range(len(first)):
        if gains[i, a] - gains[i, b] < loss[a, b]:
            loss[a, b], mover[a, b] = gains[i, a] - gains[i, b], i


@numba.njit(cache=True, nogil=True)
def _leave(
    gains: np.ndarray,
    i: int,
    a: int,
    first: np.ndarray,
    after: np.ndarray,
    before: np.ndarray,
    loss: np.ndarray,
    mover: np.ndarray,
) -> None:
    """Row i leaves part a, and where it was the one to leave at least loss another is looked for."""
    if before[i] >= 0:
        after[before[i]] = after[i]
    else:
        first[a] = after[i]
    if after[i] >= 0:
        before[after[i]] = before[i]
    for b in range(len(first)):
        if mover[a, b] == i:
            loss[a, b], mover[a, b] = np.inf, -1
            j = first[a]
            while j >= 0:
                if gains[j, a] - gains[j, b] < loss[a, b]:
                    loss[a, b], mover[a, b] = gains[j, a] - gains[j, b], j
                j = after[j]
