"""Faiss indexes over the bank. Beside it only factory.py (its strings) and faiss_gpu.py (its device side) import faiss.

`Flat` searches the rows where they lie (`faiss.knn`, on CUDA `knn_gpu` on the device tensor), without a copy. Any other
factory string is trained, filled, and tuned: the search effort (nprobe of an IVF, efSearch of an HNSW) is doubled until
recall@k, measured against exact search on a sample of rows, reaches the target.

An IVF whose cells are known from an older bank starts warm: one k-means iteration from the stale centroids gives the
recall of a cold start in a fraction of the time. It falls back to a cold start when the measured recall or the balance
of its lists says that the old cells no longer fit.

Faiss must not be used in forked workers, and pads with −1: both are kept out here.
"""

from __future__ import annotations

import time
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.index import faiss_gpu
from negbank.index.cell_join import cell_count, cell_join
from negbank.index.contract import (
    MEMORY,
    NO_CELL,
    Cells,
    Graph,
    Index,
    IndexReport,
    Neighbors,
    asked,
    by_score_then_id,
    check_k,
    check_recall,
    drop_excluded,
    exact_scores,
    recall_of,
)
from negbank.index.exact import ExactIndex
from negbank.index.exact_graph import exact_graph
from negbank.index.factory import choose_factory, empty_index, require_lists

SAMPLE = 256
"""Rows used as queries to measure recall."""
WARM_ITERATIONS = 1
MAX_IMBALANCE = 2.5
"""Σ size² · C / N² of the lists, 1 when all are equal; above this a warm start is given up."""


