"""Functions of the installed Python packages and what they say they do: pairs that every user has.

Files come in the order of a hash of their name, so that a limit takes some of every package. What was found is kept
under the list of files, their sizes and times of change, and read again while that is the same.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from negbank import files
from negbank.bounds import Annotated, Count, Ge, Input, Share, Supplied, checked
from negbank.owner import sweep
from negbank.train.data.contract import Pairs, Splits
from negbank.train.data.pairs import held_out
from negbank.train.data.text.data import TextData
from negbank.train.data.text.functions import LARGEST, Function, read
from negbank.train.data.text.tokenizers import tokenizer as named

SKIPPED = {"test", "tests", "testing"}
"""Folders whose functions are left out."""
CHUNK = 64
"""Files that a process parses at once."""
CACHE = Path("~/.cache/negbank")


@checked
def python_code(
    folder: Annotated[str | None, Input()] = None,
    *,
    most: Annotated[int, Ge(100)] = 30_000,
    tokenizer: str = "wordllama",
    longest_query: Count = 24,
    longest_document: Count = 96,
    delete: Share = 0.2,
    holdout: Annotated[float, Ge(0)] = 2000,
    split: Annotated[int, Ge(0), Supplied("run.seed")] = 0,
) -> Splits:
    """Functions of the installed Python packages: the docstring's first sentence on the left, the code on the right.

    Args:
        folder: where packages are; None: those of the Python that runs.
        most: functions at most, of distinct sentences and code.
        tokenizer: wordllama, hashed, a folder with a tokenizer.json, or a package that carries one.
        longest_query: tokens of a sentence at most.
        longest_document: tokens of a function at most.
        delete: share of tokens that a view leaves out.
        holdout: pairs held out, from 1 on their number, below 1 a share.
        split: which pairs these are: 0, 1, ... draw others; None: run.seed.

    Raises:
        ValueError: for a folder with less than 100 documented functions.
    """
    root = Path(sysconfig.get_paths()["purelib"] if folder is None else folder)
    found = collected(root, most)
    if len(found) < 100:
        raise ValueError(f"folder={root}: {len(found)} documented functions; give one that packages are installed in")
    kind = named(tokenizer)
    modules = np.unique([name.partition(":")[0] for _, _, name in found], return_inverse=True)[1]
    left = TextData([each.query for each in found], kind, longest=longest_query, delete=delete)
    right = TextData(
        [each.document for each in found], kind, longest=longest_document, delete=delete,
        labels=torch.from_numpy(modules.astype(np.int64)),
    )  # fmt: skip
    return held_out(Pairs(left, right), holdout, split)


def collected(root: Path, most: int) -> list[Function]:
    """At most so many functions below a folder, no sentence and no code twice; each named "file:function"."""
    paths = sorted(root.rglob("*.py"), key=lambda path: hashlib.sha256(_name(path, root).encode()).digest())
    stats = {path: path.stat() for path in paths if not SKIPPED & set(path.relative_to(root).parts)}
    wanted = [path for path, stat in stats.items() if stat.st_size <= LARGEST]
    key = hashlib.sha256(f"1 {most}".encode())
    for path in wanted:
        key.update(f"\0{_name(path, root)} {stats[path].st_size} {stats[path].st_mtime_ns}".encode())
    cache = CACHE.expanduser() / f"python_code_{key.hexdigest()[:32]}.json"
    kept = files.kept(cache)
    if kept is None:
        rows = [*islice(_distinct(_parsed(root, wanted)), most)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        sweep(cache.parent, f"python_code_*{files.DRAFT}")
        kept = files.keep(cache, lambda file: file.write(json.dumps(rows).encode()))
    return [Function(*row) for row in json.loads(kept.read_bytes())]


def _distinct(found: Iterator[Function]) -> Iterator[Function]:
    queries, documents = set(), set()
    with tqdm(desc="reading functions", unit=" functions", mininterval=1) as bar:
        for each in found:
            if each.query not in queries and each.document not in documents:
                queries.add(each.query)
                documents.add(each.document)
                bar.update()
                yield each


def _parsed(root: Path, paths: list[Path]) -> Iterator[Function]:
    """The functions of files, in their order, parsed by as many processes as there are cores."""
    parts = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
    cores = min(len(parts), os.cpu_count() or 1)
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"))  # which imports functions.py alone
    try:
        waiting = iter(parts)
        running = [pool.submit(read, root, part) for part in islice(waiting, 2 * cores)]
        while running:
            first = running.pop(0)
            yield from chain.from_iterable(first.result())
            running += [pool.submit(read, root, part) for part in islice(waiting, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
