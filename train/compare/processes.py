"""Cells as processes: each is `negbank train --resume FOLDER`, in the folder of a run that may not have begun.

A run without a checkpoint begins, one with a checkpoint goes on, and a finished one is not started. While a process
lives it holds a lock on its log: a comparison that was killed cannot start the same run a second time beside it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from negbank.train.cli import DIVERGED
from negbank.train.compare.cells import Cell
from negbank.train.config import to_dict
from negbank.train.run import CHECKPOINTS, CONFIG, METRICS, differences, read_config, write_config

START = (
    "import sys; sys.path = [*filter(None, sys.path), sys.argv.pop(1)]\n"
    "from negbank.train.cli import main; sys.exit(main())"
)
"""`negbank` without the working directory on the path: with `python -m` a user's own train.py there would be run."""
ROOT = str(Path(__file__).parents[2])
"""Where this package is found, for a checkout that is not installed."""
LOG, DIVERGENCE = "log.txt", "diverged.txt"
POLL = 0.1
"""Seconds between looks at the running processes."""


class CompareError(RuntimeError):
    """A comparison that cannot go on, with the remedy."""


def prepare(cells: Sequence[Cell]) -> None:
    """Make every cell's folder that of a run to begin or to go on with; one that has not begun gets its cell's anew.

    Raises:
        CompareError: for a folder that holds a run of another configuration, before any is made.
    """
    for cell in cells:
        if (cell.folder / CONFIG).exists() and _begun(cell):
            shown = differences(to_dict(cell.config), to_dict(read_config(cell.folder)), "there")
            if shown:
                raise CompareError(
                    f"{cell.folder} holds a run of another configuration ({shown}); choose another out, or remove it"
                )
    for cell in cells:
        if not finished(cell):
            cell.folder.mkdir(parents=True, exist_ok=True)
            with _locked(cell.folder):  # a run that has only just begun has read its configuration
                write_config(cell.folder, cell.config)


def _begun(cell: Cell) -> bool:
    """Whether anything of the cell's run depends on its configuration yet."""
    metrics = cell.folder / METRICS
    return finished(cell) or (cell.folder / CHECKPOINTS).exists() or (metrics.exists() and metrics.stat().st_size > 0)


def finished(cell: Cell) -> bool:
    """Whether nothing is left to run: it has a summary, or diverged."""
    return (cell.folder / "summary.json").exists() or diverged(cell) is not None


def diverged(cell: Cell) -> str | None:
    """What a run said when it diverged, or None."""
    path = cell.folder / DIVERGENCE
    return path.read_text().strip() if path.exists() else None


def execute(cells: Sequence[Cell], jobs: int) -> Generator[Cell, None, None]:
    """Run cells, `jobs` at once, and give each when it has finished. Closing the iterator stops those that run.

    Raises:
        CompareError: when a run fails, or is still going on from an earlier comparison. Divergence is no failure.
    """
    waiting = list(cells)
    running: dict[subprocess.Popen[bytes], Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[_launch(cell.folder, jobs)] = cell
            for process in [each for each in running if each.poll() is not None]:
                cell = running.pop(process)
                _conclude(cell, process.returncode)
                yield cell
            time.sleep(POLL)
    finally:
        for process in running:
            process.terminate()  # it writes a checkpoint
        for process in running:
            process.wait()


def _launch(folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with _locked(folder) as log:  # which the child inherits with the open file
        command = [sys.executable, "-c", START, ROOT, "train", "--resume", str(folder)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


@contextmanager
def _locked(folder: Path) -> Iterator[IO[bytes]]:
    """The log of a folder's run, open and locked.

    Raises:
        CompareError: when a process that runs it has the lock.
    """
    with (folder / LOG).open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompareError(f"{folder}: its run is still going on; wait for it, or stop it") from None
        yield log


def _conclude(cell: Cell, code: int) -> None:
    if code == 0:
        return
    lines = (cell.folder / LOG).read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if code == DIVERGED:
        (cell.folder / DIVERGENCE).write_text(last.removeprefix("negbank: ") + "\n")
        return
    raise CompareError(f"{cell}: its run ended with {code}: {last} ({cell.folder / LOG} has it all)")
