"""Files, as the command line names them → arguments of `mine_hard_negatives`, and what the result's ids stand for.

All that can be known without an encoder is read and checked before one is loaded.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from negbank import Snapshot
from negbank.files import MANIFEST
from negbank.mining.inputs import Rows, relate
from negbank.train.mining.encoder import Encoder, scorer
from negbank.train.mining.judgements import read_links, typed
from negbank.train.mining.tables import (
    as_text,
    column,
    ids_of,
    is_table,
    joined,
    read_ids,
    read_table,
)

Inputs = tuple[dict[str, Any], Any]
"""Arguments, and a pair of lookups (queries, corpus) from id to text, or None where rows have no texts."""


class Side(NamedTuple):
    """Queries or corpus: where their embeddings are or what is to be encoded, how many, and ids or None."""

    rows: Any
    texts: list[str] | None
    number: int
    ids: np.ndarray | None

    @property
    def lookup(self) -> Any:
        """Texts by id."""
        return self.texts if self.ids is None or self.texts is None else dict(zip(self.ids.tolist(), self.texts))

    def has(self, value: Any) -> bool:
        """Whether a word of a file is an id of a row."""
        if self.ids is None or self.ids.dtype.kind in "iu":
            return str(value).lstrip("-").isdecimal()
        return str(value) in set(self.ids.tolist())


class OnTexts:
    """A scorer of texts, asked by their numbers."""

    def __init__(self, score: Any, queries: list[str], corpus: list[str]) -> None:
        self._score = score
        self._queries, self._corpus = (np.array(texts, dtype=object) for texts in (queries, corpus))

    def __call__(self, queries: np.ndarray, corpus: np.ndarray) -> Any:
        return self._score(self._queries[queries], self._corpus[corpus])


def from_pairs(options: Namespace) -> Inputs:
    """A table of (anchor, positive) texts: every distinct text is a row, positives are the pairs."""
    if options.text is None or len(options.text) != 2 or options.encoder is None:
        raise ValueError("--pairs needs --text ANCHOR POSITIVE, two columns, and --encoder")
    if options.queries is not None or options.positives is not None:
        raise ValueError("--pairs brings queries and positives; give no --queries and no --positives")
    if options.groups is not None:
        raise ValueError("--pairs numbers its texts itself; --groups labels the rows of --corpus and --queries")
    pairs, skipped = _pairs(options.pairs, *options.text)
    extra: list[str] = []
    if options.corpus is not None:
        if not is_table(options.corpus):
            raise ValueError(f"--corpus={options.corpus}: with --pairs it is a table of texts")
        texts = joined(read_table(options.corpus), [options.id or options.text[1]], options.corpus)
        extra = [text for text in texts if text is not None]
        _say(options.corpus, len(texts) - len(extra))
    _say(options.pairs, skipped)
    queries, corpus = (list(dict.fromkeys(texts)) for texts in zip(*pairs))
    corpus = list(dict.fromkeys([*corpus, *extra]))
    number, place = ({text: i for i, text in enumerate(texts)} for texts in (queries, corpus))
    positives = [(number[a], place[p]) for a, p in pairs]
    score = None if options.rescore is None else OnTexts(scorer(options.rescore), queries, corpus)
    encoder = Encoder(options.encoder, options.batch_size)
    return {
        "queries": _embedded(encoder, queries, "query", options),
        "corpus": _embedded(encoder, corpus, "document", options),
        "positives": positives,
        "ignore_identical": (queries, corpus) if options.ignore_identical is not False else False,
        "rescore": score,
    }, (queries, corpus)


def from_rows(options: Namespace) -> Inputs:
    """--corpus and --queries, each embeddings or a table of texts."""
    if options.corpus is None:
        raise ValueError("mine needs --corpus, or --pairs; see negbank mine --help")
    corpus = _side(options.corpus, "corpus", options.corpus_ids, options)
    within = options.queries is None
    queries = corpus if within else _side(options.queries, "queries", options.query_ids, options)
    known: dict[str, Any] = {"corpus_ids": corpus.ids, "query_ids": None if within else queries.ids}
    integers = tuple(side.ids is None or side.ids.dtype.kind in "iu" for side in (queries, corpus))
    for name in ("positives", "exclude"):
        path = getattr(options, name)
        if path is not None:
            links = read_links(path, lambda q, d: queries.has(q) and corpus.has(d), name)
            known[name] = typed(links, (integers[0], integers[1]), name)
    if options.groups is not None:
        if len(options.groups) > 2:
            raise ValueError(
                f"--groups: {len(options.groups)} files; give the labels of the rows, or of queries and of the corpus"
            )
        labels = tuple(read_ids(file) for file in options.groups)
        known["groups"] = labels if len(labels) == 2 else labels[0]
    known["ignore_identical"] = _identical(queries, corpus, options.ignore_identical)
    known["rescore"] = None if options.rescore is None else scorer(options.rescore)
    checked = {name: value for name, value in known.items() if name != "rescore"}
    relate(queries.number, corpus.number, **checked, within=within or _same(options.queries, options.corpus))
    if corpus.texts is None and queries.texts is None:
        return {"queries": None if within else queries.rows, "corpus": corpus.rows, **known}, None
    encoder = Encoder(options.encoder, options.batch_size)
    if isinstance(corpus.rows, Snapshot) and corpus.rows.fingerprint not in (None, encoder.fingerprint):
        Snapshot.load(options.corpus, fingerprint=encoder.fingerprint)
    rows = [
        side.rows if side.texts is None else _embedded(encoder, side.texts, name, options)
        for side, name in ((corpus, "document"), *(() if within else ((queries, "query"),)))
    ]
    return {"queries": None if within else rows[1], "corpus": rows[0], **known}, (queries.lookup, corpus.lookup)


def _pairs(path: Path, *names: str) -> tuple[list[tuple[str, str]], int]:
    """The pairs of two columns, of which the second may hold lists, and how many were skipped for want of a text."""
    table = read_table(path)
    found, skipped = [], 0
    for number, (anchor, cell) in enumerate(zip(*(column(table, name, path) for name in names)), start=1):
        left = as_text(anchor, f"{path}: record {number}, {names[0]}")
        for value in cell if isinstance(cell, list) else [cell]:
            right = as_text(value, f"{path}: record {number}, {names[1]}")
            if left is None or right is None:
                skipped += 1
            else:
                found.append((left, right))
    if not found:
        raise ValueError(f"{path}: no pair has texts in both {names[0]} and {names[1]}")
    return found, skipped


def _side(path: Path, name: str, ids: Path | None, options: Namespace) -> Side:
    known = None if ids is None else read_ids(ids)
    if not is_table(path):
        if (path / MANIFEST).exists():
            snapshot = Snapshot.load(path)
            indexed = len(snapshot) if snapshot.rows is None else len(snapshot.rows)
            numbers = None if snapshot.rows is None else snapshot.rows.cpu().numpy()
            return Side(snapshot, None, indexed, numbers if known is None else known)
        return Side(path, None, len(Rows(path, name)), known)
    if not path.is_file():
        raise FileNotFoundError(f"--{name}={path}: no such file")
    if known is not None:
        raise ValueError(f"--{name}={path}: a table has its ids in a column; give --id or --query-id instead")
    query = name == "queries"
    columns = (options.query_text if query else None) or options.text
    if options.encoder is None:
        raise ValueError("texts need --encoder: an installed sentence-transformers model, or module:callable")
    if columns is None:
        raise ValueError(f"--{name}={path}: a table of texts needs --text COLUMN")
    table = read_table(path)
    texts = joined(table, columns, path)
    number = (options.query_id if query else None) or options.id
    known = None if number is None else ids_of(column(table, number, path), path)
    empty = [place for place, text in enumerate(texts) if text is None]
    if empty and known is None:
        raise ValueError(f"--{name}={path}: records {[i + 1 for i in empty[:4]]} have no text; drop them, or give --id")
    if empty and known is not None:
        known = np.delete(known, empty)
        _say(path, len(empty))
    kept = [text for text in texts if text is not None]
    return Side(None, kept, len(kept), known)


def _identical(queries: Side, corpus: Side, wanted: bool | None) -> Any:
    """By texts, where both have them, unless it is not wanted; by embeddings where that is wanted."""
    if queries.texts is not None and corpus.texts is not None and wanted is not False:
        return queries.texts, corpus.texts
    return wanted is True


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _say(path: Path, skipped: int) -> None:
    if skipped:
        print(f"{path}: {skipped} record(s) without text skipped", file=sys.stderr)


def _embedded(encoder: Encoder, texts: list[str], side: str, options: Namespace) -> np.ndarray:
    """Embeddings through the cache; with several processes the first encodes and the others read."""
    cache = options.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "negbank"
    prompt = options.query_prompt if side == "query" else options.prompt
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else None
    if rank is not None and rank > 0:
        torch.distributed.barrier()
    found = encoder.embed(texts, side, prompt, cache, progress=not options.quiet)
    if rank == 0:
        torch.distributed.barrier()
    return found
