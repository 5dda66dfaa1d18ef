"""`negbank search`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Register the verb."""
    search = commands.add_parser("search", help="find the documents of a run by meaning")
    search.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    search.add_argument("query", nargs="+", help="words; each argument is a query")
    search.add_argument("--best", action="store_true", help="by the best checkpoint, not the newest")
    search.add_argument("-k", type=int, default=5, help="documents a query (5)")


def run(options: Namespace) -> int:
    """Print what was found."""
    from negbank.train.search import search

    if options.k < 1:
        raise ValueError(f"-k {options.k}: expected at least 1")
    for query, hits in zip(options.query, search(options.run_dir, options.query, k=options.k, best=options.best)):
        print(f"{query}\n")
        for hit in hits:
            lines = hit.text.splitlines()
            shown = [*lines[:6], "..."] if len(lines) > 7 else lines
            print(f"  {hit.score:.3f}  " + "\n         ".join(line[:110] for line in shown) + "\n")
    return 0
