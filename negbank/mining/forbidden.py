"""What may not be a negative of a query, by position: known positives, the own row, excluded pairs, the same group.

D_i = {0..N−1} − positives(i) − own(i) − excluded(i) − {j : label(j) = label(i)}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.mining.positives import Csr, csr

NO_GROUP = -1


class Forbidden:
    """The complements of D_i for Q queries over N corpus rows.

    Args:
        listed: lists of forbidden positions, one CSR over the queries each; they are united.
        query_groups, corpus_groups: (Q,) and (N,) int64 labels, `NO_GROUP` for none; or both None.
        rows: N.
    """

    def __init__(
        self, listed: list[Csr], query_groups: np.ndarray | None, corpus_groups: np.ndarray | None, rows: int
    ) -> None:
        count = len(listed[0].indptr) - 1
        anchors = np.concatenate([np.repeat(np.arange(count), np.diff(c.indptr)) for c in listed])
        united = csr(anchors, np.concatenate([c.values for c in listed]), count)
        self._indptr, self._rows = united.indptr, rows
        anchors = np.repeat(np.arange(count), np.diff(united.indptr))
        self._keys = np.sort(anchors * rows + united.values)  # every pair as one number
        self._query_groups, self._corpus_groups = query_groups, corpus_groups
        self._sizes: np.ndarray | None = None
        if query_groups is not None and corpus_groups is not None:
            labels, sizes = np.unique(corpus_groups[corpus_groups != NO_GROUP], return_counts=True)
            at = np.searchsorted(labels, query_groups).clip(max=max(0, len(labels) - 1))
            found = (labels[at] == query_groups) & (query_groups != NO_GROUP) if len(labels) else at < 0
            self._sizes = np.where(found, sizes[at] if len(labels) else 0, 0)

    def most(self, queries: np.ndarray) -> int:
        """An upper bound of the rows forbidden to any of the queries (b,)."""
        listed = int((self._indptr[queries + 1] - self._indptr[queries]).max(initial=0))
        return listed + (0 if self._sizes is None else int(self._sizes[queries].max(initial=0)))

    def mask(self, queries: np.ndarray) -> Mask:
        """What is forbidden to queries (b,), to be looked up by runs of rows."""
        indptr = np.concatenate(([0], np.cumsum(self._indptr[queries + 1] - self._indptr[queries])))
        place = np.arange(indptr[-1]) + np.repeat(self._indptr[queries] - indptr[:-1], np.diff(indptr))
        return Mask(
            np.repeat(np.arange(len(queries)), np.diff(indptr)),
            self._keys[place] % self._rows,
            None if self._query_groups is None else self._query_groups[queries],
            self._corpus_groups,
        )

    def allowed(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Whether positions (b, n) lie in D_i of queries (b,): (b, n) bool; −1 never does."""
        keys = queries[:, None] * self._rows + positions
        at = np.searchsorted(self._keys, keys).clip(max=max(0, len(self._keys) - 1))
        listed = self._keys[at] == keys if len(self._keys) else np.zeros(keys.shape, dtype=bool)
        free = (positions >= 0) & ~listed
        if self._query_groups is not None and self._corpus_groups is not None:
            ours = self._query_groups[queries][:, None]
            free &= (ours == NO_GROUP) | (self._corpus_groups[positions] != ours)
        return free


class Mask:
    """Pairs (query 0..b−1, position) that are forbidden, and labels of the queries and of all rows, or None."""

    def __init__(
        self, queries: np.ndarray, positions: np.ndarray, ours: np.ndarray | None, theirs: np.ndarray | None
    ) -> None:
        order = np.argsort(positions)
        self._queries, self._positions, self._ours, self._theirs = queries[order], positions[order], ours, theirs

    def __call__(self, products: Tensor, row: int) -> None:
        """Set products (b, s) with corpus rows row.. to −∞ where forbidden."""
        stop = row + products.shape[1]
        some = slice(*np.searchsorted(self._positions, (row, stop)).tolist())
        if some.start < some.stop:
            at = torch.from_numpy(np.stack((self._queries[some], self._positions[some] - row))).to(products.device)
            products[at[0], at[1]] = -torch.inf
        if self._ours is not None and self._theirs is not None:
            ours = torch.from_numpy(self._ours).to(products.device)[:, None]
            theirs = torch.from_numpy(self._theirs[row:stop]).to(products.device)
            products.masked_fill_((ours == theirs) & (ours != NO_GROUP), -torch.inf)


def read_groups(
    groups: Any, queries: int, rows: int, *, same: bool
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Labels of queries (Q,) and of corpus rows (N,) as int64.

    Args:
        groups: (N,) labels where queries and corpus are the same rows, else a pair (query labels, corpus labels);
            integers, of which a negative one is no group, or strings; None for no groups.
        queries, rows: Q and N.
        same: queries and corpus are the same rows, or pairs in the same order.

    Raises:
        ValueError: for one list of labels where two are needed, or lengths or types that do not fit.
    """
    if groups is None:
        return None, None
    pair = isinstance(groups, tuple) and len(groups) == 2 and all(np.ndim(_labels(g)) == 1 for g in groups)
    if not pair and not same:
        raise ValueError(
            "groups: queries are not the corpus here; give a pair (labels of queries, labels of the corpus)"
        )
    ours, theirs = (_labels(g) for g in (groups if pair else (groups, groups)))
    if ours.shape != (queries,) or theirs.shape != (rows,):
        raise ValueError(
            f"groups: labels of shapes {ours.shape} and {theirs.shape}, expected ({queries},) and ({rows},)"
        )
    kinds = {ours.dtype.kind, theirs.dtype.kind}
    if kinds <= {"i", "u"}:
        return np.maximum(ours.astype(np.int64), NO_GROUP), np.maximum(theirs.astype(np.int64), NO_GROUP)
    if kinds != {"U"}:
        raise ValueError(f"groups: labels of types {ours.dtype} and {theirs.dtype}; expected integers or strings")
    _, codes = np.unique(np.concatenate((ours, theirs)), return_inverse=True)
    return codes[:queries], codes[queries:]


def _labels(labels: Any) -> np.ndarray:
    return labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
