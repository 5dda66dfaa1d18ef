"""Columns of CSV, TSV, JSONL and Parquet files, and lists of ids.

A CSV file is read as Python's `csv` reads it. A TSV file, too, where its quotes are balanced and stay within a line;
else a quote is a character like another. A byte order mark and blank lines at the end are no text. What a file says
twice, not at all, or in a way that could mean two things is refused with its name.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from negbank.arrays import OTHERS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
Table = dict[str, list[Any]]


def is_table(path: str | Path) -> bool:
    """Whether the path names a table of columns rather than an array."""
    return Path(path).suffix in SUFFIXES


def read_table(path: Path) -> Table:
    """All columns of a table: name → values, strings where the format has no types, None where a record has none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for an empty file, rows of different lengths, a column named twice, a line that is no JSON object,
            or bytes that are no UTF-8.
        ImportError: for Parquet without pyarrow.
    """
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".jsonl":
        return _records(path)
    header, *rows = delimited(path)
    if not rows:
        raise ValueError(f"{path}: no rows below a header")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: columns {', '.join(header)}; name each once")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def column(table: Table, name: str, path: Path) -> list[Any]:
    """One column.

    Raises:
        ValueError: naming the columns there are.
    """
    if name not in table:
        raise ValueError(f"{path}: no column {name!r}; it has {', '.join(table)}")
    return table[name]


def as_text(value: Any, where: str) -> str | None:
    """A cell as text; None where it holds none: null, NaN, or white space alone.

    Raises:
        ValueError: for a list, an object or a boolean, and for text that is no Unicode.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {value!r} is no text; give strings")
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where}: {text!r} has half a surrogate pair; write the file as UTF-8 again")
    return text if text.strip() else None


def joined(table: Table, names: Sequence[str], path: Path) -> list[str | None]:
    """Texts of one column, or of several joined by a space; None where all are empty."""
    parts = [column(table, name, path) for name in names]
    found = []
    for number, row in enumerate(zip(*parts), start=1):
        cells = (as_text(value, f"{path}: record {number}, {name}") for name, value in zip(names, row))
        found.append(" ".join(text for text in cells if text is not None) or None)
    return found


def read_ids(path: Path) -> np.ndarray:
    """Ids or labels: a .npy array, the only column of a table, or one a line of a text file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for another format, several columns, or an empty line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".npy":
        return np.asarray(loaded(path))
    if is_table(path):
        table = read_table(path)
        if len(table) != 1:
            raise ValueError(f"{path}: columns {', '.join(table)}; give a table of one column, or a line a row in .txt")
        (values,) = table.values()
        return np.array([_id(value, path) for value in values])
    if path.suffix in OTHERS:
        raise ValueError(f"{path}: {OTHERS[path.suffix]}; expected .npy, a table of one column, or a text file")
    return np.array(lines(path))


def lines(path: Path) -> list[str]:
    """The lines of a text file, with or without a last newline.

    Raises:
        ValueError: where one is empty.
    """
    found = decoded(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    empty = [number for number, line in enumerate(found, start=1) if not line.strip()]
    if empty:
        raise ValueError(f"{path}: line {empty[0]} is empty; every line is a row")
    return found


def _id(value: Any, path: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{path}: {value!r} is no id; expected integers or strings")
    return str(value)


def ids_of(values: Iterable[Any], path: Path) -> np.ndarray:
    """A column of ids as strings; raises ValueError for what is neither integer nor string."""
    return np.array([_id(value, path) for value in values])


def decoded(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start} is no UTF-8"
        raise ValueError(f"{path}: {kind}; save it as UTF-8, such as by iconv -f CP1252 -t UTF-8") from None


def loaded(path: Path) -> Any:
    """An array of an .npy file, or a dict of those of an .npz file."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: no complete {path.suffix} file ({error}); write it again") from None


def _parquet(path: Path) -> Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install 'negbank[text]'") from None
    try:
        found = dict(pq.read_table(path).to_pydict())
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no complete Parquet file ({error}); write it again") from None
    if not any(len(values) for values in found.values()):
        raise ValueError(f"{path}: no rows")
    return found


def _records(path: Path) -> Table:
    table: Table = {}
    count = 0
    for number, line in enumerate(decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is no JSON object")
        for name in record:
            if name not in table:
                table[name] = [None] * count
        for name, values in table.items():
            values.append(record.get(name))
        count += 1
    if not count:
        raise ValueError(f"{path}: no rows")
    return table


def delimited(path: Path) -> list[list[str]]:
    """The rows of a CSV or a TSV file, all of one length."""
    text = decoded(path)
    csv.field_size_limit(1 << 30)
    try:
        quoted: list[list[str]] | None = [
            row for row in csv.reader(io.StringIO(text, newline=""), strict=True,
                                      delimiter="," if path.suffix == ".csv" else "\t") if row
        ]  # fmt: skip
    except csv.Error as error:
        if path.suffix == ".csv":
            raise ValueError(f"{path}: no CSV ({error}); quote fields that hold quotes, commas or newlines") from None
        quoted = None
    rows = quoted or []
    if path.suffix == ".tsv":
        plain = [line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line]
        several = len({len(row) for row in plain}) == 1 and len(plain[0]) > 1
        if quoted is None or (several and (len(quoted) != len(plain) or len({len(row) for row in quoted}) > 1)):
            rows = plain
    if not rows:
        raise ValueError(f"{path}: no rows below a header")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: row {number} has {len(row)} fields, the header {len(rows[0])}")
    return rows
