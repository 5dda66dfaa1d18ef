"""Nearest neighbours by inner product of unit rows, that is by cosine.

The contract of every index, exact or approximate: `search` returns exactly k ids a query, never −1, never an excluded
one, sorted by (−score, id) with scores recomputed from the rows; `cells` are its k-means cells where it has them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Neighbors(NamedTuple):
    """ids (B, k) long and scores (B, k) float32 (cosine), sorted by (−score, id)."""

    ids: Tensor
    scores: Tensor


class Cells(NamedTuple):
    """A partition of the bank: centroids (C, D), the cell of every row (N,) with −1 for none, rows a cell (C,)."""

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

    def graph(self, k: int) -> Neighbors:
        """The k best other rows of every indexed row: (rows, k), in the order of the indexed rows."""
        ...


def check_k(k: int, excluded: int, rows: int) -> None:
    """Raise ValueError unless k rows are left among `rows` after `excluded` ones a query are taken out."""
    if k < 1 or k + excluded > rows:
        raise ValueError(
            f"k={k}: an index of {rows} rows with {excluded} excluded has {rows - excluded} to give; lower k"
        )


def drop_excluded(found: Neighbors, k: int, exclude: Tensor | None) -> Neighbors:
    """The first k of over-fetched neighbours (B, k + E) that are not in exclude (B, E)."""
    if exclude is None:
        return found
    hit = (found.ids[:, :, None] == exclude[:, None, :]).any(-1)
    first = torch.argsort(hit.to(torch.uint8), dim=1, stable=True)[:, :k]
    return Neighbors(found.ids.gather(1, first), found.scores.gather(1, first))


def by_score_then_id(ids: Tensor, scores: Tensor) -> Neighbors:
    """Each query's ids (B, k) in the order of (−score, id)."""
    by_id = ids.argsort(1)
    order = by_id.gather(1, scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True))
    return Neighbors(ids.gather(1, order), scores.gather(1, order))


def exact_scores(vectors: Tensor, queries: Tensor, ids: Tensor) -> Tensor:
    """Inner products of queries (B, D) with their own rows ids (B, k): (B, k) float32.

    Summed row by row, so that a score does not depend on which other queries share the call.
    """
    scores = torch.empty(ids.shape, dtype=torch.float32, device=queries.device)
    block = max(1, (1 << 23) // max(1, ids.shape[1] * queries.shape[1]))
    for at in range(0, len(ids), block):
        rows = vectors[ids[at : at + block]].to(torch.float32)
        scores[at : at + block] = (rows * queries[at : at + block, None, :]).sum(-1)
    return scores


def row_graph(index: Index, rows: Tensor, k: int, block: int = 4096) -> Neighbors:
    """`Index.graph` by searching the indexed rows (ids `rows`) block by block, each without itself."""
    parts = [index.search(index.vectors[part], k, exclude=part[:, None]) for part in rows.split(block)]
    return Neighbors(torch.cat([p.ids for p in parts]), torch.cat([p.scores for p in parts]))