class FaissIndex:
    """A Faiss index over unit rows, tuned to a recall and reporting what it measured.

    Args:
        vectors: (N, D) float32 unit rows on the CPU or a CUDA device, kept as given (not copied).
        rows: (n,) ascending ids of the rows to index; all N by default.
        factory: a Faiss factory string, or "auto" (`choose_factory`).
        target_recall: recall@`recall_at` to tune for, in (0, 1].
        recall_at: the k of that recall; less where there are fewer rows.
        warm: an earlier index over the same rows at another time, whose cells an IVF's k-means starts from.
        seed: of k-means and of the sampled queries.

    Raises:
        ValueError: for a target outside (0, 1], a factory string Faiss refuses, or more lists than rows.
    """

    def __init__(
        self,
        vectors: Tensor,
        *,
        rows: Tensor | None = None,
        factory: str = "auto",
        target_recall: float = 0.95,
        recall_at: int = 64,
        warm: Index | None = None,
        seed: int = 0,
    ) -> None:
        check_recall(target_recall)
        self._place(vectors, rows)
        started = time.perf_counter()
        factory = choose_factory(len(self), vectors.shape[1], vectors.device) if factory == "auto" else factory
        self._index: Any = None
        self.cells: Cells | None = None
        self._effort: int | None = None
        k = max(1, min(recall_at, len(self) - 1))
        sample = np.random.default_rng(seed).permutation(len(self))[:SAMPLE]
        queries = self._searched[torch.from_numpy(np.sort(sample)).to(vectors.device)]
        if factory == "Flat":
            start, imbalance, recall = "none", None, 1.0
        else:
            truth = ExactIndex(self._searched).search(queries, k).ids
            old, before = (None, None) if warm is None else (warm.cells, warm.report.nprobe)
            for begun, cells in [("cold", None)] if old is None else [("warm", old), ("cold after warm", None)]:
                start, imbalance = begun, self._build(factory, cells, seed)
                recall = self._tune(queries, truth, target_recall, None if cells is None else before)
                if recall >= target_recall and (imbalance or 0) <= MAX_IMBALANCE:
                    break
            start = "none" if imbalance is None else start
            self._index = faiss_gpu.to_gpu(self._index, vectors.device)
        built = time.perf_counter() - started
        started = time.perf_counter()
        self._nearest(queries, k)
        query_ms = 1000 * (time.perf_counter() - started) / len(queries)
        self.report = IndexReport(factory, len(self), self._effort, recall, k, imbalance, start, built, query_ms)

    def __len__(self) -> int:
        return len(self._searched)

    def _place(self, vectors: Tensor, rows: Tensor | None) -> None:
        self.vectors, self._rows = vectors, rows
        self._searched = vectors if rows is None else vectors[rows]

    def search(self, queries: Tensor, k: int, *, exclude: Tensor | None = None) -> Neighbors:
        """See `Index.search`. A query whose lists hold fewer than k rows is searched in more lists, if need be in all.

        Raises:
            ValueError: when k rows are not left after `exclude`.
        """
        queries, wide = asked(self, queries, k, exclude)
        ids = self._nearest(queries, wide)
        short = (ids < 0).any(1)
        if bool(short.any()):
            ids[short] = self._wider(queries[short], wide)
        if self._rows is not None:
            ids = self._rows[ids]
        return drop_excluded(by_score_then_id(ids, exact_scores(self.vectors, queries, ids)), k, exclude)

    def graph(self, k: int, *, target_recall: float = 0.99, memory: int = MEMORY) -> Graph:
        """See `Index.graph`: exact for `Flat`, else a cell join, of the lists of an IVF where these are not too few."""
        check_k(k, 1, len(self))
        check_recall(target_recall)
        if self._index is None:
            return exact_graph(self._searched, self._rows, k, memory=memory)
        cells = self.cells
        if cells is not None and 4 * len(cells.sizes) < cell_count(len(self)):
            cells = None
        if cells is not None and self._rows is not None:
            cells = cells._replace(assignment=cells.assignment[self._rows])
        return cell_join(self._searched, self._rows, k, cells=cells, target_recall=target_recall, memory=memory)

    def _nearest(self, queries: Tensor, k: int) -> Tensor:
        """Positions among the searched rows (B, k), −1 where the index found fewer."""
        if self._index is None:
            return _knn(queries, self._searched, k)
        if faiss_gpu.placed(self._index):
            if k > faiss_gpu.MOST:
                return ExactIndex(self._searched).search(queries, k).ids
            return faiss_gpu.search(self._index, queries, k)
        _, ids = self._index.search(queries.cpu().numpy(), k)
        return torch.from_numpy(ids).to(queries.device)

    def _wider(self, queries: Tensor, k: int) -> Tensor:
        """Positions (B, k) for queries whose lists hold fewer than k rows: in four times the lists, and again."""
        ivf = None if self._index is None else faiss_gpu.lists_of(self._index)
        ids, left = torch.full((len(queries), k), NO_ROW, device=queries.device), torch.arange(len(queries))
        if ivf is not None:
            tuned, most = ivf.nprobe, self._most_lists(ivf)
            while ivf.nprobe < most and len(left):
                ivf.nprobe = min(4 * ivf.nprobe, most)
                ids[left] = self._nearest(queries[left], k)
                left = left[(ids[left] < 0).any(1).cpu()]
            ivf.nprobe = tuned
        if len(left):
            ids[left] = ExactIndex(self._searched).search(queries[left], k).ids
        return ids

    def _build(self, factory: str, stale: Cells | None, seed: int) -> float | None:
        """Train and fill; the list imbalance of an IVF, None for any other index."""
        x = self._searched.cpu().numpy()
        index = empty_index(factory, x.shape[1])
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            require_lists(factory, ivf, len(x))
            ivf.cp.seed, ivf.cp.spherical, ivf.cp.min_points_per_centroid = _seed(seed), True, 1
            if stale is not None and isinstance(faiss.downcast_index(index), faiss.IndexIVF):
                ivf.quantizer.add(_warm_centroids(x, stale.centroids.cpu().numpy(), ivf.nlist, seed))
        index.train(x)
        index.add(x)
        self._index = index
        if ivf is None:
            return None
        self.cells = self._read_cells(ivf)
        lists: Any = ivf.invlists
        return float(lists.imbalance_factor())

    def _read_cells(self, ivf: Any) -> Cells:
        centroids = torch.from_numpy(ivf.quantizer.reconstruct_n(0, ivf.nlist))
        assignment = torch.full((len(self),), NO_CELL, dtype=torch.int64)
        for cell in range(ivf.nlist):
            size = ivf.invlists.list_size(cell)
            if size:
                ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(cell), size)
                assignment[torch.from_numpy(ids.copy())] = cell
        sizes = torch.bincount(assignment, minlength=ivf.nlist)
        device, assignment = self.vectors.device, _everywhere(assignment, self._rows, len(self.vectors))
        return Cells(centroids.to(device), assignment.to(device), sizes.to(device))

    def _tune(self, queries: Tensor, truth: Tensor, target: float, before: int | None = None) -> float:
        """Double the search effort until recall reaches `target`, or nothing is left to raise; the recall reached.

        `before`: the effort of the index this one started from, of which a warm start may need at most the double.
        """
        ivf = faiss_gpu.lists_of(self._index)
        if ivf is not None:
            name, limit = "nprobe", self._most_lists(ivf)
        elif isinstance(faiss.downcast_index(self._index), faiss.IndexHNSW):
            name, limit = "efSearch", 4096
        else:
            self._effort = None
            return recall_of(self._nearest(queries, truth.shape[1]), truth)
        limit = limit if before is None else min(limit, 2 * before)
        self._effort = 1
        while True:
            if ivf is not None:
                ivf.nprobe = self._effort
            else:
                faiss.ParameterSpace().set_index_parameter(self._index, name, self._effort)
            recall = recall_of(self._nearest(queries, truth.shape[1]), truth)
            if recall >= target or self._effort >= limit:
                return recall
            self._effort = min(2 * self._effort, limit)

    def _most_lists(self, ivf: Any) -> int:
        """How many lists can be searched: what is to go to a GPU must not need more than its kernels take."""
        return min(ivf.nlist, faiss_gpu.MOST) if self.vectors.is_cuda else int(ivf.nlist)

    def tune(self, queries: Tensor, k: int, target_recall: float) -> float:
        """Raise the search effort until recall@k on these queries (B, D) reaches the target; the recall reached."""
        if self._index is None:
            return 1.0
        queries, k = asked(self, queries, min(k, len(self)), None)
        truth = ExactIndex(self._searched).search(queries, k).ids
        recall = self._tune(queries, truth, target_recall)
        self.report = self.report._replace(nprobe=self._effort, recall=recall, recall_at=truth.shape[1])
        return recall

    def state(self) -> dict[str, Any]:
        """What `FaissIndex.restore` needs beside the vectors: plain values, and the index as bytes (uint8) or None."""
        index = self._index
        if index is not None:
            index = torch.from_numpy(faiss.serialize_index(faiss_gpu.to_cpu(index)))
        cells = self.cells and [t.cpu() for t in self.cells]
        return {"bytes": index, "effort": self._effort, "report": list(self.report), "cells": cells}

    @classmethod
    def restore(cls, vectors: Tensor, rows: Tensor | None, state: dict[str, Any]) -> FaissIndex:
        """The index that `state` describes, over the same vectors. Check the bytes' checksum before calling."""
        self = object.__new__(cls)
        self._place(vectors, rows)
        self._effort = state["effort"]
        self.report = IndexReport(*state["report"])
        self.cells = state["cells"] and Cells(*(t.to(vectors.device) for t in state["cells"]))
        self._index = None
        if state["bytes"] is not None:
            self._index = faiss_gpu.to_gpu(faiss.deserialize_index(state["bytes"].numpy()), vectors.device)
        return self


