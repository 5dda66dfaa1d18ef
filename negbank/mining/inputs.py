"""What a run of the miner works on: queries, corpus, ids, positives and exclusions, opened and checked at the start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from negbank.files import MANIFEST
from negbank.index import Index
from negbank.mining.forbidden import Forbidden, read_groups
from negbank.mining.ids import Ids
from negbank.mining.positives import Csr, csr, read_pairs, read_positives
from negbank.mining.rows import Rows
from negbank.snapshot import Snapshot


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


def open_inputs(
    queries: Any, corpus: Any, positives: Any, query_ids: Any, corpus_ids: Any, exclude: Any, groups: Any, index: Any
) -> Work:
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


def check_inputs(work: Work, digest: bool) -> str:
    """Refuse rows that are not finite or are zero; a digest of all inputs if asked for."""
    sums = work.corpus.check(digest=digest)
    if work.queries is not work.corpus:
        sums += work.queries.check(digest=digest)
    for array in work.digested if digest else ():
        sums += hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return hashlib.sha256(sums.encode()).hexdigest()
