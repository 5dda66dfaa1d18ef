"""What a run of the miner works on: queries, corpus, ids, positives and exclusions, in any of the forms people hold
them in, opened and checked at the start. Inside the miner a row is its position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from negbank.files import MANIFEST
from negbank.index import Index
from negbank.mining.rows import Rows
from negbank.mining.rules import NO_GROUP, Csr, Forbidden, csr
from negbank.snapshot import Snapshot

MISSING = -1
"""Position of an id that no row has."""
IdsLike = Sequence[int] | Sequence[str] | np.ndarray | Tensor
Positives = Any
"""(P, 2) pairs (query id, corpus id), or a list of 2-tuples; CSR as a pair (indptr, ids) or a scipy CSR matrix; a list
of Q lists of ids; a dict from query id to an id or a list; None: every query's own id."""


class Ids:
    """ids of `count` rows ↔ positions 0..count−1.

    Args:
        values: (count,) distinct integers or strings, in any order; None for 0..count−1.
        count: number of rows.
        name: of the argument, for errors.

    Raises:
        ValueError: for another length, ids that are neither integers nor strings, or an id that comes twice.
    """

    def __init__(self, values: IdsLike | None, count: int, name: str) -> None:
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
            raise ValueError(
                f"{name}: {len(missing)} id(s) are not among the {self.count} {self.name}, such as "
                f"{missing[:4].tolist()}; add their rows or drop them"
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
        hashed = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in self.values[distinct]]
        return np.frombuffer(b"".join(hashed), dtype=np.uint64)[back].reshape(positions.shape)