def kmeans_cells(vectors: Tensor, rows: Tensor | None, lists: int, seed: int = 0) -> Cells:
    """Spherical k-means of unit rows (N, D), or of rows (n,) of them: `lists` ≤ n cells, the same for a seed."""
    searched = vectors if rows is None else vectors[rows]
    quantizer = faiss_gpu.to_gpu(faiss.IndexFlatIP(vectors.shape[1]), vectors.device)
    centroids = torch.from_numpy(_centroids(searched.cpu().numpy(), lists, seed, quantizer)).to(vectors.device)
    nearest = _knn(searched, centroids, 1)[:, 0]
    return Cells(centroids, _everywhere(nearest, rows, len(vectors)), torch.bincount(nearest, minlength=lists))


def _warm_centroids(x: np.ndarray, stale: np.ndarray, lists: int, seed: int) -> np.ndarray:
    """`WARM_ITERATIONS` of spherical k-means over x (N, D) from stale centroids, cut or filled up to `lists`."""
    rng = np.random.default_rng(seed)
    stale = stale[rng.permutation(len(stale))[:lists]]
    start = np.concatenate((stale, x[rng.permutation(len(x))[: lists - len(stale)]])).astype(np.float32)
    return _centroids(x, lists, seed, faiss.IndexFlatIP(x.shape[1]), start)


def _centroids(x: np.ndarray, lists: int, seed: int, quantizer: Any, start: np.ndarray | None = None) -> np.ndarray:
    """Faiss's k-means over unit rows x (N, D), which trains its lists, too: (lists, D) unit centroids."""
    clustering = faiss.Clustering(x.shape[1], lists)
    clustering.spherical, clustering.seed, clustering.min_points_per_centroid = True, _seed(seed), 1
    if start is not None:
        clustering.niter = WARM_ITERATIONS
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    clustering.train(x, quantizer)
    return faiss.vector_to_array(clustering.centroids).reshape(lists, x.shape[1])


def _seed(seed: int) -> int:
    """Faiss's seeds are positive and of 31 bits."""
    return 1 + seed % (2**31 - 1)


def _everywhere(assignment: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """The cells (n,) of rows (n,) as cells (count,) of every row, `NO_CELL` of the others."""
    if rows is None:
        return assignment
    return assignment.new_full((count,), NO_CELL).index_copy_(0, rows.to(assignment.device), assignment)


def _knn(queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k rows of largest product with each query: (B, k), in no order among equals."""
    if rows.device.type == "cpu":
        _, ids = faiss.knn(queries.numpy(), rows.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(ids)
    if k > faiss_gpu.MOST or not (rows.is_cuda and faiss_gpu.available()):
        return ExactIndex(rows).search(queries, k).ids
    return faiss_gpu.knn(queries, rows, k)
