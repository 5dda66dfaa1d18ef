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

    def mask_(self, scores: Tensor, queries: np.ndarray, row: int) -> None:
        """Set scores (b, s) of queries (b,) and corpus rows row.. to −∞ where forbidden."""
        width = scores.shape[1]
        start, stop = self._indptr[queries], self._indptr[queries + 1]
        sizes = stop - start
        anchors = np.repeat(np.arange(len(queries)), sizes)
        place = np.arange(len(anchors)) + np.repeat(start - (np.cumsum(sizes) - sizes), sizes)
        positions = self._keys[place] % self._rows
        inside = (positions >= row) & (positions < row + width)
        if inside.any():
            at = torch.from_numpy(np.stack((anchors[inside], positions[inside] - row))).to(scores.device)
            scores[at[0], at[1]] = -torch.inf
        if self._query_groups is not None and self._corpus_groups is not None:
            ours = torch.from_numpy(self._query_groups[queries]).to(scores.device)
            theirs = torch.from_numpy(self._corpus_groups[row : row + width]).to(scores.device)
            same = (ours[:, None] == theirs) & (ours != NO_GROUP)[:, None]
            scores[:, : len(theirs)].masked_fill_(same, -torch.inf)

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
