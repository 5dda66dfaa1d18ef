"""Results as rows: a dictionary each, in the order they were found, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank import files

Row = dict[str, Any]


def distinct(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column in the order of their first row."""
    return list(dict.fromkeys(row[name] for row in rows))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Tidy rows with one header, numbers to eight digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    files.write(path, text.getvalue())
