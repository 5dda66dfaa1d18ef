"""One text a row: the lines of a file, or a column of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Gt, Input, Le, Share, checked
from negbank.train.data.contract import Splits
from negbank.train.data.holdout import with_holdout
from negbank.train.data.text.data import TextData
from negbank.train.data.text.tokenizers import tokenizer as named
from negbank.train.mining import tables


@checked
def text(
    path: Annotated[str, Input()],
    *,
    column: str | None = None,
    label_column: str | None = None,
    tokenizer: str = "wordllama",
    longest: Count = 64,
    delete: Share = 0.0,
    crop: Annotated[float, Gt(0), Le(1)] = 1.0,
    prompt: str = "",
    holdout: Annotated[float, Ge(0), Le(0.9)] = 0.0,
) -> Splits:
    """Texts of a file: lines, or a column of CSV, TSV, JSONL or Parquet. Views leave tokens out.

    Args:
        path: .csv, .tsv, .jsonl or .parquet with `column`; any other file has a text a line.
        column: the texts' column; not needed where a table has only one.
        label_column: column of classes, or of what else rows have in common, such as a document's source; for
            evaluation only.
        tokenizer: wordllama, hashed, a folder with a tokenizer.json, a package that carries one, or a model's name on
            the hub.
        longest: tokens of a text at most; the rest is cut off.
        delete: share of tokens that a view leaves out, each by itself; 0 with crop 1: views differ by dropout alone.
        crop: least share of a text that a view keeps, as one span; 1: all of it.
        prompt: put before every text.
        holdout: share of the rows held out, the same for every run; 0 for none. Pairs hold out rows themselves.

    Raises:
        ValueError: for a file that cannot be read, an empty text, or a tokenizer that is not there.
    """
    texts, labels, names = read_texts(Path(path), column, label_column)
    data = TextData(
        texts, named(tokenizer), longest=longest, delete=delete, crop=crop, prompt=prompt, labels=labels
    )  # fmt: skip
    return with_holdout(data, holdout, names)


def read_texts(
    path: Path, column: str | None, label_column: str | None
) -> tuple[list[str], Tensor | None, tuple[str, ...]]:
    """The texts of a file, their labels if there is a column of them, and the labels' names.

    Raises:
        ValueError: for a file that cannot be read, a column that is not there, or an empty text, with its record.
    """
    if not tables.is_table(path):
        if column is not None or label_column is not None:
            raise ValueError(
                f"column: {path} has lines, not columns; leave it out, or give {', '.join(tables.SUFFIXES)}"
            )
        return tables.lines(path), None, ()
    table = tables.read_table(path)
    if column is None and len(table) > 1:
        raise ValueError(f"column: {path} has {', '.join(table)}; say which one holds the texts")
    found = tables.joined(table, [column or next(iter(table))], path)
    empty = next((i for i, each in enumerate(found) if each is None), None)
    if empty is not None:
        raise ValueError(f"{path}: record {empty + 1} has no text in {column}; leave it out")
    texts = [each for each in found if each is not None]
    if label_column is None:
        return texts, None, ()
    values = [str(each) for each in tables.column(table, label_column, path)]
    names, numbers = np.unique(values, return_inverse=True)
    return texts, torch.from_numpy(numbers.astype(np.int64)), tuple(names.tolist())
