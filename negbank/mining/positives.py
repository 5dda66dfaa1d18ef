"""Known positives in any of the forms people hold them in, as one CSR over positions of queries and corpus rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from negbank.mining.ids import MISSING, Ids, as_ids

Positives = Any
"""(P, 2) pairs (query id, corpus id), or a list of 2-tuples; CSR as a pair (indptr, ids) or a scipy CSR matrix; a list
of Q lists of ids; a dict from query id to an id or a list; None: every query's own id."""


class Csr(NamedTuple):
    """Ragged rows: row i is values[indptr[i] : indptr[i + 1]]."""

    indptr: np.ndarray
    values: np.ndarray

    def part(self, start: int, stop: int) -> Csr:
        """Rows start..stop−1."""
        inside = self.indptr[start : stop + 1]
        return Csr(inside - inside[0], self.values[inside[0] : inside[-1]])


def read_positives(positives: Positives, queries: Ids, corpus: Ids) -> Csr:
    """Positions of every query's positives, in the order given, each once.

    Raises:
        ValueError: for another form, ids that are no row of the corpus or no query, or lists that are not one a query.
    """
    if positives is None:
        own = queries.of(np.arange(queries.count))
        return csr(np.arange(queries.count), _known(own, corpus, "positives=None (each query's own id)"), queries.count)
    if isinstance(positives, Mapping):
        lists = [[ids] if isinstance(ids, int | str | np.integer) else list(ids) for ids in positives.values()]
        keys = as_ids(list(positives), "positives")
        anchors = np.repeat(_known(keys, queries, "positives"), [len(ids) for ids in lists])
        return csr(anchors, _known(_flat(lists), corpus, "positives"), queries.count)
    return _from_sequence(positives, queries, corpus)


def read_pairs(pairs: Any, queries: Ids, corpus: Ids, name: str) -> Csr:
    """(P, 2) pairs (query id, corpus id) as CSR; a corpus id that no row has excludes nothing.

    Raises:
        ValueError: for another shape or a query id that is no query.
    """
    anchors, others = _columns(pairs, name)
    left, right = _known(anchors, queries, name), corpus.positions(others)
    return csr(left[right != MISSING], right[right != MISSING], queries.count)


def csr(rows: np.ndarray, values: np.ndarray, count: int) -> Csr:
    """CSR of `count` rows from pairs, each pair once, in the order of its first appearance."""
    order = np.lexsort((np.arange(len(rows)), values, rows))
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (np.diff(rows[order]) != 0) | (np.diff(values[order]) != 0)
    kept = np.sort(order[first])
    kept = kept[np.argsort(rows[kept], kind="stable")]
    indptr = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows[kept], minlength=count), out=indptr[1:])
    return Csr(indptr, values[kept].astype(np.int64))


def _from_sequence(positives: Positives, queries: Ids, corpus: Ids) -> Csr:
    if hasattr(positives, "indptr") and hasattr(positives, "indices"):
        positives = (positives.indptr, positives.indices)
    if isinstance(positives, tuple) and len(positives) == 2 and all(np.ndim(p) == 1 for p in map(_array, positives)):
        indptr, flat = _array(positives[0]), as_ids(positives[1], "positives")
        if (
            indptr.shape != (queries.count + 1,)
            or indptr[0] != 0
            or indptr[-1] != len(flat)
            or (np.diff(indptr) < 0).any()
        ):
            raise ValueError(
                f"positives: indptr of shape {indptr.shape} for {queries.count} queries and {len(flat)} ids; "
                f"expected {queries.count + 1} offsets that rise from 0 to {len(flat)}"
            )
        anchors = np.repeat(np.arange(queries.count), np.diff(indptr))
        return csr(anchors, _known(flat, corpus, "positives"), queries.count)
    listed = isinstance(positives, list | tuple)
    if hasattr(positives, "ndim") or (listed and len(positives) and all(isinstance(p, tuple) for p in positives)):
        anchors, others = _columns(positives, "positives")
        return csr(_known(anchors, queries, "positives"), _known(others, corpus, "positives"), queries.count)
    if not listed:
        raise ValueError(
            f"positives: {type(positives).__name__}; expected pairs, CSR (indptr, ids), a list of lists, a dict or None"
        )
    if len(positives) != queries.count:
        raise ValueError(
            f"positives: {len(positives)} lists for {queries.count} queries; give one a query, [] for none"
        )
    lists = [[ids] if isinstance(ids, int | str | np.integer) else list(ids) for ids in positives]
    anchors = np.repeat(np.arange(queries.count), [len(ids) for ids in lists])
    return csr(anchors, _known(_flat(lists), corpus, "positives"), queries.count)


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _flat(lists: list[list[Any]]) -> np.ndarray:
    return as_ids([i for ids in lists for i in ids], "positives")


def _columns(pairs: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two columns of pairs; of a list of tuples each column may have a type of its own."""
    if isinstance(pairs, list | tuple):
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{name}: expected pairs (query id, corpus id), found one of length other than 2")
        left, right = zip(*pairs) if pairs else ((), ())
        return as_ids(list(left), name), as_ids(list(right), name)
    array = _array(pairs)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name}: shape {array.shape}, expected (P, 2) pairs (query id, corpus id)")
    return as_ids(array[:, 0], name), as_ids(array[:, 1], name)


def _known(wanted: np.ndarray, ids: Ids, name: str) -> np.ndarray:
    positions = ids.positions(wanted)
    missing = wanted[positions == MISSING]
    if len(missing):
        raise ValueError(
            f"{name}: {len(missing)} id(s) are not among the {ids.count} {ids.name}, such as {missing[:4].tolist()}; "
            f"add their rows or drop them"
        )
    return positions
