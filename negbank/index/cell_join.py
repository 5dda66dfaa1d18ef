"""The kNN graph by cell join: every k-means cell against its nearest cells, to a recall that is measured.

Rows of one cell have their neighbours in much the same cells, so that for each cell one product of all its rows with
the rows of its P nearest cells (by their centroids) holds nearly all of them:

    recall@k(P) = mean over rows i and true neighbours j of [rank of cell(j) among the cells near cell(i) < P]

The rows of a sample are searched exactly, which gives this curve whole. P is where it first reaches the target, with
two standard errors to spare; another sample, searched exactly as well, says what the result's recall is. Within the
cells that are compared nothing is lost (`shortlist.py`).
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from torch.nn.functional import pad

from negbank.index.contract import (
    MEMORY,
    Cells,
    Graph,
    GraphReport,
    Neighbors,
    by_score_then_id,
    check_recall,
    recall_of,
)
from negbank.index.exact_graph import exact_graph
from negbank.index.kmeans import kmeans
from negbank.index.products import Products, fast_dtype, rounded_up
from negbank.index.search import ranked, rows_at_once, shortlists
from negbank.index.threads import OwnThreads

EXACT_BELOW = {"cpu": 20_000, "cuda": 1_000_000}
"""Rows whose graph is not worth cells."""
SAMPLE = 512
"""Rows from which P is found, and as many others on which recall is reported."""
WORTH = 1 / 5
"""Share of all pairs above which comparing them all costs less: half of them do for that, in larger products."""
CELLS_AT_ONCE = 8
ROWS, COLUMNS = 16, 256
"""Steps of the shape of a product."""


def cell_count(rows: int) -> int:
    """Cells of about 64 rows, and of more where finding the nearest of so many would cost more than it saves."""
    return max(1, min(rows // 64, round(5 * math.sqrt(rows))))


def cell_join(
    vectors: Tensor,
    rows: Tensor | None,
    k: int,
    *,
    cells: Cells | None = None,
    target_recall: float = 0.99,
    memory: int = MEMORY,
    seed: int = 0,
) -> Graph:
    """The k nearest others of nearly all rows of vectors (n, D) float32; the ids are rows (n,) if given.

    Exact where there are few rows, or where the sample says that cells save too little for the target.

    Args:
        cells: a partition of the n rows, by position; k-means by default.
        target_recall: recall@k to reach, in (0, 1].
        memory: bytes held at once beside the rows, their copy in the order of the cells, and the result.
        seed: of k-means and of the samples.

    Raises:
        ValueError: for a target outside (0, 1].
    """
    check_recall(target_recall)
    if target_recall == 1 or len(vectors) < EXACT_BELOW.get(vectors.device.type, 0):
        return exact_graph(vectors, rows, k, memory=memory)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    cells = cells or kmeans(vectors, cell_count(len(vectors)), generator=generator)
    drawn = torch.randperm(len(vectors), generator=generator)[: 2 * SAMPLE]
    tuned, checked = drawn.to(vectors.device).split(SAMPLE)
    with OwnThreads(len(vectors)) as threads:
        join = _Join(vectors, k, cells, threads, memory)
        near = join.near(cells.assignment[tuned])
        probes = _probes(near, cells.assignment[join.truth(tuned)], target_recall)
        if float(cells.sizes[near[:, :probes]].sum(1).double().mean()) <= WORTH * len(vectors):
            found = join.run(probes)
            recall = recall_of(found.ids[checked], join.truth(checked))
            spent = time.perf_counter() - started
            report = GraphReport("cell join", len(vectors), recall, k, len(cells.sizes), probes, join.compared, spent)
            return Graph(found.ids if rows is None else rows[found.ids], found.scores, report)
    graph = exact_graph(vectors, rows, k, memory=memory)
    graph.report = graph.report._replace(seconds=time.perf_counter() - started)
    return graph


class _Join:
    """Rows (n, D) in the order of their cells, each of which is then a slice, and the search among them.

    Attributes:
        compared: with how many rows `run` compared a row, on average.
    """

    def __init__(self, vectors: Tensor, k: int, cells: Cells, threads: OwnThreads, memory: int) -> None:
        self._vectors, self._k, self._cells, self._threads = vectors, k, cells, threads
        self._order = cells.assignment.argsort(stable=True)
        self._products = Products(vectors, fast_dtype(vectors.device), order=self._order)
        self._step = rows_at_once(k, len(vectors), memory // threads.count, vectors.device)
        self.compared = 0.0

    def near(self, own: Tensor) -> Tensor:
        """All cells (a, C) by their nearness to each of the cells own (a,), itself first."""
        products = self._cells.centroids[own] @ self._cells.centroids.T
        products.scatter_(1, own[:, None], torch.inf)
        every = torch.arange(products.shape[1], device=own.device).expand_as(products)
        return by_score_then_id(every, products).ids

    def truth(self, rows: Tensor) -> Tensor:
        """The k nearest others of rows (s,), exactly: (s, k)."""
        found, place = rows.new_empty(len(rows), self._k), self._order.argsort()
        products, order = self._products, self._order
        step = min(64, self._step)

        def some(at: int) -> None:
            own = rows[at : at + step]
            left, slack = products.left[place[own]], products.slack[place[own]]
            listed = shortlists(left, products.right, slack, order, own, self._k)
            found[at : at + step] = ranked(self._vectors, self._vectors[own], listed, order, own, self._k).ids

        self._threads.run(some, range(0, len(rows), step))
        return found

    def run(self, probes: int) -> Neighbors:
        """The k best others of every row among the rows of the `probes` cells nearest to its own, by position.

        Where these hold too few rows, of some cells more.
        """
        count, device = len(self._vectors), self._vectors.device
        ids = torch.empty(count, self._k, dtype=torch.int64, device=device)
        scores = torch.empty(count, self._k, device=device)
        sizes, ends = self._cells.sizes, self._cells.sizes.cumsum(0)
        order = self._order.to(torch.int32)
        firsts = range(0, len(sizes), CELLS_AT_ONCE)
        compared = dict.fromkeys(firsts, 0)

        def rank(parts: list[tuple[slice, Tensor]], names: Tensor) -> None:
            rows = torch.cat([self._order[part] for part, _ in parts])
            width = max(listed.shape[1] for _, listed in parts)
            whole = torch.cat([pad(listed, (0, width - listed.shape[1]), value=-1) for _, listed in parts])
            best = ranked(self._vectors, self._vectors.index_select(0, rows), whole, names, rows, self._k)
            ids.index_copy_(0, rows, best.ids)
            scores.index_copy_(0, rows, best.scores)

        def some(first: int) -> None:
            """A few cells at once: threads take the interpreter in turns, so that its steps are better few."""
            own = torch.arange(first, min(first + CELLS_AT_ONCE, len(sizes)), device=device)
            near = self.near(own)
            wide = (sizes[near].cumsum(1) <= self._k).sum(1, keepdim=True).add(1).clamp(min=probes)
            chosen = near[torch.arange(near.shape[1], device=device) < wide]  # for all of them, one after the other
            places = _spelled_out(ends[chosen] - sizes[chosen], sizes[chosen])
            names = order.index_select(0, places)
            places = pad(places, (0, COLUMNS))
            shown = [int(part.sum()) for part in sizes[chosen].split(wide.flatten().tolist())]
            at, waiting, held = 0, list[tuple[slice, Tensor]](), 0
            for end, size, number in zip(ends[own].tolist(), sizes[own].tolist(), shown):
                columns, mine = places[at : at + rounded_up(number, COLUMNS)], names[at : at + number]
                for start in range(end - size, end, self._step):
                    part = slice(start, min(start + self._step, end))
                    left = self._products.left[start : start + rounded_up(part.stop - start, ROWS)]
                    slack = self._products.slack[part]
                    listed = shortlists(left, self._products.right, slack, mine, order[part], self._k, columns)
                    if bool((listed[:, 0] < 0).any()):
                        rank([(part, listed)], mine)
                        continue
                    waiting.append((part, listed))
                    held += len(listed)
                    if held >= self._step:
                        rank(waiting, mine)
                        waiting, held = [], 0
                at += number
                compared[first] += size * number
            if waiting:
                rank(waiting, names)

        self._threads.run(some, firsts)
        self.compared = sum(compared.values()) / count
        return Neighbors(ids, scores)


def _spelled_out(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers of slices, by their starts and lengths, one slice after the other."""
    offsets = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return offsets + torch.arange(len(offsets), device=offsets.device)


def _probes(near: Tensor, cells: Tensor, target: float) -> int:
    """The fewest cells that hold the target share of true neighbours, two standard errors above it.

    Args:
        near: (s, C) cells by their nearness to the cell of each sampled row.
        cells: (s, k) those of its true neighbours.
    """
    every = torch.arange(near.shape[1], device=near.device)
    rank = torch.empty_like(near).scatter_(1, near, every.expand_as(near)).gather(1, cells)
    curve = torch.bincount(rank.flatten(), minlength=len(every)).cumsum(0).double() / rank.numel()
    reached = (rank <= (curve < target).sum()).double().mean(1)
    spare = 2 * float(reached.std()) / math.sqrt(len(reached))
    return int((curve < min(target + spare, (1 + target) / 2)).sum()) + 1
