"""Files, as the command line names them → arguments of `mine_hard_negatives`, and what the result's ids stand for."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from negbank import Snapshot
from negbank.files import MANIFEST
from negbank.train.mining.encoder import Encoder
from negbank.train.mining.tables import column, is_table, joined, read_ids, read_positives, read_table, typed

Inputs = tuple[dict[str, Any], Any]
"""Arguments, and a pair of lookups (queries, corpus) from id to text, or None where rows have no texts."""


class Side(NamedTuple):
    """Queries or corpus: embeddings or where they are, ids, and texts by id; None for what there is not."""

    rows: Any
    ids: np.ndarray | None
    texts: Any


def from_pairs(options: Namespace) -> Inputs:
    """A table of (anchor, positive) texts: every distinct text is a row, positives are the pairs."""
    if options.text is None or len(options.text) != 2 or options.encoder is None:
        raise ValueError("--pairs needs --text ANCHOR POSITIVE, two columns, and --encoder")
    if options.queries is not None or options.positives is not None:
        raise ValueError("--pairs brings queries and positives; give no --queries and no --positives")
    if options.groups is not None:
        raise ValueError("--pairs numbers its texts itself; --groups labels the rows of --corpus and --queries")
    table = read_table(options.pairs)
    anchors, positives = ([str(v) for v in column(table, name, options.pairs)] for name in options.text)
    queries, corpus = list(dict.fromkeys(anchors)), list(dict.fromkeys(positives))
    if options.corpus is not None:
        if not is_table(options.corpus):
            raise ValueError(f"--corpus={options.corpus}: with --pairs it is a table of texts")
        extra = joined(read_table(options.corpus), [options.id or options.text[1]], options.corpus)
        corpus = list(dict.fromkeys([*corpus, *extra]))
    number, place = ({text: i for i, text in enumerate(texts)} for texts in (queries, corpus))
    encoder = _encoder(options)
    return {
        "queries": _embedded(encoder, queries, "query", options),
        "corpus": _embedded(encoder, corpus, "document", options),
        "positives": [(number[a], place[p]) for a, p in zip(anchors, positives)],
    }, (queries, corpus)


def from_rows(options: Namespace) -> Inputs:
    """--corpus and --queries, each embeddings or a table of texts."""
    if options.corpus is None:
        raise ValueError("mine needs --corpus, or --pairs; see negbank mine --help")
    paths = [path for path in (options.corpus, options.queries) if path is not None]
    encoder = _encoder(options) if any(map(is_table, paths)) else None
    corpus = _side(options.corpus, "corpus", options.corpus_ids, encoder, options)
    queries = _side(options.queries, "queries", options.query_ids, encoder, options)
    inputs: dict[str, Any] = {"queries": queries.rows, "corpus": corpus.rows, "corpus_ids": corpus.ids}
    if isinstance(corpus.rows, Path) and (corpus.rows / MANIFEST).exists():
        inputs["corpus"] = Snapshot.load(corpus.rows, fingerprint=None if encoder is None else encoder.fingerprint)
    if options.queries is not None:
        inputs["query_ids"] = queries.ids
    integers = all(side.ids is None or side.ids.dtype.kind in "iu" for side in (corpus, queries))
    for name in ("positives", "exclude"):
        path = getattr(options, name)
        if path is not None:
            inputs[name] = typed(read_positives(path), integers)
    if options.groups is not None:
        if len(options.groups) > 2:
            raise ValueError(
                f"--groups: {len(options.groups)} files; give the labels of the rows, or of queries and of the corpus"
            )
        labels = tuple(read_ids(file) for file in options.groups)
        inputs["groups"] = labels if len(labels) == 2 else labels[0]
    if encoder is None:
        return inputs, None
    return inputs, (corpus.texts if options.queries is None else queries.texts, corpus.texts)


def _side(path: Path | None, name: str, ids: Path | None, encoder: Encoder | None, options: Namespace) -> Side:
    known = None if ids is None else read_ids(ids)
    if path is None or encoder is None or not is_table(path):
        return Side(path, known, None)
    if known is not None:
        raise ValueError(f"--{name}={path}: a table has its ids in a column; give --id or --query-id instead")
    query = name == "queries"
    columns = (options.query_text if query else None) or options.text
    if columns is None:
        raise ValueError(f"--{name}={path}: a table of texts needs --text COLUMN")
    table = read_table(path)
    texts = joined(table, columns, path)
    number = (options.query_id if query else None) or options.id
    known = None if number is None else np.array([str(i) for i in column(table, number, path)])
    rows = _embedded(encoder, texts, "query" if query else "document", options)
    return Side(rows, known, texts if known is None else dict(zip(known.tolist(), texts)))


def _encoder(options: Namespace) -> Encoder:
    if options.encoder is None:
        raise ValueError("texts need --encoder: an installed sentence-transformers model, or module:callable")
    return Encoder(options.encoder, options.batch_size)


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
