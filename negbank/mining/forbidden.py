"""What may not be a negative of a query, by position: known positives, the own row, excluded pairs, the same group.

D_i = {0..N−1} − positives(i) − own(i) − excluded(i) − {j : label(j) = label(i)}
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NO_GROUP = -1


class Csr(NamedTuple):
    """Ragged rows: row i is values[indptr[i] : indptr[i + 1]]."""

    indptr: np.ndarray
    values: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Values of each row."""
        return np.diff(self.indptr)

    @property
    def rows(self) -> np.ndarray:
        """The row of each value."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.counts)

    def part(self, start: int, stop: int) -> Csr:
        """Rows start..stop−1."""
        inside = self.indptr[start : stop + 1]
        return Csr(inside - inside[0], self.values[inside[0] : inside[-1]])

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of all values of rows (r,), one row after the other: which of the r it belongs to, and its place here."""
        some = offsets(self.counts[rows])
        owner = np.repeat(np.arange(len(rows)), np.diff(some))
        return owner, np.arange(some[-1]) + (self.indptr[rows] - some[:-1])[owner]


def offsets(counts: np.ndarray) -> np.ndarray:
    """0 and the running sum of counts."""
    return np.concatenate(([0], np.cumsum(counts)))


def csr(rows: np.ndarray, values: np.ndarray, count: int) -> Csr:
    """CSR of `count` rows from pairs, each pair once, in the order of its first appearance."""
    order = np.lexsort((np.arange(len(rows)), values, rows))
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (np.diff(rows[order]) != 0) | (np.diff(values[order]) != 0)
    kept = np.sort(order[first])
    kept = kept[np.argsort(rows[kept], kind="stable")]
    return Csr(offsets(np.bincount(rows[kept], minlength=count)), values[kept].astype(np.int64))


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
        keys = np.unique(np.concatenate([each.rows * rows + each.values for each in listed]))  # a pair as one number
        self._listed = Csr(np.searchsorted(keys, np.arange(count + 1) * rows), keys % rows)
        self._keys, self._rows = np.append(keys, np.iinfo(np.int64).max), rows
        self._query_groups, self._corpus_groups = query_groups, corpus_groups
        self._sizes = np.zeros(count, dtype=np.int64)  # of each query's group, in the corpus
        if query_groups is not None and corpus_groups is not None:
            labels, sizes = np.unique(corpus_groups, return_counts=True)
            at = np.searchsorted(labels, query_groups).clip(max=len(labels) - 1)
            self._sizes = np.where((labels[at] == query_groups) & (query_groups != NO_GROUP), sizes[at], 0)

    def most(self, queries: np.ndarray) -> int:
        """An upper bound of the rows forbidden to any of the queries (b,)."""
        return int(self._listed.counts[queries].max(initial=0)) + int(self._sizes[queries].max(initial=0))

    def mask(self, queries: np.ndarray) -> Mask:
        """What is forbidden to queries (b,), to be looked up by runs of rows."""
        owner, place = self._listed.places(queries)
        ours = None if self._query_groups is None else self._query_groups[queries]
        return Mask(owner, self._listed.values[place], ours, self._corpus_groups)

    def allowed(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Whether positions (b, n) lie in D_i of queries (b,): (b, n) bool; −1 never does."""
        keys = queries[:, None] * self._rows + positions
        free = (positions >= 0) & (self._keys[np.searchsorted(self._keys, keys)] != keys)
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
