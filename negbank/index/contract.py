"""Nearest neighbours by inner product of unit rows, that is by cosine.

The contract of every index, exact or approximate: `search` returns exactly k ids a query, never −1, never an excluded
one, sorted by (−score, id) with scores recomputed from the rows; `cells` are its k-means cells where it has them.
"""

from __future__ import annotations

import operator
from typing import NamedTuple, Protocol

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.arrays import as_rows, as_tensor
from negbank.bank import require_finite

MEMORY = 1 << 30
"""Bytes that a graph takes by default, beside the rows, their copy for fast products, and the result."""


NO_CELL = -1
"""Cell of a row that is not in the index."""


class Neighbors(NamedTuple):
    """ids (B, k) long and scores (B, k) float32 (cosine), sorted by (−score, id)."""

    ids: Tensor
    scores: Tensor


class GraphReport(NamedTuple):
    """How a kNN graph was found, and the recall@`recall_at` it measured on a sample of its own rows (1 if exact).

    cells, probes: of a cell join, how many there are and how many were searched for each; compared: rows that a row was
    compared with, on average.
    """

    method: str
    rows: int
    recall: float
    recall_at: int
    cells: int | None
    probes: int | None
    compared: float
    seconds: float

    def __str__(self) -> str:
        cells = "" if self.cells is None else f", {self.probes} of {self.cells} cells"
        return (
            f"{self.method} graph of {self.rows} rows: recall@{self.recall_at} {self.recall:.4f}{cells}, "
            f"{self.compared:.0f} rows compared with each, in {self.seconds:.2f} s"
        )


class Graph(Neighbors):
    """The neighbours of every indexed row, (rows, k), and the report of how they were found."""

    report: GraphReport

    def __new__(cls, ids: Tensor, scores: Tensor, report: GraphReport) -> Graph:
        self = super().__new__(cls, ids, scores)
        self.report = report
        return self

    def __getnewargs__(self) -> tuple[Tensor, Tensor, GraphReport]:
        return self.ids, self.scores, self.report


class Cells(NamedTuple):
    """A partition of the bank: centroids (C, D), the cell of every row (N,) or `NO_CELL`, rows a cell (C,)."""

    centroids: Tensor
    assignment: Tensor
    sizes: Tensor


class IndexReport(NamedTuple):
    """What an index is and what it measured of itself on a sample of its own rows as queries."""

    factory: str
    rows: int
    nprobe: int | None
    recall: float
    recall_at: int
    imbalance: float | None
    start: str
    build_seconds: float
    query_ms: float

    def __str__(self) -> str:
        probes = "" if self.nprobe is None else f", nprobe {self.nprobe}"
        cells = "" if self.imbalance is None else f", {self.start} start, list imbalance {self.imbalance:.2f}"
        return (
            f"{self.factory} over {self.rows} rows{probes}: recall@{self.recall_at} {self.recall:.3f}{cells}, "
            f"built in {self.build_seconds:.2f} s, {self.query_ms:.3f} ms a query"
        )


class Index(Protocol):
    """What the snapshot, the proposals and the miner ask of an index."""

    vectors: Tensor
    report: IndexReport

    @property
    def cells(self) -> Cells | None: ...

    def __len__(self) -> int: ...

    def search(self, queries: Tensor, k: int, *, exclude: Tensor | None = None) -> Neighbors:
        """The k best rows for queries (B, D), leaving out the ids exclude (B, E), which −1 pads."""
        ...

    def graph(self, k: int, *, target_recall: float = 0.99, memory: int = MEMORY) -> Graph:
        """The k best other rows of every indexed row: (rows, k), in the order of the indexed rows.

        Args:
            target_recall: recall@k for an approximate index to reach, in (0, 1]; what it measured is in the report.
            memory: bytes held at once beside the rows, their copy for fast products, and the result.

        Raises:
            ValueError: when there are no k other rows, or for a target outside (0, 1].
        """
        ...


def check_k(k: int, excluded: int, rows: int) -> None:
    """Raise ValueError unless k rows are left among `rows` after `excluded` ones a query are taken out."""
    if k < 1 or k + excluded > rows:
        raise ValueError(
            f"k={k}: an index of {rows} rows with {excluded} excluded has {rows - excluded} to give; lower k"
        )


def asked(index: Index, queries: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, int]:
    """Queries (B, D) as the index takes them, and of how many neighbours k are left when `exclude` (B, E) is out.

    Raises:
        ValueError: for queries of another shape, or that are not finite; for k that is no count, or more than is left.
    """
    if not isinstance(queries, Tensor) or queries.layout is not torch.strided:
        queries = torch.cat([as_tensor(part) for part in as_rows(queries, "queries")])
    if queries.ndim != 2 or queries.shape[1] != index.vectors.shape[1] or not queries.dtype.is_floating_point:
        raise ValueError(
            f"queries: {queries.dtype} of shape {tuple(queries.shape)}, expected floating point "
            f"(B, {index.vectors.shape[1]}), the width of the index"
        )
    require_finite(queries, what="queries")
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise ValueError(f"k={k!r}: expected a whole number of neighbours")
    k = operator.index(k)
    wide = k + (0 if exclude is None else exclude.shape[1])
    check_k(k, wide - k, len(index))
    return queries.detach().to(device=index.vectors.device, dtype=torch.float32).contiguous(), wide