def as_ids(values: IdsLike, name: str) -> np.ndarray:
    """Ids as an int64 or a string array.

    Raises:
        ValueError: for floats, booleans, or mixed types.
    """
    array = _array(values)
    if array.size == 0:
        return array.astype(np.int64) if array.dtype.kind == "f" else array
    if array.dtype.kind == "O" and all(isinstance(i, str) for i in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "U" and not isinstance(values, np.ndarray) and not all(isinstance(i, str) for i in values):
        raise ValueError(f"{name}: integers and strings mixed; give ids of one type")
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{name}: ids of type {array.dtype}; expected integers or strings")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def read_positives(positives: Positives, queries: Ids, corpus: Ids) -> Csr:
    """Positions of every query's positives, in the order given, each once.

    Raises:
        ValueError: for another form, ids that are no row of the corpus or no query, or lists that are not one a query.
    """
    name = "positives"
    if hasattr(positives, "indptr") and hasattr(positives, "indices"):
        positives = (positives.indptr, positives.indices)
    listed = isinstance(positives, list | tuple)
    if positives is None:
        name = "positives=None (each query's own id)"
        anchors = np.arange(queries.count)
        ids = queries.of(anchors)
    elif isinstance(positives, Mapping):
        keys = as_ids(list(positives), name)
        owner, ids = _flat(positives.values(), name)
        anchors = queries.known(keys, name)[owner]
    elif isinstance(positives, tuple) and len(positives) == 2 and all(np.ndim(_array(p)) == 1 for p in positives):
        indptr, ids = _array(positives[0]), as_ids(positives[1], name)
        rises = indptr.shape == (queries.count + 1,) and indptr[0] == 0 and indptr[-1] == len(ids)
        if not rises or (np.diff(indptr) < 0).any():
            raise ValueError(
                f"positives: indptr of shape {indptr.shape} for {queries.count} queries and {len(ids)} ids; "
                f"expected {queries.count + 1} offsets that rise from 0 to {len(ids)}"
            )
        anchors = Csr(indptr, ids).rows
    elif hasattr(positives, "ndim") or (listed and len(positives) and all(isinstance(p, tuple) for p in positives)):
        left, ids = _columns(positives, name)
        anchors = queries.known(left, name)
    elif listed:
        if len(positives) != queries.count:
            raise ValueError(
                f"positives: {len(positives)} lists for {queries.count} queries; give one a query, [] for none"
            )
        anchors, ids = _flat(positives, name)
    else:
        raise ValueError(
            f"positives: {type(positives).__name__}; expected pairs, CSR (indptr, ids), a list of lists, a dict or None"
        )
    return csr(anchors, corpus.known(ids, name), queries.count)


def read_pairs(pairs: Any, queries: Ids, corpus: Ids, name: str) -> Csr:
    """(P, 2) pairs (query id, corpus id) as CSR; a corpus id that no row has excludes nothing.

    Raises:
        ValueError: for another shape or a query id that is no query.
    """
    anchors, others = _columns(pairs, name)
    left, right = queries.known(anchors, name), corpus.positions(others)
    return csr(left[right != MISSING], right[right != MISSING], queries.count)


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
    pair = isinstance(groups, tuple) and len(groups) == 2 and all(np.ndim(_array(g)) == 1 for g in groups)
    if not pair and not same:
        raise ValueError(
            "groups: queries are not the corpus here; give a pair (labels of queries, labels of the corpus)"
        )
    ours, theirs = (_array(g) for g in (groups if pair else (groups, groups)))
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


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _flat(lists: Iterable[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of lists of ids, or single ids, one after the other: which list each is in, and the ids."""
    each = [[ids] if isinstance(ids, int | str | np.integer) else list(ids) for ids in lists]
    values: list[Any] = [i for ids in each for i in ids]
    return np.repeat(np.arange(len(each)), [len(ids) for ids in each]), as_ids(values, name)


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


class Work(NamedTuple):
    """Q queries and N corpus rows with their ids; positives, and all that is no negative, by position.

    searched, rows: a snapshot's index and its ids of the corpus rows, or None; digested: what a digest covers.
    """

    queries: Rows
    corpus: Rows
    query_ids: Ids
    corpus_ids: Ids
    positives: Csr
    forbidden: Forbidden
    searched: Index | None
    rows: np.ndarray | None
    digested: list[np.ndarray]

    def check(self, *, digest: bool) -> str:
        """Refuse rows that are not finite or are zero; a digest of all inputs if asked for."""
        sums = self.corpus.check(digest=digest)
        if self.queries is not self.corpus:
            sums += self.queries.check(digest=digest)
        for array in self.digested if digest else ():
            sums += hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return hashlib.sha256(sums.encode()).hexdigest()


def open_inputs(
    queries: Any, corpus: Any, positives: Any, query_ids: Any, corpus_ids: Any, exclude: Any, groups: Any, index: Any
) -> Work:
    """The arguments of `mine_hard_negatives` of these names, read."""
    if isinstance(corpus, str | Path) and (Path(corpus) / MANIFEST).exists():
        corpus = Snapshot.load(corpus)
    rows, searched = None, None
    within = queries is None or queries is corpus
    if isinstance(corpus, Snapshot):
        snapshot, rows = corpus, None if corpus.rows is None else corpus.rows.cpu().numpy()
        if index not in (None, "exact"):
            raise ValueError(
                f"index={index!r}: a snapshot has its own; give None or 'exact', or the embeddings instead"
            )
        vectors = snapshot.vectors if snapshot.rows is None else snapshot.vectors[snapshot.rows]
        opened = Rows(vectors, "corpus", unit=True)
        corpus_ids = rows if corpus_ids is None else corpus_ids
        if index is None and snapshot.index.report.factory not in ("exact", "Flat"):
            searched = snapshot.index
    else:
        opened = Rows(corpus, "corpus")
    asked = opened if within else Rows(queries, "queries")
    if asked.dim != opened.dim:
        raise ValueError(f"queries: {asked.dim} columns, the corpus has {opened.dim}; embed both with one model")
    ids = Ids(corpus_ids, len(opened), "corpus_ids")
    if within and query_ids is not None:
        raise ValueError("query_ids: queries are the corpus here and have its ids; give corpus_ids alone")
    own = ids if within else Ids(query_ids, len(asked), "query_ids")
    known = read_positives(positives, own, ids)
    listed = [known]
    if within:
        listed.append(csr(np.arange(len(asked)), np.arange(len(opened)), len(asked)))
    if exclude is not None:
        listed.append(read_pairs(exclude, own, ids, "exclude"))
    same = within or (positives is None and len(asked) == len(opened))
    ours, theirs = read_groups(groups, len(asked), len(opened), same=same)
    digested = [array for part in listed for array in part] + [array for array in (ours, theirs) if array is not None]
    digested += [i.values for i in (own, ids) if i.values is not None]
    return Work(asked, opened, own, ids, known, Forbidden(listed, ours, theirs, len(opened)), searched, rows, digested)
