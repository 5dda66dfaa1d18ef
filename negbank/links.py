"""Rows by id, and which rows belong with which: positives, exclusions.

Pairs, entries by row, CSR and matrices are told apart by their type alone, in `as_links`; arrays.py reads the ids.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from negbank.arrays import as_ids, columns_of, dimensions, plain

MISSING = -1
"""Position of an id that no row has."""
PAIRS = "pairs, as a list of 2-tuples, an integer array (P, 2) or a table of two columns"
LINKS = f"{PAIRS}; an entry (id, list or {{id: grade}}) a row in a list or dict; CSR (indptr, ids); a sparse matrix"


class Ids:
    """ids of `count` rows ↔ positions 0..count−1.

    Args:
        values: (count,) distinct integers or strings, in any order; None for 0..count−1.
        count: number of rows.
        name: of the argument, for errors.

    Raises:
        ValueError: as `as_ids`; for another length, or an id that comes twice.
    """

    def __init__(self, values: Any, count: int, name: str) -> None:
        self.name, self.count = name, count
        self.values: np.ndarray | None = None
        self.rank: np.ndarray | None = None  # (count,) place of each row's id in ascending order; None when ascending
        self._sorted = self._order = np.zeros(0, dtype=np.int64)
        if values is None:
            return
        array = as_ids(values, name)
        if array.shape != (count,):
            raise ValueError(f"{name}: shape {array.shape} for {count} rows; give one id a row")
        order = np.argsort(array, kind="stable")
        ascending = array[order]
        again = np.flatnonzero(ascending[1:] == ascending[:-1])
        if len(again):
            raise ValueError(
                f"{name}: {len(again)} id(s) come more than once, such as {ascending[again][:4].tolist()}; "
                f"an id names one row, so drop the duplicates or number the rows"
            )
        self.values, self._sorted, self._order = array, ascending, order
        if not np.array_equal(order, np.arange(count)):
            self.rank = np.empty(count, dtype=np.int64)
            self.rank[order] = np.arange(count)

    def __len__(self) -> int:
        return self.count

    def positions(self, wanted: np.ndarray) -> np.ndarray:
        """Position of every wanted id, `MISSING` where no row has it: int64 of the same shape."""
        if self.values is None:
            if wanted.dtype.kind not in "iu":
                return np.full(wanted.shape, MISSING)
            return np.where((wanted >= 0) & (wanted < self.count), wanted, MISSING).astype(np.int64)
        if (wanted.dtype.kind == "U") != (self.values.dtype.kind == "U") or not self.count:
            return np.full(wanted.shape, MISSING)
        at = np.searchsorted(self._sorted, wanted).clip(max=self.count - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], MISSING)

    def known(self, wanted: np.ndarray, name: str) -> np.ndarray:
        """`positions` of ids from an argument `name`, all of which rows have.

        Raises:
            ValueError: naming the first that no row has.
        """
        positions = self.positions(wanted)
        missing = wanted[positions == MISSING]
        if len(missing):
            numbered = f", outside 0..{self.count - 1}" if self.values is None else ""
            raise ValueError(
                f"{name}: {len(missing)} id(s) are not among the {self.count} {self.name}, such as "
                f"{missing[:4].tolist()}{numbered}; add their rows or drop them"
            )
        return positions

    def of(self, positions: np.ndarray) -> np.ndarray:
        """The ids of rows at positions."""
        return positions.astype(np.int64) if self.values is None else self.values[positions]

    def keys(self, positions: np.ndarray) -> np.ndarray:
        """64 bits that stand for each row's id in a hash, whatever the order of the rows: uint64."""
        if self.values is None or self.values.dtype.kind != "U":
            return self.of(positions).astype(np.int64).view(np.uint64)
        distinct, back = np.unique(positions, return_inverse=True)
        named = [str(i).encode(errors="surrogatepass") for i in self.values[distinct]]
        hashed = b"".join(hashlib.blake2b(i, digest_size=8).digest() for i in named)
        return np.frombuffer(hashed, dtype=np.uint64)[back].reshape(positions.shape)