def check_recall(target: float) -> None:
    """Raise ValueError unless the target is a share in (0, 1]."""
    if not 0 < target <= 1:
        raise ValueError(f"target_recall={target}: expected a share in (0, 1]")


def recall_of(found: Tensor, truth: Tensor) -> float:
    """The share of truth (B, k) that is in found (B, n): distinct ids a row, found padded by −1."""
    known = truth.sort(1).values
    at = torch.searchsorted(known, found.contiguous()).clamp(max=known.shape[1] - 1)
    return float((known.gather(1, at) == found).double().sum() / truth.numel())


def drop_excluded(found: Neighbors, k: int, exclude: Tensor | None) -> Neighbors:
    """The first k of over-fetched neighbours (B, k + E) that are not in exclude (B, E)."""
    if exclude is None:
        return found
    hit = (found.ids[:, :, None] == exclude[:, None, :]).any(-1)
    first = torch.argsort(hit.to(torch.uint8), dim=1, stable=True)[:, :k]
    return Neighbors(found.ids.gather(1, first), found.scores.gather(1, first))


def by_score_then_id(ids: Tensor, scores: Tensor, k: int | None = None) -> Neighbors:
    """The first k, all by default, of each query's ids (B, w) in the order of (−score, id), and their scores.

    Sorted as integers that hold both: ids below 2³¹, scores (B, w) float32.
    """
    k = ids.shape[1] if k is None else k
    if ids.device.type != "cpu":
        return sorted_in_torch(ids, scores, k)
    keys = _keys(ids.contiguous().numpy(), scores.contiguous().numpy())
    keys.sort(axis=1)  # by vector instructions, which torch has not
    return Neighbors(*(torch.from_numpy(array) for array in _of_keys(keys, k)))


def sorted_in_torch(ids: Tensor, scores: Tensor, k: int) -> Neighbors:
    """`by_score_then_id` on any device."""
    bits = (scores + 0.0).view(torch.int32)  # −0.0 becomes 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = ((~rising).to(torch.int64) << 32 | ids & 0xFFFFFFFF).sort(dim=1).values[:, :k]
    rising = ~(keys >> 32).to(torch.int32)
    return Neighbors(keys & 0xFFFFFFFF, torch.where(rising < 0, rising ^ 0x7FFFFFFF, rising).view(torch.float32))


@numba.njit(cache=True, nogil=True)
def _keys(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    keys = np.empty(ids.shape, np.int64)
    for q in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            bits = np.int64(np.float32(scores[q, c] + np.float32(0)).view(np.int32))
            keys[q, c] = ~(bits if bits >= 0 else bits ^ 0x7FFFFFFF) << 32 | ids[q, c] & 0xFFFFFFFF
    return keys


@numba.njit(cache=True, nogil=True)
def _of_keys(keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids, scores = np.empty((keys.shape[0], k), np.int64), np.empty((keys.shape[0], k), np.float32)
    for q in range(keys.shape[0]):
        for c in range(k):
            bits = ~(keys[q, c] >> 32)
            ids[q, c] = keys[q, c] & 0xFFFFFFFF
            scores[q, c] = np.int32(bits if bits >= 0 else bits ^ 0x7FFFFFFF).view(np.float32)
    return ids, scores


def exact_scores(vectors: Tensor, queries: Tensor, ids: Tensor) -> Tensor:
    """Inner products of queries (B, D) with their own rows ids (B, k): (B, k) float32, −inf for an id of −1.

    Summed row by row, so that a score does not depend on which other queries share the call.
    """
    if vectors.device.type == "cpu" and vectors.dtype == queries.dtype == torch.float32:
        scores = torch.empty(ids.shape)
        _scores(*(t.detach().contiguous().numpy() for t in (vectors, queries, ids, scores)))
        return scores
    scores = torch.empty(ids.shape, dtype=torch.float32, device=queries.device)
    block = max(1, (1 << 23) // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(ids), block):
        rows = vectors[ids[at : at + block]].to(torch.float32)
        scores[at : at + block] = (rows * queries[at : at + block, None, :]).sum(-1)
    return scores.masked_fill_(ids < 0, -torch.inf)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _scores(vectors: np.ndarray, queries: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
    """`exact_scores`. Not to be called from another compiled function: one machine code, one order of every sum."""
    for q in range(ids.shape[0]):
        query = queries[q]
        for c in range(ids.shape[1]):
            if ids[q, c] < 0:
                scores[q, c] = -np.inf
                continue
            row, score = vectors[ids[q, c]], np.float32(0)
            for d in range(query.shape[0]):
                score += query[d] * row[d]
            scores[q, c] = score
