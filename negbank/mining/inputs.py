"""What a run of the miner works on: queries, corpus, ids, positives and exclusions, opened and checked at the start.

Inside the miner a row is its position. What containers these may come in, arrays.py and links.py say. A row is scaled
to length 1 in float32 by itself, so what a block or a gather returns depends on no other row. Pages of a mapped file
are handed back after each read: they would count as this process's memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.arrays import Shard, as_ids, as_labels, as_rows, as_tensor
from negbank.bank import unit_rows
from negbank.files import MANIFEST
from negbank.index import Index
from negbank.links import MISSING, Ids, as_links
from negbank.mining.rules import Csr, Forbidden, csr
from negbank.snapshot import Snapshot

Source = Any
"""(N, D) embeddings, as `as_rows` takes them."""
IdsLike = Any
"""(N,) distinct integers or strings, as `as_ids` takes them."""
Positives = Any
"""Which corpus rows belong to a query, as `as_links` takes them; None: every query's own id."""
CHECKED = 1 << 13
"""Rows looked at together in `Rows.check`."""


class Rows:
    """N rows of D columns from one source or several shards, read as float32 unit rows.

    Args:
        source: see `Source`.
        name: of the argument, for errors.
        unit: the rows have length 1 already (a snapshot's) and are taken as they are.

    Attributes:
        resident: all unit rows (N, D) float32, where they are kept in memory.

    Raises:
        ValueError: for a source of another kind, a dtype that is not floating point, shards whose width differs, a
            file that is no `.npy` or is truncated, or no rows.
        FileNotFoundError: for a path that does not exist.
    """

    def __init__(self, source: Source, name: str, *, unit: bool = False) -> None:
        self.name, self._unit = name, unit
        self._parts: list[Shard] = as_rows(source, name)
        self.dim = int(self._parts[0].shape[1])
        for number, part in enumerate(self._parts):
            where = name if len(self._parts) == 1 else f"{name}, shard {number}"
            if part.shape[1] != self.dim:
                raise ValueError(f"{where}: {part.shape[1]} columns, shard 0 has {self.dim}; embed all with one model")
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        if len(self) == 0 or self.dim == 0:
            raise ValueError(f"{name}: shape {(len(self), self.dim)}; there is nothing to mine from")
        first = self._parts[0]
        self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")
        self.resident: Tensor | None = first if unit and len(self._parts) == 1 and isinstance(first, Tensor) else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, *, digest: bool = False) -> str:
        """Read every row once; a digest of all of them where asked for, else "".

        Raises:
            ValueError: naming the first rows that hold NaN or infinity, or that are all zero.
        """
        sha = hashlib.sha256(str((len(self), self.dim)).encode())
        for start, part in self._pieces(CHECKED):
            raw = as_tensor(part)
            rows = raw if raw.dtype == torch.float64 else raw.to(torch.float32)
            largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=-1)
            bad = (~torch.isfinite(largest)).nonzero().flatten()
            if len(bad):
                raise ValueError(
                    f"{self.name}: {len(bad)} row(s) of {len(rows)} from row {start} on hold NaN or infinity, the "
                    f"first at {(bad[:8] + start).tolist()}; drop them or embed them again"
                )
            zero = (largest == 0).nonzero().flatten()
            if len(zero):
                raise ValueError(
                    f"{self.name}: rows {(zero[:8] + start).tolist()} are all zero and have no direction; drop them"
                )
            if digest:
                sha.update(raw.cpu().contiguous().view(torch.uint8).numpy().data)
            _release(part)
        return sha.hexdigest() if digest else ""

    def same_as(self, other: Rows) -> bool:
        """Whether both hold equal unit rows in the same order: by the names of mapped files, else by content."""
        if (len(self), self.dim) != (len(other), other.dim):
            return False
        if [_place(part) for part in self._parts] == [_place(part) for part in other._parts]:
            return True
        starts = [0, *range(1, len(self), CHECKED)]  # most that differ, differ in the first row
        ends = [*starts[1:], len(self)]
        return all(
            torch.equal(self.block(start, stop).cpu(), other.block(start, stop).cpu())
            for start, stop in zip(starts, ends)
        )

    def settle(self, limit: int) -> None:
        """Keep all unit rows in memory, if that takes at most `limit` bytes."""
        if self.resident is None and len(self) * self.dim * 4 <= limit:
            unit = torch.empty(len(self), self.dim, device=self.device)
            for start, rows in self.blocks(CHECKED):
                unit[start : start + len(rows)] = rows
            self.resident = unit

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """(position of the first row, unit rows) of blocks of at most `size` rows, in order."""
        if self.resident is not None:
            for start in range(0, len(self), size):
                yield start, self.resident[start : start + size]
            return
        for start, part in self._pieces(size):
            yield start, self._as_unit(as_tensor(part))
            _release(part)

    def block(self, start: int, stop: int) -> Tensor:
        """Unit rows start..stop−1: (stop − start, D)."""
        if self.resident is not None:
            return self.resident[start:stop]
        return self.take(torch.arange(start, min(stop, len(self))))

    def take(self, positions: Tensor) -> Tensor:
        """Unit rows at positions (...): (..., D)."""
        if self.resident is not None:
            return self.resident[positions.to(self.device)]
        flat = positions.flatten().cpu()
        if len(self._parts) == 1:
            return self._as_unit(self._gather(0, flat)).view(*positions.shape, self.dim)
        found = torch.empty(len(flat), self.dim, device=self.device)
        owner = torch.from_numpy(np.searchsorted(self._starts, flat.numpy(), side="right") - 1)
        for number in owner.unique().tolist():
            mine = owner == number
            found[mine.to(self.device)] = self._as_unit(self._gather(number, flat[mine] - int(self._starts[number])))
        return found.view(*positions.shape, self.dim)

    def _gather(self, number: int, local: Tensor) -> Tensor:
        part = self._parts[number]
        if isinstance(part, Tensor):
            return part[local.to(part.device)].to(self.device)
        if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap) and part.flags.c_contiguous:
            return as_tensor(_read(part, local.tolist()))
        rows = as_tensor(np.take(part, local.numpy(), axis=0))
        _release(part)
        return rows

    def _pieces(self, size: int) -> Iterator[tuple[int, np.ndarray | Tensor]]:
        for part, start in zip(self._parts, self._starts[:-1].tolist()):
            for at in range(0, len(part), size):
                yield start + at, part[at : at + size]

    def _as_unit(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return rows.to(torch.float32) if self._unit else unit_rows(rows)


def _place(part: Shard) -> object:
    """What two shards share that are the same numbers at the same place."""
    if isinstance(part, np.memmap):
        status = os.stat(str(part.filename))
        return status.st_dev, status.st_ino, part.offset, part.shape, part.strides, part.dtype
    return id(part)


def _read(part: np.memmap, positions: list[int]) -> np.ndarray:
    """Rows of a mapped file, read from the file: through the mapping each would bring its surroundings with it."""
    size = part.shape[1] * part.dtype.itemsize
    with open(str(part.filename), "rb") as file:
        raw = b"".join(os.pread(file.fileno(), size, part.offset + i * size) for i in positions)
    return np.frombuffer(bytearray(raw), part.dtype).reshape(-1, part.shape[1])


def _release(part: np.ndarray | Tensor) -> None:
    """Hand the pages of a mapped file back, where the mapping is shared with the file and they can be read again."""
    mapping = getattr(part, "_mmap", None)
    if mapping is not None and getattr(part, "mode", "") in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


class Work(NamedTuple):
    """Q queries and N corpus rows with their ids; positives, and all that is no negative, by position.

    digested: what a digest covers; within: queries are the corpus rows; searched, rows: a snapshot's index and its ids
    of the corpus rows, or None.
    """

    queries: Rows
    corpus: Rows
    query_ids: Ids
    corpus_ids: Ids
    positives: Csr
    forbidden: Forbidden
    digested: list[np.ndarray]
    within: bool
    searched: Index | None
    rows: np.ndarray | None

    def check(self, *, digest: bool) -> str:
        """Refuse rows that are not finite or are zero; a digest of all inputs if asked for."""
        sums = self.corpus.check(digest=digest)
        if self.queries is not self.corpus:
            sums += self.queries.check(digest=digest)
        for array in self.digested if digest else ():
            sums += hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return hashlib.sha256(sums.encode()).hexdigest()


def open_inputs(
    queries: Any, corpus: Any, positives: Any, query_ids: Any, corpus_ids: Any, exclude: Any, groups: Any, index: Any,
    ignore_identical: Any,
) -> Work:  # fmt: skip
    """The arguments of `mine_hard_negatives` of these names, read."""
    if isinstance(corpus, str | Path) and (Path(corpus) / MANIFEST).exists():
        corpus = Snapshot.load(corpus)
    rows, searched = None, None
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
        queries = None if queries is corpus else queries
    else:
        opened = Rows(corpus, "corpus")
    asked = opened if queries is None or queries is corpus else Rows(queries, "queries")
    if asked.dim != opened.dim:
        raise ValueError(f"queries: {asked.dim} columns, the corpus has {opened.dim}; embed both with one model")
    if queries is None and query_ids is not None:
        raise ValueError("query_ids: queries are the corpus here and have its ids; give corpus_ids alone")
    apart = query_ids is not None and not _equal(query_ids, corpus_ids)
    within = not apart and (asked is opened or asked.same_as(opened))
    links = relate(
        len(asked), len(opened), positives, query_ids, corpus_ids, exclude, groups, ignore_identical, within=within
    )
    return Work(opened if within else asked, opened, *links, within, searched, rows)


def _equal(query_ids: Any, corpus_ids: Any) -> bool:
    """Whether two arguments are the same ids."""
    return corpus_ids is not None and np.array_equal(as_ids(query_ids, "query_ids"), as_ids(corpus_ids, "corpus_ids"))


class Links(NamedTuple):
    """What is known of the rows beside their embeddings: see `Work`."""

    query_ids: Ids
    corpus_ids: Ids
    positives: Csr
    forbidden: Forbidden
    digested: list[np.ndarray]


def relate(
    queries: int, rows: int, positives: Any = None, query_ids: Any = None, corpus_ids: Any = None, exclude: Any = None,
    groups: Any = None, ignore_identical: Any = False, *, within: bool,
) -> Links:  # fmt: skip
    """Ids, positives and all that is no negative, of so many queries and corpus rows.

    Args:
        within: queries are the corpus rows: no row is its own negative, nor, by default, its own positive.

    Raises:
        ValueError: as `mine_hard_negatives`.
    """
    ids = Ids(corpus_ids, rows, "corpus_ids")
    own = ids if within else Ids(query_ids, queries, "query_ids")
    every = np.arange(queries)
    itself = csr(every, every, queries)
    if positives is not None:
        known = csr(*as_links(positives, "positives", own, ids), queries)
    elif within:
        known = csr(every[:0], every[:0], queries)
    else:
        known = csr(every, ids.known(own.of(every), "positives=None (each query's own id)"), queries)
    listed = [known, itself] if within else [known]
    if exclude is not None:
        listed.append(csr(*as_links(exclude, "exclude", own, ids, skip=True), queries))
    if ignore_identical is not False:
        listed += _identical(ignore_identical, own, ids, known, named=query_ids is not None and corpus_ids is not None)
    ours = theirs = None
    if groups is not None:
        labels = as_labels(groups, "groups")
        if len(labels) > 2:
            raise ValueError(f"groups: {len(labels)} sets of labels; give those of queries and of the corpus")
        if len(labels) == 1 and not within and (positives is not None or queries != rows):
            raise ValueError(
                "groups: queries are not the corpus here; give a pair (labels of queries, labels of the corpus)"
            )
        ours, theirs = labels * 2 if len(labels) == 1 else labels
        if len(ours) != queries or len(theirs) != rows:
            found = f"{ours.shape} and {theirs.shape}"
            raise ValueError(f"groups: labels of shapes {found}, expected ({queries},) and ({rows},)")
    digested = [array for part in listed for array in part] + [array for array in (ours, theirs) if array is not None]
    digested += [i.values for i in (own, ids) if i.values is not None]
    return Links(own, ids, known, Forbidden(listed, ours, theirs, rows), digested)


def _identical(texts: Any, own: Ids, ids: Ids, known: Csr, *, named: bool) -> list[Csr]:
    """Rows with the query's own id, where both have ids; with texts (ours, theirs), those with its or a positive's."""
    count, every = len(own), np.arange(len(own))
    found = []
    if named:
        place = ids.positions(own.of(every))
        found.append(csr(every[place != MISSING], place[place != MISSING], count))
    if texts is True:
        return found
    if not isinstance(texts, tuple) or len(texts) != 2:
        raise ValueError("ignore_identical: expected True, False, or a tuple (texts of queries, texts of the corpus)")
    both = as_labels(texts, "ignore_identical")
    if len(both) != 2:
        raise ValueError("ignore_identical: expected a tuple of two lists (texts of queries, texts of the corpus)")
    ours, theirs = both
    if len(ours) != count or len(theirs) != len(ids):
        raise ValueError(f"ignore_identical: {len(ours)} and {len(theirs)} texts for {count} and {len(ids)} rows")
    order = np.argsort(theirs, kind="stable")
    codes = np.concatenate((ours, theirs[known.values]))
    owner = np.concatenate((every, known.rows))
    start, stop = (np.searchsorted(theirs[order], codes, side=side) for side in ("left", "right"))
    number = stop - start
    at = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number - start, number)
    found.append(csr(np.repeat(owner, number), order[at], count))
    return found
