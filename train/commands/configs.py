"""A verb's configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank.train.config import load


def read(path: Path, overrides: Sequence[str], root: str) -> Any:
    """The file with what overrides set, checked; notes are printed."""
    config, notes = load(path, overrides, root=root)
    for note in notes:
        print(f"note: {note}")
    return config
