"""A verb's configuration file."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from negbank.train.config import load


def read(options: Namespace, root: Any) -> Any:
    """`options.config` with the overrides that were given, checked; notes are printed."""
    config, notes = load(options.config, options.overrides, root=root, inputs=True)
    for note in notes:
        print(f"note: {note}")
    return config
