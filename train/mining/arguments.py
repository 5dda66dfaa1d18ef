"""What the verbs that mine share on the command line: the rules, the outputs, and what is written at the end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from negbank import files
from negbank.owner import LOCK, owned

TEXTS = "texts.json"
"""File of a result's folder: what its ids stand for, a pair of queries and corpus."""
CHOICES = {
    "positive_reference": ("min", "max", "mean", "each"),
    "sampling_strategy": ("top", "random", "softmax"),
    "shortfall": ("short", "drop", "pad_random", "error"),
}
RULES: dict[str, tuple[type, str]] = {
    "num_negatives": (int, "negatives wanted for every query (3)"),
    "range_min": (int, "skip this many of the best ranks (0)"),
    "range_max": (int, "consider ranks below this; chosen from the other arguments by default"),
    "absolute_margin": (float, "a negative scores at most p - MARGIN, p the score of the positive"),
    "relative_margin": (float, "a negative scores at most p - |p| * MARGIN"),
    "min_score": (float, "least score of a negative"),
    "max_score": (float, "highest score of a negative"),
    "positive_reference": (str, "p of a query with several positives (min); each: a row for every positive"),
    "sampling_strategy": (str, "of what passes: the best, or drawn uniformly or by softmax (top)"),
    "temperature": (float, "of softmax (0.05)"),
    "shortfall": (str, "where too few are found (short)"),
    "seed": (int, "of random draws (0)"),
}
SEARCH: dict[str, tuple[type, str]] = {
    "dedupe": (str, "also leave out rows equal to, or near, a positive or a chosen negative: id, exact, near (id)"),
    "near": (float, "cosine from which rows are near (0.95)"),
    "index": (str, "exact, a Faiss factory string, or auto, what should be faster; a snapshot's own by default"),
    "query_batch": (int, "queries of a part"),
    "memory_budget": (str, "what the whole process may take, such as 2GB"),
}


def add_rules(group: Any, arguments: dict[str, tuple[type, str]]) -> None:
    """Arguments of `mine_hard_negatives`, such as `RULES`; what is not given is None."""
    for name, (kind, text) in arguments.items():
        metavar = None if name in CHOICES else name.rsplit("_")[-1].upper()
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, choices=CHOICES.get(name), metavar=metavar, help=text
        )


def add_outputs(group: Any) -> None:
    """Where the result goes."""
    group.add_argument("--out", type=Path, required=True, help="a folder for the result; an interrupted run goes on")
    group.add_argument("--export", type=Path, help="also write training records: a path ending in .jsonl or .parquet")
    group.add_argument(
        "--form", default="triplet", choices=("triplet", "n-tuple", "labeled-pair", "labeled-list", "ids"),
        help="of the records (triplet)",
    )  # fmt: skip
    group.add_argument("--scores", action="store_true", help="records carry scores")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of the arguments that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def check(options: argparse.Namespace) -> None:
    """Refuse what `mine_hard_negatives`, or the writing of its result, would refuse after texts were encoded.

    Raises:
        ValueError, FileNotFoundError, ImportError: naming the argument, its value and the remedy.
    """
    import inspect

    from negbank import mine_hard_negatives
    from negbank.bounds import misfit
    from negbank.mining.budget import parse_size

    parameters = inspect.signature(mine_hard_negatives, eval_str=True).parameters
    for name, value in given(options, {**RULES, **SEARCH}).items():
        problem = misfit(parameters[name].annotation, value)
        if problem is not None:
            raise ValueError(f"{name}={value!r}: expected {problem}")
    if options.memory_budget is not None:
        parse_size(options.memory_budget)
    check_export(options)
    out = options.out
    others = {each.name for each in out.iterdir()} - {LOCK, files.MANIFEST + files.DRAFT} if out.is_dir() else set()
    if others and files.MANIFEST not in others:
        raise ValueError(f"out={out}: the folder holds other files; give a new or empty one")


def check_export(options: argparse.Namespace) -> None:
    """Refuse an --export that could not be written.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `check`.
    """
    export = options.export
    if export is None:
        return
    if export.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"export={export}: expected a path that ends in .jsonl or .parquet")
    if not export.parent.is_dir():
        raise FileNotFoundError(f"export={export}: no folder {export.parent}; make it first")
    if export.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(f"export={export} needs the package `pyarrow`: pip install 'negbank[text]'")


def write(result: Any, lookup: Any, options: argparse.Namespace) -> None:
    """The result's table, picture, texts and records."""
    summary, out = result.summary(), options.out
    told = "summary.txt"
    with owned(out):
        files.write(out / "summary.txt", summary + "\n")
        if find_spec("matplotlib") is not None:  # not needed to mine
            result.plot(out / "scores.png")
            told += ", scores.png"
        if lookup is not None and TEXTS not in files.told(out)["sha256"]:
            files.add(out, TEXTS, json.dumps(lookup))
    print(summary)
    written = [f"{out} ({told})"]
    if options.export is not None:
        written.append(str(result.to(options.form, lookup, out=options.export, scores=options.scores)))
    print(f"written to {', '.join(written)}")