def as_links(links: Any, name: str, ours: Ids, theirs: Ids, *, skip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Positions (P,) and (P,) of rows of `ours` and of `theirs` that are linked, in the order given.

    Args:
        links: pairs (id of ours, id of theirs): a list of 2-tuples, an integer array (P, 2), or a table of two columns.
            By row: a list of as many entries as `ours`, or a dict from id to entry; an entry is an id, a list of ids,
            or {id: grade}, of which grades above 0 count. CSR as two arrays (indptr, ids). A sparse matrix
            (ours, theirs) by position, of which entries above 0 count.
        skip: whether ids that no row of `theirs` has are left out.

    Raises:
        ValueError: for anything else; for a list of lists of two that could be pairs as well; for ids that no row has.
    """
    count, table = len(ours), columns_of(links)
    if hasattr(links, "tocoo"):
        if tuple(links.shape) != (count, len(theirs)):
            raise ValueError(f"{name}: a sparse matrix of shape {tuple(links.shape)}, expected {(count, len(theirs))}")
        entries = links.tocoo()
        kept = entries.data > 0
        return entries.row[kept].astype(np.int64), entries.col[kept].astype(np.int64)
    if isinstance(links, Mapping):
        owner, ids = _entries(links.values(), name)
        anchors = ours.known(as_ids(list(links), name), name)[owner]
    elif table is not None:
        if len(table) != 2:
            raise ValueError(f"{name}: a table of {len(table)} columns; give the two of ids")
        left, ids = (as_ids(column, name) for column in table.values())
        anchors = ours.known(left, name)
    elif isinstance(links, tuple) and len(links) == 2 and all(isinstance(p, np.ndarray | Tensor) for p in links):
        indptr, ids = as_ids(links[0], name), as_ids(links[1], name)
        rises = indptr.shape == (count + 1,) and indptr[0] == 0 and indptr[-1] == len(ids)
        if not rises or (np.diff(indptr) < 0).any():
            raise ValueError(
                f"{name}: indptr of shape {indptr.shape} for {count} rows and {len(ids)} ids; "
                f"expected {count + 1} offsets that rise from 0 to {len(ids)}"
            )
        anchors = np.repeat(np.arange(count), np.diff(indptr))
    elif isinstance(links, list | tuple) and len(links) and all(isinstance(each, tuple) for each in links):
        if any(len(pair) != 2 for pair in links):
            raise ValueError(f"{name}: expected {PAIRS}, found a tuple of length other than 2; give lists for lists")
        left, ids = (as_ids(list(column), name) for column in zip(*links))
        anchors = ours.known(left, name)
    elif isinstance(links, list | tuple) and not len(links):
        anchors, ids = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    elif isinstance(links, list):
        anchors, ids = _by_row(links, name, ours, theirs)
    elif isinstance(links, str | bytes | set | tuple) or not hasattr(links, "__len__"):
        raise ValueError(f"{name}: {type(links).__name__}; expected {LINKS}")
    else:
        array = plain(links, name)
        if array.ndim == 1 and len(array) == count:
            anchors, ids = _by_row(list(array) if array.dtype.kind == "O" else array, name, ours, theirs)
        elif array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(f"{name}: shape {array.shape}, expected (P, 2) {PAIRS}")
        else:
            left, ids = as_ids(array[:, 0], name), as_ids(array[:, 1], name)
            anchors = ours.known(left, name)
    others = theirs.positions(ids) if skip else theirs.known(ids, name)
    return anchors[others != MISSING], others[others != MISSING]


def _by_row(entries: Any, name: str, ours: Ids, theirs: Ids) -> tuple[np.ndarray, np.ndarray]:
    if len(entries) != len(ours):
        raise ValueError(
            f"{name}: {len(entries)} lists for {len(ours)} {ours.name}; give one a row, [] for none, or {PAIRS}"
        )
    if isinstance(entries, np.ndarray):
        return np.arange(len(ours)), as_ids(entries, name)
    owner, ids = _entries(entries, name)
    twos = np.bincount(owner, minlength=1) == 2
    lists = len(ids) and twos.all() and not any(isinstance(each, Mapping | set | frozenset) for each in entries)
    if lists and (ours.positions(ids[0::2]) != MISSING).all() and (theirs.positions(ids[1::2]) != MISSING).all():
        raise ValueError(
            f"{name}: {len(entries)} lists of two could be pairs, or two ids a row; give pairs as tuples, "
            f"lists as a dict from id to list"
        )
    return owner, ids


def _entries(entries: Iterable[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of entries, one after the other: which each id is in, and the ids."""
    each: list[list[Any]] = []
    for entry in entries:
        if isinstance(entry, Mapping):
            each.append([i for i, grade in entry.items() if _grade(grade, name) > 0])
        elif isinstance(entry, set | frozenset):
            each.append(sorted(entry))
        elif dimensions(entry) == 0:
            each.append([entry])
        else:
            each.append(entry if isinstance(entry, list) else as_ids(entry, name).tolist())
    return np.repeat(np.arange(len(each)), [len(ids) for ids in each]), as_ids([i for ids in each for i in ids], name)


def _grade(grade: Any, name: str) -> float:
    if isinstance(grade, str) or not isinstance(grade, int | float | np.number) or math.isnan(grade):
        raise ValueError(f"{name}: grade {grade!r}; expected numbers, of which those above 0 are relevant")
    return float(grade)
